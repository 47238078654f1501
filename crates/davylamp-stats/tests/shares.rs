//! Sums of costs, objectives and the traffic split: expectations by enumeration of all outcomes, and laws for
//! any input.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{Counts, SHARE_GRID, ShareProcess, SloProcess, TrafficSplit, share_log_e, slo_log_e};
use proptest::prelude::*;

/// How far an expectation may exceed 1 by rounding.
const ROUNDING: f64 = 1e-9;

/// What requests cost: all the same, most of it in one, nothing or little.
const COSTS: [&[f64]; 4] = [
    &[1.0; 7],
    &[0.0, 1e-9, 1.0, 2.0, 3.0, 1e6, 1.0, 0.5],
    &[0.0, 0.0, 0.0, 5.0],
    &[1e-3, 1.0, 1e3, 1.0, 7.0, 7.0, 7.0, 0.0, 2.0, 40.0],
];

// Expectations.

#[test]
fn a_bet_on_costs_is_fair_under_random_routing() {
    for costs in COSTS {
        for n_canary in 1..costs.len() {
            let expected = number(n_canary) / number(costs.len());
            for bet in SHARE_GRID {
                let e = routings(costs, n_canary).map(|round| {
                    let share = round.x_canary / (round.x_canary + round.x_baseline);
                    libm::exp(share_log_e(bet, share, expected).unwrap())
                });
                // Exactly 1: it would be above if the bet were not on the share of the exposure.
                let expectation = mean(e);
                assert!((expectation - 1.0).abs() <= ROUNDING, "{costs:?} {n_canary} {bet}: {expectation}");
            }
        }
    }
}

#[test]
fn two_blocks_of_costs_at_different_weights_are_fair_and_less_if_the_canary_is_better() {
    for (rho0, rho) in [(1.0, 1.0), (1.1, 1.1), (1.1, 0.9), (0.8, 0.8), (1e9, 1e9)] {
        let canary_costs = |round: Counts| Counts { x_canary: rho * round.x_canary, ..round };
        let new = ShareProcess::new(rho0, 60.0).unwrap();
        for (first, second) in [(COSTS[1], COSTS[2]), (COSTS[2], COSTS[1]), (COSTS[0], COSTS[1])] {
            let after = routings(first, 1).map(|one| {
                mean(routings(second, second.len() / 2).map(|two| {
                    let mut process = new.clone();
                    process.round(&canary_costs(one), true).unwrap();
                    process.round(&canary_costs(two), true).unwrap();
                    process.close_block();
                    libm::exp(process.log_e())
                }))
            });
            let expectation = mean(after);
            assert!(expectation <= 1.0 + ROUNDING, "{rho0} {rho}: {expectation}");
            assert!(rho < rho0 || expectation >= 1.0 - ROUNDING, "{rho0} {rho}: {expectation}");
        }
    }
}

