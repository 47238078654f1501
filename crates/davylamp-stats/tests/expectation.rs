//! The expectation of every e-value under its null hypothesis, by enumeration of all outcomes: at most 1.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{Counts, EventProcess, NonInferiority, event_log_factor};
use proptest::prelude::*;

/// How far an expectation may exceed 1 by rounding.
const ROUNDING: f64 = 1e-9;

const RATES: [f64; 6] = [0.001, 0.02, 0.1, 0.3, 0.5, 0.9];

/// The exposures of canary and baseline: all up to 20 and 30 requests.
fn exposures() -> impl Iterator<Item = (u32, u32)> {
    (1..=20).flat_map(|n_canary| (1..=30).map(move |n_baseline| (n_canary, n_baseline)))
}

#[test]
fn the_evidence_of_a_regression_is_an_e_value_on_the_boundary() {
    for (n_canary, n_baseline) in exposures() {
        for rho0 in [0.5, 1.0, 1.1, 3.0] {
            for baseline in RATES {
                let new = EventProcess::new(rho0, 15.0, None).unwrap();
                let canary = vec![(rho0 * baseline).min(1.0); index(n_canary)];
                let cohorts = Cohorts { canary, baseline: vec![baseline; index(n_baseline)] };
                let expectation = cohorts.expectation(|counts| event_log_e(&new, &[counts]));
                assert!(
                    expectation <= 1.0 + ROUNDING,
                    "{n_canary} {n_baseline} {rho0} {baseline}: {expectation}"
                );
            }
        }
    }
}

#[test]
fn every_alternative_is_an_e_value_without_the_clip() {
    for (n_canary, n_baseline) in exposures() {
        for ratio in [1.15, 2.3, 40.0] {
            for baseline in RATES {
                let rho0 = 1.1;
                let canary = vec![(rho0 * baseline).min(1.0); index(n_canary)];
                let cohorts = Cohorts { canary, baseline: vec![baseline; index(n_baseline)] };
                let expectation = cohorts.expectation(|c| event_log_factor(rho0, ratio, &c).unwrap());
                assert!(
                    expectation <= 1.0 + ROUNDING,
                    "{n_canary} {n_baseline} {ratio} {baseline}: {expectation}"
                );
            }
        }
    }
}

#[test]
fn requests_of_one_cohort_may_differ() {
    // The mean is what the null is about: 0.06 and 0.06.
    let canary = [vec![0.0; 8], vec![0.12; 8]].concat();
    let baseline = [vec![0.01; 20], vec![0.31; 4]].concat();
    let cohorts = Cohorts { canary, baseline };
    let new = EventProcess::new(1.0, 15.0, None).unwrap();
    assert!(cohorts.expectation(|counts| event_log_e(&new, &[counts])) <= 1.0 + ROUNDING);
}

#[test]
fn with_exchanged_cohorts_a_lack_of_events_is_tested() {
    // At least 80 % of the baseline's rate is tolerated.
    for (n_canary, n_baseline) in exposures() {
        for baseline in RATES {
            let new = EventProcess::new(1.0 / 0.8, 15.0, None).unwrap();
            let canary = vec![0.8 * baseline; index(n_canary)];
            let cohorts = Cohorts { canary, baseline: vec![baseline; index(n_baseline)] };
            let expectation = cohorts.expectation(|counts| event_log_e(&new, &[counts.swapped()]));
            assert!(expectation <= 1.0 + ROUNDING, "{n_canary} {n_baseline} {baseline}: {expectation}");
        }
    }
}

#[test]
fn with_a_floor_either_null_is_enough() {
    for (n_canary, n_baseline) in exposures() {
        for floor in [0.001, 0.05, 0.3, 0.49] {
            let rho0 = 1.1;
            let new = EventProcess::new(rho0, 15.0, Some(floor)).unwrap();
            // At the floor with a much better baseline; far above it with a baseline as bad.
            for (canary, baseline) in
                [(floor, 0.0), (floor, floor / 20.0), (1.1 * 0.6, 0.6), (1.1 * floor, floor)]
            {
                let canary = vec![canary; index(n_canary)];
                let cohorts = Cohorts { canary, baseline: vec![baseline; index(n_baseline)] };
                let expectation = cohorts.expectation(|counts| event_log_e(&new, &[counts]));
                assert!(expectation <= 1.0 + ROUNDING, "{n_canary} {n_baseline} {floor}: {expectation}");
            }
        }
    }
}

