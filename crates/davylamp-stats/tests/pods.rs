//! Pods as units: the t-test, ranks and dispersion, by enumeration, by generated pods that are always the
//! same ones, and for any input.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{
    Counts, Gauge, RankProcess, event_log_factor, mid_ranks, pearson_dispersion, pods_looks, pods_t_test,
    rank_guard, rank_tilt_log_e, ranksum_p_upper, smallest_rank_p, t_critical,
};
use proptest::prelude::*;

/// How far an expectation may exceed 1 by rounding.
const ROUNDING: f64 = 1e-9;

/// Values of pods without ties, with some, and with nothing else but two of them.
const VALUES: [&[f64]; 4] = [
    &[3.0, 1.0, 2.0, 7.0, 5.0],
    &[1.0, 1.0, 4.0, -2.0, 4.0, 4.0, 9.0],
    &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    &[1e9, -1e9, 0.0, 3.5, 3.5, 2.0, 8.0, 0.25, 0.5],
];

// Ranks.

#[test]
fn a_tilt_of_ranks_is_fair_over_all_choices_of_pods() {
    for values in VALUES {
        for pods in 0..=values.len() {
            for theta in [-0.7, 1e-6, 0.05, 0.4, 1.6, 9.6] {
                let e = choices(values, pods)
                    .map(|(canary, baseline)| rank_tilt_log_e(&canary, &baseline, theta).unwrap().log_e);
                let expectation = mean(e.map(libm::exp));
                assert!((expectation - 1.0).abs() <= ROUNDING, "{values:?} {pods} {theta}: {expectation}");
            }
        }
    }
}

#[test]
fn the_probability_of_a_rank_sum_is_the_part_of_the_choices_that_reach_it() {
    for values in VALUES {
        for pods in 1..values.len() {
            let rank_sum = |(canary, baseline): &(Vec<f64>, Vec<f64>)| {
                rank_tilt_log_e(canary, baseline, 1.0).unwrap().rank_sum
            };
            let sums: Vec<f64> = choices(values, pods).map(|choice| rank_sum(&choice)).collect();
            for choice in choices(values, pods) {
                let sum = rank_sum(&choice);
                let expected = mean(sums.iter().map(|other| f64::from(u8::from(*other >= sum))));
                let p = ranksum_p_upper(&choice.0, &choice.1).unwrap();
                assert!((p - expected).abs() <= 1e-12, "{choice:?}: {p}, not {expected}");
            }
        }
    }
}

#[test]
fn the_smallest_probability_is_that_of_being_on_top() {
    for (k_canary, k_baseline) in [(1, 9), (2, 13), (3, 7), (3, 6), (7, 3)] {
        let canary: Vec<f64> = (0..k_canary).map(|i| 100.0 + number(i)).collect();
        let baseline: Vec<f64> = (0..k_baseline).map(number).collect();
        let p = ranksum_p_upper(&canary, &baseline).unwrap();
        assert!((p / smallest_rank_p(k_canary, k_baseline) - 1.0).abs() < 1e-12);
        // The guard can be passed, however little is asked for, and only by these.
        assert!(rank_guard(&canary, &baseline, 1e-9, 5, 5).unwrap());
        let mut odd = canary.clone();
        odd[0] = 0.5;
        assert!(!rank_guard(&odd, &baseline, 1e-9, 5, 5).unwrap());
    }
    assert!((smallest_rank_p(1, 9) - 0.1).abs() < 1e-12);
    assert!((smallest_rank_p(2, 13) - 0.0095).abs() < 5e-5);
    assert!((smallest_rank_p(3, 6) - 0.0119).abs() < 5e-5);
    assert!(smallest_rank_p(0, 5) >= 1.0 && smallest_rank_p(usize::MAX, 0) >= 1.0);
    assert!(smallest_rank_p(3000, 3000) <= 0.0);
}

