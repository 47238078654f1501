#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "small numbers"
)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::decision::{MetricQuery, Query};
use crate::observed::{Increment, MetricSamples, classic_buckets};

const INTERVAL: i64 = 15_000;
const HOUR: i64 = 240;

fn query(steps: &[(&str, Option<i32>)]) -> HistoryQuery {
    let counters = MetricQuery::Counters { events: "errors".to_owned(), total: "requests".to_owned() };
    HistoryQuery {
        query: Query {
            source: "prometheus".to_owned(),
            since: 0,
            pods: BTreeSet::from(["shop-old-".to_owned()]),
            metrics: BTreeMap::from([("errors".to_owned(), counters)]),
            summable: BTreeSet::new(),
            summed: BTreeSet::new(),
            scrape_interval_ms: INTERVAL,
            delay_ms: INTERVAL,
            ..Query::default()
        },
        gaps: false,
        length: 12 * HOUR * INTERVAL,
        warmup: 60_000,
        steps: steps.iter().map(|(weight, own)| (weight.parse().unwrap(), *own)).collect(),
        alpha: 0.01,
    }
}

type Pods = Vec<Vec<Increment>>;

/// So many scrapes of each pod, 50 requests each, with the events that the function says, each pod at a moment of its own.
fn pods(pods: i64, scrapes: i64, events: impl Fn(i64, i64) -> f64) -> Pods {
    let scrape = |pod: i64, n: i64| Increment {
        from: n * INTERVAL + 700 * pod,
        to: (n + 1) * INTERVAL + 700 * pod,
        events: events(pod, n),
        total: 50.0,
        ..Increment::default()
    };
    (0..pods).map(|pod| (0..scrapes).map(|n| scrape(pod, n)).collect()).collect()
}

/// One error now and then, at one pod or another.
fn healthy(pod: i64, n: i64) -> f64 {
    if (7 * n + 3 * pod) % 31 == 0 { 1.0 } else { 0.0 }
}

fn window(pods: &Pods, since: i64, until: i64, target: &str) -> Samples {
    let of_pod = |(i, all): (usize, &Vec<Increment>)| {
        let inside = all.iter().filter(|one| one.to > since && one.to <= until).cloned().collect();
        (format!("shop-old-{i:02}"), BTreeMap::from([(target.to_owned(), inside)]))
    };
    let metric = MetricSamples { pods: pods.iter().enumerate().map(of_pod).collect() };
    Samples { since, until, metrics: BTreeMap::from([("errors".to_owned(), metric)]), ..Samples::default() }
}

fn learnt(of: HistoryQuery, pods: &Pods) -> Calibrated {
    let mut history = History::new(of);
    history.add(&window(pods, -1, i64::MAX, "a"));
    history.learn(None).metrics["errors"].clone()
}

#[test]
fn a_calm_history_leads_to_the_shortest_blocks_and_pods_that_do_not_differ() {
    let calibrated = learnt(query(&[("10%", None), ("50%", None)]), &pods(6, 3 * HOUR, healthy));
    assert_eq!((calibrated.block, calibrated.clip), (Duration::from_secs(15), std::f64::consts::LN_10));
    // Without the warm-up of a minute; a round more because pods are scraped at moments of their own.
    assert_eq!((calibrated.pods, calibrated.history), (6, Duration::from_secs(3 * 3_600 - 60 + 15)));
    assert_eq!((calibrated.placebos, calibrated.alarms, calibrated.reason), (12, 0, None));
    assert!(calibrated.pod_effect < 0.02, "{}", calibrated.pod_effect);
}

#[test]
fn bursts_lead_to_longer_blocks_and_a_smaller_clip() {
    // One pod after the other fails for a minute and a half, every ten minutes.
    let burst = |pod: i64, n: i64| if n / 40 % 6 == pod && n % 40 < 6 { 20.0 } else { healthy(pod, n) };
    let calibrated = learnt(query(&[("10%", None), ("50%", None)]), &pods(6, 4 * HOUR, burst));
    assert!(calibrated.block >= Duration::from_secs(30), "{calibrated:?}");
    assert!(calibrated.clip <= 1.5, "{calibrated:?}");
}

#[test]
fn pods_that_differ_are_measured() {
    let uneven =
        |pod: i64, n: i64| if (n + pod) % 10 == 0 { [8.0, 10.0, 12.0, 9.0, 11.0][pod as usize] } else { 0.0 };
    let calibrated = learnt(query(&[("20%", None)]), &pods(5, 12 * HOUR, uneven));
    // ln(8..12) has a deviation of 16 %, raised for five pods.
    assert!((0.15..0.25).contains(&calibrated.pod_effect), "{calibrated:?}");
}

#[test]
fn pods_of_a_distribution_differ_by_their_values() {
    let counts = |slow: bool| if slow { [30.0, 42.0, 48.0, 50.0] } else { [40.0, 46.0, 49.0, 50.0] };
    let learn = |slow: fn(usize) -> bool| {
        let mut all = pods(5, 4 * HOUR, |_, _| 0.0);
        for (i, increment) in
            all.iter_mut().enumerate().flat_map(|(i, pod)| pod.iter_mut().map(move |one| (i, one)))
        {
            increment.buckets = classic_buckets(&[0.1, 0.2, 0.5, f64::INFINITY], &counts(slow(i))).unwrap();
        }
        learnt(query(&[("20%", None)]), &all)
    };
    let alike = learn(|_| false);
    assert_eq!((alike.pod_effect, alike.alarms, &alike.reason), (0.0, 0, &None));
    // 89 ms and 128 ms, on average.
    let uneven = learn(|pod| pod % 2 == 1);
    assert!((0.2..0.35).contains(&uneven.pod_effect), "{uneven:?}");
    // What lies above 0.2 s is an event: 2 or 8 of 50, without end.
    assert!(uneven.alarms > 0, "{uneven:?}");
}

