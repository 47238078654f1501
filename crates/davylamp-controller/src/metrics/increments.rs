//! From raw samples of counters to increments: what happened at each target between two scrapes.
//!
//! Takes the series of events and of totals of one metric, gives the increments of each target. An increment that ends at a
//! time t depends only on samples in (t - memory, t]. So whatever window is read, the increments in it are the same, bit for
//! bit, and a verdict does not depend on when somebody asked.
//!
//! A counter with more series than are read one by one is read as one sum for each target ([`Window::sums`]).
//!
//! Counters may reset (the new value counts from 0), miss scrapes (the next increment covers the gap) and be born late: a
//! series that appears at a target which was scraped before starts at 0. A target that was silent for the whole memory starts
//! anew, without an increment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use davylamp_engine::observed::{Increment, MetricSamples};
use thiserror::Error;

use super::{Labels, Series};

/// The labels, beside the pod's, that tell targets apart: where Prometheus found the pod, which container, and which of
/// several Prometheus servers read it. All others tell series of one target apart.
pub const TARGET_LABELS: [&str; 8] =
    ["container", "endpoint", "instance", "job", "prometheus", "prometheus_replica", "replica", "service"];

/// These, and what the source names beside them.
pub(super) fn target_labels(replica_labels: &[String]) -> impl Iterator<Item = &str> {
    let more = replica_labels.iter().map(String::as_str);
    TARGET_LABELS.into_iter().chain(more.filter(|label| !TARGET_LABELS.contains(label)))
}

/// Which increments are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The label that names a pod.
    pub pod_label: &'a str,
    /// What tells targets apart beside [`TARGET_LABELS`].
    pub replica_labels: &'a [String],
    /// Increments that end after this, ms since 1970.
    pub since: i64,
    /// And at the latest here.
    pub until: i64,
    /// How far back the earlier sample of an increment may lie, ms: samples are needed from `since - memory` on.
    pub memory: i64,
    /// What is counted as events is the rest of the total: what is no event.
    pub rest: bool,
    /// The series are sums over those of a target. When one falls, some of them have begun anew or are gone: which, it does not
    /// tell, so that this scrape is only the base of the next increment.
    pub sums: bool,
}

/// Why two answers are no ratio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRatio {
    /// Of two counters.
    Unmatched(Unmatched),
    /// A histogram counts, but has no such bucket.
    NoBucket,
}

impl From<Unmatched> for NoRatio {
    fn from(error: Unmatched) -> Self {
        Self::Unmatched(error)
    }
}

/// Events grow at a target that has no total, while its pod has one elsewhere: they would be lost without a word.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the events of pod {pod} come from {events}, but its total from {total}: select events and total of the same target"
)]
pub struct Unmatched {
    /// The pod.
    pub pod: String,
    /// The target of the events.
    pub events: String,
    /// A target of the total.
    pub total: String,
}

/// The samples of one series, cleaned: in order, each time once, none that is no count.
type Points = Vec<(i64, f64)>;
/// The series of each target of each pod.
type Targets<'a> = BTreeMap<&'a str, BTreeMap<String, Vec<Points>>>;

/// The increments in the window.
pub fn increments(
    events: &[Series],
    total: &[Series],
    window: &Window<'_>,
) -> Result<MetricSamples, NoRatio> {
    let (events, total) = (targets(events, window), targets(total, window));
    let mut samples = MetricSamples::default();
    for (pod, totals) in &total {
        let events = events.get(pod);
        if let Some(events) = events {
            matched(pod, events, totals, window)?;
        }
        if window.rest && totals.keys().any(|target| events.is_none_or(|events| !events.contains_key(target)))
        {
            return Err(NoRatio::NoBucket);
        }
        let increments = totals
            .iter()
            .map(|(target, total)| {
                let events = events.and_then(|events| events.get(target)).map_or(&[][..], Vec::as_slice);
                (target.clone(), of_target(events, total, window))
            })
            .collect();
        samples.pods.insert((*pod).to_owned(), increments);
    }
    Ok(samples)
}

