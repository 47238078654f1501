//! A real Prometheus, fed by targets that answer each scrape by a script: resets, gaps, births, deaths, buckets that change.
//! What the controller reads of it are the increments that the script says, in whatever windows it asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use davylamp_engine::MetricQuery;
use davylamp_engine::observed::Increment;
use serde_json::{Value, json};

use super::scripted::{Found, TEXT, Target, read, read_simulated};
use super::shared::world;

/// What a target answers to one scrape: its counters of 200 and of 500, and the buckets of its histogram; None: nothing.
type Answer = Option<(&'static [(u16, u32)], &'static [(&'static str, u32)])>;

/// Begins anew in the sixth scrape with other buckets, after one that fails; its first errors come in the third.
const CANARY: &[Answer] = &[
    Some((&[(200, 100)], &[("0.1", 10), ("0.5", 15), ("+Inf", 20)])),
    Some((&[(200, 110)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    Some((&[(200, 120), (500, 3)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    None,
    Some((&[(200, 140), (500, 3)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    Some((&[(200, 7), (500, 1)], &[("0.1", 1), ("0.2", 2), ("0.5", 3), ("+Inf", 4)])),
    Some((&[(200, 17), (500, 2)], &[("0.1", 3), ("0.2", 4), ("0.5", 6), ("+Inf", 8)])),
];

/// One of its series is gone in the third scrape, and all of it after the fourth.
const LEAVES: &[Answer] = &[
    Some((&[(200, 50), (500, 5)], &[("0.1", 1), ("0.5", 1), ("+Inf", 1)])),
    Some((&[(200, 60), (500, 6)], &[("0.1", 2), ("0.5", 2), ("+Inf", 2)])),
    Some((&[(200, 70)], &[("0.1", 3), ("0.5", 3), ("+Inf", 4)])),
    Some((&[(200, 80)], &[("0.1", 3), ("0.5", 3), ("+Inf", 5)])),
    None,
];

/// Is not there before the fourth scrape, and what it has counted until then is not of this time.
const COMES: &[Answer] = &[
    None,
    None,
    None,
    Some((&[(200, 5), (500, 1)], &[("0.1", 70), ("0.5", 75), ("+Inf", 80)])),
    Some((&[(200, 15), (500, 1)], &[("0.1", 80), ("0.5", 85), ("+Inf", 90)])),
    Some((&[(200, 25), (500, 2)], &[("0.1", 80), ("0.5", 86), ("+Inf", 95)])),
];

/// The pod, its script, and what happened by it: requests, errors, values of the histogram, those above half a second.
const PODS: [(&str, &[Answer], [f64; 4]); 3] = [
    ("shop-aaaaaaaaaa-aaaaa", CANARY, [62.0, 5.0, 9.0, 3.0]),
    ("shop-bbbbbbbbbb-aaaaa", LEAVES, [31.0, 1.0, 4.0, 2.0]),
    ("shop-bbbbbbbbbb-bbbbb", COMES, [21.0, 1.0, 15.0, 4.0]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_of_a_real_prometheus_is_what_the_script_says() -> Result<()> {
    what_is_read_is_what_the_script_says("exporter", true, &json!({})).await
}

/// Prometheus keeps the classic histogram as a native one, whose bounds are those of the buckets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_histogram_that_prometheus_converts_is_read_like_a_classic_one() -> Result<()> {
    let job = json!({"convert_classic_histograms_to_nhcb": true});
    what_is_read_is_what_the_script_says("exporter-converts", false, &job).await
}

async fn what_is_read_is_what_the_script_says(name: &str, classic: bool, job: &Value) -> Result<()> {
    let world = world(name).await?;
    let whole = read(&world, targets(job), &metrics(classic)).await?;
    is_what_the_script_says(&whole, classic)
}

#[tokio::test]
async fn the_simulated_prometheus_says_the_same_of_the_same_scripts() -> Result<()> {
    let whole = read_simulated(targets(&json!({})), &metrics(true)).await?;
    is_what_the_script_says(&whole, true)?;
    is_what_the_sums_say(&read_simulated(wide_targets(), &errors()).await?)
}

fn errors() -> BTreeMap<String, MetricQuery> {
    let errors = MetricQuery::Counters {
        events: "requests_total{code=\"500\"}".to_owned(),
        total: "requests_total".to_owned(),
    };
    BTreeMap::from([("errors".to_owned(), errors)])
}

fn metrics(classic: bool) -> BTreeMap<String, MetricQuery> {
    let histogram = || "request_seconds".to_owned();
    let half = davylamp_api::scalar::Duration::from_millis(500);
    let mut metrics = errors();
    metrics.insert("latency".to_owned(), MetricQuery::Distribution { histogram: histogram() });
    if classic {
        metrics.insert("slow".to_owned(), MetricQuery::Slower { histogram: histogram(), than: half });
    }
    metrics
}

fn targets(job: &Value) -> Vec<Target> {
    let target = |&(pod, script, _): &(_, &'static [Answer], _)| Target {
        pod,
        scrapes: script.len(),
        answer: Box::new(move |at| script[at].map(|answer| (TEXT, text(answer)))),
        job: job.clone(),
    };
    PODS.iter().map(target).collect()
}

fn is_what_the_script_says(whole: &Found, classic: bool) -> Result<()> {
    for (pod, _, [requests, errors, values, slow]) in PODS {
        let found =
            |metric: &str| whole.get(&(metric.to_owned(), pod.to_owned())).cloned().unwrap_or_default();
        let sum =
            |increments: &[Increment], of: fn(&Increment) -> f64| increments.iter().map(of).sum::<f64>();
        let above = |one: &Increment| one.buckets.iter().filter(|b| b.lower >= 0.5).map(|b| b.count).sum();
        let (ratio, latency, tail) = (found("errors"), found("latency"), found("slow"));
        let counted = [
            sum(&ratio, |one| one.total),
            sum(&ratio, |one| one.events),
            sum(&latency, |one| one.total),
            sum(&latency, above),
        ];
        let same = |(counted, script): (&f64, &f64)| counted.total_cmp(script).is_eq();
        ensure!(
            counted.iter().zip(&[requests, errors, values, slow]).all(same),
            "{pod}: {counted:?}\n{ratio:#?}\n{latency:#?}"
        );
        ensure!(tail.is_empty() != classic, "{pod}: the increments of the histogram's buckets: {tail:?}");
    }
    Ok(())
}

/// Each counter of the script, at so many paths.
const PATHS: usize = 60;

/// As before, but where a sum falls this is not counted, and where a series goes its sum is less than what has grown.
const SUMS: [(&str, [f64; 2]); 3] = [
    ("shop-aaaaaaaaaa-aaaaa", [54.0, 4.0]),
    ("shop-bbbbbbbbbb-aaaaa", [25.0, 1.0]),
    ("shop-bbbbbbbbbb-bbbbb", [21.0, 1.0]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_with_too_many_series_is_read_as_one_sum_for_each_target() -> Result<()> {
    let world = world("exporter-wide").await?;
    is_what_the_sums_say(&read(&world, wide_targets(), &errors()).await?)
}

fn wide_targets() -> Vec<Target> {
    let target = |&(pod, script, _): &(_, &'static [Answer], _)| Target {
        pod,
        scrapes: script.len(),
        answer: Box::new(move |at| script[at].map(|(counters, _)| (TEXT, at_paths(counters)))),
        job: json!({}),
    };
    PODS.iter().map(target).collect()
}

fn is_what_the_sums_say(whole: &Found) -> Result<()> {
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let paths = PATHS as f64;
    for (pod, counted) in SUMS {
        let found = whole.get(&("errors".to_owned(), pod.to_owned())).cloned().unwrap_or_default();
        let sum = |of: fn(&Increment) -> f64| found.iter().map(of).sum::<f64>();
        let sums = [sum(|one| one.total), sum(|one| one.events)];
        let same = sums.iter().zip(counted).all(|(sum, one)| sum.total_cmp(&(paths * one)).is_eq());
        ensure!(same, "{pod}: {sums:?}\n{found:#?}");
    }
    Ok(())
}

fn at_paths(counters: &[(u16, u32)]) -> Vec<u8> {
    let mut text = "# TYPE requests_total counter\n".to_owned();
    for (code, value) in counters {
        for path in 0..PATHS {
            let _ = writeln!(text, "requests_total{{code=\"{code}\",path=\"/{path}\"}} {value}");
        }
    }
    text.into_bytes()
}

/// Requests by code, and values up to each bound.
type Counts<'a> = (&'a [(u16, u32)], &'a [(&'a str, u32)]);

fn text((counters, buckets): Counts<'_>) -> Vec<u8> {
    let mut text = "# TYPE requests_total counter\n".to_owned();
    for (code, value) in counters {
        let _ = writeln!(text, "requests_total{{code=\"{code}\"}} {value}");
    }
    text += "# TYPE request_seconds histogram\n";
    for (le, value) in buckets {
        let _ = writeln!(text, "request_seconds_bucket{{le=\"{le}\"}} {value}");
    }
    let all = buckets.last().map_or(0, |(_, value)| *value);
    let _ = writeln!(text, "request_seconds_sum {all}\nrequest_seconds_count {all}");
    text.into_bytes()
}
