//! Who may speak: the first words on every connection between processes of a cluster.
//!
//! Both sides prove that they have the secret, without sending it, before anything else is said or
//! believed: each adds a random number, and signs both with the secret (HMAC-SHA256). Timely's own
//! connections are greeted in the same way, so a stray connection never reaches it. What follows is
//! neither encrypted nor signed: a cluster needs a network that nobody else can change.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::PROCESSES_MAX;
use super::told::Told;
use super::wire::invalid;

/// What the one that is called says first; the number is the version of all that is said.
const MAGIC: &[u8; 20] = b"tidegate cluster 1\r\n";
/// Longest hello.
const HELLO_BYTES_MAX: u32 = 64 << 10;
/// A whole greeting is not waited for longer, however its bytes come.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// Connections that are being greeted at once; more are closed. Twice what a cluster needs.
const GREETINGS_MAX: usize = 2 * PROCESSES_MAX;
/// Greeted connections that wait to be taken; more are closed. Those of a gathering that came to
/// nothing may be there beside those of the next.
const ARRIVED_MAX: usize = 4 * PROCESSES_MAX;
/// Shortest secret, bytes: a short one could be found by trying.
const SECRET_BYTES_MIN: usize = 16;

/// What all processes of a cluster know and nobody else.
#[derive(Clone)]
pub struct ClusterSecret(hmac::Key);

impl ClusterSecret {
    /// From the content of a file, without its line end.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: &str) -> anyhow::Result<Self> {
        let text = text.trim_end_matches(['\r', '\n']);
        anyhow::ensure!(
            text.len() >= SECRET_BYTES_MIN,
            "the secret of a cluster needs at least {SECRET_BYTES_MIN} characters; \
             `openssl rand -hex 32` makes one"
        );
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())))
    }

    fn sign(&self, who: &[u8], nonces: [&[u8; 32]; 2], hello: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [who, nonces[0], nonces[1], hello] {
            context.update(part);
        }
        context.sign()
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret")
    }
}

/// Who calls, and what for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Hello {
    /// A follower that wants to work.
    Follow {
        process: usize,
        /// The addresses of all processes, as it knows them.
        addresses: Vec<String>,
        /// The binary that it is; see [`super::build`].
        build: String,
    },
    /// The connection of two processes for what timely exchanges.
    Data {
        /// See [`super::wire::Welcome::run`].
        run: String,
        /// Who calls.
        process: usize,
    },
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| io::Error::other("the system gives no random numbers"))
}

/// Nobody listens.
#[derive(Debug, thiserror::Error)]
#[error("nobody answers ({0})")]
pub(super) struct Absent(io::Error);

/// Calls a process that listens.
///
/// # Errors
/// It cannot be reached, is none of ours, or has another secret.
pub(super) fn call(
    address: &str,
    secret: &ClusterSecret,
    hello: &Hello,
) -> anyhow::Result<TcpStream> {
    let stream = reach(address).map_err(Absent)?;
    greet(&stream, secret, hello).with_context(|| format!("{address} does not answer well"))?;
    Ok(stream)
}