/// The increments of a counter in the window, each for the seconds since the scrape before.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "a time in ms")]
pub fn of_counter(counter: &[Series], window: &Window<'_>) -> MetricSamples {
    each_target(counter, window, |series| {
        let mut increments = of_target(series, series, window);
        for one in &mut increments {
            one.total = (one.to - one.from) as f64 / 1_000.0;
        }
        increments
    })
}

/// The values of a gauge in the window, summed over the series of a target, each as so many events of one.
#[must_use]
pub fn of_gauge(gauge: &[Series], window: &Window<'_>) -> MetricSamples {
    each_target(gauge, window, |series| {
        let mut values: BTreeMap<i64, f64> = BTreeMap::new();
        for &(at, value) in series.iter().flatten() {
            *values.entry(at).or_default() += value;
        }
        let mut increments = of_target(series, series, window);
        for one in &mut increments {
            (one.events, one.total) = (values.get(&one.to).copied().unwrap_or(0.0).min(f64::MAX), 1.0);
        }
        increments
    })
}

fn each_target(
    series: &[Series],
    window: &Window<'_>,
    increments: impl Fn(&[Points]) -> Vec<Increment>,
) -> MetricSamples {
    let pods = targets(series, window).into_iter().map(|(pod, targets)| {
        let targets = targets.into_iter().map(|(target, series)| (target, increments(&series)));
        (pod.to_owned(), targets.collect())
    });
    MetricSamples { pods: pods.collect() }
}

fn matched(
    pod: &str,
    events: &BTreeMap<String, Vec<Points>>,
    totals: &BTreeMap<String, Vec<Points>>,
    window: &Window<'_>,
) -> Result<(), Unmatched> {
    let lost = events.iter().find(|(target, series)| {
        !totals.contains_key(*target)
            && of_target(series, series, window).iter().any(|increment| increment.events > 0.0)
    });
    match (lost, totals.keys().next()) {
        (Some((events, _)), Some(total)) => {
            Err(Unmatched { pod: pod.to_owned(), events: events.clone(), total: total.clone() })
        }
        _ => Ok(()),
    }
}

/// A series that the answer holds twice is read as one; a series without a pod, or without a usable sample, is left out.
fn targets<'a>(series: &'a [Series], window: &Window<'_>) -> Targets<'a> {
    let mut by_pod: BTreeMap<&str, BTreeMap<_, Points>> = BTreeMap::new();
    for one in series {
        if let Some(pod) = pod_of(one, window) {
            by_pod.entry(pod).or_default().entry(&one.labels).or_default().extend(&one.samples);
        }
    }
    let oldest = window.since.saturating_sub(window.memory);
    let mut targets = Targets::new();
    for (pod, by_labels) in by_pod {
        let mut texts = TargetTexts::of(window);
        for (labels, mut points) in by_labels {
            points.retain(|&(at, value)| at > oldest && at <= window.until && is_count(value));
            points.sort_by_key(|&(at, _)| at);
            points.dedup_by_key(|&mut (at, _)| at);
            if !points.is_empty() {
                targets.entry(pod).or_default().entry(texts.text(labels)).or_default().push(points);
            }
        }
    }
    targets
}

/// Most series of a pod are of one target: its text is written once.
pub(super) struct TargetTexts<'a> {
    replica_labels: &'a [String],
    last: Option<(&'a Labels, String)>,
}

impl<'a> TargetTexts<'a> {
    pub(super) const fn of(window: &Window<'a>) -> Self {
        Self { replica_labels: window.replica_labels, last: None }
    }

    pub(super) fn text(&mut self, labels: &'a Labels) -> String {
        let same = |other: &Labels| {
            target_labels(self.replica_labels).all(|label| other.get(label) == labels.get(label))
        };
        match &self.last {
            Some((other, text)) if same(other) => text.clone(),
            Some(_) | None => self.last.insert((labels, target_text(labels, self.replica_labels))).1.clone(),
        }
    }
}

