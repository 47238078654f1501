//! Thresholds with a horizon: the probability to reach them is what it should be, by enumeration.

use davylamp_stats::{Horizon, RATIO_GRID, horizon_threshold};
use proptest::prelude::*;

#[test]
fn the_thresholds_are_those_of_the_simulation() {
    // Simulated ones are known to 5 %.
    for (events, simulated) in [(100, 29.0), (300, 42.0), (1000, 62.0), (3000, 70.0)] {
        let threshold = horizon_threshold(0.1, 0.01, events).unwrap();
        assert!((threshold / simulated - 1.0).abs() < 0.08, "{events}: {threshold}");
    }
}

#[test]
fn it_is_reached_with_the_promised_probability_and_nothing_lower_is() {
    for (q0, alpha, events) in [(0.1, 0.05, 14), (0.5, 0.01, 14), (0.3, 0.002, 12), (0.9, 0.1, 14)] {
        let threshold = horizon_threshold(q0, alpha, events).unwrap();
        let reached = |threshold: f64| probability(q0, events, threshold);
        assert!(reached(threshold) <= alpha + 1e-12, "{q0} {alpha}: {threshold}");
        assert!(reached(0.998 * threshold) > alpha || threshold < 1.002, "{q0} {alpha}: {threshold}");
        assert!(threshold <= 1.0 / alpha + 1e-9);
    }
}

#[test]
fn a_longer_horizon_needs_more_and_less_than_none() {
    let thresholds = [10, 100, 1000].map(|events| horizon_threshold(0.2, 0.01, events).unwrap());
    assert!(thresholds.is_sorted());
    assert!(thresholds[2] < 100.0);
}

#[test]
fn after_the_horizon_the_rest_of_the_level_counts() {
    let horizon = Horizon::new(0.1, 0.05, 200).unwrap();
    let early = libm::log(horizon_threshold(0.1, 0.04, 200).unwrap());
    assert!(horizon.suffices(early, 1) && horizon.suffices(early, 200));
    assert!(!horizon.suffices(early - 1e-9, 200) && !horizon.suffices(early, 201));
    let late = libm::log(100.0) + 1e-9;
    assert!(horizon.suffices(late, 1) && horizon.suffices(late, u32::MAX));
    assert!(!horizon.suffices(f64::NAN, 1));
}

#[test]
fn an_error_names_what_is_wrong() {
    assert_eq!(
        horizon_threshold(0.1, 0.01, 0).unwrap_err().to_string(),
        "events is 0, expected a number from 1 to 20000"
    );
    assert_eq!(
        horizon_threshold(1.0, 0.01, 10).unwrap_err().to_string(),
        "q0 is 1, expected a probability from 1e-6 to 1 - 1e-6"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_input_gives_a_threshold_or_an_error(
        q0 in prop_oneof![6 => 1e-6..0.999_999, 1 => any::<f64>()],
        alpha in prop_oneof![6 => 1e-12..1.0, 1 => any::<f64>()],
        events in prop_oneof![6 => 0_u32..300, 1 => 20_001..u32::MAX],
    ) {
        let good = (1e-6..=1.0 - 1e-6).contains(&q0)
            && (1e-12..1.0).contains(&alpha)
            && (1..=20_000).contains(&events);
        let threshold = horizon_threshold(q0, alpha, events);
        prop_assert_eq!(threshold.is_ok(), good);
        prop_assert!(threshold.map_or(true, |c| (1.0..=1.000_001 / alpha).contains(&c)));
    }
}

/// That of all sequences of events whose evidence ever reaches the threshold.
fn probability(q0: f64, events: u32, threshold: f64) -> f64 {
    let mut total = 0.0;
    for sequence in 0..1_u32 << events {
        let (mut probability, mut reached) = (1.0, false);
        let mut factors = [1.0; 12];
        for event in 0..events {
            let of_canary = sequence >> event & 1 == 1;
            probability *= if of_canary { q0 } else { 1.0 - q0 };
            for (factor, ratio) in factors.iter_mut().zip(RATIO_GRID) {
                *factor *= if of_canary { ratio } else { 1.0 } / (1.0 + q0 * (ratio - 1.0));
            }
            reached |= factors.iter().sum::<f64>() / 12.0 >= threshold * (1.0 + 1e-12);
        }
        total += if reached { probability } else { 0.0 };
    }
    total
}
