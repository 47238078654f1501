//! What is simulated: files and flags in, one [`Scenario`] out. Every refusal names the file, the field, and what to write
//! instead. Runs nothing.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::{RolloutSpec, labels};
use davylamp_sim::{Event, Happening, Scenario};
use davylamp_world::{Setting, Version};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::expansion::compiled;

/// What the command line says about the world.
#[derive(Args, Clone, Debug, Default, PartialEq)]
#[command(next_help_heading = "The world")]
pub(crate) struct Flags {
    /// Requests a second
    #[arg(long, value_name = "NUMBER", value_parser = rate, allow_negative_numbers = true)]
    pub(crate) rps: Option<f64>,
    /// Requests that fail with the stable version, and with the new one unless --canary-errors is given
    #[arg(long, value_name = "PERCENT")]
    pub(crate) errors: Option<Percent>,
    /// Requests that fail with the new version
    #[arg(long, value_name = "PERCENT")]
    pub(crate) canary_errors: Option<Percent>,
    /// Median time of an answer, like 50ms
    #[arg(long, value_name = "TIME")]
    pub(crate) latency: Option<Duration>,
    /// The same, of the new version
    #[arg(long, value_name = "TIME")]
    pub(crate) canary_latency: Option<Duration>,
    /// Requests that end in a sign-up
    #[arg(long, value_name = "PERCENT")]
    pub(crate) sign_ups: Option<Percent>,
    /// The same, of the new version
    #[arg(long, value_name = "PERCENT")]
    pub(crate) canary_sign_ups: Option<Percent>,
    /// The longest that is simulated, like 1h; it ends earlier when nothing moves any more
    #[arg(long = "for", value_name = "TIME")]
    pub(crate) last: Option<Duration>,
}

pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=1e6).contains(&rate) => Ok(rate),
        _ => Err("write a number of requests a second, like 200".to_owned()),
    }
}

impl Flags {
    /// As they were written.
    pub(crate) fn words(&self) -> Vec<String> {
        let Self { rps, errors, canary_errors, latency, canary_latency, sign_ups, canary_sign_ups, last } =
            self;
        let word = |name: &str, value: Option<String>| value.map(|value| format!("--{name} {value}"));
        let text = |value: &Option<Percent>| value.map(|value| value.to_string());
        let time = |value: &Option<Duration>| value.map(|value| value.to_string());
        [
            word("rps", rps.map(|rps| rps.to_string())),
            word("errors", text(errors)),
            word("canary-errors", text(canary_errors)),
            word("latency", time(latency)),
            word("canary-latency", time(canary_latency)),
            word("sign-ups", text(sign_ups)),
            word("canary-sign-ups", text(canary_sign_ups)),
            word("for", time(last)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn apply(&self, scenario: &mut Scenario) {
        let Self { rps, errors, canary_errors, latency, canary_latency, sign_ups, canary_sign_ups, last } =
            *self;
        let stable = image(&scenario.rollout).map(str::to_owned);
        let canary = scenario.events.iter().find_map(|event| {
            if let Happening::Release(image) = &event.what { Some(image.clone()) } else { None }
        });
        let world = &mut scenario.world;
        world.users.requests_per_second = rps.unwrap_or(world.users.requests_per_second);
        let version = match stable.and_then(|image| world.versions.get_mut(&image)) {
            Some(version) => version,
            None => &mut world.default,
        };
        change(version, errors, latency, sign_ups);
        if let Some(image) = canary
            .filter(|_| canary_errors.is_some() || canary_latency.is_some() || canary_sign_ups.is_some())
        {
            let like = world.default.clone();
            change(
                world.versions.entry(image).or_insert(like),
                canary_errors,
                canary_latency,
                canary_sign_ups,
            );
        }
        scenario.last = last.unwrap_or(scenario.last);
    }
}

fn change(
    version: &mut Version,
    errors: Option<Percent>,
    latency: Option<Duration>,
    sign_ups: Option<Percent>,
) {
    version.errors = errors.unwrap_or(version.errors);
    version.latency = latency.unwrap_or(version.latency);
    version.sign_ups = sign_ups.unwrap_or(version.sign_ups);
}

/// A scenario, and what of the files has no part in it.
#[derive(Debug)]
pub(crate) struct Input {
    /// Where it comes from.
    pub(crate) name: String,
    pub(crate) scenario: Scenario,
    pub(crate) notes: Vec<String>,
}

/// Reads the files; `-` is what is typed or piped in.
pub(crate) fn read(files: &[PathBuf], flags: &Flags) -> Result<Input> {
    let mut input = parse(&texts(files)?)?;
    flags.apply(&mut input.scenario);
    Ok(input)
}

/// All objects in the files.
pub(crate) fn objects(files: &[PathBuf]) -> Result<Vec<Value>> {
    Ok(documents(&texts(files)?)?.into_iter().map(|document| document.value).collect())
}

/// With their names.
fn texts(files: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for file in files {
        let text = if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(file)
        };
        let name = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
        texts.push((text.with_context(|| name.clone())?, name));
    }
    Ok(texts)
}

/// Reads one text.
pub(crate) fn scenario(text: &str, name: &str) -> Result<Scenario> {
    Ok(parse(&[(text.to_owned(), name.to_owned())])?.scenario)
}

struct Document {
    file: String,
    value: Value,
}

fn parse(texts: &[(String, String)]) -> Result<Input> {
    let documents = documents(texts)?;
    match documents.as_slice() {
        [] => bail!("{}: nothing in it; write a scenario or a Rollout", names(texts)),
        [one] if one.value.get("kind").is_none() => {
            Ok(Input { name: one.file.clone(), scenario: typed(one)?, notes: Vec::new() })
        }
        _ => manifests(documents, texts),
    }
}

fn documents(texts: &[(String, String)]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    for (text, file) in texts {
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = Value::deserialize(document).map_err(|error| anyhow!("{file}: {error}"))?;
            match value {
                Value::Null => {}
                Value::Object(_) => flatten(value, file, &mut documents),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => bail!(
                    "{file}: neither a scenario (`rollout:` and what happens to it) nor a manifest (`kind:`)"
                ),
            }
        }
    }
    Ok(documents)
}

/// What `kubectl get -o yaml` writes of several objects is one `List`.
fn flatten(value: Value, file: &str, documents: &mut Vec<Document>) {
    match (value.get("kind").and_then(Value::as_str), value.get("items").and_then(Value::as_array)) {
        (Some("List"), Some(items)) => {
            documents
                .extend(items.iter().map(|item| Document { file: file.to_owned(), value: item.clone() }));
        }
        _ => documents.push(Document { file: file.to_owned(), value }),
    }
}

fn names(texts: &[(String, String)]) -> String {
    texts.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
}

fn typed(document: &Document) -> Result<Scenario> {
    let scenario: Scenario = serde_path_to_error::deserialize(&document.value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { format!("{path}: ") };
        anyhow!("{}: {field}{}", document.file, error.inner())
    })?;
    check(&scenario.rollout, &format!("{}: rollout", document.file))?;
    Ok(scenario)
}

