//! The test of distributions under its null hypothesis: the expectation of its evidence, by enumeration of
//! all outcomes, is at most 1; and whole runs of generated traffic cause no alarm unless the canary is
//! slower.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{Layout, ScoreProcess, score_log_factor, shift_histogram};
use proptest::prelude::*;

/// How far an expectation may exceed 1 by rounding.
const ROUNDING: f64 = 1e-9;

/// Requests of canary and baseline.
const REQUESTS: [(u32, u32); 6] = [(1, 1), (1, 6), (3, 5), (5, 3), (4, 4), (6, 1)];

/// Distributions over four buckets.
const BASELINES: [[f64; 4]; 5] = [
    [0.25, 0.25, 0.25, 0.25],
    [0.7, 0.2, 0.08, 0.02],
    [0.9, 0.0, 0.0, 0.1],
    [0.01, 0.01, 0.49, 0.49],
    [0.0, 0.0, 0.0, 1.0],
];

#[test]
fn every_alternative_is_an_e_value_for_a_canary_that_is_no_slower() {
    for scores in [[-1.6, -0.3, 0.8, 2.2], [0.0, 0.0, 0.0, 1.0], [-9.0, -9.0, 8.0, 9.0], [0.0; 4]] {
        for theta in [0.06, 0.5, 2.5] {
            for ((n_canary, n_baseline), baseline) in cohorts() {
                for faster in [0.0, 0.4] {
                    let canary = moved_down(baseline, faster);
                    let expectation = expectation(n_canary, canary, n_baseline, baseline, |c, d| {
                        score_log_factor(c, d, &scores, theta).unwrap()
                    });
                    let context = format!("{scores:?} {theta} {n_canary} {n_baseline} {baseline:?}");
                    assert!(expectation <= 1.0 + ROUNDING, "{context}: {expectation}");
                }
            }
        }
    }
}

#[test]
fn requests_of_one_cohort_may_differ() {
    // Half of the canary's requests are always fast, half of them slow; on average as the baseline's.
    let (fast, slow) = ([1.0, 0.0, 0.0, 0.0], [0.4, 0.4, 0.16, 0.04]);
    let baseline = [0.7, 0.2, 0.08, 0.02];
    let expectation = expectation(3, fast, 5, baseline, |c, d| {
        libm::log(expectation(3, slow, 0, baseline, |more, _| {
            let canary = sum(c, more);
            score_log_factor(&canary, d, &[-0.4, 0.7, 1.5, 2.3], 0.5).unwrap()
        }))
    });
    assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
}

#[test]
fn the_evidence_is_an_e_value_and_a_slower_canary_is_none() {
    let history = [6000.0, 2500.0, 1300.0, 200.0];
    for ((n_canary, n_baseline), baseline) in cohorts() {
        let process = four_buckets(0.0).with_history(&history).unwrap();
        let after = |canary| {
            expectation(n_canary, canary, n_baseline, baseline, |c, d| after(&process, c, d).log_e())
        };
        assert!(after(baseline) <= 1.0 + ROUNDING, "{n_canary} {n_baseline} {baseline:?}");
        assert!(after(moved_down(baseline, 0.3)) <= 1.0 + ROUNDING, "{n_canary} {n_baseline} {baseline:?}");
    }
    let process = four_buckets(0.0).with_history(&history).unwrap();
    let slower = expectation(5, [0.2, 0.2, 0.3, 0.3], 5, BASELINES[1], |c, d| after(&process, c, d).log_e());
    assert!(slower > 1.05, "{slower}");
}

