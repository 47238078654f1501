//! The sampler against a source that the test drives, in virtual time.

use std::collections::BTreeSet;

use davylamp_api::Instant;
use davylamp_api::source::{EnforcedLabel, Limits};
use davylamp_engine::observed::{Increment, MetricSamples};
use davylamp_engine::{HistoryQuery, MetricQuery};
use futures::future::BoxFuture;
use promql_parser::parser::{self, Expr};

use super::*;
use crate::metrics::{Answer, QueryError, Series};

const T0: i64 = 1_772_366_400_000;
const SECOND: i64 = 1_000;
const INTERVAL: i64 = 15 * SECOND;

/// Counts 10 requests a scrape for every pod; each address behaves as it is told.
#[derive(Default)]
struct FakeSource {
    asked: Mutex<Vec<Asked>>,
    behaviour: Mutex<BTreeMap<String, Behaviour>>,
}

#[derive(Clone, Debug)]
struct Asked {
    /// Seconds after T0.
    time: i64,
    url: String,
    text: String,
}

#[derive(Clone, Copy, Default)]
enum Behaviour {
    #[default]
    Answers,
    Refuses,
    Warns,
    NeverAnswers,
    TakesSeconds(u64),
    Floods,
    /// Of a longer window than so many ms there are too many samples.
    RefusesLonger(i64),
    /// Its answers to the same are too large, but not those of sums.
    IsLarge(i64),
    /// Nine of ten are below half a second.
    Buckets,
    /// So many seconds apart; with 0 there is nothing.
    IsScrapedEach(i64),
    /// To whatever expression.
    IsOne,
}

impl FakeSource {
    fn set(&self, url: &str, behaviour: Behaviour) {
        self.behaviour.lock().unwrap().insert(url.to_owned(), behaviour);
    }

    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// Times of questions, in seconds after T0.
    fn take_times(&self) -> Vec<i64> {
        self.take().iter().map(|asked| asked.time).collect()
    }
}

impl MetricsApi for FakeSource {
    fn query<'a>(
        &'a self,
        source: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        let url = source.url.clone();
        let behaviour = self.behaviour.lock().unwrap().get(&url).copied().unwrap_or_default();
        let asked = Asked { time: at_ms.saturating_sub(T0) / SECOND, url, text: promql.to_owned() };
        self.asked.lock().unwrap().push(asked);
        async move {
            let one = |pod: &str, code: &str| Series {
                labels: [("pod", pod), ("code", code)].into_iter().collect(),
                samples: (0..100_u32)
                    .map(|n| (T0 + i64::from(n) * INTERVAL, f64::from(n * 10)))
                    .filter(|&(at, _)| at <= at_ms)
                    .collect(),
                ..Series::default()
            };
            let mut answer = Answer { series: vec![one("a", "200")], partial: false };
            match behaviour {
                Behaviour::Refuses => return Err(QueryError::Http(401)),
                Behaviour::Warns => answer.partial = true,
                Behaviour::NeverAnswers => std::future::pending().await,
                Behaviour::TakesSeconds(seconds) => sleep(Duration::from_secs(seconds)).await,
                Behaviour::Buckets if promql.contains("_bucket{") => {
                    let Expr::MatrixSelector(selector) = parser::parse(promql).unwrap() else {
                        panic!("{promql}")
                    };
                    let matchers = selector.vs.matchers.matchers;
                    let there = |le: &&str| matchers.iter().all(|m| m.name != "le" || m.is_match(le));
                    let bucket = |le: &str| {
                        let mut bucket = one("a", "200");
                        bucket.labels = bucket.labels.iter().chain([("le", le)]).collect();
                        bucket.samples.iter_mut().for_each(|(_, value)| *value *= 0.9);
                        bucket
                    };
                    answer.series = ["0.07", "0.5", "1.0", "+Inf"]
                        .iter()
                        .filter(|le| there(le))
                        .map(|le| bucket(le))
                        .collect();
                }
                Behaviour::RefusesLonger(ms) if range(promql) > ms => {
                    return Err(QueryError::TooManySamples(500_000));
                }
                Behaviour::IsLarge(ms) if range(promql) > ms && !promql.contains(" by (") => {
                    return Err(QueryError::TooLarge(4 << 20));
                }
                Behaviour::IsScrapedEach(0) => answer.series.clear(),
                Behaviour::IsScrapedEach(seconds) => {
                    let before = |at: i64| at - (at - T0).rem_euclid(seconds * SECOND);
                    let moments = (0..300).map(|n| at_ms - n * 2 * SECOND).rev();
                    #[allow(clippy::cast_precision_loss, reason = "small")]
                    let time = |at: i64| (at, before(at) as f64 / 1_000.0);
                    for one in &mut answer.series {
                        if promql.starts_with("max by") {
                            one.samples = moments.clone().map(time).collect();
                        } else {
                            one.samples.retain(|(at, _)| before(*at) == *at);
                        }
                    }
                }
                Behaviour::Answers
                | Behaviour::Buckets
                | Behaviour::RefusesLonger(_)
                | Behaviour::IsLarge(_) => {}
                Behaviour::IsOne => {
                    let one = Series { samples: vec![(at_ms, 1.0)], ..Series::default() };
                    return Ok(Answer { series: vec![one], partial: false });
                }
                Behaviour::Floods => answer.series = (0..51).map(|n| one("a", &n.to_string())).collect(),
            }
            Ok(answer)
        }
        .boxed()
    }
}

