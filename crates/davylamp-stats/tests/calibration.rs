//! What is learnt from history: whatever it is, the answer is usable, and it is the right one where the right
//! one is known.

use davylamp_stats::{
    Calibration, DEFAULT_POD_EFFECT, PodCounts, calibrate, latency_pod_effect, pod_effect, pod_effect_margin,
    pod_effect_margin_student, pod_effect_promotion_margin, pod_spread,
};
use proptest::prelude::*;

// Length and clip of a block.

#[test]
fn longer_bursts_need_longer_blocks() {
    let chosen = |seconds: usize| {
        let calibration = calibrate(&history(seconds, 4), 1, 5.0, 0.01).unwrap();
        (calibration.block_seconds, calibration.clip)
    };
    let ten = std::f64::consts::LN_10;
    assert_eq!(chosen(0), (5.0, ten));
    assert_eq!(chosen(5), (5.0, ten));
    assert_eq!(chosen(15), (15.0, ten));
    assert_eq!(chosen(45), (15.0, 1.5));
    assert_eq!(chosen(60), (30.0, 1.5));
    assert_eq!(chosen(180), (60.0, 1.5));
    assert_eq!(chosen(300), (120.0, 1.5));
}

#[test]
fn the_choice_bounds_the_alarms() {
    let Calibration { placebos, alarms, .. } = calibrate(&history(15, 4), 1, 5.0, 0.01).unwrap();
    assert_eq!(placebos, 8 * 4);
    assert!(alarms <= 1);
}

/// More than half of the pods are compared as the fewer others are; none is taken as one.
#[test]
fn a_canary_of_several_pods_is_compared_as_such() {
    let of = |pods: usize| calibrate(&history(60, 12), pods, 5.0, 0.01).unwrap();
    assert_eq!(of(0), of(1));
    assert_eq!(of(8), of(4));
    let (one, four) = (of(1), of(4));
    assert_eq!((one.placebos, four.placebos), (8 * 12, 8 * 12));
    assert_ne!((one.block_seconds, one.alarms), (four.block_seconds, four.alarms));
}

#[test]
fn with_less_than_an_hour_or_three_pods_there_is_nothing_to_learn() {
    let default = |seconds: f64| Calibration {
        block_seconds: seconds,
        clip: std::f64::consts::LN_10,
        placebos: 0,
        alarms: 0,
    };
    let all = history(30, 4);
    assert_eq!(calibrate(&all[..719], 1, 5.0, 0.01), Ok(default(15.0)));
    assert!(calibrate(&all[..720], 1, 5.0, 0.01).unwrap().placebos == 8);
    // Six of the eight are never asked anything.
    let two: Vec<Vec<PodCounts>> = all
        .iter()
        .map(|round| {
            let asked = |(pod, counts): (usize, &PodCounts)| {
                if pod < 2 { *counts } else { PodCounts::default() }
            };
            round.iter().enumerate().map(asked).collect()
        })
        .collect();
    assert_eq!(calibrate(&two, 1, 5.0, 0.01), Ok(default(15.0)));
    let none: [[PodCounts; 0]; 0] = [];
    assert_eq!(calibrate(&none, 1, 10.0, 0.01), Ok(default(20.0)));
    // No setting has a block of 200 seconds.
    assert_eq!(calibrate(&all, 1, 200.0, 0.01), Ok(default(200.0)));
}

#[test]
fn a_pod_that_was_not_there_is_no_placebo() {
    let mut rounds = history(0, 2);
    for round in &mut rounds[..720] {
        round[7] = PodCounts::default();
    }
    assert_eq!(calibrate(&rounds, 1, 5.0, 0.01).unwrap().placebos, 7 + 8);
}

#[test]
fn rounds_of_another_length_make_blocks_of_whole_rounds() {
    for (round_seconds, block_seconds) in [(2.0, 6.0), (10.0, 20.0), (15.0, 15.0), (40.0, 80.0)] {
        let calibration = calibrate(&history(0, 30), 1, round_seconds, 0.01).unwrap();
        assert!((calibration.block_seconds - block_seconds).abs() < 1e-9, "{calibration:?}");
    }
}

// The difference between pods.

