#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod bound;

use std::sync::Mutex;

use davylamp_api::MetricSourceSpec;
use davylamp_api::rollout::{CohortBy, Cohorts};
use davylamp_engine::observed::Increment;
use davylamp_engine::{Named, Query};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::Answer;
use super::*;

const STEP: i64 = 15_000;

/// Answers by a function, and remembers what it was asked.
struct Source<F> {
    answer: F,
    asked: Mutex<Vec<(String, i64)>>,
}

impl<F: Fn(&str, i64) -> Vec<Series> + Send + Sync> MetricsApi for Source<F> {
    fn query<'a>(
        &'a self,
        _: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        self.asked.lock().unwrap().push((promql.to_owned(), at_ms));
        let series = (self.answer)(promql, at_ms);
        async move { Ok(Answer { series, partial: false }) }.boxed()
    }
}

fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> Series {
    Series {
        labels: labels.iter().copied().collect(),
        samples: samples.iter().map(|&(n, value)| (n * STEP, value)).collect(),
        ..Series::default()
    }
}

fn wanted(metric: MetricQuery, told: Option<Cohorts>) -> Wanted {
    let name = "metric".to_owned();
    let query = Query {
        source: "prom".to_owned(),
        since: STEP,
        pods: BTreeSet::from(["web-new-".to_owned(), "web-old-".to_owned()]),
        cohorts: Some(Named::of("web", "new", "old", None)),
        metrics: BTreeMap::from([(name.clone(), metric)]),
        told: told.into_iter().map(|told| (name.clone(), told)).collect(),
        summable: BTreeSet::from([name.clone()]),
        summed: BTreeSet::new(),
        scrape_interval_ms: STEP,
        delay_ms: 0,
    };
    Wanted { query, source: MetricSourceSpec::default() }
}

async fn fetched<F: Fn(&str, i64) -> Vec<Series> + Send + Sync>(
    wanted: &Wanted,
    until: i64,
    answer: F,
) -> (Result<Samples, String>, Vec<(String, i64)>) {
    let source = Source { answer, asked: Mutex::default() };
    let samples =
        fetch(&source, &texts("shop", wanted), wanted, until * STEP, None, QueryError::has_too_many_series)
            .await;
    (samples.map_err(|failure| failure.to_string()), source.asked.into_inner().unwrap())
}

fn by_service() -> Cohorts {
    Cohorts { by: CohortBy::Service, ..Cohorts::default() }
}

/// The sums over all targets of the pods that begin so, at each scrape.
fn sums(samples: &Samples, prefix: &str) -> Vec<(i64, f64, f64)> {
    let pods = samples.metrics["metric"].pods.iter().filter(|(pod, _)| pod.starts_with(prefix));
    let mut sums: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    for Increment { to, events, total, .. } in pods.flat_map(|(_, targets)| targets.values().flatten()) {
        let (x, n) = sums.entry(to / STEP).or_default();
        *x += events;
        *n += total;
    }
    sums.into_iter().map(|(at, (x, n))| (at, x, n)).collect()
}

#[tokio::test]
async fn increments_of_a_gateway_are_of_one_target_and_one_cohort() {
    let counters = MetricQuery::Counters { events: "e{code=~\"5..\"}".to_owned(), total: "e".to_owned() };
    let wanted = wanted(counters, Some(by_service()));
    let one = |service: &str, instance: &str, code: &str, samples: &[(i64, f64)]| {
        series(&[("service", service), ("instance", instance), ("code", code)], samples)
    };
    let (samples, asked) = fetched(&wanted, 4, |text, _| {
        let errors = [
            one("web-canary", "a", "500", &[(1, 1.0), (2, 2.0), (3, 2.0), (4, 4.0)]),
            // This gateway has begun anew: what it counts is no difference to the other.
            one("web-canary", "b", "500", &[(1, 70.0), (2, 71.0), (3, 1.0), (4, 1.0)]),
            one("web-stable", "a", "500", &[(1, 5.0), (2, 6.0), (3, 8.0), (4, 8.0)]),
        ];
        let good = [
            one("web-canary", "a", "200", &[(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0)]),
            one("web-canary", "b", "200", &[(1, 900.0), (2, 905.0), (3, 5.0), (4, 10.0)]),
            one("web-stable", "a", "200", &[(1, 100.0), (2, 200.0), (3, 300.0), (4, 400.0)]),
            one("another", "a", "200", &[(1, 1.0), (2, 1e6), (3, 2e6), (4, 3e6)]),
        ];
        if text.contains("code") { errors.to_vec() } else { [&good[..], &errors[..]].concat() }
    })
    .await;
    assert_eq!(
        asked[0].0.split_once('[').unwrap().0,
        r#"e{code=~"5..",namespace="shop",service=~"web-canary|web-stable"}"#
    );
    let samples = samples.unwrap();
    assert_eq!(sums(&samples, "web-new-"), [(2, 2.0, 17.0), (3, 1.0, 16.0), (4, 2.0, 17.0)]);
    assert_eq!(sums(&samples, "web-old-"), [(2, 1.0, 101.0), (3, 2.0, 102.0), (4, 0.0, 100.0)]);
    let all: Vec<_> = samples.metrics["metric"].pods.keys().map(String::as_str).collect();
    assert_eq!(all, ["web-new-a web-canary", "web-new-b web-canary", "web-old-a web-stable"]);
}

