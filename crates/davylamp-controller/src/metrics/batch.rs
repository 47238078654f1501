//! All metrics of one Rollout, asked at one time: a batch is whole or it is an error.
//!
//! Takes what is wanted and until when, gives the increments. Each text is asked once, two at a time; the first failure ends
//! the batch.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use davylamp_api::scalar::Duration;
use davylamp_engine::observed::{Increment, MetricSamples, Samples};
use davylamp_engine::{MetricQuery, Query};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::cohorts::Sides;
use super::histograms::{at_scrapes, distribution};
use super::history::is_too_wide;
use super::increments::{NoRatio, Window, increments, of_counter, of_gauge, target_labels};
use super::sampler::{Wanted, has_many_series};
use super::scope::{Bound, Questions, Scope, ScopeError, Targets, bind, bind_sides, in_milliseconds};
use super::{MetricsApi, QueryError, Series};

const AT_ONCE: usize = 2;
/// Moments of one window, at most one a second.
const MOST_ROUNDS: usize = 600;
/// Bounds of a histogram that are told.
const MOST_BOUNDS: usize = 20;
/// Buckets of a classic histogram, of all targets of a pod.
const MOST_BUCKETS: usize = 200;
/// Series of one target of a gateway, which counts by code, method and protocol for both cohorts.
const MOST_OF_GATEWAY: usize = 400;
/// So far back scrapes are looked for, to see how far apart they are.
const GAPS_MS: i64 = 600_000;

/// Which metric could not be read, and why.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(super) source: String,
    pub(super) metric: String,
    pub(super) error: Box<QueryError>,
    /// The metrics that were read as sums by then.
    pub(super) summed: BTreeSet<String>,
}

impl Failure {
    /// Not of one metric, but of all.
    pub(super) fn of_source(wanted: &Wanted, error: QueryError) -> Self {
        let metric = wanted.query.metrics.keys().next().cloned().unwrap_or_default();
        let source = wanted.query.source.clone();
        Self { source, metric, error: error.into(), summed: BTreeSet::new() }
    }

    /// A shorter window may be answered.
    #[must_use]
    pub fn is_too_wide(&self) -> bool {
        is_too_wide(&self.error) || self.error.has_too_many_series()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metric {}: MetricSource {}: {}", self.metric, self.source, self.error)
    }
}

/// How far before `since` samples are read: a target that is silent for longer is missing.
fn memory(scrape_interval_ms: i64) -> i64 {
    (scrape_interval_ms.saturating_mul(5) / 2).max(5_000)
}

/// What is asked for each metric.
pub(super) type Texts = BTreeMap<String, Text>;

/// What is asked for one.
#[derive(Debug)]
pub(super) struct Text {
    questions: Questions,
    /// For the case that there are too many series to read each.
    targets: Targets,
    /// How its series are told apart, if not by pods.
    sides: Option<Sides>,
}

/// Writes what is asked, once for many times.
pub(super) fn texts(namespace: &str, wanted: &Wanted) -> Result<Texts, Failure> {
    let Wanted { query, source } = wanted;
    let scope = Scope {
        namespace_label: source.namespace_label(),
        namespace,
        pod_label: source.pod_label(),
        pods: &query.pods,
        replica_labels: source.replica_labels(),
        enforced: source.enforced_label.as_ref(),
    };
    let text = |metric: &String, asked: &MetricQuery| -> Result<Text, ScopeError> {
        let named = query.cohorts.as_ref().ok_or(ScopeError::NoCohorts);
        let sides = match query.told.get(metric) {
            Some(told) => Some(Sides::told(told, named?, &scope)?),
            None if matches!(asked, MetricQuery::Expression { .. }) => Some(Sides::of_pods(named?, &scope)?),
            None => None,
        };
        let questions = match &sides {
            Some(sides) => bind_sides(asked, &scope, sides)?,
            None => bind(asked, &scope)?,
        };
        let told = sides.as_ref().map_or(scope.pod_label, Sides::label);
        Ok(Text { questions, targets: Targets::of(&scope, told), sides })
    };
    let of_metric = |(metric, asked): (&String, &MetricQuery)| {
        let failed = |error| Failure {
            source: query.source.clone(),
            metric: metric.clone(),
            error: QueryError::Selector(error).into(),
            summed: BTreeSet::new(),
        };
        Ok((metric.clone(), text(metric, asked).map_err(failed)?))
    };
    query.metrics.iter().map(of_metric).collect()
}

/// The increments of all metrics after [`Query::since`](davylamp_engine::Query), up to `until`, asked once; an error says which
/// metric cannot be read, and why. Only too many series are read as a sum: an answer that is too large may be one of a window
/// that is too long.
pub async fn fetch_once(
    api: &dyn MetricsApi,
    namespace: &str,
    wanted: &Wanted,
    until: i64,
) -> Result<Samples, Failure> {
    fetch(api, &texts(namespace, wanted), wanted, until, None, has_many_series).await
}