/// Kinds that stand beside a Rollout in the simulation.
const BESIDE: [&str; 6] =
    ["Service", "HTTPRoute", "GRPCRoute", "MetricSource", "AnalysisTemplate", "ClusterAnalysisTemplate"];

/// The image is released a minute after one that differs from it only in its tag.
const RELEASE: Duration = Duration::from_secs(60);

/// So long a Rollout of its own is simulated: longer than four steps with their default of `hold.max`.
const LONGEST: Duration = Duration::from_secs(6 * 3_600);

fn manifests(documents: Vec<Document>, texts: &[(String, String)]) -> Result<Input> {
    let mut world = Setting::default();
    let mut rollouts = Vec::new();
    let mut objects = Vec::new();
    let mut notes = Vec::new();
    for Document { file, mut value } in documents {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, name) = (text("/kind").to_owned(), text("/metadata/name").to_owned());
        if kind.is_empty() {
            bail!("{file}: a document without `kind` beside others: give a scenario as one file, alone");
        }
        tidy(&mut value);
        if kind == "Rollout" {
            check(&value, &file)?;
            rollouts.push((file, name, value));
        } else if BESIDE.contains(&kind.as_str()) {
            if let Some(parents) = value.pointer_mut("/spec/parentRefs") {
                // Gateways of the real cluster are not here; the simulated one takes their place.
                *parents = json!([{"name": "davylamp", "namespace": "gateway"}]);
            }
            if let Some(interval) = value.pointer("/spec/scrapeInterval").and_then(Value::as_str) {
                world.scrapes.interval =
                    interval.parse().with_context(|| format!("{file}: spec.scrapeInterval"))?;
            }
            objects.push(value);
        } else {
            notes.push(format!("{file}: {kind} {name} has no part in the simulation"));
        }
    }
    if rollouts.len() > 1 {
        let found: Vec<_> = rollouts.iter().map(|(file, name, _)| format!("{name} in {file}")).collect();
        bail!("{} Rollouts ({}): give one", found.len(), found.join(", "));
    }
    let Some((file, name, mut rollout)) = rollouts.pop() else {
        bail!(
            "{}: no Rollout in it; write one, or a scenario (`rollout:` and what happens to it)",
            names(texts)
        );
    };
    let released = image(&rollout).unwrap_or_default().to_owned();
    if let Some(image) = rollout.pointer_mut(IMAGE) {
        *image = Value::String(before(&released));
    }
    if let Ok(spec) = RolloutSpec::deserialize(&rollout["spec"]) {
        let namespace = rollout.pointer("/metadata/namespace").and_then(Value::as_str);
        compiled(&name, namespace.unwrap_or("default"), &spec, &objects).context(file.clone())?;
    }
    let scenario = Scenario {
        description: format!("{name} goes from {} to {released}.", before(&released)),
        rollout,
        objects,
        world,
        last: LONGEST,
        events: vec![Event { since: None, at: RELEASE, what: Happening::Release(released) }],
        ..Scenario::default()
    };
    Ok(Input { name: file, scenario, notes })
}

