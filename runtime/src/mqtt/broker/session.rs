//! To come: session.
