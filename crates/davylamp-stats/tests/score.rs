//! The test of distributions: what must hold for any counts, and numbers or named errors for any input at
//! all.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use davylamp_stats::{Layout, ScoreProcess, score_log_factor, scores, shift_histogram};
use proptest::prelude::*;

// Algebra.

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_block_with_one_cohort_or_without_counts_changes_nothing(
        past in prop::collection::vec(round(6), 0..12),
        quiet in round(6),
    ) {
        let mut process = new_process(6, 0.1);
        for Round { canary, baseline, new_block } in past {
            process.round(&canary, &baseline, new_block).unwrap();
        }
        let before = process.log_e().to_bits();
        for (canary, baseline) in
            [(&quiet.canary, &vec![0.0; 6]), (&vec![0.0; 6], &quiet.baseline), (&vec![0.0; 6], &vec![0.0; 6])]
        {
            process.round(canary, baseline, true).unwrap();
            prop_assert_eq!(process.log_e().to_bits(), before);
        }
    }

    #[test]
    fn without_history_the_first_block_shows_nothing(first in round(6), second in round(6)) {
        let mut process = new_process(6, 0.0);
        for Round { canary, baseline, .. } in [first, second] {
            process.round(&canary, &baseline, false).unwrap();
            prop_assert_eq!(process.log_e().to_bits(), 0.0_f64.to_bits());
        }
    }

    #[test]
    fn a_poll_may_be_split(whole in round(6), parts in 2_u32..8, history in counts(6)) {
        let part = |counts: &[f64]| counts.iter().map(|count| count / f64::from(parts)).collect::<Vec<_>>();
        let mut once = new_process(6, 0.1).with_history(&history).unwrap();
        let mut split = once.clone();
        for _ in 0..3 {
            once.round(&whole.canary, &whole.baseline, true).unwrap();
            for i in 0..parts {
                split.round(&part(&whole.canary), &part(&whole.baseline), i == 0).unwrap();
            }
            prop_assert!(close(once.log_e(), split.log_e()));
        }
    }

    /// The process and the factor of a single alternative are the same formula.
    #[test]
    fn the_evidence_of_a_block_is_the_mixture_of_its_alternatives(now in round(6), history in counts(6)) {
        let scores = scores(&history).unwrap();
        let indicator = |first: usize| (0..6).map(|b| if b < first { 0.0 } else { 1.0 }).collect::<Vec<f64>>();
        let families: [(Vec<f64>, &[f64]); 5] = [
            (scores.van_der_waerden, &[0.06, 0.12, 0.25, 0.5, 1.0]),
            (scores.savage, &[0.06, 0.12, 0.25, 0.5]),
            (indicator(scores.tails[0]), &[0.15, 0.4, 1.0]),
            (indicator(scores.tails[1]), &[0.25, 0.6, 1.2, 2.5]),
            (indicator(scores.tails[2]), &[0.5, 1.2, 2.5]),
        ];
        let exposure = |counts: &[f64]| counts.iter().sum::<f64>();
        let clip = libm::log1p(exposure(&now.baseline) / exposure(&now.canary)).clamp(0.5, libm::log(10.0));
        let mut mixture = 0.0;
        for (scores, thetas) in families {
            let prior = 0.2 / f64::from(u32::try_from(thetas.len()).unwrap());
            for theta in thetas {
                let log_e = score_log_factor(&now.canary, &now.baseline, &scores, *theta).unwrap();
                mixture += prior * libm::exp(log_e.min(clip));
            }
        }
        // Half of the capital, and 15 s/900 s of the rest.
        let at_work = 0.5 + 0.5 / 60.0;
        let expected = libm::log(at_work * mixture + 1.0 - at_work);
        let process = new_process(6, 0.0).with_history(&history).unwrap();
        let found = after(&process, &now.canary, &now.baseline).log_e();
        prop_assert!(close(found, expected), "{found} {expected}");
    }

    #[test]
    fn no_block_multiplies_the_evidence_by_more_than_its_clip(
        now in round(6),
        history in counts(6),
        clip in 0.1..2.0,
    ) {
        let process = new_process(6, 0.0).with_history(&history).unwrap().with_clip(clip).unwrap();
        let after = after(&process, &now.canary, &now.baseline).log_e();
        let (n_canary, n_baseline): (f64, f64) = (now.canary.iter().sum(), now.baseline.iter().sum());
        let one_cluster = libm::log1p(n_baseline / n_canary.max(1.0)).max(0.5);
        prop_assert!(after <= clip.min(one_cluster) + 1e-12);
    }

    #[test]
    fn a_slower_request_of_the_canary_is_evidence_and_of_the_baseline_against_it(
        now in round(6),
        history in counts(6),
        bucket in 0_usize..5,
        theta in 0.05..2.5,
    ) {
        let scores = scores(&history).unwrap().van_der_waerden;
        let slower = |counts: &[f64]| {
            let mut counts = counts.to_vec();
            counts[bucket + 1] += counts[bucket];
            counts[bucket] = 0.0;
            counts
        };
        let Round { canary, baseline, .. } = now;
        let log_e = |canary: &[f64], baseline: &[f64]| {
            score_log_factor(canary, baseline, &scores, theta).unwrap()
        };
        let before = log_e(&canary, &baseline);
        prop_assert!(not_above(before, log_e(&slower(&canary), &baseline)));
        prop_assert!(not_above(log_e(&canary, &slower(&baseline)), before));
    }

    #[test]
    fn scores_rise_from_bucket_to_bucket(pooled in prop::collection::vec(any_count(), 1..200)) {
        let scores = scores(&pooled).unwrap();
        for scores in [&scores.van_der_waerden, &scores.savage] {
            prop_assert!(scores.iter().all(|score| score.is_finite()));
            prop_assert!(scores.windows(2).all(|pair| pair[0] <= pair[1]));
        }
        prop_assert!(scores.tails.windows(2).all(|pair| pair[0] <= pair[1]));
        let (canary, baseline) = (vec![1.0; pooled.len()], vec![2.0; pooled.len()]);
        prop_assert!(score_log_factor(&canary, &baseline, &scores.van_der_waerden, 1.0).unwrap().is_finite());
        prop_assert!(score_log_factor(&canary, &baseline, &scores.savage, 0.5).unwrap().is_finite());
    }

    #[test]
    fn more_tolerance_moves_more_down_and_nothing_is_lost(
        bounds in bounds(),
        (canary, pooled) in (counts(40), counts(40)),
        (tolerance, more) in (0.0..5.0, 0.0..5.0),
    ) {
        let (canary, pooled) = (&canary[..bounds.len()], &pooled[..bounds.len()]);
        let at = |tolerance: f64| shift_histogram(&bounds, canary, pooled, tolerance).unwrap();
        prop_assert_eq!(at(0.0), canary);
        let (less, more) = (at(tolerance), at(tolerance + more));
        let (mut above_less, mut above_more, mut above) = (0.0, 0.0, 0.0);
        for bucket in (0..bounds.len()).rev() {
            above += canary[bucket];
            above_less += less[bucket];
            above_more += more[bucket];
            prop_assert!(not_above(above_less, above) && not_above(above_more, above_less));
        }
        prop_assert!(close(above_less, above) && close(above_more, above));
        // The unit does not matter.
        let milliseconds: Vec<f64> = bounds.iter().map(|bound| bound * 1000.0).collect();
        let scaled = shift_histogram(&milliseconds, canary, pooled, tolerance).unwrap();
        prop_assert!(less.iter().zip(scaled).all(|(a, b)| close(*a, b)));
    }

    #[test]
    fn whole_buckets_of_a_native_histogram_move_whole(
        (canary, pooled) in (counts(30), counts(30)),
        (schema, whole) in (0_i32..4, 1_u8..12),
    ) {
        let bound = |index: i32| libm::exp2(libm::ldexp(f64::from(index), -schema));
        let bounds: Vec<f64> = (0..29).map(bound).chain([f64::INFINITY]).collect();
        let tolerance = bound(i32::from(whole)) - 1.0;
        let shifted = shift_histogram(&bounds, &canary, &pooled, tolerance).unwrap();
        let whole = usize::from(whole);
        let mut expected = vec![0.0; 30];
        for (bucket, count) in canary.iter().enumerate() {
            let to = if bucket == 29 { 28 } else { bucket.saturating_sub(whole) };
            expected[to] += count;
        }
        for (bucket, (found, expected)) in shifted.iter().zip(&expected).enumerate() {
            prop_assert!(close(*found, *expected), "{bucket}: {found} {expected}");
        }
    }

    #[test]
    fn a_saved_process_continues_to_the_bit(
        rounds in prop::collection::vec((round(6), any::<bool>()), 1..20),
        tolerance in prop::sample::select(vec![0.0, 0.1]),
    ) {
        let mut process = new_process(6, tolerance);
        let mut restored = process.clone();
        for (Round { canary, baseline, new_block }, close) in rounds {
            for process in [&mut process, &mut restored] {
                process.round(&canary, &baseline, new_block).unwrap();
                if close {
                    process.close_block();
                }
            }
            prop_assert_eq!(process.log_e().to_bits(), restored.log_e().to_bits());
            let saved = process.to_bytes();
            prop_assert_eq!(saved.len(), 331 + 6 * 4 + 5 * 8 + if close { 0 } else { 16 + 6 * 8 });
            // The layout comes with the state.
            restored = new_process(3, tolerance).restore(&saved).unwrap();
            prop_assert_eq!(&restored, &process);
            prop_assert_eq!(restored.to_bytes(), saved);
        }
    }

    #[test]
    fn closing_a_block_keeps_the_evidence(rounds in prop::collection::vec(round(6), 1..20)) {
        let mut process = new_process(6, 0.1);
        for Round { canary, baseline, new_block } in rounds {
            process.round(&canary, &baseline, new_block).unwrap();
            let mut closed = process.clone();
            closed.close_block();
            prop_assert_eq!(closed.log_e().to_bits(), process.log_e().to_bits());
            let twice = { let mut twice = closed.clone(); twice.close_block(); twice };
            prop_assert_eq!(twice, closed);
        }
    }
}

