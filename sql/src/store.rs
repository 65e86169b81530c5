//! Where tables lie: one object store and the prefix below which every path is meant.
//!
//! All code beyond this file uses paths relative to the root of the tables. Writes are durable
//! when they return: object stores promise that, the local file system is wrapped for it.

mod durable;
pub(crate) mod folders;
mod outage;
mod rename;

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use url::Url;

use durable::DurableLocal;
use folders::Folders;
pub use folders::OnFailedSync;
pub use outage::{has_no_room, may_pass};
pub use rename::rename_new;

use crate::{Error, Result};

/// The root folder of all tables, local or remote.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    url: String,
    local: Option<(PathBuf, Arc<Folders>)>,
    pauses: bool,
}

impl Store {
    /// Opens `/path`, `path`, `file:///path` or `s3://bucket/prefix` (configured by the usual
    /// `AWS_*` variables, among them `AWS_ENDPOINT_URL` and `AWS_ALLOW_HTTP`). A local folder is
    /// created if it is missing.
    ///
    /// # Errors
    /// The scheme is unknown, the bucket's configuration incomplete, or the folder not writable.
    pub fn open(url: &str) -> Result<Self> {
        match Self::local_folder(url)? {
            Some(folder) => {
                let bad = |e: &dyn std::fmt::Display| Error::Location {
                    url: url.into(),
                    problem: e.to_string(),
                };
                let folders = Arc::<Folders>::default();
                folders.make(&folder).map_err(|e| bad(&e))?;
                let objects = DurableLocal::new(&folder, Arc::clone(&folders));
                Ok(Self {
                    objects: Arc::new(objects.map_err(|e| bad(&e))?),
                    url: url.into(),
                    local: Some((folder, folders)),
                    pauses: true,
                })
            }
            None => Self::open_s3(url),
        }
    }

    /// The folder that `url` means on this machine, `None` if it is remote.
    ///
    /// # Errors
    /// The scheme is unknown.
    pub fn local_folder(url: &str) -> Result<Option<PathBuf>> {
        let Some((scheme, _)) = url.split_once("://") else {
            return Ok(Some(FsPath::new(url).to_path_buf()));
        };
        let bad = |problem: &str| Error::Location { url: url.into(), problem: problem.into() };
        match scheme {
            "file" => {
                let parsed = Url::parse(url).map_err(|e| bad(&e.to_string()))?;
                let path = parsed.to_file_path().map_err(|()| bad("not an absolute path"))?;
                Ok(Some(path))
            }
            "s3" => Ok(None),
            _ => Err(bad("use a folder, file:///folder or s3://bucket/prefix")),
        }
    }

    fn open_s3(url: &str) -> Result<Self> {
        let bad = |problem: String| Error::Location { url: url.into(), problem };
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        let bucket = parsed.host_str().ok_or_else(|| bad("names no bucket".into()))?;
        let s3 = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .build()
            .map_err(|e| bad(e.to_string()))?;
        let prefix = parsed.path().trim_matches('/');
        let objects: Arc<dyn ObjectStore> =
            if prefix.is_empty() { Arc::new(s3) } else { Arc::new(PrefixStore::new(s3, prefix)) };
        Ok(Self { objects, url: url.into(), local: None, pauses: true })
    }

    /// Tables in a store that the caller made (tests wrap one with faults).
    pub fn from_objects(objects: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { objects, url: url.into(), local: None, pauses: true }
    }

    /// Has `tell` called when a folder cannot be synced. What was written before may be gone then
    /// after a power loss, whatever is visible, so this store writes nothing more; whoever goes on
    /// must not rely on what it said.
    pub fn on_failed_sync(&self, tell: OnFailedSync) {
        if let Some((_, folders)) = &self.local {
            folders.on_failed(tell);
        }
    }

    /// Makes the names in a folder durable that a put may have left without its sync. Object
    /// stores have no such thing: there it does nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync_folder(&self, folder: &Path) -> std::io::Result<()> {
        match &self.local {
            Some((root, folders)) => folders.sync(&root.join(folder.as_ref())),
            None => Ok(()),
        }
    }

    /// Makes durable what an earlier process may have left in a table without syncing its folders,
    /// and shows each file there to `see`. Object stores have no such thing: there it does nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn sync_names(&self, table: &str, see: impl FnMut(&FsPath)) -> std::io::Result<()> {
        match &self.local {
            Some((root, folders)) => folders.sync_all(root, FsPath::new(table), see),
            None => Ok(()),
        }
    }

    /// The same, but what failed is tried again at once: for tests that make it fail.
    pub fn without_pauses(self) -> Self {
        Self { pauses: false, ..self }
    }

    /// Whether to wait before something is tried again.
    pub(crate) fn pauses(&self) -> bool {
        self.pauses
    }

    /// The objects, by paths relative to the root of the tables.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The root as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What makes syncs of a local store fail.
    #[cfg(test)]
    pub(crate) fn probe(&self) -> &folders::tests::Probe {
        &self.local.as_ref().expect("a folder").1.probe
    }

    /// The root as a folder of this machine, if it is one.
    pub fn folder(&self) -> Option<&FsPath> {
        self.local.as_ref().map(|(root, _)| root.as_path())
    }
}
