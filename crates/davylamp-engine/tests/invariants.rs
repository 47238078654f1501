//! Random programs and histories against the invariants of the engine: `world::check` looks at every pass, effect and
//! moment; at the end the world heals, and the Rollout must come to rest with the user's own numbers in the routes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test: what is not as expected ends it"
)]
mod world;

use davylamp_api::action::Verb;
use davylamp_api::rollout::{Approval, Baseline, OnInconclusive, OnNoTraffic, RouteRef, Step, Then, Traffic};
use davylamp_api::status::{Phase, RolloutStatus, StateName};
use davylamp_engine::observed::{Observed, Source, of_baseline};
use davylamp_engine::{Input, decide};
use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::Value;
use world::{START, World, at, hash, route, secs, spec, step, template, weights};

/// 10,000 together.
const HISTORIES: u32 = 2_500;
const HOUR: i64 = 3_600_000;

#[derive(Clone, Debug)]
struct Setup {
    replicas: Option<i32>,
    steps: Vec<Step>,
    metrics: bool,
    fresh: bool,
    /// Whether it can be verified, and the numbers of each route.
    routes: Vec<(bool, Option<i32>, Option<i32>)>,
    ready_after: [Option<i64>; 4],
    errors: [f64; 4],
    on_inconclusive: OnInconclusive,
    on_no_traffic: OnNoTraffic,
    then: Then,
    endpoints_delay: i64,
    route_delay: i64,
    rate: f64,
}

#[derive(Clone, Debug)]
enum Event {
    Release(u32),
    Steps(Vec<Step>),
    Fresh(bool),
    Replicas(i32),
    Invalid(bool),
    Refuse(u32),
    Delete,
    LoseRun,
    DeleteRoute(usize),
    CreateRoute(usize),
    WriteRoute(usize, Option<i32>, Option<i32>),
    Unsupported(usize, bool),
    Stuck(usize, bool),
    LosePods(u32, usize),
    Break(u32),
    Heal(u32),
    SourceFails(bool),
    SourceGone(bool),
    Scraped(u32, bool),
    Rate(f64),
    /// There are too many series to read each from now on.
    Wide,
    /// Of all requests, this share fails beyond the usual.
    Around(f64),
    /// The same while the second version gets more than this share.
    Breaks(Option<f64>),
    /// So many other Rollouts notice incidents.
    Others(usize),
    Restart,
    Crash(usize),
    Stale,
    Jump(i64),
    Promote {
        stale: bool,
        full: bool,
    },
    Abort {
        stale: bool,
    },
    Retry,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one =
        (1_u16..9_999, prop::option::weighted(0.2, 1_i32..6), prop::bool::weighted(0.15), any::<bool>());
    prop::collection::vec(one, 1..4).prop_map(|mut list| {
        list.sort_by_key(|(weight, ..)| *weight);
        list.dedup_by_key(|(weight, ..)| *weight);
        list.into_iter()
            .map(|(weight, replicas, approval, keep)| Step {
                weight: davylamp_api::scalar::Percent::from_basis_points(weight),
                replicas,
                approval: approval.then(|| Approval {
                    timeout: Some(secs(1_800)),
                    on_timeout: Some(if keep { Then::Keep } else { Then::Rollback }),
                }),
                ..Step::default()
            })
            .collect()
    })
}

fn number() -> impl Strategy<Value = Option<i32>> {
    prop::option::weighted(0.8, prop::sample::select(vec![0, 1, 5, 50, 100, 5_000, 10_000]))
}

fn setup() -> impl Strategy<Value = Setup> {
    let ready = || prop::option::weighted(0.85, prop::sample::select(vec![0_i64, 5_000, 40_000, 200_000]));
    let errors = || prop::sample::select(vec![0.0, 0.01, 0.01, 0.1]);
    let routes = prop::collection::vec((prop::bool::weighted(0.8), number(), number()), 1..3);
    let inconclusive =
        prop::sample::select(vec![OnInconclusive::Pause, OnInconclusive::Promote, OnInconclusive::Rollback]);
    let traffic = prop::sample::select(vec![OnNoTraffic::Pause, OnNoTraffic::Promote]);
    let then = prop::sample::select(vec![Then::Rollback, Then::Rollback, Then::Keep]);
    (
        (prop::option::weighted(0.9, 1_i32..8), steps(), any::<bool>(), routes, any::<bool>()),
        (prop::array::uniform4(ready()), prop::array::uniform4(errors())),
        (inconclusive, traffic, then),
        (prop::sample::select(vec![0_i64, 1_000, 20_000]), prop::sample::select(vec![0_i64, 500, 30_000])),
        prop::sample::select(vec![0.0, 2.0, 200.0]),
    )
        .prop_map(|(a, b, c, d, rate)| Setup {
            replicas: a.0,
            steps: a.1,
            metrics: a.2,
            routes: a.3,
            fresh: a.4,
            ready_after: b.0,
            errors: b.1,
            on_inconclusive: c.0,
            on_no_traffic: c.1,
            then: c.2,
            endpoints_delay: d.0,
            route_delay: d.1,
            rate,
        })
}

