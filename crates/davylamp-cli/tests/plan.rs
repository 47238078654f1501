//! `plan`, as people run it: what it writes, what it refuses, what it reads, and whether it comes true.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::Value;

const ROLLOUT: &str = r#"
apiVersion: davylamp.dev/v1alpha1
kind: Rollout
metadata: {name: shop, namespace: market}
spec:
  replicas: 10
  selector: {matchLabels: {app: shop}}
  template: {metadata: {labels: {app: shop}}, spec: {containers: [{name: shop, image: 'shop:v2'}]}}
  service: shop
  strategy: {canary: {}, traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: shop}]}}]}
  analysis:
    source: default
    metrics:
    - name: errors
      ratio: {events: 'http_requests_total{code=~"5.."}', total: http_requests_total}
---
apiVersion: davylamp.dev/v1alpha1
kind: MetricSource
metadata: {name: default}
spec: {url: 'http://prometheus:9090', allowedNamespaces: ['*'], scrapeInterval: 5s, delay: 2s}
"#;

fn run(words: &str, input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-davylamp"));
    command.args(words.split_whitespace());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Wrong words are refused before anything is read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(words: &str, input: &str) -> Value {
    let output = run(&format!("{words} -o json"), input);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words}\n{}", text(&output)))
}

/// As committed; a run without the text says what it would be.
fn assert_written(words: &str, input: &str, code: i32, expected: &str) {
    let output = run(words, input);
    let written = text(&output);
    assert!(written == expected.trim_start_matches('\n'), "{words} wrote\n{written}");
    assert!(written.lines().all(|line| line.chars().count() <= 100), "{written}");
    assert_eq!(output.status.code(), Some(code), "{written}");
}

#[test]
fn a_rollout_with_the_defaults() {
    assert_written("plan -f - --rps 2000 --errors 0.5%", ROLLOUT, 0, include_str!("plan/defaults.txt"));
}

#[test]
fn a_rollout_with_thin_traffic() {
    assert_written("plan -f - --rps 20 --errors 0.5%", ROLLOUT, 0, include_str!("plan/thin.txt"));
}

#[test]
fn a_fresh_baseline_needs_more_pods() {
    let (words, fresh) =
        ("plan -f - --rps 2000 --errors 0.5%", ROLLOUT.replace("canary: {}", "canary: {baseline: fresh}"));
    let planned = json(words, &fresh);
    assert_eq!((&planned["replicas"], &planned["peakPods"]), (&10.into(), &25.into()));
    let written = text(&run(words, &fresh)).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(written.contains("there are 25 pods at most."), "{written}");
}

#[test]
fn a_rollout_with_hardly_any_traffic_and_two_metrics() {
    let slow = "total: http_requests_total}\n    - name: slow\n      ratio: {events: slow_total, total: http_requests_total}";
    let two = ROLLOUT
        .replace("total: http_requests_total}", slow)
        .replace("canary: {}", "canary: {steps: [{weight: 5%}, {weight: 50%, approval: {}}]}");
    assert_written(
        "plan -f - --rps 2 --errors 0.5% --errors slow=2%",
        &two,
        1,
        include_str!("plan/inconclusive.txt"),
    );
}

#[test]
fn the_guide_says_what_is_written() {
    let guide = include_str!("../../../docs/src/plan.md");
    assert!(guide.contains(include_str!("plan/thin.txt")), "the output in the guide is another");
    let plan = json("plan -f - --rps 20 --errors 0.5%", ROLLOUT);
    let row = &plan["steps"][0]["metrics"][0];
    let last = plan["advice"].as_array().unwrap().last().unwrap();
    for object in [&plan, &plan["metrics"][0], &plan["steps"][0], row, &plan["advice"][0], last] {
        for name in object.as_object().unwrap().keys() {
            assert!(guide.contains(&format!("`{name}`")), "{name} is not in the guide");
        }
    }
    assert_eq!(plan["advice"][0]["patch"]["spec"]["analysis"]["hold"]["max"], "1h40m");
    assert!(last["timesRequests"].as_f64().unwrap() > 1.0, "{last}");
}

