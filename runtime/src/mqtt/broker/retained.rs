//! To come: retained.