#[test]
fn the_effect_of_pods_is_estimated_and_raised() {
    // 20 pods on the quantiles of a normal distribution, with so many events that chance plays no part.
    let pods = |tau: f64, requests: f64| -> Vec<PodCounts> {
        (0..20)
            .map(|pod| {
                let normal = (f64::from(pod) - 9.5) / 5.766;
                PodCounts { events: 0.01 * libm::exp(tau * normal) * requests, exposure: requests }
            })
            .collect()
    };
    // χ² of 19 degrees of freedom is below 14.562 in a quarter of cases.
    let raised = libm::sqrt(19.0 / 14.562);
    for tau in [0.02, 0.1, 0.5] {
        let found = pod_effect(&pods(tau, 1e12)).unwrap();
        assert!((found / (tau * raised) - 1.0).abs() < 0.03, "{tau} {found}");
        // 1000 events each: as much as 3.2 % of chance is taken off.
        let found = pod_effect(&pods(tau, 1e5)).unwrap();
        let expected = (tau * tau - 0.001).max(0.0).sqrt() * raised;
        assert!((found - expected).abs() <= 0.04 * expected, "{tau} {found}");
    }
}

#[test]
fn hours_that_are_slow_for_all_hide_no_difference_between_pods() {
    let pods = |noon: f64| -> Vec<Vec<PodCounts>> {
        let mean = |pod: u32, hour: u32| {
            let chance = [0.99, 1.0, 1.01][usize::try_from((pod + hour) % 3).unwrap()];
            (1.0 + 0.05 * f64::from(pod)) * chance * if hour % 12 > 8 { noon } else { 1.0 }
        };
        let hour = |pod: u32, hour: u32| PodCounts { events: 1e4 * mean(pod, hour), exposure: 1e4 };
        (0..6).map(|pod| (0..12).map(|at| hour(pod, at)).collect()).collect()
    };
    let calm = latency_pod_effect(&pods(1.0)).unwrap();
    assert!(calm > 0.08);
    assert!((latency_pod_effect(&pods(2.0)).unwrap() - calm).abs() < 1e-6);
}

#[test]
fn a_difference_that_comes_and_goes_is_none() {
    // Each pod is slow in another hour; over the day they are alike.
    let hour = |pod: u32, hour: u32| PodCounts { events: if hour == pod { 3e4 } else { 1e4 }, exposure: 1e4 };
    let pods: Vec<Vec<PodCounts>> = (0..8).map(|pod| (0..8).map(|at| hour(pod, at)).collect()).collect();
    assert!(latency_pod_effect(&pods).unwrap() <= 0.0);
}

#[test]
fn without_three_pods_the_default_counts() {
    let pod = PodCounts { events: 5.0, exposure: 1000.0 };
    let idle = PodCounts::default();
    assert_eq!(pod_effect(&[pod, pod, idle, idle]), Ok(DEFAULT_POD_EFFECT));
    assert_eq!(pod_effect(&[]), Ok(DEFAULT_POD_EFFECT));
    assert_eq!(pod_effect(&[pod, pod, pod]), Ok(0.0));
    assert_eq!(latency_pod_effect(&[[pod, pod], [pod, pod], [pod, idle]]), Ok(DEFAULT_POD_EFFECT));
    assert_eq!(latency_pod_effect(&[[pod, pod], [pod, pod], [pod, pod]]), Ok(0.0));
}

#[test]
fn a_tolerance_is_widened_and_a_margin_narrowed() {
    let spread = pod_spread(0.2, 1, 1).unwrap();
    assert!(pod_effect_margin(1.1, spread, 0.01).unwrap() > 1.1);
    assert!(pod_effect_margin_student(1.1, spread, 0.01, 5).unwrap() > 1.1);
    assert!(pod_effect_promotion_margin(1.5, spread, 0.05).unwrap() < 1.5);
    assert!(pod_effect_promotion_margin(0.8, spread, 0.05).unwrap() > 0.8);
    // Without a difference between pods, or with many of them, nothing changes.
    assert_eq!(pod_effect_margin(1.1, pod_spread(0.0, 1, 1).unwrap(), 0.01), Ok(1.1));
    let many = pod_spread(0.2, 1_000_000, 1_000_000).unwrap();
    assert!((pod_effect_margin(1.1, many, 0.01).unwrap() - 1.1).abs() < 1e-3);
}

