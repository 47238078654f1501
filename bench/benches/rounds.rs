//! What a round of a metric costs, and what is computed for a person to look at.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use davylamp_stats::{Counts, EventProcess, NonInferiority, rr_confidence_sequence};

const COUNTS: Counts = Counts { x_canary: 2.0, x_baseline: 9.0, n_canary: 100.0, n_baseline: 900.0 };

/// One round of a ratio metric with all that decides: rollback with a floor, promotion with the absolute
/// alternative, and a look at both.
fn ratio(criterion: &mut Criterion) {
    let mut rollback = EventProcess::new(1.1, 15.0, Some(0.001)).unwrap();
    let mut promotion = NonInferiority::new(2.0, Some((0.001, 0.5))).unwrap();
    let mut round = 0_u32;
    criterion.bench_function("ratio metric, a round with floor and non-inferiority", |bencher| {
        bencher.iter(|| {
            round += 1;
            let first = round.is_multiple_of(3);
            rollback.round(black_box(&COUNTS), first).unwrap();
            promotion.round(black_box(&COUNTS), first).unwrap();
            black_box((rollback.log_e(), promotion.log_e()))
        });
    });

    let mut plain = EventProcess::new(1.0, 15.0, None).unwrap();
    criterion.bench_function("ratio metric, a round without floor", |bencher| {
        bencher.iter(|| {
            round += 1;
            plain.round(black_box(&COUNTS), round.is_multiple_of(3)).unwrap();
            black_box(plain.log_e())
        });
    });
}

/// The interval after an hour of blocks of 15 seconds.
fn interval(criterion: &mut Criterion) {
    let blocks = vec![COUNTS; 240];
    criterion.bench_function("interval after an hour", |bencher| {
        bencher.iter(|| rr_confidence_sequence(black_box(&blocks), 0.01).unwrap());
    });
}

criterion_group!(benches, ratio, interval);
criterion_main!(benches);
