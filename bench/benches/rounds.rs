//! What a round of a metric costs, and what is computed for a person to look at.

use std::hint::black_box;

use criterion::Criterion;
use davylamp_stats::{Counts, Error, EventProcess, NonInferiority, rr_confidence_sequence};

const COUNTS: Counts = Counts { x_canary: 2.0, x_baseline: 9.0, n_canary: 100.0, n_baseline: 900.0 };

fn main() -> Result<(), Error> {
    let mut criterion = Criterion::default().configure_from_args();
    ratio(&mut criterion)?;
    interval(&mut criterion);
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

/// The interval after an hour of blocks of 15 seconds.
fn interval(criterion: &mut Criterion) {
    let blocks = vec![COUNTS; 240];
    criterion.bench_function("interval after an hour", |bencher| {
        bencher.iter(|| rr_confidence_sequence(black_box(&blocks), 0.01));
    });
}