/// How far apart the scrapes of the first metric were in the ten minutes up to `until`: the median of all targets, in ms, but
/// of whole seconds. None where there are no two. What is scraped more often than each `step` may seem to be scraped less often.
pub(super) async fn gap(
    api: &dyn MetricsApi,
    texts: &Result<Texts, Failure>,
    wanted: &Wanted,
    until: i64,
    step: i64,
) -> Result<Option<i64>, Failure> {
    let texts = texts.as_ref().map_err(Clone::clone)?;
    let asked = texts
        .values()
        .find_map(|text| Some(Question { text: text.gaps(step)?, at: until, width: text.width() }));
    let Some(question) = asked else { return Ok(None) };
    let failed = |error| Failure::of_source(wanted, error);
    let series = ask(api, wanted, &question).await.map_err(failed)?;
    let most = wanted.source.limits().samples();
    if series.iter().map(|one| one.samples.len()).sum::<usize>() > most {
        return Err(failed(QueryError::TooManySamples(most)));
    }
    let mut gaps: Vec<i64> = series.iter().flat_map(|one| gaps(one, until)).collect();
    gaps.sort_unstable();
    let median = gaps.get(gaps.len() / 2);
    Ok(median.map(|gap| ((gap + 500) / 1_000).max(1) * 1_000))
}

/// Between the scrapes of one target, whose times are its values, in seconds.
#[allow(clippy::cast_possible_truncation, reason = "a cast saturates")]
fn gaps(times: &Series, until: i64) -> Vec<i64> {
    // The oldest moment may still show a scrape that is older.
    let in_window = |at: &i64| (until.saturating_sub(2 * GAPS_MS)..=until).contains(at);
    let times = times.samples.iter().map(|(_, seconds)| (seconds * 1_000.0).round() as i64);
    let times: BTreeSet<i64> = times.filter(in_window).collect();
    times.iter().zip(times.iter().skip(1)).map(|(before, at)| at - before).collect()
}

/// The increments of all metrics after `since`, up to `until`. What is `known` of the same, and costs a question a round, is
/// not asked again. A counter with too many series to read each is read as one sum for each target.
pub(super) async fn fetch(
    api: &dyn MetricsApi,
    texts: &Result<Texts, Failure>,
    wanted: &Wanted,
    until: i64,
    known: Option<&Samples>,
    too_many: fn(&QueryError) -> bool,
) -> Result<Samples, Failure> {
    let mut summed = wanted.query.summed.clone();
    let may_be = |metric: &str| {
        let text = texts.as_ref().ok().and_then(|texts| texts.get(metric));
        let is_counter =
            |text: &Text| matches!(text.questions, Questions::Ratio { .. } | Questions::Counter(_));
        wanted.query.summable.contains(metric) && text.is_some_and(is_counter)
    };
    loop {
        match fetch_as(api, texts, wanted, until, known, &summed).await {
            Err(Failure { metric, error, .. })
                if too_many(&error) && may_be(&metric) && !summed.contains(&metric) =>
            {
                summed.insert(metric);
            }
            done => return done,
        }
    }
}

