//! Incidents of the baseline, and objectives.

use super::replayed::{is_recomputed, run};
use super::*;

/// At its second step for a while, and not judged before an hour.
fn long_steps(usual: Option<f64>) -> World {
    let hold = Some(Hold { min: Some(secs(1_200)), max: Some(secs(3_600)) });
    let mut world = World::settled(spec(&[step("5%"), Step { hold, ..step("50%") }], true));
    world.usual = usual;
    world.release(2);
    world.until(StateName::Judging);
    world.until(StateName::Scaling);
    world.until(StateName::Judging);
    world
}

#[test]
fn an_incident_of_the_baseline_is_held_and_survived() {
    let mut world = long_steps(Some(0.01));
    let run = run(&world);
    world.run_for(4 * MINUTE);
    world.around = 0.2;
    let begun = world.now;
    world.until(StateName::Holding);
    assert_eq!((reason(&world), world.weight()), ("Incident", 5_000));
    assert!(world.now - begun <= 4 * MINUTE, "{} s", (world.now - begun) / 1_000);
    let analysis = world.status.analysis.as_ref().unwrap();
    assert_eq!(analysis.verdict, davylamp_api::status::Verdict::Incident);
    let told = world.records.last().unwrap().message.clone();
    assert!(told.starts_with("errors of the baseline: ") && told.contains(", above 3.00 %; "), "{told}");
    assert_eq!(world.condition("Incident"), Some(("True", "Incident")));
    world.run_for(30 * MINUTE);
    assert_eq!(world.state(), StateName::Holding, "hold.max stands still, and so does the run");
    world.around = 0.0;
    world.until(StateName::Judging);
    assert_eq!(world.condition("Incident"), Some(("False", "AsExpected")));
    let judged = world.status.state.as_ref().unwrap().since;
    let before = world.now - judged.as_millisecond();
    assert!((4 * MINUTE..9 * MINUTE).contains(&before), "{before} ms had been judged");
    world.until(StateName::Finalising);
    assert!(!world.trace.iter().any(|state| state == "RollingBack" || state == "Paused"));
    is_recomputed(&world, &run);
}

/// What fails for both versions says that they are alike.
#[test]
fn an_incident_proves_no_canary_good() {
    let hold = Some(Hold { min: Some(secs(120)), max: Some(secs(3_600)) });
    let mut world = World::settled(spec(&[step("5%"), Step { hold, ..step("50%") }], true));
    world.usual = Some(0.01);
    world.release(2);
    world.until(StateName::Judging);
    let run = run(&world);
    world.until(StateName::Scaling);
    world.until(StateName::Shifting);
    // Worse than the margin of the last step, 1.5.
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.016;
    world.until(StateName::Judging);
    world.run_for(2 * MINUTE);
    world.around = 0.2;
    world.until(StateName::Holding);
    assert_eq!((reason(&world), world.weight()), ("Incident", 5_000));
    world.run_for(10 * MINUTE);
    world.around = 0.0;
    world.until(StateName::Judging);
    assert_eq!(reason(&world), "IncidentOver");
    world.until(StateName::Degraded);
    assert!(world.records.iter().any(|record| record.rule == "Regression"), "{:?}", world.trace);
    is_recomputed(&world, &run);
}

