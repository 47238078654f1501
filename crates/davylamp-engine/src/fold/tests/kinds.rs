//! Counts, distributions, and what follows from a metric.

use serde_json::Value;

use super::*;
use crate::observed::{Bucket, classic_buckets};

const BOUNDS: [f64; 4] = [0.1, 0.25, 0.5, f64::INFINITY];

/// One target scraped each interval; of each scrape what lies up to each bound.
fn histograms(bounds: &[f64], counts: &[[f64; 4]]) -> Vec<Increment> {
    scraped(3_000, &[(0.0, 0.0)].repeat(counts.len()))
        .into_iter()
        .zip(counts)
        .map(|(increment, counts)| {
            let below: Vec<f64> = counts
                .iter()
                .scan(0.0, |sum, n| {
                    *sum += n;
                    Some(*sum)
                })
                .collect();
            let buckets = classic_buckets(bounds, below.get(..bounds.len()).unwrap_or_default()).unwrap();
            let total = buckets.iter().map(|bucket| bucket.count).sum();
            Increment { total, buckets, ..increment }
        })
        .collect()
}

fn two(canary: Vec<Increment>, baseline: Vec<Increment>) -> BTreeMap<String, Targets> {
    BTreeMap::from([
        ("shop-new-1".to_owned(), BTreeMap::from([("a".to_owned(), canary)])),
        ("shop-old-1".to_owned(), BTreeMap::from([("a".to_owned(), baseline)])),
    ])
}

fn metric(kind: &str, body: &Value, more: &Value) -> Value {
    let mut metric = json!({"name": "errors", kind: body});
    for (key, value) in more.as_object().unwrap() {
        metric[key] = value.clone();
    }
    json!([metric])
}

fn latency() -> Value {
    metric("distribution", &json!({"histogram": "latency_seconds"}), &json!({}))
}

fn orders(more: &Value) -> Value {
    metric("count", &json!({"events": "orders_total", "exposure": "requests_total"}), more)
}

/// With pods that do not differ.
fn exact(metrics: &Value) -> Plan {
    let mut plan = plan_of(metrics);
    for metric in &mut plan.metrics {
        metric.pod_effect = 0.0;
    }
    plan
}

/// After all rounds.
fn folded<'a>(plan: &'a Plan, seconds: i64, all: &BTreeMap<String, Targets>) -> Fold<'a> {
    let mut fold = Fold::new(plan, &opened(plan), Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&samples(T0 + SETTLE, T0 + seconds * SECOND, all), &pods(LONG_AGO), &cohorts());
    while fold.look().is_some() {}
    fold
}

const GOOD: [f64; 4] = [300.0, 150.0, 45.0, 5.0];
const SLOW: [f64; 4] = [200.0, 200.0, 80.0, 20.0];

#[test]
fn a_slower_canary_is_found_and_one_alike_is_shown_to_be_good() {
    let plan = exact(&latency());
    let of = |canary: [f64; 4]| two(histograms(&BOUNDS, &[canary; 40]), histograms(&BOUNDS, &[GOOD; 40]));
    let slow = folded(&plan, 300, &of(SLOW));
    assert!(slow.regressed() && !slow.safe(), "{}", slow.log_e());
    assert_eq!(slow.culprits(), [0]);
    let good = folded(&plan, 600, &of(GOOD));
    assert!(!good.regressed() && good.safe(), "{:?}", good.records());
    let record = &good.records()[0];
    // A tenth of all values lies above 0.25.
    assert_eq!(record.above, Some(0.25));
    assert!((10.0 * record.canary.events - record.canary.exposure).abs() < 1e-6);
    assert!((record.ratio.unwrap() - 1.0).abs() < 1e-9);
    // The first block only says where the tail begins.
    assert_eq!(record.from, Some(time(T0 + SETTLE + 2 * INTERVAL)));
}