/// What a text asks for, in ms.
fn range(promql: &str) -> i64 {
    let (_, range) = promql.rsplit_once('[').unwrap();
    range.split_once("ms").unwrap().0.parse().unwrap()
}

struct Scene {
    api: Arc<FakeSource>,
    sampler: Sampler,
    clock: Clock,
    woken: Arc<Mutex<Vec<Key>>>,
}

impl Scene {
    /// At T0.
    fn new() -> Self {
        let api = Arc::new(FakeSource::default());
        let clock = Clock::virtual_from(Instant::from_millisecond(T0).unwrap());
        let woken = Arc::<Mutex<Vec<Key>>>::default();
        let queue = Arc::clone(&woken);
        let wake = move |key: &Key| queue.lock().unwrap().push(key.clone());
        let sampler = Sampler::new(Arc::clone(&api) as Arc<dyn MetricsApi>, clock, wake);
        Self { api, sampler, clock, woken }
    }

    /// Lets time pass until so many seconds after T0, and all that is due then happen.
    async fn until(&self, seconds: i64) {
        let left = T0 + seconds * SECOND - self.clock.now_ms();
        sleep(Duration::from_millis(left.unsigned_abs() + 1)).await;
    }

    fn woken(&self) -> usize {
        std::mem::take(&mut *self.woken.lock().unwrap()).len()
    }
}

fn key(namespace: &str) -> Key {
    Key { namespace: namespace.to_owned(), name: "web".to_owned() }
}

/// Of a source and its address, from so many seconds after T0, one metric of one pod.
fn wanted(source: &str, since: i64) -> Wanted {
    let ratio = MetricQuery::Counters { events: "errors".to_owned(), total: "requests".to_owned() };
    let query = Query {
        source: source.to_owned(),
        since: T0 + since * SECOND,
        pods: BTreeSet::from(["a".to_owned()]),
        metrics: BTreeMap::from([("ratio".to_owned(), ratio)]),
        summable: BTreeSet::new(),
        summed: BTreeSet::new(),
        scrape_interval_ms: INTERVAL,
        delay_ms: INTERVAL,
        ..Query::default()
    };
    let source = MetricSourceSpec {
        url: source.to_owned(),
        allowed_namespaces: vec!["*".to_owned()],
        ..MetricSourceSpec::default()
    };
    Wanted { query, source }
}

