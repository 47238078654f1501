//! Delivers what the status says must still be told: events, records of runs, outcomes of actions; then prunes
//! history. Every delivery can be repeated; none is a condition of any transition.

use davylamp_api::RolloutStatus;
use davylamp_api::k8s_openapi::api::core::v1::ObjectReference;
use davylamp_api::labels::{self, MANAGER_STATUS};
use davylamp_api::run::{DecisionRecord, RolloutRunStatus, digest};
use davylamp_api::status::{ActionOutcome, Pending};
use davylamp_engine::observed::{baseline_of, of_baseline};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::apply::{controller_revisions, ours, replica_sets};
use crate::call::{CallError, Caller};
use crate::events::{Occurrence, Recorder, Type};
use crate::memory::Memories;
use crate::observe::{Caches, Subject};
use crate::series;

/// Decisions of one run, and bytes of them: an object of etcd may have 1.5 MB, and each write sends it whole.
const DECISIONS: usize = 200;
const BYTES: usize = 250 * 1_024;
/// How the last of them begins when there are more.
const FULL: &str = "the record is full";
/// Actions that are done go after a day, s.
const ACTION_AGE: i64 = 86_400;

/// Tells, and prunes.
#[derive(Clone, Debug)]
pub struct Outbox {
    caller: Caller,
    recorder: Recorder,
}

impl Outbox {
    /// By this caller; events by this recorder.
    #[must_use]
    pub const fn new(caller: Caller, recorder: Recorder) -> Self {
        Self { caller, recorder }
    }

    /// Tells what is pending, in order. The first that cannot be told ends it; it is tried again in the next pass.
    pub async fn deliver(
        &self,
        subject: &Subject,
        status: &RolloutStatus,
        caches: &Caches,
        memories: &Memories,
    ) -> Result<(), CallError> {
        self.outcomes(subject, status, caches).await?;
        let done = memories.get(&subject.key, &subject.uid).delivered;
        for pending in status.pending.iter().filter(|p| p.record.number > done) {
            self.tell(subject, pending).await;
            if let Some(run) = &pending.run {
                self.record(subject, run, pending).await?;
            }
            let number = pending.record.number;
            memories.update(&subject.key, &subject.uid, |m| m.delivered = number);
        }
        if let Err(error) = self.chart(subject, status, memories).await {
            warn!(%error, "the series of a run were not written");
        }
        Ok(())
    }

    /// What was counted since the last time, with each checkpoint.
    async fn chart(
        &self,
        subject: &Subject,
        status: &RolloutStatus,
        memories: &Memories,
    ) -> Result<(), CallError> {
        let until = series::until(status.analysis.as_ref());
        let charted = memories.get(&subject.key, &subject.uid).charted;
        let (Some(run), Some(analysis)) = (&status.run, &status.analysis) else { return Ok(()) };
        if until <= charted {
            return Ok(());
        }
        self.edit(subject, run, |status, _| series::add(&mut status.series, analysis)).await?;
        memories.update(&subject.key, &subject.uid, |m| m.charted = until);
        Ok(())
    }

