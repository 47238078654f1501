//! What must hold for any counts: algebraic laws, and numbers or named errors for any input at all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{
    Capital, Counts, Error, EventProcess, Interval, NonInferiority, attribution, combine_log_e,
    counter_increment, counter_increments, mantel_haenszel, rr_confidence_sequence,
};
use proptest::prelude::*;

// Algebra.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_block_without_events_or_with_one_cohort_changes_nothing(
        past in prop::collection::vec((round(), any::<bool>()), 0..20),
        (n_canary, n_baseline, x) in (0.0..1e15, 0.0..1e15, 0.0..1e15),
    ) {
        let mut process = EventProcess::new(1.1, 15.0, None).unwrap();
        let mut promotion = NonInferiority::new(1.5, None).unwrap();
        for (counts, new_block) in past {
            process.round(&counts, new_block).unwrap();
            promotion.round(&counts, new_block).unwrap();
        }
        let before = (process.log_e().to_bits(), promotion.log_e().to_bits());
        for quiet in [
            Counts { n_canary, n_baseline, ..Counts::default() },
            Counts { x_baseline: x, n_baseline, ..Counts::default() },
            Counts { x_canary: x, n_canary, ..Counts::default() },
            Counts { x_canary: x, x_baseline: x, ..Counts::default() },
        ] {
            process.round(&quiet, true).unwrap();
            promotion.round(&quiet, true).unwrap();
            prop_assert_eq!((process.log_e().to_bits(), promotion.log_e().to_bits()), before);
        }
    }

    #[test]
    fn a_quiet_canary_is_no_evidence_against_it_with_a_floor(n_canary in 0.0..1e15, n_baseline in 0.0..1e15) {
        let mut process = EventProcess::new(1.1, 15.0, Some(0.001)).unwrap();
        process.round(&Counts { n_baseline, ..Counts::default() }, true).unwrap();
        prop_assert_eq!(process.log_e().to_bits(), 0.0_f64.to_bits());
        process.round(&Counts { n_canary, n_baseline, ..Counts::default() }, false).unwrap();
        prop_assert!(process.log_e() <= 0.0);
    }

    #[test]
    fn for_a_rate_no_more_events_count_than_exposure(n_canary in 0_u32..100, more in 0_u32..100) {
        let new = NonInferiority::new(1.5, Some((0.01, 0.5))).unwrap();
        let n_canary = f64::from(n_canary);
        let all = Counts { x_canary: n_canary, n_canary, ..Counts::default() };
        let beyond = Counts { x_canary: n_canary + f64::from(more), ..all };
        prop_assert_eq!(after(&new, all).log_e_absolute(), after(&new, beyond).log_e_absolute());
    }

    #[test]
    fn a_poll_may_be_split(counts in round(), parts in 2_u32..8, floor in prop::option::of(0.001..0.4)) {
        let counts = Counts { x_canary: counts.x_canary.min(counts.n_canary), ..counts };
        let part = |value: f64| value / f64::from(parts);
        let share = Counts {
            x_canary: part(counts.x_canary),
            x_baseline: part(counts.x_baseline),
            n_canary: part(counts.n_canary),
            n_baseline: part(counts.n_baseline),
        };
        let mut whole = EventProcess::new(1.1, 15.0, floor).unwrap();
        let mut split = whole.clone();
        for _ in 0..3 {
            whole.round(&counts, true).unwrap();
            for i in 0..parts {
                split.round(&share, i == 0).unwrap();
            }
            prop_assert!(close(whole.log_e(), split.log_e()));
        }
    }

    #[test]
    fn more_tolerance_is_less_evidence(
        rounds in prop::collection::vec((round(), any::<bool>()), 1..30),
        (rho0, more) in (0.2..5.0, 1.0..2.0),
        floor in prop::option::of(0.001..0.4),
    ) {
        let mut strict = EventProcess::new(rho0, 15.0, floor).unwrap();
        let mut tolerant = EventProcess::new(rho0 * more, 15.0, floor).unwrap();
        let mut narrow = NonInferiority::new(rho0, Some((0.01, 0.5))).unwrap();
        let mut wide = NonInferiority::new(rho0 * more, Some((0.01, 0.5))).unwrap();
        for (counts, new_block) in rounds {
            strict.round(&counts, new_block).unwrap();
            tolerant.round(&counts, new_block).unwrap();
            prop_assert!(not_above(tolerant.log_e(), strict.log_e()));
            narrow.round(&counts, new_block).unwrap();
            wide.round(&counts, new_block).unwrap();
            prop_assert!(not_above(narrow.log_e(), wide.log_e()));
        }
    }

    #[test]
    fn a_saved_process_continues_to_the_bit(
        rounds in prop::collection::vec((round(), any::<bool>(), any::<bool>()), 1..30),
        floor in prop::option::of(0.001..0.4),
        absolute in prop::option::of((0.001..0.1, 0.01..1.0)),
    ) {
        let mut process = EventProcess::new(1.1, 15.0, floor).unwrap();
        let mut promotion = NonInferiority::new(1.5, absolute).unwrap();
        let mut restored = (process.clone(), promotion.clone());
        for (counts, new_block, close) in rounds {
            for process in [&mut process, &mut restored.0] {
                process.round(&counts, new_block).unwrap();
                if close {
                    process.close_block();
                }
            }
            for promotion in [&mut promotion, &mut restored.1] {
                promotion.round(&counts, new_block).unwrap();
                if close {
                    promotion.close_block();
                }
            }
            prop_assert_eq!(process.log_e().to_bits(), restored.0.log_e().to_bits());
            prop_assert_eq!(promotion.log_e().to_bits(), restored.1.log_e().to_bits());
            let saved = (process.to_bytes(), promotion.to_bytes());
            prop_assert!(saved.0.len() <= 342 && saved.1.len() <= 321);
            restored.0 = EventProcess::new(1.1, 15.0, floor).unwrap().restore(&saved.0).unwrap();
            restored.1 = NonInferiority::new(1.5, absolute).unwrap().restore(&saved.1).unwrap();
            prop_assert_eq!(&restored.0, &process);
            prop_assert_eq!(&restored.1, &promotion);
            prop_assert_eq!((restored.0.to_bytes(), restored.1.to_bytes()), saved);
        }
    }

    #[test]
    fn closing_a_block_keeps_the_evidence(
        rounds in prop::collection::vec((round(), any::<bool>()), 1..30),
        floor in prop::option::of(0.001..0.4),
    ) {
        let mut process = EventProcess::new(1.1, 15.0, floor).unwrap();
        for (counts, new_block) in rounds {
            process.round(&counts, new_block).unwrap();
            let mut closed = process.clone();
            closed.close_block();
            prop_assert_eq!(closed.log_e().to_bits(), process.log_e().to_bits());
            let twice = { let mut twice = closed.clone(); twice.close_block(); twice };
            prop_assert_eq!(twice, closed);
        }
    }
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_counts_give_a_number_or_an_error_that_changes_nothing(
        rounds in prop::collection::vec((any_counts(), any::<bool>()), 1..30),
        (rho0, block_seconds, margin) in (any_ratio(), any_positive(), any_ratio()),
        floor in prop::option::of(1e-12..0.499_999),
        absolute in prop::option::of((1e-12..0.999_999, 1e-9..1.0)),
    ) {
        let mut process = EventProcess::new(rho0, block_seconds, floor).unwrap();
        let mut promotion = NonInferiority::new(margin, absolute).unwrap();
        for (counts, new_block) in &rounds {
            let before = (process.clone(), promotion.clone());
            let usable = [counts.x_canary, counts.x_baseline, counts.n_canary, counts.n_baseline]
                .iter()
                .all(|value| (0.0..=9_007_199_254_740_992.0).contains(value));
            prop_assert_eq!(process.round(counts, *new_block).is_ok(), usable);
            prop_assert_eq!(promotion.round(counts, *new_block).is_ok(), usable);
            if !usable {
                prop_assert_eq!(&(process.clone(), promotion.clone()), &before);
            }
            prop_assert!(process.log_e().is_finite());
            prop_assert!(promotion.log_e().is_finite());
            prop_assert!(promotion.log_e_absolute().is_none_or(f64::is_finite));
            prop_assert!(process.clone().restore(&process.to_bytes()).is_ok());
            prop_assert!(promotion.clone().restore(&promotion.to_bytes()).is_ok());
        }
        let counts: Vec<Counts> = rounds.into_iter().map(|(counts, _)| counts).collect();
        prop_assert!(mantel_haenszel(counts.iter().copied()).is_none_or(f64::is_finite));
        if let Ok(Interval { lower, upper }) = rr_confidence_sequence(&counts, 0.01) {
            prop_assert!(lower.is_finite() && lower >= 0.0);
            prop_assert!(upper > 0.0);
        }
    }

    #[test]
    fn any_bytes_give_a_process_that_works_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        damaged in 0_usize..342,
        value in any::<u8>(),
        counts in round(),
    ) {
        let mut process = EventProcess::new(1.1, 15.0, Some(0.01)).unwrap();
        process.round(&counts, true).unwrap();
        let mut saved = process.to_bytes();
        saved[damaged] = value;
        for bytes in [bytes, saved] {
            for floor in [None, Some(0.01)] {
                let new = EventProcess::new(1.1, 15.0, floor).unwrap();
                if let Ok(mut restored) = new.restore(&bytes) {
                    restored.round(&counts, false).unwrap();
                    restored.round(&counts, true).unwrap();
                    prop_assert!(restored.log_e().is_finite());
                }
            }
            let new = NonInferiority::new(1.5, None).unwrap();
            if let Ok(mut restored) = new.restore(&bytes) {
                restored.round(&counts, true).unwrap();
                prop_assert!(restored.log_e().is_finite());
            }
        }
    }

    #[test]
    fn any_parameters_are_taken_or_refused(a in any::<f64>(), b in any::<f64>(), c in any::<f64>()) {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let ratio = |value: f64| (1e-9..=1e9).contains(&value);
        prop_assert_eq!(EventProcess::new(a, b, None).is_ok(), ratio(a) && positive(b));
        prop_assert_eq!(EventProcess::new(1.0, 15.0, Some(c)).is_ok(), c > 0.0 && c < 0.5);
        prop_assert_eq!(NonInferiority::new(a, None).is_ok(), ratio(a));
        let absolute = b > 0.0 && b < 1.0 && c > 0.0 && c <= 1.0;
        prop_assert_eq!(NonInferiority::new(2.0, Some((b, c))).is_ok(), absolute);
        prop_assert_eq!(rr_confidence_sequence(&[], a).is_ok(), a > 0.0 && a < 1.0);
        prop_assert!(combine_log_e(&[a, b], &[c, 1.0 - c]).map_or(true, f64::is_finite));
        prop_assert!(attribution(&[a, b], &[c, 1.0 - c], a).len() <= 2);
        let increment = counter_increment(a, b);
        prop_assert!(increment >= 0.0 && increment.is_finite());
        let mut capital = Capital::new([0.5, 0.5], 0.5).unwrap();
        capital.restart(a);
        let taken = capital.add(&[b, c]).is_ok();
        prop_assert_eq!(taken, b.abs() <= 1e300 && c.abs() <= 1e300);
        prop_assert!(capital.log_e(a).is_finite() || a == f64::NEG_INFINITY);
    }

    #[test]
    fn an_average_lies_between_its_parts(log_e in prop::collection::vec(-1e6..1e6, 1..9)) {
        let weights = vec![1.0 / f64::from(u32::try_from(log_e.len()).unwrap()); log_e.len()];
        let average = combine_log_e(&log_e, &weights).unwrap();
        let largest = log_e.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let smallest = log_e.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!(not_above(average, largest) && not_above(smallest, average));
        // The threshold is reached by the average only if somebody can be blamed for it.
        let blamed = attribution(&log_e, &weights, 0.01);
        prop_assert!(!blamed.is_empty());
        let blamed = blamed.into_iter().map(|i| log_e[i]).fold(f64::NEG_INFINITY, f64::max);
        prop_assert_eq!(blamed.to_bits(), largest.to_bits());
    }

    #[test]
    fn increments_add_up_without_a_reset(steps in prop::collection::vec(0_u32..1000, 1..20)) {
        let mut value = 5.0;
        let mut count = |step: &u32| { value += f64::from(*step); Some(value) };
        let samples: Vec<Option<f64>> = steps.iter().map(&mut count).collect();
        let total: f64 = counter_increments(&samples).iter().sum();
        prop_assert!(close(total, value - samples[0].unwrap()));
    }
}

