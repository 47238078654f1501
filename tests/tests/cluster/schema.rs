//! What the API server takes and refuses by the definitions alone: each rule says what to write instead, and whatever
//! the schema admits, our types can read.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::{
    AnalysisTemplate, ClusterAnalysisTemplate, MetricSource, Rollout, RolloutAction, RolloutRun,
};
use davylamp_tests::cluster::{documents, dynamic};
use davylamp_tests::root;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::shared::{World, world};

const PERCENTAGE: &str = "write a percentage from 0% to 100% with at most two decimals, like \"2.5%\"";
const DURATION: &str = "write a duration of at most 1000h, like \"90s\" or \"1h30m\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_of_the_definitions_says_what_to_write_instead() -> Result<()> {
    let world = world("rules").await?;
    let mut unproven = rules()?;
    for (object, expected) in broken() {
        let refused = world.create(&object).await.err().with_context(|| format!("{expected}: {object}"))?;
        ensure!(format!("{refused:#}").contains(expected), "not {expected}: {refused:#}");
        unproven.remove(expected);
    }
    let immutable = [
        (rollout(), json!({"spec": {"selector": {"matchLabels": {"app": "shop", "x": "y"}}}})),
        (action(), json!({"spec": {"reason": "another"}})),
        (run(), json!({"spec": {"attempt": 2}})),
    ];
    for (object, change) in immutable {
        let api = dynamic(&world.client, &object, Some(&world.namespace)).await?;
        let there = api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let name = there.metadata.name.unwrap_or_default();
        let refused = api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await;
        let refused = refused.err().with_context(|| format!("{name} was changed"))?.to_string();
        let said = unproven.iter().find(|m| m.contains("immutable") && refused.contains(*m)).cloned();
        unproven.remove(&said.with_context(|| format!("{name}: {refused}"))?);
    }
    ensure!(unproven.is_empty(), "no test for {unproven:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn percentages_and_durations_are_read_as_the_api_server_reads_them() -> Result<()> {
    let world = world("scalars").await?;
    for text in [
        "0%", "0.01%", "2.5%", "07%", "99.99%", "100%", "100.0%", "100.00%", "", "%", "5", "-1%", "101%",
        "100.01%", "1.234%", "1e1%", " 5%", "5 %", ".5%", "5.%", "٣%",
    ] {
        let taken = world.create(&with("/spec/analysis/maxServiceImpact", json!(text))).await.is_ok();
        ensure!(taken == text.parse::<Percent>().is_ok(), "{text:?}: taken by the API server: {taken}");
    }
    for text in [
        "0s",
        "500ms",
        "90s",
        "1h30m",
        "1000h",
        "007s",
        "30m1h",
        "1h1h",
        "1000h1ms",
        "999h60m",
        "",
        "m",
        "5",
        "10 minutes",
        "-1s",
        "1.5h",
        "1us",
        "1d",
        "1001h",
        "999999999h",
        "9999999999s",
        "1h2m3s4ms",
    ] {
        let taken = world.create(&with("/spec/progressDeadline", json!(text))).await.is_ok();
        ensure!(taken == text.parse::<Duration>().is_ok(), "{text:?}: taken by the API server: {taken}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_schema_admits_can_be_read() -> Result<()> {
    let world = world("admitted").await?;
    let route = json!({"kind": "HTTPRoute", "name": "shop", "rule": "r"});
    let hold = json!({"min": "5s", "max": "6s"});
    let step = json!({"weight": "5%", "replicas": 1, "hold": hold, "approval": {"timeout": "1h", "onTimeout": "keep"}});
    let given = json!({
        "selector": {"matchLabels": {"app": "shop"}},
        "template": rollout()["spec"]["template"],
        "service": "shop", "services": {"stable": "a", "canary": "b"},
        "strategy": {"canary": {"steps": [step]}, "traffic": [{"gatewayAPI": {"routes": [route]}}]},
        "url": "https://prometheus:9090", "podLabel": "pod", "namespaceLabel": "namespace",
        "replicaLabels": ["cluster"],
        "ca": {"pem": ""}, "authentication": {"oauth2": {"tokenUrl": "https://login/token", "clientId": "a",
        "clientSecret": {"name": "a", "key": "b"}, "scopes": ["a"], "parameters": {"key": "b"}, "tls": {}}},
        "headers": [{"name": "X-A", "secret": {"name": "a", "key": "b"}}], "header": "X-Scope-OrgID",
        "ratio": {"histogram": "a", "slowerThan": "5s"}, "count": {"events": "a", "exposure": "a"},
        "cohort": {"by": "service", "label": "a", "form": "name", "namespaceLabel": "exported_namespace"}, "verb": "promote", "hash": "0",
    });
    let mut tried = 0;
    tried += world.admits::<Rollout>("rollouts", &rollout(), &given).await?;
    tried += world.admits::<RolloutAction>("rolloutactions", &action(), &given).await?;
    tried += world.admits::<RolloutRun>("rolloutruns", &run(), &given).await?;
    tried += world.admits::<MetricSource>("metricsources", &source(), &given).await?;
    let of_count = template("AnalysisTemplate", &json!([]));
    tried += world.admits::<AnalysisTemplate>("analysistemplates", &of_count, &given).await?;
    let of_distribution = template("ClusterAnalysisTemplate", &json!([]));
    tried +=
        world.admits::<ClusterAnalysisTemplate>("clusteranalysistemplates", &of_distribution, &given).await?;
    ensure!(tried > 500, "only {tried} objects were admitted");
    Ok(())
}

impl World {
    /// As far as the API server can tell.
    async fn create(&self, object: &Value) -> Result<DynamicObject> {
        let api = dynamic(&self.client, object, Some(&self.namespace)).await?;
        let params = PostParams { dry_run: true, ..PostParams::default() };
        Ok(api.create(&params, &serde_json::from_value(object.clone())?).await?)
    }

    /// Changes each field of a full object, one at a time, to what its schema allows at its limits. Whatever the API
    /// server takes must be read. Gives how many it took.
    async fn admits<K: DeserializeOwned>(&self, file: &str, object: &Value, given: &Value) -> Result<usize> {
        let schema = schema(file)?;
        let api = dynamic(&self.client, object, Some(&self.namespace)).await?;
        let there = api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await?;
        let name = there.metadata.name.unwrap_or_default();
        let mut taken = 0;
        for part in ["spec", "status"] {
            let Some(schema) = schema.pointer(&format!("/properties/{part}")) else { continue };
            let mut full = full(schema, given);
            // What is opaque to the schema is the controller's own.
            for opaque in ["strategy", "analysis"].iter().filter(|_| file == "rolloutruns" && part == "spec")
            {
                full[*opaque] = run()["spec"][*opaque].clone();
            }
            if part == "spec" {
                one_kind_of_metric(file, &mut full);
            }
            let mut variants = vec![full.clone()];
            vary(schema, &full, &mut |changed| variants.push(changed));
            for variant in variants {
                let answer = if part == "spec" {
                    let mut object = object.clone();
                    object["metadata"]["name"] = json!("other");
                    object["spec"] = variant.clone();
                    self.create(&object).await
                } else {
                    let patch = json!([{"op": "add", "path": "/status", "value": variant}]);
                    let params = PatchParams { dry_run: true, ..PatchParams::default() };
                    let patch = Patch::Json::<()>(serde_json::from_value(patch)?);
                    api.patch_status(&name, &params, &patch).await.map_err(Into::into)
                };
                if taken == 0 {
                    answer.as_ref().map_err(|e| anyhow::anyhow!("{file}: {part} {variant}: {e:#}"))?;
                }
                if let Ok(object) = answer {
                    taken += 1;
                    let object = serde_json::to_value(object)?;
                    serde_json::from_value::<K>(object)
                        .with_context(|| format!("{file} {part}: {variant}"))?;
                }
            }
        }
        Ok(taken)
    }
}

/// The ratio in a Rollout, the other kinds in templates.
fn one_kind_of_metric(file: &str, spec: &mut Value) {
    let (kind, only) = match file {
        "analysistemplates" => ("count", "goal"),
        "clusteranalysistemplates" => ("distribution", ""),
        _ => ("ratio", "floor"),
    };
    for path in ["/metrics/0", "/analysis/metrics/0"] {
        if let Some(metric) = spec.pointer_mut(path).and_then(Value::as_object_mut) {
            metric.retain(|name, _| match name.as_str() {
                "ratio" | "count" | "distribution" | "gauge" | "throughput" | "expression" => name == kind,
                "goal" | "floor" => name == only,
                _ => true,
            });
        }
    }
}

/// A value with every property of the schema; what it cannot guess is given by its name.
fn full(schema: &Value, given: &Value) -> Value {
    match schema["type"].as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            let one = |(name, schema): (&String, &Value)| {
                let fits = |value: &&Value| {
                    (value.is_string(), value.is_object())
                        == (schema["type"] == "string", schema["type"] == "object")
                };
                let value = given.get(name).filter(fits);
                (name.clone(), value.cloned().unwrap_or_else(|| full(schema, given)))
            };
            let mut object: serde_json::Map<_, _> = properties.iter().map(one).collect();
            if let Some(each) = schema.get("additionalProperties").filter(|each| each.is_object()) {
                object.insert("key".to_owned(), full(each, given));
            }
            object.into()
        }
        Some("array") => {
            let count = schema["minItems"].as_u64().unwrap_or(1).max(1);
            (0..count).map(|_| full(&schema["items"], given)).collect()
        }
        Some("integer") => bound(schema, "minimum").unwrap_or_else(|| json!(1)),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        _ if schema["enum"].is_array() => schema["enum"][0].clone(),
        _ if schema["format"] == "date-time" => json!("2026-01-01T00:00:00Z"),
        _ => {
            let rules = schema["x-kubernetes-validations"].to_string();
            json!(match (rules.contains("percentage"), rules.contains("duration")) {
                (true, _) => "5%",
                (_, true) => "5s",
                _ => "x",
            })
        }
    }
}