/// The same, with sums of these metrics.
async fn fetch_as(
    api: &dyn MetricsApi,
    texts: &Result<Texts, Failure>,
    wanted: &Wanted,
    until: i64,
    known: Option<&Samples>,
    summed: &BTreeSet<String>,
) -> Result<Samples, Failure> {
    let Wanted { query, source } = wanted;
    let failed = |metric: &str, error: QueryError| Failure {
        source: query.source.clone(),
        metric: metric.to_owned(),
        error: error.into(),
        summed: summed.clone(),
    };
    let window = Window {
        pod_label: source.pod_label(),
        replica_labels: source.replica_labels(),
        since: query.since,
        until,
        memory: memory(query.scrape_interval_ms),
        rest: false,
        sums: false,
    };
    let mut samples = Samples { since: query.since, until, summed: summed.clone(), ..Samples::default() };
    if query.pods.is_empty() {
        return Ok(samples);
    }

    let texts = texts.as_ref().map_err(Clone::clone)?;
    let most = source.limits().samples();
    // Owned: a stream of borrowed items is not `Send` for every lifetime.
    let known_until = known.map_or(query.since, |known| known.until);
    let asked = |metric, text| asked_for(text, query, &window, known_until, summed.contains(metric));
    let pairs: Vec<_> = texts.iter().map(|(metric, text)| (metric, text, asked(metric, text))).collect();
    let mut questions = BTreeMap::new();
    for (metric, _, pair) in &pairs {
        for question in pair {
            questions.entry(question.clone()).or_insert_with(|| (*metric).clone());
        }
    }

    let answers = stream::iter(questions)
        .map(|(question, metric)| async move {
            let series = ask(api, wanted, &question).await.map_err(|error| failed(&metric, error))?;
            Ok((question, metric, series))
        })
        .buffer_unordered(AT_ONCE);
    let (answers, _) = answers
        .try_fold((BTreeMap::new(), 0), |(mut answers, mut count), (question, metric, series)| async move {
            count += series.iter().map(|one| one.samples.len() + one.histograms.len()).sum::<usize>();
            if count > most {
                return Err(failed(&metric, QueryError::TooManySamples(most)));
            }
            answers.insert(question, series);
            Ok((answers, count))
        })
        .await?;

    for (metric, texts, asked) in pairs {
        let of = |n: usize| asked.get(n).and_then(|one| answers.get(one)).map_or(&[][..], Vec::as_slice);
        let as_pods = |n: usize| match &texts.sides {
            Some(sides) => Cow::Owned(sides.as_pods(of(n), window.pod_label)),
            None => Cow::Borrowed(of(n)),
        };
        let window = Window { sums: summed.contains(metric), ..window };
        // Of counters the times are asked for last.
        let counted = |n: usize| {
            if window.sums {
                at_scrapes(&as_pods(n), &as_pods(asked.len() - 1), &window).into()
            } else {
                as_pods(n)
            }
        };
        let increments = match &texts.questions {
            Questions::Expression(_) => {
                let values = asked.iter().filter_map(|one| Some((one.at, answers.get(one)?)));
                let new = numbers(values).map_err(|error| failed(metric, error))?;
                let old = known.and_then(|known| known.metrics.get(metric)).and_then(alone);
                let old = old.into_iter().flatten().filter(|one| one.to > query.since).cloned();
                as_alone(old.chain(new).collect())
            }
            Questions::Counter(_) => of_counter(&counted(0), &window),
            Questions::Gauge(_) => of_gauge(&as_pods(0), &window),
            Questions::Distribution(_) => {
                distribution(&at_scrapes(&as_pods(0), &as_pods(1), &window), &window)
                    .ok_or_else(|| failed(metric, QueryError::MixedBuckets))?
            }
            Questions::Ratio { buckets, .. } => {
                let window = Window { rest: buckets.is_some(), ..window };
                match increments(&counted(0), &counted(1), &window) {
                    Ok(increments) => increments,
                    Err(NoRatio::Unmatched(error)) => {
                        return Err(failed(metric, QueryError::Unmatched(error)));
                    }
                    Err(NoRatio::NoBucket) => {
                        let bounds = match buckets {
                            Some(buckets) => {
                                let text = buckets.over(window.memory);
                                bounds(api, wanted, Question { text, at: until, width: texts.width() }).await
                            }
                            None => Vec::new(),
                        };
                        return Err(failed(metric, QueryError::NoBucket(bounds)));
                    }
                }
            }
        };
        samples.metrics.insert(metric.clone(), increments);
    }
    Ok(samples)
}

impl Text {
    /// So many series a pod may have, if that is not the source's to say.
    fn width(&self) -> Option<usize> {
        self.sides.as_ref().map(|_| MOST_OF_GATEWAY)
    }

    /// The question for the times of its scrapes.
    fn gaps(&self, step: i64) -> Option<String> {
        match &self.questions {
            Questions::Ratio { total: one, .. } | Questions::Counter(one) => {
                Some(self.targets.times(one, GAPS_MS, step))
            }
            Questions::Distribution(folded) => Some(folded.times(GAPS_MS, step)),
            Questions::Gauge(_) | Questions::Expression(_) => None,
        }
    }
}

/// The queries of one metric; of an expression, those after what is known.
fn asked_for(text: &Text, query: &Query, window: &Window<'_>, known_until: i64, sums: bool) -> Vec<Question> {
    let until = window.until;
    let range = until.saturating_sub(query.since).saturating_add(window.memory);
    // So that each scrape is the newest at one of these moments; the last of them lies after `until`.
    let step = (query.scrape_interval_ms / 2).max(1);
    let (longer, after) = (range.saturating_add(step), until.saturating_add(step));
    let width = text.width();
    let raw = |one: &Bound| Question { text: one.over(range), at: until, width };
    let moments = |text: String| Question { text, at: after, width };
    let sum = |one: &Bound| moments(text.targets.sums(one, longer, step));
    let times = |one: &Bound| moments(text.targets.times(one, longer, step));
    match &text.questions {
        Questions::Ratio { events, total, .. } if sums => vec![sum(events), sum(total), times(total)],
        Questions::Counter(one) if sums => vec![sum(one), times(one)],
        Questions::Ratio { events, total, .. } => vec![raw(events), raw(total)],
        Questions::Counter(one) | Questions::Gauge(one) => vec![raw(one)],
        Questions::Expression(one) => {
            let rounds = ends_of_rounds(query.since, until, query.scrape_interval_ms).into_iter();
            let new = rounds.filter(|at| *at > known_until);
            new.map(|at| Question { text: one.at_once(), at, width: Some(usize::MAX) }).collect()
        }
        Questions::Distribution(folded) => {
            let buckets = Some(width.unwrap_or(MOST_BUCKETS));
            let values = Question { width: buckets, ..moments(folded.values(longer, step)) };
            vec![values, moments(folded.times(longer, step))]
        }
    }
}