// The interval.

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_interval_contains_the_ratio_and_shrinks_with_alpha(
        blocks in prop::collection::vec((0_u32..30, 0_u32..300), 1..40),
        (alpha, smaller) in (0.001..0.2, 0.01..1.0),
    ) {
        let block = |&(x_canary, x_baseline): &(u32, u32)| Counts {
            x_canary: f64::from(x_canary),
            x_baseline: f64::from(x_baseline),
            n_canary: 1000.0,
            n_baseline: 9000.0,
        };
        let blocks: Vec<Counts> = blocks.iter().map(block).collect();
        let interval = rr_confidence_sequence(&blocks, alpha).unwrap();
        let wider = rr_confidence_sequence(&blocks, alpha * smaller).unwrap();
        prop_assert!(wider.lower <= interval.lower && wider.upper >= interval.upper);
        if let Some(ratio) = mantel_haenszel(blocks.iter().copied())
            && (0.125..=8.0).contains(&ratio)
        {
            prop_assert!(interval.lower < ratio && ratio < interval.upper, "{ratio} {interval:?}");
        }
        // Exchanging the cohorts inverts it.
        let swapped: Vec<Counts> = blocks.iter().map(Counts::swapped).collect();
        let swapped = rr_confidence_sequence(&swapped, alpha).unwrap();
        prop_assert!(close(swapped.upper * interval.lower, 1.0) || interval.lower == 0.0);
        prop_assert_eq!(interval.lower == 0.0, swapped.upper == f64::INFINITY);
    }
}