#[test]
fn what_is_wrong_is_named_with_what_to_write() {
    let wrong = |words: &str, input: &str| {
        let output = run(&format!("plan -f - {words}"), input);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", text(&output));
        text(&output)
    };
    let two = ROLLOUT.replace("canary: {}", "canary: {steps: [{weight: 20%}, {weight: 10%}]}");
    let two = two.replace("total: http_requests_total", "total: 'rate(http_requests_total[5m])'");
    let told = wrong("--rps 20", &two);
    for part in [
        "error: stdin: shop cannot be carried out:\n",
        "\n  spec.strategy.canary.steps[1].weight: 10% after 20%; write a weight above",
        "\n  spec.analysis.metrics[0].ratio.total: a function call is not a plain selector",
    ] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    assert!(wrong("", ROLLOUT).contains("Say --rps 200, or --prometheus"), "{}", wrong("", ROLLOUT));
    let told = wrong("--rps 20 --errors slow=1%", ROLLOUT);
    assert!(told.contains("no metric is called \"slow\"; the Rollout has errors"), "{told}");
    let told = wrong("--rps 20", &ROLLOUT.replace("source: default", "warmup: soon"));
    assert!(told.contains("shop: spec.analysis.warmup: "), "{told}");
    let told = wrong("--rps 20 --errors 2", ROLLOUT);
    assert!(told.contains("write one like"), "{told}");
    let told = wrong("--prometheus localhost:9090", ROLLOUT);
    assert!(told.contains("write one like http://localhost:9090"), "{told}");
    let told = wrong("--prometheus http://localhost:9090 --window 5s", ROLLOUT);
    assert!(told.contains("--window 5s: "), "{told}");
}

const TEMPLATES: &str = r#"
---
apiVersion: davylamp.dev/v1alpha1
kind: AnalysisTemplate
metadata: {name: checkout}
spec:
  args: [{name: route}]
  metrics:
  - name: refused
    ratio: {events: 'refused_total{route="{{args.route}}"}', total: http_requests_total}
---
apiVersion: davylamp.dev/v1alpha1
kind: AnalysisTemplate
metadata: {name: checkout, namespace: elsewhere}
spec: {}
"#;

#[test]
fn what_presets_and_templates_stand_for_is_printed() {
    let metrics = ROLLOUT.find("    metrics:").unwrap();
    let end = ROLLOUT.find("---").unwrap();
    let used = "    presets: [http]\n    templates: [{scope: Namespace, name: checkout, args: [{name: route, value: /pay}]}]\n";
    let rollout = format!("{}{used}{}", &ROLLOUT[..metrics], &ROLLOUT[end..]);

    let output = run("plan -f - --rps 2000", &format!("{rollout}{TEMPLATES}"));
    let told = text(&output);
    for line in [
        "  http-errors comes from preset http: ratio of\n",
        "  http-latency comes from preset http: distribution of\n",
        "  refused comes from AnalysisTemplate checkout: ratio of refused_total{route=\"/pay\"} to\n",
    ] {
        assert!(told.contains(line), "{line} in\n{told}");
    }
    let plan = json("plan -f - --rps 2000", &format!("{rollout}{TEMPLATES}"));
    let users = "path!~\"/(healthz?|livez|readyz|metrics)\",handler!~\"/(healthz?|livez|readyz|metrics)\"";
    assert_eq!(
        plan["expansions"][1]["is"],
        format!("distribution of http_request_duration_seconds{{{users}}}")
    );
    assert_eq!(plan["expansions"][2]["metric"], "refused");
    assert_eq!(plan["expansions"][2]["from"], "AnalysisTemplate checkout");
    assert_eq!(plan["expansions"][2]["is"], "ratio of refused_total{route=\"/pay\"} to http_requests_total");

    for words in ["plan -f - --rps 2000", "simulate -f -"] {
        let output = run(words, &rollout);
        let told = text(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{told}");
        for part in [
            "spec.analysis.templates[0]: there is no AnalysisTemplate checkout in this namespace; create it",
            "give this one with another -f, as kubectl get analysistemplate checkout -o yaml writes it",
        ] {
            assert!(told.contains(part), "{part} in\n{told}");
        }
    }
    let wrong = TEMPLATES.replace("args: [{name: route}]", "args: [{name: 5}]");
    let told = text(&run("plan -f - --rps 2000", &format!("{rollout}{wrong}")));
    assert!(told.contains("AnalysisTemplate checkout: spec.args[0].name: invalid type"), "{told}");
}

/// Answers so many queries in turn; gives their forms.
fn prometheus(answers: Vec<&'static str>) -> (String, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = thread::spawn(move || {
        let answer = |answer: &str| {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut form = vec![0; length];
            stream.read_exact(&mut form).unwrap();
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            stream.get_mut().write_all((head + answer).as_bytes()).unwrap();
            String::from_utf8(form).unwrap()
        };
        answers.into_iter().map(answer).collect()
    });
    (url, asked)
}