/// Connects; a machine that is gone does not answer at all.
fn reach(address: &str) -> io::Result<TcpStream> {
    let mut why = io::ErrorKind::AddrNotAvailable.into();
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, GREETING_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn greet(stream: &TcpStream, secret: &ClusterSecret, hello: &Hello) -> anyhow::Result<()> {
    let mut stream = Timed::new(stream, GREETING_MAX)?;
    let mut magic = [0; MAGIC.len()];
    stream.read_exact(&mut magic)?;
    anyhow::ensure!(
        &magic == MAGIC,
        "what listens there is no process of a cluster, or one of another version"
    );
    let mut theirs = [0; 32];
    stream.read_exact(&mut theirs)?;
    let ours = random()?;
    let text = serde_json::to_vec(hello)?;
    let mut out = ours.to_vec();
    out.extend(secret.sign(b"caller", [&theirs, &ours], &text).as_ref());
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(&text);
    stream.write_all(&out)?;
    let mut proof = [0; 32];
    stream
        .read_exact(&mut proof)
        .context("it hung up: the secret there is another one (--cluster-secret-file)")?;
    let expected = secret.sign(b"called", [&theirs, &ours], &text);
    anyhow::ensure!(same(expected.as_ref(), &proof), "it does not know the secret");
    stream.end()?;
    Ok(())
}

/// Answers one that calls.
fn answer(stream: &TcpStream, secret: &ClusterSecret, within: Duration) -> io::Result<Hello> {
    let mut stream = Timed::new(stream, within)?;
    let ours = random()?;
    let mut out = MAGIC.to_vec();
    out.extend(ours);
    stream.write_all(&out)?;
    let (mut theirs, mut proof, mut length) = ([0; 32], [0; 32], [0; 4]);
    stream.read_exact(&mut theirs)?;
    stream.read_exact(&mut proof)?;
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HELLO_BYTES_MAX {
        return Err(invalid("that is no process of a cluster"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text)?;
    let expected = secret.sign(b"caller", [&ours, &theirs], &text);
    if !same(expected.as_ref(), &proof) {
        return Err(invalid("its secret is another one (--cluster-secret-file)"));
    }
    let hello = serde_json::from_slice(&text)?;
    stream.write_all(secret.sign(b"called", [&ours, &theirs], &text).as_ref())?;
    stream.end()?;
    Ok(hello)
}

/// Compares without saying by its time where the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// A connection on which everything has to be said until a deadline. A bound for each read alone
/// would let whoever sends a byte now and then keep its place for hours.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a TcpStream, within: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, deadline: Instant::now() + within })
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(late()),
            left => Ok(Some(left)),
        }
    }

    /// From now on there is no bound.
    fn end(self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not say in time who it is")
}

/// The error of a read or write that had its bound, in better words.
fn in_time(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
        _ => error,
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into).map_err(in_time)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes).map_err(in_time)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection that was greeted.
pub(super) struct Arrived {
    pub(super) hello: Hello,
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
}

/// Where others of the cluster call. Closed when it is dropped.
pub(super) struct Door {
    arrived: Receiver<Arrived>,
    pub(super) address: SocketAddr,
    /// Nobody is let in without it; none once the door is closed.
    secret: Arc<RwLock<Option<ClusterSecret>>>,
}