/// The value with one field changed, for each field and each of its limits.
fn vary(schema: &Value, value: &Value, each: &mut dyn FnMut(Value)) {
    for limit in limits(schema) {
        each(limit);
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let Some(inner) = value.get(name) else { continue };
        vary(schema, inner, &mut |changed| {
            let mut value = value.clone();
            value[name] = changed;
            each(value);
        });
        let mut without = value.clone();
        without.as_object_mut().and_then(|object| object.remove(name));
        each(without);
    }
    if let (Some(items), Some(inner)) = (schema.get("items"), value.get(0)) {
        vary(items, inner, &mut |changed| {
            let mut value = value.clone();
            value[0] = changed;
            each(value);
        });
    }
    if let (Some(values), Some(inner)) = (schema.get("additionalProperties"), value.get("key")) {
        vary(values, inner, &mut |changed| each(json!({"key": changed})));
    }
}

fn limits(schema: &Value) -> Vec<Value> {
    let mut limits = vec![Value::Null];
    limits.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    let (least, most) = (bound(schema, "minimum"), bound(schema, "maximum"));
    match (schema["type"].as_str(), schema["format"].as_str()) {
        // Opaque.
        (Some("object"), _)
            if schema.get("properties").is_none() && schema.get("additionalProperties").is_none() =>
        {
            limits.clear();
        }
        (Some("object"), _) => limits.push(json!({})),
        (Some("array"), _) => limits.push(json!([])),
        (Some("integer"), Some("int32")) => {
            limits.push(least.unwrap_or_else(|| json!(i32::MIN)));
            limits.push(most.unwrap_or_else(|| json!(i32::MAX)));
            limits.push(json!(2.0));
        }
        (Some("integer"), _) => {
            limits.push(least.unwrap_or_else(|| json!(i64::MIN)));
            limits.push(most.unwrap_or_else(|| json!(i64::MAX)));
        }
        (Some("number"), _) => limits.extend([json!(0), json!(-1.5), json!(1e300)]),
        (Some("string"), Some("date-time")) => {
            limits.extend(
                ["x", "2026-02-31T00:00:00Z", "0001-01-01T00:00:00Z", "2026-12-31T23:59:59.999999999+14:00"]
                    .map(Value::from),
            );
        }
        (Some("boolean"), _) => limits.push(json!(false)),
        (Some("string"), _) => {
            let longest = usize::try_from(schema["maxLength"].as_u64().unwrap_or(64)).unwrap_or(64);
            limits.extend([json!(""), json!("x"), json!("a".repeat(longest))]);
        }
        _ => {}
    }
    limits
}

