//! The split of the traffic: a right one is never said to be wrong, a wrong one is, and soon.

use super::*;

/// Random numbers from 0 to below 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        #[allow(clippy::cast_precision_loss, reason = "53 bits")]
        let share = ((z ^ (z >> 31)) >> 11) as f64 / 9_007_199_254_740_992.0;
        share
    }

    /// So many requests on average, which arrive by themselves.
    fn poisson(&mut self, mean: f64) -> f64 {
        let (mut left, mut n) = (mean, 0.0);
        loop {
            left += libm::log(1.0 - self.next());
            if left < 0.0 {
                return n;
            }
            n += 1.0;
        }
    }
}

/// So many rounds of requests, of which the canary gets that share.
fn requests(rounds: usize, share: f64, each: f64, seed: u64) -> BTreeMap<String, Targets> {
    let mut random = Random(seed);
    let mut of =
        |mean: f64| -> Vec<(f64, f64)> { (0..rounds).map(|_| (0.0, random.poisson(mean))).collect() };
    let (canary, baseline) = (of(each * share), of(each * (1.0 - share)));
    world(&canary, &baseline)
}

const WEIGHT: u16 = 1_000;

fn opened(plan: &Plan, weight: u16) -> Checkpoint {
    let weight = Percent::from_basis_points(weight);
    let mut fold = Fold::new(plan, &Checkpoint::default(), weight, Percent::FULL);
    fold.begin_step(weight, Percent::FULL, 180 * SECOND);
    fold.open(time(T0), &Observed::default());
    fold.checkpoint(time(T0))
}

/// When it was said to be wrong, ms after the weight; None: never.
fn wrong(plan: &Plan, weight: u16, all: &BTreeMap<String, Targets>, rounds: i64) -> Option<i64> {
    let start = opened(plan, weight);
    let mut fold = Fold::new(plan, &start, Percent::from_basis_points(weight), Percent::FULL);
    let until = T0 + (rounds + 1) * INTERVAL;
    fold.take(&samples(start.folded_until, until, all), &pods(LONG_AGO), &cohorts());
    while let Some(at) = fold.look() {
        if fold.split_is_wrong() {
            return Some(at - T0);
        }
    }
    None
}

#[test]
fn a_right_split_is_never_said_to_be_wrong_however_few_requests_there_are() {
    let plan = plan();
    // At the lower rates most blocks of 30 s have no request of the canary.
    for (weight, per_second) in
        [(1_000, 20.0), (1_000, 1.0), (1_000, 0.2), (100, 2.0), (100, 0.5), (5_000, 0.1)]
    {
        let share = Percent::from_basis_points(weight).share();
        let alarms = (0..40)
            .filter(|seed| {
                let all = requests(480, share, per_second * 15.0, *seed);
                wrong(&plan, weight, &all, 480).is_some()
            })
            .count();
        assert_eq!(alarms, 0, "of 40 runs of 2 h at {per_second}/s and {share}");
    }
}

#[test]
fn a_wrong_split_is_found_in_minutes() {
    let plan = plan();
    for (share, latest) in [(0.2, 10), (0.05, 12), (0.0, 9), (0.15, 20)] {
        for seed in 0..50 {
            let all = requests(120, share, 50.0 * 15.0, seed);
            let found = wrong(&plan, WEIGHT, &all, 120);
            let found = found.unwrap_or_else(|| panic!("{share} was not found, seed {seed}"));
            assert!(found <= latest * 60 * SECOND, "{share} was found after {} s", found / SECOND);
        }
    }
}

#[test]
fn a_share_within_the_tolerance_is_right() {
    let tolerant = |percent: u16| {
        let mut plan = plan();
        plan.split.as_mut().unwrap().tolerance = Percent::from_basis_points(percent * 100).share();
        plan
    };
    let all = requests(480, 0.12, 50.0 * 15.0, 1);
    assert_eq!(wrong(&tolerant(30), WEIGHT, &all, 480), None);
    assert!(wrong(&tolerant(10), WEIGHT, &all, 480).is_some());
}

#[test]
fn the_first_minute_of_a_weight_is_left_out_and_an_open_block_is_of_no_other_weight() {
    let plan = plan();
    let mut all = requests(12, 0.1, 1_000.0, 1);
    for targets in all.values_mut() {
        targets.get_mut("a").unwrap().iter_mut().take(4).for_each(|increment| increment.total = 1e6);
    }
    let start = opened(&plan, WEIGHT);
    let split = |until: i64| {
        let (_, kept) = {
            let mut fold = Fold::new(&plan, &start, Percent::from_basis_points(WEIGHT), Percent::FULL);
            fold.take(&samples(start.folded_until, T0 + until * SECOND, &all), &pods(LONG_AGO), &cohorts());
            while fold.look().is_some() {}
            (fold.split(), fold.checkpoint(time(T0)))
        };
        kept.split.unwrap()
    };
    assert_eq!((split(89).from, split(90).from - T0), (0, 75 * SECOND));
    let open = split(90).open;
    assert!(open[0] < 200.0 && open[1] < 1_500.0, "{open:?}");
    assert_eq!((split(105).from, split(105).open), (0, [0.0; 2]), "a block of two rounds");
    assert!(split(105).seen[0] > 100.0);
    let mut fold = Fold::new(
        &plan,
        &Checkpoint { split: Some(split(90)), ..start.clone() },
        Percent::from_basis_points(WEIGHT),
        Percent::FULL,
    );
    fold.close();
    let closed = fold.checkpoint(time(T0)).split.unwrap();
    assert_eq!((closed.from, closed.open), (0, [0.0; 2]));
}

