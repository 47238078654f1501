//! One pass over one Rollout: observe, decide, record, apply, tell. Each line is one module; only the last three touch
//! the API server, and none asks for metrics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use davylamp_engine::{Decision, Desired, Wake, decide};
use kube::runtime::controller::Action;
use tokio::time::Instant;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::apply::{self, Applier, ApplyError, Effect};
use crate::call::CallError;
use crate::clock::Clock;
use crate::incidents::Incidents;
use crate::key::Key;
use crate::memory::Memories;
use crate::metrics::suggestion::Suggestion;
use crate::metrics::{Sampler, Wanted, WantedHistory};
use crate::observe::{self, Caches, Subject};
use crate::outbox::Outbox;
use crate::record::{self, StatusWriter};
use crate::telemetry::Telemetry;
use crate::views::RolloutView;

/// What a pass works with.
pub struct Context {
    /// The time.
    pub clock: Clock,
    /// Everything that is watched.
    pub caches: Caches,
    /// Asks for metrics.
    pub sampler: Sampler,
    /// Looks for sources where there is none.
    pub suggestion: Suggestion,
    /// What the process remembers.
    pub memories: Memories,
    /// What Rollouts have noticed of their baselines.
    pub incidents: Incidents,
    /// Writes statuses.
    pub writer: StatusWriter,
    /// Writes everything else.
    pub applier: Applier,
    /// Tells.
    pub outbox: Outbox,
    /// Counts.
    pub telemetry: Telemetry,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The status was not written; nothing else was.
    #[error("the status was not written")]
    Record(#[source] CallError),
    /// Something that should be was not written; all before it was.
    #[error("not everything was written")]
    Apply(#[source] ApplyError),
    /// Something was not told.
    #[error("not everything was told")]
    Tell(#[source] CallError),
}

impl ReconcileError {
    fn is_conflict(&self) -> bool {
        match self {
            Self::Record(error) | Self::Tell(error) => error.is_conflict(),
            Self::Apply(error) => error.is_conflict(),
        }
    }

    /// As a label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Record(error) | Self::Tell(error) => error.reason(),
            Self::Apply(error) => error.reason(),
        }
    }
}

/// One pass over the Rollout of this name.
pub async fn reconcile(rollout: Arc<RolloutView>, ctx: Arc<Context>) -> Result<Action, ReconcileError> {
    let key = Key::of(&*rollout);
    let generation = rollout.metadata.generation.unwrap_or(0);
    let span = info_span!("reconcile", namespace = key.namespace, rollout = key.name, generation);
    let start = Instant::now();
    let result = Box::pin(pass(&key, &ctx)).instrument(span).await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) => error.reason(),
    };
    ctx.telemetry.reconciled(outcome, start.elapsed());
    result
}

async fn pass(key: &Key, ctx: &Context) -> Result<Action, ReconcileError> {
    let Some(view) = ctx.caches.rollouts.get(key) else { return Ok(Action::await_change()) };
    let now = ctx.clock.now();
    let subject = Subject::new(view, &ctx.caches, &ctx.memories);
    let memory = ctx.memories.get(key, &subject.uid);
    ctx.incidents.note(key, &subject.status);
    let incidents = ctx.incidents.of_others(key, now);
    let observed = observe::world(&subject, &ctx.caches, &ctx.sampler, &ctx.suggestion, &memory, incidents);
    let Decision { status, desired, wake } = decide(&subject.input, &subject.status, &observed, now);

    // The names of Services and routes in the next status count for what follows.
    let decided = Subject { status, ..subject.clone() };
    let effects = apply::plan(&decided, &desired, &ctx.caches, &memory);
    let changed = record::differs(&subject, &decided.status);
    let guarded = effects.iter().any(|effect| !effect.is_harmless());
    let decided = if changed || guarded {
        let written =
            ctx.writer.write(&subject, &decided.status, &ctx.caches).await.map_err(ReconcileError::Record)?;
        tell_transition(&subject, &decided, ctx);
        ctx.incidents.note(key, &decided.status);
        Subject { view: Arc::new(written), ..decided }
    } else {
        decided
    };
    want(&decided, &desired, ctx);
    apply_all(&decided, &effects, ctx).await.map_err(ReconcileError::Apply)?;
    ctx.outbox
        .deliver(&decided, &decided.status, &ctx.caches, &ctx.memories)
        .await
        .map_err(ReconcileError::Tell)?;
    prune(&decided, now, ctx).await.map_err(ReconcileError::Tell)?;
    if let Some(phase) = decided.status.phase {
        ctx.telemetry.phase(key, phase_name(phase));
    }
    // The answer to a check, and that all is told, are in our memory, not in any cache.
    let waited = observed.meta.deleting
        && decided.status.pending.iter().any(|pending| pending.record.number > observed.delivered);
    if waited || effects.iter().any(apply::Effect::is_harmless) {
        return Ok(Action::requeue(Duration::ZERO));
    }
    Ok(wake.map_or_else(Action::await_change, |wake| wake_up(wake, ctx)))
}

