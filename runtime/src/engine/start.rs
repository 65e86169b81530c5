//! The start of a plan with live sources, in its order (see the head of [`super`]).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tidegate_pipelines::{Plan, graph};
use tidegate_sql::Store;
use tokio::sync::oneshot;

use super::anew;
use super::apply::{Applier, Changes};
use super::belonging::{self, Belonging};
use super::checkpoints::{Checkpoints, Restored, Rules};
use super::commit::Committer;
use super::conditions::{self, States};
use super::cuts::Cuts;
use super::feed::{FeedQueue, InFlight};
use super::fence::{Fence, Watching, claim};
use super::folder::{open_journal, open_outbox};
use super::limits::{Bounds, stats_with_room};
use super::live_feed::LiveFeed;
use super::notifications::{EngineTargets, Notifications};
use super::opening::{open_committer, table_context};
use super::options::{EngineOptions, Recovery};
use super::patience::Patience;
use super::recompute::Recomputing;
use super::registries::Registries;
use super::replaying::replay_into;
use super::tables::{TableTroubles, TablesWatched};
use super::workers::{Event, WorkerPlan};
use super::{
    EVENTS_MAX, Engine, Live, cluster, earlier, observer, registries, sources, spawn_committer,
};
use crate::checkpoint::CheckpointStore;
use crate::clock::Clock;
use crate::http::Requests;
use crate::journal::{Journal, Replay};
use crate::outbox::Outbox;
use crate::stats::Stats;
use crate::webhook::{SenderOptions, WebhookSender};

/// The right to commit, for those who have to give it up again.
type Claimed = OnceLock<Arc<Fence>>;

impl Engine {
    pub(super) async fn start_live(
        mut plan: Plan,
        options: EngineOptions,
        (store, instance): (Store, String),
        claimed: &Claimed,
    ) -> anyhow::Result<Self> {
        let (started, stats) = (Instant::now(), stats_with_room());
        let (in_flight, bounds) = Bounds::of(&options);
        // Doors are opened first, so that a port in use is told before anything is touched; nobody
        // is let in until the journal is ready.
        let requests = Arc::new(Requests::default());
        let mut bound = sources::bind(&plan, &options, &requests).await?;
        let clock = Clock::system();
        let registries = registries::open(&plan, &options, clock.clone()).await?;
        let durable = Durable::open(&plan, &options, &clock, &requests, &bounds).await?;
        let Durable { checkpoints, mut restored, journal, replay, outbox } = durable;
        let last_ticks = Arc::new(AtomicBool::new(false));
        let notifications = notifications(&plan, &outbox, restored.rules.clone(), &last_ticks)
            .with_topics(sources::alert_topics(&bound));
        let (engine_targets, told) = (notifications.engine_targets(), notifications.told_through());
        let place = (&*options.data, &store);
        let belonging = Belonging::of(place, &journal, told, &restored);
        let place = (&store, &*instance);
        restored.had = check_tables(&plan, &options, place, (&belonging, &restored)).await?;
        anew::check_start(&journal, &plan, &restored)?;
        let patience = Patience::telling(&options.replaying);
        let claim = || claim(&store, &instance, &options, &clock, claimed);
        let fence = patience.until(claim).await?;
        let go_on = restored.go_on(checkpoints, options.checkpoint_every, &stats);
        let go_on = go_on.with(&requests, &journal, &bounds.standing).of_run(fence.0.number());
        let cuts = Arc::clone(&go_on.cuts);
        let checkpoints = Checkpoints::start(go_on, &plan.pipelines)?;
        let (first, rights) = (restored.epoch == 0, (&last_ticks, &fence.0));
        let context = table_context(&options, &stats, rights, first)?;
        let (troubles, tables) = (context.troubles.clone(), context.watched.clone());
        let place = (store, instance);
        let in_flight_too = Arc::clone(&in_flight);
        let (opened, late) = open_committer(&plan, place, context, in_flight_too, &options).await?;
        let durable = Arc::clone(&journal);
        let mut committer =
            opened.with_durable(durable, notifications, checkpoints, restored.epoch);
        committer.refused = bounds.refused.clone();
        belonging.check(&committer.has())?;
        let taken = committer.take_over(&journal, &plan, &mut restored, told)?;
        let have = (committer.found(), outbox.pending());
        let mut recovery = Recovery::of(&restored, taken, have, clock.now_us());
        let Restored { epoch, state, .. } = restored;
        let worker_plan = WorkerPlan::live(&plan, options.workers, epoch + 1, state);
        let started_with = (&plan, &options, &stats);
        let paced_by = (in_flight, Arc::clone(&cuts));
        let dataflow = Dataflow::start(started_with, worker_plan, committer, paced_by).await?;
        let Dataflow { queue, events, finished } = dataflow;
        let queue = queue.heard_by(registries.entries(), &bounds.standing);
        let replaying = Arc::clone(&options.replaying);
        let queue = replay_into(replay, queue, Arc::clone(&requests), replaying).await?;
        recovery.replayed = options.replaying.now();
        Stats::set(&stats.replayed_messages, recovery.messages());
        let (changes, end) = LiveFeed::start(&journal, queue, requests, events, &last_ticks)?;
        let read = registries.begin(&journal, &bound, &options).await?;
        recovery.seconds = started.elapsed().as_secs_f64();
        earlier::enter(&options, &mut plan, &mut bound, epoch).await?;
        let (told, watched) = ((outbox, engine_targets), (cuts, troubles, tables, bounds));
        let late = Recomputing::start(late)?;
        let begun = Begun { journal, told, clock, changes, watched, fence, late, last_ticks, end };
        let (doors, of_stats) = ((bound, Arc::new(read)), Arc::clone(&stats));
        let place = (&*options.data, options.cluster.is_none());
        let live = Some(begun.go_live(plan, doors, place, of_stats)?);
        Ok(Self { live, recovery, ..Self::new(stats, finished) })
    }
}

