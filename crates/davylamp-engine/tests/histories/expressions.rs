//! Expressions, which have limits of their own.

use super::replayed::{is_recomputed, recomputed, run};
use super::*;

/// With one expression that decides, and the ratio only shown.
fn with_expression(error_rate: f64) -> World {
    let mut spec = spec(&[step("5%"), step("50%")], true);
    let metrics = &mut spec.analysis.as_mut().unwrap().metrics;
    metrics[0].role = Some(MetricRole::Informational);
    let query =
        "sum(rate(errors_total{{{canary}}}[30s])) / sum(rate(requests_total{{{canary}}}[30s]))".to_owned();
    let expression = Some(Expression { query, max: Some(0.1), ..Expression::default() });
    metrics.push(Metric { name: "failing".to_owned(), expression, ..Metric::default() });
    let mut world = World::settled(spec);
    world.versions.get_mut(&hash(2)).unwrap().error_rate = error_rate;
    world.release(2);
    world.until(StateName::Judging);
    world
}

#[test]
fn an_expression_rolls_back_by_its_own_rule_and_is_recomputed() {
    let mut world = with_expression(0.3);
    let run = run(&world);
    world.until(StateName::Degraded);
    assert_eq!((reason(&world), world.status.rejected[0].reason.as_str()), ("Expression", "Expression"));
    let record = world.records.iter().find(|record| record.rule == "Expression").unwrap();
    let said = &record.message;
    assert!(
        said.starts_with("failing 0.30, where at most 0.10 is wanted (3 of 3 in a row outside, 3 values;")
            && said.contains("by a threshold, without a promised error rate"),
        "{said}"
    );
    assert_eq!((record.expressions[0].value, record.expressions[0].outside), (Some(0.3), 3));
    is_recomputed(&world, &run);
    // A record that says more than there was.
    let mut records = world.records.clone();
    let at = records.iter().position(|record| record.rule == "Expression").unwrap();
    let until = records[at].expressions[0].until.as_mut().unwrap();
    *until = Instant::from_millisecond(until.as_millisecond() - world::INTERVAL).unwrap();
    for metric in &mut records[at].metrics {
        metric.until = None;
    }
    let found = recomputed(&world, &run, &records);
    let changed = found.iter().find(|checked| checked.number == records[at].number).unwrap();
    assert!(changed.unfounded && changed.expressions.len() == 1, "{changed:?}");
}

#[test]
fn a_step_waits_for_the_values_of_an_expression() {
    let mut world = with_expression(0.01);
    let run = run(&world);
    world.until(StateName::Finalising);
    let passed: Vec<_> = world.records.iter().filter(|record| record.rule.ends_with("StepPassed")).collect();
    assert_eq!(passed.len(), 2);
    for record in passed {
        assert!(record.expressions[0].values >= 3 && record.expressions[0].outside == 0, "{record:?}");
    }
    is_recomputed(&world, &run);
}
