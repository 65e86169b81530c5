//! What the simulation puts in the place of clocks, chance, waiting and the network, on its own
//! thread and on no other: other tests that run at the same time do not notice.
//!
//! Invariant: with a simulation on the thread, nothing that the product does there depends on
//! anything but the seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::fuzz::Rng;
use crate::mutation::Mutation;
use crate::net::BoxStream;

/// Lets simulated time pass.
type Wait = Rc<dyn Fn(Duration)>;
/// Connects to a simulated host.
type Dial = Rc<dyn Fn(&str) -> io::Result<BoxStream>>;

thread_local! {
    static INJECTED: RefCell<Option<Rc<Injected>>> = const { RefCell::new(None) };
}

/// All that is simulated below the product's code.
pub(crate) struct Injected {
    wall_us: Cell<i64>,
    instant: Cell<Instant>,
    rng: RefCell<Rng>,
    mutation: Option<Mutation>,
    wait: RefCell<Option<Wait>>,
    dial: RefCell<Option<Dial>>,
    /// Who waits, by time.
    timers: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_timer: Cell<u64>,
}

impl Injected {
    /// Takes this thread over until the returned guard is dropped.
    pub(crate) fn install(
        seed: u64,
        wall_us: i64,
        mutation: Option<Mutation>,
    ) -> (Rc<Self>, Guard) {
        let injected = Rc::new(Self {
            wall_us: Cell::new(wall_us),
            instant: Cell::new(Instant::now()),
            rng: RefCell::new(Rng::new(seed)),
            mutation,
            wait: RefCell::default(),
            dial: RefCell::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
        });
        INJECTED.with_borrow_mut(|slot| *slot = Some(Rc::clone(&injected)));
        (injected, Guard)
    }

    pub(crate) fn on_wait(&self, wait: Wait) {
        *self.wait.borrow_mut() = Some(wait);
    }

    pub(crate) fn on_dial(&self, dial: Dial) {
        *self.dial.borrow_mut() = Some(dial);
    }

    /// Moves both clocks on.
    pub(crate) fn advance(&self, time: Duration) {
        self.instant.set(self.instant.get() + time);
        self.wall_us.set(self.wall_us.get() + time.as_micros() as i64);
        loop {
            // Not held while waking, which may drop other timers.
            let due = {
                let mut timers = self.timers.borrow_mut();
                match timers.first_entry() {
                    Some(entry) if entry.key().0 <= self.instant.get() => entry.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    /// Sets the wall clock forward or back, as an administrator does.
    pub(crate) fn jump(&self, by_us: i64) {
        self.wall_us.set(self.wall_us.get() + by_us);
    }
}

/// Gives the thread back.
pub(crate) struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        INJECTED.with_borrow_mut(|slot| {
            if let Some(injected) = slot.take() {
                // They may hold what holds them.
                injected.wait.take();
                injected.dial.take();
                let timers = injected.timers.take();
                drop(timers);
            }
        });
    }
}

fn injected() -> Option<Rc<Injected>> {
    INJECTED.with_borrow(Clone::clone)
}

/// The simulated wall clock.
pub(crate) fn wall_us() -> Option<i64> {
    injected().map(|injected| injected.wall_us.get())
}

/// The simulated monotonic clock.
pub(crate) fn instant() -> Option<Instant> {
    injected().map(|injected| injected.instant.get())
}

/// Simulated chance.
pub(crate) fn random() -> Option<u64> {
    injected().map(|injected| injected.rng.borrow_mut().next())
}

/// The mistake that is made on this thread.
pub(crate) fn mutation() -> Option<Mutation> {
    INJECTED.with_borrow(|slot| slot.as_ref().and_then(|injected| injected.mutation))
}

/// Lets simulated time pass while something waits; false without a simulation.
pub(crate) fn wait(time: Duration) -> bool {
    let Some(injected) = injected() else { return false };
    let wait = injected.wait.borrow().clone();
    match wait {
        Some(wait) => wait(time),
        None => injected.advance(time),
    }
    true
}

/// A number for a timer that goes by the simulated clock.
pub(crate) fn timer() -> Option<u64> {
    let injected = injected()?;
    let number = injected.next_timer.get();
    injected.next_timer.set(number + 1);
    Some(number)
}

/// Wakes at that time.
pub(crate) fn set_timer(at: Instant, number: u64, waker: &Waker) {
    if let Some(injected) = injected() {
        injected.timers.borrow_mut().insert((at, number), waker.clone());
    }
}

/// Does not wake any more.
pub(crate) fn forget_timer(at: Instant, number: u64) {
    let forgotten =
        injected().and_then(|injected| injected.timers.borrow_mut().remove(&(at, number)));
    drop(forgotten);
}

/// Connects to a simulated host, where there is one.
pub(crate) fn dial(host: &str) -> Option<io::Result<BoxStream>> {
    let dial = injected()?.dial.borrow().clone()?;
    Some(dial(host))
}