#[test]
fn the_evidence_for_a_promotion_is_an_e_value_on_the_boundary() {
    for (n_canary, n_baseline) in exposures() {
        for (margin, delta, next_weight) in [(1.5_f64, 0.1_f64, 0.25), (0.8, 0.4, 0.5)] {
            let null = (delta / next_weight).min(0.5);
            let new = NonInferiority::new(margin, Some((delta, next_weight))).unwrap();
            for baseline in RATES.map(|rate| rate.min(1.0 / margin)) {
                let canary = (margin * baseline).max(null);
                let cohorts = |canary: f64| Cohorts {
                    canary: vec![canary; index(n_canary)],
                    baseline: vec![baseline; index(n_baseline)],
                };
                let ratio = cohorts(margin * baseline).expectation(|c| after(&new, c).log_e_ratio());
                let absolute = cohorts(null).expectation(|c| after(&new, c).log_e_absolute().unwrap());
                let both = cohorts(canary).expectation(|c| after(&new, c).log_e());
                for expectation in [ratio, absolute, both] {
                    assert!(expectation <= 1.0 + ROUNDING, "{n_canary} {n_baseline} {margin}: {expectation}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Given any past, the next block multiplies the capital by at most 1 on average: with clip, restarts, a
    /// floor, and a weight that changes inside the block.
    #[test]
    fn the_next_block_is_fair_whatever_the_past(
        past in prop::collection::vec((0_u32..20, 0_u32..20, 0_u32..3000, 0_u32..3000, any::<bool>()), 0..12),
        rho0 in 0.5..3.0,
        floor in prop::option::of(0.01..0.4),
        (above_floor, baseline) in (any::<bool>(), 0.0..0.5),
        weights in (1_u32..6, 1_u32..6, 1_u32..4, 1_u32..6),
    ) {
        let mut process = EventProcess::new(rho0, 60.0, floor).unwrap();
        for (x_canary, x_baseline, n_canary, n_baseline, new_block) in past {
            let [x_canary, x_baseline, n_canary, n_baseline] =
                [x_canary, x_baseline, n_canary, n_baseline].map(f64::from);
            process.round(&Counts { x_canary, x_baseline, n_canary, n_baseline }, new_block).unwrap();
        }
        process.close_block();
        let before = process.log_e();
        let canary: f64 = match floor {
            Some(floor) if !above_floor => floor,
            _ => rho0 * baseline,
        };
        let rounds = |n: u32, m: u32| Cohorts {
            canary: vec![canary.min(1.0); index(n)],
            baseline: vec![baseline; index(m)],
        };
        let (first, second) = (rounds(weights.0, weights.1), rounds(weights.2, weights.3));
        let expectation = first.expectation(|one| {
            libm::log(second.expectation(|two| event_log_e(&process, &[one, two]) - before))
        });
        prop_assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
    }
}

/// The event probability of each request.
struct Cohorts {
    canary: Vec<f64>,
    baseline: Vec<f64>,
}

impl Cohorts {
    /// The expectation of `exp(log_e)` over all outcomes.
    fn expectation(&self, log_e: impl Fn(Counts) -> f64) -> f64 {
        let exposure = |requests: &[f64]| f64::from(u32::try_from(requests.len()).unwrap());
        let (n_canary, n_baseline) = (exposure(&self.canary), exposure(&self.baseline));
        let baseline = distribution(&self.baseline);
        let mut expectation = 0.0;
        for (x_canary, p_canary) in (0_u32..).zip(distribution(&self.canary)) {
            for (x_baseline, p_baseline) in (0_u32..).zip(&baseline) {
                let probability = p_canary * p_baseline;
                if probability > 1e-18 {
                    let (x_canary, x_baseline) = (f64::from(x_canary), f64::from(x_baseline));
                    let counts = Counts { x_canary, x_baseline, n_canary, n_baseline };
                    expectation += probability * libm::exp(log_e(counts));
                }
            }
        }
        expectation
    }
}

/// The distribution of the number of events.
fn distribution(requests: &[f64]) -> Vec<f64> {
    let mut distribution = vec![1.0];
    for probability in requests {
        distribution.push(0.0);
        for x in (0..distribution.len()).rev() {
            let from_below = if x > 0 { distribution[x - 1] * probability } else { 0.0 };
            distribution[x] = distribution[x] * (1.0 - probability) + from_below;
        }
    }
    distribution
}

/// The evidence after one more block of these rounds.
fn event_log_e(before: &EventProcess, rounds: &[Counts]) -> f64 {
    let mut process = before.clone();
    for (i, counts) in rounds.iter().enumerate() {
        process.round(counts, i == 0).unwrap();
    }
    process.log_e()
}

fn after(before: &NonInferiority, counts: Counts) -> NonInferiority {
    let mut process = before.clone();
    process.round(&counts, true).unwrap();
    process
}

fn index(n: u32) -> usize {
    usize::try_from(n).unwrap()
}
