use std::collections::{BTreeMap, BTreeSet};

use davylamp_engine::MetricQuery;
use davylamp_engine::observed::{Increment, MetricSamples};

use super::*;

const NOW: i64 = 1_772_366_400_000;
const MINUTE: i64 = 60_000;

fn lesson(hours: i64) -> Lesson {
    Lesson::new("shop", wanted(hours), NOW)
}

fn wanted(hours: i64) -> WantedHistory {
    let counters = MetricQuery::Counters { events: "errors".to_owned(), total: "requests".to_owned() };
    let query = Query {
        source: "prom".to_owned(),
        since: 0,
        pods: BTreeSet::from(["web-old-".to_owned()]),
        metrics: BTreeMap::from([("errors".to_owned(), counters)]),
        summable: BTreeSet::new(),
        summed: BTreeSet::new(),
        scrape_interval_ms: 15_000,
        delay_ms: 15_000,
        ..Query::default()
    };
    let length = hours * 60 * MINUTE;
    let of = HistoryQuery { query, gaps: false, length, warmup: 0, steps: Vec::new(), alpha: 0.01 };
    WantedHistory { of, source: MetricSourceSpec::default() }
}

fn samples(any: bool) -> Samples {
    let increments = if any { vec![Increment { to: 1, ..Increment::default() }] } else { Vec::new() };
    let targets = BTreeMap::from([("a".to_owned(), increments)]);
    let metric = MetricSamples { pods: BTreeMap::from([("web-old-1".to_owned(), targets)]) };
    Samples { metrics: BTreeMap::from([("errors".to_owned(), metric)]), ..Samples::default() }
}

fn failure(error: QueryError) -> Result<Samples, Failure> {
    Err(Failure {
        source: "prom".to_owned(),
        metric: "errors".to_owned(),
        error: error.into(),
        summed: BTreeSet::new(),
    })
}

/// Lengths of windows in minutes, from the newest to the oldest, when the answers are these, and then good ones.
fn windows(lesson: &mut Lesson, mut answers: Vec<Result<Samples, Failure>>) -> Vec<i64> {
    answers.reverse();
    let mut lengths = Vec::new();
    while let Step::Read { since, until } = lesson.next(NOW) {
        lengths.push((until - since) / MINUTE);
        lesson.settle(since, answers.pop().unwrap_or_else(|| Ok(samples(true))), NOW);
    }
    lengths
}

#[test]
fn windows_become_longer_and_cover_the_past_once() {
    let mut twelve = lesson(12);
    assert_eq!(windows(&mut twelve, Vec::new()), [10, 20, 40, 80, 120, 120, 120, 120, 90]);
    assert_eq!(twelve.next(NOW), Step::Learn);
    assert_eq!(twelve.close().map(|(_, trouble)| trouble), Some(None));
    assert_eq!(twelve.next(NOW), Step::Rest);
}

#[test]
fn nothing_is_read_before_the_first_sample() {
    assert_eq!(windows(&mut lesson(12), vec![Ok(samples(true)), Ok(samples(false))]), [10, 20]);
    let mut none = lesson(12);
    assert_eq!(windows(&mut none, vec![Ok(samples(false))]), [10]);
    assert_eq!(
        none.close().map(|(_, trouble)| trouble),
        Some(None),
        "a young version has no past: that is no trouble"
    );
}

#[test]
fn a_window_that_is_too_wide_is_halved_and_they_stay_small() {
    let good = || Ok(samples(true));
    let wide = || failure(QueryError::TooLarge(4 << 20));
    let lengths = windows(&mut lesson(2), vec![good(), good(), wide(), good(), wide()]);
    assert_eq!(lengths, [10, 20, 40, 20, 20, 10, 10, 10, 10, 10, 10, 10]);
}

#[test]
fn a_source_that_fails_is_asked_again_and_not_for_long() {
    let mut lesson = lesson(12);
    assert_eq!(windows(&mut lesson, vec![Ok(samples(true)), failure(QueryError::Http(503))]), [10, 20]);
    assert_eq!(lesson.next(NOW), Step::Wait(NOW + 5_000));
    let Step::Read { since, until } = lesson.next(NOW + 5_000) else {
        panic!("{:?}", lesson.next(NOW + 5_000))
    };
    assert_eq!(until - since, 20 * MINUTE);
    lesson.settle(since, failure(QueryError::Http(503)), NOW + 58_000);
    assert_eq!(lesson.next(NOW + 58_000), Step::Wait(NOW + 60_000));
    assert_eq!(lesson.next(NOW + 60_000), Step::Learn);
    let (history, trouble) = lesson.close().unwrap();
    let trouble = trouble.unwrap();
    assert!(
        trouble.starts_with(
            "the history was not read to its end: metric errors: MetricSource prom: answered HTTP 503"
        ),
        "{trouble}"
    );
    lesson.finish(Arc::new(history.learn(Some(&trouble))), NOW + 60_000);
    assert_eq!(
        lesson.learnt().unwrap().metrics["errors"].reason.as_deref().map(|r| r.starts_with(&trouble)),
        Some(true)
    );
    assert!(
        !lesson.lasts(NOW + 60_000) && !lesson.is_stale(NOW + 60_000),
        "an answer, but for this run only"
    );
}

#[test]
fn how_far_apart_scrapes_are_comes_first_where_the_source_does_not_say() {
    let lesson = || {
        let mut wanted = wanted(12);
        wanted.of.gaps = true;
        Lesson::new("shop", wanted, NOW)
    };
    let until = NOW - 15_000;
    let mut slow = lesson();
    assert_eq!(slow.next(NOW), Step::Gaps { until, step: 2_000 });
    let wide = || failure(QueryError::TooLarge(4 << 20)).map(|_| None);
    slow.settle_gap(wide(), NOW);
    assert_eq!(slow.next(NOW), Step::Gaps { until, step: 4_000 });
    slow.settle_gap(failure(QueryError::Http(503)).map(|_| None), NOW);
    assert_eq!(slow.next(NOW), Step::Wait(NOW + 5_000));
    slow.settle_gap(Ok(Some(60_000)), NOW + 5_000);
    assert_eq!(slow.next(NOW + 5_000), Step::Read { since: until - 10 * MINUTE, until });
    assert_eq!(slow.question(until).query.scrape_interval_ms, 60_000);
    // It is asked for once, as little as possible.
    let mut none = lesson();
    for step in [2_000, 4_000, 8_000, 16_000] {
        assert_eq!(none.next(NOW), Step::Gaps { until, step });
        none.settle_gap(wide(), NOW);
    }
    assert_eq!(none.next(NOW), Step::Wait(NOW + 5_000));
    assert_eq!(none.next(NOW + 60_000), Step::Learn);

    for (mut lesson, interval) in [(slow, 60_000), (none, 15_000)] {
        let (history, _) = lesson.close().unwrap();
        let learnt = history.learn(None);
        assert_eq!((learnt.scrape_interval_ms, learnt.of.query.scrape_interval_ms), (interval, 15_000));
        assert_eq!(learnt.metrics["errors"].block.millis(), interval);
    }
}

#[test]
fn what_was_read_whole_lasts_as_long_as_it_reaches_back() {
    let mut lesson = lesson(12);
    windows(&mut lesson, Vec::new());
    let (history, _) = lesson.close().unwrap();
    lesson.finish(Arc::new(history.learn(None)), NOW);
    assert!(lesson.lasts(NOW + 719 * MINUTE) && !lesson.is_stale(NOW + 719 * MINUTE));
    assert!(!lesson.lasts(NOW + 720 * MINUTE) && lesson.is_stale(NOW + 720 * MINUTE));
}