#[test]
fn a_rate_against_another_is_an_e_value_on_the_boundary() {
    for null in [1e-3, 0.02, 0.3, 0.5, 0.79] {
        for rate in [0.1, 0.8, 1.25, 2.0, 10.0].map(|multiple| null * multiple) {
            if rate < 1.0 {
                for n in [1, 7, 20] {
                    let log_e = |x: f64| slo_log_e(null, rate, x, f64::from(n)).unwrap();
                    let expectation = binomial(n, null).map(|(x, p)| p * libm::exp(log_e(x))).sum::<f64>();
                    assert!((expectation - 1.0).abs() <= ROUNDING, "{null} {rate} {n}: {expectation}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Given any past, the next block multiplies the capital by at most 1 on average: with cap and restarts,
    /// on the boundary and inside the null.
    #[test]
    fn the_next_block_of_a_rate_is_fair_whatever_the_past(
        past in prop::collection::vec((0_u32..30, 0_u32..300, any::<bool>()), 0..12),
        null in 0.001..0.79,
        inside in 0.0..1.0,
        (first, second) in (0_u32..15, 0_u32..15),
    ) {
        let better = null * inside;
        let worse = 1.0 - (1.0 - null) * inside;
        for (mut process, rates) in [
            (SloProcess::violated(null, 60.0).unwrap(), [null, better]),
            (SloProcess::incident(null, 60.0).unwrap(), [null, better]),
            (SloProcess::met(null, 60.0).unwrap(), [null, worse]),
        ] {
            for &(events, exposure, new_block) in &past {
                process.round(f64::from(events), f64::from(exposure), new_block).unwrap();
            }
            process.close_block();
            for rate in rates {
                let mut expectation = 0.0;
                for (x, p) in binomial(first, rate) {
                    for (y, q) in binomial(second, rate) {
                        let mut after = process.clone();
                        after.round(x, f64::from(first), true).unwrap();
                        after.round(y, f64::from(second), false).unwrap();
                        expectation += p * q * libm::exp(after.log_e() - process.log_e());
                    }
                }
                prop_assert!(expectation <= 1.0 + ROUNDING, "{}", expectation);
            }
        }
    }
}

#[test]
fn the_split_is_an_e_process_with_both_nulls_on_the_boundary() {
    // The canary's requests among 100 at a weight of 20 %: too many, too few, or as they should be; each of
    // the first two in half of the blocks, or less.
    for (above, below) in [(0.5, 0.5), (0.5, 0.0), (0.5, 0.3), (0.2, 0.5), (0.0, 0.0)] {
        let outcomes = [(40.0, above), (10.0, below), (20.0, 1.0 - above - below)];
        let mut runs = vec![(TrafficSplit::new(0.3).unwrap(), 1.0)];
        for block in 1..=8 {
            let mut next = Vec::new();
            for (split, probability) in &runs {
                for (n_canary, of_outcome) in outcomes.into_iter().filter(|(_, p)| *p > 0.0) {
                    let mut split = split.clone();
                    split.block(n_canary, 100.0, 0.2).unwrap();
                    next.push((split, probability * of_outcome));
                }
            }
            runs = next;
            let expectation: f64 = runs.iter().map(|(split, p)| p * libm::exp(split.log_e())).sum();
            assert!(expectation <= 1.0 + ROUNDING, "{above} {below}, {block} blocks: {expectation}");
            if above + below >= 1.0 {
                assert!((expectation - 1.0).abs() <= ROUNDING, "{block} blocks: {expectation}");
            }
        }
    }
}

// Algebra.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_block_without_costs_or_with_one_cohort_changes_nothing(
        past in prop::collection::vec((costs(), any::<bool>()), 0..20),
        (n_canary, n_baseline, x) in (0.0..1e15, 0.0..1e15, 0.0..1e15),
    ) {
        let mut process = ShareProcess::new(1.1, 15.0).unwrap();
        for (round, new_block) in past {
            process.round(&round, new_block).unwrap();
        }
        process.close_block();
        let before = process.log_e().to_bits();
        for quiet in [
            Counts { n_canary, n_baseline, ..Counts::default() },
            Counts { x_baseline: x, n_baseline, ..Counts::default() },
            Counts { x_canary: x, n_canary, ..Counts::default() },
            Counts { x_canary: x, x_baseline: x, ..Counts::default() },
        ] {
            process.round(&quiet, true).unwrap();
            process.close_block();
            prop_assert_eq!(process.log_e().to_bits(), before);
        }
    }

    #[test]
    fn costs_count_when_their_block_closes_and_may_come_in_parts(round in costs(), parts in 2_u32..8) {
        let part = |value: f64| value / f64::from(parts);
        let share = Counts {
            x_canary: part(round.x_canary),
            x_baseline: part(round.x_baseline),
            n_canary: part(round.n_canary),
            n_baseline: part(round.n_baseline),
        };
        let mut whole = ShareProcess::new(1.1, 15.0).unwrap();
        let mut split = whole.clone();
        for _ in 0..3 {
            let before = split.log_e().to_bits();
            for i in 0..parts {
                split.round(&share, i == 0).unwrap();
                prop_assert_eq!(split.log_e().to_bits(), before);
            }
            whole.round(&round, true).unwrap();
            whole.close_block();
            split.close_block();
            prop_assert!(close(whole.log_e(), split.log_e()));
        }
    }

    #[test]
    fn more_tolerance_is_less_evidence(
        rounds in prop::collection::vec((costs(), any::<bool>()), 1..30),
        (rho0, more) in (0.2..5.0, 1.0..2.0),
        (null, less) in (0.001..0.099, 0.5..1.0),
    ) {
        let mut strict = ShareProcess::new(rho0, 15.0).unwrap();
        let mut tolerant = ShareProcess::new(rho0 * more, 15.0).unwrap();
        let mut low = SloProcess::violated(null * less, 15.0).unwrap();
        let mut high = SloProcess::violated(null, 15.0).unwrap();
        for (round, new_block) in rounds {
            strict.round(&round, new_block).unwrap();
            tolerant.round(&round, new_block).unwrap();
            prop_assert!(not_above(tolerant.log_e(), strict.log_e()));
            low.round(round.x_canary, round.n_canary, new_block).unwrap();
            high.round(round.x_canary, round.n_canary, new_block).unwrap();
            prop_assert!(not_above(high.log_e(), low.log_e()));
        }
    }

    #[test]
    fn a_poll_of_a_rate_may_be_split_and_no_more_events_count_than_exposure(
        (events, exposure) in (0_u32..100, 0_u32..1000),
        parts in 2_u32..8,
    ) {
        let (events, exposure) = (f64::from(events), f64::from(exposure));
        let mut whole = SloProcess::violated(0.01, 15.0).unwrap();
        let (mut split, mut most) = (whole.clone(), whole.clone());
        for _ in 0..3 {
            whole.round(events, exposure, true).unwrap();
            most.round(events.min(exposure), exposure, true).unwrap();
            for i in 0..parts {
                split.round(events / f64::from(parts), exposure / f64::from(parts), i == 0).unwrap();
            }
            prop_assert!(close(whole.log_e(), split.log_e()));
            prop_assert_eq!(whole.log_e().to_bits(), most.log_e().to_bits());
        }
        let before = whole.log_e().to_bits();
        whole.close_block();
        whole.round(events, 0.0, false).unwrap();
        // Without exposure nothing but a restart happens, which keeps the total.
        prop_assert_eq!(whole.log_e().to_bits(), before);
    }

    #[test]
    fn a_saved_process_continues_to_the_bit(
        rounds in prop::collection::vec((costs(), any::<bool>(), any::<bool>()), 1..30),
    ) {
        let new = || (
            ShareProcess::new(1.1, 15.0).unwrap(),
            SloProcess::incident(0.01, 15.0).unwrap(),
            TrafficSplit::new(0.3).unwrap(),
        );
        let (mut running, mut restored) = (new(), new());
        for (round, new_block, close) in rounds {
            for (share, slo, split) in [&mut running, &mut restored] {
                share.round(&round, new_block).unwrap();
                slo.round(round.x_canary, round.n_canary, new_block).unwrap();
                split.block(round.n_canary, round.n_canary + round.n_baseline, 0.1).unwrap();
                if close {
                    share.close_block();
                    slo.close_block();
                }
            }
            prop_assert_eq!(&running, &restored);
            let saved = (running.0.to_bytes(), running.1.to_bytes(), running.2.to_bytes());
            prop_assert_eq!((saved.0.len(), saved.1.len(), saved.2.len()), (246, 118, 129));
            let (share, slo, split) = new();
            restored = (
                share.restore(&saved.0).unwrap(),
                slo.restore(&saved.1).unwrap(),
                split.restore(&saved.2).unwrap(),
            );
            prop_assert_eq!(&running, &restored);
        }
    }
}

#[test]
fn a_rate_is_bet_against_with_six_alternatives_of_which_one_alone_gains_ten_at_most() {
    let multiples = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];
    for (new, rates, events) in [
        (SloProcess::violated(0.01, 15.0), multiples.map(|multiple| 0.01 * multiple), 25.0),
        (SloProcess::met(0.01, 15.0), multiples.map(|divisor| 0.01 / divisor), 1.0),
    ] {
        let mut process = new.unwrap();
        process.round(events, 1000.0, true).unwrap();
        let gains = rates.map(|rate| libm::exp(slo_log_e(0.01, rate, events, 1000.0).unwrap()).min(10.0));
        assert!(gains.iter().any(|gain| *gain >= 10.0));
        // Half of the capital, and the first sixtieth of the other half.
        let at_work = 0.5 + 0.5 * 15.0 / 900.0;
        let expected = at_work * mean(gains.into_iter()) + (1.0 - at_work);
        assert!(close(libm::exp(process.log_e()), expected));
    }
}

#[test]
fn a_rate_that_was_exceeded_is_not_met_and_an_incident_is_noticed_at_any_time() {
    let mut violated = SloProcess::violated(0.01, 15.0).unwrap();
    let mut incident = SloProcess::incident(0.01, 15.0).unwrap();
    let mut met = SloProcess::met(0.01, 15.0).unwrap();
    let mut blocks_with = |events: f64, blocks: u32| {
        for _ in 0..blocks {
            for process in [&mut violated, &mut incident, &mut met] {
                process.round(events, 1000.0, true).unwrap();
            }
        }
        [violated.log_e(), incident.log_e(), met.log_e()]
    };
    let [above, above_now, below] = blocks_with(2.0, 400);
    assert!(above < 0.0 && above_now < above && below > 100.0);
    // A hundred minutes of health later: the reserve for incidents is smaller, but is put to work sooner.
    let [above, above_now, _] = blocks_with(40.0, 12);
    assert!(above > 10.0 && above_now > libm::log(20.0), "{above} {above_now}");
}

#[test]
fn a_wrong_split_is_found_in_minutes_and_a_right_one_never() {
    let blocks_until = |n_canary: [f64; 2]| {
        let mut split = TrafficSplit::new(0.3).unwrap();
        (1..=240).find(|block| {
            split.block(n_canary[block % 2], 1000.0, 0.1).unwrap();
            split.log_e() >= libm::log(1000.0)
        })
    };
    assert_eq!(blocks_until([200.0, 200.0]), Some(13));
    assert_eq!(blocks_until([50.0, 50.0]), Some(13));
    assert_eq!(blocks_until([0.0, 0.0]), Some(13));
    assert_eq!(blocks_until([90.0, 125.0]), None);
    // Pinned connections that err to both sides.
    assert_eq!(blocks_until([60.0, 140.0]), None);
}

#[test]
fn a_block_within_the_tolerance_is_the_one_that_speaks_against_both_sides() {
    let fresh = TrafficSplit::new(0.3).unwrap();
    for (n_canary, within) in [(0.0, false), (69.0, false), (71.0, true), (129.0, true), (131.0, false)] {
        let mut split = fresh.clone();
        split.block(n_canary, 1000.0, 0.1).unwrap();
        assert_eq!(fresh.is_within(n_canary, 1000.0, 0.1), within, "{n_canary}");
        assert_eq!(split.log_e() < -1.0, within, "{n_canary}");
    }
    assert!(fresh.is_within(0.0, 0.0, 0.1));
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_numbers_give_a_number_or_an_error_that_changes_nothing(
        rounds in prop::collection::vec((prop::array::uniform4(any_number()), any::<bool>()), 1..20),
        (rho0, seconds) in (1e-9..1e9, 1e-3..1e3),
        null in 1e-12..0.79,
        (weight, tolerance) in (any_number(), 0.0..10.0),
    ) {
        let mut share = ShareProcess::new(rho0, seconds).unwrap();
        let mut slos = [
            SloProcess::violated(null, seconds).unwrap(),
            SloProcess::incident(null, seconds).unwrap(),
            SloProcess::met(null, seconds).unwrap(),
        ];
        let mut split = TrafficSplit::new(tolerance).unwrap();
        for ([x_canary, x_baseline, n_canary, n_baseline], new_block) in rounds {
            let usable = |values: &[f64]| values.iter().all(|v| (0.0..=9_007_199_254_740_992.0).contains(v));
            let costs = Counts { x_canary, x_baseline, n_canary, n_baseline };
            let before = (share.clone(), slos.clone(), split.clone());

            let taken = share.round(&costs, new_block).is_ok();
            prop_assert_eq!(taken, usable(&[x_canary, x_baseline, n_canary, n_baseline]));
            prop_assert!(taken || share == before.0);
            prop_assert!(share.log_e().is_finite());
            let mut closed = share.clone();
            closed.close_block();
            prop_assert!(closed.log_e().is_finite());

            for (slo, before) in slos.iter_mut().zip(&before.1) {
                let taken = slo.round(x_canary, n_canary, new_block).is_ok();
                prop_assert_eq!(taken, usable(&[x_canary, n_canary]));
                prop_assert!(taken || slo == before);
                prop_assert!(slo.log_e().is_finite());
                prop_assert!(slo.clone().restore(&slo.to_bytes()).is_ok());
            }

            let taken = split.block(n_canary, n_baseline, weight).is_ok();
            let weighted = (0.0..=1.0).contains(&weight);
            prop_assert_eq!(taken, usable(&[n_canary, n_baseline]) && n_canary <= n_baseline && weighted);
            prop_assert!(taken || split == before.2);
            prop_assert!(split.log_e().is_finite());
            prop_assert!(split.clone().restore(&split.to_bytes()).is_ok());
        }
    }

    #[test]
    fn any_parameters_are_taken_or_refused(
        (a, b) in (any_number(), any_number()),
        (c, d) in (any_number(), any_number()),
    ) {
        let seconds = b > 0.0 && b.is_finite();
        prop_assert_eq!(ShareProcess::new(a, b).is_ok(), (1e-9..=1e9).contains(&a) && seconds);
        prop_assert_eq!(SloProcess::violated(a, b).is_ok(), (1e-12..0.8).contains(&a) && seconds);
        prop_assert_eq!(SloProcess::incident(a, b).is_ok(), (1e-12..0.8).contains(&a) && seconds);
        prop_assert_eq!(SloProcess::met(a, b).is_ok(), (1e-12..1.0).contains(&a) && seconds);
        prop_assert_eq!(TrafficSplit::new(a).is_ok(), a >= 0.0 && a.is_finite());
        prop_assert!(share_log_e(a, b, c).map_or(true, f64::is_finite));
        prop_assert!(slo_log_e(a, b, c, d).map_or(true, f64::is_finite));
    }

    #[test]
    fn any_bytes_give_a_process_that_works_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..260),
        damaged in 0_usize..246,
        value in any::<u8>(),
        round in costs(),
    ) {
        let new = ShareProcess::new(1.1, 15.0).unwrap();
        let mut share = new.clone();
        share.round(&round, true).unwrap();
        let mut saved = share.to_bytes();
        saved[damaged] = value;
        for bytes in [bytes, saved] {
            if let Ok(mut restored) = new.clone().restore(&bytes) {
                restored.round(&round, false).unwrap();
                restored.round(&round, true).unwrap();
                prop_assert!(restored.log_e().is_finite());
            }
            let bytes = &bytes[..bytes.len().min(118)];
            if let Ok(mut restored) = SloProcess::met(0.01, 15.0).unwrap().restore(bytes) {
                restored.round(1.0, 10.0, true).unwrap();
                prop_assert!(restored.log_e().is_finite());
            }
            if let Ok(mut restored) = TrafficSplit::new(0.3).unwrap().restore(bytes) {
                restored.block(1.0, 10.0, 0.1).unwrap();
                prop_assert!(restored.log_e().is_finite());
            }
        }
    }
}

