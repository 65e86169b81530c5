//! The thread that saves state: rows, encoding and files, so that no worker and no commit waits.
//!
//! Each cut becomes files as soon as it comes, which also gives the memory back that it holds. The
//! manifest follows when the committer says that the epoch is complete and all tables have it: that
//! and nothing else makes a checkpoint.
//!
//! Invariants, each with its reason:
//! - [`Saver::apply`]: files are applied in order of epochs and all of them, also those of cuts
//!   that no manifest was made for, because a later cut leaves out the groups that did not
//!   change since.
//! - [`Saver::publish`]: a manifest names only durable files, since `write_part` returns after its
//!   sync; and only of epochs up to its own, since later ones are not applied before.
//! - [`Saver::prune`]: a file goes only if no kept manifest, and no manifest to come, can name it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, SavedRows, Snapshot};

use super::switch::{Reply, Switch};
use super::{CheckpointOptions, KEEP, TablesAt, parts};
use crate::checkpoint::manifest::{FORMAT, JournalPosition, Manifest, PartRef};
use crate::engine::content;
use crate::journal::DurableError;
use crate::journal::storage::is_full;
use crate::stats::Stats;

/// What the thread is to do.
pub(super) enum Job {
    /// State of an operator as of the end of an epoch.
    State { name: String, epoch: Epoch, state: Snapshot },
    /// Make the checkpoint of this epoch visible.
    Publish { epoch: Epoch, tables: TablesAt },
    /// Other pipelines run from now on.
    Switch(Box<Switch>, Reply),
}

/// What a manifest says of the pipelines.
pub(super) struct Plan {
    pub(super) pipelines: BTreeMap<String, String>,
    pub(super) operators: BTreeMap<String, String>,
}

impl Plan {
    pub(super) fn of(pipelines: &[PipelineSpec]) -> Self {
        Self {
            pipelines: content::fingerprints(pipelines),
            operators: content::operators(pipelines),
        }
    }
}

pub(super) struct Saver {
    pub(super) options: CheckpointOptions,
    pub(super) plan: Plan,
    /// Files of cuts that are newer than what `options.holdings` has.
    files: BTreeMap<Epoch, Vec<PartRef>>,
    /// How long rows and files of the cut took so far, microseconds.
    busy_us: u64,
    /// Bytes written for it.
    written_bytes: u64,
    written: Arc<AtomicU64>,
    /// The newest cut that could not be written in full: what is written after it leaves out groups
    /// that did not change since, so there is no checkpoint before a whole one that is newer.
    lost: Option<Epoch>,
    /// When the newest checkpoint was asked for.
    asked_at: Option<Instant>,
}

impl Saver {
    pub(super) fn new(
        options: CheckpointOptions,
        pipelines: &[PipelineSpec],
        written: Arc<AtomicU64>,
    ) -> Self {
        let plan = Plan::of(pipelines);
        let files = BTreeMap::new();
        Self {
            options,
            plan,
            files,
            busy_us: 0,
            written_bytes: 0,
            written,
            lost: None,
            asked_at: None,
        }
    }

    pub(super) fn take(&mut self, job: Job) -> anyhow::Result<()> {
        let started = Instant::now();
        let result = match job {
            Job::State { name, epoch, state } => self.save(&name, epoch, state),
            Job::Publish { epoch, tables } => self.publish(epoch, tables, started),
            Job::Switch(switch, reply) => {
                // Without an answer whoever asked learns how the thread ended.
                self.switch(*switch).map(|answer| drop(reply.send(answer)))
            }
        };
        self.busy_us += started.elapsed().as_micros() as u64;
        result
    }

    /// Makes a file of an operator's state, or several.
    fn save(&mut self, name: &str, epoch: Epoch, state: Snapshot) -> anyhow::Result<()> {
        if state.groups().is_empty() {
            return Ok(());
        }
        let why = || format!("cannot save the state of {name}");
        let mut pieces = state.pieces().with_context(why)?.peekable();
        // Of a cut that is lost no manifest can name anything any more.
        while pieces.peek().is_some() && self.lost < Some(epoch) {
            let mut failed = None;
            let made = pieces.by_ref().map_while(|piece| piece.map_err(|e| failed = Some(e)).ok());
            let written = self.options.store.write_pieces(name, made);
            if let Some(error) = failed {
                return Err(error).with_context(why);
            }
            self.note(epoch, written)?;
        }
        Ok(())
    }

    fn write(&mut self, name: &str, epoch: Epoch, saved: &SavedRows) -> anyhow::Result<()> {
        if self.lost >= Some(epoch) {
            return Ok(());
        }
        let written = self.options.store.write_part(name, saved);
        self.note(epoch, written.map(Some))
    }

    /// Takes note of a file of a cut.
    fn note(
        &mut self,
        epoch: Epoch,
        written: Result<Option<PartRef>, DurableError>,
    ) -> anyhow::Result<()> {
        match written {
            Ok(part) => {
                self.written_bytes += part.as_ref().map_or(0, |part| part.bytes);
                self.files.entry(epoch).or_default().extend(part);
                Ok(())
            }
            Err(error) => self.bear(epoch, error),
        }
    }