impl Door {
    /// Listens on an address.
    ///
    /// # Errors
    /// Somebody else does, or this machine has no such address.
    pub(super) fn open(address: &str, secret: &ClusterSecret) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .with_context(|| format!("cannot listen for the cluster on {address}"))?;
        let address = listener.local_addr()?;
        let (sender, arrived) = sync_channel(ARRIVED_MAX);
        let secret = Arc::new(RwLock::new(Some(secret.clone())));
        let of_thread = Arc::clone(&secret);
        std::thread::Builder::new()
            .name("cluster".into())
            .spawn(move || accept(&listener, &of_thread, &sender))?;
        Ok(Self { arrived, address, secret })
    }

    /// The next that has arrived within a time.
    ///
    /// # Errors
    /// Nobody listens any more.
    pub(super) fn next(&self, within: Duration) -> anyhow::Result<Option<Arrived>> {
        match self.arrived.recv_timeout(within) {
            Ok(arrived) => Ok(Some(arrived)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                anyhow::bail!("nobody listens for the cluster on {} any more", self.address)
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        *self.secret.write().unwrap_or_else(PoisonError::into_inner) = None;
        // Wakes the thread, so that the address is free again.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
    }
}

fn accept(
    listener: &TcpListener,
    secret: &RwLock<Option<ClusterSecret>>,
    arrived: &SyncSender<Arrived>,
) {
    let greetings = Arc::new(AtomicUsize::new(0));
    let told = Arc::new(Mutex::new(Told::default()));
    for stream in listener.incoming() {
        let known = secret.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(secret) = known else { return };
        let Ok(stream) = stream else {
            // Too many open files, for instance: they may be fewer soon.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Ok(peer) = stream.peer_addr() else { continue };
        if greetings.fetch_add(1, Ordering::AcqRel) >= GREETINGS_MAX {
            greetings.fetch_sub(1, Ordering::AcqRel);
            let why = format!("{GREETINGS_MAX} others are there that have not said who they are");
            turned_away(&told, peer, &why);
            continue;
        }
        let (arrived, counted) = (arrived.clone(), Arc::clone(&greetings));
        let told = Arc::clone(&told);
        let greeting = std::thread::Builder::new().name("cluster".into()).spawn(move || {
            match answer(&stream, &secret, GREETING_MAX) {
                Ok(hello) => drop(arrived.try_send(Arrived { hello, stream, peer })),
                Err(error) => turned_away(&told, peer, &error.to_string()),
            }
            counted.fetch_sub(1, Ordering::AcqRel);
        });
        if greeting.is_err() {
            greetings.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Tells it, but the same of the same machine not all the time.
fn turned_away(told: &Mutex<Told>, peer: SocketAddr, why: &str) {
    let peer = peer.ip();
    let news = format!("{peer}: {why}");
    if told.lock().unwrap_or_else(PoisonError::into_inner).is_news(&news) {
        tracing::warn!(%peer, "a connection to the port of the cluster was turned away: {why}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn secret(text: &str) -> ClusterSecret {
        ClusterSecret::new(text).unwrap()
    }

    fn hello() -> Hello {
        Hello::Data { run: "r".into(), process: 2 }
    }

    #[test]
    fn who_has_the_secret_is_let_in_and_nobody_else() {
        assert!(ClusterSecret::new("short\n").is_err());
        let (right, wrong) = (secret("0123456789abcdef\n"), secret("0123456789abcdeg"));
        let door = Door::open("127.0.0.1:0", &right).unwrap();
        let address = door.address.to_string();
        let error = call(&address, &wrong, &hello()).unwrap_err();
        assert!(format!("{error:#}").contains("secret"), "{error:#}");
        assert!(door.next(Duration::from_millis(50)).unwrap().is_none());
        let _stream = call(&address, &secret("0123456789abcdef"), &hello()).unwrap();
        assert_eq!(door.next(SOON).unwrap().unwrap().hello, hello());
        drop(door);
        assert!(call(&address, &right, &hello()).is_err());
    }

    #[test]
    fn who_does_not_prove_it_knows_the_secret_is_told_nothing_more() {
        let impostor = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = impostor.local_addr().unwrap().to_string();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = impostor.accept().unwrap();
            let mut out = MAGIC.to_vec();
            out.extend([7; 32]);
            stream.write_all(&out).unwrap();
            // Whatever comes is answered with what could be a proof.
            let _ = stream.read(&mut [0; 4096]).unwrap();
            stream.write_all(&[9; 32]).unwrap();
        });
        let error = call(&address, &secret("0123456789abcdef"), &hello()).unwrap_err();
        assert!(format!("{error:#}").contains("does not know the secret"), "{error:#}");
        thread.join().unwrap();
    }

    #[test]
    fn strays_do_no_harm() {
        let right = secret("0123456789abcdef");
        let door = Door::open("127.0.0.1:0", &right).unwrap();
        let mut strays = Vec::new();
        for words in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 200], &[0; 8]] {
            let mut stray = TcpStream::connect(door.address).unwrap();
            stray.write_all(words).unwrap();
            strays.push(stray);
        }
        let _stream = call(&door.address.to_string(), &right, &hello()).unwrap();
        assert_eq!(door.next(SOON).unwrap().unwrap().hello, hello());
        let peer = strays.last().unwrap().peer_addr().unwrap();
        assert_eq!(peer, door.address);
        assert!(door.next(Duration::from_millis(50)).unwrap().is_none());
    }

    #[test]
    fn who_says_a_byte_now_and_then_is_not_waited_for_longer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stray = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let dripping = std::thread::spawn(move || {
            while stray.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let within = Duration::from_millis(300);
        let error = answer(&stream, &secret("0123456789abcdef"), within).unwrap_err();
        // All bytes of a hello would take at least 68 of its pauses.
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        drop(stream);
        dripping.join().unwrap();
    }
}
