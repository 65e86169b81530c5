//! The file of users: checks passwords against slow hashes, without letting that be a weapon.
//!
//! A check takes some 20 ms of a core and up to 64 MiB, by intention. So only a few run at a time,
//! a bounded number wait, and who connected lately with the same password is known by a fast keyed
//! hash: thousands of devices that come back cost next to nothing. A user who is not in the file
//! costs the same as one who is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::Params;
use argon2::password_hash::PasswordHash;
use ring::{hmac, rand};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::password::{hash, hash_problem, is_right, name_problem};
use crate::net::watched::{Watched, read};
use crate::source::SourceError;

/// Longest file: about 100,000 users.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Checks at a time, whatever the number of cores: 256 MiB at worst.
const CHECKS_MAX: usize = 4;

/// Checks that wait. At 20 ms each the last one waits for some seconds, as long as devices do.
const WAITING_MAX: usize = 256;

/// Passwords that are known to be right. Forgotten all at once when there are more, which costs
/// each of them one slow check.
const KNOWN_MAX: usize = 65_536;

/// How long a password is known: after a day somebody who stole the memory's key learns nothing.
const KNOWN_MS: u64 = 24 * 60 * 60 * 1000;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Right,
    Wrong,
    /// Too many wait already.
    Busy,
}

/// The users of a file.
pub(super) struct Passwords {
    file: Arc<Watched<File>>,
    checks: Arc<Semaphore>,
    waiting: AtomicUsize,
    key: hmac::Key,
    known: Mutex<HashMap<[u8; 32], u64>>,
    /// Slow checks that were made.
    #[cfg(test)]
    pub(super) slow: AtomicUsize,
}

struct File {
    users: HashMap<String, String>,
    /// What users that are not in the file are checked against; nobody knows its password.
    nobody: String,
}

impl Passwords {
    /// Reads the file.
    ///
    /// # Errors
    /// [`SourceError`] with the line that cannot be used.
    pub(super) fn new(path: PathBuf) -> Result<Self, SourceError> {
        let no_random = |_| SourceError::Config("the system has no random numbers".to_owned());
        let random = rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).map_err(no_random)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let from = path.clone();
        Ok(Self {
            file: Arc::new(Watched::new(vec![path], move || File::read(&from))?),
            checks: Arc::new(Semaphore::new(cores.div_ceil(2).min(CHECKS_MAX))),
            waiting: AtomicUsize::new(0),
            key,
            known: Mutex::default(),
            #[cfg(test)]
            slow: AtomicUsize::new(0),
        })
    }

    /// Checks a password; without a user it is wrong after the same time.
    pub(super) async fn check(&self, user: Option<&str>, password: &[u8], now_ms: u64) -> Checked {
        let file = self.file().await;
        let hash = user.and_then(|user| file.users.get(user));
        let exists = hash.is_some();
        let hash = hash.unwrap_or(&file.nobody);
        let mark = self.mark(hash, password);
        if exists && self.is_known(&mark, now_ms) {
            return Checked::Right;
        }
        let _waiting = Waiting::new(&self.waiting);
        if self.waiting.load(Ordering::Relaxed) > WAITING_MAX {
            return Checked::Busy;
        }
        let permit = Arc::clone(&self.checks).acquire_owned().await;
        // While we waited, another connection may have shown the same.
        if exists && self.is_known(&mark, now_ms) {
            return Checked::Right;
        }
        #[cfg(test)]
        self.slow.fetch_add(1, Ordering::Relaxed);
        let (hash, password) = (hash.clone(), password.to_vec());
        let slow = spawn_blocking(move || {
            // Held to the end of the work, also when nobody waits for its result any more.
            let _permit = permit;
            is_right(&password, &hash)
        });
        if slow.await.unwrap_or(false) && exists {
            self.know(mark, now_ms);
            return Checked::Right;
        }
        Checked::Wrong
    }

    async fn file(&self) -> Arc<File> {
        if !self.file.is_due() {
            return self.file.get();
        }
        let file = Arc::clone(&self.file);
        let read = spawn_blocking(move || file.get());
        match read.await {
            Ok(file) => file,
            // The process is ending.
            Err(_) => self.file.get(),
        }
    }

    /// What a password is remembered by. The hash is part of it: a new password in the file, also
    /// the same with a new salt, is another mark.
    fn mark(&self, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(hash.len() as u64).to_be_bytes());
        context.update(hash.as_bytes());
        context.update(password);
        let mut mark = [0; 32];
        mark.copy_from_slice(context.sign().as_ref());
        mark
    }

    fn is_known(&self, mark: &[u8; 32], now_ms: u64) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(mark).is_some_and(|until_ms| now_ms < *until_ms)
    }

    fn know(&self, mark: [u8; 32], now_ms: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(mark, now_ms + KNOWN_MS);
    }
}

/// Counts one waiting check, also when its connection is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, SourceError> {
        let bytes = read("users_file", path, FILE_BYTES_MAX)?;
        let bad = |line: usize, text: String| {
            SourceError::Config(format!("`users_file` {}:{line}: {text}", path.display()))
        };
        let text = String::from_utf8(bytes).map_err(|_| bad(1, "not UTF-8".to_owned()))?;
        let mut users = HashMap::new();
        let mut first = None;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, hash)) = line.split_once(':') else {
                let text = "a line is `NAME:$argon2id$...`; `tidegate password NAME` prints one";
                return Err(bad(i + 1, text.to_owned()));
            };
            if let Some(problem) = name_problem(name) {
                return Err(bad(i + 1, problem.to_owned()));
            }
            if let Some(problem) = hash_problem(hash) {
                return Err(bad(i + 1, format!("{problem}; `tidegate password` makes good ones")));
            }
            first = first.or(Some(hash));
            if users.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(bad(i + 1, format!("there are two lines for `{name}`")));
            }
        }
        let nobody = nobody_like(first).map_err(|text| bad(1, text))?;
        Ok(Self { users, nobody })
    }
}

/// A hash of noise that takes as long to check as this one.
fn nobody_like(hash_of_somebody: Option<&str>) -> Result<String, String> {
    let somebody = hash_of_somebody.and_then(|text| PasswordHash::new(text).ok());
    let params = somebody.and_then(|hash| Params::try_from(&hash).ok());
    let mut noise = [0; 32];
    let filled = rand::SecureRandom::fill(&rand::SystemRandom::new(), &mut noise);
    filled.map_err(|_| "the system has no random numbers".to_owned())?;
    hash(&noise, params.unwrap_or_default())
}

#[cfg(test)]
mod tests;