#[test]
fn versions_with_other_buckets_are_compared_in_those_in_common() {
    let plan = exact(&latency());
    let coarse = |counts: [f64; 4]| [counts[0], counts[1] + counts[2], counts[3], 0.0];
    let canary = histograms(&[0.1, 0.5, f64::INFINITY], &[coarse(SLOW); 40]);
    let fold = folded(&plan, 300, &two(canary, histograms(&BOUNDS, &[GOOD; 40])));
    assert!(fold.regressed() && fold.incomparable.is_empty(), "{}", fold.log_e());
    assert_eq!(fold.records()[0].above, Some(0.5));

    let other = histograms(&[0.2, f64::INFINITY], &[[900.0, 100.0, 0.0, 0.0]; 40]);
    let fold = folded(&plan, 300, &two(other, histograms(&BOUNDS, &[GOOD; 40])));
    assert!(fold.incomparable.contains("errors"));
    assert!(!fold.regressed() && !fold.safe());
    assert_eq!(fold.missing(), None, "it is there, and cannot be compared");
}

#[test]
fn buckets_that_go_in_mid_run_take_the_evidence_along() {
    let plan = exact(&latency());
    let coarse = |counts: [f64; 4]| [counts[0], counts[1] + counts[2], counts[3], 0.0];
    let mut canary = histograms(&BOUNDS, &[SLOW; 8]);
    canary.extend(histograms(&[0.1, 0.5, f64::INFINITY], &[coarse(SLOW); 40]).into_iter().skip(8));
    let all = two(canary, histograms(&BOUNDS, &[GOOD; 40]));
    let (before, after) = (folded(&plan, 120, &all), folded(&plan, 300, &all));
    assert_eq!((before.records()[0].above, after.records()[0].above), (Some(0.25), Some(0.5)));
    assert!(before.log_e() > 0.0 && after.log_e() > before.log_e());
}

/// Of custom bounds, without the empty buckets: the first rounds look exponential.
#[test]
fn native_histograms_with_custom_bounds_are_compared() {
    let plan = exact(&latency());
    let bounds = [0.1, 0.25, 0.5, 1.0, 2.5];
    let custom = |counts: [f64; 4]| -> Vec<Increment> {
        let like = scraped(3_000, &[(0.0, counts.iter().sum()); 40]).into_iter().zip(0..);
        let filled = like.map(|(increment, n)| {
            let all = bounds.windows(2).zip(counts);
            let bucket = |(ends, count): (&[f64], f64)| Bucket { lower: ends[0], upper: ends[1], count };
            let buckets: Vec<Bucket> =
                all.map(bucket).filter(|b| n > 3 || b.lower > 0.2 && b.upper < 2.0).collect();
            Increment { total: buckets.iter().map(|b| b.count).sum(), buckets, ..increment }
        });
        filled.collect()
    };
    let slow = folded(&plan, 300, &two(custom(SLOW), custom(GOOD)));
    assert!(slow.regressed() && slow.incomparable.is_empty(), "{}", slow.log_e());
    let good = folded(&plan, 600, &two(custom(GOOD), custom(GOOD)));
    assert!(!good.regressed() && good.safe() && good.incomparable.is_empty(), "{:?}", good.records());
}

#[test]
fn native_histograms_are_compared() {
    let plan = exact(&latency());
    let native = |first: f64, counts: [f64; 4]| -> Vec<Increment> {
        let buckets: Vec<Bucket> = (0..)
            .zip(counts)
            .map(|(i, count)| {
                let lower = first * f64::from(1 << i);
                Bucket { lower, upper: 2.0 * lower, count }
            })
            .collect();
        let total = counts.iter().sum();
        let like = scraped(3_000, &[(0.0, total); 40]).into_iter();
        like.map(|increment| Increment { buckets: buckets.clone(), ..increment }).collect()
    };
    let all = two(native(0.25, GOOD), native(0.125, GOOD));
    let slow = folded(&plan, 300, &all);
    assert!(slow.regressed() && slow.incomparable.is_empty());
    let good = folded(&plan, 600, &two(native(0.125, GOOD), native(0.125, GOOD)));
    assert!(!good.regressed() && good.safe());
}

