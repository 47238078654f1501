//! A run once more: from its record, and from samples that are still there, to the same evidence or to where it differs.
//!
//! [`Replay`] says which samples it needs next and takes them; between two of them it gives what it has found about the
//! decisions so far. It folds as the engine does, and knows nothing of the pods but what the record says.

use std::collections::BTreeMap;

use davylamp_api::Instant;
use davylamp_api::checkpoint::Checkpoint;
use davylamp_api::conditions::Reason;
use davylamp_api::run::{
    DecisionRecord, ExpressionRecord, GaugeRecord, MetricRecord, RolloutRunSpec, SplitRecord,
};
use davylamp_api::scalar::Percent;
use davylamp_api::status::StateName;
use serde::Serialize;

use crate::decision::{Named, Query};
use crate::fold::{Fold, Missing};
use crate::observed::{Observed, Samples};
use crate::program::{Conduct, step_view};

/// Samples are asked for in windows not longer than this, ms.
const LONGEST_WINDOW: i64 = 600_000;

/// A run that is gone through once more.
#[derive(Debug)]
pub struct Replay<'a> {
    spec: &'a RolloutRunSpec,
    conduct: &'a Conduct,
    records: &'a [DecisionRecord],
    /// The number of the record before.
    before: Option<i64>,
    fold: Fold<'a>,
    /// The weight of which data counts.
    opened: &'a str,
    /// From when on metrics were read as sums.
    summed: BTreeMap<String, i64>,
    cohorts: Named,
}

/// What a replay does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It needs these samples, up to that time in ms since 1970.
    Ask(Box<Query>, i64),
    /// It has come to the end of a decision.
    Checked(Box<Checked>),
    /// There is nothing more.
    End,
}

/// What has become of a decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checked {
    /// Its number.
    pub number: i64,
    /// What is not in the record. Without its evidence there is nothing to compare.
    pub lacks: Option<Lacks>,
    /// The evidence, where it is another now: as recorded, and as it is.
    pub differs: Vec<Pair<MetricRecord>>,
    /// The same of gauges.
    pub gauges: Vec<Pair<GaugeRecord>>,
    /// The same of the split of the requests.
    pub split: Option<Pair<SplitRecord>>,
    /// The same of expressions.
    pub expressions: Vec<Pair<ExpressionRecord>>,
    /// The evidence as it is now does not suffice for the rule that decided.
    pub unfounded: bool,
}

/// As recorded, and as it is; None where one has it and the other not.
pub type Pair<T> = (Option<T>, Option<T>);

/// What should be in the record, and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Lacks {
    /// The evidence of the decision.
    Evidence,
    /// Decisions next to it.
    Decisions,
}

impl Checked {
    /// It is as it was.
    #[must_use]
    pub fn is_same(&self) -> bool {
        let same = self.differs.is_empty() && self.gauges.is_empty() && self.expressions.is_empty();
        same && self.split.is_none() && !self.unfounded && self.lacks.is_none()
    }
}

impl<'a> Replay<'a> {
    /// At the beginning of the run. `conduct` is what its spec promises. None when the spec does not say with what its
    /// canary was compared.
    #[must_use]
    pub fn new(
        spec: &'a RolloutRunSpec,
        conduct: &'a Conduct,
        records: &'a [DecisionRecord],
    ) -> Option<Self> {
        let baseline = conduct.analysis.baseline(spec.baseline.as_deref()?);
        let mut fold = Fold::new(&conduct.analysis, &Checkpoint::default(), Percent::ZERO, Percent::FULL);
        let mut summed = BTreeMap::new();
        for record in records.iter().flat_map(|record| &record.metrics) {
            // It was measured before the first sample that counts.
            record.background.into_iter().for_each(|rate| fold.leave_out(&record.name, rate));
            if let Some(since) = record.summed_since {
                summed.insert(record.name.clone(), since.as_millisecond());
            }
        }
        Some(Self {
            spec,
            conduct,
            records,
            before: None,
            fold,
            opened: "",
            summed,
            cohorts: Named::of(&spec.rollout, &spec.hash, &baseline, spec.services.as_ref()),
        })
    }

