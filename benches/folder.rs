//! Where a bench keeps what it writes.

use std::path::{Path, PathBuf};

use anyhow::Result;

/// A folder below `target/`, one for each bench and name; removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// An empty one.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let bench = env!("CARGO_CRATE_NAME");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(bench).join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