fn event() -> impl Strategy<Value = Event> {
    let version = || 1_u32..5;
    prop_oneof![
        6 => version().prop_map(Event::Release),
        2 => steps().prop_map(Event::Steps),
        1 => any::<bool>().prop_map(Event::Fresh),
        2 => (0_i32..10).prop_map(Event::Replicas),
        2 => any::<bool>().prop_map(Event::Invalid),
        1 => version().prop_map(Event::Refuse),
        1 => Just(Event::Delete),
        1 => Just(Event::LoseRun),
        1 => (0_usize..2).prop_map(Event::DeleteRoute),
        2 => (0_usize..2).prop_map(Event::CreateRoute),
        3 => (0_usize..2, number(), number()).prop_map(|(i, s, c)| Event::WriteRoute(i, s, c)),
        1 => (0_usize..2, any::<bool>()).prop_map(|(i, b)| Event::Unsupported(i, b)),
        1 => (0_usize..2, any::<bool>()).prop_map(|(i, b)| Event::Stuck(i, b)),
        2 => (version(), 1_usize..8).prop_map(|(v, n)| Event::LosePods(v, n)),
        2 => version().prop_map(Event::Break),
        2 => version().prop_map(Event::Heal),
        2 => any::<bool>().prop_map(Event::SourceFails),
        1 => any::<bool>().prop_map(Event::SourceGone),
        1 => (version(), any::<bool>()).prop_map(|(v, b)| Event::Scraped(v, b)),
        1 => prop::sample::select(vec![0.0, 2.0, 200.0]).prop_map(Event::Rate),
        1 => Just(Event::Wide),
        3 => prop::sample::select(vec![0.0, 0.1, 0.5]).prop_map(Event::Around),
        2 => prop::option::of(prop::sample::select(vec![0.0, 0.2])).prop_map(Event::Breaks),
        1 => (0_usize..3).prop_map(Event::Others),
        2 => Just(Event::Restart),
        4 => (0_usize..4).prop_map(Event::Crash),
        3 => Just(Event::Stale),
        1 => (1_000_i64..2 * HOUR).prop_map(Event::Jump),
        3 => (prop::bool::weighted(0.2), prop::bool::weighted(0.3))
            .prop_map(|(stale, full)| Event::Promote { stale, full }),
        2 => prop::bool::weighted(0.2).prop_map(|stale| Event::Abort { stale }),
        2 => Just(Event::Retry),
    ]
}

fn history() -> impl Strategy<Value = (Setup, Vec<(i64, Event)>)> {
    let pause = prop_oneof![Just(0_i64), 1..5_000_i64, 5_000..60_000_i64, 60_000..600_000_i64];
    (setup(), prop::collection::vec((pause, event()), 1..14))
}

fn world(setup: &Setup) -> World {
    let names = ["shop", "admin"];
    let mut spec = spec(&setup.steps, setup.metrics);
    spec.replicas = setup.replicas;
    spec.strategy.canary.baseline = setup.fresh.then_some(Baseline::Fresh);
    spec.strategy.traffic = vec![Traffic {
        gateway_api: davylamp_api::rollout::GatewayApi {
            routes: names.iter().take(setup.routes.len()).map(|name| route(name)).collect(),
        },
    }];
    if let Some(analysis) = &mut spec.analysis {
        analysis.on_inconclusive = Some(setup.on_inconclusive);
        analysis.on_no_traffic = Some(setup.on_no_traffic);
        let pause = analysis.pause.get_or_insert_default();
        (pause.then, pause.deadline) = (Some(setup.then), Some(secs(900)));
    }
    let mut world = World::new(spec);
    for (name, (verifiable, stable, canary)) in names.iter().zip(&setup.routes) {
        let model = world.routes.get_mut(&route(name)).unwrap();
        model.verifiable = *verifiable;
        model.rules = weights(*stable, *canary);
        model.user.clone_from(&model.rules);
        model.carried.clone_from(&model.rules);
    }
    for v in 1..=4 {
        let model = world.versions.get_mut(&hash(v)).unwrap();
        model.ready_after = setup.ready_after[v as usize - 1];
        model.error_rate = setup.errors[v as usize - 1];
    }
    world.endpoints_delay = setup.endpoints_delay;
    world.route_delay = setup.route_delay;
    world.sampler.rate = Some(setup.rate);
    (world.sampler.background, world.usual_traffic) = (0.1, Some(setup.rate));
    world
}

