//! Plans: what they promise is what happens, and any input leads to a time, to none, or to a named error.

use davylamp_stats::ripr::Rates;
use davylamp_stats::{
    Counts, DETECT_OVERHEAD, Detection, EventProcess, NonInferiority, PROMOTE_OVERHEAD, Promotion, Traffic,
    bound_requests, closed_form_detect_seconds, closed_form_promote_seconds, detect_seconds,
    information_per_request, often_undecided, promote_seconds, remaining_seconds, rollout_seconds,
    smallest_ratio,
};
use proptest::prelude::*;

const RUNS: u32 = 400;

#[test]
fn a_regression_is_found_when_planned() {
    for (rps, weight, rate, ratio, floor) in [
        (200.0, 0.1, 0.005, 3.0, None),
        (50.0, 0.05, 0.01, 5.0, None),
        (1000.0, 0.5, 0.03, 5.0, None),
        (20.0, 0.25, 0.03, 2.0, Some(0.001)),
        (200.0, 0.25, 0.003, 3.0, Some(0.001)),
    ] {
        let traffic = Traffic { requests_per_second: rps, weight, rate, block_seconds: 15.0 };
        let detection = Detection { floor, ..Detection::new(1.1, 0.01) };
        let planned = detect_seconds(&traffic, ratio, &detection).unwrap().unwrap();
        let found = mean_seconds(&traffic, ratio, || {
            let mut process = EventProcess::new(1.1, 15.0, floor).unwrap();
            move |counts: &Counts| {
                process.round(counts, true).unwrap();
                process.log_e() >= libm::log(100.0)
            }
        });
        assert!((planned / found - 1.0).abs() < 0.15, "{traffic:?}: {planned} {found}");
    }
}

#[test]
fn a_good_canary_is_promoted_when_planned() {
    for (rps, weight, rate, margin, absolute) in [
        (200.0, 0.1, 0.005, 1.5, None),
        (20.0, 0.2, 0.02, 2.0, Some((0.001, 0.5))),
        (1000.0, 0.05, 0.001, 3.0, None),
        (200.0, 0.05, 0.001, 3.0, Some((0.001, 0.25))),
        (50.0, 0.5, 0.0001, 1.5, Some((0.001, 1.0))),
    ] {
        let traffic = Traffic { requests_per_second: rps, weight, rate, block_seconds: 15.0 };
        let planned =
            promote_seconds(&traffic, &Promotion { margin, beta: 0.05, absolute }).unwrap().unwrap();
        let promoted = mean_seconds(&traffic, 1.0, || {
            let mut process = NonInferiority::new(margin, absolute).unwrap();
            move |counts: &Counts| {
                process.round(counts, true).unwrap();
                process.log_e() >= libm::log(20.0)
            }
        });
        assert!((planned / promoted - 1.0).abs() < 0.15, "{traffic:?}: {planned} {promoted}");
    }
}

#[test]
fn without_errors_the_plan_is_right_to_the_block() {
    for (rps, weight, margin, next_weight) in
        [(200.0, 0.05, 3.0, 0.25), (50.0, 0.25, 2.0, 0.5), (5.0, 0.5, 1.5, 1.0)]
    {
        let traffic = Traffic { requests_per_second: rps, weight, rate: 0.0, block_seconds: 15.0 };
        let promotion = Promotion { margin, beta: 0.05, absolute: Some((0.001, next_weight)) };
        let planned = promote_seconds(&traffic, &promotion).unwrap().unwrap();
        let mut process = NonInferiority::new(margin, promotion.absolute).unwrap();
        let n_canary = 15.0 * rps * weight;
        let counts = Counts { n_canary, n_baseline: 15.0 * rps - n_canary, ..Counts::default() };
        let mut blocks = 0.0;
        while process.log_e() < libm::log(20.0) {
            process.round(&counts, true).unwrap();
            blocks += 1.0;
        }
        assert!((planned / 15.0 - blocks).abs() <= 1.0 + 0.03 * blocks, "{traffic:?}: {planned} {blocks}");
    }
}

