//! `verify`, as people run it: a run that is as recorded, and all ways in which one is not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;

use davylamp_api::Instant;
use davylamp_api::run::{DecisionRecord, MetricRecord, digest};
use serde_json::{Value, json};

/// The weight is effective from then on, ms since 1970.
const START: i64 = 1_767_225_600_000;
const INTERVAL: i64 = 15_000;
const MINUTE: i64 = 60_000;
/// The pods, and how many of their 300 requests between two scrapes fail.
const PODS: [(&str, i64); 2] = [("shop-aaaaaaaaaa-aaaaa", 60), ("shop-bbbbbbbbbb-bbbbb", 3)];

const NARROW: &str = "
---
apiVersion: davylamp.dev/v1alpha1
kind: MetricSource
metadata: {name: default}
spec: {url: 'http://prometheus:9090', allowedNamespaces: ['*'], scrapeInterval: 15s, delay: 5s, limits: {samples: 60}}
";

fn verify(words: &str, input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-davylamp"));
    command.args("verify -f -".split_whitespace()).args(words.split_whitespace());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// It exits so, and says each of these.
fn assert_says(url: &str, input: &str, code: i32, parts: &[&str]) -> String {
    let output = verify(&format!("--prometheus {url}"), input);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    said
}

/// Answers each query with a status and a body.
fn prometheus(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            // Of two questions the second is given up when the first fails.
            let _ = serve(stream.unwrap(), &answer);
        }
    });
    url
}

fn serve(stream: TcpStream, answer: impl Fn(&str) -> (u16, String)) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while stream.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut form = vec![0; length];
    stream.read_exact(&mut form)?;
    if form.is_empty() {
        return Ok(());
    }
    let (status, body) = answer(&String::from_utf8(form).unwrap());
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.get_mut().write_all((head + &body).as_bytes())
}

/// One that has the samples from that time on.
fn keeps(oldest: i64) -> String {
    prometheus(move |form| (200, samples(form, oldest)))
}

/// The counters that the form asks for, scraped at whole intervals.
fn samples(form: &str, oldest: i64) -> String {
    let (query, rest) = form.strip_prefix("query=").unwrap().split_once("&time=").unwrap();
    let until: i64 = rest.split('&').next().unwrap().replace('.', "").parse().unwrap();
    let range = query.rsplit("%5B").next().unwrap();
    let range: i64 = range.split("ms").next().unwrap().parse().unwrap();
    let series = PODS.map(|(pod, failing)| {
        let each = if query.contains("code%3D") { failing } else { 300 };
        let scrapes = (0..200).map(|n| (n, START - 10 * MINUTE + n * INTERVAL));
        let read = scrapes.filter(|(_, at)| *at > until - range && *at <= until && *at >= oldest);
        let values: Vec<_> = read.map(|(n, at)| json!([at / 1_000, (n * each).to_string()])).collect();
        json!({"metric": {"pod": pod, "instance": "1"}, "values": values})
    });
    let read: Vec<_> = series.iter().filter(|one| one["values"] != json!([])).collect();
    json!({"status": "success", "data": {"resultType": "matrix", "result": read}}).to_string()
}

fn spec() -> Value {
    json!({
        "rollout": "shop", "revision": 2, "hash": "aaaaaaaaaa", "baseline": "bbbbbbbbbb", "attempt": 1, "version": 1,
        "strategy": {
            "canary": {"steps": [{"weight": "50%"}]},
            "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}]
        },
        "analysis": {
            "source": "default", "settle": "30s", "metrics": [{"name": "errors", "ratio": {
                "events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"
            }}]
        },
        "sampling": {"scrapeInterval": "15s", "delay": "5s"}
    })
}

/// As kubectl writes it, each decision with the digest of the one before.
fn manifest(records: &[DecisionRecord]) -> String {
    let mut previous = digest(&spec());
    let mut records = records.to_vec();
    for record in &mut records {
        record.previous_digest = Some(previous);
        previous = record.digest();
    }
    let run = json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "RolloutRun",
        "metadata": {"name": "shop-2-1", "namespace": "market"},
        "spec": spec(), "status": {"decisions": records, "last": 5}
    });
    run.to_string()
}

/// A decision on the data up to so long after the start, without numbers.
fn decision(number: i64, [from, to, rule]: [&str; 3], until: i64) -> DecisionRecord {
    let at = |ms| Instant::from_millisecond(START + ms).unwrap();
    let metric =
        MetricRecord { name: "errors".to_owned(), until: Some(at(until)), ..MetricRecord::default() };
    DecisionRecord {
        number,
        at: at(until),
        from: from.to_owned(),
        to: to.to_owned(),
        step: 1,
        weight: "50%".to_owned(),
        rule: rule.to_owned(),
        after: Some(at(30_000)),
        metrics: vec![metric],
        ..DecisionRecord::default()
    }
}

