//! What happened in simulations, so that a test can say that faults really came.

use std::ops::AddAssign;

macro_rules! counts {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// How often something happened.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Counts { $($(#[$meta])* pub(crate) $name: u64,)* }

        impl AddAssign<&Self> for Counts {
            fn add_assign(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    kills,
    power_losses,
    /// The process was stopped and started again.
    stops,
    /// The process ended by itself, because something was broken.
    gave_up,
    /// A start found a checkpoint.
    restored,
    /// Messages replayed.
    replayed,
    /// Sent again with DUP.
    resent,
    /// Recognised as repetitions by the journal.
    recognised,
    checkpoints_asked,
    cuts,
    half_open,
    broker_restarts,
    /// Messages that the broker lost with its session.
    lost_at_broker,
    outages,
    failed_requests,
    disks_full,
    failed_syncs,
    clock_jumps,
    /// Times in which memory was used up.
    memory_full,
    /// Rows of new keys that were refused by that.
    refused,
    webhooks,
    /// Rows of operators' state that a fresh replay gave, too.
    state_rows,
    /// Simulated time.
    seconds,
}