#[test]
fn an_error_names_what_is_wrong() {
    let pod = PodCounts { events: 5.0, exposure: 1000.0 };
    let message = |result: Result<f64, davylamp_stats::Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(pod_effect(&[PodCounts { events: -1.0, ..pod }])),
        "events is -1, expected a number from 0 to 2^53"
    );
    assert_eq!(message(pod_spread(0.1, 0, 3)), "pods_canary is 0, expected 1 or more");
    assert_eq!(
        message(pod_effect_promotion_margin(1.5, 0.1, 0.7)),
        "beta is 0.7, expected a probability from 1e-12 to 0.5"
    );
    let calibrate = |rounds: &[Vec<PodCounts>], seconds: f64| {
        calibrate(rounds, 1, seconds, 0.01).unwrap_err().to_string()
    };
    assert_eq!(
        calibrate(&[vec![pod], vec![pod, pod]], 5.0),
        "rounds is 2, expected as many pods in every round"
    );
    assert_eq!(calibrate(&[vec![pod]], 0.0), "round_seconds is 0, expected a number from 0.1 to 3600");
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_something_usable_or_an_error(
        rounds in prop::collection::vec(prop::collection::vec(any_pod(), 4), 0..40),
        (round_seconds, alpha) in (prop_oneof![Just(300.0), Just(120.0), any::<f64>()], any::<f64>()),
    ) {
        let usable = rounds.iter().flatten().all(|pod| {
            [pod.events, pod.exposure].iter().all(|value| (0.0..=9_007_199_254_740_992.0).contains(value))
        });
        let taken = (0.1..=3600.0).contains(&round_seconds) && alpha > 0.0 && alpha < 1.0;
        let calibration = calibrate(&rounds, 1, round_seconds, alpha);
        prop_assert_eq!(calibration.is_ok(), usable && taken);
        for calibration in calibration.into_iter().chain(calibrate(&rounds, 1, 120.0, 0.01)) {
            prop_assert!(calibration.block_seconds >= 5.0 && calibration.block_seconds <= 3600.0);
            prop_assert!(calibration.clip >= 1.5);
            prop_assert!(calibration.alarms <= calibration.placebos);
        }
        for tau in [latency_pod_effect(&rounds), pod_effect(&rounds.concat())] {
            prop_assert_eq!(tau.is_ok(), usable);
            prop_assert!(tau.is_ok_and(|tau| tau.is_finite() && tau >= 0.0) || !usable);
        }
    }

    #[test]
    fn any_parameters_are_taken_or_refused(
        (tau, canary, baseline) in (any_number(), any::<u32>(), any::<u32>()),
        (ratio, spread, risk, df) in (any_number(), any_number(), any_number(), any::<u32>()),
    ) {
        let good_spread = (0.0..=20.0).contains(&spread);
        let good = good_spread && (1e-9..=1e9).contains(&ratio) && (1e-12..=0.5).contains(&risk);
        let student = good && df > 0;
        let spread_of_pods = pod_spread(tau, canary, baseline);
        let pods = canary > 0 && baseline > 0;
        prop_assert_eq!(spread_of_pods.is_ok(), (0.0..=10.0).contains(&tau) && pods);
        prop_assert!(spread_of_pods.map_or(true, |spread| (0.0..=20.0).contains(&spread)));
        for (result, good) in [
            (pod_effect_margin(ratio, spread, risk), good),
            (pod_effect_promotion_margin(ratio, spread, risk), good),
            (pod_effect_margin_student(ratio, spread, risk, df), student),
        ] {
            prop_assert_eq!(result.is_ok(), good);
            prop_assert!(result.map_or(true, |margin| (1e-9..=1e9).contains(&margin)));
        }
    }
}

/// Eight pods for some hours of 5 second rounds: an error now and then, and every ten minutes a burst at one
/// pod or another.
fn history(burst_seconds: usize, hours: usize) -> Vec<Vec<PodCounts>> {
    let mut state = 1_u64;
    let mut rounds = vec![vec![PodCounts { events: 0.0, exposure: 50.0 }; 8]; 720 * hours];
    for pod in rounds.iter_mut().flatten() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        pod.events = if state >> 32 < u64::from(u32::MAX) / 4 { 1.0 } else { 0.0 };
    }
    for start in (0..rounds.len()).step_by(120) {
        for round in &mut rounds[start..start + burst_seconds / 5] {
            round[start / 120 % 8].events = 15.0;
        }
    }
    rounds
}

fn any_pod() -> impl Strategy<Value = PodCounts> {
    (any_count(), any_count()).prop_map(|(events, exposure)| PodCounts { events, exposure })
}

fn any_count() -> impl Strategy<Value = f64> {
    prop_oneof![
        300 => 0.0..1e15,
        300 => (0_u32..100).prop_map(f64::from),
        100 => Just(0.0),
        100 => prop::sample::select(vec![1e15, f64::MIN_POSITIVE, 5e-324, -0.0]),
        1 => any::<f64>(),
    ]
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![4 => 0.0..2.0, 2 => 0.0..30.0, 1 => any::<f64>(), 1 => prop::sample::select(vec![1e-12, 0.5, 1e9])]
}