/// A canary that was rolled back. Its numbers are those that `verify` finds.
fn records(url: &str) -> Vec<DecisionRecord> {
    let mut records = vec![
        decision(1, ["Shifting", "Settling", "SettleTime"], 30_000),
        decision(2, ["Settling", "Judging", "Collecting"], 30_000),
        decision(3, ["Judging", "Paused", "SourceUnavailable"], 5 * MINUTE),
        decision(4, ["Paused", "RollingBack", "Regression"], 10 * MINUTE),
        decision(5, ["RollingBack", "Degraded", "Regression"], 11 * MINUTE),
    ];
    (records[4].metrics, records[4].after, records[4].weight) = (Vec::new(), None, "0%".to_owned());
    let output = verify(&format!("-o json --prometheus {url}"), &manifest(&records));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let found = found["checked"].as_array().unwrap();
    assert_eq!(found.len(), 4);
    for (record, line) in records.iter_mut().zip(found) {
        assert_eq!((&line["number"], &line["same"]), (&record.number.into(), &false.into()));
        record.metrics = vec![serde_json::from_value(line["differs"][0]["now"].clone()).unwrap()];
        record.split = serde_json::from_value(line["split"]["now"].clone()).unwrap();
    }
    assert!(records[3].metrics[0].canary.events > 0.0 && records[3].split.is_some());
    records
}

#[test]
fn a_run_is_as_recorded() {
    let url = keeps(0);
    let run = manifest(&records(&url));
    let parts = [
        "shop-2-1: 5 decisions, 4 of them with evidence\n",
        "Paused -> RollingBack          Regression         the same\n",
        "Each decision names the one before it: the record was not changed.\nAll evidence is what it was.\n",
    ];
    assert_says(&url, &run, 0, &parts);
    // A source that answers only a part of what is asked for at first.
    assert_says(&url, &(run + NARROW), 0, &parts);
}

#[test]
fn data_that_has_gone_is_told_at_each_decision_after_it() {
    let url = keeps(0);
    let records = records(&url);
    let run = manifest(&records);
    let gone = "data since decision 3 has gone from the source\n";
    let now = "now      0 of 0 against 0 of 0;";
    let said = assert_says(&keeps(i64::MAX), &run, 1, &[gone, now, "DIFFERS, and does not suffice\n"]);
    assert_eq!(said.matches(gone).count(), 2, "{said}");
    // A part of it.
    let url = keeps(START + 5 * MINUTE);
    let said = assert_says(&url, &run, 1, &[gone, "The evidence of 2 of 4 decisions is not what it was.\n"]);
    assert_eq!(said.matches(gone).count(), 2, "{said}");
    let output = verify(&format!("-o json --prometheus {url}"), &run);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let since: Vec<_> =
        found["checked"].as_array().unwrap().iter().map(|line| line["dataGoneSince"].as_i64()).collect();
    assert_eq!(since, [None, None, Some(3), Some(3)]);
}

#[test]
fn a_record_that_was_changed_is_told_with_the_fields() {
    let url = keeps(0);
    let records = records(&url);
    let with = |change: fn(&mut Vec<DecisionRecord>)| {
        let mut records = records.clone();
        change(&mut records);
        manifest(&records)
    };
    let fewer = with(|records| records[3].metrics[0].canary.events -= 1.0);
    let events = records[3].metrics[0].canary.events;
    let field = format!("       errors.canary.events: recorded {}, now {events}\n", events - 1.0);
    let whole = "the record was not changed.\nThe evidence of 1 of 4 decisions is not what it was.\n";
    let said = assert_says(&url, &fewer, 1, &["Regression         DIFFERS\n", &field, whole]);
    assert!(said.contains("       errors: recorded ") && !said.contains("has gone"), "{said}");
    // Of what differs in no count, only the field is shown.
    let other = with(|records| records[3].metrics[0].tolerated += 0.5);
    let said = assert_says(&url, &other, 1, &["       errors.tolerated: recorded "]);
    assert!(!said.contains("errors: recorded"), "{said}");
    // Only so many.
    let said =
        assert_says(&url, &with(|records| records[3].metrics[0] = records[0].metrics[0].clone()), 1, &[]);
    assert!(said.lines().filter(|line| line.starts_with("       errors.")).count() <= 12, "{said}");

    let bare = with(|records| {
        records[3].metrics.clear();
        records[3].split = None;
    });
    let said = assert_says(&url, &bare, 1, &["NOT THE SAME: its evidence is not in the record\n", whole]);
    assert!(said.starts_with("shop-2-1: 5 decisions, 3 of them with evidence\n"), "{said}");
    let jumps = with(|records| drop(records.remove(1)));
    assert_says(&url, &jumps, 1, &["NOT THE SAME: decisions next to it are not in the record\n"]);
}

#[test]
fn a_digest_that_was_changed_is_told() {
    let url = keeps(0);
    let mut run: Value = serde_json::from_str(&manifest(&records(&url))).unwrap();
    run["status"]["decisions"][2]["previousDigest"] = "0".repeat(64).into();
    let parts = [
        "Decision 3 does not name the one before it: the record was changed.\nAll evidence is what it was.\n",
    ];
    assert_says(&url, &run.to_string(), 1, &parts);
}

#[test]
fn a_source_that_refuses_is_named() {
    let run = manifest(&records(&keeps(0)));
    let url = prometheus(|_| (422, r#"{"status":"error","errorType":"bad_data","error":"no"}"#.to_owned()));
    let told = ["metric errors: ", "refused the query: bad_data (HTTP 422)", &url];
    assert_says(&url, &run, 2, &told);
}
