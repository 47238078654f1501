//! What can be seen of a simulation while it goes on: [`Story`] reads each change of the Rollout, its runs and its
//! route, and what users met; it gives [`Frame`]s and the decisions. It changes nothing, and asks nobody twice for what
//! has not changed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use davylamp_api::run::DecisionRecord;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{Phase, Revision, RolloutStatus};
use davylamp_world::{Scrapes, Tally};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;

use crate::objects::Names;
use crate::report::{Cohort, Entry, Frame, Kind, Report};
use crate::scenario::Moment;
use crate::user::User;

/// Errors are counted over so many seconds at least.
const WINDOW: usize = 10;

/// What is known so far.
#[derive(Debug)]
pub(crate) struct Story {
    names: Names,
    rollouts: davylamp_world::Body,
    runs: davylamp_world::Body,
    routes: davylamp_world::Body,
    /// The Rollout, unless it is deleted.
    pub(crate) rollout: Option<Seen>,
    /// Percent of the canary in the route.
    weight: f64,
    decisions: BTreeMap<String, Vec<DecisionRecord>>,
    outcome: Option<String>,
    released_ms: Option<u64>,
    took_ms: Option<u64>,
    /// The number of the last decision that was told, and of which Rollout, by its uid.
    told: (String, i64),
    timeline: Vec<Entry>,
    shown: usize,
    /// A request was answered.
    open: bool,
    /// What was lost before: nobody can promise anything until a first version is ready.
    before_opening: u64,
    /// After each second, the newest last.
    tallies: VecDeque<Tally>,
    /// In so many seconds each pod is counted once.
    round: usize,
    /// The stable version's share of errors when it last had requests.
    usual: f64,
    errors_of_canary: f64,
}

/// A Rollout, as far as it is looked at.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen {
    metadata: Metadata,
    spec: Value,
    #[serde(default)]
    pub(crate) status: RolloutStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    uid: String,
    generation: i64,
}

#[derive(Debug, Deserialize)]
struct Run {
    metadata: Metadata,
    spec: RunSpec,
    #[serde(default)]
    status: RunStatus,
}

#[derive(Debug, Deserialize)]
struct RunSpec {
    rollout: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RunStatus {
    decisions: Vec<DecisionRecord>,
}

#[derive(Debug, Deserialize)]
struct Line<T> {
    #[serde(rename = "type")]
    type_: String,
    object: T,
}

/// A line of one of the watches.
#[derive(Debug)]
pub(crate) enum News {
    Rollout(Bytes),
    Run(Bytes),
    Route(Bytes),
}

impl Seen {
    /// The image that the user wants.
    pub(crate) fn image(&self) -> &str {
        self.spec.pointer("/template/spec/containers/0/image").and_then(Value::as_str).unwrap_or_default()
    }

    /// The image that is on trial.
    pub(crate) fn canary(&self) -> Option<&str> {
        self.status.canary.as_ref().map(|canary| canary.images.first().map_or("", String::as_str))
    }

    fn stable(&self) -> &str {
        self.status.stable.as_ref().and_then(|stable| stable.images.first()).map_or("", String::as_str)
    }

    /// Its spec is answered, and nothing goes on by itself.
    pub(crate) fn rests(&self) -> bool {
        self.metadata.generation == self.status.observed_generation
            && matches!(self.status.phase, Some(Phase::Healthy | Phase::Degraded | Phase::Paused))
    }

    /// Somebody, or data, is waited for.
    pub(crate) fn waits(&self) -> bool {
        self.status.phase == Some(Phase::Paused)
    }
}

impl Story {
    pub(crate) async fn new(user: &User, names: &Names, scrapes: &Scrapes) -> Self {
        let round = scrapes.interval.as_millis().div_ceil(1_000).max(1);
        Self {
            round: usize::try_from(round).unwrap_or(usize::MAX),
            rollouts: user.watch(&names.rollout()).await,
            runs: user.watch(&names.ours("rolloutruns")).await,
            routes: user.watch(&names.route()).await,
            names: names.clone(),
            rollout: None,
            weight: 0.0,
            decisions: BTreeMap::new(),
            outcome: None,
            released_ms: None,
            took_ms: None,
            told: (String::new(), 0),
            timeline: Vec::new(),
            shown: 0,
            open: false,
            before_opening: 0,
            tallies: VecDeque::from([Tally::default()]),
            usual: 0.0,
            errors_of_canary: 0.0,
        }
    }

