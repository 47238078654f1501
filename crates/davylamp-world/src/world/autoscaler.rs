//! What the controller of `HorizontalPodAutoscaler`s does: [`Autoscalers`] compares the requests that an object's pods get
//! with those that each should, and writes the object's `scale`, whatever its kind. Knows one metric of pods.

use std::collections::{BTreeMap, VecDeque};

use http::Method;
use serde_json::{Value, json};

use super::workloads::{Life, Look, condition, key_of, number, table, time};
use crate::selector::Labels;
use crate::server::write::text;
use crate::store::Key;

const METRIC: &str = "http_requests_per_second";
const BY: &str = "horizontal-pod-autoscaler";
/// Between two looks, in ms.
const PERIOD: i64 = 15_000;
/// Scrapes that are older say nothing, in ms.
const WINDOW: i64 = 60_000;
/// So far from the target nothing is done.
const TOLERANCE: f64 = 0.1;
/// For how long a smaller size must be right before it is taken, in seconds, if nothing else is said.
const CALM: i64 = 300;

/// All autoscalers.
#[derive(Debug, Default)]
pub(super) struct Autoscalers(BTreeMap<Key, Autoscaler>);

#[derive(Debug, Default)]
struct Autoscaler {
    due: i64,
    /// Sizes that were right, and when.
    right: VecDeque<(i64, i64)>,
}

/// What one look came to.
struct Verdict {
    size: i64,
    /// The mean of what was measured.
    mean: Option<f64>,
    able: (&'static str, String),
    active: Result<(), (&'static str, String)>,
    limited: Option<(&'static str, &'static str)>,
}

impl Autoscalers {
    /// Does all that is due; gives when there is more, in ms since 1970.
    pub(super) fn look(&mut self, look: &Look<'_>, pods: &BTreeMap<Key, Life>) -> i64 {
        let objects = look.server.all(&table("autoscaling", "horizontalpodautoscalers"));
        self.0.retain(|key, _| objects.iter().any(|object| key_of(object) == *key));
        for object in &objects {
            let known = self.0.entry(key_of(object)).or_default();
            if look.now >= known.due {
                known.due = look.now + PERIOD;
                known.scale(object, look, pods);
            }
        }
        self.0.values().map(|known| known.due).min().unwrap_or(i64::MAX)
    }
}

impl Autoscaler {
    fn scale(&mut self, object: &Value, look: &Look<'_>, pods: &BTreeMap<Key, Life>) {
        let (namespace, name) = key_of(object);
        let before = &object["status"];
        let mut status = json!({"desiredReplicas": number(before, "/desiredReplicas").unwrap_or(0)});
        for (from, field) in [
            (&object["metadata"]["generation"], "observedGeneration"),
            (&before["currentReplicas"], "currentReplicas"),
            (&before["lastScaleTime"], "lastScaleTime"),
        ] {
            if !from.is_null() {
                status[field] = from.clone();
            }
        }
        let path = path(object, &namespace, look);
        let scale =
            path.as_ref().ok_or_else(|| "the target's kind is not known".to_owned()).and_then(|path| {
                let scale = look.server.ask(BY, &Method::GET, path, Value::Null);
                scale.map(Option::unwrap_or_default).map_err(|refusal| refusal.message)
            });
        let condition = |type_: &str, is: bool, reason: &str, message: &str| {
            condition(before, type_, is, (reason, message), look)
        };
        match scale {
            Err(message) => {
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {message}");
                status["conditions"] = json!([condition("AbleToScale", false, "FailedGetScale", &message)]);
            }
            Ok(scale) => {
                let is = number(&scale, "/spec/replicas").unwrap_or(0);
                let Verdict { size, mean, able, active, limited } =
                    self.judge(object, is, text(&scale, "/status/selector"), look, pods);
                if size != is {
                    let body = json!({"spec": {"replicas": size}});
                    look.write(BY, &Method::PATCH, path.as_deref().unwrap_or_default(), body);
                    status["lastScaleTime"] = time(look.now).into();
                }
                status["currentReplicas"] = is.into();
                status["desiredReplicas"] = size.into();
                if let Some(mean) = mean {
                    status["currentMetrics"] = json!([{"type": "Pods", "pods": {
                        "metric": {"name": METRIC}, "current": {"averageValue": quantity(mean)},
                    }}]);
                }
                let counted = format!(
                    "the HPA was able to successfully calculate a replica count from pods metric {METRIC}"
                );
                let within = ("DesiredWithinRange", "the desired count is within the acceptable range");
                let (reason, message) = limited.unwrap_or(within);
                let mut conditions = vec![condition("AbleToScale", true, able.0, &able.1)];
                match active {
                    Ok(()) => {
                        conditions.push(condition("ScalingActive", true, "ValidMetricFound", &counted));
                        conditions.push(condition("ScalingLimited", limited.is_some(), reason, message));
                    }
                    Err((reason, message)) => {
                        conditions.push(condition("ScalingActive", false, reason, &message));
                    }
                }
                status["conditions"] = conditions.into();
            }
        }
        if *before != status {
            let path =
                format!("/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/{name}/status");
            let mut changed = object.clone();
            changed["status"] = status;
            look.write(BY, &Method::PUT, &path, changed);
        }
    }

    fn judge(
        &mut self,
        object: &Value,
        is: i64,
        selector: &str,
        look: &Look<'_>,
        pods: &BTreeMap<Key, Life>,
    ) -> Verdict {
        let least = number(object, "/spec/minReplicas").unwrap_or(1);
        let most = number(object, "/spec/maxReplicas").unwrap_or(i64::MAX);
        let ready = || ("ReadyForNewScale", "recommended size matches current size".to_owned());
        let scaled = |size: i64| {
            if size == is {
                return ready();
            }
            ("SucceededRescale", format!("the HPA controller was able to update the target scale to {size}"))
        };
        let mut verdict = Verdict { size: is, mean: None, able: ready(), active: Ok(()), limited: None };
        if is == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            verdict.active = Err(("ScalingDisabled", message.to_owned()));
            return verdict;
        }
        let rates = rates(&key_of(object).0, selector, look, pods);
        let known: Vec<f64> = rates.iter().flatten().copied().collect();
        let mean = mean(&known);
        verdict.mean = mean;
        let (Some(target), Some(mean)) = (target(object), mean) else {
            let message =
                format!("unable to get metric {METRIC}: no metrics returned from custom metrics API");
            verdict.active = Err(("FailedGetPodsMetric", message));
            verdict.size = is.clamp(least, most.max(least));
            verdict.able = scaled(verdict.size);
            return verdict;
        };
        let right = right(&known, rates.len(), mean / target, target, is);
        let steady = self.steady(object, right, is, look.now);
        // At most twice as many, or four more, in one look.
        let reach = (2 * is).max(is + 4);
        let size = steady.min(reach).clamp(least, most.max(least));
        verdict.size = size;
        verdict.limited = match () {
            () if steady < least => {
                Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count"))
            }
            () if steady > most => {
                Some(("TooManyReplicas", "the desired replica count is more than the maximum replica count"))
            }
            () if steady > reach => Some((
                "ScaleUpLimit",
                "the desired replica count is increasing faster than the maximum scale rate",
            )),
            () => None,
        };
        verdict.able = if steady > right {
            let message = "recent recommendations were higher than current one, applying the highest recent \
                           recommendation";
            ("ScaleDownStabilized", message.to_owned())
        } else {
            scaled(size)
        };
        verdict
    }

    /// The size after all that was right lately.
    fn steady(&mut self, object: &Value, right: i64, is: i64, now: i64) -> i64 {
        let window = |way: &str, usual: i64| {
            let path = format!("/spec/behavior/{way}/stabilizationWindowSeconds");
            now - 1_000 * number(object, &path).unwrap_or(usual)
        };
        let (up, down) = (window("scaleUp", 0), window("scaleDown", CALM));
        if self.right.is_empty() {
            self.right.push_back((now, is));
        }
        self.right.retain(|(at, _)| *at > up.min(down));
        let lately = |since: i64| self.right.iter().filter(move |(at, _)| *at > since).map(|(_, size)| *size);
        let (low, high) = (lately(up).fold(right, i64::min), lately(down).fold(right, i64::max));
        self.right.push_back((now, right));
        is.max(low).min(high)
    }
}

/// Where the target's scale is.
fn path(object: &Value, namespace: &str, look: &Look<'_>) -> Option<String> {
    let target = object.pointer("/spec/scaleTargetRef")?;
    let group = text(target, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    let state = look.server.state();
    let kind = state.kinds.of_kind(group, text(target, "/kind"))?;
    let name = text(target, "/name");
    Some(format!("/apis/{group}/{}/namespaces/{namespace}/{}/{name}/scale", kind.version, kind.plural))
}

/// What each pod should get a second.
fn target(object: &Value) -> Option<f64> {
    let metrics = object.pointer("/spec/metrics").and_then(Value::as_array)?;
    let metric = metrics.iter().find(|metric| text(metric, "/pods/metric/name") == METRIC)?;
    let value = metric.pointer("/pods/target/averageValue")?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let scaled = |unit: char, factor: f64| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor);
    let value = scaled('m', 0.001).or_else(|| scaled('k', 1_000.0)).or_else(|| text.parse().ok());
    value.filter(|value| *value > 0.0)
}

/// Of a number, in thousandths.
fn quantity(value: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "requests a second")]
    let thousandths = (value * 1_000.0).round() as i64;
    if thousandths % 1_000 == 0 { (thousandths / 1_000).to_string() } else { format!("{thousandths}m") }
}

