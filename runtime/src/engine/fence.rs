//! Only one process at a time commits for an instance, wherever its data folders are.
//!
//! A data folder is locked, but a copy of it is another folder, and a standby on another machine
//! has a lock of its own. So the store of the tables decides: every start puts
//! `_tidegate/INSTANCE/incarnation-N.json`, N one more than the highest that is there, by a put
//! that only one can win. Whoever finds a higher number than its own ([`Fence::look`]: before each
//! commit, and every two seconds) stops at once and acknowledges nothing more.
//!
//! That is noticed, not prevented: between its look and its put the older process may still be
//! beaten or beat. The log of each table decides then; who loses there gets
//! [`tidegate_sql::Error::Fenced`]. So that this stays rare, who comes later waits, before it opens
//! tables, until the one before says that it has ended, or for [`TAKE_OVER_MAX`].
//!
//! `incarnation-N.json` is `{"version": 1, "host", "process", "folder", "started"}`; that N has
//! ended is the presence of `incarnation-N-ended.json`.

use std::os::unix::fs::MetadataExt;
use std::path::Path as FsPath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use tidegate_sql::Store;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::options::{EngineOptions, OnFenced, moment};
use crate::clock::Clock;

/// How often a process looks whether there is a later one.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one look may take before it is made anew.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// How long commits that are under way may take to end when a later process was found.
const END_MAX: Duration = Duration::from_secs(3);
/// How long a later process waits for the one before. Longer than that one needs to notice and to
/// end: a look that fails, one more, and its commits.
const TAKE_OVER_MAX: Duration = Duration::from_secs(12);
/// Between two looks of the one who waits.
const WAIT_EVERY: Duration = Duration::from_millis(300);

const FOLDER: &str = "_tidegate";
const VERSION: u32 = 1;

/// Who runs, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    version: u32,
    host: String,
    process: u32,
    /// Device and inode of the data folder, and its path: a copy is another one.
    folder: String,
    /// RFC 3339.
    started: String,
}

impl Holder {
    fn this(data: &FsPath, now_us: i64) -> std::io::Result<Self> {
        let place = std::fs::metadata(data)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Self {
            version: VERSION,
            host: host.trim().to_owned(),
            process: std::process::id(),
            folder: format!("{}:{} {}", place.dev(), place.ino(), data.display()),
            started: moment(now_us),
        })
    }

    /// Whether it had the folder that this process has locked: then it is gone.
    fn is_gone(&self, now: &Self) -> bool {
        let place = |holder: &Self| holder.folder.split(' ').next().map(str::to_owned);
        self.host == now.host && place(self) == place(now)
    }
}

