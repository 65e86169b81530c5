//! Which offers the writer may take: there must be room in the group, in the budget, on the disk,
//! and in memory. What the engine itself has to say does not wait with the others.

use std::time::{Duration, Instant};

use super::inbox::{Inbox, Offer};
use super::writer::Writer;

/// One write carries at most this much: bounds the memory of a group and the time of its sync.
const GROUP_BYTES_MAX: u64 = 8 << 20;
/// How often the file system is asked for its free room, while there is something to write.
const DISK_LOOK_EVERY: Duration = Duration::from_millis(100);
/// This close to the reserve a disk counts as full: the next message may not fit.
const DISK_LOW_BYTES: u64 = 64 << 10;

/// What offers wait for although the writer is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// The budget is used up, or the disk.
    Room,
    /// What was taken has to go through the dataflow first.
    Memory,
}

/// What was last seen of the file system's free room.
#[derive(Default)]
pub(crate) struct DiskRoom {
    seen: Option<(Instant, u64)>,
    /// Written since.
    pub(crate) written_bytes: u64,
}

impl Writer {
    /// As many offers as fit into one group and into the budget; why some have to wait.
    pub(super) fn take(&mut self, inbox: &mut Inbox) -> (Vec<Offer>, Option<Waits>) {
        self.hurries = false;
        if inbox.held {
            let urgent = take_urgent(inbox);
            let waits = !inbox.offers.is_empty();
            return (urgent.into_iter().collect(), waits.then_some(Waits::Memory));
        }
        // What is kept for ticks, and as much for the head of the next segment.
        let budget_bytes = self.options.budget_bytes - 2 * self.options.reserve_bytes();
        let budget_room = budget_bytes.saturating_sub(self.files.bytes());
        let disk_room = self.disk_room();
        let mut room = budget_room.min(disk_room);
        let (mut offers, mut group_bytes) = (Vec::new(), 0);
        while let Some(offer) = inbox.offers.front() {
            if offer.bytes > room {
                self.hurries = budget_room <= disk_room;
                offers.extend(take_urgent(inbox));
                return (offers, Some(Waits::Room));
            }
            if group_bytes > 0 && group_bytes + offer.bytes > GROUP_BYTES_MAX {
                break;
            }
            room -= offer.bytes;
            group_bytes += offer.bytes;
            offers.extend(inbox.offers.pop_front());
        }
        (offers, None)
    }

    /// Bytes that may be written before the reserve of the file system is touched.
    fn disk_room(&mut self) -> u64 {
        let reserve_bytes = self.options.disk_reserve_bytes;
        if reserve_bytes == 0 {
            return u64::MAX;
        }
        let recent = self.disk.seen.filter(|(at, _)| at.elapsed() < DISK_LOOK_EVERY);
        let free_bytes = match recent {
            Some((_, free_bytes)) => free_bytes,
            None => {
                let free = self.files.storage.free_bytes(&self.files.dir).unwrap_or(u64::MAX);
                self.disk = DiskRoom { seen: Some((Instant::now(), free)), written_bytes: 0 };
                self.note_disk(free, reserve_bytes);
                free
            }
        };
        free_bytes.saturating_sub(reserve_bytes).saturating_sub(self.disk.written_bytes)
    }

    fn note_disk(&self, free_bytes: u64, reserve_bytes: u64) {
        let low = free_bytes <= reserve_bytes + DISK_LOW_BYTES;
        let dir = self.files.dir.display();
        self.shared.update_stats(|stats| match (low, &stats.disk_full) {
            (true, None) => {
                let why = format!("{dir}: only {free_bytes} bytes are free, sources wait");
                tracing::error!(%why, "the disk is full");
                stats.unhealthy.get_or_insert_with(|| why.clone());
                stats.disk_full = Some(why);
            }
            (false, Some(_)) => {
                tracing::info!(%dir, "there is room on the disk again");
                stats.unhealthy = None;
                stats.disk_full = None;
            }
            _ => {}
        });
    }
}

fn take_urgent(inbox: &mut Inbox) -> Option<Offer> {
    let urgent = inbox.offers.iter().position(|offer| offer.urgent);
    urgent.and_then(|at| inbox.offers.remove(at))
}
