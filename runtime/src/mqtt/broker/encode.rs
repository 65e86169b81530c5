//! To come: encode.
