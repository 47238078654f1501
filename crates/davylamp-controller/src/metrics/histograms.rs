//! From what a source has added up to samples of one series for each target, however many the target has, and to increments of
//! a histogram, which is always read so. The same law holds as for [`increments`](super::increments). But where one of the sums
//! falls, there is no telling which series began anew.

use std::collections::BTreeMap;

use davylamp_engine::observed::{Bucket, Increment, MetricSamples, classic_buckets};

use super::Series;
use super::increments::{TargetTexts, Window, is_count, pod_of, remembered};

/// A library that counts and is read at once may count less below a higher bound, by a few of all; by more than this share of
/// them, none does.
const FALLS: f64 = 0.01;

/// What [`Targets`](super::scope::Targets) and [`Folded`](super::scope::Folded) ask for, as samples at scrapes: `values` and
/// `times` are of the same moments, what each target had counted so far, and when it was scraped, in seconds.
#[must_use]
pub(super) fn at_scrapes(values: &[Series], times: &[Series], window: &Window<'_>) -> Vec<Series> {
    let mut scrapes: BTreeMap<(&str, String), BTreeMap<i64, i64>> = BTreeMap::new();
    let mut texts = TargetTexts::of(window);
    for one in times {
        let Some(pod) = pod_of(one, window) else { continue };
        let of_target = scrapes.entry((pod, texts.text(&one.labels))).or_default();
        of_target.extend(one.samples.iter().filter_map(|(moment, s)| Some((*moment, time_of(*s, window)?))));
    }
    let mut texts = TargetTexts::of(window);
    let mut series = Vec::with_capacity(values.len());
    for one in values {
        let Some(pod) = pod_of(one, window) else { continue };
        let Some(scrapes) = scrapes.get(&(pod, texts.text(&one.labels))) else { continue };
        let at = |moment: &i64| scrapes.get(moment).copied();
        let mut samples: Vec<_> =
            one.samples.iter().filter_map(|(moment, value)| Some((at(moment)?, *value))).collect();
        // A scrape is seen at each moment until the next one.
        samples.dedup_by_key(|(at, _)| *at);
        let mut histograms: Vec<_> = one
            .histograms
            .iter()
            .filter_map(|(moment, buckets)| Some((at(moment)?, buckets.clone())))
            .collect();
        histograms.dedup_by_key(|(at, _)| *at);
        series.push(Series { labels: one.labels.clone(), samples, histograms });
    }
    series
}

/// The increments of a histogram, of samples at scrapes. The classic histogram is read where there is one, else the native one.
///
/// When anything falls, some series have begun anew or are gone: which, their sum does not tell, so that this scrape is only
/// the base of the next increment. None when series with different buckets were added.
#[must_use]
pub(super) fn distribution(values: &[Series], window: &Window<'_>) -> Option<MetricSamples> {
    let mut counted: BTreeMap<(&str, String), BTreeMap<i64, Counted>> = BTreeMap::new();
    let mut texts = TargetTexts::of(window);
    for one in values {
        let Some(pod) = pod_of(one, window) else { continue };
        let counted = counted.entry((pod, texts.text(&one.labels))).or_default();
        if let Some(le) = one.labels.get("le").and_then(|le| le.parse().ok()) {
            for &(at, value) in one.samples.iter().filter(|(_, value)| is_count(*value)) {
                counted.entry(at).or_default().below.push((le, value));
            }
        }
        for (at, buckets) in &one.histograms {
            counted.entry(*at).or_default().native.clone_from(buckets);
        }
    }
    let mut samples = MetricSamples::default();
    for ((pod, target), counted) in counted {
        let scrapes = counted.iter().map(|(at, counted)| Some((*at, counted.buckets()?)));
        let scrapes = scrapes.collect::<Option<Vec<_>>>()?;
        let increments: Vec<_> = scrapes
            .iter()
            .zip(scrapes.iter().skip(1))
            .filter(|((from, _), (to, _))| *to > window.since && remembered(*from, *to, window.memory))
            .map(|((from, before), (to, now))| {
                let buckets = growth(before, now).unwrap_or_default();
                let total = buckets.iter().map(|bucket| bucket.count).sum();
                Increment { from: *from, to: *to, events: 0.0, total, buckets }
            })
            .collect();
        samples.pods.entry(pod.to_owned()).or_default().insert(target, increments);
    }
    Some(samples)
}