#[test]
fn too_little_says_so_and_has_the_defaults() {
    for (pods, expected) in [
        (pods(2, 4 * HOUR, healthy), "fewer than 3 pods were seen: the defaults hold"),
        (pods(6, HOUR / 2, healthy), "less than 1h was seen: the defaults hold"),
        (Vec::new(), "fewer than 3 pods were seen: the defaults hold"),
    ] {
        let calibrated = learnt(query(&[("20%", None)]), &pods);
        let default = defaults(INTERVAL);
        assert_eq!(calibrated.reason.as_deref(), Some(expected));
        assert_eq!(
            (calibrated.block, calibrated.clip, calibrated.pod_effect),
            (default.block, default.clip, default.pod_effect),
            "{expected}"
        );
    }
    let calibrated = learnt(query(&[("20%", None)]), &pods(6, HOUR + 20, healthy));
    assert!(calibrated.reason.unwrap().starts_with("fewer than 3 pods were seen for 2h"));
    assert_eq!((calibrated.pod_effect, calibrated.placebos), (DEFAULT_POD_EFFECT, 6));
    let mut history = History::new(query(&[("20%", None)]));
    history.add(&window(&pods(6, 3 * HOUR, healthy), -1, i64::MAX, "a"));
    let reason = history.learn(Some("it broke off")).metrics["errors"].reason.clone();
    assert_eq!(reason.as_deref(), Some("it broke off"));
}

#[test]
fn what_a_pod_did_before_it_was_warm_is_left_out() {
    // Each pod fails in its first minute, and gets its first requests three scrapes after it is first seen.
    let mut all = pods(6, 3 * HOUR, |_, n| if n < 7 { 50.0 } else { 0.0 });
    for increment in all.iter_mut().flat_map(|pod| pod.iter_mut().take(3)) {
        (increment.events, increment.total) = (0.0, 0.0);
    }
    let calibrated = learnt(query(&[("50%", None)]), &all);
    assert!(calibrated.pod_effect.abs() < f64::EPSILON && calibrated.alarms == 0, "{calibrated:?}");
    let unfiltered = learnt(HistoryQuery { warmup: 0, ..query(&[("50%", None)]) }, &all);
    assert!(unfiltered.history > calibrated.history);
}

#[test]
fn the_canary_is_tried_in_a_few_of_its_sizes() {
    let tried = |steps: &[(&str, Option<i32>)], pods: usize| {
        sizes(&query(steps).steps, pods).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(tried(&[("1%", None), ("5%", None), ("25%", None), ("50%", None)], 20), [1, 5, 10]);
    assert_eq!(tried(&[("1%", Some(4)), ("90%", None)], 20), [4, 10]);
    let many: Vec<(String, Option<i32>)> = (1..50).map(|weight| (format!("{weight}%"), None)).collect();
    let many: Vec<(&str, Option<i32>)> = many.iter().map(|(weight, own)| (weight.as_str(), *own)).collect();
    assert_eq!(tried(&many, 64), [1, 11, 21, 32]);
    assert_eq!(tried(&[], 20), [0; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// However it is cut, in whatever order the windows come, whatever the pods are called, and scraped once or twice.
    #[test]
    fn the_same_past_says_the_same(
        seed in 1_i64..1_000,
        mut cuts in prop::collection::vec(0_i64..3 * HOUR * INTERVAL, 0..6),
        turn in 0_usize..5,
        backwards in any::<bool>(),
        twice in any::<bool>(),
    ) {
        let events = |pod: i64, n: i64| if (n * seed + pod * 17) % 23 == 0 { ((n * pod) % 3) as f64 } else { 0.0 };
        let all = pods(5, 3 * HOUR, events);
        let once = learnt(query(&[("20%", None), ("40%", None)]), &all);
        cuts.extend([-1, i64::MAX]);
        cuts.sort_unstable();
        let mut windows: Vec<(i64, i64)> = cuts.iter().copied().zip(cuts.iter().copied().skip(1)).collect();
        if backwards {
            windows.reverse();
        }
        let mut history = History::new(query(&[("20%", None), ("40%", None)]));
        for (since, until) in windows {
            history.add(&window(&all, since, until, "a"));
            if twice {
                history.add(&window(&all, since, until, "b"));
            }
        }
        prop_assert_eq!(&once, &history.learn(None).metrics["errors"]);
        // Other names, in the same circle.
        let mut turned = all;
        turned.rotate_left(turn);
        let turned = learnt(query(&[("20%", None), ("40%", None)]), &turned);
        prop_assert!((turned.pod_effect - once.pod_effect).abs() < 2e-6);
        prop_assert_eq!(Calibrated { pod_effect: once.pod_effect, ..turned }, once);
    }
}