#[test]
fn hundreds_of_pods_are_no_trouble() {
    let values: Vec<f64> = (0..600).map(|i| number(i * 7919 % 601)).collect();
    for theta in [0.05, 1.6].map(|theta| theta * 6.0 / 600.0) {
        let tilt = |pods: usize| rank_tilt_log_e(&values[..pods], &values[pods..], theta).unwrap();
        // One pod may have any rank; and so may the one that is left.
        let any_rank = |theta: f64| libm::log(mean((1..=600).map(|rank| libm::exp(theta * number(rank)))));
        assert!(close(tilt(1).log_mgf, any_rank(theta)));
        assert!(close(tilt(599).log_mgf, theta * 300.0 * 601.0 + any_rank(-theta)));
        // The sum over many is about normal, with shorter tails.
        for pods in [60, 300] {
            let (k, rest) = (number(pods), number(600 - pods));
            let mean = theta * k * 300.5;
            let normal = mean + theta * theta * k * rest * 601.0 / 24.0;
            let log_mgf = tilt(pods).log_mgf;
            assert!(log_mgf > mean && log_mgf < normal, "{pods} {theta}: {log_mgf}");
            assert!(theta > 0.001 || log_mgf > 0.999 * normal, "{pods} {theta}: {log_mgf}");
        }
    }
    // All of the canary's on top, one of the cases that are bounded instead of counted.
    let top: Vec<f64> = (0..100).map(|i| 1e3 + number(i)).collect();
    assert!(ranksum_p_upper(&top, &values).unwrap() < 1e-6);
    assert!(ranksum_p_upper(&values, &top).unwrap() >= 1.0);
}