#[test]
fn an_error_names_what_is_wrong() {
    let mut share = ShareProcess::new(1.1, 15.0).unwrap();
    let costs = Counts { x_canary: f64::INFINITY, ..Counts::default() };
    assert_eq!(
        share.round(&costs, true).unwrap_err().to_string(),
        "x_canary is inf, expected a number from 0 to 2^53"
    );
    assert_eq!(
        share_log_e(1.0, 0.5, 0.5).unwrap_err().to_string(),
        "bet is 1, expected a number from 0 to below 1"
    );
    assert_eq!(
        share_log_e(0.5, 0.5, 0.0).unwrap_err().to_string(),
        "expected is 0, expected a share above 0 and up to 1"
    );
    assert_eq!(
        SloProcess::violated(0.8, 15.0).unwrap_err().to_string(),
        "null is 0.8, expected a rate from 1e-12 to below 0.8"
    );
    let mut slo = SloProcess::met(0.8, 15.0).unwrap();
    assert_eq!(
        slo.round(1.0, f64::NAN, true).unwrap_err().to_string(),
        "exposure is NaN, expected a number from 0 to 2^53"
    );
    let mut split = TrafficSplit::new(0.3).unwrap();
    assert_eq!(
        split.block(11.0, 10.0, 0.1).unwrap_err().to_string(),
        "n_canary is 11, expected no more than all requests"
    );
    assert_eq!(
        split.block(1.0, 10.0, 1.1).unwrap_err().to_string(),
        "weight is 1.1, expected a share from 0 to 1"
    );
}