#[test]
fn there_is_no_ratio_to_a_baseline_without_events() {
    let quiet = Counts { x_canary: 3.0, x_baseline: 0.0, n_canary: 100.0, n_baseline: 900.0 };
    assert_eq!(mantel_haenszel([quiet]), None);
    assert_eq!(mantel_haenszel([]), None);
    assert_eq!(mantel_haenszel([Counts { x_baseline: 2.0, n_canary: 0.0, ..quiet }]), None);
    assert_eq!(mantel_haenszel([Counts { x_baseline: f64::NAN, ..quiet }]), None);
    let healthy = Counts { x_canary: 0.0, x_baseline: 2.0, ..quiet };
    assert_eq!(mantel_haenszel([healthy]), Some(0.0));
    // A block with one cohort does not count.
    let alone = Counts { x_canary: 50.0, n_baseline: 0.0, ..quiet };
    assert_eq!(mantel_haenszel([healthy, alone]), Some(0.0));
}

#[test]
fn the_interval_ends_where_the_grid_does() {
    let all = Counts { x_canary: 1e6, x_baseline: 1.0, n_canary: 1e9, n_baseline: 1e9 };
    let interval = rr_confidence_sequence(&[all], 0.01).unwrap();
    assert!(close(interval.lower, 8.0) && interval.upper == f64::INFINITY, "{interval:?}");
    let none = rr_confidence_sequence(&[all.swapped()], 0.01).unwrap();
    assert!(close(none.upper, 0.125) && none.lower == 0.0, "{none:?}");
}

