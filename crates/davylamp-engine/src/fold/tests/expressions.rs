//! Expressions, and metrics whose cohorts are not told apart by pods.

use davylamp_api::rollout::Goal;
use davylamp_api::run::ExpressionRecord;

use super::*;

/// Asked each 15 s, from the first round after the weight was effective on.
fn asked(values: &[Option<f64>]) -> Samples {
    let numbers = (1..).zip(values).filter_map(|(i, value)| {
        let to = T0 + i * INTERVAL;
        Some(Increment { from: to, to, events: (*value)?, total: 1.0, buckets: Vec::new() })
    });
    let alone = BTreeMap::from([(String::new(), numbers.collect())]);
    let metric = MetricSamples { pods: BTreeMap::from([(String::new(), alone)]) };
    let until = T0 + i64::try_from(values.len()).unwrap() * INTERVAL;
    let metrics = BTreeMap::from([("p99".to_owned(), metric)]);
    Samples { since: T0 + SETTLE, until, metrics, ..Samples::default() }
}

fn plan_with(query: &str, more: &serde_json::Value) -> Plan {
    let mut metric = json!({"name": "p99", "expression": {"query": query, "max": 0.5, "min": -1}});
    for (key, value) in more.as_object().unwrap() {
        metric[key] = value.clone();
    }
    plan_of(&json!([metric]))
}

fn looked<'a>(plan: &'a Plan, kept: &Checkpoint, values: &[Option<f64>]) -> Fold<'a> {
    let mut fold = Fold::new(plan, kept, Percent::from_basis_points(5_000), Percent::FULL);
    let samples = Samples { since: kept.folded_until, ..asked(values) };
    fold.take(&samples, &Observed::default(), &cohorts());
    while fold.look().is_some() {}
    fold
}

fn of(values: &[Option<f64>], more: &serde_json::Value) -> (bool, bool, ExpressionRecord) {
    let plan = plan_with("p99{{{canary}}}", more);
    // Two rounds of the settle time do not count.
    let values = [&[Some(9.0); 2][..], values].concat();
    let fold = looked(&plan, &opened(&plan), &values);
    (!fold.exceeded().is_empty(), fold.safe(), fold.expressions().remove(0))
}

#[test]
fn three_values_in_a_row_outside_roll_back() {
    let (ok, bad, none) = (Some(0.5), Some(0.51), None);
    for (values, exceeded, safe) in [
        (&[bad, bad, bad][..], true, false),
        (&[bad, bad, ok, bad, bad], false, false),
        (&[bad, none, bad, none, bad], true, false),
        (&[Some(-1.1), bad, Some(-2.0)], true, false),
        (&[ok, ok, ok], false, true),
        (&[ok, ok], false, false),
        (&[bad, bad, ok], false, true),
        (&[ok, ok, ok, none], false, false),
        (&[ok, ok, ok, bad], false, false),
        (&[none, none, none], false, false),
        (&[Some(f64::NAN), ok, ok], false, false),
        (&[], false, false),
    ] {
        let (is_exceeded, is_safe, record) = of(values, &json!({}));
        assert_eq!((is_exceeded, is_safe), (exceeded, safe), "{values:?}: {record:?}");
        let informational = of(values, &json!({"role": "informational"}));
        assert_eq!(
            (informational.0, informational.1, informational.2.outside),
            (false, true, record.outside)
        );
    }
    let consecutive = json!({"expression": {"query": "p99", "max": 0.5, "consecutive": 1}});
    assert!(of(&[ok, bad], &consecutive).0 && of(&[ok], &consecutive).1);
}

#[test]
fn a_value_counts_when_all_that_it_depends_on_is_of_this_weight() {
    let plan = plan_with("rate(a[1m] offset 15s)", &json!({}));
    let count = |rounds: usize| {
        looked(&plan, &opened(&plan), &vec![Some(0.0); rounds]).expressions().remove(0).values
    };
    // Settled after two rounds; then 75 s.
    assert_eq!([6, 7, 8].map(count), [0, 1, 2]);
}