#[tokio::test]
async fn a_gateway_that_is_read_twice_counts_once() {
    let wanted = wanted(MetricQuery::Counter { counter: "e".to_owned() }, Some(by_service()));
    let (samples, _) = fetched(&wanted, 3, |_, _| {
        let one = |replica: &str| {
            series(
                &[("service", "web-canary"), ("instance", "a"), ("prometheus_replica", replica)],
                &[(1, 1.0), (2, 2.0), (3, 3.0)],
            )
        };
        vec![one("x"), one("y")]
    })
    .await;
    // Two targets of one pod: the engine takes one of them.
    let pods = samples.unwrap().metrics["metric"].pods.clone();
    assert_eq!(pods.values().map(BTreeMap::len).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn what_two_servers_read_is_told_apart_by_the_labels_that_the_source_names() {
    let metric = MetricQuery::Counter { counter: "e".to_owned() };
    let answer = |text: &str, _: i64| {
        let one = |server: &str| {
            let labels = [("pod", "web-new-aaaaa"), ("job", "pods"), ("cluster", server)];
            if text.starts_with("max by") {
                #[allow(clippy::cast_precision_loss, reason = "small")]
                let seconds = |n: i64| (n, (n * STEP) as f64 / 1_000.0);
                series(&labels, &[seconds(1), seconds(2), seconds(3)])
            } else {
                series(&labels, &[(1, 10.0), (2, 30.0), (3, 50.0)])
            }
        };
        vec![one("x"), one("y")]
    };
    for summed in [false, true] {
        let mut wanted = wanted(metric.clone(), None);
        wanted.query.summed.extend(summed.then(|| "metric".to_owned()));
        wanted.source.replica_labels = Some(vec!["cluster".to_owned()]);
        let (samples, asked) = fetched(&wanted, 3, answer).await;
        let targets = samples.unwrap().metrics["metric"].pods["web-new-aaaaa"].clone();
        let names: Vec<_> = targets.keys().map(String::as_str).collect();
        assert_eq!(names, [r#"{job="pods",cluster="x"}"#, r#"{job="pods",cluster="y"}"#]);
        for increments in targets.values() {
            let events: Vec<_> = increments.iter().map(|one| (one.to / STEP, one.events)).collect();
            assert_eq!(events, [(2, 20.0), (3, 20.0)]);
        }
        let by = "pod,container,endpoint,instance,job,prometheus,prometheus_replica,replica,service,cluster";
        assert_eq!(asked.iter().all(|(text, _)| text.contains(&format!("by ({by})"))), summed, "{asked:?}");
    }

    // Nobody names it: both are of one target.
    let (samples, _) = fetched(&wanted(metric, None), 3, answer).await;
    assert_eq!(sums(&samples.unwrap(), "web-new-"), [(2, 40.0, 15.0), (3, 40.0, 15.0)]);
}

#[tokio::test]
async fn a_distribution_of_a_gateway_is_folded_by_service() {
    let label = Some("exported_service".to_owned());
    let told = Cohorts { label, ..by_service() };
    let wanted = wanted(MetricQuery::Distribution { histogram: "latency_seconds".to_owned() }, Some(told));
    let labels = |le: Option<&'static str>| {
        let all = [("exported_service", "web-canary"), ("instance", "a")];
        all.into_iter().chain(le.map(|le| ("le", le))).collect::<Vec<_>>()
    };
    let (samples, asked) = fetched(&wanted, 3, |text, _| {
        #[allow(clippy::cast_precision_loss, reason = "small")]
        let seconds = |n: i64| (n, (n * STEP) as f64 / 1_000.0);
        if text.starts_with("max by") {
            return vec![series(&labels(None), &[seconds(1), seconds(2), seconds(3)])];
        }
        let counts = |each: f64| [(1, each), (2, 2.0 * each), (3, 3.0 * each)];
        vec![series(&labels(Some("0.1")), &counts(3.0)), series(&labels(Some("+Inf")), &counts(5.0))]
    })
    .await;
    let by =
        "pod,container,endpoint,instance,job,prometheus,prometheus_replica,replica,service,exported_service";
    assert!(asked.iter().all(|(text, _)| text.contains(&format!("by ({by}"))), "{asked:?}");
    assert_eq!(sums(&samples.unwrap(), "web-new-"), [(2, 0.0, 5.0), (3, 0.0, 5.0)]);
}

#[tokio::test]
async fn a_counter_with_too_many_series_is_read_as_one_sum_for_each_target() {
    let counters = MetricQuery::Counters { events: "e{code=~\"5..\"}".to_owned(), total: "e".to_owned() };
    let mut wanted = wanted(counters, None);
    #[allow(clippy::cast_precision_loss, reason = "small")]
    let seconds = |n: i64| (n, (n * STEP) as f64 / 1_000.0);
    let answer = |text: &str, _: i64| {
        let labels = [("pod", "web-new-aaaaa"), ("job", "pods")];
        let (paths, each) = if text.contains("code") { (51, 1.0) } else { (60, 10.0) };
        let sum = f64::from(paths) * each;
        if text.starts_with("max by") {
            return vec![series(&labels, &[seconds(1), seconds(2), seconds(3)])];
        }
        if text.starts_with("sum by") {
            return vec![series(&labels, &[(1, sum), (2, 2.0 * sum), (3, 3.0 * sum)])];
        }
        let path = |n: i32| {
            let n = n.to_string();
            let labels = [&labels[..], &[("path", n.as_str())]].concat();
            series(&labels, &[(1, each), (2, 2.0 * each), (3, 3.0 * each)])
        };
        (0..paths).map(path).collect()
    };
    let increments = [(2, 51.0, 600.0), (3, 51.0, 600.0)];
    let (samples, asked) = fetched(&wanted, 3, answer).await;
    let samples = samples.unwrap();
    assert_eq!(sums(&samples, "web-new-"), increments);
    assert_eq!(samples.summed, BTreeSet::from(["metric".to_owned()]));
    let by = "by (pod,container,endpoint,instance,job,prometheus,prometheus_replica,replica,service)";
    let matchers = r#"namespace="shop",pod=~"web-new-[a-z0-9]{5}|web-old-[a-z0-9]{5}"}"#;
    let sums_asked: BTreeSet<_> = asked.iter().map(|(text, _)| text.as_str()).collect();
    assert!(
        sums_asked.contains(&*format!("sum {by} (e{{code=~\"5..\",{matchers})[75000ms:7500ms]")),
        "{asked:?}"
    );
    assert!(
        sums_asked.contains(&*format!("max {by} (timestamp(e{{{matchers}))[75000ms:7500ms]")),
        "{asked:?}"
    );

    // What was too wide once is not tried again.
    wanted.query.summed = samples.summed;
    let (again, asked) = fetched(&wanted, 3, answer).await;
    assert_eq!((again.unwrap().metrics, asked.len()), (samples.metrics, 3));

    // A gauge is read series by series, and what is wide as a sum as well is an error.
    wanted.query.summed.clear();
    wanted.query.metrics =
        BTreeMap::from([("metric".to_owned(), MetricQuery::Gauge { gauge: "g".to_owned() })]);
    let (samples, _) = fetched(&wanted, 3, answer).await;
    assert!(
        samples.unwrap_err().contains("60 series of 1 pods, more than 50 a pod: record `sum without (path)")
    );
}

#[tokio::test]
async fn an_expression_is_asked_for_at_the_ends_of_rounds() {
    let query = "sum(rate(e{{{canary}}}[1m]))".to_owned();
    let wanted = wanted(MetricQuery::Expression { query }, None);
    let value = |at: i64| match at / STEP {
        2 => vec![series(&[], &[(2, 0.5)])],
        3 => vec![series(&[], &[(3, f64::NAN)])],
        4 => vec![series(&[], &[(4, f64::INFINITY)])],
        _ => Vec::new(),
    };
    let (samples, mut asked) = fetched(&wanted, 5, |_, at| value(at)).await;
    asked.sort_by_key(|(_, at)| *at);
    assert_eq!(asked.iter().map(|(_, at)| at / STEP).collect::<Vec<_>>(), [2, 3, 4, 5]);
    assert_eq!(asked[0].0, r#"sum(rate(e{namespace="shop",pod=~"web-new-[a-z0-9]{5}"}[1m]))"#);
    let samples = samples.unwrap();
    assert_eq!(sums(&samples, ""), [(2, 0.5, 1.0), (4, f64::MAX, 1.0)]);

    let two = |_: &str, _: i64| vec![series(&[("a", "1")], &[(2, 1.0)]), series(&[("a", "2")], &[(2, 1.0)])];
    let (samples, _) = fetched(&wanted, 2, two).await;
    assert!(
        samples
            .unwrap_err()
            .ends_with("2 series where one number is wanted: aggregate them, as by sum(..) or max(..)")
    );
}

#[tokio::test]
async fn what_is_told_by_a_service_is_never_asked_for_without_names() {
    let mut wanted = wanted(MetricQuery::Counter { counter: "e".to_owned() }, Some(by_service()));
    wanted.query.cohorts = None;
    let (samples, asked) = fetched(&wanted, 3, |_, _| Vec::new()).await;
    assert!(
        asked.is_empty() && samples.unwrap_err().contains("it is not known which series are the canary's")
    );
}