pub(super) fn target_text(labels: &Labels, replica_labels: &[String]) -> String {
    let mut text = String::from("{");
    for (label, value) in target_labels(replica_labels).filter_map(|label| Some((label, labels.get(label)?)))
    {
        let comma = if text.len() > 1 { "," } else { "" };
        let _ = write!(text, "{comma}{label}={value:?}");
    }
    text.push('}');
    text
}

/// The times of the total are the scrapes; samples of events at other times belong to none.
fn of_target(events: &[Points], total: &[Points], window: &Window<'_>) -> Vec<Increment> {
    let mut scrapes: Vec<i64> = total.iter().flatten().map(|&(at, _)| at).collect();
    scrapes.sort_unstable();
    scrapes.dedup();
    let events = deltas(events, &scrapes, window);
    let total = deltas(total, &scrapes, window);
    let increments = scrapes.iter().zip(scrapes.iter().skip(1)).zip(events.iter().zip(&total).skip(1));
    increments
        .filter_map(|((&from, &to), (&counted, &total))| {
            let (counted, total) = (counted?, total?);
            let events = if window.rest { f64::max(total - counted, 0.0) } else { counted };
            Some(Increment { from, to, events, total, buckets: Vec::new() })
        })
        .filter(|increment| {
            increment.to > window.since && remembered(increment.from, increment.to, window.memory)
        })
        .collect()
}

/// By how much the series grew, in sum, from the scrape before to each scrape; None where a sum fell.
fn deltas(series: &[Points], scrapes: &[i64], window: &Window<'_>) -> Vec<Option<f64>> {
    let mut sums = vec![Some(0.0); scrapes.len()];
    for points in series {
        let mut before: Option<(i64, f64)> = None;
        for &(at, value) in points {
            let Ok(scrape) = scrapes.binary_search(&at) else { continue };
            let delta = match before.filter(|&(then, _)| remembered(then, at, window.memory)) {
                Some((_, then)) if value >= then => Some(value - then),
                Some(_) if window.sums => None,
                // Reset, or born where a scrape before saw other series: it counts from 0. At the first scrape of a target
                // there is no increment, so what is added there is not read.
                _ => Some(value),
            };
            sums[scrape] = sums[scrape].zip(delta).map(|(sum, delta)| f64::min(sum + delta, f64::MAX));
            before = Some((at, value));
        }
    }
    sums
}

pub(super) fn remembered(then: i64, at: i64, memory: i64) -> bool {
    at.saturating_sub(then) < memory
}

pub(super) fn pod_of<'a>(one: &'a Series, window: &Window<'_>) -> Option<&'a str> {
    one.labels.get(window.pod_label).filter(|pod| !pod.is_empty())
}

