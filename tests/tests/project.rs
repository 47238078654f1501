//! The project's own files: who may use whom, generated files, and what the README points to.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use davylamp_tests::root;
use serde_json::Value;

/// The picture in the design: for each crate, the crates of ours that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("davylamp-api", &[]),
    ("davylamp-stats", &[]),
    ("davylamp-bench", &["davylamp-stats"]),
    ("davylamp-engine", &["davylamp-api", "davylamp-stats"]),
    // The world as a dev-dependency, so that its own tests run on it.
    ("davylamp-controller", &["davylamp-api", "davylamp-engine", "davylamp-world"]),
    ("davylamp-sim", &["davylamp-api", "davylamp-controller", "davylamp-stats", "davylamp-world"]),
    (
        "davylamp-cli",
        &[
            "davylamp-api",
            "davylamp-controller",
            "davylamp-engine",
            "davylamp-sim",
            "davylamp-stats",
            "davylamp-world",
        ],
    ),
    ("davylamp-demo", &[]),
    ("davylamp-world", &["davylamp-api"]),
    (
        "davylamp-tests",
        &[
            "davylamp-api",
            "davylamp-controller",
            "davylamp-demo",
            "davylamp-engine",
            "davylamp-stats",
            "davylamp-world",
        ],
    ),
];

#[test]
fn crates_use_only_what_they_may() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let allowed: BTreeMap<_, BTreeSet<_>> =
        EDGES.iter().map(|(k, v)| (*k, v.iter().copied().collect())).collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    ensure!(packages.len() == EDGES.len(), "a crate is missing in the picture, or in the workspace");
    for package in packages {
        let name = package["name"].as_str().context("no name")?;
        let may = allowed.get(name).with_context(|| format!("{name} is not in the picture"))?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            ensure!(!used.starts_with("davylamp-") || may.contains(used), "{name} may not use {used}");
        }
    }
    Ok(())
}

/// What keeps the pure crates pure.
#[test]
fn the_engine_and_the_statistics_have_no_way_to_the_world() -> Result<()> {
    let may: &[(&str, &[&str])] = &[
        ("davylamp-stats", &["libm", "thiserror"]),
        (
            "davylamp-engine",
            &[
                "base64",
                "davylamp-api",
                "davylamp-stats",
                "jiff",
                "libm",
                "promql-parser",
                "serde",
                "serde_json",
                "thiserror",
            ],
        ),
    ];
    for (name, allowed) in may {
        let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml"))?;
        let section = manifest
            .split("[dependencies]")
            .nth(1)
            .and_then(|s| s.split("\n[").next())
            .context("no dependencies")?;
        for line in section.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
            let used = line.split(['.', ' ', '=']).next().unwrap_or_default();
            ensure!(allowed.contains(&used), "{name} may not depend on {used}");
        }
    }
    Ok(())
}

#[test]
fn the_generated_definitions_are_fresh() -> Result<()> {
    let folder = root().join("deploy/crds");
    let files = davylamp_controller::crd::files()?;
    for (name, text) in &files {
        let there = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        ensure!(there == *text, "deploy/crds/{name} is stale: run `make crds`");
        ensure!(text.len() < 100_000, "{name} is larger than 100 KB");
    }
    ensure!(
        std::fs::read_dir(&folder)?.count() == files.len(),
        "deploy/crds holds a file that nobody generates"
    );
    Ok(())
}

/// A schema default that a user did not write is drift for a `GitOps` tool, and a new hash inside the template.
#[test]
fn the_only_default_in_a_schema_is_that_of_status() -> Result<()> {
    fn walk(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if key == "default" && !path.ends_with("/properties") {
                        found.push(format!("{path}: {value}"));
                    }
                    walk(value, &format!("{path}/{key}"), found);
                }
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, path, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    for crd in davylamp_api::crds() {
        let mut found = Vec::new();
        walk(&serde_json::to_value(&crd)?, "", &mut found);
        found.retain(|f| !f.ends_with("/properties/status: {\"observedGeneration\":-1}"));
        ensure!(found.is_empty(), "{:?}: {found:?}", crd.metadata.name);
    }
    Ok(())
}

/// The way of one decision through the code, and all other links to files.
#[test]
fn the_links_of_the_readme_lead_somewhere() -> Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let mut links = 0;
    for target in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        if !target.contains("://") && !target.starts_with('#') {
            let file = target.split('#').next().unwrap_or_default();
            ensure!(root().join(file).exists(), "README.md points to {target}, which is not there");
            links += 1;
        }
    }
    ensure!(links >= 5, "the README shows the way of a decision in five links");
    Ok(())
}

/// Every metric that the controller serves stands in the README, with its help text.
#[test]
fn the_readme_lists_every_metric() -> Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    for metric in davylamp_controller::telemetry::METRICS {
        ensure!(readme.contains(&format!("`{}`", metric.name)), "README.md does not list {}", metric.name);
    }
    Ok(())
}