    /// The next change; may be dropped at any moment.
    pub(crate) async fn news(&mut self) -> News {
        let data = |frame: Option<Result<http_body::Frame<Bytes>, _>>| match frame {
            Some(Ok(frame)) => frame.into_data().ok(),
            Some(Err(never)) => match never {},
            None => None,
        };
        let news = tokio::select! {
            biased;
            frame = self.rollouts.frame() => data(frame).map(News::Rollout),
            frame = self.runs.frame() => data(frame).map(News::Run),
            frame = self.routes.frame() => data(frame).map(News::Route),
        };
        match news {
            Some(news) => news,
            // The watches are as long as the simulation.
            None => std::future::pending().await,
        }
    }

    /// Takes a change that came at this time.
    pub(crate) fn take(&mut self, news: &News, at_ms: u64) -> Result<(), serde_json::Error> {
        match news {
            News::Rollout(line) => {
                let Line { type_, object } = serde_json::from_slice::<Line<Seen>>(line)?;
                self.decided(&object, at_ms);
                self.rollout = Some(object).filter(|_| type_ != "DELETED");
            }
            News::Run(line) => {
                let Line { object: Run { metadata, spec, status }, .. } = serde_json::from_slice(line)?;
                if spec.rollout == self.names.name {
                    self.decisions.insert(metadata.name, status.decisions);
                }
            }
            News::Route(line) => {
                let Line { object, .. } = serde_json::from_slice::<Line<Value>>(line)?;
                self.weight = self.carried(&object).unwrap_or(self.weight);
            }
        }
        Ok(())
    }

    /// Decisions are in the Rollout's status before they are anywhere else.
    fn decided(&mut self, seen: &Seen, at_ms: u64) {
        if self.told.0 != seen.metadata.uid {
            self.told = (seen.metadata.uid.clone(), 0);
        }
        for pending in &seen.status.pending {
            let record = &pending.record;
            if record.number <= self.told.1 {
                continue;
            }
            self.told.1 = record.number;
            let of = seen.status.step.as_ref().map_or(0, |step| step.of);
            let step = if record.step > 0 && of > 0 {
                format!(" (step {}/{of}, {})", record.step, record.weight)
            } else {
                String::new()
            };
            let DecisionRecord { from, to, rule, message, .. } = record;
            let arrow = if from.is_empty() || from == to { to.clone() } else { format!("{from} → {to}") };
            self.tell(Entry {
                at_ms,
                kind: Kind::Decision,
                text: format!("{arrow}{step} · {rule}: {message}"),
            });
            if let Some(outcome) = &pending.outcome {
                self.outcome = Some(outcome.clone());
                self.took_ms = self.released_ms.map(|released| at_ms.saturating_sub(released));
            }
        }
    }

    /// Percent of the canary in the first rule that names it.
    fn carried(&self, route: &Value) -> Option<f64> {
        let mut rules = route.pointer("/spec/rules")?.as_array()?.iter();
        let weights = |rule: &Value| {
            let backends = rule.get("backendRefs").and_then(Value::as_array)?;
            let weight = |name: &str| {
                let backend =
                    backends.iter().find(|b| b.get("name").and_then(Value::as_str) == Some(name))?;
                Some(backend.get("weight").and_then(Value::as_f64).unwrap_or(1.0))
            };
            Some((weight(&self.names.stable)?, weight(&self.names.canary)?))
        };
        let (stable, canary) = rules.find_map(weights)?;
        (stable + canary > 0.0).then(|| 100.0 * canary / (stable + canary))
    }

    /// Whether the Rollout stands like this.
    pub(crate) fn is_at(&self, moment: &Moment) -> bool {
        let status = self.rollout.as_ref().map(|seen| &seen.status);
        let state = status.and_then(|status| Some(status.state.as_ref()?.name));
        let step = status.and_then(|status| Some(status.step.as_ref()?.index));
        (moment.state.is_none() || moment.state == state) && (moment.step.is_none() || moment.step == step)
    }

    pub(crate) fn tell(&mut self, entry: Entry) {
        self.timeline.push(entry);
    }

    /// A release begins: from now on, it is measured how long its run takes.
    pub(crate) fn released(&mut self, at_ms: u64) {
        self.released_ms = Some(at_ms);
        self.took_ms = None;
    }