#[test]
fn a_floor_makes_short_blocks_blind_where_there_is_little_traffic() {
    let planned = |block_seconds: f64| {
        let traffic = Traffic { requests_per_second: 20.0, weight: 0.5, rate: 0.003, block_seconds };
        let detection = Detection { floor: Some(0.001), ..Detection::new(1.1, 0.01) };
        detect_seconds(&traffic, 3.0, &detection).unwrap()
    };
    assert_eq!(planned(15.0), None);
    assert!(planned(60.0).unwrap() < 1800.0);
}

#[test]
fn a_drop_is_planned_with_the_cohorts_exchanged() {
    // 2 % of the requests are orders, on the canary 40 % fewer.
    let traffic = Traffic { requests_per_second: 200.0, weight: 0.2, rate: 0.02, block_seconds: 15.0 };
    let planned = detect_seconds(&traffic.exchanged(0.6), 1.0 / 0.6, &Detection::new(1.0, 0.01)).unwrap();
    let found = mean_seconds(&traffic, 0.6, || {
        let mut process = EventProcess::new(1.0, 15.0, None).unwrap();
        move |counts: &Counts| {
            process.round(&counts.swapped(), true).unwrap();
            process.log_e() >= libm::log(100.0)
        }
    });
    assert!((planned.unwrap() / found - 1.0).abs() < 0.15, "{planned:?} {found}");
}

#[test]
fn no_plan_is_below_the_bound() {
    for (rate, weight, ratio) in [(0.01, 0.05, 2.0), (0.01, 0.5, 1.5), (0.001, 0.2, 5.0)] {
        let traffic = Traffic { requests_per_second: 50.0, weight, rate, block_seconds: 15.0 };
        let rates = Rates { canary: ratio * rate, baseline: rate };
        let information = information_per_request(&rates, weight, 1.0).unwrap();
        let bound = bound_requests(information, 0.01).unwrap().unwrap() / 50.0;
        let planned = detect_seconds(&traffic, ratio, &Detection::new(1.0, 0.01)).unwrap().unwrap();
        let closed =
            closed_form_detect_seconds(&traffic, ratio, 1.0, 0.01, DETECT_OVERHEAD).unwrap().unwrap();
        assert!(bound < planned && bound < closed, "{bound} {planned} {closed}");
        assert!((planned / closed - 1.0).abs() < 0.2, "{planned} {closed}");
    }
}

#[test]
fn what_tells_nothing_takes_no_time_that_can_be_named() {
    let traffic = Traffic { requests_per_second: 50.0, weight: 0.1, rate: 0.01, block_seconds: 15.0 };
    let promotion = Promotion { margin: 1.5, beta: 0.05, absolute: None };
    for nothing in [
        Traffic { requests_per_second: 0.0, ..traffic },
        Traffic { weight: 0.0, ..traffic },
        Traffic { weight: 1.0, ..traffic },
        Traffic { rate: 0.0, ..traffic },
    ] {
        assert_eq!(detect_seconds(&nothing, 2.0, &Detection::new(1.0, 0.01)), Ok(None));
        assert_eq!(promote_seconds(&nothing, &promotion), Ok(None));
        assert_eq!(smallest_ratio(&nothing, 3600.0, &Detection::new(1.0, 0.01)), Ok(None));
        assert_eq!(closed_form_detect_seconds(&nothing, 2.0, 1.0, 0.01, DETECT_OVERHEAD), Ok(None));
        assert_eq!(closed_form_promote_seconds(&nothing, 1.5, 0.05, PROMOTE_OVERHEAD), Ok(None));
    }
    // Neither does a canary that is as bad as tolerated, or a margin that excludes nothing.
    assert_eq!(detect_seconds(&traffic, 1.1, &Detection::new(1.1, 0.01)), Ok(None));
    assert_eq!(promote_seconds(&traffic, &Promotion { margin: 1.0, ..promotion }), Ok(None));
    assert_eq!(information_per_request(&Rates { canary: 0.011, baseline: 0.01 }, 0.1, 1.1), Ok(0.0));
    assert_eq!(bound_requests(0.0, 0.01), Ok(None));
    assert_eq!(closed_form_promote_seconds(&traffic, 1.0, 0.05, PROMOTE_OVERHEAD), Ok(None));
}

