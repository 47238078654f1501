//! Each object in the guides to metrics is what the API server takes, and the secrets of a `MetricSource` can be got but not
//! looked for.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use davylamp_api::rollout::{Analysis, Canary};
use davylamp_api::{AnalysisTemplate, ClusterAnalysisTemplate, MetricSource};
use davylamp_world::ApiServer;
use kube::Api;
use kube::api::PostParams;
use serde::Deserialize;

#[tokio::test]
async fn the_sources_in_the_guide_are_taken_as_they_stand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let server = ApiServer::new(davylamp_world::Config::default());
    server.install(&std::fs::read_to_string(root.join("deploy/crds/metricsources.yaml")).unwrap()).unwrap();
    let sources: Api<MetricSource> = Api::all(server.client());
    let guide = std::fs::read_to_string(root.join("docs/src/metric-sources.md")).unwrap();
    let mut taken = 0;
    for block in guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for document in serde_yaml::Deserializer::from_str(block) {
            let written = serde_yaml::Value::deserialize(document).unwrap();
            let source: MetricSource = serde_yaml::from_value(written.clone()).unwrap();
            let created = sources.create(&PostParams::default(), &source).await.unwrap();
            let spec = serde_yaml::to_value(&created.spec).unwrap();
            // No field is lost, in the schema or in our types.
            assert_eq!(spec, written["spec"], "{block}");
            taken += 1;
        }
    }
    assert_eq!(taken, 4);
}

#[tokio::test]
async fn the_templates_in_the_guide_are_taken_as_they_stand_and_its_metrics_are_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let server = ApiServer::new(davylamp_world::Config::default());
    server
        .install(&std::fs::read_to_string(root.join("deploy/crds/clusteranalysistemplates.yaml")).unwrap())
        .unwrap();
    let api: Api<ClusterAnalysisTemplate> = Api::all(server.client());
    let guide = std::fs::read_to_string(root.join("docs/src/metrics.md")).unwrap();
    let (mut templates, mut fragments, mut strategies) = (0, 0, 0);
    for block in guide.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for document in serde_yaml::Deserializer::from_str(block) {
            let written = serde_yaml::Value::deserialize(document).unwrap();
            if written.get("kind").is_some() {
                let template: ClusterAnalysisTemplate = serde_yaml::from_value(written.clone()).unwrap();
                let created = api.create(&PostParams::default(), &template).await.unwrap();
                assert_eq!(serde_yaml::to_value(&created.spec).unwrap(), written["spec"], "{block}");
                // The namespaced kind has the same spec.
                let text = serde_yaml::to_string(&written).unwrap();
                let other: AnalysisTemplate =
                    serde_yaml::from_str(&text.replace("kind: Cluster", "kind: ")).unwrap();
                assert_eq!(other.spec, created.spec.0);
                templates += 1;
            } else if let Some(strategy) = written.get("strategy") {
                let canary: Canary = serde_yaml::from_value(strategy["canary"].clone()).unwrap();
                assert_eq!(serde_yaml::to_value(&canary).unwrap(), strategy["canary"], "{block}");
                strategies += 1;
            } else {
                let analysis: Analysis = serde_yaml::from_value(written.clone()).unwrap();
                assert_eq!(serde_yaml::to_value(&analysis).unwrap(), written, "{block}");
                fragments += 1;
            }
        }
    }
    assert_eq!((templates, fragments, strategies), (2, 9, 1));
}

#[test]
fn secrets_can_be_got_in_one_namespace_and_no_more() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("deploy/controller.yaml")).unwrap();
    let mut rights = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let object = serde_yaml::Value::deserialize(document).unwrap();
        for rule in object.get("rules").and_then(serde_yaml::Value::as_sequence).into_iter().flatten() {
            let resources: Vec<String> = serde_yaml::from_value(rule["resources"].clone()).unwrap();
            if resources.iter().any(|resource| resource == "secrets" || resource == "*") {
                let namespace = object["metadata"].get("namespace").and_then(serde_yaml::Value::as_str);
                let verbs: Vec<String> = serde_yaml::from_value(rule["verbs"].clone()).unwrap();
                rights.push((namespace.map(str::to_owned), verbs));
            }
        }
    }
    assert_eq!(rights, [(Some("davylamp-system".to_owned()), vec!["get".to_owned()])]);
}