#[test]
fn a_new_layout_keeps_the_evidence_and_what_was_pooled() {
    let layout = |bounds: &[f64]| Layout::classic(bounds).unwrap();
    let old = layout(&[0.1, 0.2, 0.5, 1.0, f64::INFINITY]);
    let history = [500.0, 300.0, 150.0, 40.0, 10.0];
    let mut process = ScoreProcess::new(old.clone(), 0.1, 15.0).unwrap().with_history(&history).unwrap();
    process.round(&[40.0, 40.0, 15.0, 4.0, 1.0], &[0.0; 5], true).unwrap();
    process.round(&[40.0, 40.0, 15.0, 4.0, 1.0], &history, true).unwrap();
    let mut closed = process.clone();
    closed.close_block();
    let (log_e, pooled) = (process.log_e(), closed.pooled());

    let common = old.common(&layout(&[0.2, 0.3, 1.0, f64::INFINITY])).unwrap();
    process.relayout(common.clone());
    assert_eq!(process.log_e().to_bits(), log_e.to_bits());
    assert_eq!(process.layout(), &common);
    let merged = [pooled[0] + pooled[1], pooled[2] + pooled[3], pooled[4]];
    assert!(process.pooled().iter().zip(merged).all(|(a, b)| (a - b).abs() <= 1e-6 * b));
    process.round(&[80.0, 19.0, 1.0], &[800.0, 190.0, 10.0], true).unwrap();

    // A finer one: as low as what was counted may lie.
    process.relayout(layout(&[0.1, 0.2, 0.5, 1.0, 2.0, f64::INFINITY]));
    let spread = process.pooled();
    assert!(spread[0] > 0.0 && spread[1] == 0.0 && spread[2] > 0.0 && spread[4] > 0.0);
    assert!(spread[3] == 0.0 && spread[5] == 0.0);
}