#[test]
fn the_next_window_is_fair_whatever_the_past() {
    // In each minute any of the four pods may be the canary's.
    let minutes: [[f64; 4]; 6] = [
        [0.0, 1.0, 2.0, 5.0],
        [3.0, 3.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
        [2.0, 2.0, 2.0, 2.0],
        [-1.0, 4.0, 4.0, 8.0],
        [0.5, 0.25, 9.0, 1.0],
    ];
    let mut past = RankProcess::new().unwrap();
    for slope in [1.0, 2.0, -1.0] {
        let pod = |i: usize| [slope * number(i); 6];
        past.window(&[pod(3), pod(1)], &[pod(0), pod(2)]).unwrap();
    }
    for process in [RankProcess::new().unwrap(), past] {
        let mut expectation = 0.0;
        let outcomes = 4_u32.pow(6);
        for outcome in 0..outcomes {
            let (mut canary, mut baseline) = ([[0.0; 6]], [[0.0; 6]; 3]);
            for (minute, mut values) in minutes.into_iter().enumerate() {
                values.swap(0, index(outcome >> (2 * minute) & 3));
                canary[0][minute] = values[0];
                for (pod, value) in baseline.iter_mut().zip(&values[1..]) {
                    pod[minute] = *value;
                }
            }
            let mut after = process.clone();
            after.window(&canary, &baseline).unwrap();
            expectation += libm::exp(after.log_e() - process.log_e()) / f64::from(outcomes);
        }
        assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
        assert!(expectation > 0.9, "{expectation}");
    }
}

#[test]
fn a_window_without_growth_or_without_a_cohort_changes_nothing() {
    let mut process = RankProcess::new().unwrap();
    process.window(&[[5.0; 6]], &[[1.0; 6], [2.0; 6]]).unwrap();
    let before = process.clone();
    process.window(&[], &[[1.0; 6]]).unwrap();
    process.window(&[[1.0; 6]], &[]).unwrap();
    assert_eq!(process, before);
    process.window(&[[0.0; 6]; 2], &[[0.0; 6]; 8]).unwrap();
    assert_eq!(process.log_e().to_bits(), before.log_e().to_bits());
}

// The t-test.

/// The part of the tests that reject is the level, within 4.9 standard deviations: by chance it is not less
/// often than once in a million times.
#[test]
fn the_t_test_keeps_its_level_on_the_boundary() {
    let mut pods = Pods { state: 20 };
    let runs = 6_000;
    for (k_canary, k_baseline) in [(1, 3), (2, 18), (4, 4)] {
        for gauge in [Gauge::Level, Gauge::Growth] {
            for tolerance in [0.0, 0.5] {
                let (mut rejected, mut rejected_both) = (0, 0);
                for _ in 0..runs {
                    let mut cohort = |pods_of: u32, ratio: f64| -> Vec<[f64; 1]> {
                        let one = |z: f64| match gauge {
                            Gauge::Level => 200.0 * ratio * libm::exp(0.1 * z),
                            Gauge::Growth => 30.0 * ratio + 5.0 * z,
                        };
                        (0..pods_of).map(|_| [one(pods.normal())]).collect()
                    };
                    let (canary, baseline) = (cohort(k_canary, 1.0 + tolerance), cohort(k_baseline, 1.0));
                    let test = pods_t_test(&canary, &baseline, gauge, tolerance).unwrap().unwrap();
                    rejected += u32::from(test.p <= 0.05);
                    rejected_both += u32::from(test.upper_bound(0.05).unwrap() <= truth(gauge, tolerance));
                }
                assert_level(rejected, runs, 0.05);
                // The bound of a growth takes the baseline's as it was measured.
                if gauge == Gauge::Level || tolerance == 0.0 {
                    assert_level(rejected_both, runs, 0.05);
                }
            }
        }
    }
}

/// What the upper bound has to be above.
fn truth(gauge: Gauge, tolerance: f64) -> f64 {
    match gauge {
        Gauge::Level => 1.0 + tolerance,
        Gauge::Growth => 30.0 * tolerance,
    }
}

fn assert_level(rejected: u32, runs: u32, level: f64) {
    let (rejected, runs) = (f64::from(rejected), f64::from(runs));
    let deviation = (runs * level * (1.0 - level)).sqrt();
    assert!((rejected - runs * level).abs() <= 4.9 * deviation, "{rejected} of {runs} at {level}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exchanging_the_cohorts_changes_the_sign(canary in cohort(), baseline in cohort()) {
        for gauge in [Gauge::Level, Gauge::Growth] {
            let test = pods_t_test(&canary, &baseline, gauge, 0.0).unwrap();
            let other = pods_t_test(&baseline, &canary, gauge, 0.0).unwrap();
            prop_assert_eq!(test.is_some(), canary.len() + baseline.len() > 2);
            if let (Some(test), Some(other)) = (test, other) {
                prop_assert!(close(test.t, -other.t));
                prop_assert!(close(test.p + other.p, 1.0));
                prop_assert_eq!(test.df, other.df);
                // Rejected at a level: beyond its critical value.
                let critical = t_critical(0.01, test.df).unwrap();
                prop_assert_eq!(test.t > critical * (1.0 + 1e-9), test.p < 0.01 * (1.0 - 1e-9));
            }
        }
    }

    #[test]
    fn the_unit_does_not_matter_and_more_tolerance_is_less_evidence(
        canary in cohort(),
        baseline in cohort(),
        (unit, tolerance) in (1e-3..1e9, 0.0..2.0),
    ) {
        prop_assume!(canary.len() + baseline.len() > 2);
        let times = |cohort: &[Vec<f64>]| -> Vec<Vec<f64>> {
            cohort.iter().map(|pod| pod.iter().map(|value| unit * value).collect()).collect()
        };
        for gauge in [Gauge::Level, Gauge::Growth] {
            let test = |canary: &[Vec<f64>], baseline: &[Vec<f64>], tolerance: f64| {
                pods_t_test(canary, baseline, gauge, tolerance).unwrap().unwrap()
            };
            let strict = test(&canary, &baseline, 0.0);
            let scaled = test(&times(&canary), &times(&baseline), 0.0);
            prop_assert!((strict.t - scaled.t).abs() <= 1e-6 * (1.0 + strict.t.abs()));
            let tolerant = test(&canary, &baseline, tolerance);
            prop_assert!(tolerant.p >= strict.p - 1e-9 || strict.t < 0.0);
        }
    }
}

#[test]
fn pods_that_do_not_vary_prove_nothing() {
    for gauge in [Gauge::Level, Gauge::Growth] {
        for (canary, baseline) in [(0.3, 0.1), (0.1, 0.3), (0.0, 0.0), (0.1, 0.0)] {
            let test = pods_t_test(&[[canary]; 3], &[[baseline]; 7], gauge, 0.0).unwrap().unwrap();
            assert!(test.p >= 1.0 && test.t == 0.0, "{test:?}");
        }
    }
    let even = pods_t_test(&[[0.0]; 3], &[[0.0]; 7], Gauge::Level, 0.0).unwrap().unwrap();
    assert!((even.upper_bound(0.05).unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn a_level_is_the_mean_of_logarithms_and_nothing_is_not_infinitely_less() {
    // Samples of 1 and 4 are 2 on average.
    let canary = [vec![1.0, 4.0], vec![3.0]];
    let test = pods_t_test(&canary, &[vec![2.0], vec![3.0]], Gauge::Level, 0.0).unwrap().unwrap();
    assert!(test.t.abs() < 1e-12 && (test.p - 0.5).abs() < 1e-12);
    // A queue that is empty counts as 1 % of the mean, here of (0 + 2 + 3 + 3)/4.
    let empty = pods_t_test(&[[0.0], [2.0]], &[[3.0], [3.0]], Gauge::Level, 0.0).unwrap().unwrap();
    let logs = |values: [f64; 2]| values.map(|value| [libm::log(value)]);
    let (canary, baseline) = (logs([0.02, 2.0]), logs([3.0, 3.0]));
    let floored = pods_t_test(&canary, &baseline, Gauge::Growth, 0.0).unwrap().unwrap();
    assert!(close(empty.t, floored.t));
    // Of the canary's, after the tolerance.
    let tolerant = pods_t_test(&[[0.0], [4.0]], &[[3.0], [3.0]], Gauge::Level, 1.0).unwrap().unwrap();
    assert!(close(tolerant.t, empty.t));
}

#[test]
fn a_shrinking_baseline_gives_no_tolerance_away() {
    let test = |tolerance: f64| {
        pods_t_test(&[[-9.0], [-11.0]], &[[-10.0], [-10.5], [-9.5]], Gauge::Growth, tolerance)
    };
    let (strict, tolerant) = (test(0.0).unwrap().unwrap(), test(0.5).unwrap().unwrap());
    assert!(strict.t.abs() < 1e-12 && tolerant.t.abs() < 1e-12);
}

#[test]
fn what_cannot_be_tested_is_none() {
    let none: [[f64; 1]; 0] = [];
    assert_eq!(pods_t_test(&none, &[[1.0], [2.0]], Gauge::Level, 0.0), Ok(None));
    assert_eq!(pods_t_test(&[[1.0], [2.0]], &none, Gauge::Level, 0.0), Ok(None));
    assert_eq!(pods_t_test(&[[1.0]], &[[2.0]], Gauge::Growth, 0.0), Ok(None));
    let quiet = [vec![1.0], vec![]];
    assert_eq!(pods_t_test(&quiet, &[vec![2.0]], Gauge::Growth, 0.0), Ok(None));
    assert_eq!(pods_t_test(&[[1.0]], &[[2.0], [3.0]], Gauge::Growth, 0.0).unwrap().unwrap().df, 1);
    assert_eq!(pods_looks(3, 0.0), Ok(3));
    assert_eq!(pods_looks(3, 601.0), Ok(6));
}

// Dispersion.

#[test]
fn independent_events_have_a_dispersion_of_one_and_clusters_their_size() {
    // Events fall on three pods with these exposures; each time `size` of them together.
    let exposure: [[f64; 1]; 3] = [[1.0], [2.0], [5.0]];
    for size in [1.0, 4.0] {
        for clusters in 1..=6_u32 {
            let mut expectation = 0.0;
            for outcome in 0..3_u32.pow(clusters) {
                let (mut counts, mut probability, mut rest) = ([[0.0]; 3], 1.0, outcome);
                for _ in 0..clusters {
                    let pod = index(rest % 3);
                    rest /= 3;
                    counts[pod][0] += size;
                    probability *= exposure[pod][0] / 8.0;
                }
                expectation += probability * pearson_dispersion(&counts, Some(&exposure)).unwrap().unwrap();
            }
            assert!((expectation - size).abs() <= ROUNDING, "{size} {clusters}: {expectation}");
        }
    }
}

#[test]
fn a_log_factor_divided_by_the_size_of_clusters_is_fair() {
    let factor = |clusters_canary: u32, clusters: u32| {
        let x = |clusters: u32| 4.0 * f64::from(clusters);
        let counts = Counts {
            x_canary: x(clusters_canary),
            x_baseline: x(clusters - clusters_canary),
            n_canary: 100.0,
            n_baseline: 300.0,
        };
        event_log_factor(1.0, 3.0, &counts).unwrap()
    };
    let expectation = |tempered_by: f64| {
        let (clusters, mut choices, mut expectation) = (8, 1.0, 0.0);
        for canary in 0..=clusters {
            let (x, rest) = (f64::from(canary), f64::from(clusters - canary));
            let probability = choices * libm::pow(0.25, x) * libm::pow(0.75, rest);
            expectation += probability * libm::exp(factor(canary, clusters) / tempered_by);
            choices *= rest / (x + 1.0);
        }
        expectation
    };
    assert!(expectation(4.0) <= 1.0 + ROUNDING);
    assert!(expectation(1.0) > 100.0);
}

#[test]
fn blocks_and_pods_that_say_nothing_do_not_count() {
    let full = pearson_dispersion(&[[2.0, 7.0], [4.0, 1.0]], None).unwrap();
    let with_empty = pearson_dispersion(&[[2.0, 0.0, 7.0], [4.0, 0.0, 1.0]], None).unwrap();
    assert_eq!(full, with_empty);
    let counts = [[2.0, 7.0], [4.0, 1.0], [9.0, 9.0]];
    let idle = [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]];
    assert_eq!(pearson_dispersion(&counts, Some(&idle)).unwrap(), full);
    assert_eq!(pearson_dispersion(&[[1.0]], None), Ok(None));
    assert_eq!(pearson_dispersion(&[[0.0], [0.0]], None), Ok(None));
    assert_eq!(pearson_dispersion::<[f64; 1]>(&[], None), Ok(None));
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_values_give_a_number_or_an_error(
        canary in prop::collection::vec(any_value(), 0..6),
        baseline in prop::collection::vec(any_value(), 0..6),
        (tolerance, theta) in (any_value(), any_value()),
        growth in any::<bool>(),
    ) {
        let finite = canary.iter().chain(&baseline).all(|value| value.is_finite());
        let tilt = rank_tilt_log_e(&canary, &baseline, theta);
        prop_assert_eq!(tilt.is_ok(), finite && theta.abs() <= 1e6);
        prop_assert!(tilt.map_or(true, |t| t.log_e.is_finite() && t.log_mgf.is_finite()));
        let p = ranksum_p_upper(&canary, &baseline);
        prop_assert_eq!(p.is_ok(), finite);
        prop_assert!(p.map_or(true, |p| p > 0.0 && p <= 1.0));

        let gauge = if growth { Gauge::Growth } else { Gauge::Level };
        let pods = |values: &[f64]| -> Vec<[f64; 1]> { values.iter().map(|value| [*value]).collect() };
        let test = pods_t_test(&pods(&canary), &pods(&baseline), gauge, tolerance);
        let range = if growth { -1e100..=1e100 } else { 0.0..=1e100 };
        let usable = canary.iter().chain(&baseline).all(|value| range.contains(value));
        prop_assert_eq!(test.is_ok(), usable && (0.0..=1e6).contains(&tolerance));
        if let Ok(Some(test)) = test {
            prop_assert!(test.t.is_finite() && (0.0..=1.0).contains(&test.p));
            prop_assert!(!test.upper_bound(0.05).unwrap().is_nan());
        }

        let dispersion = pearson_dispersion(&pods(&canary), Some(&pods(&baseline)));
        prop_assert!(dispersion.is_err() || canary.len() == baseline.len());
        prop_assert!(dispersion.map_or(true, |d| d.is_none_or(|d| d.is_finite() && d >= 0.0)));
    }

    #[test]
    fn a_saved_process_continues_to_the_bit(
        windows in prop::collection::vec(prop::collection::vec(prop::array::uniform6(-5.0..5.0), 0..7), 1..8),
        damaged in 0_usize..352,
        value in any::<u8>(),
    ) {
        let mut process = RankProcess::new().unwrap();
        let mut restored = process.clone();
        for pods in windows {
            let (canary, baseline) = pods.split_at(pods.len().min(2));
            process.window(canary, baseline).unwrap();
            restored.window(canary, baseline).unwrap();
            prop_assert_eq!(&process, &restored);
            let mut saved = process.to_bytes();
            prop_assert_eq!(saved.len(), 352);
            restored = RankProcess::new().unwrap().restore(&saved).unwrap();
            prop_assert_eq!(&process, &restored);
            saved[damaged] = value;
            if let Ok(mut damaged) = RankProcess::new().unwrap().restore(&saved) {
                damaged.window(canary, baseline).unwrap();
                prop_assert!(damaged.log_e().is_finite());
            }
        }
    }
}

#[test]
fn an_error_names_what_is_wrong() {
    let message = |canary: f64, gauge: Gauge, tolerance: f64| {
        pods_t_test(&[[canary]], &[[1.0], [2.0]], gauge, tolerance).unwrap_err().to_string()
    };
    let expected = "expected a finite number up to 1e100, of a level not below 0";
    assert_eq!(message(-1.0, Gauge::Level, 0.0), format!("canary is -1, {expected}"));
    assert_eq!(message(f64::NAN, Gauge::Growth, 0.0), format!("canary is NaN, {expected}"));
    assert_eq!(message(1.0, Gauge::Level, -0.1), "tolerance is -0.1, expected a number from 0 to 1e6");
    assert_eq!(
        t_critical(0.6, 3).unwrap_err().to_string(),
        "level is 0.6, expected a probability from 1e-100 to 0.5"
    );
    assert_eq!(t_critical(0.01, 0).unwrap_err().to_string(), "df is 0, expected 1 or more");
    assert_eq!(
        mid_ranks(&[1.0, f64::NAN]).unwrap_err().to_string(),
        "values is NaN, expected finite numbers"
    );
    assert_eq!(
        rank_guard(&[1.0], &[0.0], 0.01, 0, 1).unwrap_err().to_string(),
        "metrics is 0, expected 1 or more"
    );
    assert_eq!(
        pearson_dispersion(&[vec![1.0], vec![1.0, 2.0]], None).unwrap_err().to_string(),
        "counts is 2, expected as many blocks for each pod"
    );
    assert_eq!(
        pearson_dispersion(&[[1.0]], Some(&[[1e-10]])).unwrap_err().to_string(),
        "exposure is 0.0000000001, expected 0 or a number from 1e-9"
    );
}

/// Every choice of `canary` pods among these, and the others.
fn choices(values: &[f64], canary: usize) -> impl Iterator<Item = (Vec<f64>, Vec<f64>)> {
    let part = move |chosen: u32, side: u32| {
        (0..)
            .zip(values)
            .filter(|(i, _)| chosen >> i & 1 == side)
            .map(|(_, value): (u32, _)| *value)
            .collect()
    };
    (0..1_u32 << values.len())
        .filter(move |chosen| index(chosen.count_ones()) == canary)
        .map(move |chosen| (part(chosen, 1), part(chosen, 0)))
}

/// Generated pods.
struct Pods {
    state: u64,
}

impl Pods {
    /// Of mean 0 and variance 1, after Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.uniform())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// Above 0 and below 1: xorshift.
    fn uniform(&mut self) -> f64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let [a, b, c, d, ..] = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes();
        (f64::from(u32::from_be_bytes([a, b, c, d])) + 0.5) / 4_294_967_296.0
    }
}

/// Up to five pods with up to three samples each.
fn cohort() -> impl Strategy<Value = Vec<Vec<f64>>> {
    prop::collection::vec(prop::collection::vec(0.1..100.0, 1..4), 1..6)
}

fn any_value() -> impl Strategy<Value = f64> {
    let odd = vec![f64::NAN, f64::INFINITY, -1.0, -0.0, 1e15, 1e100, -1e100, f64::MAX, 5e-324];
    prop_oneof![
        4 => -10.0..10.0,
        4 => 0.0..10.0,
        4 => (0_u32..4).prop_map(f64::from),
        1 => any::<f64>(),
        1 => prop::sample::select(odd),
    ]
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}