/// What a target had counted.
#[derive(Default)]
struct Counted {
    /// Up to each bound.
    below: Vec<(f64, f64)>,
    native: Vec<Bucket>,
}

impl Counted {
    /// None when less is counted below a higher bound: it is not a bound of all series.
    fn buckets(&self) -> Option<Vec<Bucket>> {
        let mut below = self.below.clone();
        below.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (bounds, counts): (Vec<_>, Vec<_>) = below.into_iter().unzip();
        let most = counts.iter().copied().fold(0.0, f64::max);
        let falls = counts.windows(2).any(|pair| pair[1] < pair[0] - FALLS * most);
        (!falls).then(|| classic_buckets(&bounds, &counts).unwrap_or_else(|_| self.native.clone()))
    }
}

/// What was counted in between, bucket by bucket; None when something has fallen or the buckets are others. A bucket of a
/// native histogram that was not there had counted nothing.
fn growth(before: &[Bucket], now: &[Bucket]) -> Option<Vec<Bucket>> {
    let same =
        |a: &Bucket, b: &Bucket| a.lower.total_cmp(&b.lower).is_eq() && a.upper.total_cmp(&b.upper).is_eq();
    let mut before = before.iter().peekable();
    let mut grown = Vec::with_capacity(now.len());
    for bucket in now {
        let then = before.next_if(|then| same(then, bucket)).map_or(0.0, |then| then.count);
        if bucket.count < then || !is_count(bucket.count) {
            return None;
        }
        grown.push(Bucket { count: bucket.count - then, ..*bucket });
    }
    before.next().is_none().then_some(grown)
}