#[test]
fn a_native_layout_of_160_buckets_takes_less_than_a_kilobyte_between_blocks() {
    let bound = |index: u32| libm::exp2(f64::from(index) / 8.0 - 10.0);
    let bucket = |index| davylamp_stats::Bucket { lower: bound(index), upper: bound(index + 1), count: 1.0 };
    let sample: Vec<_> = (0..158).map(bucket).collect();
    let layout = Layout::native(&sample).unwrap();
    assert_eq!(layout.bounds().len(), 160);
    let counts = layout.on(&sample).unwrap();
    let mut process = ScoreProcess::new(layout, 0.1, 15.0).unwrap().with_history(&counts).unwrap();
    process.round(&counts, &counts, true).unwrap();
    process.close_block();
    let saved = process.to_bytes();
    assert_eq!(saved.len(), 987);
    assert_eq!(new_process(6, 0.1).restore(&saved).unwrap(), process);
}

// Any input.

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_counts_give_a_number_or_an_error_that_changes_nothing(
        rounds in prop::collection::vec((any_counts(5), any_counts(5), any::<bool>()), 1..20),
        tolerance in prop::sample::select(vec![0.0, 1e-12, 0.1, 3.0, 1e9]),
    ) {
        let mut process = new_process(5, tolerance);
        for (canary, baseline, new_block) in &rounds {
            let before = process.clone();
            let usable = |counts: &[f64]| counts.iter().all(|c| (0.0..=9_007_199_254_740_992.0).contains(c));
            let both = usable(canary) && usable(baseline);
            prop_assert_eq!(process.round(canary, baseline, *new_block).is_ok(), both);
            if !both {
                prop_assert_eq!(&process, &before);
            }
            prop_assert!(process.log_e().is_finite());
            prop_assert!(process.pooled().iter().all(|count| count.is_finite() && *count >= 0.0));
            prop_assert!(process.clone().restore(&process.to_bytes()).is_ok());
            for theta in [0.06, 2.5] {
                let log_e = score_log_factor(canary, baseline, &[-9.0, 0.0, 0.0, 1.0, 9.0], theta);
                prop_assert_eq!(log_e.map(f64::is_finite).ok(), both.then_some(true));
            }
        }
    }

    #[test]
    fn any_bounds_and_parameters_are_taken_or_refused(
        bounds in prop::collection::vec(any::<f64>(), 0..4),
        (a, b) in (any::<f64>(), any::<f64>()),
    ) {
        let bounds: Vec<f64> = bounds.into_iter().chain([f64::INFINITY]).collect();
        let counts = vec![3.0; bounds.len()];
        let good = bounds.len() > 1 && bounds[0].is_finite() && bounds.windows(2).all(|p| p[0] < p[1]);
        let tolerance = (0.0..=1e9).contains(&a);
        let shifted = shift_histogram(&bounds, &counts, &counts, a);
        prop_assert_eq!(shifted.is_ok(), good && tolerance);
        prop_assert!(shifted.map_or(true, |counts| counts.iter().all(|c| c.is_finite() && *c >= 0.0)));
        let layout = Layout::classic(&bounds);
        prop_assert_eq!(layout.is_ok(), good);
        if let Ok(layout) = layout {
            let taken = tolerance && b > 0.0 && b.is_finite();
            prop_assert_eq!(ScoreProcess::new(layout, a, b).is_ok(), taken);
        }
        let clip = new_process(3, 0.0).with_clip(a).is_ok();
        prop_assert_eq!(clip, a > 0.0 && a.is_finite());
        let one = score_log_factor(&[1.0, 1.0], &[1.0, 1.0], &[a, b], 1.0);
        prop_assert_eq!(one.is_ok(), a.abs() <= 300.0 && b.abs() <= 300.0 && a <= b);
    }

    #[test]
    fn any_bytes_give_a_process_that_works_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        (at, value) in (0_usize..424, any::<u8>()),
        now in round(5),
        close in any::<bool>(),
        native in any::<bool>(),
    ) {
        let bucket = |lower: f64| davylamp_stats::Bucket { lower, upper: 2.0 * lower, count: 1.0 };
        let sample = [0.25, 0.5, 1.0].map(bucket);
        let layout = Layout::native(&sample).filter(|_| native).unwrap_or_else(five_buckets);
        let mut process = ScoreProcess::new(layout, 0.1, 15.0).unwrap();
        process.round(&now.canary, &now.baseline, true).unwrap();
        process.round(&now.canary, &now.baseline, true).unwrap();
        if close {
            process.close_block();
        }
        let mut damaged = process.to_bytes();
        let at = at % damaged.len();
        damaged[at] = value;
        for bytes in [bytes, damaged] {
            if let Ok(mut restored) = new_process(5, 0.1).restore(&bytes) {
                let counts = vec![2.0; restored.layout().bounds().len()];
                // The sum of log factors may be refused, but never more than that.
                let _ = restored.round(&counts, &counts, false);
                let _ = restored.round(&counts, &counts, true);
                prop_assert!(restored.log_e().is_finite());
            }
        }
    }
}

