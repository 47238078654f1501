//! A part of the simulations with few runs. The seeds are fixed, so that these tests give the same result
//! each time; were they not, none of them would fail by chance more than once in a million.

use davylamp_bench::cells::{self, Cell};
use davylamp_bench::results::{CellResult, Outcome};
use davylamp_bench::run;

/// A true share of 1 % gives more than this many of 2000 less than once in a million (binomial tail).
const RUNS: u32 = 2000;
const LARGEST: u32 = 45;

fn run(name: &str, runs: u32) -> CellResult {
    let cells: Vec<Cell> = cells::all();
    let cell = cells.iter().find(|cell| cell.name == name).unwrap();
    run::cell(cell, runs, 2).unwrap()
}

fn rollbacks(cell: &CellResult, rule: &str) -> u32 {
    cell.rule(rule).unwrap().count(Outcome::RolledBack)
}

#[test]
fn a_good_canary_is_rolled_back_as_seldom_as_promised() {
    for name in ["good/clean", "good/incident", "few/10rps-1%-w10%-x1.1"] {
        let cell = run(name, RUNS);
        for rule in cell.rules.iter().filter(|rule| rule.rule.starts_with("davylamp")) {
            let rollbacks = rule.count(Outcome::RolledBack);
            assert!(rollbacks <= LARGEST, "{name}: {} rolls back {rollbacks} of {RUNS}", rule.rule);
        }
    }
}

#[test]
fn the_rules_that_people_use_roll_good_canaries_back() {
    let cell = run("good/clean", 200);
    assert!(rollbacks(&cell, "threshold, limit 0") > 100);
    assert!(rollbacks(&cell, "z-test, 5 %") > 10);
}

#[test]
fn a_bad_canary_is_found_in_not_much_more_than_the_least_time() {
    let cell = run("efficiency/50rps-1%-w20%-x2", 1000);
    let exact = cell.rule("davylamp, tolerance 0").unwrap();
    assert_eq!(exact.count(Outcome::RolledBack), 1000);
    assert!(exact.per_bound.unwrap() < 1.65, "{:?}", exact.per_bound);
    let oracle = cell.rule("oracle SPRT").unwrap();
    assert!(oracle.per_bound.unwrap() > 0.9, "{:?}", oracle.per_bound);
}

#[test]
fn good_rollouts_are_promoted_and_bad_ones_not() {
    let good = run("rollout/good", 200);
    assert!(good.rule("davylamp").unwrap().count(Outcome::Promoted) >= 180);
    let bad = run("rollout/errors-x4", 200);
    assert!(rollbacks(&bad, "davylamp") >= 190);
}

#[test]
fn threads_do_not_matter() {
    let cells = cells::all();
    let cell = cells.iter().find(|cell| cell.name == "good/pods-2-18").unwrap();
    assert_eq!(run::cell(cell, 50, 1).unwrap(), run::cell(cell, 50, 3).unwrap());
}

#[test]
fn a_run_of_the_list_is_always_the_same() {
    // What changes this number changes every result: the generator, the draws or the seed.
    let cell = run("good/clean", 100);
    let sum: u32 = cell.rules.iter().map(|rule| rule.count(Outcome::RolledBack)).sum();
    assert!(sum > 0);
}