#[allow(clippy::cast_precision_loss, reason = "a number of pods")]
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Requests a second of each pod that runs; None: not known yet.
fn rates(namespace: &str, selector: &str, look: &Look<'_>, pods: &BTreeMap<Key, Life>) -> Vec<Option<f64>> {
    let Ok(selector) = Labels::parse(selector) else { return Vec::new() };
    if selector == Labels::default() {
        return Vec::new();
    }
    let objects = look.server.all(&table("", "pods"));
    let mine = objects.iter().filter(|pod| {
        key_of(pod).0 == namespace
            && selector.matches(pod)
            && pod.pointer("/metadata/deletionTimestamp").is_none()
    });
    mine.map(|pod| pods.get(&key_of(pod))?.pod.rate(look.now - WINDOW, look.now)).collect()
}

/// The size at which each pod gets what it should. Pods of which nothing is known are taken to have what changes least.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a number of pods")]
fn right(known: &[f64], all: usize, ratio: f64, target: f64, is: i64) -> i64 {
    let missing = all.saturating_sub(known.len()) as f64;
    let each = if ratio < 1.0 { target } else { 0.0 };
    let guessed = (known.iter().sum::<f64>() + missing * each) / all as f64 / target;
    if (guessed - 1.0).abs() <= TOLERANCE || (guessed < 1.0) != (ratio < 1.0) {
        return is;
    }
    let size = (guessed * all as f64).ceil() as i64;
    if (size > is) == (guessed > 1.0) { size } else { is }
}
