//! Gauges, and counts for time.

use super::*;

/// Pods of both cohorts, ready for long.
pub(super) fn ready(world: &BTreeMap<String, Targets>) -> Observed {
    let revision = |cohort: &str| {
        let pods = world.keys().filter(|pod| pod.starts_with(cohort));
        let pods = pods.map(|pod| (pod.clone(), ready_since(LONG_AGO))).collect();
        Revision { pods, ..Revision::default() }
    };
    Observed {
        revisions: BTreeMap::from([
            ("new".to_owned(), revision("shop-new-")),
            ("old".to_owned(), revision("shop-old-")),
        ]),
        ..Observed::default()
    }
}

/// Constant values, one of each pod.
fn levels(canary: &[f64], baseline: &[f64], scrapes: usize) -> BTreeMap<String, Targets> {
    let pod = |cohort: &str, i: usize, value: f64| {
        let increments = scraped(3_000, &vec![(value, 1.0); scrapes]);
        (format!("shop-{cohort}-{i:05}"), BTreeMap::from([("a".to_owned(), increments)]))
    };
    let canary = canary.iter().enumerate().map(|(i, value)| pod("new", i, *value));
    canary.chain(baseline.iter().enumerate().map(|(i, value)| pod("old", i, *value))).collect()
}

fn asked(name: &str, until: i64, pods: &BTreeMap<String, Targets>) -> Samples {
    let mut samples = samples(T0 + SETTLE, until, pods);
    let metric = samples.metrics.remove("errors").unwrap();
    samples.metrics.insert(name.to_owned(), metric);
    samples
}

fn memory(more: &serde_json::Value) -> Plan {
    let mut gauge = json!({"name": "memory", "gauge": {"query": "memory_bytes"}});
    for (key, value) in more.as_object().unwrap() {
        gauge[key] = value.clone();
    }
    plan_of(&json!([gauge]))
}

/// The ends of rounds at which pods were compared, and the fold after all of them.
fn looked<'a>(plan: &'a Plan, world: &BTreeMap<String, Targets>, seconds: i64) -> (Vec<i64>, Fold<'a>) {
    let mut fold = Fold::new(plan, &opened(plan), Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&asked("memory", T0 + seconds * SECOND, world), &ready(world), &cohorts());
    let (mut looks, mut before) = (Vec::new(), None);
    while let Some(end) = fold.look() {
        let last = fold.gauges()[0].at;
        if last != before {
            looks.push((end - T0) / SECOND);
            before = last;
        }
    }
    (looks, fold)
}

