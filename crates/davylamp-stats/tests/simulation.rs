//! Whole runs of generated traffic, always the same ones: false alarms stay below their bound, regressions
//! are found.

use davylamp_stats::{Counts, EventProcess, NonInferiority, rr_confidence_sequence};

const RUNS: u32 = 500;

/// Rounds of a run: an hour of 15 seconds, each of them a block.
const ROUNDS: u32 = 240;

#[test]
fn a_canary_at_its_tolerance_is_rolled_back_less_often_than_promised() {
    for floor in [None, Some(0.001)] {
        let alarms = runs_with(|traffic| {
            let mut process = EventProcess::new(1.1, 15.0, floor).unwrap();
            (0..ROUNDS).any(|round| {
                process.round(&traffic.round(1.1, round), true).unwrap();
                process.log_e() >= libm::log(100.0)
            })
        });
        assert!(alarms <= RUNS / 100, "{alarms} of {RUNS} runs at 1 %");
    }
}

#[test]
fn an_inferior_canary_is_promoted_less_often_than_promised() {
    let promotions = runs_with(|traffic| {
        let mut process = NonInferiority::new(1.5, Some((0.001, 1.0))).unwrap();
        (0..ROUNDS).any(|round| {
            process.round(&traffic.round(1.5, round), true).unwrap();
            process.log_e() >= libm::log(20.0)
        })
    });
    assert!(promotions <= RUNS / 20, "{promotions} of {RUNS} runs at 5 %");
}

#[test]
fn the_true_ratio_leaves_the_interval_less_often_than_promised() {
    let wrong = runs_with(|traffic| {
        let blocks: Vec<Counts> = (0..40).map(|round| traffic.round(1.4, round)).collect();
        [5, 10, 20, 40].into_iter().any(|looks| {
            let interval = rr_confidence_sequence(&blocks[..looks], 0.05).unwrap();
            interval.lower > 1.4 || interval.upper < 1.4
        })
    });
    assert!(wrong <= RUNS / 10, "{wrong} of {RUNS} runs at twice 5 %");
}

#[test]
fn a_regression_is_found_also_late_and_a_good_canary_promoted() {
    let found = runs_with(|traffic| {
        let mut process = EventProcess::new(1.1, 15.0, Some(0.001)).unwrap();
        (0..ROUNDS).any(|round| {
            let ratio = if round < ROUNDS / 2 { 1.0 } else { 3.0 };
            process.round(&traffic.round(ratio, round), true).unwrap();
            process.log_e() >= libm::log(100.0)
        })
    });
    assert!(found >= RUNS / 100 * 99, "{found} of {RUNS} runs");

    let promoted = runs_with(|traffic| {
        let mut process = NonInferiority::new(2.0, Some((0.001, 0.5))).unwrap();
        (0..ROUNDS).any(|round| {
            process.round(&traffic.round(1.0, round), true).unwrap();
            process.log_e() >= libm::log(20.0)
        })
    });
    assert!(promoted >= RUNS / 100 * 99, "{promoted} of {RUNS} runs");
}

/// How many of the runs end with `true`.
fn runs_with(outcome: impl Fn(&mut Traffic) -> bool) -> u32 {
    (1..=RUNS).map(|seed| u32::from(outcome(&mut Traffic::new(seed)))).sum()
}

/// About 100 requests a second, a tenth of them to the canary, of which 1 % fail; for a while in the middle,
/// 10 %.
struct Traffic {
    state: u64,
}

impl Traffic {
    fn new(seed: u32) -> Self {
        Self { state: u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    /// One round in which a canary's request fails `ratio` times as often as the baseline's.
    fn round(&mut self, ratio: f64, round: u32) -> Counts {
        let rate = if (100..110).contains(&round) { 0.1 } else { 0.01 };
        let (n_canary, n_baseline) = (120.0 + 60.0 * self.uniform(), 1350.0);
        Counts {
            x_canary: self.poisson(ratio * rate * n_canary),
            x_baseline: self.poisson(rate * n_baseline),
            n_canary,
            n_baseline,
        }
    }

    /// Arrivals of rate 1 within `mean`.
    fn poisson(&mut self, mean: f64) -> f64 {
        let mut events = 0.0;
        let mut time = -libm::log(self.uniform());
        while time < mean {
            events += 1.0;
            time -= libm::log(self.uniform());
        }
        events
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