/// One that fails does not keep the others from being done: a `ReplicaSet` that cannot be made must not delay a rollback.
/// The first failure is told. No route is edited without the finalizer, and a server that does not answer is not asked on.
async fn apply_all(subject: &Subject, effects: &[Effect], ctx: &Context) -> Result<(), ApplyError> {
    let mut first = Ok(());
    for effect in effects {
        debug!(?effect, "applying");
        if let Err(error) = ctx.applier.execute(subject, effect, &ctx.caches, &ctx.memories).await {
            let stop = *effect == Effect::Finalizer(true) || error.reason() == "timeout";
            first = first.and(Err(error));
            if stop {
                break;
            }
        }
    }
    first
}

fn wake_up(wake: Wake, ctx: &Context) -> Action {
    let left = wake.at.as_millisecond() - ctx.clock.now_ms();
    ctx.telemetry.woke(wake.why.as_str());
    debug!(at = %wake.at, why = wake.why.as_str(), "waking");
    Action::requeue(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

/// History is pruned when a run has ended: a Rollout that was at rest when the process began needs no call.
async fn prune(subject: &Subject, now: davylamp_api::Instant, ctx: &Context) -> Result<(), CallError> {
    let at_rest = subject.status.canary.is_none() && subject.status.old.is_none();
    let memory = ctx.memories.get(&subject.key, &subject.uid);
    // A Rollout that has never been released has no history.
    let told = subject.status.told;
    if !at_rest
        || told < 3
        || memory.pruned == Some(told)
        || subject.view.metadata.deletion_timestamp.is_some()
    {
        return Ok(());
    }
    if memory.pruned.is_some() || !subject.status.pending.is_empty() {
        ctx.outbox.prune(subject, &subject.status, now, &ctx.caches).await?;
    }
    ctx.memories.update(&subject.key, &subject.uid, |m| m.pruned = Some(told));
    Ok(())
}

fn want(subject: &Subject, desired: &Desired, ctx: &Context) {
    let source = |name: &str| {
        let source = ctx.caches.sources.get(&Key { namespace: String::new(), name: name.to_owned() })?;
        source.spec.allows(&subject.key.namespace).then(|| source.spec.clone())
    };
    let wanted = desired.query.clone();
    let wanted = wanted.and_then(|query| Some(Wanted { source: source(&query.source)?, query }));
    ctx.sampler.want(&subject.key, wanted);
    let past = desired.history.clone();
    let past = past.and_then(|of| Some(WantedHistory { source: source(&of.query.source)?, of }));
    ctx.sampler.learn(&subject.key, past);
}

fn tell_transition(before: &Subject, after: &Subject, ctx: &Context) {
    let name = |s: &Subject| s.status.state.as_ref().map_or("", |s| s.name.as_str());
    ctx.telemetry.dropped_events(u64::try_from(after.status.dropped - before.status.dropped).unwrap_or(0));
    for pending in after.status.pending.iter().filter(|p| p.record.number > before.status.told) {
        let record = &pending.record;
        info!(
            from = record.from,
            to = record.to,
            reason = record.rule,
            step = record.step,
            weight = record.weight,
            message = record.message,
            "decided"
        );
    }
    if let Some(state) = &after.status.state
        && before.status.told < after.status.told
    {
        ctx.telemetry.decided(name(before), name(after), state.reason.as_str());
    }
}

const fn phase_name(phase: davylamp_api::status::Phase) -> &'static str {
    use davylamp_api::status::Phase;
    match phase {
        Phase::Healthy => "Healthy",
        Phase::Progressing => "Progressing",
        Phase::Paused => "Paused",
        Phase::Degraded => "Degraded",
        Phase::Unknown => "Unknown",
    }
}

/// A conflict starts the pass over: what we decided on was not the newest. Anything else waits a little.
#[allow(clippy::needless_pass_by_value, reason = "the shape of kube's error policy")]
pub fn error_policy(rollout: Arc<RolloutView>, error: &ReconcileError, _: Arc<Context>) -> Action {
    let key = Key::of(&*rollout);
    if error.is_conflict() {
        info!(rollout = %key, error = chain(error), "the pass starts over");
        return Action::requeue(Duration::from_millis(100));
    }
    warn!(rollout = %key, error = chain(error), "the pass ended early and is repeated");
    Action::requeue(Duration::from_secs(2))
}

/// The error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}