/// A round for each choice of `n_canary` among requests with these costs.
fn routings(costs: &[f64], n_canary: usize) -> impl Iterator<Item = Counts> {
    let round = move |chosen: u32| {
        let of =
            |canary: bool| costs.iter().enumerate().filter(move |(i, _)| (chosen >> i & 1 == 1) == canary);
        Counts {
            x_canary: of(true).map(|(_, cost)| cost).sum(),
            x_baseline: of(false).map(|(_, cost)| cost).sum(),
            n_canary: number(n_canary),
            n_baseline: number(costs.len() - n_canary),
        }
    };
    (0..1_u32 << costs.len()).filter(move |chosen| chosen.count_ones() as usize == n_canary).map(round)
}

/// The numbers of events among `n`, with their probabilities.
fn binomial(n: u32, rate: f64) -> impl Iterator<Item = (f64, f64)> {
    let mut choices = 1.0;
    (0..=n).map(move |x| {
        let (x, rest) = (f64::from(x), f64::from(n - x));
        let probability = choices * libm::pow(rate, x) * libm::pow(1.0 - rate, rest);
        choices *= rest / (x + 1.0);
        (x, probability)
    })
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

/// Costs of a plausible round, none at all and one cohort included.
fn costs() -> impl Strategy<Value = Counts> {
    let cohort = || {
        prop_oneof![
            8 => (0.0..1000.0, 1_u32..3000),
            1 => (Just(0.0), 0_u32..10),
        ]
    };
    (cohort(), cohort()).prop_map(|((x_canary, n_canary), (x_baseline, n_baseline))| Counts {
        x_canary,
        x_baseline,
        n_canary: f64::from(n_canary),
        n_baseline: f64::from(n_baseline),
    })
}

fn any_number() -> impl Strategy<Value = f64> {
    let odd = vec![f64::NAN, f64::INFINITY, -1.0, -0.0, 0.0, 1e15, f64::MIN_POSITIVE, 5e-324, 0.8, 1.0];
    prop_oneof![
        4 => 0.0..1e15,
        4 => 0.0..1.0,
        2 => Just(0.0),
        1 => any::<f64>(),
        2 => prop::sample::select(odd),
    ]
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}

fn not_above(a: f64, b: f64) -> bool {
    a <= b || close(a, b)
}
