//! Proportions that are not rare: the factors are e-values, the process keeps the laws that all of them keep,
//! and any input gives a number or an error with a name.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::ripr::{Rates, Ripr, difference_log_factor, ratio_log_factor};
use davylamp_stats::{Counts, Error, EventProcess, ProportionProcess, hyper_tilt_log_e};
use proptest::prelude::*;

/// How far an expectation may exceed 1 by rounding.
const ROUNDING: f64 = 1e-9;

/// Exposures of canary and baseline.
const EXPOSURES: [(u32, u32); 7] = [(1, 1), (1, 30), (3, 30), (7, 23), (20, 30), (20, 20), (20, 1)];

const RATES: [f64; 7] = [0.001, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9];

// Expectations.

#[test]
fn a_ratio_of_proportions_is_tested_by_an_e_value() {
    for (n_canary, n_baseline) in EXPOSURES {
        for (canary, baseline) in [(0.3, 0.2), (0.9, 0.5), (0.02, 0.01), (0.99, 0.2), (0.5, 0.6)] {
            let alternative = Rates { canary, baseline };
            for rho0 in [0.5, 1.0, 1.1, 3.0] {
                // The truth is on the boundary, anywhere on it.
                for truth in RATES.map(|rate| rate.min(1.0 / rho0)) {
                    let expectation = expectation(n_canary, n_baseline, rho0 * truth, truth, |counts| {
                        ratio_log_factor(rho0, &alternative, &counts).unwrap().log_e
                    });
                    assert!(
                        expectation <= 1.0 + ROUNDING,
                        "{n_canary} {n_baseline} {alternative:?} {rho0} {truth}: {expectation}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_difference_of_proportions_is_tested_by_an_e_value() {
    for (n_canary, n_baseline) in EXPOSURES {
        for (canary, baseline) in [(0.3, 0.2), (0.9, 0.5), (0.02, 0.01), (0.99, 0.2), (0.5, 0.6)] {
            let alternative = Rates { canary, baseline };
            for delta in [0.0, 0.01, 0.1, 0.6] {
                for truth in RATES.map(|rate| rate.min(1.0 - delta)) {
                    let expectation = expectation(n_canary, n_baseline, truth + delta, truth, |counts| {
                        difference_log_factor(delta, &alternative, &counts).unwrap().log_e
                    });
                    assert!(
                        expectation <= 1.0 + ROUNDING,
                        "{n_canary} {n_baseline} {alternative:?} {delta} {truth}: {expectation}"
                    );
                }
            }
        }
    }
}

#[test]
fn requests_of_one_cohort_may_differ() {
    let canary = [vec![0.1; 8], vec![0.7; 8]].concat();
    let baseline = [vec![0.2; 12], vec![0.6; 12]].concat();
    let alternative = Rates { canary: 0.6, baseline: 0.3 };
    let expectation = expectation_of(&canary, &baseline, |counts| {
        ratio_log_factor(1.0, &alternative, &counts).unwrap().log_e
    });
    assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
}

#[test]
fn given_the_margins_the_odds_are_tested_by_an_exact_e_value() {
    for n_canary in 1..=20 {
        for n_baseline in 1..=30 {
            let (of_canary, of_baseline) = (binomials(n_canary), binomials(n_baseline));
            for events in 1..n_canary + n_baseline {
                let (mut ways, mut expectations) = (0.0, [0.0; 3]);
                for x in events.saturating_sub(n_baseline)..=events.min(n_canary) {
                    let count = of_canary[index(x)] * of_baseline[index(events - x)];
                    ways += count;
                    let counts = Counts {
                        x_canary: f64::from(x),
                        x_baseline: f64::from(events - x),
                        n_canary: f64::from(n_canary),
                        n_baseline: f64::from(n_baseline),
                    };
                    for (expectation, psi) in expectations.iter_mut().zip([0.2, 1.5, 30.0]) {
                        *expectation += count * libm::exp(hyper_tilt_log_e(psi, &counts).unwrap().log_e);
                    }
                }
                for expectation in expectations {
                    let expectation = expectation / ways;
                    assert!((expectation - 1.0).abs() < 1e-12, "{n_canary} {n_baseline}: {expectation}");
                }
            }
        }
    }
}

#[test]
fn an_odds_ratio_may_be_tolerated() {
    for (n_canary, n_baseline) in EXPOSURES {
        for baseline in RATES {
            let odds = 1.4 * baseline / (1.0 - baseline);
            let expectation = expectation(n_canary, n_baseline, odds / (1.0 + odds), baseline, |counts| {
                let log_e = |psi: f64| hyper_tilt_log_e(psi, &counts).unwrap().log_e;
                log_e(1.4 * 2.0) - log_e(1.4)
            });
            assert!(
                (expectation - 1.0).abs() < ROUNDING,
                "{n_canary} {n_baseline} {baseline}: {expectation}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Given any past, the next block multiplies the capital by at most 1 on average: with clip, restarts, an
    /// estimate of the rate that may be quite wrong, and a weight that changes inside the block.
    #[test]
    fn the_next_block_is_fair_whatever_the_past(
        past in prop::collection::vec((round(), any::<bool>()), 0..12),
        (rho0, baseline) in (0.5..3.0, 0.0..1.0),
        weights in (1_u32..6, 1_u32..6, 1_u32..4, 1_u32..6),
    ) {
        let mut process = ProportionProcess::new(rho0, 60.0).unwrap();
        for (counts, new_block) in past {
            process.round(&counts, new_block).unwrap();
        }
        process.close_block();
        let before = process.log_e();
        let baseline = f64::min(baseline, 1.0 / rho0);
        let canary = rho0 * baseline;
        let expectation = expectation(weights.0, weights.1, canary, baseline, |one| {
            libm::log(expectation(weights.2, weights.3, canary, baseline, |two| {
                let mut process = process.clone();
                process.round(&one, true).unwrap();
                process.round(&two, false).unwrap();
                process.log_e() - before
            }))
        });
        prop_assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
    }
}

// Algebra.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_nearest_point_of_the_null_is_the_nearest(
        (canary, baseline) in (0.01..0.99, 0.01..0.99),
        (n_canary, n_baseline) in (1_u32..1000, 1_u32..1000),
        (rho0, delta) in (0.3..3.0, 0.0..0.5),
        step in -0.1..0.1,
    ) {
        let alternative = Rates { canary, baseline };
        let (n_canary, n_baseline) = (f64::from(n_canary), f64::from(n_baseline));
        let counts = Counts { n_canary, n_baseline, ..Counts::default() };
        let divergence = |null: Rates| {
            let of = |rate: f64, null: f64| {
                rate * libm::log(rate / null) + (1.0 - rate) * libm::log((1.0 - rate) / (1.0 - null))
            };
            n_canary * of(canary, null.canary) + n_baseline * of(baseline, null.baseline)
        };
        let ratio = ratio_log_factor(rho0, &alternative, &counts).unwrap().null;
        let difference = difference_log_factor(delta, &alternative, &counts).unwrap().null;
        let t = ratio.baseline * libm::exp(step);
        if rho0 * t < 1.0 && t < 1.0 {
            let other = Rates { canary: rho0 * t, baseline: t };
            prop_assert!(divergence(ratio) <= divergence(other) + 1e-9);
        }
        let t = difference.baseline * libm::exp(step);
        if t + delta < 1.0 {
            let other = Rates { canary: t + delta, baseline: t };
            prop_assert!(divergence(difference) <= divergence(other) + 1e-9);
        }
        prop_assert!(ratio.canary <= rho0 * ratio.baseline * (1.0 + 1e-12));
        prop_assert!(difference.canary <= difference.baseline + delta + 1e-12);
    }

    #[test]
    fn without_exposure_of_both_cohorts_nothing_changes(
        past in prop::collection::vec((round(), any::<bool>()), 0..20),
        (n, x) in (0.0..1e15, 0.0..1e15),
    ) {
        let mut process = ProportionProcess::new(1.1, 15.0).unwrap();
        for (counts, new_block) in past {
            process.round(&counts, new_block).unwrap();
        }
        let before = process.log_e().to_bits();
        for alone in [
            Counts::default(),
            Counts { x_baseline: x, n_baseline: n, ..Counts::default() },
            Counts { x_canary: x, n_canary: n, ..Counts::default() },
        ] {
            process.round(&alone, true).unwrap();
            prop_assert_eq!(process.log_e().to_bits(), before);
            let rates = Rates { canary: 0.5, baseline: 0.3 };
            prop_assert_eq!(ratio_log_factor(1.1, &rates, &alone), Ok(Ripr { null: rates, log_e: 0.0 }));
            prop_assert_eq!(difference_log_factor(0.1, &rates, &alone), Ok(Ripr { null: rates, log_e: 0.0 }));
        }
    }

    #[test]
    fn without_events_the_odds_are_unknown_and_no_proportion_is_suspicious(
        (n_canary, n_baseline) in (0_u32..1000, 0_u32..1000),
        (canary, baseline, psi, rho0) in (0.01..0.99, 0.01..0.99, 0.1..10.0, 0.3..3.0),
    ) {
        let (n_canary, n_baseline) = (f64::from(n_canary), f64::from(n_baseline));
        let quiet = Counts { n_canary, n_baseline, ..Counts::default() };
        prop_assert_eq!(hyper_tilt_log_e(psi, &quiet).unwrap().log_e.to_bits(), 0.0_f64.to_bits());
        let rates = Rates { canary, baseline };
        prop_assert!(ratio_log_factor(rho0, &rates, &quiet).unwrap().log_e <= 1e-12);
    }

    #[test]
    fn a_poll_may_be_split(rounds in prop::collection::vec(round(), 1..6), parts in 2_u32..8) {
        let mut whole = ProportionProcess::new(1.1, 15.0).unwrap();
        let mut split = whole.clone();
        for counts in rounds {
            // Of either cohort at most as many events as exposure, also in each part.
            let counts = Counts {
                x_canary: counts.x_canary.min(counts.n_canary),
                x_baseline: counts.x_baseline.min(counts.n_baseline),
                ..counts
            };
            let part = |value: f64| value / f64::from(parts);
            let share = Counts {
                x_canary: part(counts.x_canary),
                x_baseline: part(counts.x_baseline),
                n_canary: part(counts.n_canary),
                n_baseline: part(counts.n_baseline),
            };
            whole.round(&counts, true).unwrap();
            for i in 0..parts {
                split.round(&share, i == 0).unwrap();
            }
            prop_assert!((whole.log_e() - split.log_e()).abs() <= 1e-9 * (1.0 + whole.log_e().abs()));
        }
    }

    #[test]
    fn no_more_events_count_than_exposure(n in 1_u32..100, more in 0_u32..100, psi in 0.1..10.0) {
        let n = f64::from(n);
        let all = Counts { x_canary: n, x_baseline: n, n_canary: n, n_baseline: n };
        let beyond = Counts { x_canary: n + f64::from(more), ..all };
        let after = |counts: &Counts| {
            let mut process = ProportionProcess::new(1.1, 15.0).unwrap();
            process.round(counts, true).unwrap();
            process.log_e().to_bits()
        };
        prop_assert_eq!(after(&all), after(&beyond));
        prop_assert_eq!(hyper_tilt_log_e(psi, &all), hyper_tilt_log_e(psi, &beyond));
    }

    #[test]
    fn a_saved_process_continues_to_the_bit(
        rounds in prop::collection::vec((round(), any::<bool>(), any::<bool>()), 1..30),
    ) {
        let new = || ProportionProcess::new(1.1, 15.0).unwrap().with_clip(1.5).unwrap();
        let (mut process, mut restored) = (new(), new());
        for (counts, new_block, close) in rounds {
            for process in [&mut process, &mut restored] {
                process.round(&counts, new_block).unwrap();
                if close {
                    process.close_block();
                }
            }
            prop_assert_eq!(process.log_e().to_bits(), restored.log_e().to_bits());
            let saved = process.to_bytes();
            prop_assert_eq!(saved.len(), 254);
            restored = new().restore(&saved).unwrap();
            prop_assert_eq!(&restored, &process);
            prop_assert_eq!(restored.to_bytes(), saved);
        }
    }
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_counts_give_a_number_or_an_error_that_changes_nothing(
        rounds in prop::collection::vec((any_counts(), any::<bool>()), 1..30),
        (rho0, psi) in (any_ratio(), any_ratio()),
        (canary, baseline) in (any_rate(), any_rate()),
        delta in 0.0..0.999_999,
    ) {
        let mut process = ProportionProcess::new(rho0, 15.0).unwrap();
        let rates = Rates { canary, baseline };
        for (counts, new_block) in rounds {
            let before = process.clone();
            let fields = [counts.x_canary, counts.x_baseline, counts.n_canary, counts.n_baseline];
            let usable = fields.iter().all(|value| (0.0..=9_007_199_254_740_992.0).contains(value));
            prop_assert_eq!(process.round(&counts, new_block).is_ok(), usable);
            if !usable {
                prop_assert_eq!(&process, &before);
            }
            prop_assert!(process.log_e().is_finite());
            for result in [
                ratio_log_factor(rho0, &rates, &counts),
                difference_log_factor(delta, &rates, &counts),
            ] {
                prop_assert_eq!(result.is_ok(), usable);
                prop_assert!(result.is_ok_and(|ripr| ripr.log_e.is_finite()) || !usable);
            }
            let whole = usable && fields.iter().all(|value| value.fract() <= 0.0);
            let tilt = hyper_tilt_log_e(psi, &counts);
            prop_assert_eq!(tilt.is_ok(), whole);
            prop_assert!(tilt.is_ok_and(|t| t.log_e.is_finite() && t.log_mgf.is_finite()) || !whole);
        }
    }

    #[test]
    fn any_bytes_give_a_process_that_works_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        (damaged, value) in (0_usize..254, any::<u8>()),
        counts in round(),
    ) {
        let mut process = ProportionProcess::new(1.1, 15.0).unwrap();
        process.round(&counts, true).unwrap();
        let mut saved = process.to_bytes();
        saved[damaged] = value;
        for bytes in [bytes, saved] {
            for rho0 in [0.01, 1.1] {
                if let Ok(mut restored) = ProportionProcess::new(rho0, 15.0).unwrap().restore(&bytes) {
                    restored.round(&counts, false).unwrap();
                    restored.round(&counts, true).unwrap();
                    prop_assert!(restored.log_e().is_finite());
                }
            }
        }
    }

    #[test]
    fn any_parameters_are_taken_or_refused(a in any::<f64>(), b in any::<f64>()) {
        let ratio = |value: f64| (1e-9..=1e9).contains(&value);
        let rate = |value: f64| (1e-12..=1.0 - 1e-12).contains(&value);
        let counts = Counts { x_canary: 1.0, x_baseline: 2.0, n_canary: 3.0, n_baseline: 4.0 };
        let positive = b > 0.0 && b.is_finite();
        prop_assert_eq!(ProportionProcess::new(a, b).is_ok(), ratio(a) && positive);
        prop_assert_eq!(ProportionProcess::new(1.0, 15.0).unwrap().with_clip(b).is_ok(), positive);
        prop_assert_eq!(hyper_tilt_log_e(a, &counts).is_ok(), ratio(a));
        let rates = Rates { canary: a, baseline: b };
        prop_assert_eq!(ratio_log_factor(1.1, &rates, &counts).is_ok(), rate(a) && rate(b));
        let rates = Rates { canary: 0.5, baseline: 0.1 };
        prop_assert_eq!(difference_log_factor(a, &rates, &counts).is_ok(), (0.0..1.0).contains(&a));
    }
}

#[test]
fn large_counts_are_summed_as_exactly_as_small_ones() {
    // Both sides of the size at which the sum becomes an integral, and the largest counts.
    for (n, relative) in [(7.9e8, 1e-9), (8.1e8, 1e-9), (1e12, 1e-6), (1e15, 1e-3)] {
        let counts = Counts { x_canary: 0.51 * n, x_baseline: 0.49 * n, n_canary: n, n_baseline: n };
        // With two equal cohorts: ln E[ψ^X] for X that is nearly normal.
        let psi: f64 = 1.0 + 1e-7;
        let tilt = hyper_tilt_log_e(psi, &counts).unwrap();
        let log_psi = libm::log(psi);
        let variance = 0.25 * n * n / (2.0 * n - 1.0);
        let log_mgf = 0.5 * n * log_psi + 0.5 * variance * log_psi * log_psi;
        let log_e = counts.x_canary * log_psi - log_mgf;
        assert!((tilt.log_e - log_e).abs() <= relative * log_e + 2e-8, "{n}: {} {log_e}", tilt.log_e);
    }
}

#[test]
fn a_common_event_is_compared_sooner_than_by_the_binomial_form() {
    let round = |canary: f64, baseline: f64| Counts {
        x_canary: canary * 150.0,
        x_baseline: baseline * 1350.0,
        n_canary: 150.0,
        n_baseline: 1350.0,
    };
    let rounds_until_found = |canary: f64, baseline: f64| {
        let mut exact = ProportionProcess::new(1.0, 15.0).unwrap();
        let mut binomial = EventProcess::new(1.0, 15.0, None).unwrap();
        let mut rounds = (0, 0);
        while exact.log_e() < libm::log(100.0) {
            exact.round(&round(canary, baseline), true).unwrap();
            rounds.0 += 1;
        }
        while binomial.log_e() < libm::log(100.0) {
            binomial.round(&round(canary, baseline), true).unwrap();
            rounds.1 += 1;
        }
        rounds
    };
    let (exact, binomial) = rounds_until_found(0.48, 0.4);
    assert!(exact * 3 < binomial * 2, "{exact} {binomial}");
}

#[test]
fn an_error_names_what_is_wrong() {
    let counts = Counts { x_canary: 1.0, x_baseline: 2.0, n_canary: 3.0, n_baseline: 4.0 };
    let message = |error: Error| error.to_string();
    assert_eq!(
        message(hyper_tilt_log_e(1.5, &Counts { x_canary: 0.5, ..counts }).unwrap_err()),
        "x_canary is 0.5, expected a whole number"
    );
    let rates = Rates { canary: 0.5, baseline: 1.0 };
    assert_eq!(
        message(ratio_log_factor(1.0, &rates, &counts).unwrap_err()),
        "baseline is 1, expected a probability from 1e-12 to 1 - 1e-12"
    );
    let rates = Rates { canary: 0.5, baseline: 0.5 };
    assert_eq!(
        message(difference_log_factor(1.0, &rates, &counts).unwrap_err()),
        "delta is 1, expected a number from 0, below 1"
    );
}

/// The expectation of `exp(log_e)` over all outcomes of requests with one probability for each cohort.
fn expectation(
    n_canary: u32,
    n_baseline: u32,
    canary: f64,
    baseline: f64,
    log_e: impl Fn(Counts) -> f64,
) -> f64 {
    expectation_of(&vec![canary; index(n_canary)], &vec![baseline; index(n_baseline)], log_e)
}

/// The same for requests that each have a probability.
fn expectation_of(canary: &[f64], baseline: &[f64], log_e: impl Fn(Counts) -> f64) -> f64 {
    let exposure = |requests: &[f64]| f64::from(u32::try_from(requests.len()).unwrap());
    let (n_canary, n_baseline) = (exposure(canary), exposure(baseline));
    let baseline = distribution(baseline);
    let mut expectation = 0.0;
    for (x_canary, p_canary) in (0_u32..).zip(distribution(canary)) {
        for (x_baseline, p_baseline) in (0_u32..).zip(&baseline) {
            let probability = p_canary * p_baseline;
            if probability > 1e-18 {
                let (x_canary, x_baseline) = (f64::from(x_canary), f64::from(x_baseline));
                expectation +=
                    probability * libm::exp(log_e(Counts { x_canary, x_baseline, n_canary, n_baseline }));
            }
        }
    }
    expectation
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

/// `n` over `k`, for all `k`.
fn binomials(n: u32) -> Vec<f64> {
    distribution(&vec![0.5; index(n)]).into_iter().map(|p| p * libm::pow(2.0, f64::from(n))).collect()
}

/// Counts of a plausible round, quiet cohorts and more events than exposure included.
fn round() -> impl Strategy<Value = Counts> {
    let cohort = || {
        prop_oneof![
            8 => (0_u32..1000, 0_u32..3000),
            1 => (Just(0), 0_u32..10),
            1 => (0_u32..2000, 0_u32..2),
        ]
    };
    (cohort(), cohort()).prop_map(|((x_canary, n_canary), (x_baseline, n_baseline))| Counts {
        x_canary: f64::from(x_canary),
        x_baseline: f64::from(x_baseline),
        n_canary: f64::from(n_canary),
        n_baseline: f64::from(n_baseline),
    })
}

/// Counts of any size, whole ones often, and values that are no counts.
fn any_counts() -> impl Strategy<Value = Counts> {
    let value = || {
        prop_oneof![
            4 => (0.0..1e15).prop_map(f64::floor),
            8 => (0_u32..100).prop_map(f64::from),
            4 => Just(0.0),
            1 => 0.0..1e15,
            1 => any::<f64>(),
            1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, -0.0, 1e15, f64::MIN_POSITIVE]),
        ]
    };
    (value(), value(), value(), value()).prop_map(|(x_canary, x_baseline, n_canary, n_baseline)| Counts {
        x_canary,
        x_baseline,
        n_canary,
        n_baseline,
    })
}

fn any_ratio() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.1..10.0, 1 => prop::sample::select(vec![1e-9, 1e9])]
}

fn any_rate() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.001..0.999, 1 => prop::sample::select(vec![1e-12, 1.0 - 1e-12])]
}

fn index(n: u32) -> usize {
    usize::try_from(n).unwrap()
}
