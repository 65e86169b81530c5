//! A rename that never replaces: how what is complete gets its name, once.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Renames `from` to `to` in one step, if there is nothing at `to` (`RENAME_NOREPLACE` of Linux).
/// File systems without that (NFS, some FUSE) get a hard link and lose the old name: a crash
/// between both leaves two names.
///
/// # Errors
/// `AlreadyExists` if `to` is there, and `from` is as it was; else those of the file system.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_there_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second, to] = ["first", "second", "to"].map(|name| folder.path().join(name));
        std::fs::write(&first, "first").unwrap();
        std::fs::write(&second, "second").unwrap();
        rename_new(&first, &to).unwrap();
        assert!(!first.exists());
        let error = rename_new(&second, &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "first");
        assert_eq!(std::fs::read_to_string(&second).unwrap(), "second");
        let missing = rename_new(&first, &folder.path().join("other")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