#[test]
fn there_is_a_plan_for_any_amount_of_traffic() {
    let traffic = Traffic { requests_per_second: 1e12, weight: 0.5, rate: 1e6, block_seconds: 1e6 };
    // Half of the capital, and eight blocks of ln 2.
    assert_eq!(detect_seconds(&traffic, 10.0, &Detection::new(1.0, 0.01)), Ok(Some(8e6)));
    assert!(detect_seconds(&traffic, 1e9, &Detection::new(1.0, 0.01)).is_ok());
    let promotion = Promotion { margin: 3.0, beta: 0.05, absolute: None };
    assert_eq!(promote_seconds(&traffic, &promotion), Ok(Some(2e6)));
}

#[test]
fn a_step_that_will_often_be_undecided_is_worth_a_warning() {
    assert!(often_undecided(None, 3600.0));
    assert!(often_undecided(Some(1900.0), 3600.0));
    assert!(!often_undecided(Some(1700.0), 3600.0));
}

#[test]
fn what_remains_shrinks_with_the_evidence() {
    let remaining = |log_e: f64| remaining_seconds(log_e, 0.05, 1e-4, 100.0).unwrap().unwrap();
    assert!((remaining(0.0) - 1.35 * libm::log(20.0) / 0.01).abs() < 1e-9);
    assert!(remaining(-1.0) > remaining(0.0) && remaining(2.0) < remaining(0.0));
    assert!(remaining(3.0) <= 0.0);
    assert_eq!(remaining_seconds(0.0, 0.05, 0.0, 100.0), Ok(None));
    assert_eq!(remaining_seconds(0.0, 0.05, 1e-4, 0.0), Ok(None));
}