    /// Goes on as far as it can.
    pub fn advance(&mut self) -> Next {
        while let Some((record, rest)) = self.records.split_first() {
            let settling = record.to == StateName::Settling.as_str();
            let until = if settling { record.before } else { last(record) };
            if let Some(until) = until.map(Instant::as_millisecond)
                && self.fold.is_open()
                && until > self.fold.folded_until()
                && let Some(query) = self.query()
            {
                let other_form = self.summed.values().filter(|since| **since > query.since).min();
                let end = until.min(query.since.saturating_add(LONGEST_WINDOW));
                let end = end.min(other_form.copied().unwrap_or(i64::MAX));
                return Next::Ask(Box::new(query), end);
            }
            self.records = rest;
            if settling {
                self.open(record, rest);
            } else if self.opened != record.weight {
                // Another weight was written meanwhile.
                self.fold.close();
            }
            let lacks = self.lacks(record);
            self.before = Some(record.number);
            let checked = match (lacks, has_evidence(record)) {
                (_, true) => Some(Checked { lacks, ..self.check(record) }),
                (Some(_), false) => Some(Checked { number: record.number, lacks, ..Checked::default() }),
                (None, false) => None,
            };
            self.fold.decided(&record.rule);
            if let Some(checked) = checked {
                return Next::Checked(Box::new(checked));
            }
        }
        Next::End
    }

    /// Takes what was asked for.
    pub fn take(&mut self, samples: &Samples) {
        let before = self.fold.folded_until();
        self.fold.take(samples, &Observed::default(), &self.cohorts);
        while self.fold.look().is_some() {}
        if self.fold.folded_until() == before {
            // Less than a round: the record is of another grid, and what differs is told.
            self.fold.close();
        }
    }

    fn query(&self) -> Option<Query> {
        let since = self.fold.folded_until();
        let summed = self.summed.iter().filter(|(_, from)| **from <= since).map(|(name, _)| name.clone());
        Query::of_run(&self.conduct.analysis, self.cohorts.clone(), since, summed.collect())
    }

    /// A weight became effective.
    fn open(&mut self, record: &'a DecisionRecord, rest: &[DecisionRecord]) {
        self.opened = &record.weight;
        let Some(after) = record.after.map(Instant::as_millisecond) else { return };
        let step = usize::try_from(record.step).unwrap_or(0);
        let next = self.conduct.steps.get(step).map_or(Percent::FULL, |step| step.weight);
        let this = step.checked_sub(1).and_then(|step| self.conduct.steps.get(step));
        let hold_min = this.map_or(0, |step| step_view(step).hold_min);
        let weight = record.weight.parse().unwrap_or(Percent::ZERO);
        let effective = after.saturating_sub(self.conduct.analysis.settle);
        self.fold.begin_step(weight, next, hold_min);
        if let Ok(effective) = Instant::from_millisecond(effective) {
            self.fold.open(effective, &Observed::default());
        }
        let same = |other: &&DecisionRecord| other.after == record.after;
        let warm: BTreeMap<String, i64> = std::iter::once(record)
            .chain(rest.iter().take_while(|other| other.to != StateName::Settling.as_str()).filter(same))
            .flat_map(|record| &record.young)
            .map(|(pod, warm)| (pod.clone(), warm.as_millisecond()))
            .collect();
        self.fold.warm_from(&warm);
    }

