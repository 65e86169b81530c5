//! What breaks, when, and for how long.

use std::ops::Range;

use super::disk::SimDisk;
use super::net::Mode;
use super::objects::SimObjects;
use super::world::Sim;
use crate::fuzz::Rng;

/// Parts of the engine that can be slow by themselves: writer, feed, three workers, committer,
/// tables.
const PARTS: usize = 32;

/// One turn in so many while nothing is slow. Steps of workers and commits of tables cost most of
/// the real time, and a table that lags a little is what a crash has to find.
const USUAL_PACE: [usize; PARTS] = {
    let mut pace = [4; PARTS];
    (pace[0], pace[1], pace[5]) = (1, 1, 1);
    (pace[2], pace[3], pace[4]) = (2, 2, 2);
    pace
};

/// Faults of one simulation.
const FAULTS: Range<usize> = 10..22;

/// Simulated time between faults, microseconds.
const PAUSE_US_MAX: usize = 600_000;

/// How things are at present.
pub(super) struct Weather {
    left: usize,
    next_us: u64,
    /// Until when the disk is full, the store away or flaky, or syncs slow.
    better_at_us: u64,
    /// When the process dies, whatever it does then.
    dies_at_us: u64,
    /// Restarts of the broker that are due.
    restarts: u32,
    disk_full: bool,
    store: bool,
    failed_sync: bool,
    over: bool,
    /// By part: runs once in so many times.
    pace: [usize; PARTS],
    /// What may still happen to half-open links.
    half_open: bool,
}

impl Weather {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self {
            left: FAULTS.start + rng.below(FAULTS.len()),
            next_us: 300_000,
            better_at_us: 0,
            dies_at_us: u64::MAX,
            restarts: 0,
            disk_full: false,
            store: false,
            failed_sync: false,
            over: false,
            pace: USUAL_PACE,
            half_open: false,
        }
    }

    /// Whether a part takes its turn now.
    pub(super) fn runs(&self, rng: &mut Rng, part: usize) -> bool {
        rng.one_in(self.pace[part % PARTS])
    }

    /// Nothing breaks any more.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// One tick in so many asks for a checkpoint: more while the store is in trouble, so that
    /// checkpoints become due that tables are behind of.
    pub(super) fn cuts_one_in(&self) -> usize {
        if self.store { 2 } else { 8 }
    }

    /// Whether a process that gives up has a reason.
    pub(super) fn is_excuse(&self) -> bool {
        self.disk_full || self.store || self.failed_sync
    }

    /// A new process begins: what broke the one before is told no more.
    pub(super) fn new_process(&mut self) {
        self.failed_sync = false;
    }

    pub(super) fn failed_sync(&self) -> bool {
        self.failed_sync
    }

    /// A process that could not go on finds a better world when it is started again.
    pub(super) fn after_giving_up(&mut self, disk: &SimDisk, objects: &SimObjects) {
        self.clear(disk, objects);
    }

    fn clear(&mut self, disk: &SimDisk, objects: &SimObjects) {
        (self.disk_full, self.store) = (false, false);
        disk.set_full_until(0);
        objects.set_outage(false);
        objects.set_one_fails_in(0);
    }
}

