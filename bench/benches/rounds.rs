//! What a round of a metric costs, and what is computed for a person to look at.

use std::hint::black_box;

use criterion::Criterion;
use davylamp_stats::{
    Counts, Detection, Error, EventProcess, Layout, NonInferiority, Promotion, ScoreProcess, Traffic,
    detect_seconds, promote_seconds, rr_confidence_sequence,
};

const COUNTS: Counts = Counts { x_canary: 2.0, x_baseline: 9.0, n_canary: 100.0, n_baseline: 900.0 };

fn main() -> Result<(), Error> {
    let mut criterion = Criterion::default().configure_from_args();
    ratio(&mut criterion)?;
    histogram(&mut criterion, "12 buckets", 12)?;
    histogram(&mut criterion, "160 buckets", 160)?;
    interval(&mut criterion);
    plan(&mut criterion);
    criterion.final_summary();
    Ok(())
}

/// One round of a ratio metric with all that decides: rollback with a floor, promotion with the absolute
/// alternative, and a look at both.
fn ratio(criterion: &mut Criterion) -> Result<(), Error> {
    let mut rollback = EventProcess::new(1.1, 15.0, Some(0.001))?;
    let mut promotion = NonInferiority::new(2.0, Some((0.001, 0.5)))?;
    let mut round = 0_u32;
    criterion.bench_function("ratio metric, a round with floor and non-inferiority", |bencher| {
        bencher.iter(|| {
            round += 1;
            let first = round.is_multiple_of(3);
            let taken =
                (rollback.round(black_box(&COUNTS), first), promotion.round(black_box(&COUNTS), first));
            (taken, rollback.log_e(), promotion.log_e())
        });
    });

    let mut plain = EventProcess::new(1.0, 15.0, None)?;
    criterion.bench_function("ratio metric, a round without floor", |bencher| {
        bencher.iter(|| {
            round += 1;
            (plain.round(black_box(&COUNTS), round.is_multiple_of(3)), plain.log_e())
        });
    });
    Ok(())
}

/// One round of a distribution, every bucket of which is populated, and a look at it; a block is three rounds.
fn histogram(criterion: &mut Criterion, name: &str, buckets: u32) -> Result<(), Error> {
    let bounds: Vec<f64> = (1..buckets).map(|bucket| libm::pow(1.2, f64::from(bucket))).collect();
    let layout = Layout::classic(&[bounds.as_slice(), &[f64::INFINITY]].concat())?;
    let counts = |largest: f64| -> Vec<f64> {
        let middle = f64::from(buckets) / 2.0;
        (0..buckets)
            .map(|bucket| 1.0 + largest / (1.0 + libm::pow(f64::from(bucket) - middle, 2.0)))
            .collect()
    };
    let (canary, baseline) = (counts(100.0), counts(900.0));
    let mut process = ScoreProcess::new(layout, 0.1, 15.0)?.with_history(&baseline)?;
    let mut round = 0_u32;
    criterion.bench_function(&format!("distribution, a round of {name}"), |bencher| {
        bencher.iter(|| {
            round += 1;
            let taken = process.round(black_box(&canary), black_box(&baseline), round.is_multiple_of(3));
            (taken, process.log_e())
        });
    });
    Ok(())
}

/// When will a doubling be found, and a good canary be promoted?
fn plan(criterion: &mut Criterion) {
    let traffic = Traffic { requests_per_second: 200.0, weight: 0.1, rate: 0.005, block_seconds: 15.0 };
    let detection = Detection { floor: Some(0.001), ..Detection::new(1.1, 0.01) };
    let promotion = Promotion { margin: 2.0, beta: 0.05, absolute: Some((0.001, 0.5)) };
    criterion.bench_function("plan of one metric and step", |bencher| {
        bencher.iter(|| {
            (
                detect_seconds(black_box(&traffic), 2.0, &detection),
                promote_seconds(black_box(&traffic), &promotion),
            )
        });
    });
}

/// The interval after an hour of blocks of 15 seconds.
fn interval(criterion: &mut Criterion) {
    let blocks = vec![COUNTS; 240];
    criterion.bench_function("interval after an hour", |bencher| {
        bencher.iter(|| rr_confidence_sequence(black_box(&blocks), 0.01));
    });
}