fn happen(world: &mut World, event: Event) {
    let target = |world: &World, i: usize| -> RouteRef {
        let routes: Vec<_> = world.routes.keys().cloned().collect();
        routes[i % routes.len()].clone()
    };
    match event {
        Event::Release(version) => world.release(version),
        Event::Steps(steps) => world.edit(|spec| spec.strategy.canary.steps = Some(steps)),
        Event::Fresh(fresh) => {
            world.edit(|spec| spec.strategy.canary.baseline = fresh.then_some(Baseline::Fresh));
        }
        Event::Replicas(n) => {
            if n == 0 {
                world.hurt.insert("scaled to nothing".to_owned());
            }
            world.edit(|spec| spec.replicas = Some(n));
        }
        Event::Invalid(invalid) => {
            world.invalid = invalid;
            world.edit(|_| {});
        }
        Event::Refuse(version) => {
            world.refused.insert(hash(version));
        }
        Event::Delete => world.delete(),
        Event::LoseRun => {
            if let Some(run) = &world.status.run {
                world.runs.remove(run);
            }
        }
        Event::DeleteRoute(i) => world.delete_route(&target(world, i)),
        Event::CreateRoute(i) => world.create_route(&target(world, i)),
        Event::WriteRoute(i, stable, canary) => world.write_route(&target(world, i), stable, canary),
        Event::Unsupported(i, unsupported) => {
            let target = target(world, i);
            let model = world.routes.get_mut(&target).unwrap();
            model.unsupported = unsupported;
            model.ambiguous |= unsupported;
        }
        Event::Stuck(i, stuck) => {
            let target = target(world, i);
            world.routes.get_mut(&target).unwrap().stuck = stuck;
        }
        Event::LosePods(version, n) => world.lose_pods(&hash(version), n),
        Event::Break(version) => world.break_version(&hash(version)),
        Event::Heal(version) => world.heal_version(&hash(version)),
        Event::SourceFails(fails) => world.sampler.failing_since = fails.then_some(world.now),
        Event::SourceGone(gone) => world.source = if gone { Source::NotFound } else { ready() },
        Event::Scraped(version, scraped) => world.versions.get_mut(&hash(version)).unwrap().scraped = scraped,
        Event::Rate(rate) => world.sampler.rate = Some(rate),
        Event::Wide => world.sampler.wide_since = Some(world.now),
        Event::Around(share) => world.around = share,
        Event::Breaks(above) => world.breaks_above = above,
        Event::Others(count) => {
            world.incidents = (0..count).map(|i| (format!("other/{i}"), at(world.now))).collect();
        }
        Event::Restart => world.sampler.nothing_before = world.now + 60_000,
        Event::Crash(effects) => world.crash_after = Some(effects),
        Event::Stale => world.stale = true,
        Event::Jump(ms) => world.jump(ms),
        Event::Promote { stale, full } => {
            let step = world.status.step.as_ref().map(|s| s.index);
            let run = if stale { Some("shop-0-1".to_owned()) } else { world.status.run.clone() };
            world.act(Verb::Promote, run, step.filter(|_| !full), full);
        }
        Event::Abort { stale } => {
            let run = if stale { Some("shop-0-1".to_owned()) } else { world.status.run.clone() };
            world.act(Verb::Abort, run, None, false);
        }
        Event::Retry => {
            world.act(Verb::Retry, None, None, false);
        }
    }
    world.poke();
}

fn ready() -> Source {
    Source::Ready { scrape_interval_ms: Some(world::INTERVAL), delay_ms: world::DELAY }
}

/// Nothing is wrong any more, and nobody edits.
fn heal(world: &mut World) {
    world.invalid = false;
    world.refused.clear();
    world.crash_after = None;
    world.stale = false;
    world.sampler.failing_since = None;
    world.sampler.rate = Some(200.0);
    (world.around, world.breaks_above) = (0.0, None);
    world.source = ready();
    for version in 1..=4 {
        world.heal_version(&hash(version));
        world.versions.get_mut(&hash(version)).unwrap().scraped = true;
    }
    let targets: Vec<_> = world.routes.keys().cloned().collect();
    for target in targets {
        let model = world.routes.get_mut(&target).unwrap();
        model.unsupported = false;
        model.stuck = false;
        world.create_route(&target);
    }
    world.edit(|_| {});
}