const REQUESTS: &str =
    r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"720000"]}]}}"#;
const ERRORS: &str =
    r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"3600"]}]}}"#;
const PARTIAL: &str = r#"{"status":"success","isPartial":true,"data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0"]}]}}"#;
const NOTHING: &str = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;

#[test]
fn rates_are_read_from_prometheus() {
    let (url, asked) = prometheus(vec![REQUESTS, ERRORS]);
    let plan = json(&format!("plan -f - --prometheus {url}"), ROLLOUT);
    let metric = &plan["metrics"][0];
    assert_eq!((&metric["requestsPerSecond"], &metric["share"]), (&200.0.into(), &0.005.into()));
    let from = format!("read from {url}: 3,600 of 720,000 within 1h in pods shop-* of namespace market");
    assert_eq!(metric["from"], from.as_str());
    let asked = asked.join().unwrap();
    let selector = "namespace%3D%22market%22%2Cpod%3D%7E%22shop-%5Ba-z0-9%5D%2B-%5Ba-z0-9%5D%7B5%7D%22%7D%5B3600000ms%5D";
    assert!(
        asked[0].starts_with(&format!("query=sum%28increase%28http_requests_total%7B{selector}%29%29&")),
        "{asked:?}"
    );
    assert!(asked[1].contains("code%3D%7E%225..%22%2Cnamespace"), "{asked:?}");

    let (url, _) = prometheus(vec![REQUESTS, PARTIAL]);
    let plan = json(&format!("plan -f - --prometheus {url}"), ROLLOUT);
    assert!(plan["metrics"][0]["from"].as_str().unwrap().ends_with("; it warns that a part may be missing"));

    let (url, asked) = prometheus(vec![REQUESTS, NOTHING]);
    let plan = json(&format!("plan -f - --prometheus {url}/ --rps 50 --window 2h -n other"), ROLLOUT);
    let metric = &plan["metrics"][0];
    assert_eq!((&metric["requestsPerSecond"], &metric["share"]), (&50.0.into(), &0.0.into()));
    assert!(
        metric["from"].as_str().unwrap().starts_with("requests as given, the share read from http"),
        "{metric}"
    );
    assert!(asked.join().unwrap()[0].contains("other%22"), "{metric}");
}

#[test]
fn a_source_that_does_not_answer_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = run(&format!("plan -f - --prometheus {url}"), ROLLOUT);
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for part in [url.as_str(), "errors: cannot be reached: ", "--rps and --errors", "port-forward"] {
        assert!(told.contains(part), "{part} in\n{told}");
    }
    // With both given there is nothing to read.
    let output = run(&format!("plan -f - --prometheus {url} --rps 2000 --errors 0.5%"), ROLLOUT);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));

    let (url, asked) = prometheus(vec![NOTHING]);
    let told = text(&run(&format!("plan -f - --prometheus {url}"), ROLLOUT));
    assert!(told.contains("no request of pods shop-* in namespace market within 1h"), "{told}");
    asked.join().unwrap();
}

/// The plan speaks of what runs, also where evidence and not the shortest hold says how long it takes.
#[test]
fn a_good_canary_takes_as_long_as_planned() {
    let quick = ROLLOUT
        .replace("replicas: 10", "replicas: 4")
        .replace("canary: {}", "canary: {steps: [{weight: 20%}, {weight: 50%}]}")
        .replace(
            "source: default",
            "source: default\n    warmup: 30s\n    settle: 10s\n    hold: {min: 10s}",
        );
    let words = "-f - --rps 400 --errors 0.5%";
    let planned = json(&format!("plan {words} --pod-start 5s"), &quick)["totalSeconds"].as_f64().unwrap();
    let simulated = json(&format!("simulate {words} --runs 20"), &quick);
    let promoted = &simulated["outcomes"][0];
    assert_eq!((&promoted["outcome"], &promoted["runs"]), (&"Promoted".into(), &20.into()), "{simulated}");
    let median = promoted["tookMs"]["median"].as_f64().unwrap() / 1_000.0;
    assert!((0.7..1.3).contains(&(planned / median)), "planned {planned} s, simulated {median} s");
}