pub(super) fn is_count(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: i64 = 15_000;
    const MEMORY: i64 = 37_500;

    fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> Series {
        let labels = labels.iter().copied().collect();
        Series {
            labels,
            samples: samples.iter().map(|&(n, value)| (n * STEP, value)).collect(),
            ..Series::default()
        }
    }

    fn window(since: i64, until: i64) -> Window<'static> {
        Window {
            pod_label: "pod",
            replica_labels: &[],
            since,
            until,
            memory: MEMORY,
            rest: false,
            sums: false,
        }
    }

    /// The increments of the only target of pod `a`, as (from, to, events, total) with times in scrapes.
    fn only(events: &[Series], total: &[Series], since: i64, until: i64) -> Vec<(i64, i64, f64, f64)> {
        let samples = increments(events, total, &window(since * STEP, until * STEP)).unwrap();
        assert_eq!(samples.pods.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(samples.pods["a"].len(), 1);
        let increments = samples.pods["a"].values().flatten();
        increments.map(|i| (i.from / STEP, i.to / STEP, i.events, i.total)).collect()
    }

    #[test]
    fn plain_growth_starts_at_the_newest_sample_not_after_since() {
        let total = series(&[("pod", "a")], &[(1, 5.0), (2, 10.0), (3, 30.0), (4, 60.0), (5, 99.0)]);
        let events = series(&[("pod", "a")], &[(1, 0.0), (2, 0.0), (3, 1.0), (4, 3.0), (5, 3.0)]);
        assert_eq!(only(&[events], &[total], 2, 4), [(2, 3, 1.0, 20.0), (3, 4, 2.0, 30.0)]);
    }

    /// The increments of the only target of pod `a`, as (to, events, total) with times in scrapes.
    fn alone(samples: &MetricSamples) -> Vec<(i64, f64, f64)> {
        samples.pods["a"].values().flatten().map(|i| (i.to / STEP, i.events, i.total)).collect()
    }

    #[test]
    fn a_counter_alone_counts_for_the_seconds_between_its_scrapes() {
        let restarts = series(&[("pod", "a")], &[(1, 4.0), (2, 4.0), (4, 5.0), (5, 1.0)]);
        let samples = of_counter(&[restarts], &window(STEP, 5 * STEP));
        assert_eq!(alone(&samples), [(2, 0.0, 15.0), (4, 1.0, 30.0), (5, 1.0, 15.0)]);
    }

    #[test]
    fn values_of_a_gauge_are_summed_at_each_scrape_of_a_target() {
        let pool = |id: &str, samples: &[(i64, f64)]| series(&[("pod", "a"), ("id", id)], samples);
        let pools = [
            pool("old", &[(1, 50.0), (2, 60.0), (3, 40.0)]),
            pool("new", &[(1, 5.0), (2, f64::NAN), (3, 2.0)]),
        ];
        let samples = of_gauge(&pools, &window(STEP, 3 * STEP));
        assert_eq!(alone(&samples), [(2, 60.0, 1.0), (3, 42.0, 1.0)]);
    }

    #[test]
    fn a_sum_that_falls_is_only_a_base() {
        let sums = |values: &[f64]| {
            [series(&[("pod", "a")], &(1..).zip(values.iter().copied()).collect::<Vec<_>>())]
        };
        let total = sums(&[10.0, 30.0, 25.0, 40.0, 60.0]);
        let window = Window { sums: true, ..window(STEP, 5 * STEP) };
        let alone = |events: &[f64]| alone(&increments(&sums(events), &total, &window).unwrap());
        assert_eq!(alone(&[1.0, 2.0, 2.0, 5.0, 5.0]), [(2, 1.0, 20.0), (4, 3.0, 15.0), (5, 0.0, 20.0)]);
        // The events of some series are gone, though the total has grown.
        assert_eq!(alone(&[1.0, 2.0, 2.0, 1.0, 2.0]), [(2, 1.0, 20.0), (5, 1.0, 20.0)]);
        // A series of events is born.
        let born = [series(&[("pod", "a")], &[(4, 3.0), (5, 4.0)])];
        let born = increments(&born, &total, &window).unwrap();
        assert_eq!(self::alone(&born), [(2, 0.0, 20.0), (4, 3.0, 15.0), (5, 1.0, 20.0)]);
    }

    #[test]
    fn resets_gaps_and_missing_values_as_in_the_specification() {
        let values = [7.0, 7.0, f64::NAN, f64::NAN, 19.0, 4.0, 4.0, 10.0, 0.0, 2.0].into_iter().enumerate();
        let samples: Vec<_> = values.map(|(n, value)| (i64::try_from(n).unwrap(), value)).collect();
        let total = [series(&[("pod", "a")], &samples)];
        let all = Window { memory: 10 * STEP, ..window(-STEP, 20 * STEP) };
        let got = increments(&[], &total, &all).unwrap();
        let deltas: Vec<_> = got.pods["a"].values().flatten().map(|i| i.total).collect();
        assert_eq!(deltas, [0.0, 12.0, 4.0, 0.0, 6.0, 0.0, 2.0]);
    }

    #[test]
    fn a_series_born_at_a_known_target_counts_from_zero() {
        let total = [
            series(&[("pod", "a"), ("code", "200")], &[(1, 100.0), (2, 110.0), (3, 120.0)]),
            series(&[("pod", "a"), ("code", "500")], &[(2, 3.0), (3, 5.0)]),
        ];
        let events = [series(&[("pod", "a"), ("code", "500")], &[(2, 3.0), (3, 5.0)])];
        assert_eq!(only(&events, &total, 1, 9), [(1, 2, 3.0, 13.0), (2, 3, 2.0, 12.0)]);
    }

    #[test]
    fn the_first_scrape_of_a_target_is_only_a_base() {
        let total = [series(&[("pod", "a")], &[(3, 1000.0), (4, 1010.0)])];
        let events = [series(&[("pod", "a")], &[(3, 70.0), (4, 71.0)])];
        assert_eq!(only(&events, &total, 1, 9), [(3, 4, 1.0, 10.0)]);
    }

    #[test]
    fn a_flat_counter_is_no_exposure_and_not_missing() {
        let total = [series(&[("pod", "a")], &[(1, 8.0), (2, 8.0)])];
        assert_eq!(only(&[], &total, 1, 9), [(1, 2, 0.0, 0.0)]);
    }

    #[test]
    fn events_missing_at_a_scrape_are_counted_at_the_next() {
        let total = [series(&[("pod", "a")], &[(1, 10.0), (2, 20.0), (3, 30.0)])];
        let events = [series(&[("pod", "a")], &[(1, 4.0), (3, 9.0)])];
        assert_eq!(only(&events, &total, 1, 9), [(1, 2, 0.0, 10.0), (2, 3, 5.0, 10.0)]);
    }

    #[test]
    fn events_between_scrapes_of_the_total_belong_to_none() {
        let total = [series(&[("pod", "a")], &[(1, 10.0), (3, 30.0)])];
        let events = [series(&[("pod", "a")], &[(1, 4.0), (2, 6.0), (3, 9.0)])];
        assert_eq!(only(&events, &total, 1, 9), [(1, 3, 5.0, 20.0)]);
    }

    #[test]
    fn a_target_silent_for_the_whole_memory_starts_anew() {
        let total = [series(&[("pod", "a")], &[(1, 10.0), (2, 20.0), (5, 90.0), (6, 95.0)])];
        assert_eq!(only(&[], &total, 1, 9), [(1, 2, 0.0, 10.0), (5, 6, 0.0, 5.0)]);
    }

    #[test]
    fn of_a_histogram_the_rest_is_counted() {
        let rest = |events: &[Series], total: &[Series]| {
            let window = Window { rest: true, ..window(STEP, 9 * STEP) };
            increments(events, total, &window).map(|samples| {
                samples.pods["a"].values().flatten().map(|i| (i.events, i.total)).collect::<Vec<_>>()
            })
        };
        let total = [series(&[("pod", "a")], &[(1, 10.0), (2, 20.0), (3, 30.0), (4, 5.0)])];
        let below = [series(&[("pod", "a"), ("le", "0.5")], &[(1, 8.0), (2, 17.0), (3, 27.0), (4, 5.0)])];
        assert_eq!(rest(&below, &total).unwrap(), [(1.0, 10.0), (0.0, 10.0), (0.0, 5.0)]);
        assert_eq!(rest(&[], &total), Err(NoRatio::NoBucket));
    }

    #[test]
    fn a_pod_that_is_scraped_twice_has_two_targets() {
        let total = [
            series(&[("pod", "a"), ("job", "x"), ("path", "/")], &[(1, 1.0), (2, 2.0)]),
            series(&[("pod", "a"), ("job", "x"), ("path", "/b")], &[(1, 1.0), (2, 4.0)]),
            series(&[("pod", "a"), ("job", "y"), ("path", "/")], &[(1, 1.0), (2, 2.0)]),
        ];
        let samples = increments(&[], &total, &window(STEP, 9 * STEP)).unwrap();
        let totals: Vec<_> =
            samples.pods["a"].iter().map(|(target, i)| (target.as_str(), i[0].total)).collect();
        assert_eq!(totals, [("{job=\"x\"}", 4.0), ("{job=\"y\"}", 1.0)]);
    }

    #[test]
    fn a_series_or_a_sample_that_comes_twice_counts_once() {
        let once = series(&[("pod", "a")], &[(1, 1.0), (2, 2.0), (2, 2.0)]);
        assert_eq!(only(&[], &[once.clone(), once], 1, 9), [(1, 2, 0.0, 1.0)]);
    }

    #[test]
    fn events_of_another_target_are_an_error_once_they_grow() {
        let total = [series(&[("pod", "a"), ("container", "app")], &[(1, 1.0), (2, 2.0)])];
        let events = |then, now| [series(&[("pod", "a"), ("container", "proxy")], &[(1, then), (2, now)])];
        let window = window(STEP, 9 * STEP);
        assert!(increments(&events(3.0, 3.0), &total, &window).is_ok());
        let lost = increments(&events(3.0, 4.0), &total, &window).unwrap_err();
        let NoRatio::Unmatched(lost) = lost else { panic!("{lost:?}") };
        assert_eq!(
            lost.to_string(),
            "the events of pod a come from {container=\"proxy\"}, but its total from {container=\"app\"}: \
             select events and total of the same target"
        );
        assert!(increments(&events(3.0, 4.0), &[], &window).unwrap().pods.is_empty());
    }

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            8 => (0_u32..1000).prop_map(f64::from),
            1 => Just(f64::NAN),
            1 => prop_oneof![Just(f64::INFINITY), Just(-1.0), Just(f64::MAX), Just(-0.0)],
        ]
    }

    /// Two pods, two jobs, two codes; scrapes with jitter, misses and resets.
    fn any_series() -> impl Strategy<Value = Vec<Series>> {
        let one =
            (0..2_u8, 0..2_u8, 0..2_u8, prop::collection::vec((0_i64..40, 0_i64..3, any_value()), 0..40));
        prop::collection::vec(one, 0..8).prop_map(|all| {
            let labelled = all.into_iter().map(|(pod, job, code, samples)| Series {
                labels: [("pod", pod), ("job", job), ("code", code)]
                    .map(|(label, value)| (label, value.to_string()))
                    .into_iter()
                    .collect(),
                samples: samples.into_iter().map(|(n, jitter, value)| (n * STEP + jitter, value)).collect(),
                ..Series::default()
            });
            labelled.collect()
        })
    }

    fn flat(samples: &MetricSamples) -> Vec<(&String, &String, Increment)> {
        let targets = samples.pods.iter().flat_map(|(pod, targets)| {
            targets.iter().flat_map(move |(target, increments)| {
                increments.iter().map(move |increment| (pod, target, increment.clone()))
            })
        });
        targets.collect()
    }

    proptest! {
        #[test]
        fn any_window_gives_the_same_increments(
            events in any_series(),
            total in any_series(),
            since in 0_i64..600_000,
            until in 0_i64..600_000,
        ) {
            // Events elsewhere are another test's subject: here they come from the same targets.
            let events: Vec<_> = events.into_iter().filter(|e| {
                let target = target_text(&e.labels, &[]);
                total.iter().any(|t| {
                    t.labels["pod"] == e.labels["pod"] && target_text(&t.labels, &[]) == target
                })
            }).collect();
            let fold = |since, until| increments(&events, &total, &window(since, until));
            if let (Ok(all), Ok(part)) = (fold(-1, 700_000), fold(since, until)) {
                let inside: Vec<_> = flat(&all)
                    .into_iter()
                    .filter(|(_, _, i)| i.to > since && i.to <= until)
                    .collect();
                prop_assert_eq!(flat(&part), inside);
            }
        }

        #[test]
        fn counts_are_finite_and_in_order(
            events in any_series(),
            total in any_series(),
            since in any::<i64>(),
            until in any::<i64>(),
            memory in any::<i64>(),
        ) {
            let window =
                Window { pod_label: "pod", replica_labels: &[], since, until, memory, rest: false, sums: false };
            if let Ok(samples) = increments(&events, &total, &window) {
                for (_, _, i) in flat(&samples) {
                    prop_assert!(i.from < i.to && i.to > since && i.to <= until);
                    prop_assert!(i.events.is_finite() && i.events >= 0.0);
                    prop_assert!(i.total.is_finite() && i.total >= 0.0);
                }
            }
        }
    }
}