fn comes_to_rest(world: &World) {
    let state = world.state();
    if world.gone || world.deleting.is_some() {
        assert!(world.gone || state == StateName::Healthy || state == StateName::Degraded);
        return;
    }
    let phase = world.status.phase.unwrap();
    let story = || format!("{}\n{}", world.status.message, world.story());
    assert!(
        matches!(phase, Phase::Healthy | Phase::Degraded | Phase::Paused),
        "{state:?} is not kept: {}",
        story()
    );
    if world.status.traffic.is_some() {
        assert_eq!(state, StateName::Paused, "{}", story());
        return;
    }
    let left = world.sets.iter().filter(|(hash, set)| of_baseline(hash).is_some() && set.desired > 0).count();
    assert_eq!(left, 0, "a baseline is left: {}", story());
    for (target, route) in &world.routes {
        assert!(!route.ours, "{target:?} keeps our name: {}", story());
        if !route.ambiguous {
            assert_eq!(route.rules, route.user, "{target:?} keeps our numbers: {}", story());
        }
    }
    let traffic = world.traffic();
    for rejected in &world.status.rejected {
        let stable = world.status.stable.as_ref().is_some_and(|s| s.hash == rejected.hash);
        assert!(
            stable || !traffic.contains_key(&rejected.hash),
            "a rejected revision gets traffic: {}",
            story()
        );
    }
}

fn live(setup: &Setup, events: Vec<(i64, Event)>) {
    let mut world = world(setup);
    world.run_for(90_000);
    for (pause, event) in events {
        happen(&mut world, event);
        world.run_for(pause);
    }
    heal(&mut world);
    let end = world.now + 24 * HOUR;
    world.run_until(end, World::rests);
    comes_to_rest(&world);
    // And stays there.
    let (status, passes) = (world.status.clone(), world.passes);
    let watched = status.traffic.is_some();
    world.poke();
    world.run_for(HOUR / 6);
    assert!(watched || world.passes - passes < 4, "it does not rest: {}", world.story());
    // A kept pause for want of data ends by itself when there is data again.
    assert!(watched || status.state == world.status.state, "{}", world.story());
}

macro_rules! histories {
    ($($name:ident)*) => {
        proptest! {
            #![proptest_config(Config { cases: HISTORIES, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() })]
            $(#[test]
            fn $name((setup, events) in history()) {
                live(&setup, events);
            })*
        }
    };
}

// Several tests, so that they run side by side.
histories!(random_histories_1 random_histories_2 random_histories_3 random_histories_4);

/// A status of a run in its middle, as JSON.
fn some_status(state: StateName) -> Value {
    let mut world = World::settled(spec(&[step("5%"), step("50%")], true));
    world.release(2);
    world.until(state);
    serde_json::to_value(&world.status).unwrap()
}

/// Replaces the leaf of that number by another value.
fn mutate(value: &mut Value, leaf: &mut usize, new: &Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|v| mutate(v, leaf, new)),
        Value::Object(map) => map.values_mut().for_each(|v| mutate(v, leaf, new)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            if *leaf == 0 {
                *value = new.clone();
            }
            *leaf = leaf.wrapping_sub(1);
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![i64::MIN, -1, 0, 1, i64::from(i32::MAX), i64::MAX]).prop_map(Value::from),
        prop::sample::select(vec![-1e300, 0.5, 1e308]).prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "NotYetInvented",
            "100%",
            "0%",
            "Finalising",
            "RollingBack",
            "Select",
            "Unknown",
            "9999-12-30T22:00:00Z",
            "0001-01-01T00:00:00Z",
            "AAAA",
        ])
        .prop_map(Value::from),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 2_000, failure_persistence: None, ..Config::default() })]

    /// Whoever wrote it: no panic, and an answer that can be written.
    #[test]
    fn any_status_is_answered(
        mutations in prop::collection::vec((0_usize..250, any_value()), 1..6),
        which in 0_usize..4,
        later in 0_i64..2 * HOUR,
    ) {
        static STATUSES: std::sync::OnceLock<Vec<(Value, World)>> = std::sync::OnceLock::new();
        let statuses = STATUSES.get_or_init(|| {
            [StateName::Judging, StateName::Promoting, StateName::Finalising, StateName::Scaling]
                .map(|state| {
                    let mut world = World::settled(spec(&[step("5%"), step("50%")], true));
                    world.release(2);
                    world.until(state);
                    (some_status(state), world)
                })
                .to_vec()
        });
        let (mut status, mut world) = statuses[which].clone();
        for (leaf, value) in &mutations {
            mutate(&mut status, &mut leaf.clone(), value);
        }
        let Ok(status) = serde_json::from_value::<RolloutStatus>(status) else { return Ok(()) };
        world.now += later;
        let observed: Observed = world.observe();
        let decision = decide(&world.input(&status), &status, &observed, at(world.now));
        let text = serde_json::to_string(&decision.status).unwrap();
        prop_assert_eq!(&serde_json::from_str::<RolloutStatus>(&text).unwrap(), &decision.status);
        let input = Input { program: None, run: None, ..world.input(&status) };
        let _ = decide(&input, &status, &Observed::default(), at(START));
        let _ = template(1);
    }
}