/// Of one that was on when the last step had passed.
#[test]
fn an_incident_before_the_end_sends_the_last_step_back_to_be_judged() {
    let mut world = World::settled(spec(&[step("50%")], true));
    world.usual = Some(0.01);
    world.release(2);
    world.until(StateName::Judging);
    let run = run(&world);
    // The last pods take long.
    world.versions.get_mut(&hash(2)).unwrap().ready_after = Some(4 * MINUTE);
    world.until(StateName::Promoting);
    world.around = 0.2;
    world.until(StateName::Holding);
    assert_eq!((reason(&world), world.weight()), ("Incident", 5_000));
    world.around = 0.0;
    world.until(StateName::Judging);
    world.until(StateName::Promoting);
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn without_history_the_first_minutes_say_what_is_usual() {
    let mut world = long_steps(None);
    let run = run(&world);
    world.run_for(4 * MINUTE);
    world.around = 0.2;
    world.until(StateName::Holding);
    let told = &world.records.last().unwrap().message;
    assert!(told.contains(", above 2.9") || told.contains(", above 3.0"), "{told}");
    world.around = 0.0;
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn an_incident_that_lasts_for_an_hour_pauses_and_goes_on_when_it_is_over() {
    let mut world = long_steps(Some(0.01));
    world.run_for(4 * MINUTE);
    world.around = 0.2;
    world.until(StateName::Paused);
    assert_eq!((reason(&world), world.weight()), ("Incident", 5_000));
    world.around = 0.0;
    world.until(StateName::Judging);
    world.until(StateName::Finalising);
}

#[test]
fn somebody_may_promote_in_an_incident() {
    let mut world = long_steps(Some(0.01));
    world.run_for(4 * MINUTE);
    world.around = 0.2;
    world.until(StateName::Holding);
    let uid = world.promote();
    world.run_for(0);
    assert_eq!(outcome(&world, &uid).0, ActionPhase::Done);
    world.until(StateName::Finalising);
    assert_eq!(world.condition("Incident"), Some(("True", "Incident")));
}

#[test]
fn an_incident_right_after_an_increase_takes_it_back_once_and_goes_on() {
    let mut world = long_steps(Some(0.01));
    let run = run(&world);
    world.around = 0.2;
    world.until(StateName::Holding);
    world.run_for(MINUTE);
    assert_eq!((reason(&world), world.weight()), ("Incident", 500));
    let stepped_back = world.now;
    world.around = 0.0;
    world.until(StateName::Shifting);
    assert!(world.now - stepped_back >= MINUTE, "it waits for two minutes");
    world.until(StateName::Judging);
    assert_eq!(world.weight(), 5_000);
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn a_canary_that_breaks_what_both_need_is_found_and_paused() {
    for (steps, above, back) in
        [(vec![step("5%"), step("50%")], 0.3, 500), (vec![step("5%"), step("50%")], 0.01, 0)]
    {
        let mut world = World::settled(spec(&steps, true));
        (world.breaks_above, world.usual) = (Some(above), Some(0.01));
        world.release(2);
        world.until(StateName::Judging);
        let run = run(&world);
        world.until(StateName::Paused);
        assert_eq!((reason(&world), world.weight()), ("Interference", back), "{:?}", world.trace);
        let held = world.records.iter().filter(|record| record.to == "Holding").count();
        assert!(held >= 3, "{:?}", world.trace);
        is_recomputed(&world, &run);
        world.run_for(10 * MINUTE);
        assert_eq!(world.weight(), back);
        world.breaks_above = None;
        world.run_for(10 * MINUTE);
        world.promote();
        world.until(StateName::Finalising);
    }
}

#[test]
fn incidents_of_two_other_rollouts_hold_all_for_two_minutes() {
    let mut world = long_steps(Some(0.01));
    let run = run(&world);
    world.run_for(4 * MINUTE);
    let noticed = |world: &World, ago: i64| Instant::from_millisecond(world.now - ago).unwrap();
    world.incidents = [("other/a".to_owned(), noticed(&world, 0))].into();
    world.poke();
    world.run_for(MINUTE);
    assert_eq!(world.state(), StateName::Judging, "one alone concerns nobody else");
    world.incidents.insert("other/b".to_owned(), noticed(&world, 0));
    let begun = world.now;
    world.poke();
    world.run_for(0);
    assert_eq!((world.state(), reason(&world)), (StateName::Holding, "SharedIncident"));
    assert_eq!(world.condition("Incident"), Some(("True", "SharedIncident")));
    world.until(StateName::Judging);
    assert_eq!(world.now - begun, 2 * MINUTE);
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn a_violated_objective_pauses_until_somebody_goes_on() {
    let mut spec = spec(&[step("25%"), step("50%")], true);
    let analysis = spec.analysis.as_mut().unwrap();
    analysis.metrics[0].tolerance = Some("100%".parse().unwrap());
    analysis.slos =
        serde_json::from_value(serde_json::json!([{"metric": "errors", "objective": "99%", "burnRate": 2}]))
            .unwrap();
    let mut world = World::settled(spec);
    world.versions.get_mut(&hash(1)).unwrap().error_rate = 0.018;
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.035;
    world.release(2);
    world.until(StateName::Paused);
    let run = run(&world);
    assert_eq!(reason(&world), "SloViolated");
    let told = &world.records.last().unwrap().message;
    assert!(told.starts_with("errors of the canary: ") && told.contains("where 2.00 % is allowed"), "{told}");
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.01;
    let step = world.status.step.as_ref().unwrap().index;
    world.promote();
    world.until(StateName::Judging);
    assert_eq!(world.status.step.as_ref().unwrap().index, step + 1);
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

/// A second record says that it was promoted, which nobody asked for anew.
#[test]
fn a_full_promotion_that_is_interrupted_is_recomputed() {
    let mut spec = spec(&[step("25%"), step("50%")], true);
    spec.analysis.as_mut().unwrap().slos =
        serde_json::from_value(serde_json::json!([{"metric": "errors", "objective": "99%", "burnRate": 2}]))
            .unwrap();
    let mut world = World::settled(spec);
    world.release(2);
    world.until(StateName::Judging);
    let run = run(&world);
    world.run_for(MINUTE);
    world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    world.act(Verb::Promote, world.status.run.clone(), None, true);
    world.until(StateName::Promoting);
    world.run_for(MINUTE);
    world.lose_pods(&hash(2), 3);
    world.until(StateName::Holding);
    world.run_for(MINUTE);
    world.heal_version(&hash(2));
    world.until(StateName::Finalising);
    let promoted = world.records.iter().filter(|record| record.rule == "Promote").count();
    assert_eq!(promoted, 2, "{:?}", world.trace);
    is_recomputed(&world, &run);
}
