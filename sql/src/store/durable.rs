//! A local object store whose `put` returns only when the object survives a power loss.
//!
//! object_store 0.13 never syncs; a commit file that is empty after a power loss would be read as
//! an empty commit, which is silent loss. So: write a staged file, sync it, link or rename it into
//! place, sync its folder and every folder that had to be made. Multipart uploads and copies are
//! refused rather than left unsynced; nothing in this crate needs them.

use std::fmt::{Display, Formatter};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::folders::Folders;
use crate::fault;

/// How many staged names are tried before a put gives up; each belongs to a crashed or running put
/// of the same object.
const STAGED_NAMES_MAX: u32 = 1_000;

/// [`LocalFileSystem`] with durable puts.
#[derive(Debug)]
pub(super) struct DurableLocal {
    inner: LocalFileSystem,
    folders: Arc<Folders>,
}

impl Display for DurableLocal {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Durable{}", self.inner)
    }
}

impl DurableLocal {
    /// Objects below `folder`, which must exist, in folders that `folders` knows.
    ///
    /// # Errors
    /// The folder is missing.
    pub(super) fn new(folder: &FsPath, folders: Arc<Folders>) -> Result<Self> {
        Ok(Self { inner: LocalFileSystem::new_with_prefix(folder)?, folders })
    }

    fn refuse<T>(&self, operation: &str) -> Result<T> {
        Err(Error::NotImplemented { operation: operation.into(), implementer: self.to_string() })
    }
}

fn generic(source: io::Error) -> Error {
    Error::Generic { store: "DurableLocal", source: Box::new(source) }
}

/// A new file next to `target`. Listings skip names that end in `#` and digits.
fn stage(folders: &Folders, target: &FsPath) -> io::Result<(File, PathBuf)> {
    for n in 1..STAGED_NAMES_MAX {
        let mut name = target.as_os_str().to_owned();
        name.push(format!("#{n}"));
        let path = PathBuf::from(name);
        match folders.create(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(ErrorKind::AlreadyExists, "too many staged files, remove `*#*` files"))
}

fn put_durable(
    folders: &Folders,
    target: &FsPath,
    payload: &PutPayload,
    only_new: bool,
) -> io::Result<()> {
    let folder = target.parent().expect("an object lies in a folder");
    folders.make(folder)?;
    let (mut file, staged) = stage(folders, target)?;
    let written = payload.iter().try_for_each(|part| file.write_all(part));
    if target.extension().is_some_and(|e| e == "parquet") {
        fault::point("parquet_part");
    }
    let placed = written
        .and_then(|()| folders.sync_file(&file, &staged))
        .and_then(|()| folders.rename(&staged, target, only_new));
    if placed.is_err() {
        // Best effort: the object does not depend on it, and listings skip the name.
        let _ = fs::remove_file(&staged);
    }
    placed?;
    folders.sync(folder)
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
        let (shown, folders) = (location.to_string(), Arc::clone(&self.folders));
        tokio::task::spawn_blocking(move || put_durable(&folders, &target, &payload, only_new))
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