/// What the data folder holds, opened.
struct Durable {
    checkpoints: CheckpointStore,
    restored: Restored,
    journal: Arc<Journal>,
    replay: Replay,
    outbox: Arc<Outbox>,
}

impl Durable {
    /// Opens it; idempotency keys go to `requests`, what the engine has said to `bounds`.
    async fn open(
        plan: &Plan,
        options: &EngineOptions,
        clock: &Clock,
        requests: &Requests,
        bounds: &Bounds,
    ) -> anyhow::Result<Self> {
        // The newest checkpoint that is whole.
        let checkpoints = CheckpointStore::open(options.data.join("checkpoints"))?;
        let mut restored = Restored::read_after(&options.ran, &checkpoints, &plan.pipelines)?;
        requests.restore(&mut restored.state);
        bounds.standing.restore(&mut restored.state, &options.data);
        let (patience, from) = (Patience::telling(&options.replaying), restored.epoch + 1);
        let open = || std::future::ready(open_journal(plan, options, clock.clone(), from));
        let (journal, replay) = patience.until(open).await?;
        earlier::refuse_orphans(&options.data, plan, &journal, checkpoints.newest_epoch()?)?;
        let open = || std::future::ready(open_outbox(options).map_err(Into::into));
        let outbox = patience.until(open).await?;
        Ok(Self { checkpoints, restored, journal, replay, outbox })
    }
}

/// Workers and committer, at work.
struct Dataflow {
    queue: FeedQueue,
    events: SyncSender<Event>,
    /// How the committer ends.
    finished: oneshot::Receiver<anyhow::Result<()>>,
}

impl Dataflow {
    async fn start(
        (plan, options, stats): (&Plan, &EngineOptions, &Arc<Stats>),
        worker_plan: WorkerPlan,
        committer: Committer,
        (in_flight, cuts): (Arc<InFlight>, Arc<Cuts>),
    ) -> anyhow::Result<Self> {
        let (events, received) = sync_channel(EVENTS_MAX);
        let ports = cluster::start_workers(plan, options, worker_plan, stats, &events).await?;
        let finished = spawn_committer(committer, received)?;
        let counted = Arc::clone(stats);
        let queue = FeedQueue::new(ports, in_flight, counted, Some(cuts), Arc::default());
        Ok(Self { queue, events, finished })
    }
}