/// As a whole number: the definitions write 0 as 0.0.
fn bound(schema: &Value, name: &str) -> Option<Value> {
    #[allow(clippy::cast_possible_truncation, reason = "at most some thousands")]
    schema.get(name).and_then(Value::as_f64).map(|bound| json!(bound as i64))
}

fn schema(plural: &str) -> Result<Value> {
    let text = std::fs::read_to_string(root().join(format!("deploy/crds/{plural}.yaml")))?;
    let crd = documents(&text)?.into_iter().next().context("empty")?;
    Ok(crd.pointer("/spec/versions/0/schema/openAPIV3Schema").context("no schema")?.clone())
}

/// The messages of all rules.
fn rules() -> Result<BTreeSet<String>> {
    fn collect(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                let rules = object.get("x-kubernetes-validations").and_then(Value::as_array);
                into.extend(
                    rules.into_iter().flatten().filter_map(|r| Some(r["message"].as_str()?.to_owned())),
                );
                object.values().for_each(|inner| collect(inner, into));
            }
            Value::Array(list) => list.iter().for_each(|inner| collect(inner, into)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let mut messages = BTreeSet::new();
    for crd in davylamp_api::crds() {
        collect(&schema(&crd.spec.names.plural)?, &mut messages);
    }
    Ok(messages)
}

/// Objects that break one rule each, and what they are told.
fn broken() -> Vec<(Value, &'static str)> {
    let name = "metadata.name: use at most 45 lower-case letters, digits and '-', beginning with a letter: Services and pods are named after it";
    let step = "spec.strategy.canary.steps[].weight: write more than 0% and less than 100%; the way to 100% follows the last step by itself";
    let steps = "/spec/strategy/canary/steps";
    let mut broken = vec![
        (with("/metadata/name", json!("a".repeat(46))), name),
        (with("/metadata/name", json!("1shop")), name),
        (with("/metadata/name", json!("a.shop")), name),
        (
            with("/spec/selector/matchLabels/app", json!("other")),
            "spec.selector.matchLabels: write each of these labels, with the same value, in spec.template.metadata.labels as well",
        ),
        (
            with("/spec/services", json!({"stable": "shop"})),
            "spec.services.stable: name another Service than spec.service, which stays yours; leave it out for <name>-stable",
        ),
        (
            with("/spec/services", json!({"canary": "shop"})),
            "spec.services.canary: name another Service than spec.service, which stays yours; leave it out for <name>-canary",
        ),
        (
            with("/spec/services", json!({"stable": "x", "canary": "x"})),
            "spec.services: name two different Services for stable and canary",
        ),
        (
            with("/spec/service", json!("shop-stable")),
            "spec.service: <name>-stable is the Service that the controller owns; name your own Service here, or set spec.services.stable",
        ),
        (
            with("/spec/service", json!("shop-canary")),
            "spec.service: <name>-canary is the Service that the controller owns; name your own Service here, or set spec.services.canary",
        ),
        (with(steps, json!([{"weight": "0%"}])), step),
        (with(steps, json!([{"weight": "100%"}])), step),
        (
            with(steps, json!([{"weight": "30%"}, {"weight": "10%"}])),
            "spec.strategy.canary.steps[].weight: each step's weight must be higher than the one before; sort the steps",
        ),
        (with("/spec/progressDeadline", json!("10 minutes")), DURATION),
        (with("/spec/analysis/hold/min", json!("1d")), DURATION),
        (with("/spec/analysis/warmup", json!("1001h")), DURATION),
        (
            with("/spec/analysis/calibration", json!({"history": "25h"})),
            "spec.analysis.calibration.history: write a duration of at most 24h, or 0s to learn nothing",
        ),
        (with("/spec/analysis/falseRollbackRate", json!("0.01")), PERCENTAGE),
        (with("/spec/analysis/maxServiceImpact", json!("0.5")), PERCENTAGE),
        (with("/spec/analysis/trafficSplit", json!({"tolerance": "0.3"})), PERCENTAGE),
        (with(steps, json!([{"weight": "5"}])), PERCENTAGE),
        (
            without("/spec/analysis", "source"),
            "spec.analysis.source: name the MetricSource that holds the metrics",
        ),
    ];
    let source = "spec.analysis.source: name the MetricSource that holds the metrics";
    let templates = json!([{"scope": "Namespace", "name": "a"}]);
    broken.push((with("/spec/analysis", json!({"presets": ["http"]})), source));
    broken.push((with("/spec/analysis", json!({"templates": templates})), source));
    let growth = json!([{"name": "errors", "gauge": {"query": "a", "compare": "growth"}, "role": "gating"}]);
    broken.push((
        with("/spec/analysis/metrics", growth),
        "spec.analysis.metrics[].role: write informational, or leave it out: a growth decides only with spec.strategy.canary.baseline: fresh, for other pods are of another age",
    ));
    let slo = "spec.analysis.slos[].metric: name a metric of spec.analysis.metrics that is a ratio";
    broken.push((with("/spec/analysis/slos", json!([{"metric": "another", "objective": "99%"}])), slo));
    let ratio = "metrics[].ratio: write events and total, or histogram and slowerThan";
    for neither in [
        json!({}),
        json!({"events": "a"}),
        json!({"slowerThan": "1s"}),
        json!({"events": "a", "total": "b", "histogram": "c", "slowerThan": "1s"}),
        json!({"events": "a", "total": "b", "slowerThan": "1s"}),
    ] {
        broken.push((with("/spec/analysis/metrics", json!([{"name": "errors", "ratio": neither}])), ratio));
    }
    let action = |spec: Value| {
        let mut action = action();
        action["spec"] = spec;
        action["spec"]["rollout"] = json!("shop");
        action
    };
    let run = "spec.run: name the run that you mean, as in .status.run of the Rollout; a late word must not hit another one";
    broken.push((action(json!({"verb": "abort"})), run));
    let step = "spec.step: name the step that you promote, as in .status.step.index, or write full: true for all of them";
    broken.push((action(json!({"verb": "promote", "run": "shop-2-1"})), step));
    let promote = "spec.full and spec.step: only the verb promote takes them";
    broken.push((action(json!({"verb": "abort", "run": "shop-2-1", "full": true})), promote));
    broken.extend(broken_sources());
    broken.extend(broken_templates());
    broken
}

fn broken_templates() -> Vec<(Value, &'static str)> {
    let ratio = json!({"events": "a", "total": "b"});
    let count = json!({"events": "a", "exposure": "b"});
    let one = "metrics[]: write one of ratio, count, throughput, distribution, gauge and expression";
    let of_pods =
        "metrics[].cohort: write by: pod, or leave it out: a gauge and a count per podSeconds are of pods";
    let limits = "metrics[].expression: leave out tolerance and maxServiceImpact: max and min are its limits";
    let labels = "metrics[].cohort: write label with by: labels, label and form with by: service, and neither with by: pod, whose labels are the MetricSource's";
    let inside = "metrics[].cohort.namespaceLabel: leave it out: Traefik names the namespace in the label of the Service";
    let both = "metrics[].expression: write max, min or both";
    let order = "metrics[].expression.min: write no more than max";
    let by_service = json!({"by": "service"});
    let cohort = |cohort: Value| json!({"name": "a", "ratio": ratio, "cohort": cohort});
    let expression = |limits: Value| {
        let mut expression = json!({"query": "a"});
        expression.as_object_mut().into_iter().for_each(|one| {
            one.extend(limits.as_object().cloned().unwrap_or_default());
        });
        json!({"name": "a", "expression": expression})
    };
    let mut tolerant = expression(json!({"max": 1}));
    tolerant["tolerance"] = json!("5%");
    let goal = "metrics[].goal: leave it out here: only a count has a goal; of all else less is better";
    let floor = "metrics[].floor: leave it out here: only a ratio and a count per podSeconds have a floor";
    let exposure =
        "metrics[].count: write exposure or per, not both; neither of them for the share of the traffic";
    let compare = "metrics[].gauge.compare: write level, or leave it out: with dividedBy there is no growth";
    let broken = |metric: Value, rule: &'static str| {
        ["AnalysisTemplate", "ClusterAnalysisTemplate"].map(|kind| (template(kind, &json!([metric])), rule))
    };
    [
        broken(json!({"name": "a"}), one),
        broken(json!({"name": "a", "ratio": ratio, "count": count}), one),
        broken(json!({"name": "a", "ratio": ratio, "goal": "higher"}), goal),
        broken(json!({"name": "a", "count": count, "floor": "1%"}), floor),
        broken(json!({"name": "a", "count": count, "role": "critical", "tolerance": "0.1"}), PERCENTAGE),
        broken(
            json!({"name": "a", "count": {"events": "a", "exposure": "b", "per": "podSeconds"}}),
            exposure,
        ),
        broken(json!({"name": "a", "count": count, "gauge": {"query": "a"}}), one),
        broken(json!({"name": "a", "gauge": {"query": "a", "dividedBy": "b", "compare": "growth"}}), compare),
        broken(json!({"name": "a", "gauge": {"query": "a"}, "cohort": by_service}), of_pods),
        broken(
            json!({"name": "a", "count": {"events": "a", "per": "podSeconds"}, "cohort": by_service}),
            of_pods,
        ),
        broken(cohort(json!({"by": "pod", "label": "pod"})), labels),
        broken(cohort(json!({"by": "labels"})), labels),
        broken(cohort(json!({"by": "labels", "label": "version", "form": "name"})), labels),
        broken(
            cohort(json!({"by": "service", "form": "traefik", "namespaceLabel": "exported_namespace"})),
            inside,
        ),
        broken(expression(json!({})), both),
        broken(expression(json!({"max": 1, "min": 2})), order),
        broken(tolerant, limits),
        broken(json!({"name": "a", "throughput": {"requests": "a"}, "goal": "higher"}), goal),
        broken(json!({"name": "a", "throughput": {"requests": "a"}, "ratio": ratio}), one),
    ]
    .concat()
}