/// Looks for a later process until dropped.
pub(super) struct Watching(JoinHandle<()>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The right to commit to the tables, and who watches over it; `claimed` gets it too.
///
/// # Errors
/// Those of the store.
pub(super) async fn claim(
    store: &Store,
    instance: &str,
    options: &EngineOptions,
    clock: &Clock,
    claimed: &OnceLock<Arc<Fence>>,
) -> anyhow::Result<(Arc<Fence>, Watching)> {
    let (data, on_fenced) = (&options.data, Arc::clone(&options.on_fenced));
    let fence = Fence::claim(store, instance, data, clock.now_us(), on_fenced).await?;
    let fence = Arc::clone(claimed.get_or_init(|| fence));
    let watching = fence.watch();
    Ok((fence, watching))
}

/// The right to make one commit, as long as it lives.
pub(super) type CommitRight<'f> = RwLockReadGuard<'f, ()>;

/// The right to commit, until somebody has a later one.
pub(super) struct Fence {
    store: Store,
    folder: Path,
    number: u64,
    fenced: AtomicBool,
    /// Read while a commit is under way.
    commits: RwLock<()>,
    on_fenced: OnFenced,
}

impl Fence {
    /// Takes the next number, and waits for the process that had the one before. The data folder
    /// must be locked.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn claim(
        store: &Store,
        instance: &str,
        data: &FsPath,
        now_us: i64,
        on_fenced: OnFenced,
    ) -> anyhow::Result<Arc<Self>> {
        let mut fence = Self {
            store: store.clone(),
            folder: Path::from_iter([FOLDER, instance]),
            number: 0,
            fenced: AtomicBool::new(false),
            commits: RwLock::new(()),
            on_fenced,
        };
        let this = Holder::this(data, now_us).context("cannot look at the data folder")?;
        let text = serde_json::to_string(&this)?;
        let what = || format!("cannot register with the tables in {}", store.url());
        let mut highest = fence.highest().await.with_context(what)?;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let path = fence.path(highest + 1, "");
            match store.objects().put_opts(&path, text.clone().into(), options).await {
                Ok(_) => break,
                Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => {
                    // Perhaps our own, whose answer was lost: a number more does no harm.
                    highest += 1;
                }
                Err(error) => return Err(error).with_context(what),
            }
        }
        fence.number = highest + 1;
        if highest > 0 {
            fence.wait_for(highest, &this).await?;
        }
        Ok(Arc::new(fence))
    }

    /// Which run of the instance this is, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn path(&self, number: u64, suffix: &str) -> Path {
        self.folder.clone().join(format!("incarnation-{number}{suffix}.json"))
    }

    /// The highest number that was taken; 0 if none was.
    async fn highest(&self) -> Result<u64, StoreError> {
        let number = |path: &Path| -> Option<u64> {
            let name = path.filename()?.strip_prefix("incarnation-")?.strip_suffix(".json")?;
            name.parse().ok()
        };
        let all: Vec<_> = self.store.objects().list(Some(&self.folder)).try_collect().await?;
        Ok(all.iter().filter_map(|object| number(&object.location)).max().unwrap_or(0))
    }

    async fn exists(&self, path: &Path) -> Result<bool, StoreError> {
        match self.store.objects().head(path).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until `number` has ended, or had the time to notice this process.
    async fn wait_for(&self, number: u64, this: &Holder) -> anyhow::Result<()> {
        let what = || format!("cannot read who wrote the tables in {} before", self.store.url());
        let found = self.store.objects().get(&self.path(number, "")).await.with_context(what)?;
        let bytes = found.bytes().await.with_context(what)?;
        // What cannot be read may be from another version: it gets its time.
        let before: Option<Holder> = serde_json::from_slice(&bytes).ok();
        if before.as_ref().is_some_and(|before| before.is_gone(this)) {
            return Ok(());
        }
        let (begun, mut told) = (Instant::now(), false);
        while begun.elapsed() < TAKE_OVER_MAX {
            if self.exists(&self.path(number, "-ended")).await.with_context(what)? {
                return Ok(());
            }
            if !std::mem::replace(&mut told, true) {
                let [host, folder, started] = match &before {
                    Some(b) => [&*b.host, &*b.folder, &*b.started],
                    None => ["unknown"; 3],
                };
                let wait_s = TAKE_OVER_MAX.as_secs();
                tracing::warn!(
                    host,
                    folder,
                    started,
                    wait_s,
                    "these tables were written by this instance from another data folder, which \
                     did not say that it has ended: waiting until it has noticed this one"
                );
            }
            tokio::time::sleep(WAIT_EVERY).await;
        }
        Ok(())
    }

    /// Whether there is a later process.
    ///
    /// # Errors
    /// Those of the store, from which nothing follows.
    async fn look(&self) -> Result<bool, StoreError> {
        if self.fenced.load(Ordering::Acquire) {
            return Ok(true);
        }
        self.exists(&self.path(self.number + 1, "")).await
    }

    /// Why this process has to stop, when it found a later one.
    pub(super) fn later(&self) -> String {
        format!("incarnation {} came after {}", self.number + 1, self.number)
    }

    /// The right to make one commit; `None` if there is a later process.
    ///
    /// # Errors
    /// Those of the store: the commit has to wait.
    pub(super) async fn guard(&self) -> Result<Option<CommitRight<'_>>, StoreError> {
        // Who stops waits for commits, and nobody may wait for who stops.
        if self.fenced.load(Ordering::Acquire) {
            return Ok(None);
        }
        let guard = self.commits.read().await;
        match self.look().await? {
            false => Ok(Some(guard)),
            true => Ok(None),
        }
    }

    /// Looks for a later process, until there is one or what this gives back is dropped.
    pub(super) fn watch(self: &Arc<Self>) -> Watching {
        let fence = Arc::clone(self);
        Watching(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                // Trouble with the store is told by those who write tables.
                let later = tokio::time::timeout(LOOK_MAX, fence.look()).await;
                if matches!(later, Ok(Ok(true))) {
                    return fence.stop(&fence.later()).await;
                }
            }
        }))
    }

    /// Stops this process: no commit begins any more, those under way may end, and then the one
    /// who comes later is told that it need not wait.
    pub(super) async fn stop(&self, why: &str) {
        if self.fenced.swap(true, Ordering::AcqRel) {
            return;
        }
        let quiet = tokio::time::timeout(END_MAX, self.commits.write()).await;
        if quiet.is_ok() {
            let _ = tokio::time::timeout(LOOK_MAX, self.note_ended()).await;
        }
        (self.on_fenced)(&format!(
            "another process of this instance writes the tables in {}: {why}. This one stops and \
             acknowledges nothing more; what it acknowledged and could not write into the tables \
             any more is in its journal only",
            self.store.url()
        ));
    }

    /// Ends a start that failed: commits that it has begun may end, no other begins.
    pub(super) async fn give_up(&self) {
        self.fenced.store(true, Ordering::Release);
        if tokio::time::timeout(END_MAX, self.commits.write()).await.is_ok() {
            self.note_ended().await;
        }
    }

    /// Says that this process commits nothing more.
    pub(super) async fn note_ended(&self) {
        let path = self.path(self.number, "-ended");
        if let Err(error) = self.store.objects().put(&path, "{}".into()).await {
            tracing::warn!(%error, "cannot note that this process has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use object_store::memory::InMemory;

    use super::*;

    struct Run {
        fence: Arc<Fence>,
        told: Arc<Mutex<Vec<String>>>,
    }

    async fn claim(store: &Store, folder: &FsPath) -> Run {
        let told = Arc::<Mutex<Vec<String>>>::default();
        let tell = Arc::clone(&told);
        let on_fenced: OnFenced = Arc::new(move |why| tell.lock().unwrap().push(why.to_owned()));
        let fence = Fence::claim(store, "i1", folder, 0, on_fenced).await.unwrap();
        Run { fence, told }
    }

    #[tokio::test]
    async fn each_start_has_a_number_and_only_the_newest_may_commit() {
        let store = Store::from_objects(Arc::new(InMemory::new()), "memory");
        let folder = tempfile::tempdir().unwrap();
        let first = claim(&store, folder.path()).await;
        assert_eq!(first.fence.number(), 1);
        assert!(first.fence.guard().await.unwrap().is_some());
        // The same folder, which is locked: the first is gone, and nobody waits for it.
        let begun = Instant::now();
        let second = claim(&store, folder.path()).await;
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(second.fence.number(), 2);
        assert!(first.fence.guard().await.unwrap().is_none(), "there is a later one");
        assert!(second.fence.guard().await.unwrap().is_some());
        first.fence.stop("why").await;
        first.fence.stop("again").await;
        assert_eq!(first.told.lock().unwrap().len(), 1, "it is told once");
        assert!(first.told.lock().unwrap()[0].contains("memory: why. This one stops"));
        assert!(second.told.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_copy_waits_until_the_older_one_has_noticed_and_its_commits_have_ended() {
        let store = Store::from_objects(Arc::new(InMemory::new()), "memory");
        let [folder, copy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let first = claim(&store, folder.path()).await;
        let _watching = first.fence.watch();
        let commit = first.fence.guard().await.unwrap().unwrap();
        let path = copy.path().to_owned();
        let second = tokio::spawn(async move { claim(&store, &path).await });
        // The first notices within two seconds, but its commit is under way.
        tokio::time::sleep(LOOK_EVERY + Duration::from_millis(500)).await;
        assert!(first.fence.guard().await.unwrap().is_none());
        assert!(!second.is_finished() && first.told.lock().unwrap().is_empty());
        drop(commit);
        let second = tokio::time::timeout(Duration::from_secs(5), second).await.unwrap().unwrap();
        assert_eq!(second.fence.number(), 2);
        assert!(first.told.lock().unwrap()[0].contains("incarnation 2 came after 1"));
    }

    #[tokio::test]
    async fn two_that_start_at_once_get_two_numbers() {
        let store = Store::from_objects(Arc::new(InMemory::new()), "memory");
        let folder = tempfile::tempdir().unwrap();
        let all = futures::future::join_all((0..8).map(|_| claim(&store, folder.path()))).await;
        let mut numbers: Vec<u64> = all.iter().map(|run| run.fence.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
    }
}