#[test]
fn nothing_is_spent_on_an_expression() {
    let ratio = json!({"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}});
    let both = plan_of(&json!([{"name": "p99", "expression": {"query": "p99", "max": 1}}, ratio]));
    assert!((both.alpha - 0.01).abs() < 1e-12 && (both.metrics[0].weight - 1.0).abs() < 1e-12);
    assert_eq!(both.queries().len(), 2);
}

#[test]
fn an_objective_finds_its_ratio_behind_other_kinds() {
    let strategy: Release = serde_json::from_value(json!({
        "canary": {}, "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}]
    }))
    .unwrap();
    let analysis: Analysis = serde_json::from_value(json!({
        "source": "prometheus",
        "metrics": [
            {"name": "p99", "expression": {"query": "p99", "max": 1}},
            {"name": "memory", "gauge": {"query": "memory_bytes"}},
            {"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}},
        ],
        "slos": [{"metric": "errors", "objective": "99%"}],
    }))
    .unwrap();
    let plan = Conduct::compile(&strategy, &analysis, None, &BTreeMap::new()).unwrap().analysis;
    assert!(plan.metrics[0].limit.is_some_and(|limit| limit.objective));
}

proptest! {
    /// Whenever it is polled, the same values give the same.
    #[test]
    fn polls_and_restarts_change_nothing(
        values in prop::collection::vec(prop::option::of(-2.0..2.0_f64), 1..30),
        cuts in prop::collection::btree_set(1_usize..30, 0..6),
    ) {
        let plan = plan_with("p99", &json!({}));
        let whole = looked(&plan, &opened(&plan), &values).expressions();
        let mut kept = opened(&plan);
        for cut in cuts.into_iter().filter(|cut| *cut < values.len()).chain([values.len()]) {
            let text = serde_json::to_string(&kept).unwrap();
            kept = serde_json::from_str(&text).unwrap();
            kept = looked(&plan, &kept, &values[..cut]).checkpoint(time(T0));
        }
        let again = Fold::new(&plan, &kept, Percent::from_basis_points(5_000), Percent::FULL);
        prop_assert_eq!(again.expressions(), whole);
    }
}

#[test]
fn what_is_counted_by_service_has_no_pods() {
    let ratio = json!({"events": "errors_total", "total": "requests_total"});
    let plan = plan_of(&json!([{"name": "errors", "ratio": ratio, "cohort": {"by": "service"}}]));
    assert_eq!(plan.metrics[0].pod_effect.to_bits(), 0.0_f64.to_bits());
    // A gateway counts from the first request on: it is of no pod that could be young.
    let (canary, baseline) = (vec![(1.0, 100.0); 20], vec![(9.0, 900.0); 20]);
    let young = pods(T0 + 200 * SECOND);
    let world = BTreeMap::from([
        ("shop-new-gw-1 new".to_owned(), BTreeMap::from([("{}".to_owned(), scraped(3_000, &canary))])),
        ("shop-new-gw-2 new".to_owned(), BTreeMap::from([("{}".to_owned(), scraped(5_000, &canary))])),
        ("shop-old-gw-1 old".to_owned(), BTreeMap::from([("{}".to_owned(), scraped(3_000, &baseline))])),
    ]);
    let (_, kept) = fold(&plan, &opened(&plan), T0 + 180 * SECOND, &world, &young);
    let row = kept.metrics["errors"].rows[0];
    // Ten rounds after the settle time, less the one that it ends in.
    assert_eq!(row.map(f64::to_bits), [18.0, 81.0, 1_800.0, 8_100.0].map(f64::to_bits));
    let record =
        Fold::new(&plan, &kept, Percent::from_basis_points(5_000), Percent::FULL).records().remove(0);
    assert!((record.tolerated - 1.1).abs() < 1e-9 && (record.margin - 1.5).abs() < 1e-9, "{record:?}");
    let recorded = calibration::without_pods(&plan).remove("errors").unwrap();
    assert_eq!(
        recorded.reason.as_deref(),
        Some("by service: pods are not told apart, no allowance for how they differ")
    );
}

#[test]
fn throughput_is_requests_for_the_share_of_the_traffic() {
    let plan = plan_of(&json!([{"name": "errors", "throughput": {"requests": "requests_total"}}]));
    let metric = &plan.metrics[0];
    assert_eq!((metric.exposure, metric.goal, metric.requests), (Exposure::Traffic, Goal::Higher, true));
    let seconds = |requests: f64| vec![(requests, 15.0); 60];
    // Half of the traffic, and a third of the requests.
    let world = world(&seconds(500.0), &seconds(1_000.0));
    let mut fold = Fold::new(&plan, &opened(&plan), Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&samples(T0 + SETTLE, T0 + 600 * SECOND, &world), &pods(T0 - 600 * SECOND), &cohorts());
    while fold.look().is_some() {}
    assert!(fold.regressed(), "{:?}", fold.records());
}
