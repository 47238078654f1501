//! What a poll costs the controller: ten ratios over 40 pods with 20 series each, asked of a server on the loopback
//! interface that answers what is prepared, read, checked and turned into increments. Written to
//! `bench/results/poll.json`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a person to look at")]
#![allow(clippy::disallowed_methods, reason = "reads real time, to ask for it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use davylamp_api::MetricSourceSpec;
use davylamp_controller::metrics::{PrometheusApi, Wanted, fetch_once};
use davylamp_engine::{MetricQuery, Query};
use serde_json::json;

const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results/poll.json");
const METRICS: usize = 10;
const PODS: usize = 40;
const SERIES: usize = 20;
const SAMPLES: i64 = 4;
const INTERVAL: i64 = 15;
const UNTIL: i64 = 1_800_000_000;
const POLLS: usize = 101;

fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let bodies = Arc::new([body(SERIES / 2), body(SERIES)]);
    let bytes = METRICS * (bodies[0].len() + bodies[1].len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let bodies = bodies.clone();
            std::thread::spawn(move || serve(&stream.unwrap(), &bodies));
        }
    });

    rustls::crypto::ring::default_provider().install_default().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let api = PrometheusApi::of_terminal();
    let wanted = Wanted { query: query(), source: MetricSourceSpec { url, ..MetricSourceSpec::default() } };
    let mut spent: Vec<u64> = (0..POLLS)
        .map(|_| {
            let before = cpu();
            let samples = runtime.block_on(async {
                fetch_once(&api, "shop", &wanted, UNTIL * 1_000).await.map_err(|error| error.to_string())
            });
            let spent = cpu() - before;
            let samples = samples.unwrap();
            assert_eq!(samples.metrics.len(), METRICS);
            assert!(samples.metrics.values().all(|metric| metric.pods.len() == PODS));
            spent
        })
        .collect();
    spent.sort_unstable();
    let ms = |nanoseconds: u64| f64::from(u32::try_from(nanoseconds / 1_000).unwrap()) / 1_000.0;
    let (median, slowest) = (ms(spent[POLLS / 2]), ms(spent[POLLS * 9 / 10]));
    println!(
        "a poll of {METRICS} metrics over {PODS} pods with {SERIES} series: {median} ms of CPU, {slowest} in one of ten"
    );
    let results = json!({
        "metrics": METRICS, "pods": PODS, "seriesOfPod": SERIES, "samplesOfSeries": SAMPLES, "bytes": bytes,
        "medianMs": median, "nineInTenMs": slowest,
    });
    std::fs::write(RESULTS, format!("{results:#}\n")).unwrap();
}

/// The CPU time of this thread, in ns.
fn cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn query() -> Query {
    let counters = |i: usize| MetricQuery::Counters {
        events: format!("m{i}_total{{code=~\"5..\"}}"),
        total: format!("m{i}_total"),
    };
    let metrics: BTreeMap<_, _> = (0..METRICS).map(|i| (format!("m{i}"), counters(i))).collect();
    Query {
        source: "default".to_owned(),
        since: (UNTIL - INTERVAL) * 1_000,
        pods: BTreeSet::from(["shop-5d8f9c77b1-".to_owned(), "shop-77b1aa5d8f-".to_owned()]),
        metrics,
        summable: BTreeSet::new(),
        summed: BTreeSet::new(),
        scrape_interval_ms: INTERVAL * 1_000,
        delay_ms: 15_000,
        ..Query::default()
    }
}

/// Of so many series a pod.
fn body(series: usize) -> String {
    let mut text = r#"{"status":"success","data":{"resultType":"matrix","result":["#.to_owned();
    for pod in 0..PODS {
        let hash = if pod % 2 == 0 { "5d8f9c77b1" } else { "77b1aa5d8f" };
        for i in 0..series {
            if pod + i > 0 {
                text.push(',');
            }
            let code = if i < SERIES / 2 { 500 + i } else { 200 + i };
            write!(
                text,
                r#"{{"metric":{{"__name__":"requests_total","code":"{code}","container":"app","instance":"10.0.0.{pod}:8080","job":"shop","method":"GET","namespace":"shop","pod":"shop-{hash}-abc{pod:02}"}},"values":["#
            )
            .unwrap();
            for sample in 0..SAMPLES {
                let at = UNTIL - 3 - (SAMPLES - 1 - sample) * INTERVAL;
                let value = 1_000 * (1 + i64::try_from(i).unwrap()) + 37 * sample;
                let comma = if sample > 0 { "," } else { "" };
                write!(text, r#"{comma}[{at}.{:03},"{value}"]"#, pod * 7).unwrap();
            }
            text.push_str("]}");
        }
    }
    text.push_str("]}}");
    text
}

/// Answers requests, one after the other, until they end.
fn serve(stream: &TcpStream, [events, total]: &[String; 2]) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut form = vec![0; length];
        reader.read_exact(&mut form).unwrap();
        let body = if String::from_utf8_lossy(&form).contains("code") { events } else { total };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut writer = stream;
        writer.write_all(head.as_bytes()).unwrap();
        writer.write_all(body.as_bytes()).unwrap();
    }
}