    /// A full disk is borne: the checkpoint before stays, and the next cut is a whole one. The
    /// journal keeps what is needed until then. What was written for this cut, and for those before
    /// it that are not applied, is of no use then and takes the room that the next one needs.
    fn bear(&mut self, epoch: Epoch, error: DurableError) -> anyhow::Result<()> {
        match &error {
            DurableError::Io { source, .. } if is_full(source) => {
                tracing::error!(%error, "no room for a checkpoint; the one before stays");
                Stats::add(&self.options.stats.checkpoints_failed, 1);
                self.lost = self.lost.max(Some(epoch));
                self.options.cuts.note_disk_full(format!("no room for a checkpoint: {error}"));
                self.options.cuts.want_whole();
                let lost = self.files_through(epoch);
                self.options.store.discard(lost.values().flatten());
                self.prune();
                Ok(())
            }
            _ => Err(anyhow::Error::from(error).context("cannot write a checkpoint")),
        }
    }

    /// Takes out the files of all cuts up to `epoch`.
    fn files_through(&mut self, epoch: Epoch) -> BTreeMap<Epoch, Vec<PartRef>> {
        let later = self.files.split_off(&(epoch + 1));
        std::mem::replace(&mut self.files, later)
    }

    /// Takes the files of all cuts up to `epoch` into what the next manifest names.
    fn apply(&mut self, epoch: Epoch) {
        for (_, parts) in self.files_through(epoch) {
            parts.into_iter().for_each(|part| self.options.holdings.apply(part));
        }
        let operators = &self.plan.operators;
        let stays = |name: &str| parts::stays(name, epoch) || operators.contains_key(name);
        self.options.holdings.retain(stays);
        self.options.ended.retain(|of, _| *of > epoch);
    }

    fn publish(&mut self, epoch: Epoch, tables: TablesAt, started: Instant) -> anyhow::Result<()> {
        let copies = [self.options.requests.save(), self.options.standing.save()];
        for (name, rows) in copies.into_iter().flatten() {
            let groups = vec![(0, rows.num_rows() as u64)];
            self.write(&name, epoch, &SavedRows { rows, groups })?;
        }
        self.apply(epoch);
        let cuts = Arc::clone(&self.options.cuts);
        if self.lost.is_some_and(|lost| !cuts.has_whole(lost, epoch)) {
            // Before this one is finished, which lets the next one be asked for.
            cuts.want_whole();
            cuts.finish(epoch);
            return Ok(());
        }
        self.lost = None;
        let cut = cuts.finish(epoch);
        let offset = cut.map_or(0, |cut| cut.offset);
        let segment = self.options.journal.as_ref().and_then(|j| j.segment_after(epoch));
        let manifest = Manifest {
            format: FORMAT,
            epoch,
            incarnation: self.options.incarnation,
            time_us: cut.map_or(0, |cut| cut.time_us),
            journal: JournalPosition { segment: segment.unwrap_or_default(), offset },
            pipelines: self.plan.pipelines.clone(),
            operators: self.plan.operators.clone(),
            tables: tables.through,
            logged: tables.logged,
            parts: self.options.holdings.parts(),
            rules: self.options.rules.clone(),
            ended: self.options.ended.clone(),
        };
        if let Err(error) = self.options.store.publish(&manifest) {
            return self.bear(epoch, error);
        }
        self.written.store(epoch, Ordering::Release);
        self.options.cuts.note_saved(epoch, manifest.time_us, offset);
        if let Some(cut) = cut
            && let Some(before) = self.asked_at.replace(cut.asked_at)
        {
            let interval_us = cut.asked_at.duration_since(before).as_micros() as u64;
            Stats::set(&self.options.stats.checkpoint_interval_us, interval_us);
        }
        self.tell(started);
        self.prune();
        Ok(())
    }

    /// Counts what the checkpoint cost.
    fn tell(&mut self, started: Instant) {
        let stats = &self.options.stats;
        let busy_us = self.busy_us + started.elapsed().as_micros() as u64;
        Stats::add(&stats.checkpoints, 1);
        Stats::set(&stats.checkpoint_us, busy_us);
        Stats::set(&stats.checkpoint_written_bytes, self.written_bytes);
        Stats::set(&stats.checkpoint_bytes, self.options.holdings.bytes());
        Stats::set(&stats.state_rows, self.options.holdings.rows());
        (self.busy_us, self.written_bytes) = (0, 0);
        if self.options.holdings.is_scattered() {
            self.options.cuts.want_whole();
        }
    }

    /// Removes old checkpoints and files that nobody can name any more. What cannot be removed only
    /// takes room until the next time.
    fn prune(&self) {
        let mut also: BTreeSet<String> =
            self.files.values().flatten().map(|part| part.file.clone()).collect();
        also.extend(self.options.holdings.parts().into_iter().map(|part| part.file));
        if let Err(error) = self.options.store.prune(KEEP, &also) {
            tracing::warn!(%error, "cannot remove old checkpoints; it is tried again");
        }
    }
}