#[test]
fn an_error_names_what_is_wrong() {
    let traffic = Traffic { requests_per_second: 50.0, weight: 0.1, rate: 0.01, block_seconds: 15.0 };
    let detection = Detection::new(1.1, 0.01);
    let message = |traffic: Traffic, detection: Detection| {
        detect_seconds(&traffic, 2.0, &detection).unwrap_err().to_string()
    };
    assert_eq!(
        message(Traffic { weight: 1.5, ..traffic }, detection),
        "weight is 1.5, expected a share from 0 to 1"
    );
    assert_eq!(
        message(traffic, Detection { floor: Some(0.7), ..detection }),
        "floor is 0.7, expected a rate above 0 and below 0.5"
    );
    assert_eq!(
        message(traffic, Detection { alpha: 1.0, ..detection }),
        "alpha is 1, expected a probability from 1e-100, below 1"
    );
    assert_eq!(
        rollout_seconds(&[60.0, f64::INFINITY], 120.0, 30.0, 180.0).unwrap_err().to_string(),
        "steps is inf, expected finite numbers from 0"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_smallest_ratio_is_found_in_time_and_no_smaller_one(
        (rps, weight, rate) in (1.0..1000.0, 0.02..0.7, 0.001..0.1),
        seconds in 60.0..7200.0,
    ) {
        let traffic = Traffic { requests_per_second: rps, weight, rate, block_seconds: 15.0 };
        let detection = Detection::new(1.1, 0.01);
        let within = |ratio: f64| {
            detect_seconds(&traffic, ratio, &detection).unwrap().is_some_and(|mean| mean <= seconds)
        };
        if let Some(ratio) = smallest_ratio(&traffic, seconds, &detection).unwrap() {
            prop_assert!(within(ratio), "{ratio}");
            prop_assert!(!within(0.999 * ratio), "{ratio}");
        } else {
            prop_assert!(!within(1100.0));
        }
    }

    #[test]
    fn more_is_found_sooner(
        (rps, weight, rate, ratio) in (1.0..1000.0, 0.02..0.5, 0.001..0.05, 1.3..10.0),
    ) {
        let traffic = Traffic { requests_per_second: rps, weight, rate, block_seconds: 15.0 };
        let twice = Traffic { requests_per_second: 2.0 * rps, ..traffic };
        let seconds = |traffic: &Traffic, ratio: f64, alpha: f64| {
            detect_seconds(traffic, ratio, &Detection::new(1.0, alpha)).unwrap().unwrap()
        };
        let planned = seconds(&traffic, ratio, 0.01);
        // A block more or less is lost to the steps of whole blocks.
        prop_assert!(seconds(&twice, ratio, 0.01) <= 1.02 * planned + 15.0);
        prop_assert!(seconds(&traffic, 1.5 * ratio, 0.01) <= 1.02 * planned + 15.0);
        prop_assert!(seconds(&traffic, ratio, 0.001) >= 0.98 * planned - 15.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_input_gives_a_time_or_none_or_an_error(
        (requests_per_second, weight, rate, block_seconds) in (any_number(), any_number(), any_number(), any_number()),
        (ratio, rho0, alpha, clip) in (any_number(), any_number(), any_number(), any_number()),
        floor in prop::option::of(any_number()),
        absolute in prop::option::of((any_number(), any_number())),
    ) {
        let traffic = Traffic { requests_per_second, weight, rate, block_seconds };
        let good_traffic = (0.0..=1e12).contains(&requests_per_second)
            && (0.0..=1.0).contains(&weight)
            && (0.0..=1e6).contains(&rate)
            && (0.1..=1e6).contains(&block_seconds);
        let is_ratio = |value: f64| (1e-9..=1e9).contains(&value);
        let is_risk = (1e-100..1.0).contains(&alpha);
        let detection = Detection { rho0, alpha, floor, clip };
        let good = good_traffic && is_ratio(ratio) && is_ratio(rho0) && is_risk && clip > 0.0 && clip.is_finite()
            && floor.is_none_or(|floor| floor > 0.0 && floor < 0.5);
        let found = detect_seconds(&traffic, ratio, &detection);
        prop_assert_eq!(found.is_ok(), good);
        let promotion = Promotion { margin: ratio, beta: alpha, absolute };
        let good = good_traffic && is_ratio(ratio) && is_risk
            && absolute.is_none_or(|(delta, w)| delta > 0.0 && delta < 1.0 && w > 0.0 && w <= 1.0);
        let promoted = promote_seconds(&traffic, &promotion);
        prop_assert_eq!(promoted.is_ok(), good);
        let closed = [
            closed_form_detect_seconds(&traffic, ratio, rho0, alpha, clip),
            closed_form_promote_seconds(&traffic, ratio, alpha, clip),
            remaining_seconds(ratio, alpha, rate, requests_per_second),
            bound_requests(rate, alpha),
            rollout_seconds(&[ratio, rho0], rate, clip, weight).map(Some),
            information_per_request(&Rates { canary: rate, baseline: alpha }, weight, rho0).map(Some),
        ];
        for seconds in [found, promoted].into_iter().chain(closed) {
            prop_assert!(seconds.map_or(true, |s| s.is_none_or(|s| s >= 0.0 && s.is_finite())));
        }
    }
}

/// The mean time until a process says so, over generated traffic that is always the same.
fn mean_seconds<Process: FnMut(&Counts) -> bool>(
    traffic: &Traffic,
    ratio: f64,
    process: impl Fn() -> Process,
) -> f64 {
    let requests = traffic.requests_per_second * traffic.block_seconds;
    let n_canary = traffic.weight * requests;
    let n_baseline = requests - n_canary;
    let mut state = 1_u64;
    let mut blocks = 0.0;
    for _ in 0..RUNS {
        let mut process = process();
        loop {
            blocks += 1.0;
            let x_canary = poisson(n_canary * traffic.rate * ratio, &mut state);
            let x_baseline = poisson(n_baseline * traffic.rate, &mut state);
            if process(&Counts { x_canary, x_baseline, n_canary, n_baseline }) {
                break;
            }
        }
    }
    traffic.block_seconds * blocks / f64::from(RUNS)
}

/// Arrivals of rate 1 within `mean`.
fn poisson(mean: f64, state: &mut u64) -> f64 {
    let mut uniform = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let [a, b, c, d, ..] = state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_be_bytes();
        (f64::from(u32::from_be_bytes([a, b, c, d])) + 0.5) / 4_294_967_296.0
    };
    let (mut events, mut time) = (0.0, -libm::log(uniform()));
    while time < mean {
        events += 1.0;
        time -= libm::log(uniform());
    }
    events
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        12 => 0.0..1.0,
        6 => 0.1..1000.0,
        1 => any::<f64>(),
        3 => prop::sample::select(vec![0.0, 1.0, 1e-12, 1e-9, 1e6, 1e9, 1e12, f64::NAN, -1.0]),
    ]
}