/// A canary that is slower by exactly the tolerance is moved below the baseline, or onto it: not above it at
/// any boundary, which is all that the factors need.
#[test]
fn a_canary_at_its_tolerance_is_within_the_null() {
    let bounds = [0.1, 0.2, 0.5, 1.0, 2.0, f64::INFINITY];
    let power_law = |x: f64| libm::pow((x / 0.05).max(1.0), -1.5);
    let faster_the_farther: [fn(f64) -> f64; 3] = [
        |x| libm::exp(-x / 0.2),
        |x| libm::exp(-x * x / 0.1),
        |x| 0.5 * libm::erfc(libm::log(x / 0.15) / 0.7),
    ];
    for tolerance in [0.05, 0.1, 0.5, 0.99] {
        let above = |tail: &dyn Fn(f64) -> f64| {
            let counts = |slower: f64| {
                let above = bounds.map(|bound| 1e6 * tail(bound / slower));
                let below = [&[1e6], &above[..5]].concat();
                below.iter().zip(above).map(|(below, above)| below - above).collect::<Vec<_>>()
            };
            let baseline = counts(1.0);
            let shifted = shift_histogram(&bounds, &counts(1.0 + tolerance), &baseline, tolerance).unwrap();
            let above = |counts: &[f64], boundary: usize| counts[boundary + 1..].iter().sum::<f64>();
            (0..5).map(|boundary| (above(&shifted, boundary), above(&baseline, boundary))).collect::<Vec<_>>()
        };
        for (canary, baseline) in &above(&power_law)[..4] {
            assert!(close(*canary, *baseline), "{tolerance}: {canary} {baseline}");
        }
        for tail in faster_the_farther {
            for (canary, baseline) in above(&tail) {
                assert!(not_above(canary, baseline), "{tolerance}: {canary} {baseline}");
            }
        }
    }
}

