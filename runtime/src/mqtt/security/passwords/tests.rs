//! The file of users, with hashes that are cheap on purpose.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tempfile::TempDir;

use super::*;

fn cheap(name: &str, password: &str) -> String {
    let params = Params::new(8, 1, 1, None).unwrap();
    format!("{name}:{}\n", hash(password.as_bytes(), params).unwrap())
}

fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    fs::write(&path, text).unwrap();
    (folder, path)
}

#[tokio::test]
async fn only_the_right_password_of_a_known_user_is_right() {
    let text = format!("# users\n\n{}{}", cheap("ann", "a1"), cheap("bob", "b1"));
    let (_folder, path) = file(&text);
    let passwords = Passwords::new(path).unwrap();
    for (user, password, wanted) in [
        (Some("ann"), "a1", Checked::Right),
        (Some("bob"), "b1", Checked::Right),
        (Some("bob"), "b1", Checked::Right),
        (Some("bob"), "a1", Checked::Wrong),
        (Some("ann"), "", Checked::Wrong),
        (Some("eve"), "a1", Checked::Wrong),
        (Some(""), "a1", Checked::Wrong),
        (None, "a1", Checked::Wrong),
        (Some("# users"), "a1", Checked::Wrong),
    ] {
        assert_eq!(passwords.check(user, password.as_bytes(), 0).await, wanted, "{user:?}");
    }
}

#[tokio::test]
async fn unknown_users_cost_the_same_and_known_passwords_cost_once() {
    let (_folder, path) = file(&cheap("ann", "a1"));
    let passwords = Passwords::new(path).unwrap();
    let slow = || passwords.slow.load(Ordering::Relaxed);
    for user in ["ann", "eve", "bob"] {
        let before = slow();
        assert_eq!(passwords.check(Some(user), b"wrong", 0).await, Checked::Wrong);
        assert_eq!(slow(), before + 1, "{user}");
    }
    let before = slow();
    let all = join_all((0..10_000).map(|_| passwords.check(Some("ann"), b"a1", 0)));
    // What waited when the queue was full is told so; nobody is told that it is wrong.
    let all = all.await;
    assert!(!all.contains(&Checked::Wrong));
    for _ in 0..10_000 {
        assert_eq!(passwords.check(Some("ann"), b"a1", 1).await, Checked::Right);
    }
    // Those that came in before the first was known; its place is free a moment before that.
    assert!(slow() - before <= 4 * CHECKS_MAX, "{} slow checks", slow() - before);
    assert_eq!(passwords.check(Some("ann"), b"a1", KNOWN_MS).await, Checked::Right);
    assert!(slow() > before + 1 || CHECKS_MAX == 1);
    assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_queue_is_bounded_also_when_those_in_it_leave() {
    let (_folder, path) = file(&cheap("ann", "a1"));
    let passwords = Passwords::new(path).unwrap();
    let all = passwords.checks.available_permits() as u32;
    let held = Arc::clone(&passwords.checks).acquire_many_owned(all).await.unwrap();
    let tries: Vec<Vec<u8>> = (0..WAITING_MAX + 50).map(|i| i.to_string().into_bytes()).collect();
    let mut waiting: Vec<_> =
        tries.iter().map(|t| Box::pin(passwords.check(Some("ann"), t, 0))).collect();
    let mut busy = 0;
    for check in &mut waiting {
        if let std::task::Poll::Ready(result) = futures::poll!(check.as_mut()) {
            assert_eq!(result, Checked::Busy);
            busy += 1;
        }
    }
    assert_eq!(busy, 50);
    drop(waiting);
    assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
    drop(held);
    assert_eq!(passwords.check(Some("ann"), b"a1", 0).await, Checked::Right);
}

#[tokio::test]
async fn a_change_of_the_file_counts_at_once_and_a_broken_one_does_not() {
    let (_folder, path) = file(&cheap("ann", "a1"));
    let passwords = Passwords::new(path.clone()).unwrap();
    assert_eq!(passwords.check(Some("ann"), b"a1", 0).await, Checked::Right);
    // Also longer: the clock of a file system may stand for some milliseconds.
    fs::write(&path, format!("# changed\n{}", cheap("ann", "a2"))).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while passwords.check(Some("ann"), b"a2", 0).await != Checked::Right {
        assert!(Instant::now() < deadline, "the new file is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(passwords.check(Some("ann"), b"a1", 0).await, Checked::Wrong, "known too long");
    fs::write(&path, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(passwords.check(Some("ann"), b"a2", 0).await, Checked::Right);
}

#[test]
fn broken_lines_are_named() {
    let good = cheap("ann", "a1");
    let hostile = good.replacen("ann", "eve", 1).replacen("m=8", "m=4194304", 1);
    for (text, word) in [
        (format!("{good}bob\n"), ":2: "),
        (format!("{good}bob:secret\n"), ":2: no hash"),
        (format!("{good}{good}"), "two lines"),
        (format!("# x\n{good}{hostile}"), ":3: m=4194304"),
        (format!("{good}:x\n"), "empty"),
    ] {
        let (_folder, path) = file(&text);
        let error = Passwords::new(path).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    let (folder, path) = file("");
    Passwords::new(path).unwrap();
    let error = Passwords::new(folder.path().join("none")).err().unwrap().to_string();
    assert!(error.contains("users_file"), "{error}");
}