/// The moments at which an expression is asked for: those at which the engine looks.
fn ends_of_rounds(since: i64, until: i64, interval: i64) -> Vec<i64> {
    let end = |n: i64| since.saturating_add(n.saturating_mul(interval.max(1_000)));
    (1..).map(end).take_while(|end| *end <= until).take(MOST_ROUNDS).collect()
}

/// The values of an expression; where there is none, nothing.
fn numbers<'s>(values: impl Iterator<Item = (i64, &'s Vec<Series>)>) -> Result<Vec<Increment>, QueryError> {
    let mut numbers = Vec::new();
    for (at, series) in values {
        if series.len() > 1 {
            return Err(QueryError::NotOneNumber(series.len()));
        }
        let value = series.first().and_then(|one| one.samples.last()).map(|(_, value)| *value);
        let value = value.filter(|value| !value.is_nan()).map(|value| value.clamp(f64::MIN, f64::MAX));
        numbers.extend(value.map(|events| Increment {
            from: at,
            to: at,
            events,
            total: 1.0,
            buckets: Vec::new(),
        }));
    }
    Ok(numbers)
}

/// What is of no pod and of no target.
fn as_alone(increments: Vec<Increment>) -> MetricSamples {
    let alone = BTreeMap::from([(String::new(), increments)]);
    MetricSamples { pods: BTreeMap::from([(String::new(), alone)]) }
}

fn alone(samples: &MetricSamples) -> Option<&Vec<Increment>> {
    samples.pods.get("")?.get("")
}

/// One query.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    text: String,
    /// The time of its evaluation.
    at: i64,
    /// So many series a pod may have, if that is not the source's to say.
    width: Option<usize>,
}

/// The bounds that there are, for a person who has written another one; none if that cannot be said.
async fn bounds(api: &dyn MetricsApi, wanted: &Wanted, buckets: Question) -> Vec<Duration> {
    let series = ask(api, wanted, &buckets).await.unwrap_or_default();
    let histogram = buckets.text.split("_bucket{").next().unwrap_or_default();
    let unit = if in_milliseconds(histogram) { 1.0 } else { 1_000.0 };
    let ms = series.iter().filter_map(|one| one.labels.get("le")?.parse::<f64>().ok()).map(|le| le * unit);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 1e9")]
    let bounds: BTreeSet<u64> = ms
        .filter(|ms| (1.0..=1e9).contains(ms) && (ms - ms.round()).abs() < 1e-6)
        .map(|ms| ms.round() as u64)
        .collect();
    bounds.into_iter().take(MOST_BOUNDS).map(Duration::from_millis).collect()
}

async fn ask(api: &dyn MetricsApi, wanted: &Wanted, question: &Question) -> Result<Vec<Series>, QueryError> {
    let limits = wanted.source.limits();
    let answer = timeout(limits.timeout(), api.query(&wanted.source, &question.text, question.at))
        .await
        .map_err(|_| QueryError::Timeout)??;
    if answer.partial {
        return Err(QueryError::Partial);
    }
    let pods: BTreeSet<_> =
        answer.series.iter().map(|one| one.labels.get(wanted.source.pod_label())).collect();
    let (pods, series) = (pods.len(), answer.series.len());
    let most = question.width.unwrap_or_else(|| limits.series_per_pod());
    if series > pods.saturating_mul(most) {
        let label = widest(&answer.series, wanted);
        return Err(QueryError::TooManySeries { series, pods, most, label });
    }
    Ok(answer.series)
}

/// The label with the most values, among those that tell series of one target apart.
fn widest(series: &[Series], wanted: &Wanted) -> Option<String> {
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (label, value) in series.iter().flat_map(|one| one.labels.iter()) {
        values.entry(label).or_default().insert(value);
    }
    let scope = [wanted.source.pod_label(), wanted.source.namespace_label(), "__name__"];
    let of_target: Vec<_> = target_labels(wanted.source.replica_labels()).collect();
    let free = values.iter().filter(|(label, _)| !scope.contains(*label) && !of_target.contains(*label));
    free.filter(|(_, values)| values.len() > 1)
        .max_by_key(|(_, values)| values.len())
        .map(|(label, _)| (*label).to_owned())
}

#[cfg(test)]
mod tests;
