//! A part of the simulations with few runs. The seeds are fixed, so that these tests give the same result
//! each time; with any other seeds, none of them would fail by chance more than once in a million.

use anyhow::{Context, Result};
use davylamp_bench::cells::{self, Cell};
use davylamp_bench::results::{CellResult, Outcome, RuleResult};
use davylamp_bench::run;

/// Runs of a cell in which rare endings are counted.
const RUNS: u32 = 500;

/// A share of 1 % gives more than this many of [`RUNS`] less than once in ten million: the tail of the
/// binomial distribution, checked below.
const LARGEST: u32 = 21;

fn cell(name: &str) -> Result<Cell> {
    cells::all().into_iter().find(|cell| cell.name == name).with_context(|| format!("no cell {name}"))
}

fn run(name: &str, runs: u32) -> Result<CellResult> {
    run::cell(&cell(name)?, runs, 2)
}

fn rule<'a>(cell: &'a CellResult, name: &str) -> Result<&'a RuleResult> {
    cell.rule(name).with_context(|| format!("{} has no rule {name}", cell.name))
}

#[test]
fn the_largest_count_is_that_of_one_in_ten_million() {
    let (share, mut tail) = (0.01_f64, 1.0);
    let mut exactly = libm::pow(1.0 - share, f64::from(RUNS));
    for count in 0..=LARGEST {
        tail -= exactly;
        exactly *= f64::from(RUNS - count) / f64::from(count + 1) * share / (1.0 - share);
    }
    assert!(tail < 1e-7, "{tail}");
}

#[test]
fn a_good_canary_is_rolled_back_as_seldom_as_promised() -> Result<()> {
    for name in ["few/10rps-1%-w10%-x1.1", "few/10rps-0.1%-w50%-x1", "few/100rps-1%-w1%-x1"] {
        let cell = run(name, RUNS)?;
        for rule in cell.rules.iter().filter(|rule| rule.rule.starts_with("davylamp")) {
            let rollbacks = rule.count(Outcome::RolledBack);
            assert!(rollbacks <= LARGEST, "{name}: {} rolls back {rollbacks} of {RUNS}", rule.rule);
        }
    }
    Ok(())
}

/// An incident that hits both versions: the threshold fails always, the test in about a quarter of the runs.
#[test]
fn the_rules_that_people_use_roll_good_canaries_back_and_ours_do_not() -> Result<()> {
    let cell = run("good/incident", 150)?;
    assert!(rule(&cell, "threshold, limit 0")?.count(Outcome::RolledBack) > 140);
    assert!(rule(&cell, "z-test, 5 %")?.count(Outcome::RolledBack) > 10);
    for name in ["davylamp", "davylamp, tolerance 0, calibrated"] {
        assert!(rule(&cell, name)?.count(Outcome::RolledBack) <= 15, "{name}");
    }
    Ok(())
}

/// The true mean is 1.45 times the bound; the mean of 1000 runs has a standard error of 0.03.
#[test]
fn a_bad_canary_is_found_in_not_much_more_than_the_least_time() -> Result<()> {
    let cell = run("efficiency/50rps-1%-w20%-x1.5", 1000)?;
    let exact = rule(&cell, "davylamp, tolerance 0")?;
    assert_eq!(exact.count(Outcome::RolledBack), 1000);
    assert!(exact.per_bound.context("no bound")? < 1.65, "{:?}", exact.per_bound);
    let oracle = rule(&cell, "oracle SPRT")?;
    assert!(oracle.per_bound.context("no bound")? > 0.85, "{:?}", oracle.per_bound);
    Ok(())
}

/// Well over 99 % of the good ones are promoted, and of the bad ones nearly all are rolled back.
#[test]
fn good_rollouts_are_promoted_and_bad_ones_not() -> Result<()> {
    let good = run("rollout/good", 200)?;
    assert!(rule(&good, "davylamp")?.count(Outcome::Promoted) >= 185);
    let bad = run("rollout/errors-x4", 200)?;
    assert!(rule(&bad, "davylamp")?.count(Outcome::RolledBack) >= 185);
    Ok(())
}

#[test]
fn threads_do_not_matter() -> Result<()> {
    let cell = cell("rollout/errors-x2")?;
    assert_eq!(run::cell(&cell, 30, 1)?, run::cell(&cell, 30, 3)?);
    Ok(())
}