#[test]
fn of_a_count_with_that_goal_more_is_better() {
    let plan = exact(&orders(&json!({"goal": "higher"})));
    let of = |events: f64| world(&[(events, 1_000.0); 80], &[(50.0, 1_000.0); 80]);
    let fewer = folded(&plan, 900, &of(30.0));
    assert!(fewer.regressed(), "{}", fewer.log_e());
    let record = &fewer.records()[0];
    assert!((record.ratio.unwrap() - 0.6).abs() < 1e-9 && (record.tolerated - 0.9).abs() < 1e-9);
    assert_eq!((record.margin, record.above), (0.5, None));
    let more = folded(&plan, 900, &of(70.0));
    assert!(!more.regressed() && more.safe());
    // The other way round.
    let plan = exact(&orders(&json!({})));
    assert!(folded(&plan, 900, &of(80.0)).regressed());
    assert!(!folded(&plan, 900, &of(30.0)).regressed());
}

#[test]
fn a_metric_has_an_impact_of_its_own() {
    let plan = exact(&orders(&json!({"goal": "higher", "maxServiceImpact": "15%"})));
    assert!((plan.metrics[0].margin(1.0) - 0.85).abs() < 1e-9);
    assert!((plan.metrics[0].margin(0.05) - 0.05).abs() < 1e-9, "never nothing at all");
}

#[test]
fn roles_share_the_false_rollback_rate() {
    let of = |name: &str, role: &str| json!({"name": name, "role": role, "ratio": {"events": "errors_total", "total": "requests_total"}});
    let weights = |roles: &[(&str, &str)]| -> Vec<f64> {
        let metrics: Vec<Value> = roles.iter().map(|(name, role)| of(name, role)).collect();
        exact(&json!(metrics)).metrics.iter().map(|metric| metric.weight).collect()
    };
    let (g, c, i) = ("gating", "critical", "informational");
    assert_eq!(weights(&[("a", c), ("b", g), ("d", g), ("e", i)]), [0.5, 0.25, 0.25, 0.0]);
    assert_eq!(weights(&[("a", c), ("b", i)]), [1.0, 0.0]);
    assert_eq!(weights(&[("a", g), ("b", g)]), [0.5, 0.5]);
    assert_eq!(weights(&[("a", i)]), [0.0]);
}

#[test]
fn an_informational_metric_is_shown_and_decides_nothing() {
    let plan = exact(&metric(
        "ratio",
        &json!({"events": "errors_total", "total": "requests_total"}),
        &json!({"role": "informational"}),
    ));
    let fold = folded(&plan, 600, &world(&[(50.0, 100.0); 40], &[(1.0, 100.0); 40]));
    assert!(!fold.regressed() && fold.safe() && fold.culprits().is_empty());
    assert!(fold.records()[0].log_e > 10.0);
    assert_eq!(fold.statuses()[0].evidence, Percent::ZERO);
}

fn any_histograms() -> impl Strategy<Value = Vec<Increment>> {
    let one = prop::collection::vec(0_u32..40, 4);
    (prop::collection::vec(one, 30), any::<bool>()).prop_map(|(all, coarse)| {
        let counts: Vec<[f64; 4]> =
            all.into_iter().map(|c| std::array::from_fn(|i| f64::from(c[i]))).collect();
        let fine = histograms(&BOUNDS, &counts);
        if !coarse {
            return fine;
        }
        // Later the middle bound is gone.
        let later = histograms(&[0.1, 0.5, f64::INFINITY], &counts);
        fine.into_iter().take(15).chain(later.into_iter().skip(15)).collect()
    })
}

proptest! {
    /// As for events: however often it is asked, written down and read again.
    #[test]
    fn the_same_histograms_give_the_same_bits(
        canary in any_histograms(),
        baseline in any_histograms(),
        mut polls in prop::collection::vec(0_i64..460, 1..40),
    ) {
        let (plan, observed) = (exact(&latency()), pods(T0 - 20 * SECOND));
        let all = two(canary, baseline);
        let (looks, once) = fold(&plan, &opened(&plan), T0 + 460 * SECOND, &all, &observed);
        polls.sort_unstable();
        polls.push(460);
        let (mut checkpoint, mut often) = (opened(&plan), Vec::new());
        for poll in polls {
            let (more, next) = fold(&plan, &checkpoint, T0 + poll * SECOND, &all, &observed);
            often.extend(more);
            checkpoint = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
        }
        prop_assert_eq!(looks, often);
        prop_assert_eq!(once.metrics, checkpoint.metrics);
    }
}
