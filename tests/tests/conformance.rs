//! The script of API behaviour on the server in memory; `cluster::conformance` compares its answers with a real one's.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_tests::conformance::{Answer, answers};
use davylamp_tests::root;
use davylamp_world::{ApiServer, Config};
use serde_json::{Value, json};

/// What the server in memory says.
pub(crate) async fn in_memory() -> Result<Vec<Answer>> {
    let server = ApiServer::new(Config::default());
    for file in davylamp_controller::crd::files()?.iter().map(|(name, _)| name) {
        server.install(&std::fs::read_to_string(root().join("deploy/crds").join(file))?)?;
    }
    server.install(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "conformance"}}"#)?;
    // A real server has forgotten what was before its start.
    server.compact();
    let collector = tokio::spawn(server.clone().garbage_collector(Duration::from_millis(10)));
    let answers = answers(&server.client(), "conformance").await;
    collector.abort();
    answers
}

#[tokio::test(start_paused = true)]
async fn the_server_in_memory_answers_the_same_each_time() -> Result<()> {
    let (first, second) = (in_memory().await?, in_memory().await?);
    ensure!(first == second, "two runs differ");
    let said: BTreeMap<&str, Value> = first.into_iter().collect();
    let of = |step: &str| said.get(step).with_context(|| format!("no step {step}"));
    for (step, code) in [
        ("a field that nobody selects by", 400),
        ("an object that is not there", 404),
        ("its name again", 409),
        ("a stale replace", 409),
        ("a stale, unchanged status", 409),
        ("a replace without a version", 422),
        ("a scale without a size", 500),
        ("two conflicts", 409),
        ("what the schema does not know", 500),
        ("the user's next apply", 409),
        ("falling weights", 422),
        ("what must not change", 422),
        ("a test that fails", 422),
        ("an unknown field", 400),
        ("no port", 422),
        ("a loopback address", 422),
        ("held by more", 422),
        ("let go", 404),
    ] {
        ensure!(of(step)?["code"] == code, "{step}: {}", of(step)?);
    }
    for step in
        ["an unchanged replace writes nothing", "nor does an unchanged status", "again, it writes nothing"]
    {
        ensure!(*of(step)? == true, "{step}");
    }
    ensure!(*of("a version that is forgotten")? == json!([410, "Expired"]));
    ensure!(*of("a form that custom kinds do not take")? == 415);
    Ok(())
}
