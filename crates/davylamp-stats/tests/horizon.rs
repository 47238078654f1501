//! The finite horizon: the thresholds are those of the specification, and a process under its null hypothesis
//! reaches them as rarely as promised.

use davylamp_stats::{Counts, EventProcess, Horizon, NullBlocks, NullLaw, horizon_threshold};

const LN_10: f64 = std::f64::consts::LN_10;

#[test]
fn the_thresholds_are_known_from_elsewhere() {
    let law = NullLaw { canary_share: 0.1, blocks: None };
    for (events, expected) in [(100, 29.0), (300, 42.0), (1000, 62.0), (3000, 70.0)] {
        let threshold = horizon_threshold(&law, events, 0.01, 20_000, 1).unwrap();
        assert!((threshold / expected - 1.0_f64).abs() < 0.15, "{events}: {threshold}, not {expected}");
    }
}

#[test]
fn the_same_seed_gives_the_same_threshold_and_more_events_a_higher_one() {
    let law = NullLaw { canary_share: 0.3, blocks: Some(blocks(20.0, 3)) };
    let threshold = |events, seed| horizon_threshold(&law, events, 0.02, 5_000, seed).unwrap();
    assert!(threshold(300, 5).to_bits() == threshold(300, 5).to_bits());
    assert!(threshold(300, 5).to_bits() != threshold(300, 6).to_bits());
    assert!(threshold(3_000, 5) > threshold(300, 5));
    assert!(threshold(300, 5) < 50.0);
}

/// The simulation is that of the process: another random sequence reaches the threshold as often.
#[test]
fn a_process_reaches_the_threshold_as_rarely_as_promised() {
    const RUNS: u32 = 4000;
    let (share, per_round, alpha) = (0.1, 4.0, 0.05);
    let law = NullLaw { canary_share: share, blocks: Some(blocks(per_round, 3)) };
    let threshold = libm::log(horizon_threshold(&law, 400, alpha, 40_000, 3).unwrap());
    let mut state = 1_u64;
    let mut reached = 0_u32;
    for _ in 0..RUNS {
        let mut process = EventProcess::new(1.0, 15.0, None).unwrap();
        let hit = (0..100_u32).any(|round| {
            let mut counts = Counts { n_canary: 100.0, n_baseline: 900.0, ..Counts::default() };
            for _ in 0..4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let [high, ..] = state.to_be_bytes();
                let [_, second, third, ..] = state.to_be_bytes();
                let uniform = f64::from(u32::from_be_bytes([0, high, second, third])) / 16_777_216.0;
                *if uniform < share { &mut counts.x_canary } else { &mut counts.x_baseline } += 1.0;
            }
            process.round(&counts, round.is_multiple_of(3)).unwrap();
            process.log_e() >= threshold
        });
        reached += u32::from(hit);
    }
    // Six standard deviations of 200.
    assert!((118..=282).contains(&reached), "{reached} of {RUNS}");
}

#[test]
fn beyond_the_horizon_a_fifth_of_alpha_is_left() {
    let law = NullLaw { canary_share: 0.5, blocks: None };
    let horizon = Horizon::simulate(&law, 200, 0.05, 2_000, 1).unwrap();
    assert!(horizon.threshold() < 25.0);
    assert!(horizon.is_reached(libm::log(horizon.threshold()) + 1e-9, 200.0));
    assert!(!horizon.is_reached(libm::log(99.0), 201.0));
    assert!(horizon.is_reached(libm::log(100.5), 201.0));
    assert!(!horizon.is_reached(f64::NAN, 1.0));
}

#[test]
fn a_wrong_argument_is_named() {
    let law = NullLaw { canary_share: 0.1, blocks: None };
    let message = |law: &NullLaw, events: u32, alpha: f64, runs: u32| {
        horizon_threshold(law, events, alpha, runs, 1).unwrap_err().to_string()
    };
    for canary_share in [-0.1, 1.1, f64::NAN] {
        assert!(message(&NullLaw { canary_share, ..law }, 10, 0.01, 100).starts_with("canary_share is"));
    }
    assert_eq!(message(&law, 10, 0.01, 99), "runs is 99, expected at least 1/alpha");
    assert!(message(&law, 10, 1.0, 99).starts_with("alpha is 1"));
    assert!(message(&law, u32::MAX, 0.01, 1000).starts_with("events is 4294967295"));
    for wrong in [
        NullBlocks { events_per_round: 0.0, ..blocks(1.0, 3) },
        NullBlocks { rounds: 0, ..blocks(1.0, 3) },
        NullBlocks { seconds: f64::INFINITY, ..blocks(1.0, 3) },
        NullBlocks { clip: 0.0, ..blocks(1.0, 3) },
    ] {
        let law = NullLaw { blocks: Some(wrong), ..law };
        assert!(horizon_threshold(&law, 10, 0.01, 100, 1).is_err(), "{wrong:?}");
    }
    // One cohort alone: nothing is ever gained.
    for canary_share in [0.0, 1.0] {
        for blocks in [None, Some(blocks(1.0, 3))] {
            let threshold = horizon_threshold(&NullLaw { canary_share, blocks }, 50, 0.01, 100, 1).unwrap();
            assert!((threshold - 1.0).abs() < 1e-9, "{threshold}");
        }
    }
}

fn blocks(events_per_round: f64, rounds: u32) -> NullBlocks {
    NullBlocks { events_per_round, rounds, seconds: 15.0, clip: LN_10 }
}