fn broken_sources() -> Vec<(Value, &'static str)> {
    let broken = |rule: &'static str, changes: Value| {
        let mut source = source();
        source["spec"]["url"] = json!("https://prometheus");
        for (field, value) in changes.as_object().into_iter().flatten() {
            source["spec"][field] = value.clone();
        }
        (source, rule)
    };
    let key = json!({"name": "a", "key": "b"});
    let bearer = json!({"token": key});
    let oauth2 = |url: &str| json!({"tokenUrl": url, "clientId": "a", "clientSecret": key});
    let mut tls_by_http = oauth2("http://login/token");
    tls_by_http["tls"] = json!({});
    let plain = "http://prometheus";
    let url = "spec.url: write the base address without user, query or fragment, like http://prometheus.monitoring:9090";
    let https = "spec.url: write https://, for credentials can be read on the way; or accept that with insecureCredentials: true";
    let ca = "tls.ca: write either pem or secret";
    let one = "spec.authentication: write one of basic, bearer and oauth2";
    let token = "spec.authentication.oauth2.tokenUrl: write an address without user or fragment, like https://login.example.com/oauth2/token";
    let value = "spec.headers[]: write either value or secret";
    let header =
        "spec.headers[].name: this one is the controller's own; credentials stand in spec.authentication";
    let timeout = "spec.limits.timeout: write a duration from 1s to 1m";
    let mut all = vec![
        broken(
            "spec.allowedNamespaces: list the namespaces that may use this source, or write [\"*\"]",
            json!({"allowedNamespaces": []}),
        ),
        broken(DURATION, json!({"scrapeInterval": "15"})),
        broken(
            "spec.tls: it is used with https only: write spec.url with https://",
            json!({"url": plain, "tls": {}}),
        ),
        broken(ca, json!({"tls": {"ca": {}}})),
        broken(ca, json!({"tls": {"ca": {"pem": "", "secret": key}}})),
        broken(https, json!({"url": plain, "authentication": {"bearer": bearer}})),
        broken(https, json!({"url": plain, "headers": [{"name": "X-A", "secret": key}]})),
        broken(
            https,
            json!({"url": plain, "authentication": {"bearer": bearer}, "insecureCredentials": false}),
        ),
        broken(
            "spec.authentication.oauth2.tokenUrl: write https://, for credentials can be read on the way; or accept that with insecureCredentials: true",
            json!({"authentication": {"oauth2": oauth2("http://login/token")}}),
        ),
        broken(
            "spec.authentication.oauth2.tls: it is used with https only: write tokenUrl with https://",
            json!({"insecureCredentials": true, "authentication": {"oauth2": tls_by_http}}),
        ),
        broken(token, json!({"authentication": {"oauth2": oauth2("https://me@login/token")}})),
        broken(token, json!({"authentication": {"oauth2": oauth2("login/token")}})),
        broken(one, json!({"authentication": {}})),
        broken(one, json!({"authentication": {"bearer": bearer, "oauth2": oauth2("https://login")}})),
        broken(value, json!({"headers": [{"name": "X-A"}]})),
        broken(value, json!({"headers": [{"name": "X-A", "value": "a", "secret": key}]})),
        broken(
            "spec.tenant.header: this one is the controller's own; write one like X-Scope-OrgID",
            json!({"tenant": {"header": "Host", "value": "a"}}),
        ),
        broken(timeout, json!({"limits": {"timeout": "500ms"}})),
        broken(timeout, json!({"limits": {"timeout": "1h"}})),
    ];
    for wrong in
        ["prometheus:9090", "http://me:secret@prometheus", "http://prometheus?a=b", "http://prometheus#x"]
    {
        all.push(broken(url, json!({"url": wrong})));
    }
    for name in ["host", "Authorization", "Content-Length", "TE", "proxy-authorization", "Transfer-Encoding"]
    {
        all.push(broken(header, json!({"headers": [{"name": name, "value": "a"}]})));
    }
    all
}

