//! Opens what a live run writes to: its tables, and what recomputes late windows beside them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tidegate_pipelines::{Plan, graph};
use tidegate_sql::Store;

use super::commit::Committer;
use super::feed::InFlight;
use super::fence::Fence;
use super::options::EngineOptions;
use super::patience::Patience;
use super::recompute::{self, Context, Horizon, Recomputed};
use super::switching::Opening;
use super::tables::{SpillBudget, TableContext};
use crate::stats::Stats;

/// What the tables of a live run need; `from_first` says whether nothing was made yet for any.
pub(super) fn table_context(
    options: &EngineOptions,
    stats: &Arc<Stats>,
    (ended, fence): (&Arc<AtomicBool>, &Arc<Fence>),
    from_first: bool,
) -> anyhow::Result<TableContext> {
    let spill = SpillBudget::new(options.spill_bytes_max);
    let context = TableContext::new(Arc::clone(stats), Arc::clone(ended), &options.data, spill)?;
    let context = context.fenced(fence).with_from_first(from_first);
    Ok(context.waited_for(Patience::telling(&options.replaying)))
}

/// The committer of a live run with its tables, and what it needs to open more; and what late
/// windows need to be computed again.
pub(super) async fn open_committer(
    plan: &Plan,
    (store, instance): (Store, String),
    context: TableContext,
    in_flight: Arc<InFlight>,
    options: &EngineOptions,
) -> anyhow::Result<(Committer, Context)> {
    let specs = graph::tables(&plan.pipelines);
    let opened = Committer::open(&store, &specs, &instance, context.clone(), in_flight);
    let mut committer = opened.await?;
    let steps = Recomputed::default();
    steps.follow(&plan.pipelines);
    let horizon = Arc::new(Horizon::new(options.recompute_every));
    committer.recompute = Some((Arc::clone(&horizon), steps.clone()));
    let late = Context {
        store: store.clone(),
        instance: instance.clone(),
        steps,
        horizon,
        tables: context.watched.clone(),
        fence: context.fence.clone(),
        stats: Arc::clone(&context.stats),
        sorts: recompute::sorts(&options.data),
    };
    committer.saved_elsewhere = options.cluster.as_ref().map(|_| 0);
    committer.opening = Some(Opening { store, instance, context, specs });
    Ok((committer, late))
}