/// Refuses whoever does not belong to the tables, or makes rows that they do not take: before it
/// gets the right to commit, since that would end the process that has it. Gives the tables that
/// have rows.
async fn check_tables(
    plan: &Plan,
    options: &EngineOptions,
    (store, instance): (&Store, &str),
    (belonging, restored): (&Belonging, &Restored),
) -> anyhow::Result<BTreeSet<String>> {
    let patience = Patience::telling(&options.replaying);
    let specs = graph::tables(&plan.pipelines);
    let look = || async { Ok(belonging::look(store, &specs, instance).await?) };
    let found = patience.until(look).await?;
    belonging.check(&found)?;
    if restored.other_pipelines {
        let take = || async { Ok(belonging::take(store, &specs).await?) };
        patience.until(take).await?;
    }
    let had = found.into_iter().filter(|(_, epoch)| epoch.is_some_and(|epoch| epoch > 0));
    Ok(had.map(|(table, _)| table).chain(restored.tables.through.keys().cloned()).collect())
}

/// What is there when the journal runs and nobody was let in yet.
struct Begun {
    journal: Arc<Journal>,
    told: (Arc<Outbox>, EngineTargets),
    clock: Clock,
    changes: Arc<Changes>,
    watched: (Arc<Cuts>, TableTroubles, TablesWatched, Bounds),
    fence: (Arc<Fence>, Watching),
    late: Recomputing,
    last_ticks: Arc<AtomicBool>,
    end: std::sync::mpsc::Sender<()>,
}

impl Begun {
    /// Opens the doors.
    fn go_live(
        self,
        plan: Plan,
        (bound, registries): (Vec<sources::Bound>, Arc<Registries>),
        (data, alone): (&Path, bool),
        stats: Arc<Stats>,
    ) -> anyhow::Result<Live> {
        let Self { journal, told, clock, changes, late, last_ticks, end, .. } = self;
        let ((cuts, troubles, tables, bounds), (fence, watching)) = (self.watched, self.fence);
        let (outbox, engine_targets) = told;
        let (webhooks, options) = (sources::webhooks(&plan), SenderOptions::default());
        let sender = WebhookSender::start(Arc::clone(&outbox), webhooks, options, clock.clone())?;
        let sender = Arc::new(sender);
        let sources = sources::start(bound, &journal);
        let states = States {
            journal: Arc::clone(&journal),
            sources: sources.states(),
            registries: Arc::clone(&registries),
            tables: troubles,
            waiting: late.waiting.clone(),
            outbox,
            bounds,
            cuts: Arc::clone(&cuts),
        };
        let memory = states.bounds.memory.clone();
        let saved = (Arc::clone(&cuts), states.tables.clone());
        let alarms = conditions::watch(clock.clone(), states.clone(), stats);
        let webhooks = Arc::clone(&sender);
        let observed = Arc::new(observer::Live { states, tables, webhooks, cuts, clock });
        let told = (Arc::clone(&sender), engine_targets);
        let (doors, known) = (Arc::clone(&journal), (Arc::clone(&registries), memory));
        let applier = Applier::new((data, alone), plan, changes, doors, known, saved, told);
        let applier = Arc::new(applier);
        Ok(Live {
            applier,
            journal,
            sources,
            registries,
            sender,
            observed,
            fence,
            _watching: watching,
            alarms,
            late: Some(late),
            last_ticks,
            end,
        })
    }
}

/// From alerts, of pipelines and of the engine itself, to the outbox.
fn notifications(
    plan: &Plan,
    outbox: &Arc<Outbox>,
    rules: Rules,
    ended: &Arc<AtomicBool>,
) -> Notifications {
    Notifications::new(Arc::clone(outbox), rules)
        .with_engine(&plan.notifications, Arc::clone(ended))
}