impl Sim {
    /// Something breaks, or gets better; true if the process is to be stopped.
    pub(super) fn storm(&mut self) -> bool {
        let now_us = self.world.now_us();
        if now_us >= self.weather.better_at_us {
            self.weather.clear(&self.disk, &self.objects);
        }
        self.restart_broker();
        if now_us >= self.weather.dies_at_us && !self.weather.over {
            self.weather.dies_at_us = u64::MAX;
            self.disk.kill();
            return false;
        }
        if now_us < self.weather.next_us || self.weather.over {
            return false;
        }
        self.weather.next_us = now_us + self.rng.below(PAUSE_US_MAX) as u64;
        if self.weather.half_open {
            // Whoever is in between gives up.
            self.weather.half_open = false;
            self.links.hurt(1, Mode::Cut);
        }
        if self.weather.left == 0 {
            self.trace.line(format_args!("nothing breaks any more"));
            self.weather.over = true;
            self.weather.restarts = 0;
            self.disk.calm();
            self.weather.clear(&self.disk, &self.objects);
            self.disk.set_sync_us_max(2_000);
            self.weather.pace = [1; PARTS];
            return false;
        }
        self.weather.left -= 1;
        if self.rng.one_in(2) {
            let slow = if self.rng.one_in(3) { 40 } else { 4 };
            let mut pace = USUAL_PACE;
            pace.iter_mut().for_each(|one_in| *one_in = 1 + self.rng.below(slow));
            self.weather.pace = pace;
            self.disk.set_sync_us_max([2_000, 10_000, 30_000, 150_000][self.rng.below(4)]);
        }
        self.break_something(now_us)
    }

    /// The broker restarts as soon as acknowledgements are under way that must not reach it later.
    fn restart_broker(&mut self) {
        if self.weather.restarts > 0 && self.broker.is_awaited() {
            self.weather.restarts -= 1;
            self.counts.broker_restarts += 1;
            let lose_session = !self.rng.one_in(3);
            self.trace.line(format_args!("the broker restarts, loses: {lose_session}"));
            self.broker.restart(lose_session);
            // Time for us to come back.
            let back_us = self.world.now_us() + 1_000_000;
            self.weather.next_us = self.weather.next_us.max(back_us);
            self.links.hurt(1, Mode::Cut);
        }
    }

    /// The store is away or flaky. In an outage the process may die with all that waits for it.
    fn trouble_the_store(&mut self, now_us: u64, lasts_us: u64) {
        self.counts.outages += 1;
        self.weather.store = true;
        self.weather.better_at_us = now_us + lasts_us;
        if self.rng.one_in(4) {
            return self.objects.set_one_fails_in(2 + self.rng.below(4));
        }
        self.objects.set_outage(true);
        if !self.rng.one_in(4) {
            self.weather.dies_at_us = now_us + lasts_us.min(800_000) * 3 / 4;
            self.weather.next_us = self.weather.dies_at_us + 10_000;
            // All but the tables goes on.
            self.weather.pace[..6].fill(1);
        }
    }

    fn break_something(&mut self, now_us: u64) -> bool {
        let lasts_us = 100_000 + self.rng.below(3_000_000) as u64;
        let fault = self.rng.below(16);
        self.trace.line(format_args!("fault {fault}"));
        match fault {
            0..=3 => {
                let operations = self.rng.below(60) as u64;
                self.disk.die_after(operations);
            }
            4 if self.rng.one_in(2) => self.disk.kill(),
            5 | 6 => self.counts.cuts += self.links.hurt(2, Mode::Cut) as u64,
            7 => {
                self.counts.half_open += self.links.hurt(2, Mode::HalfOpen) as u64;
                self.weather.half_open = true;
            }
            8 | 9 => {
                self.weather.restarts += 2;
                self.disk.set_sync_us_max(150_000);
            }
            4 | 10 | 11 => self.trouble_the_store(now_us, lasts_us),
            12 => {
                self.counts.disks_full += 1;
                self.weather.disk_full = true;
                self.weather.better_at_us = now_us + lasts_us;
                self.disk.set_full_until(now_us + lasts_us);
            }
            13 => {
                self.counts.failed_syncs += 1;
                self.weather.failed_sync = true;
                self.disk.fail_next_sync();
            }
            14 => {
                self.counts.clock_jumps += 1;
                let by_s = self.rng.below(7_200) as i64 - 3_600;
                self.trace.line(format_args!("the clock jumps by {by_s} s"));
                self.injected.jump(by_s * 1_000_000);
            }
            _ => return true,
        }
        false
    }
}
