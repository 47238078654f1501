//! The program itself, as people run it: every scenario of the examples comes true, and one seed gives one output.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn simulate(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-davylamp"));
    command.current_dir(root()).arg("simulate").args(words.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_scenario_comes_true() {
    let folder = root().join("examples/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert!(files.len() >= 14, "{files:?}");
    let running: Vec<_> = files
        .into_iter()
        .map(|file| {
            let words = format!("-f examples/scenarios/{file} --seed 1");
            (simulate(&words).spawn().unwrap(), words)
        })
        .collect();
    let ended = running.into_iter().map(|(child, words)| (child.wait_with_output().unwrap(), words));
    let failed: Vec<_> = ended
        .filter(|(output, _)| !output.status.success())
        .map(|(output, words)| format!("kubectl davylamp simulate {words}\n{}", text(&output)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn one_seed_gives_one_output() {
    let words = "-f examples/scenarios/bad.yaml --seed 7 -o json";
    let [one, two] = [words; 2].map(|words| simulate(words).spawn().unwrap());
    let [one, two] = [one, two].map(|child| child.wait_with_output().unwrap());
    assert!(one.status.success(), "kubectl davylamp simulate {words}\n{}", text(&one));
    assert!(one.stdout == two.stdout, "kubectl davylamp simulate {words}");
    let report: serde_json::Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&report["seed"], &report["outcome"]), (&7.into(), &"RolledBack".into()));
}

#[test]
fn a_rollout_and_flags_are_enough() {
    let words = "-f examples/checkout.yaml --rps 200 --errors 0.5% --canary-errors 8% --runs 2 -o json";
    let output = simulate(words).output().unwrap();
    assert!(output.status.success(), "kubectl davylamp simulate {words}\n{}", text(&output));
    let distribution: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(distribution["outcomes"][0]["outcome"], "RolledBack");
    assert_eq!(distribution["outcomes"][0]["runs"], 2);
}

#[test]
fn what_failed_is_told_by_the_code() {
    let mut scenario = std::fs::read_to_string(root().join("examples/scenarios/bad.yaml")).unwrap();
    scenario = scenario.replace("outcome: RolledBack", "outcome: Promoted");
    let path = std::env::temp_dir().join(format!("davylamp-scenario-{}.yaml", std::process::id()));
    std::fs::write(&path, scenario).unwrap();
    let output = simulate(&format!("-f {}", path.display())).output().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("FAILED"), "{}", text(&output));

    let output = simulate("-f no-such-file.yaml").output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(text(&output).starts_with("error: no-such-file.yaml: "), "{}", text(&output));
}

#[test]
fn others_can_look_in() {
    let words = "-f examples/scenarios/bad.yaml --listen 127.0.0.1:0";
    let mut child = simulate(words).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let hint = told.next().unwrap();
    let address = hint.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    assert!(told.next().unwrap().contains("it is over"), "{words}");
    let mut stream = TcpStream::connect(address).unwrap();
    let path = "/apis/davylamp.dev/v1alpha1/namespaces/default/rollouts/shop";
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"Degraded\""), "{words}: {answer}");

    let output = simulate("-f examples/scenarios/bad.yaml --listen 0.0.0.0:0").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("write a loopback address"), "{}", text(&output));
}