const IMAGE: &str = "/spec/template/spec/containers/0/image";

fn image(rollout: &Value) -> Option<&str> {
    rollout.pointer(IMAGE)?.as_str()
}

/// What would only be refused later, in words that say less.
fn check(rollout: &Value, place: &str) -> Result<()> {
    let version = format!("{}/{}", labels::GROUP, labels::VERSION);
    match rollout.get("apiVersion").and_then(Value::as_str) {
        Some(found) if found == version => {}
        Some(found) => {
            bail!("{place}: apiVersion: a Rollout of {found}; only those of {version} are understood")
        }
        None => bail!("{place}: apiVersion: write {version}"),
    }
    if rollout.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        bail!("{place}: metadata.name: write a name");
    }
    if image(rollout).is_none_or(str::is_empty) {
        bail!("{place}: spec.template.spec.containers[0].image: write the image of the version");
    }
    Ok(())
}

/// Takes out what an API server wrote.
fn tidy(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "uid",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "managedFields",
            "ownerReferences",
            "finalizers",
        ] {
            metadata.remove(field);
        }
    }
}

/// The same image as `stable`: what users rely on before the release.
fn before(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let (name, tag) = match name.rsplit_once(':') {
        // Else it is the port of a registry.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, ""),
    };
    let stable = if tag == "stable" { "before" } else { "stable" };
    format!("{name}:{stable}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLOUT: &str = "
apiVersion: davylamp.dev/v1alpha1
kind: Rollout
metadata: {name: shop, uid: a, resourceVersion: '4'}
spec:
  selector: {matchLabels: {app: shop}}
  template: {metadata: {labels: {app: shop}}, spec: {containers: [{name: shop, image: 'shop:v2'}]}}
  service: shop
  strategy: {canary: {}, traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: shop}]}}]}