    /// A second has passed.
    #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
    pub(crate) fn frame(&mut self, at: Duration, mut tally: Tally, running: bool) -> Frame {
        if !self.open {
            self.before_opening = tally.lost;
            self.open = tally.versions.values().any(|(requests, _)| *requests > 0);
        }
        tally.lost = tally.lost.saturating_sub(self.before_opening);
        let news = self.timeline.get(self.shown..).unwrap_or_default().to_vec();
        self.shown = self.timeline.len();
        let mut frame = Frame { at, running, news, lost: tally.lost, ..Frame::default() };
        frame.requests = tally.versions.values().map(|(requests, _)| requests).sum::<u64>() + tally.lost;
        let (stable, canary) = match &self.rollout {
            Some(seen) => (seen.stable().to_owned(), seen.canary().map(str::to_owned)),
            None => (String::new(), None),
        };
        // A version is on trial only beside another one.
        let canary = canary.filter(|canary| *canary != stable && !stable.is_empty());

        self.tallies.push_back(tally);
        if self.tallies.len() > WINDOW.max(self.round) + 1 {
            self.tallies.pop_front();
        }
        let (first, last) = (self.tallies.front(), self.tallies.back());
        let ago = |seconds: usize| self.tallies.iter().rev().nth(seconds).or(first);
        let since = |from: Option<&Tally>, image: &str| -> (f64, f64) {
            let of = |tally: Option<&Tally>| {
                tally.and_then(|t| t.versions.get(image)).copied().unwrap_or_default()
            };
            let ((r0, e0), (r1, e1)) = (of(from), of(last));
            (r1.saturating_sub(r0) as f64, e1.saturating_sub(e0) as f64)
        };
        let share = |(requests, errors): (f64, f64)| (requests > 0.0).then(|| errors / requests);
        let of_stable = share(since(first, &stable));
        self.usual = of_stable.unwrap_or(self.usual);
        frame.errors.0 = of_stable.map(|share| 100.0 * share);
        if let Some(image) = &canary {
            frame.errors.1 = share(since(first, image)).map(|share| 100.0 * share);
            let ((others, _), (requests, _)) =
                (since(ago(self.round), &stable), since(ago(self.round), image));
            if requests > 0.0 {
                frame.share = 100.0 * requests / (others + requests);
            }
            let (requests, errors) = since(ago(1), image);
            self.errors_of_canary += requests.mul_add(-self.usual, errors);
        }
        frame.images = (stable, canary.unwrap_or_default());
        frame.weight = self.weight;
        if let Some(seen) = &self.rollout {
            draw(&seen.status, &mut frame);
        }
        frame
    }

    /// What came of it, but for what the faults have recorded.
    pub(crate) fn end(self, tally: &Tally) -> Report {
        let cohort = |(image, (requests, errors)): (&String, &(u64, u64))| {
            (image.clone(), Cohort { requests: *requests, errors: *errors })
        };
        let mut timeline = self.timeline;
        // Within a millisecond, what happened comes before what was decided.
        timeline.sort_by_key(|entry| (entry.at_ms, entry.kind == Kind::Decision));
        let (phase, message, stable) = self.rollout.as_ref().map_or_else(Default::default, |seen| {
            (phase(&seen.status), seen.status.message.clone(), seen.stable().to_owned())
        });
        Report {
            outcome: self.outcome,
            phase,
            message,
            stable,
            took_ms: self.took_ms,
            timeline,
            runs: self.decisions,
            versions: tally.versions.iter().map(cohort).collect(),
            errors_of_canary: self.errors_of_canary,
            lost: tally.lost.saturating_sub(self.before_opening),
            ..Report::default()
        }
    }
}

fn phase(status: &RolloutStatus) -> String {
    status.phase.map(|phase| format!("{phase:?}")).unwrap_or_default()
}

/// What a status says of itself.
fn draw(status: &RolloutStatus, frame: &mut Frame) {
    let ready = |revision: &Option<Revision>| {
        revision.as_ref().map_or(0, |r| u32::try_from(r.ready_replicas).unwrap_or(0))
    };
    let percent = |percent: Percent| 100.0 * percent.share();
    frame.phase = phase(status);
    frame.state = status.state.as_ref().map_or_else(String::new, |state| state.name.as_str().to_owned());
    frame.step = status.step.as_ref().map_or((0, 0), |step| (step.index, step.of));
    frame.ready = (ready(&status.stable), ready(&status.canary));
    frame.message.clone_from(&status.message);
    if let Some(analysis) = &status.analysis {
        let safe = analysis.metrics.iter().map(|metric| metric.safe).min();
        frame.evidence = (percent(analysis.evidence), safe.map_or(0.0, percent));
    }
}