#[test]
fn the_evidence_of_a_canary_at_its_tolerance_is_an_e_value() {
    let slowed = |slower: f64| {
        let above = [0.1, 0.2, 0.5].map(|bound: f64| libm::pow(bound / slower / 0.05, -1.5));
        [1.0 - above[0], above[0] - above[1], above[1] - above[2], above[2]]
    };
    let history = slowed(1.0).map(|share| 1e6 * share);
    for tolerance in [0.05, 0.3, 0.99] {
        let canary = slowed(1.0 + tolerance);
        let process = four_buckets(tolerance).with_history(&history).unwrap();
        for (n_canary, n_baseline) in REQUESTS {
            let log_e = |c: &[f64], d: &[f64]| after(&process, c, d).log_e();
            let expectation = expectation(n_canary, canary, n_baseline, slowed(1.0), log_e);
            assert!(expectation <= 1.0 + ROUNDING, "{tolerance} {n_canary} {n_baseline}: {expectation}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Given any past, the next block multiplies the capital by at most 1 on average: with clip, restarts,
    /// scores from the past, and a weight that changes inside the block.
    #[test]
    fn the_next_block_is_fair_whatever_the_past(
        past in prop::collection::vec((counts(), counts(), any::<bool>()), 0..12),
        tolerance in prop::sample::select(vec![0.0, 0.1, 1.5]),
        (baseline, faster) in (prop::sample::select(BASELINES.to_vec()), prop::sample::select(vec![0.0, 0.3])),
        (first, second) in ((0_u32..4, 1_u32..4), (1_u32..4, 0_u32..4)),
    ) {
        let mut process = four_buckets(tolerance);
        for (canary, baseline, new_block) in past {
            process.round(&canary, &baseline, new_block).unwrap();
        }
        process.close_block();
        let canary = moved_down(baseline, faster);
        let expectation = expectation(first.0, canary, first.1, baseline, |c, d| {
            let one = after(&process, c, d);
            libm::log(expectation(second.0, canary, second.1, baseline, |c, d| {
                let mut two = one.clone();
                two.round(c, d, false).unwrap();
                two.log_e() - process.log_e()
            }))
        });
        prop_assert!(expectation <= 1.0 + ROUNDING, "{expectation}");
    }
}

#[test]
fn a_canary_at_its_tolerance_causes_no_alarm_and_a_slower_one_does() {
    let alarms = |slower: f64, late: u32| (1..=200).filter(|&seed| alarm(seed, slower, late)).count();
    assert!(alarms(1.1, 0) <= 2, "at a false alarm rate of 1 %");
    assert!(alarms(1.4, 0) >= 198);
    assert!(alarms(1.6, 120) >= 198);
}

/// Whether the evidence ever reaches 100 in an hour of 15-second blocks, with a tolerance of 10 %: latencies
/// are log-normal around 80 ms, 5 requests a second to the canary and 45 to the baseline.
fn alarm(seed: u32, slower: f64, late: u32) -> bool {
    let bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, f64::INFINITY];
    let shares = |factor: f64| {
        let up_to = bounds.map(|bound| 1.0 - 0.5 * libm::erfc(libm::log(bound / factor / 0.08) / 1.1));
        let mut below = 0.0;
        up_to.map(|share| share - std::mem::replace(&mut below, share))
    };
    let mut random = Random::new(seed);
    let mut counts = |requests: f64, factor: f64| {
        let counts = shares(factor).map(|share| random.poisson(requests * share));
        counts.to_vec()
    };
    let layout = Layout::classic(&bounds).unwrap();
    let history = counts(30_000.0, 1.0);
    let mut process = ScoreProcess::new(layout, 0.1, 15.0).unwrap().with_history(&history).unwrap();
    (0..240).any(|block| {
        let factor = if block < late { 1.0 } else { slower };
        process.round(&counts(75.0, factor), &counts(675.0, 1.0), true).unwrap();
        process.log_e() >= libm::log(100.0)
    })
}

/// Counts of a plausible round, empty buckets included.
fn counts() -> impl Strategy<Value = Vec<f64>> {
    let count = prop_oneof![3 => 0_u32..30, 1 => Just(0), 1 => 0_u32..1000];
    prop::collection::vec(count.prop_map(f64::from), 4)
}

fn four_buckets(tolerance: f64) -> ScoreProcess {
    let layout = Layout::classic(&[0.1, 0.2, 0.5, f64::INFINITY]).unwrap();
    ScoreProcess::new(layout, tolerance, 60.0).unwrap()
}

/// With one more block of one round.
fn after(before: &ScoreProcess, canary: &[f64], baseline: &[f64]) -> ScoreProcess {
    let mut process = before.clone();
    process.round(canary, baseline, true).unwrap();
    process
}

/// The share `faster` of each bucket, one bucket down.
fn moved_down(shares: [f64; 4], faster: f64) -> [f64; 4] {
    let mut moved = shares;
    for bucket in 1..4 {
        moved[bucket] -= faster * shares[bucket];
        moved[bucket - 1] += faster * shares[bucket];
    }
    moved
}

/// The expectation of `exp(log_e)` over all histograms of so many requests of each cohort.
fn expectation(
    n_canary: u32,
    canary: [f64; 4],
    n_baseline: u32,
    baseline: [f64; 4],
    log_e: impl Fn(&[f64], &[f64]) -> f64,
) -> f64 {
    let baseline = histograms(n_baseline, &baseline);
    let mut expectation = 0.0;
    for (canary, p_canary) in histograms(n_canary, &canary) {
        for (baseline, p_baseline) in &baseline {
            expectation += p_canary * p_baseline * libm::exp(log_e(&canary, baseline));
        }
    }
    expectation
}

/// All histograms of `n` independent requests that are possible, with their probability.
fn histograms(n: u32, shares: &[f64]) -> Vec<(Vec<f64>, f64)> {
    let [share, rest @ ..] = shares else {
        return if n == 0 { vec![(Vec::new(), 1.0)] } else { Vec::new() };
    };
    let mut all = Vec::new();
    let mut probability = 1.0;
    for count in 0..=n {
        // The multinomial coefficient, as a product of binomial ones.
        for (others, p_others) in histograms(n - count, rest) {
            let counts = [vec![f64::from(count)], others].concat();
            all.push((counts, probability * p_others));
        }
        probability *= share * f64::from(n - count) / f64::from(count + 1);
    }
    all.retain(|(_, probability)| *probability > 0.0);
    all
}

/// Requests of canary and baseline, and the distribution of the latter.
fn cohorts() -> impl Iterator<Item = ((u32, u32), [f64; 4])> {
    REQUESTS.into_iter().flat_map(|requests| BASELINES.map(|baseline| (requests, baseline)))
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Xorshift.
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u32) -> Self {
        Self { state: u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    /// Arrivals of rate 1 within `mean`; the normal approximation of many of them.
    fn poisson(&mut self, mean: f64) -> f64 {
        if mean > 100.0 {
            let uniform: f64 = (0..12).map(|_| self.uniform()).sum();
            return (mean + (uniform - 6.0) * mean.sqrt()).round().max(0.0);
        }
        let mut events = 0.0;
        let mut time = -libm::log(self.uniform());
        while time < mean {
            events += 1.0;
            time -= libm::log(self.uniform());
        }
        events
    }

    /// Above 0 and below 1.
    fn uniform(&mut self) -> f64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let [a, b, c, d, ..] = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes();
        (f64::from(u32::from_be_bytes([a, b, c, d])) + 0.5) / 4_294_967_296.0
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}

fn not_above(a: f64, b: f64) -> bool {
    a <= b || close(a, b)
}