/// In ms, if samples of that time are asked for.
#[allow(clippy::cast_possible_truncation, reason = "a cast saturates")]
fn time_of(seconds: f64, window: &Window<'_>) -> Option<i64> {
    let at = (seconds * 1_000.0).round() as i64;
    (at > window.since.saturating_sub(window.memory) && at <= window.until).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: i64 = 15_000;
    const MEMORY: i64 = 37_500;

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

    /// What is seen of a target that was scraped every third second of a step: sums by bound, and when that was.
    fn histogram(pod: &str, counts: &[&[(f64, f64)]]) -> (Vec<Series>, Series) {
        let mut values: BTreeMap<String, Vec<(i64, f64)>> = BTreeMap::new();
        let mut times = Vec::new();
        // Two moments for each scrape, as they are asked for.
        for (n, below) in (1_i64..).zip(counts) {
            for moment in [2 * n, 2 * n + 1] {
                for (le, count) in *below {
                    values.entry(le.to_string()).or_default().push((moment * STEP / 2, *count));
                }
                #[allow(clippy::cast_precision_loss)]
                times.push((moment * STEP / 2, (n * STEP - 3_000) as f64 / 1_000.0));
            }
        }
        let labels = |le: Option<&str>| {
            let labels = [("pod", Some(pod)), ("job", Some("pods")), ("le", le)].into_iter();
            labels.filter_map(|(label, value)| Some((label.to_owned(), value?.to_owned()))).collect()
        };
        let values = values.iter().map(|(le, samples)| Series {
            labels: labels(Some(le)),
            samples: samples.clone(),
            ..Series::default()
        });
        (values.collect(), Series { labels: labels(None), samples: times, ..Series::default() })
    }

    const INF: f64 = f64::INFINITY;

    /// From, to (in scrapes) and the counts of the only target's buckets.
    fn grown(values: &[Series], times: &Series, window: &Window<'_>) -> Vec<(i64, i64, Vec<f64>)> {
        let samples = distribution(&at_scrapes(values, std::slice::from_ref(times), window), window).unwrap();
        let increments = samples.pods["a"]["{job=\"pods\"}"].iter();
        increments
            .map(|i| {
                assert_eq!(i.total.to_bits(), i.buckets.iter().map(|b| b.count).sum::<f64>().to_bits());
                let scrape = |at: i64| (at + 3_000) / STEP;
                (scrape(i.from), scrape(i.to), i.buckets.iter().map(|b| b.count).collect())
            })
            .collect()
    }

    #[test]
    fn sums_of_series_with_different_buckets_are_no_histogram() {
        // Of one route 50, 90 and 100 below 0.1, 0.5 and any; of another 10 below 0.2.
        let mixed: &[(f64, f64)] = &[(0.1, 50.0), (0.2, 10.0), (0.5, 90.0), (INF, 110.0)];
        let (values, times) = histogram("a", &[mixed, mixed]);
        let all = window(0, 3 * STEP);
        let read = |values: &[Series]| {
            distribution(&at_scrapes(values, std::slice::from_ref(&times), &all), &all).is_some()
        };
        assert!(!read(&values));
        // Read while it was counted.
        let near: &[(f64, f64)] = &[(0.1, 50.0), (0.5, 49.0), (INF, 110.0)];
        assert!(read(&histogram("a", &[near, near]).0));
    }

    #[test]
    fn of_a_histogram_each_scrape_is_read_once_and_bucket_by_bucket() {
        let (values, times) = histogram(
            "a",
            &[
                &[(0.1, 5.0), (0.5, 7.0), (INF, 8.0)],
                &[(0.1, 9.0), (0.5, 12.0), (INF, 13.0)],
                &[(0.1, 9.0), (0.5, 14.0), (INF, 19.0)],
            ],
        );
        let all = window(0, 9 * STEP);
        assert_eq!(grown(&values, &times, &all), [(1, 2, vec![4.0, 1.0, 0.0]), (2, 3, vec![0.0, 2.0, 4.0])]);
        let buckets = distribution(&at_scrapes(&values, std::slice::from_ref(&times), &all), &all).unwrap();
        let bounds: Vec<_> = buckets.pods["a"]["{job=\"pods\"}"][0].buckets.iter().map(|b| b.upper).collect();
        assert_eq!(bounds, [0.1, 0.5, INF]);
        // The scrape before `since` is the base of the first, what is scraped after `until` belongs to the next window.
        assert_eq!(grown(&values, &times, &window(2 * STEP, 9 * STEP)), [(2, 3, vec![0.0, 2.0, 4.0])]);
        assert_eq!(grown(&values, &times, &window(0, 2 * STEP)), [(1, 2, vec![4.0, 1.0, 0.0])]);
        assert!(at_scrapes(&values, &[], &all).is_empty());
    }

    #[test]
    fn a_histogram_that_falls_or_changes_is_only_a_base() {
        let (values, times) = histogram(
            "a",
            &[
                &[(0.1, 5.0), (INF, 8.0)],
                // One bucket has fallen though the sum has grown.
                &[(0.1, 2.0), (INF, 30.0)],
                &[(0.1, 4.0), (INF, 33.0)],
                &[(0.1, 4.0), (0.5, 7.0), (INF, 40.0)],
                &[(0.1, 4.0), (0.5, 8.0), (INF, 41.0)],
            ],
        );
        assert_eq!(
            grown(&values, &times, &window(0, 9 * STEP)),
            [(1, 2, vec![]), (2, 3, vec![2.0, 1.0]), (3, 4, vec![]), (4, 5, vec![0.0, 1.0, 0.0]),]
        );
    }

    #[test]
    fn a_native_histogram_is_read_where_there_is_no_classic_one() {
        let native = |counts: &[(f64, f64)]| -> Vec<Bucket> {
            counts.iter().map(|&(lower, count)| Bucket { lower, upper: 2.0 * lower, count }).collect()
        };
        let series = |histograms: Vec<(i64, Vec<Bucket>)>| Series {
            labels: [("pod", "a"), ("job", "pods")].into_iter().collect(),
            histograms,
            ..Series::default()
        };
        let (classic, times) = histogram(
            "a",
            &[&[(0.5, 1.0), (INF, 1.0)], &[(0.5, 2.0), (INF, 4.0)], &[(0.5, 2.0), (INF, 5.0)]],
        );
        let histograms = vec![
            (STEP, native(&[(0.25, 10.0)])),
            // A bucket is born.
            (2 * STEP, native(&[(0.25, 11.0), (1.0, 2.0)])),
            (3 * STEP, native(&[(0.25, 11.0), (1.0, 1.0)])),
        ];
        let native = series(histograms);
        let all = window(0, 9 * STEP);
        assert_eq!(
            grown(std::slice::from_ref(&native), &times, &all),
            [(1, 2, vec![1.0, 2.0]), (2, 3, vec![])]
        );
        let both: Vec<_> = classic.into_iter().chain([native]).collect();
        assert_eq!(grown(&both, &times, &all), [(1, 2, vec![1.0, 2.0]), (2, 3, vec![0.0, 1.0])]);
    }
}