// Errors.

#[test]
fn an_error_names_what_is_wrong() {
    let good = Counts { x_canary: 1.0, x_baseline: 2.0, n_canary: 3.0, n_baseline: 4.0 };
    let mut process = EventProcess::new(1.1, 15.0, None).unwrap();
    let mut message = |counts: Counts| process.round(&counts, true).unwrap_err().to_string();
    assert_eq!(
        message(Counts { x_canary: -1.0, ..good }),
        "x_canary is -1, expected a number from 0 to 2^53"
    );
    assert_eq!(
        message(Counts { n_baseline: f64::NAN, ..good }),
        "n_baseline is NaN, expected a number from 0 to 2^53"
    );
    assert_eq!(
        message(Counts { n_canary: f64::INFINITY, ..good }),
        "n_canary is inf, expected a number from 0 to 2^53"
    );
    assert_eq!(
        EventProcess::new(1.1, 15.0, Some(0.5)).unwrap_err().to_string(),
        "floor is 0.5, expected a rate above 0 and below 0.5"
    );
    assert_eq!(
        NonInferiority::new(1.5, Some((0.001, 0.0))).unwrap_err().to_string(),
        "next_weight is 0, expected a share above 0 and up to 1"
    );
    assert_eq!(combine_log_e(&[0.0], &[]), Err(Error::Lengths { log_e: 1, weights: 0 }));
    assert_eq!(
        combine_log_e(&[0.0, 0.0], &[0.5, 0.4]).unwrap_err().to_string(),
        "weights is 0.9, expected weights with the sum 1"
    );
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let saved = EventProcess::new(1.1, 15.0, None).unwrap().to_bytes();
    let restore = |bytes: &[u8]| {
        let new = EventProcess::new(1.1, 15.0, None).unwrap();
        new.restore(bytes).unwrap_err().to_string()
    };
    let damaged = |at: usize, with: &[u8]| {
        let mut bytes = saved.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        restore(&bytes)
    };
    assert_eq!(saved.len(), 230);
    assert_eq!(restore(&[]), "the saved state has 0 bytes, expected 1");
    assert_eq!(restore(&saved[..229]), "the saved state has 229 bytes, expected 230");
    assert_eq!(damaged(0, &[2]), "the saved state has version 2, expected 1");
    assert_eq!(damaged(1, &[7]), "the saved state has open 7, expected 0 or 1");
    assert_eq!(damaged(1, &[1]), "the saved state has blocks 0, expected 1 or more with an open block");
    assert_eq!(
        damaged(214, &f64::NAN.to_le_bytes()),
        "the saved state has n_canary NaN, expected a finite number"
    );
    assert_eq!(
        damaged(222, &(-1.0_f64).to_le_bytes()),
        "the saved state has n_baseline -1, expected a number not below 0"
    );
    assert_eq!(
        damaged(6, &(-1.0_f64).to_le_bytes()),
        "the saved state has share -1, expected a number not below 0"
    );
    assert!(damaged(102, &1e150_f64.to_le_bytes()).starts_with("the saved state has total 1000"));
    assert_eq!(
        damaged(110, &f64::INFINITY.to_le_bytes()),
        "the saved state has wealth inf, expected a finite number"
    );
}

fn after(before: &NonInferiority, counts: Counts) -> NonInferiority {
    let mut process = before.clone();
    process.round(&counts, true).unwrap();
    process
}

/// Counts of a plausible round, quiet cohorts and more events than exposure included.
fn round() -> impl Strategy<Value = Counts> {
    let cohort = || {
        prop_oneof![
            8 => (0_u32..20, 0_u32..3000),
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

/// Counts of any size, and values that are no counts.
fn any_counts() -> impl Strategy<Value = Counts> {
    let value = || {
        prop_oneof![
            4 => 0.0..1e15,
            4 => (0_u32..100).prop_map(f64::from),
            2 => Just(0.0),
            1 => prop::num::f64::POSITIVE | prop::num::f64::SUBNORMAL,
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

fn any_positive() -> impl Strategy<Value = f64> {
    use prop::num::f64::{NORMAL, POSITIVE, SUBNORMAL};
    prop_oneof![4 => 0.1..100.0, 1 => POSITIVE | NORMAL | SUBNORMAL]
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}

fn not_above(a: f64, b: f64) -> bool {
    a <= b || close(a, b)
}