fn rollout() -> Value {
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "shop"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "shop"}},
            "template": {
                "metadata": {"labels": {"app": "shop"}},
                "spec": {"containers": [{"name": "app", "image": "none"}]},
            },
            "service": "shop",
            "strategy": {
                "canary": {"steps": [{"weight": "10%"}, {"weight": "30%"}]},
                "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}],
            },
            "analysis": {
                "source": "default",
                "hold": {"min": "5s"},
                "metrics": [{"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}}],
            },
        },
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let (path, field) = pointer.rsplit_once('/').unwrap_or_default();
    let mut rollout = rollout();
    if let Some(object) = rollout.pointer_mut(path) {
        object[field] = value;
    }
    rollout
}

fn without(path: &str, field: &str) -> Value {
    let mut rollout = rollout();
    rollout.pointer_mut(path).and_then(Value::as_object_mut).and_then(|object| object.remove(field));
    rollout
}

fn action() -> Value {
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "RolloutAction", "metadata": {"name": "said"},
        "spec": {"rollout": "nothing", "verb": "retry"},
    })
}

fn run() -> Value {
    let spec = &rollout()["spec"];
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "RolloutRun", "metadata": {"name": "nothing-1-1"},
        "spec": {
            "rollout": "nothing", "revision": 1, "hash": "0", "attempt": 1, "version": 1,
            "strategy": spec["strategy"], "analysis": spec["analysis"],
        },
    })
}

fn template(kind: &str, metrics: &Value) -> Value {
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": kind, "metadata": {"name": "schema"},
        "spec": {"args": [{"name": "a"}], "metrics": metrics},
    })
}

fn source() -> Value {
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "MetricSource", "metadata": {"name": "schema"},
        "spec": {"url": "http://prometheus:9090", "allowedNamespaces": ["nobody"]},
    })
}
