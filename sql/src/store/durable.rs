//! A local object store whose `put` returns only when the object survives a power loss.
//!
//! object_store 0.13 never syncs; a commit file that is empty after a power loss would be read as
//! an empty commit, which is silent loss. So: write a staged file, sync it, link or rename it into
//! place, sync its folder and every folder that had to be made. Multipart uploads and copies are
//! refused rather than left unsynced; nothing in this crate needs them.

use std::fmt::{Display, Formatter};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::rename_new;
use crate::fault;

/// How many staged names are tried before a put gives up; each belongs to a crashed or running put
/// of the same object.
const STAGED_NAMES_MAX: u32 = 1_000;

/// [`LocalFileSystem`] with durable puts.
#[derive(Debug)]
pub(super) struct DurableLocal {
    inner: LocalFileSystem,
}

impl Display for DurableLocal {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Durable{}", self.inner)
    }
}

impl DurableLocal {
    /// Objects below `folder`, which must exist.
    ///
    /// # Errors
    /// The folder is missing.
    pub(super) fn new(folder: &FsPath) -> Result<Self> {
        Ok(Self { inner: LocalFileSystem::new_with_prefix(folder)? })
    }

    fn refuse<T>(&self, operation: &str) -> Result<T> {
        Err(Error::NotImplemented { operation: operation.into(), implementer: self.to_string() })
    }
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: "DurableLocal", source: Box::new(source) }
}

fn sync_folder(folder: &FsPath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes `folder`, and syncs the parent of every folder that was new.
fn make_folder(folder: &FsPath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    parent.map_or(Ok(()), sync_folder)
}

/// Makes the names in `root` and everywhere below `root/table` durable. A process that died between
/// placing a file and syncing its folder leaves a name that a power loss can still take; whoever
/// goes on from what is visible has to make sure of it first. `see` is shown each file.
pub(super) fn sync_names(
    root: &FsPath,
    table: &FsPath,
    mut see: impl FnMut(&FsPath),
) -> io::Result<()> {
    let folder = root.join(table);
    if !folder.is_dir() {
        return Ok(());
    }
    for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(root)) {
        sync_folder(above)?;
    }
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        sync_folder(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => see(&entry.path()),
            }
        }
    }
    Ok(())
}

/// A new file next to `target`. Listings skip names that end in `#` and digits.
fn stage(target: &FsPath) -> io::Result<(File, PathBuf)> {
    for n in 1..STAGED_NAMES_MAX {
        let mut name = target.as_os_str().to_owned();
        name.push(format!("#{n}"));
        let path = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, "too many staged files, remove `*#*` files"))
}

fn put_durable(target: &FsPath, payload: &PutPayload, only_new: bool) -> io::Result<()> {
    let folder = target.parent().expect("an object lies in a folder");
    make_folder(folder)?;
    let (mut file, staged) = stage(target)?;
    let written = payload.iter().try_for_each(|part| file.write_all(part));
    if target.extension().is_some_and(|e| e == "parquet") {
        fault::point("parquet_part");
    }
    let placed = written.and_then(|()| file.sync_all()).and_then(|()| {
        if only_new { rename_new(&staged, target) } else { fs::rename(&staged, target) }
    });
    if placed.is_err() {
        // Best effort: the object does not depend on it, and listings skip the name.
        let _ = fs::remove_file(&staged);
    }
    placed?;
    sync_folder(folder)
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let only_new = match opts.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return self.refuse("conditional update"),
        };
        let target = self.inner.path_to_filesystem(location)?;
        let shown = location.to_string();
        tokio::task::spawn_blocking(move || put_durable(&target, &payload, only_new))
            .await
            .map_err(|source| Error::JoinError { source })?
            .map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { path: shown, source: Box::new(e) }
                }
                _ => generic(e),
            })?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.refuse("multipart upload")
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        self.refuse("copy")
    }
}