    async fn tell(&self, subject: &Subject, pending: &Pending) {
        let record = &pending.record;
        let regarding = ObjectReference {
            api_version: Some(format!("{}/{}", labels::GROUP, labels::VERSION)),
            kind: Some("Rollout".to_owned()),
            name: Some(subject.key.name.clone()),
            namespace: Some(subject.key.namespace.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        };
        // The uid keeps the names of a re-created Rollout apart.
        let incarnation = subject.uid.split('-').next().unwrap_or_default();
        let occurrence = Occurrence {
            name: format!("{}.{incarnation}.{}", subject.key.name, record.number),
            type_: if pending.warning { Type::Warning } else { Type::Normal },
            reason: record.rule.clone(),
            action: record.to.clone(),
            note: record.message.clone(),
            at: record.at,
        };
        self.recorder.publish(&regarding, &occurrence).await;
    }

    async fn record(&self, subject: &Subject, run: &str, pending: &Pending) -> Result<(), CallError> {
        let there = self.edit(subject, run, |status, spec| append(status, pending, spec)).await?;
        if there && pending.outcome.is_some() {
            let api = self.api(subject, &ours("RolloutRun", "rolloutruns"));
            let patch = json!({"metadata": {"labels": {labels::ACTIVE: null}}});
            let params =
                PatchParams { field_manager: Some(MANAGER_STATUS.to_owned()), ..PatchParams::default() };
            self.caller.call("patch RolloutRun", api.patch(run, &params, &Patch::Merge(&patch))).await?;
        }
        Ok(())
    }

    /// Changes the record of a run, if `change` says that it has; false when there is no such run.
    async fn edit(
        &self,
        subject: &Subject,
        run: &str,
        change: impl FnOnce(&mut RolloutRunStatus, &Value) -> bool,
    ) -> Result<bool, CallError> {
        let api = self.api(subject, &ours("RolloutRun", "rolloutruns"));
        let Some(mut there) = self.caller.call("get RolloutRun", api.get_opt(run)).await? else {
            return Ok(false);
        };
        let status = there.data.get("status").cloned();
        let status = status.map_or_else(|| Ok(RolloutRunStatus::default()), serde_json::from_value);
        match status {
            Ok(mut status) => {
                if change(&mut status, &there.data["spec"]) {
                    there.data["status"] = serde_json::to_value(&status).unwrap_or_default();
                    let manager = Some(MANAGER_STATUS.to_owned());
                    let params = PostParams { field_manager: manager, ..PostParams::default() };
                    let replace = api.replace_status(run, &params, &there);
                    self.caller.call("replace RolloutRunStatus", replace).await?;
                }
            }
            Err(error) => warn!(run, %error, "the record of a run cannot be read: nothing is added to it"),
        }
        Ok(true)
    }

    async fn outcomes(
        &self,
        subject: &Subject,
        status: &RolloutStatus,
        caches: &Caches,
    ) -> Result<(), CallError> {
        let api = self.api(subject, &ours("RolloutAction", "rolloutactions"));
        for ActionOutcome { uid, name, phase, message, at } in &status.actions {
            let key = crate::key::Key { namespace: subject.key.namespace.clone(), name: name.clone() };
            let open = |action: &davylamp_api::RolloutAction| {
                action.metadata.uid.as_deref() == Some(uid) && action.status.is_none()
            };
            if !caches.actions.get(&key).is_some_and(|action| open(&action)) {
                continue;
            }
            let patch = json!({
                "metadata": {"uid": uid},
                "status": {"phase": phase, "message": message, "at": at},
            });
            let params =
                PatchParams { field_manager: Some(MANAGER_STATUS.to_owned()), ..PatchParams::default() };
            match self
                .caller
                .call("patch RolloutActionStatus", api.patch_status(name, &params, &Patch::Merge(&patch)))
                .await
            {
                Ok(written) => {
                    if let Some(action) =
                        serde_json::to_value(written).ok().and_then(|a| serde_json::from_value(a).ok())
                    {
                        caches.actions.wrote(action);
                    }
                }
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Old revisions, runs and actions, beyond what the spec wants kept. At the end of each run, and once per process.
    pub async fn prune(
        &self,
        subject: &Subject,
        status: &RolloutStatus,
        now: davylamp_api::Instant,
        caches: &Caches,
    ) -> Result<(), CallError> {
        let Some(spec) = &subject.spec else { return Ok(()) };
        let limit = |n: Option<i32>| usize::try_from(n.unwrap_or(10)).unwrap_or(10);
        self.prune_runs(subject, limit(spec.run_history_limit)).await?;
        self.prune_revisions(subject, status, limit(spec.revision_history_limit), caches).await?;
        let old = |action: &davylamp_api::RolloutAction| {
            action.spec.rollout == subject.key.name
                && action.status.as_ref().is_some_and(|s| now.as_second() - s.at.as_second() > ACTION_AGE)
        };
        let actions = self.api(subject, &ours("RolloutAction", "rolloutactions"));
        for action in caches.actions.list(Some(&subject.key.namespace), old) {
            let name = action.metadata.name.clone().unwrap_or_default();
            self.delete(&actions, "delete RolloutAction", &name).await?;
        }
        Ok(())
    }

    async fn prune_runs(&self, subject: &Subject, keep: usize) -> Result<(), CallError> {
        let api = self.api(subject, &ours("RolloutRun", "rolloutruns"));
        let selector = format!("{}={},{}!=true", labels::ROLLOUT, subject.key.name, labels::ACTIVE);
        let params = ListParams::default().labels(&selector).limit(500);
        let mut ended = self.caller.call("list RolloutRun", api.list(&params)).await?.items;
        ended.retain(|run| crate::observe::mine(run, &subject.uid));
        ended.sort_by_key(|run| {
            let number = |field| run.data.pointer(field).and_then(serde_json::Value::as_i64).unwrap_or(0);
            std::cmp::Reverse((number("/spec/revision"), number("/spec/attempt")))
        });
        for run in ended.iter().skip(keep) {
            let name = run.metadata.name.clone().unwrap_or_default();
            self.delete(&api, "delete RolloutRun", &name).await?;
        }
        Ok(())
    }

    async fn prune_revisions(
        &self,
        subject: &Subject,
        status: &RolloutStatus,
        keep: usize,
        caches: &Caches,
    ) -> Result<(), CallError> {
        let used = [&status.stable, &status.canary].into_iter().flatten().map(|r| r.hash.as_str());
        let used: Vec<&str> = used.chain(status.old.as_ref().map(|o| o.hash.as_str())).collect();
        let there = caches.replica_sets_of(&subject.key, &subject.uid);
        // A fresh baseline is no revision, and goes with its own.
        let is_revision = |hash: &str| of_baseline(hash).is_none() && !used.contains(&hash);
        let mut idle: Vec<_> = there
            .iter()
            .filter(|(hash, set)| set.spec.replicas == Some(0) && is_revision(hash))
            .map(|(hash, set)| {
                let number = set
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|a| a.get(crate::objects::REVISION)?.parse::<i64>().ok());
                (std::cmp::Reverse(number.unwrap_or(0)), hash)
            })
            .collect();
        idle.sort();
        let sets = self.api(subject, &replica_sets());
        let revisions = self.api(subject, &controller_revisions());
        for (_, hash) in idle.iter().skip(keep) {
            let name = crate::objects::revision_name(&subject.key.name, hash);
            info!(revision = hash, "an old revision is beyond revisionHistoryLimit");
            let baseline = baseline_of(hash);
            if there.contains_key(&baseline) {
                let name = crate::objects::revision_name(&subject.key.name, &baseline);
                self.delete(&sets, "delete ReplicaSet", &name).await?;
            }
            self.delete(&sets, "delete ReplicaSet", &name).await?;
            self.delete(&revisions, "delete ControllerRevision", &name).await?;
        }
        Ok(())
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        what: &'static str,
        name: &str,
    ) -> Result<(), CallError> {
        match self.caller.call(what, api.delete(name, &DeleteParams::background())).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn api(&self, subject: &Subject, resource: &ApiResource) -> Api<DynamicObject> {
        self.caller.api(&subject.key.namespace, resource)
    }
}

/// The record takes only higher numbers, and says when it stops growing. Each decision names the one before.
fn append(status: &mut RolloutRunStatus, pending: &Pending, spec: &Value) -> bool {
    let record = &pending.record;
    if record.number <= status.last {
        return false;
    }
    status.last = record.number;
    status.outcome = pending.outcome.clone().or_else(|| status.outcome.clone());
    let previous = status.decisions.last().map_or_else(|| digest(spec), DecisionRecord::digest);
    let record = DecisionRecord { previous_digest: Some(previous), ..record.clone() };
    if status.decisions.last().is_some_and(|last| last.gap == Some(true) && last.message.starts_with(FULL)) {
        return true;
    }
    let bytes = size(&status.decisions) + size(&record);
    if status.decisions.len() < DECISIONS && bytes <= BYTES {
        status.decisions.push(record);
        return true;
    }
    warn!(record = record.number, "the record of a run is full");
    let message = format!(
        "{FULL}: later decisions are in the events of the Rollout only; first: {}",
        record.message.chars().take(900).collect::<String>()
    );
    let (metrics, gauges, expressions, young) = Default::default();
    let rest = DecisionRecord { split: None, ..record };
    status.decisions.push(DecisionRecord {
        message,
        metrics,
        gauges,
        expressions,
        young,
        gap: Some(true),
        ..rest
    });
    true
}

fn size(part: &impl serde::Serialize) -> usize {
    serde_json::to_string(part).map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use davylamp_api::run::MetricRecord;

    use super::*;

    #[test]
    fn a_record_of_a_long_run_with_ten_metrics_stays_small_and_says_that_it_is_full() {
        let mut status = RolloutRunStatus::default();
        let metrics = vec![MetricRecord { name: "m".repeat(40), ..MetricRecord::default() }; 10];
        for number in 1..=300 {
            let message = "text ".repeat(200);
            let record =
                DecisionRecord { number, message, metrics: metrics.clone(), ..DecisionRecord::default() };
            let outcome = (number == 300).then(|| "Promoted".to_owned());
            let pending = Pending { record, run: None, warning: false, outcome };
            assert!(append(&mut status, &pending, &Value::Null));
        }
        let (last, others) = status.decisions.split_last().unwrap();
        assert!(last.message.starts_with(FULL) && others.iter().all(|one| one.gap.is_none()));
        assert!(others.len() > 50, "{}", others.len());
        assert!(size(&status) < 256 * 1_024, "{}", size(&status));
        assert_eq!((status.last, status.outcome.as_deref()), (300, Some("Promoted")));
    }
}