#[test]
fn thousands_of_buckets_and_the_largest_counts_are_numbers() {
    let finite = (0..4998).map(|bucket| 1e-6 * libm::pow(1.005, f64::from(bucket)));
    let bounds: Vec<f64> = finite.chain([f64::MAX, f64::INFINITY]).collect();
    let (none, few, many) = (vec![0.0; 5000], vec![1.0; 5000], vec![1e15; 5000]);
    for tolerance in [0.0, 0.1, 1e9] {
        let layout = Layout::classic(&bounds).unwrap();
        let mut process = ScoreProcess::new(layout, tolerance, 15.0).unwrap();
        for canary in [&none, &few, &many] {
            for baseline in [&none, &few, &many] {
                process.round(canary, baseline, true).unwrap();
                assert!(process.log_e().is_finite());
            }
        }
        assert_eq!(new_process(3, tolerance).restore(&process.to_bytes()).unwrap(), process);
    }
}

// Errors.

#[test]
fn an_error_names_what_is_wrong() {
    let mut process = new_process(3, 0.1);
    let mut message =
        |canary: &[f64], baseline: &[f64]| process.round(canary, baseline, true).unwrap_err().to_string();
    assert_eq!(message(&[1.0, 2.0], &[0.0; 3]), "canary has 2 entries, expected 3");
    assert_eq!(message(&[0.0; 3], &[1.0; 4]), "baseline has 4 entries, expected 3");
    assert_eq!(message(&[0.0, f64::NAN, 1.0], &[1.0; 3]), "canary is NaN, expected a number from 0 to 2^53");
    assert_eq!(
        score_log_factor(&[1.0; 2], &[1.0; 2], &[1.0, 0.5], 1.0).unwrap_err().to_string(),
        "scores is 0.5, expected numbers that do not fall, from -300 to 300 times theta"
    );
    assert_eq!(
        shift_histogram(&[1.0, f64::INFINITY], &[1.0; 2], &[1.0; 2], -0.1).unwrap_err().to_string(),
        "tolerance is -0.1, expected a number from 0 to 1e9"
    );
    assert_eq!(
        Layout::classic(&[0.5, 0.5, f64::INFINITY]).unwrap_err().to_string(),
        "bounds is 0.5, expected ascending bounds"
    );
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let mut process = new_process(5, 0.1);
    process.round(&[1.0; 5], &[1.0; 5], true).unwrap();
    let saved = process.to_bytes();
    let damaged = |at: usize, with: &[u8]| {
        let mut bytes = saved.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        new_process(5, 0.1).restore(&bytes).unwrap_err().to_string()
    };
    assert_eq!(saved.len(), 331 + 32 + 20 + 16 + 40);
    assert_eq!(damaged(0, &[3]), "the saved state has version 3, expected 1");
    assert_eq!(damaged(326, &[2]), "the saved state has native 2, expected 0 or 1");
    assert_eq!(damaged(327, &[40]), "the saved state has 439 bytes, expected 443");
    assert_eq!(
        damaged(331, &9.0_f64.to_le_bytes()),
        "the saved state has bounds 9, expected ascending numbers"
    );
    assert_eq!(
        damaged(363, &(-1.0_f32).to_le_bytes()),
        "the saved state has pooled -1, expected a finite number not below 0"
    );
    assert_eq!(
        damaged(399, &f64::NAN.to_le_bytes()),
        "the saved state has counts NaN, expected a finite number"
    );
}