status: {phase: Healthy}
";

    fn texts(texts: &[&str]) -> Vec<(String, String)> {
        (1..).zip(texts).map(|(i, text)| ((*text).to_owned(), format!("{i}.yaml"))).collect()
    }

    fn refusal(files: &[&str]) -> String {
        format!("{:#}", parse(&texts(files)).unwrap_err())
    }

    fn indented(text: &str) -> String {
        text.replace('\n', "\n  ")
    }

    #[test]
    fn the_image_of_a_rollout_is_what_is_released() {
        let Input { scenario, notes, .. } = parse(&texts(&[ROLLOUT])).unwrap();
        assert_eq!(image(&scenario.rollout), Some("shop:stable"));
        assert_eq!(scenario.rollout["metadata"], json!({"name": "shop"}));
        assert_eq!(scenario.rollout.get("status"), None);
        assert_eq!(
            scenario.events,
            [Event { since: None, at: RELEASE, what: Happening::Release("shop:v2".to_owned()) }]
        );
        assert_eq!(notes, [""; 0]);
    }

    #[test]
    fn the_version_before_has_the_same_image_with_another_tag() {
        for (image, stable) in [
            ("shop", "shop:stable"),
            ("shop:v2", "shop:stable"),
            ("shop:stable", "shop:before"),
            ("registry:5000/team/shop", "registry:5000/team/shop:stable"),
            ("registry:5000/team/shop:v2", "registry:5000/team/shop:stable"),
            ("shop@sha256:00", "shop:stable"),
            ("shop:v2@sha256:00", "shop:stable"),
        ] {
            assert_eq!(before(image), stable);
        }
    }

    #[test]
    fn objects_beside_a_rollout_come_along_or_are_named() {
        let beside = "
kind: Service
metadata: {name: shop}
---
---
kind: HorizontalPodAutoscaler
metadata: {name: shop}
---
kind: List
items:
- {kind: HTTPRoute, metadata: {name: shop}, spec: {parentRefs: [{name: public}]}}
- {kind: MetricSource, metadata: {name: default}, spec: {scrapeInterval: 30s}}
";
        let Input { scenario, notes, .. } = parse(&texts(&[ROLLOUT, beside])).unwrap();
        let kinds: Vec<_> = scenario.objects.iter().map(|object| object["kind"].clone()).collect();
        assert_eq!(kinds, ["Service", "HTTPRoute", "MetricSource"]);
        assert_eq!(scenario.objects[1]["spec"]["parentRefs"][0]["name"], "davylamp");
        assert_eq!(scenario.world.scrapes.interval.to_string(), "30s");
        assert_eq!(notes, ["2.yaml: HorizontalPodAutoscaler shop has no part in the simulation"]);
    }

    #[test]
    fn a_scenario_is_read_as_it_stands() {
        let text = format!(
            "description: Words.\nrollout:{}\nevents: [{{at: 1m, do: {{release: 'shop:v3'}}}}, {{at: 2m, do: delete}}]",
            indented(ROLLOUT)
        );
        let scenario = parse(&texts(&[&text])).unwrap().scenario;
        assert_eq!(image(&scenario.rollout), Some("shop:v2"));
        assert_eq!(scenario.events[1].what, Happening::Delete);
    }

    #[test]
    fn refusals_name_the_field() {
        let wrong = |rest: &str| refusal(&[&format!("rollout:{}\n{rest}", indented(ROLLOUT))]);
        assert!(
            wrong("events: [{at: 1m, do: {relase: x}}]")
                .starts_with("1.yaml: events[0].do.relase: unknown variant")
        );
        assert!(wrong("world: {users: {daily: 5}}").starts_with("1.yaml: world.users.daily: "));
        assert!(wrong("expects: {}").starts_with("1.yaml: expects: unknown field"));
        assert_eq!(refusal(&["{world: {}}"]), "1.yaml: missing field `rollout`");
        assert_eq!(refusal(&[""]), "1.yaml: nothing in it; write a scenario or a Rollout");
        assert!(refusal(&["- 1"]).starts_with("1.yaml: neither a scenario"));
        assert!(refusal(&["{kind: Service}"]).starts_with("1.yaml: no Rollout in it"));
        assert!(refusal(&[ROLLOUT, "{rollout: {}}"]).starts_with("2.yaml: a document without `kind`"));
        assert_eq!(refusal(&[ROLLOUT, ROLLOUT]), "2 Rollouts (shop in 1.yaml, shop in 2.yaml): give one");
        assert!(refusal(&["a: [1"]).starts_with("1.yaml: "));
        let other = ROLLOUT.replace("davylamp.dev/v1alpha1", "argoproj.io/v1alpha1");
        assert_eq!(
            refusal(&[&other]),
            "1.yaml: apiVersion: a Rollout of argoproj.io/v1alpha1; only those of davylamp.dev/v1alpha1 are understood"
        );
        let imageless = ROLLOUT.replace(", image: 'shop:v2'", "");
        assert!(refusal(&[&imageless]).starts_with("1.yaml: spec.template.spec.containers[0].image: "));
    }

    #[test]
    fn flags_change_the_two_versions() {
        let mut scenario = parse(&texts(&[ROLLOUT])).unwrap().scenario;
        let flags = Flags {
            rps: Some(200.0),
            errors: Some("0.5%".parse().unwrap()),
            canary_errors: Some("2%".parse().unwrap()),
            latency: Some("80ms".parse().unwrap()),
            last: Some("2h".parse().unwrap()),
            ..Flags::default()
        };
        flags.apply(&mut scenario);
        assert_eq!(scenario.world.users.requests_per_second.to_string(), "200");
        assert_eq!(scenario.world.default.errors.to_string(), "0.5%");
        let canary = &scenario.world.versions["shop:v2"];
        assert_eq!((canary.errors.to_string(), canary.latency.to_string()), ("2%".into(), "80ms".into()));
        assert_eq!(scenario.last.to_string(), "2h");
        assert_eq!(
            flags.words(),
            ["--rps 200", "--errors 0.5%", "--canary-errors 2%", "--latency 80ms", "--for 2h"]
        );
    }
}
