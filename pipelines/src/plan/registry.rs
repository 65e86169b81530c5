//! Where a registry comes from.

use super::FileFormat;

/// A file that a registry is kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryFile {
    /// The file.
    pub path: String,
    /// How it is written; `None`: its name tells.
    pub format: Option<FileFormat>,
    /// What is between the cells of `csv`; `None`: its name tells.
    pub delimiter: Option<u8>,
}

/// A registry as the edge sees it: rows that come, stay and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrySource {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Its name.
    pub name: String,
    /// Where the columns of the key are in a row, each with the column's name.
    pub key: Vec<(String, Vec<String>)>,
    /// The member that says since when a row holds.
    pub valid_from: Option<String>,
    /// Where it is.
    pub file: RegistryFile,
}