    /// Evidence is in each record of a run with metrics that says after when samples count, and wherever a rule looks at it.
    fn lacks(&self, record: &DecisionRecord) -> Option<Lacks> {
        let gap = record.gap == Some(true);
        let expected = gap || record.after.is_some() || looks_at_evidence(record);
        if expected && !has_evidence(record) && !self.conduct.analysis.is_empty() {
            return Some(Lacks::Evidence);
        }
        let jumps = self.before.is_some_and(|before| before.checked_add(1) != Some(record.number));
        (gap || jumps).then_some(Lacks::Decisions)
    }

    fn check(&self, record: &DecisionRecord) -> Checked {
        let rule = |reason: Reason| record.rule == reason.as_str();
        // What other Rollouts saw stands in their own records.
        let incident = rule(Reason::Incident) || rule(Reason::Interference);
        let passes = self.fold.safe() && !self.fold.is_misrouted();
        let silent = matches!(self.fold.missing(), Some(Missing::Canary | Missing::Everything));
        let unfounded = (rule(Reason::Regression) && !self.fold.regressed())
            || ((rule(Reason::StepPassed) || rule(Reason::LastStepPassed)) && !passes)
            || (rule(Reason::TrafficSplit) && !self.fold.is_misrouted())
            || (rule(Reason::Expression) && self.fold.exceeded().is_empty())
            || (rule(Reason::SloViolated) && self.fold.violated().is_empty())
            || (rule(Reason::NoData) && !silent)
            || (incident && record.to == StateName::Holding.as_str() && !self.fold.in_incident());
        Checked {
            number: record.number,
            lacks: None,
            differs: different(&record.metrics, &self.fold.records(), |one| &one.name),
            gauges: different(&record.gauges, &self.fold.gauges(), |one| &one.name),
            split: Some((record.split, self.fold.split())).filter(|(then, now)| then != now),
            expressions: different(&record.expressions, &self.fold.expressions(), |one| &one.name),
            unfounded,
        }
    }

    /// What the run released.
    #[must_use]
    pub const fn spec(&self) -> &RolloutRunSpec {
        self.spec
    }
}

fn has_evidence(record: &DecisionRecord) -> bool {
    !record.metrics.is_empty() || !record.gauges.is_empty() || !record.expressions.is_empty()
}

/// The rule that decided looks at evidence. A run that has been rolled back ends with the rule that did it, and without evidence.
fn looks_at_evidence(record: &DecisionRecord) -> bool {
    let rule = |reason: &Reason| record.rule == reason.as_str();
    let ends = record.from == StateName::RollingBack.as_str();
    let holds = record.to == StateName::Holding.as_str();
    let looks = [
        Reason::Regression,
        Reason::Expression,
        Reason::StepPassed,
        Reason::LastStepPassed,
        Reason::TrafficSplit,
        Reason::SloViolated,
        Reason::NoData,
        Reason::NoTraffic,
        Reason::Inconclusive,
    ];
    !ends && (looks.iter().any(rule) || (holds && [Reason::Incident, Reason::Interference].iter().any(rule)))
}

/// What is another now, or is there only once, by name. A name that is recorded twice is there twice.
fn different<T: Clone + PartialEq>(then: &[T], now: &[T], name: impl Fn(&T) -> &str) -> Vec<Pair<T>> {
    let of = |all: &[T], one: &T| all.iter().find(|other| name(other) == name(one)).cloned();
    let recorded = then.iter().enumerate().map(|(i, one)| {
        let again = of(&then[..i], one).is_some();
        (Some(one.clone()), of(now, one).filter(|_| !again))
    });
    let unrecorded = now.iter().filter(|one| of(then, one).is_none()).map(|one| (None, Some(one.clone())));
    recorded.chain(unrecorded).filter(|(then, now)| then != now).collect()
}

/// The end of the data of a decision.
fn last(record: &DecisionRecord) -> Option<Instant> {
    let gauges = record.gauges.iter().filter_map(|gauge| gauge.until);
    let expressions = record.expressions.iter().filter_map(|expression| expression.until);
    record.metrics.iter().filter_map(|metric| metric.until).chain(gauges).chain(expressions).max()
}
