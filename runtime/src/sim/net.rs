//! Time, tasks and the network between devices, broker and the product.
//!
//! Every connection is a pair of byte streams with a little delay between them. A link can be cut,
//! which both ends see, or half open, which neither does: bytes vanish.

use std::rc::Rc;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::yield_now;

use super::disk::SimDisk;
use super::inject::Injected;
use super::trace::Trace;
use crate::fuzz::Rng;
use crate::time::sleep;

/// Time goes on in steps of this.
pub(crate) const STEP: Duration = Duration::from_millis(2);

/// Bytes under way in one direction.
const BYTES_MAX: usize = 64 << 10;

/// Longest delay of a chunk of bytes, microseconds.
const DELAY_US_MAX: usize = 12_000;

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    HalfOpen,
    Cut,
}

/// The state of a link, for each direction: who waits for one common state would be woken in an
/// order that is chance.
type Link = [watch::Sender<Mode>; 2];

/// All links, and where their chance comes from.
#[derive(Clone)]
pub(crate) struct Links {
    all: Arc<Mutex<Vec<Weak<Link>>>>,
    rng: Arc<Mutex<Rng>>,
    trace: Trace,
}

impl Links {
    pub(crate) fn new(rng: Rng, trace: Trace) -> Self {
        Self { all: Arc::default(), rng: Arc::new(Mutex::new(rng)), trace }
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.rng.lock().unwrap().below(bound)
    }

    /// A new link: its two ends. Only from within the runtime.
    pub(crate) fn connect(&self, name: &str) -> (DuplexStream, DuplexStream) {
        let (one, near) = duplex(BYTES_MAX);
        let (far, other) = duplex(BYTES_MAX);
        let (there, back) = (watch::channel(Mode::Open), watch::channel(Mode::Open));
        let mode = Arc::new([there.0, back.0]);
        let mut all = self.all.lock().unwrap();
        all.retain(|link| link.strong_count() > 0);
        all.push(Arc::downgrade(&mode));
        let (near_in, near_out) = split(near);
        let (far_in, far_out) = split(far);
        tokio::spawn(self.clone().pump(
            (near_in, far_out),
            (Arc::clone(&mode), there.1),
            format!("{name} >"),
        ));
        tokio::spawn(self.clone().pump((far_in, near_out), (mode, back.1), format!("{name} <")));
        (one, other)
    }

    async fn pump(
        self,
        (mut from, mut to): (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>),
        (_link, mut mode): (Arc<Link>, watch::Receiver<Mode>),
        name: String,
    ) {
        let mut buffer = vec![0; 4096];
        loop {
            let n = tokio::select! {
                biased;
                () = cut(&mut mode) => return,
                read = from.read(&mut buffer) => match read {
                    Ok(n) if n > 0 => n,
                    _ => break,
                },
            };
            sleep(Duration::from_micros(self.below(DELAY_US_MAX) as u64)).await;
            if *mode.borrow() == Mode::Open {
                self.trace.bytes(format_args!("{name}"), &buffer[..n]);
                tokio::select! {
                    biased;
                    () = cut(&mut mode) => return,
                    sent = to.write_all(&buffer[..n]) => if sent.is_err() { return },
                }
            }
        }
        if *mode.borrow() == Mode::Open {
            let _ = to.shutdown().await;
        }
        // A half-open link hides the end of one side from the other, until that looks for itself.
        cut(&mut mode).await;
    }

    /// Puts about one link in `n` into this state; how many.
    pub(crate) fn hurt(&self, n: usize, how: Mode) -> usize {
        let links: Vec<_> = self.all.lock().unwrap().iter().filter_map(Weak::upgrade).collect();
        let mut hurt = 0;
        for link in links {
            if self.below(n) == 0 {
                for direction in link.iter() {
                    direction.send_replace(how);
                }
                hurt += 1;
            }
        }
        hurt
    }
}

/// Waits until a link is cut.
async fn cut(mode: &mut watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| *mode == Mode::Cut).await;
}

/// Lets time pass and tasks run.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    injected: Rc<Injected>,
    disk: SimDisk,
    trace: Trace,
    now_us: std::cell::Cell<u64>,
}

impl World {
    pub(crate) fn new(injected: Rc<Injected>, disk: SimDisk, trace: Trace) -> Self {
        let runtime = runtime();
        Self { runtime, injected, disk, trace, now_us: std::cell::Cell::new(0) }
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.now_us.get()
    }

    /// Lets tasks do what they can do now.
    pub(crate) fn turn(&self) {
        self.runtime.block_on(async {
            for _ in 0..4 {
                yield_now().await;
            }
        });
    }

    /// Lets so much time pass. Once the process is dead nothing happens in it any more: who waits
    /// comes to the end of the wait, and learns of it from the disk.
    pub(crate) fn pass(&self, time: Duration) {
        let mut left = time;
        loop {
            self.turn();
            if left.is_zero() {
                return;
            }
            let step = if self.disk.is_dead() { left } else { left.min(STEP) };
            left -= step;
            self.advance(step);
            if self.disk.is_dead() {
                return;
            }
        }
    }

    fn advance(&self, step: Duration) {
        self.injected.advance(step);
        self.now_us.set(self.now_us.get() + step.as_micros() as u64);
        self.trace.at(self.now_us.get());
        self.disk.at(self.now_us.get());
    }
}

/// A runtime without timers and sockets: there are only simulated ones.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}
