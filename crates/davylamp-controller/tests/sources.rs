//! Each `MetricSource` in the guide is what the API server takes.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use davylamp_api::MetricSource;
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