/// A round of a process, or the next one.
#[derive(Debug, Clone)]
struct Round {
    canary: Vec<f64>,
    baseline: Vec<f64>,
    new_block: bool,
}

/// Counts of a plausible round, empty buckets and cohorts included.
fn round(buckets: usize) -> impl Strategy<Value = Round> {
    (counts(buckets), counts(buckets), any::<bool>()).prop_map(|(canary, baseline, new_block)| Round {
        canary,
        baseline,
        new_block,
    })
}

fn counts(buckets: usize) -> impl Strategy<Value = Vec<f64>> {
    let count = prop_oneof![3 => 0_u32..30, 1 => Just(0), 1 => 0_u32..1000];
    let some = prop::collection::vec(count.prop_map(f64::from), buckets);
    prop_oneof![9 => some, 1 => Just(vec![0.0; buckets])]
}

fn any_count() -> impl Strategy<Value = f64> {
    prop_oneof![3 => (0_u32..100).prop_map(f64::from), 2 => Just(0.0), 1 => 0.0..1e15, 1 => 0.0..1.0]
}

/// Counts of any size, and values that are no counts.
fn any_counts(buckets: usize) -> impl Strategy<Value = Vec<f64>> {
    let no_count = prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, 1e300]);
    let tiny = prop::sample::select(vec![-0.0, f64::MIN_POSITIVE, 5e-324, 9_007_199_254_740_992.0]);
    prop::collection::vec(prop_oneof![20 => any_count(), 2 => tiny, 1 => no_count], buckets)
}

/// Bounds of up to 40 buckets at uneven distances.
fn bounds() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(1.01..4.0, 1..39).prop_map(|ratios| {
        let mut bound = 1e-3;
        let finite = ratios.into_iter().map(|ratio: f64| {
            bound *= ratio;
            bound
        });
        finite.chain([f64::INFINITY]).collect()
    })
}

fn new_process(buckets: u32, tolerance: f64) -> ScoreProcess {
    let finite = (1..buckets).map(|bucket| 0.1 * libm::exp2(f64::from(bucket)));
    let layout = Layout::classic(&finite.chain([f64::INFINITY]).collect::<Vec<_>>()).unwrap();
    ScoreProcess::new(layout, tolerance, 15.0).unwrap()
}

fn five_buckets() -> Layout {
    Layout::classic(&[0.1, 0.2, 0.5, 1.0, f64::INFINITY]).unwrap()
}

/// With one more block of one round.
fn after(before: &ScoreProcess, canary: &[f64], baseline: &[f64]) -> ScoreProcess {
    let mut process = before.clone();
    process.round(canary, baseline, true).unwrap();
    process
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs())
}

fn not_above(a: f64, b: f64) -> bool {
    a <= b || close(a, b)
}