#[test]
fn a_cohort_that_is_not_scraped_got_no_known_share() {
    let plan = plan();
    let mut all = requests(120, 0.1, 750.0, 1);
    all.get_mut("shop-new-1").unwrap().clear();
    assert_eq!(wrong(&plan, WEIGHT, &all, 120), None, "it is missing: that is another rule");
}

#[test]
fn pods_that_warm_up_get_their_share_too() {
    let plan = plan();
    let all = requests(60, 0.1, 750.0, 1);
    let mut observed = pods(LONG_AGO);
    let canary = observed.revisions.get_mut("new").unwrap();
    canary.pods.insert("shop-new-1".to_owned(), ready_since(T0 + 3_600 * SECOND));
    let start = opened(&plan, WEIGHT);
    let mut fold = Fold::new(&plan, &start, Percent::from_basis_points(WEIGHT), Percent::FULL);
    fold.take(&samples(start.folded_until, T0 + 900 * SECOND, &all), &observed, &cohorts());
    while fold.look().is_some() {}
    assert!(!fold.split_is_wrong());
    let share = fold.observed_share().unwrap().share();
    assert!((0.09..0.11).contains(&share), "{share}");
}

/// Twice the share for so many rounds, then the right one.
fn repaired(wrong: usize, right: usize) -> BTreeMap<String, Targets> {
    let of = |first: f64, then: f64| -> Vec<(f64, f64)> {
        (0..wrong + right).map(|i| (1.0, if i < wrong { first } else { then })).collect()
    };
    world(&of(200.0, 100.0), &of(800.0, 900.0))
}

#[test]
fn it_is_right_again_after_four_blocks_in_a_row() {
    let plan = plan();
    let all = repaired(60, 60);
    let start = opened(&plan, WEIGHT);
    let mut fold = Fold::new(&plan, &start, Percent::from_basis_points(WEIGHT), Percent::FULL);
    fold.take(&samples(start.folded_until, T0 + 1_800 * SECOND, &all), &pods(LONG_AGO), &cohorts());
    let mut changes = Vec::new();
    while let Some(at) = fold.look() {
        if changes.last().map_or_else(|| fold.split_is_wrong(), |(_, is)| *is != fold.split_is_wrong()) {
            changes.push(((at - T0) / SECOND, fold.split_is_wrong()));
        }
    }
    // 13 blocks of two rounds from 75 s on; the split is right from 903 s on.
    assert_eq!(changes, [(465, true), (1_035, false)]);
    assert!(fold.split().unwrap().log_e < 0.0, "it is tested anew");
}

#[test]
fn what_takes_the_split_for_granted_adds_nothing_while_it_is_wrong() {
    let plan = plan_of(&json!([
        {"name": "requests", "ratio": {"events": "errors_total", "total": "requests_total"}},
        {"name": "errors", "count": {"events": "orders_total"}},
    ]));
    assert_eq!(plan.split.map(|split| split.metric), Some(0));
    let all = repaired(60, 60);
    // Of a count without exposure, that is the seconds between two scrapes.
    let mut seconds = all.clone();
    for increment in seconds.values_mut().flat_map(BTreeMap::values_mut).flatten() {
        increment.total = 15.0;
    }
    let start = opened(&plan, WEIGHT);
    let mut fold = Fold::new(&plan, &start, Percent::from_basis_points(WEIGHT), Percent::FULL);
    let until = T0 + 1_800 * SECOND;
    let mut both = samples(start.folded_until, until, &seconds);
    let requests = samples(start.folded_until, until, &all).metrics.remove("errors").unwrap();
    both.metrics.insert("requests".to_owned(), requests);
    fold.take(&both, &pods(LONG_AGO), &cohorts());
    let mut counted = BTreeMap::from([(true, 0.0), (false, 0.0)]);
    let exposure = |fold: &Fold<'_>| fold.records()[1].baseline.exposure;
    let mut before = exposure(&fold);
    while fold.look().is_some() {
        *counted.get_mut(&fold.split_is_wrong()).unwrap() += exposure(&fold) - before;
        before = exposure(&fold);
    }
    assert!(counted[&true] == 0.0 && counted[&false] > 100.0, "{counted:?}");
}

#[test]
fn the_first_metric_that_counts_requests_is_looked_at() {
    let metric = |metrics: &serde_json::Value| plan_of(metrics).split.map(|split| split.metric);
    assert_eq!(metric(&json!([{"name": "a", "count": {"events": "a_total"}}])), None);
    assert_eq!(metric(&json!([{"name": "a", "count": {"events": "a_total", "per": "podSeconds"}}])), None);
    let counted = json!({"name": "b", "count": {"events": "a_total", "exposure": "b_total"}});
    assert_eq!(metric(&json!([{"name": "a", "count": {"events": "a_total"}}, counted])), Some(1));
}

#[test]
fn a_checkpoint_by_hand_is_read_as_far_as_it_makes_sense() {
    let plan = plan();
    let split = serde_json::from_value(json!({
        "process": "nonsense", "from": -5, "open": [-1.0, 1e300], "heard": [true, false], "seen": [1e300, 0.0], "wrong": -1
    }))
    .unwrap();
    let kept = Checkpoint { split: Some(split), ..opened(&plan, WEIGHT) };
    let mut fold = Fold::new(&plan, &kept, Percent::from_basis_points(WEIGHT), Percent::FULL);
    fold.take(
        &samples(kept.folded_until, T0 + 600 * SECOND, &requests(60, 0.1, 750.0, 1)),
        &pods(LONG_AGO),
        &cohorts(),
    );
    while fold.look().is_some() {}
    let SplitRecord { canary, baseline, log_e, wrong } = fold.split().unwrap();
    assert!(canary.is_finite() && baseline.is_finite() && log_e.is_finite() && wrong.is_none());
}