#[test]
fn budget_and_looks_are_shared_beforehand() {
    let both = plan_of(&json!([
        {"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}},
        {"name": "memory", "gauge": {"query": "memory_bytes"}},
        {"name": "cpu", "gauge": {"query": "cpu_seconds_total", "dividedBy": "requests_total"}},
        {"name": "heap", "gauge": {"query": "heap_bytes", "compare": "growth"}},
    ]));
    assert!((both.alpha - 0.008).abs() < 1e-12);
    let limits: Vec<f64> = both.gauges.iter().map(|gauge| gauge.limit).collect();
    // One step of an hour: six looks of two gauges that decide.
    assert_eq!(both.gauges[0].looks, 6);
    assert!((limits[0] - 0.002 / 12.0).abs() < 1e-12 && (limits[1] - limits[0]).abs() < 1e-12);
    assert_eq!(
        (limits[2].to_bits(), both.gauges[2].decides),
        (0.0_f64.to_bits(), false),
        "a growth decides nothing"
    );
    assert!((plan().alpha - 0.01).abs() < 1e-12, "without gauges all is for what is counted");
    let alone = memory(&json!({}));
    assert!((alone.gauges[0].limit - 0.01 / 6.0).abs() < 1e-12, "gauges alone have all");
}

#[test]
fn pods_are_compared_at_declared_times() {
    let plan = memory(&json!({}));
    let world = levels(&[100.0, 102.0, 98.0], &[101.0, 99.0, 100.0, 103.0], 140);
    let (looks, fold) = looked(&plan, &world, 1_900);
    // hold.min, for nothing else is to be shown; then each ten minutes.
    assert_eq!(looks, [180, 600, 1_200, 1_800]);
    assert!(fold.safe() && !fold.regressed());
    let record = &fold.gauges()[0];
    assert_eq!((record.pods, record.look, record.looks), ([3, 4], 4, 6));
    assert!((record.canary.unwrap() - 99.986_66).abs() < 1e-4, "{record:?}");
}

#[test]
fn a_canary_that_needs_more_is_rolled_back_and_a_restart_changes_nothing() {
    let plan = memory(&json!({}));
    let world = levels(&[152.0, 149.0, 151.0], &[101.0, 99.0, 100.0, 103.0], 140);
    let (_, fold) = looked(&plan, &world, 200);
    assert!(fold.regressed() && !fold.safe());
    let record = fold.gauges().remove(0);
    assert_eq!(record.verdict, davylamp_api::status::Verdict::Regressed);
    assert!(record.p.unwrap() <= record.limit);

    let mut kept = opened(&plan);
    for until in (45..=200).step_by(15) {
        let text = serde_json::to_string(&kept).unwrap();
        kept = serde_json::from_str(&text).unwrap();
        let mut fold = Fold::new(&plan, &kept, Percent::from_basis_points(5_000), Percent::FULL);
        let mut samples = asked("memory", T0 + until * SECOND, &world);
        samples.since = kept.folded_until;
        fold.take(&samples, &ready(&world), &cohorts());
        while fold.look().is_some() {}
        kept = fold.checkpoint(time(T0));
    }
    let again = Fold::new(&plan, &kept, Percent::from_basis_points(5_000), Percent::FULL);
    assert_eq!(again.gauges(), [GaugeRecord { until: Some(time(T0 + 195 * SECOND)), ..record }]);
    assert!(again.regressed());
}

#[test]
fn few_pods_show_no_harm_and_one_of_each_informs() {
    let plan = memory(&json!({}));
    let (_, two) = looked(&plan, &levels(&[130.0, 90.0], &[100.0, 101.0], 140), 200);
    assert!(two.safe() && two.gauges()[0].p.is_some());
    let (_, one) = looked(&plan, &levels(&[900.0], &[100.0], 140), 1_900);
    let record = &one.gauges()[0];
    assert!(one.safe() && !one.regressed() && record.p.is_none() && record.look == 0, "{record:?}");
    let (looks, none) = looked(&plan, &levels(&[100.0], &[], 140), 700);
    assert!(looks.is_empty() && !none.safe(), "without a baseline nothing is shown");
    // Three that differ so much that the bound lies above the margin of 1.5.
    let (_, three) = looked(&plan, &levels(&[200.0, 60.0, 110.0], &[100.0, 101.0], 140), 200);
    assert!(!three.safe() && !three.regressed());
}

#[test]
fn no_look_after_the_declared_ones_rolls_back() {
    let plan = memory(&json!({}));
    let world = levels(&[100.0, 102.0, 98.0], &[101.0, 99.0, 100.0, 103.0], 300);
    let mut spent = opened(&plan);
    spent.gauges.get_mut("memory").unwrap().looks = 6;
    let worse = levels(&[152.0, 149.0, 151.0], &[101.0, 99.0, 100.0, 103.0], 300);
    for (world, safe) in [(&world, true), (&worse, false)] {
        let mut fold = Fold::new(&plan, &spent, Percent::from_basis_points(5_000), Percent::FULL);
        fold.take(&asked("memory", T0 + 200 * SECOND, world), &ready(world), &cohorts());
        while fold.look().is_some() {}
        assert_eq!((fold.regressed(), fold.safe()), (false, safe));
    }
}

#[test]
fn a_growth_is_told_and_decides_nothing() {
    let plan = plan_of(&json!([{"name": "memory", "gauge": {"query": "memory_bytes", "compare": "growth"}}]));
    let grows = |rate: f64| -> Vec<Increment> {
        let mut increments = scraped(3_000, &[(0.0, 1.0); 140]);
        for one in &mut increments {
            #[allow(clippy::cast_precision_loss)]
            let minutes = (one.to - T0) as f64 / 60_000.0;
            one.events = 100.0 + rate * minutes;
        }
        increments
    };
    let pod = |name: &str, rate: f64| (name.to_owned(), BTreeMap::from([("a".to_owned(), grows(rate))]));
    let world = BTreeMap::from([
        pod("shop-new-1", 10.0),
        pod("shop-new-2", 11.0),
        pod("shop-old-1", 0.0),
        pod("shop-old-2", 0.5),
    ]);
    let (_, fold) = looked(&plan, &world, 1_210);
    let record = &fold.gauges()[0];
    // From 63 s to the mean of the stretch from 15 to 18 minutes.
    assert!((record.canary.unwrap() - 10.5 * 15.4).abs() < 1.0, "{record:?}");
    assert!(record.p.unwrap() < 0.01 && !fold.regressed() && fold.safe(), "{record:?}");
}

/// Pods whose memory grows by so much each minute, seen from so many seconds after the weight.
fn growing(canary: &[f64], baseline: &[f64], from: i64) -> BTreeMap<String, Targets> {
    let grows = |rate: &f64| -> Vec<Increment> {
        let mut increments = scraped(3_000, &[(0.0, 1.0); 140]);
        increments.retain(|one| one.from >= T0 + from * SECOND);
        for one in &mut increments {
            #[allow(clippy::cast_precision_loss)]
            let minutes = (one.to - T0) as f64 / 60_000.0;
            one.events = 100.0 + rate * minutes;
        }
        increments
    };
    let pod = |cohort: &str, i: usize, rate: &f64| {
        (format!("shop-{cohort}-{i:05}"), BTreeMap::from([("a".to_owned(), grows(rate))]))
    };
    let canary = canary.iter().enumerate().map(|(i, rate)| pod("new", i, rate));
    canary.chain(baseline.iter().enumerate().map(|(i, rate)| pod("old", i, rate))).collect()
}

#[test]
fn a_growth_decides_among_pods_of_one_age() {
    let growth = json!([{
        "name": "memory", "gauge": {"query": "memory_bytes", "compare": "growth"}, "tolerance": "20%"
    }]);
    let plan = compiled("fresh", &growth).unwrap().analysis;
    assert!(plan.gauges[0].decides && (plan.gauges[0].limit - 0.01 / 6.0).abs() < 1e-12);
    let alike = growing(&[5.4, 4.9, 5.3], &[5.0, 5.2, 4.8], 0);
    let (looks, fold) = looked(&plan, &alike, 1_210);
    assert_eq!(looks, [180, 600, 1_200]);
    assert!(fold.safe() && !fold.regressed(), "{:?}", fold.gauges());
    let leaks = growing(&[20.0, 21.0, 19.0], &[5.0, 5.2, 4.8], 0);
    let (_, fold) = looked(&plan, &leaks, 200);
    assert!(fold.regressed() && !fold.safe(), "{:?}", fold.gauges());
    // Half a stretch is the least that says anything: before that a step is not passed.
    let late = growing(&[5.4, 4.9, 5.3], &[5.0, 5.2, 4.8], 120);
    let (looks, fold) = looked(&plan, &late, 350);
    assert!(looks.is_empty() && !fold.safe());
    assert_eq!(looked(&plan, &late, 700).0, [360, 600]);
}

#[test]
fn only_what_is_counted_can_be_critical() {
    for metric in [
        json!({"name": "memory", "gauge": {"query": "memory_bytes"}, "role": "critical"}),
        json!({"name": "lag", "expression": {"query": "lag_seconds", "max": 5}, "role": "critical"}),
    ] {
        let problems = compiled("stable", &json!([metric])).err().unwrap();
        assert_eq!(problems[0].path, "spec.analysis.metrics[0].role", "{problems:?}");
    }
}

#[test]
fn what_does_not_fit_the_baseline_is_refused() {
    let gates = json!([
        {"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}},
        {"name": "memory", "gauge": {"query": "memory_bytes", "compare": "growth"}, "role": "gating"},
    ]);
    let share = json!([{"name": "orders", "count": {"events": "orders_total"}}]);
    for (baseline, metrics, path) in [
        ("stable", &gates, Some("spec.analysis.metrics[1].role")),
        ("fresh", &gates, None),
        ("stable", &share, None),
        ("fresh", &share, Some("spec.analysis.metrics[0].count")),
    ] {
        let problems = compiled(baseline, metrics).err().unwrap_or_default();
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, path.into_iter().collect::<Vec<_>>(), "{baseline}");
    }
}

#[test]
fn what_is_divided_is_summed_over_the_step() {
    let plan = plan_of(&json!([
        {"name": "memory", "gauge": {"query": "cpu_seconds_total", "dividedBy": "requests_total"}}
    ]));
    let divided = levels(&[3.0, 3.1, 2.9], &[2.0, 2.1, 1.9], 30);
    let by = levels(&[100.0, 100.0, 100.0], &[100.0, 100.0, 100.0], 30);
    let mut fold = Fold::new(&plan, &opened(&plan), Percent::from_basis_points(5_000), Percent::FULL);
    let mut samples = asked("memory", T0 + 200 * SECOND, &divided);
    let per = asked("memory.dividedBy", T0 + 200 * SECOND, &by);
    let all = samples.clone();
    samples.metrics.extend(per.metrics);
    fold.take(&samples, &ready(&divided), &cohorts());
    while fold.look().is_some() {}
    let record = &fold.gauges()[0];
    assert!((record.canary.unwrap() - 0.03).abs() < 1e-3 && fold.regressed(), "{record:?}");
    let mut without = Fold::new(&plan, &opened(&plan), Percent::from_basis_points(5_000), Percent::FULL);
    without.take(&all, &ready(&divided), &cohorts());
    while without.look().is_some() {}
    assert!(without.gauges()[0].at.is_none(), "nothing to divide by");
}

#[test]
fn restarts_count_for_pods_that_are_not_ready() {
    let plan =
        plan_of(&json!([{"name": "errors", "count": {"events": "restarts_total", "per": "podSeconds"}}]));
    let all = world(&[(1.0, 15.0); 12], &[(0.0, 15.0); 12]);
    let mut observed = pods(LONG_AGO);
    for pod in observed.revisions.values_mut().flat_map(|revision| revision.pods.values_mut()) {
        pod.ready_at = None;
    }
    let (_, checkpoint) = fold(&plan, &opened(&plan), T0 + 120 * SECOND, &all, &observed);
    assert_eq!(
        checkpoint.metrics["errors"].rows[0].map(f64::to_bits),
        [5.0, 0.0, 75.0, 75.0].map(f64::to_bits)
    );
    assert_eq!(plan.metrics[0].floor, Some(0.001));
}

#[test]
fn a_count_alone_is_for_the_share_of_the_traffic() {
    let plan = plan_of(&json!([{"name": "errors", "count": {"events": "orders_total"}, "goal": "higher"}]));
    let mut all = world(&[(4.0, 15.0); 12], &[(4.0, 15.0); 12]);
    let young = all["shop-new-1"].clone();
    all.insert("shop-new-2".to_owned(), young);
    let mut observed = pods(LONG_AGO);
    let new = observed.revisions.get_mut("new").unwrap();
    new.pods.insert("shop-new-2".to_owned(), ready_since(T0));
    let (_, checkpoint) = fold(&plan, &opened(&plan), T0 + 60 * SECOND, &all, &observed);
    // One of the canary's two pods is warm: half of the canary's half of 15 s.
    assert_eq!(
        checkpoint.metrics["errors"].rows[0].map(f64::to_bits),
        [4.0, 4.0, 3.75, 7.5].map(f64::to_bits)
    );
}