#[tokio::test(start_paused = true)]
async fn asks_at_once_and_then_when_a_round_can_be_read() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    assert_eq!(scene.sampler.samples(&key("shop")), None);
    scene.until(101).await;
    // Until now - delay; both selectors.
    let asked = scene.api.take();
    assert_eq!(asked.iter().map(|a| a.time).collect::<Vec<_>>(), [85, 85]);
    assert_eq!(asked[0].text, r#"errors{namespace="shop",pod=~"a[a-z0-9]{5}"}[92501ms]"#);
    assert_eq!(asked[1].text, r#"requests{namespace="shop",pod=~"a[a-z0-9]{5}"}[92501ms]"#);
    assert_eq!(scene.woken(), 1);
    let samples = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((samples.since, samples.until), (T0 + 30_000, T0 + 85_001));
    let increments = &samples.metrics["ratio"].pods["a"]["{}"];
    let spans: Vec<_> = increments.iter().map(|i| ((i.from - T0) / 1000, (i.to - T0) / 1000)).collect();
    assert_eq!(spans, [(30, 45), (45, 60), (60, 75)]);
    assert!(increments.iter().all(|i| (i.events, i.total) == (10.0, 10.0)));

    // The same again changes nothing.
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    scene.until(104).await;
    assert_eq!(scene.api.take_times(), [] as [i64; 0]);
    // Ends of rounds: 90, 105, 120 s; each is read a delay later.
    scene.until(136).await;
    assert_eq!(scene.api.take_times(), [90, 90, 105, 105, 120, 120]);
    assert_eq!(scene.woken(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_round_of_an_expression_is_asked_for_once_though_rounds_are_short() {
    let scene = Scene::new();
    scene.api.set("prom", Behaviour::IsOne);
    let mut wanted = wanted("prom", 0);
    wanted.query.scrape_interval_ms = SECOND;
    wanted.query.cohorts = Some(davylamp_engine::Named::of("web", "new", "old", None));
    let query = "sum(rate(e{{{canary}}}[1m]))".to_owned();
    wanted.query.metrics = BTreeMap::from([("ratio".to_owned(), MetricQuery::Expression { query })]);
    scene.sampler.want(&key("shop"), Some(wanted.clone()));
    // The engine moves `since` once a minute.
    for minute in 1..=3 {
        scene.until(60 * minute + 15).await;
        let since = 60 * (minute - 1);
        let (times, samples) = (scene.api.take_times(), scene.sampler.samples(&key("shop")).unwrap());
        assert_eq!(times, (since + 1..=since + 60).collect::<Vec<_>>());
        let rounds: Vec<_> =
            samples.metrics["ratio"].pods[""][""].iter().map(|i| (i.to - T0) / SECOND).collect();
        assert_eq!(rounds, times);
        wanted.query.since = T0 + 60 * minute * SECOND;
        scene.sampler.want(&key("shop"), Some(wanted.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn waits_until_there_is_something_to_read() {
    let scene = Scene::new();
    scene.sampler.want(&key("shop"), Some(wanted("prom", 0)));
    scene.until(29).await;
    assert_eq!((scene.api.take_times().len(), scene.woken()), (0, 0));
    scene.until(30).await;
    assert_eq!((scene.api.take_times(), scene.woken()), (vec![15, 15], 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_asked_for_at_once_and_hides_older_answers() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 0)));
    scene.until(102).await;
    assert!(scene.sampler.samples(&key("shop")).is_some());
    let mut more = wanted("prom", 0);
    more.query.pods.insert("b".to_owned());
    scene.sampler.want(&key("shop"), Some(more));
    assert_eq!(scene.sampler.samples(&key("shop")), None);
    scene.api.take();
    scene.until(103).await;
    let asked = scene.api.take();
    assert!(
        asked.len() == 2 && asked.iter().all(|a| a.text.contains("pod=~\"a[a-z0-9]{5}|b[a-z0-9]{5}\"")),
        "{asked:?}"
    );
    assert!(scene.sampler.samples(&key("shop")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_later_since_keeps_the_answer_and_the_rhythm() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 0)));
    scene.until(102).await;
    let before = scene.sampler.samples(&key("shop"));
    scene.sampler.want(&key("shop"), Some(wanted("prom", 75)));
    scene.api.take();
    assert!(before.is_some());
    scene.until(104).await;
    assert_eq!(scene.sampler.samples(&key("shop")), before);
    assert_eq!(scene.api.take_times().len(), 0);
    scene.until(106).await;
    assert_eq!(scene.api.take_times(), [90, 90]);
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().since, T0 + 75_000);
    // An earlier one is another question.
    scene.sampler.want(&key("shop"), Some(wanted("prom", 60)));
    assert_eq!(scene.sampler.samples(&key("shop")), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_what_is_no_longer_wanted_is_not_kept() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("prom", Behaviour::TakesSeconds(5));
    scene.sampler.want(&key("shop"), Some(wanted("prom", 0)));
    scene.until(102).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    scene.until(106).await;
    assert_eq!((scene.sampler.samples(&key("shop")), scene.woken()), (None, 0));
    scene.until(108).await;
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().since, T0 + 30_000);
    assert_eq!(scene.woken(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_who_wants_nothing() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("prom", Behaviour::TakesSeconds(5));
    let mut many = wanted("prom", 0);
    for n in 0..5 {
        let ratio = MetricQuery::Counters { events: format!("errors_{n}"), total: "requests".to_owned() };
        many.query.metrics.insert(format!("ratio-{n}"), ratio);
    }
    scene.sampler.want(&key("shop"), Some(many));
    scene.until(101).await;
    assert_eq!(scene.api.take().len(), 2, "two at a time");
    scene.sampler.want(&key("shop"), None);
    scene.until(1000).await;
    assert_eq!(scene.api.take_times().len(), 0);
    assert_eq!((scene.sampler.samples(&key("shop")), scene.woken()), (None, 0));
    assert!(scene.sampler.inner.lock().sources.is_empty(), "its task has ended");
    // And it begins anew.
    scene.sampler.want(&key("shop"), Some(wanted("prom", 900)));
    scene.until(1007).await;
    assert_eq!((scene.api.take_times().len(), scene.woken()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn equal_texts_of_a_rollout_are_asked_once() {
    let scene = Scene::new();
    scene.until(100).await;
    let mut two = wanted("prom", 0);
    let ratio = MetricQuery::Counters { events: "slow".to_owned(), total: "requests".to_owned() };
    two.query.metrics.insert("slow".to_owned(), ratio);
    scene.sampler.want(&key("shop"), Some(two));
    scene.until(101).await;
    assert_eq!(scene.api.take().len(), 3);
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().metrics.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn failure_keeps_what_was_known_and_wakes_once() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    scene.until(102).await;
    let good = scene.sampler.samples(&key("shop")).unwrap();
    scene.api.set("prom", Behaviour::Refuses);
    scene.woken();
    scene.api.take();
    scene.until(106).await;
    let failed = scene.sampler.samples(&key("shop")).unwrap();
    let (since, text) = failed.failing.clone().unwrap();
    assert_eq!(since.as_millisecond(), T0 + 105_000);
    assert_eq!(text, "metric ratio: MetricSource prom: answered HTTP 401: is the URL that of Prometheus?");
    assert_eq!((failed.until, &failed.metrics), (good.until, &good.metrics));
    assert_eq!(scene.woken(), 1);

    // It is asked again each interval, and the first failure stands.
    scene.until(151).await;
    assert_eq!(scene.api.take_times(), [90, 105, 120, 135]);
    assert_eq!(scene.woken(), 0);
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().failing.as_ref().unwrap().0, since);

    // A change of the query does not hide it.
    let mut other = wanted("prom", 90);
    other.query.pods.insert("b".to_owned());
    scene.sampler.want(&key("shop"), Some(other));
    let changed = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((changed.since, changed.until), (T0 + 90_000, T0 + 90_000));
    assert_eq!(changed.failing.as_ref().unwrap().0, since);

    scene.until(152).await;
    scene.api.set("prom", Behaviour::Answers);
    scene.until(166).await;
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().failing, None);
    assert_eq!(scene.woken(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_failure_is_seen_without_any_samples() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("prom", Behaviour::NeverAnswers);
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    scene.until(109).await;
    assert_eq!((scene.sampler.samples(&key("shop")), scene.woken()), (None, 0));
    scene.until(111).await;
    let samples = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((samples.since, samples.until), (T0 + 30_000, T0 + 30_000));
    assert!(samples.failing.as_ref().unwrap().1.ends_with("did not answer within spec.limits.timeout"));
    assert_eq!(scene.woken(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_source_delays_nobody_elses_rollouts() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("silent", Behaviour::NeverAnswers);
    for n in 0..20 {
        scene.sampler.want(&key(&format!("a{n:02}")), Some(wanted("silent", 30)));
    }
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    scene.until(101).await;
    assert!(scene.sampler.samples(&key("shop")).is_some());
    scene.until(200).await;
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().until, T0 + 180_000);
}

#[tokio::test(start_paused = true)]
async fn namespaces_take_turns() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("prom", Behaviour::TakesSeconds(1));
    for n in 0..20 {
        scene.sampler.want(
            &Key { namespace: "crowd".to_owned(), name: format!("web-{n:02}") },
            Some(wanted("prom", 30)),
        );
    }
    scene.sampler.want(&key("small"), Some(wanted("prom", 30)));
    scene.until(101).await;
    scene.until(102).await;
    assert!(scene.sampler.samples(&key("small")).is_some());
    let urls: BTreeSet<_> = scene.api.take().into_iter().map(|asked| asked.url).collect();
    assert_eq!(urls.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_pause_is_read_in_windows() {
    let scene = Scene::new();
    scene.until(1400).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 0)));
    scene.until(1401).await;
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().until, T0 + 600_000);
    scene.sampler.want(&key("shop"), Some(wanted("prom", 600)));
    scene.until(1402).await;
    assert_eq!(scene.sampler.samples(&key("shop")).unwrap().until, T0 + 1_200_000);
}

/// When increments end, in seconds after T0, of the only target.
fn ends(samples: &Samples) -> Vec<i64> {
    samples.metrics["ratio"].pods["a"]["{}"].iter().map(|i| (i.to - T0) / SECOND).collect()
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_too_wide_is_read_in_pieces() {
    let scene = Scene::new();
    scene.until(1_000).await;
    // Between two seconds, so that a question and a look at it are never at the same moment.
    sleep(Duration::from_millis(500)).await;
    scene.api.set("prom", Behaviour::RefusesLonger(120_000));
    let since = |since| {
        let mut wanted = wanted("prom", since);
        wanted.query.summable = BTreeSet::from(["ratio".to_owned()]);
        Some(wanted)
    };
    scene.sampler.want(&key("shop"), since(385));
    scene.until(1_004).await;
    // Ten minutes, five and two and a half are too many samples.
    let samples = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((samples.since, samples.until, &samples.failing), (T0 + 385_000, T0 + 460_000, &None));
    assert_eq!(ends(&samples), [390, 405, 420, 435, 450]);
    // What is known is not asked for again, though the engine has not moved `since`.
    scene.until(1_030).await;
    let samples = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((samples.since, &samples.failing), (T0 + 385_000, &None));
    assert!(samples.until >= T0 + 985_000, "{}", samples.until - T0);
    let all: Vec<i64> = (390..=984).step_by(15).collect();
    assert_eq!(ends(&samples)[..all.len()], all);
    assert!(samples.summed.is_empty());

    // The engine has read it, and does so each minute: again all since then is asked for, once a round.
    scene.sampler.want(&key("shop"), since(985));
    scene.until(1_065).await;
    scene.sampler.want(&key("shop"), since(1_045));
    scene.until(1_076).await;
    scene.api.take();
    scene.until(1_106).await;
    let seconds: BTreeSet<_> = scene.api.take().iter().map(|asked| range(&asked.text) / SECOND).collect();
    assert_eq!(seconds, BTreeSet::from([67, 82]));
    let samples = scene.sampler.samples(&key("shop")).unwrap();
    assert_eq!((samples.since, &samples.failing), (T0 + 1_045_000, &None));
    assert_eq!(ends(&samples), [1_050, 1_065, 1_080]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_becomes_sums_only_when_no_shorter_window_helps() {
    for (limit, summed) in [(60_000, false), (30_000, true)] {
        let scene = Scene::new();
        scene.until(1_000).await;
        scene.api.set("prom", Behaviour::IsLarge(limit));
        let mut wanted = wanted("prom", 385);
        wanted.query.summable = BTreeSet::from(["ratio".to_owned()]);
        scene.sampler.want(&key("shop"), Some(wanted));
        scene.until(1_020).await;
        let samples = scene.sampler.samples(&key("shop")).unwrap();
        assert_eq!((!samples.summed.is_empty(), &samples.failing), (summed, &None));
        assert!(samples.until > T0 + 400_000);
    }
}

#[tokio::test(start_paused = true)]
async fn doubtful_answers_are_failures() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("partial", Behaviour::Warns);
    scene.api.set("wide", Behaviour::Floods);
    scene.sampler.want(&key("a"), Some(wanted("partial", 30)));
    scene.sampler.want(&key("b"), Some(wanted("wide", 30)));
    let mut wrong = wanted("prom", 30);
    let ratio = MetricQuery::Counters { events: "rate(errors[5m])".to_owned(), total: "requests".to_owned() };
    wrong.query.metrics.insert("ratio".to_owned(), ratio);
    scene.sampler.want(&key("c"), Some(wrong));
    scene.until(102).await;
    let text = |namespace| scene.sampler.samples(&key(namespace)).unwrap().failing.clone().unwrap().1;
    assert!(text("a").contains("answered with a warning"), "{}", text("a"));
    assert_eq!(
        text("b"),
        "metric ratio: MetricSource wide: 51 series of 1 pods, more than 50 a pod: record `sum without (code) \
         (..)` and select that, or match fewer values of code"
    );
    assert!(text("c").contains("a function call is not a plain selector"), "{}", text("c"));
}

#[tokio::test(start_paused = true)]
async fn a_source_has_limits_of_its_own() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("wide", Behaviour::Floods);
    scene.api.set("silent", Behaviour::NeverAnswers);
    let limited = |source: &str, limits: Limits| {
        let mut wanted = wanted(source, 30);
        wanted.source.limits = Some(limits);
        Some(wanted)
    };
    scene.sampler.want(&key("a"), limited("wide", Limits { series_per_pod: Some(51), ..Limits::default() }));
    scene.sampler.want(&key("b"), limited("prom", Limits { samples: Some(2), ..Limits::default() }));
    let slow = Limits {
        timeout: Some(davylamp_api::scalar::Duration::from_secs(2)),
        concurrency: Some(1),
        ..Limits::default()
    };
    for namespace in ["c", "d", "e"] {
        scene.sampler.want(&key(namespace), limited("silent", slow));
    }
    scene.until(101).await;
    let failing = |namespace| scene.sampler.samples(&key(namespace))?.failing.clone();
    assert_eq!(scene.sampler.samples(&key("a")).unwrap().failing, None);
    assert_eq!(failing("b"), None, "a shorter window is tried first");
    let asked = || scene.api.take().into_iter().filter(|asked| asked.url == "silent").count();
    // Two texts of one Rollout.
    assert_eq!((asked(), failing("c")), (2, None));
    scene.until(103).await;
    assert!(failing("c").unwrap().1.ends_with("did not answer within spec.limits.timeout"));
    assert_eq!((asked(), failing("d")), (2, None));
    assert!(failing("b").unwrap().1.contains("more than 2 samples in one window"), "{:?}", failing("b"));
}

#[tokio::test(start_paused = true)]
async fn the_label_of_a_source_is_in_each_question() {
    let scene = Scene::new();
    scene.until(100).await;
    let mut wanted = wanted("prom", 30);
    let label = EnforcedLabel { name: "cluster".to_owned(), value: "eu".to_owned() };
    wanted.source.enforced_label = Some(label);
    scene.sampler.want(&key("shop"), Some(wanted));
    scene.until(101).await;
    let texts = scene.api.take();
    assert!(
        texts.len() == 2 && texts.iter().all(|asked| asked.text.contains(",cluster=\"eu\"}[")),
        "{texts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bound_that_is_no_bucket_is_answered_with_those_that_are() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.api.set("histogram", Behaviour::Buckets);
    let slower = |ms| {
        let mut wanted = wanted("histogram", 30);
        let than = davylamp_api::scalar::Duration::from_millis(ms);
        let ratio = MetricQuery::Slower { histogram: "latency_seconds".to_owned(), than };
        wanted.query.metrics = BTreeMap::from([("slow".to_owned(), ratio)]);
        Some(wanted)
    };
    scene.sampler.want(&key("a"), slower(300));
    scene.sampler.want(&key("b"), slower(500));
    scene.until(101).await;
    let (_, failing) = scene.sampler.samples(&key("a")).unwrap().failing.clone().unwrap();
    assert_eq!(
        failing,
        "metric slow: MetricSource histogram: the histogram has no bucket with the bound of slowerThan: write one of 70ms, 500ms, 1s"
    );
    let samples = scene.sampler.samples(&key("b")).unwrap();
    assert_eq!(samples.failing, None);
    let increments = &samples.metrics["slow"].pods["a"]["{}"];
    assert!(
        !increments.is_empty() && increments.iter().all(|i| (i.events, i.total) == (1.0, 10.0)),
        "{increments:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn odd_numbers_do_no_harm() {
    let scene = Scene::new();
    scene.until(100).await;
    for (n, since, interval, delay) in
        [(0, i64::MIN, i64::MIN, i64::MIN), (1, i64::MAX, i64::MAX, i64::MAX), (2, T0, 0, 0), (3, T0, 1, -1)]
    {
        let mut odd = wanted("prom", 0);
        (odd.query.since, odd.query.scrape_interval_ms, odd.query.delay_ms) = (since, interval, delay);
        scene.sampler.want(&key(&n.to_string()), Some(odd));
    }
    let mut none = wanted("prom", 0);
    none.query.pods.clear();
    scene.sampler.want(&key("none"), Some(none));
    scene.until(110).await;
    assert!(scene.api.take().len() < 100);
    let samples = scene.sampler.samples(&key("none")).unwrap();
    assert_eq!((samples.failing.clone(), samples.metrics.len()), (None, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_all() {
    let scene = Scene::new();
    scene.until(100).await;
    scene.sampler.want(&key("shop"), Some(wanted("prom", 30)));
    let Scene { api, sampler, .. } = scene;
    let clone = sampler.clone();
    drop(sampler);
    sleep(Duration::from_mins(1)).await;
    assert_ne!(api.take().len(), 0);
    drop(clone);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(api.take().len(), 0);
    assert_eq!(Arc::strong_count(&api), 1);
}

/// What a run of a Rollout wants to know of the last hour, when the source has scraped since T0.
fn past(source: &str) -> WantedHistory {
    let Wanted { query, source } = wanted(source, 0);
    let of = HistoryQuery {
        query: Query { since: 0, ..query },
        gaps: false,
        length: 3_600_000,
        warmup: 0,
        steps: Vec::new(),
        alpha: 0.01,
    };
    WantedHistory { of, source }
}

#[tokio::test(start_paused = true)]
async fn a_past_is_read_back_to_its_first_sample_and_told_once() {
    let scene = Scene::new();
    scene.until(1_000).await;
    scene.sampler.learn(&key("shop"), Some(past("prom")));
    scene.until(1_001).await;
    let asked = scene.api.take();
    let texts: Vec<_> = asked.iter().map(|a| (a.time, a.text.split('[').next_back().unwrap())).collect();
    let window = |time, range| [(time, range), (time, range)];
    // Ten minutes, twenty, and in the rest of the hour before there is nothing; each with the base of its first increment.
    let expected = [window(985, "637500ms]"), window(385, "1237500ms]"), window(-814, "1837500ms]")];
    assert_eq!(texts, expected.concat());
    assert_eq!(scene.woken(), 1);
    let learnt = scene.sampler.learnt(&key("shop")).unwrap();
    let ratio = &learnt.metrics["ratio"];
    assert_eq!(
        (ratio.pods, ratio.reason.as_deref()),
        (1, Some("fewer than 3 pods were seen: the defaults hold"))
    );
    assert_eq!(learnt.of, past("prom").of);

    // It holds for what is the same, also when nothing was wanted meanwhile.
    scene.sampler.learn(&key("shop"), None);
    scene.sampler.learn(&key("shop"), Some(past("prom")));
    scene.until(1_100).await;
    assert_eq!((scene.api.take().len(), scene.woken()), (0, 0));
    let mut longer = past("prom");
    longer.of.warmup = 1;
    scene.sampler.learn(&key("shop"), Some(longer));
    assert_eq!(scene.sampler.learnt(&key("shop")), None);
    scene.until(1_101).await;
    assert_eq!(scene.woken(), 1);
    scene.sampler.forget(&key("shop"));
    assert_eq!(scene.sampler.learnt(&key("shop")), None);
    scene.until(1_102).await;
    assert!(scene.sampler.inner.lock().sources.is_empty(), "its task has ended");
}

#[tokio::test(start_paused = true)]
async fn a_past_is_read_with_the_interval_that_is_seen_in_it() {
    let mut past = past("prom");
    past.of.gaps = true;
    for (behaviour, interval, first) in [
        (Behaviour::IsScrapedEach(60), 60 * SECOND, Some("750000ms]")),
        (Behaviour::IsScrapedEach(0), INTERVAL, Some("637500ms]")),
        (Behaviour::NeverAnswers, INTERVAL, None),
    ] {
        let scene = Scene::new();
        scene.until(1_000).await;
        scene.api.set("prom", behaviour);
        scene.sampler.learn(&key("shop"), Some(past.clone()));
        scene.until(1_062).await;
        let texts: Vec<_> = scene.api.take().into_iter().map(|asked| asked.text).collect();
        let by = "pod,container,endpoint,instance,job,prometheus,prometheus_replica,replica,service";
        let series = r#"requests{namespace="shop",pod=~"a[a-z0-9]{5}"}"#;
        assert_eq!(texts[0], format!("max by ({by}) (timestamp({series}))[600000ms:2000ms]"));
        let after = texts.iter().find(|text| !text.starts_with("max by"));
        assert_eq!(after.and_then(|text| text.split('[').next_back()), first, "{texts:?}");
        let learnt = scene.sampler.learnt(&key("shop")).unwrap();
        assert_eq!((learnt.scrape_interval_ms, &learnt.of), (interval, &past.of));
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_answers_teaches_nothing_within_a_minute() {
    let scene = Scene::new();
    scene.until(1_000).await;
    scene.api.set("prom", Behaviour::NeverAnswers);
    scene.sampler.learn(&key("shop"), Some(past("prom")));
    scene.until(1_059).await;
    assert_eq!((scene.sampler.learnt(&key("shop")), scene.woken()), (None, 0));
    scene.until(1_061).await;
    let learnt = scene.sampler.learnt(&key("shop")).unwrap();
    let reason = learnt.metrics["ratio"].reason.clone().unwrap();
    assert!(reason.contains("did not answer within spec.limits.timeout"), "{reason}");
    assert_eq!(scene.woken(), 1);
    // For another run it is tried again.
    scene.api.set("prom", Behaviour::Answers);
    scene.sampler.learn(&key("shop"), None);
    scene.sampler.learn(&key("shop"), Some(past("prom")));
    scene.until(1_063).await;
    assert_eq!(scene.sampler.learnt(&key("shop")).unwrap().metrics["ratio"].pods, 1);
}

#[tokio::test(start_paused = true)]
async fn the_present_comes_before_any_past() {
    let scene = Scene::new();
    scene.until(1_000).await;
    let one_at_a_time = Limits { concurrency: Some(1), ..Limits::default() };
    let limited = |mut source: MetricSourceSpec| {
        source.limits = Some(one_at_a_time);
        source
    };
    let (past, live) = (past("prom"), wanted("prom", 900));
    let (past, live) = (
        WantedHistory { source: limited(past.source.clone()), ..past },
        Wanted { source: limited(live.source.clone()), ..live },
    );
    scene.api.set("prom", Behaviour::TakesSeconds(4));
    for namespace in ["a", "b", "c"] {
        scene.sampler.learn(&key(namespace), Some(past.clone()));
    }
    scene.until(1_001).await;
    scene.sampler.want(&key("shop"), Some(live));
    scene.api.take();
    scene.until(1_005).await;
    let asked = scene.api.take();
    assert_eq!(asked.len(), 2, "one window at a time: {asked:?}");
    assert!(asked.iter().all(|a| a.text.contains("[1")), "the present, up to now: {asked:?}");
    scene.until(1_040).await;
    let learnt = |namespace: &str| scene.sampler.learnt(&key(namespace)).is_some();
    assert!(learnt("a"), "what was begun is read to its end");
    scene.until(1_061).await;
    assert!(learnt("b") && learnt("c"), "whoever waited for too long goes on without");
}

#[test]
fn what_was_not_there_when_its_time_was_read_is_late() {
    let increment = |to: i64| Increment { from: to - 15, to, ..Increment::default() };
    let read = |since: i64, until: i64, ends: &[i64]| {
        let increments = ends.iter().map(|to| increment(*to)).collect();
        let pods = [("web-new-1".to_owned(), [("a".to_owned(), increments)].into())].into();
        let metrics = [("errors".to_owned(), MetricSamples { pods })].into();
        Samples { since, until, metrics, ..Samples::default() }
    };
    let before = read(0, 60, &[10, 25, 55]);
    assert_eq!(later_than(&before, &read(0, 75, &[10, 25, 55, 70])), 0, "70 is new");
    assert_eq!(later_than(&before, &read(30, 75, &[55, 70])), 0, "the others are not asked for any more");
    assert_eq!(later_than(&before, &read(0, 75, &[10, 25, 40, 55, 70])), 1);
    let summed = Samples { summed: ["errors".to_owned()].into(), ..read(0, 75, &[10, 25, 40, 55]) };
    assert_eq!(later_than(&before, &summed), 0, "they are read in another form");
}
