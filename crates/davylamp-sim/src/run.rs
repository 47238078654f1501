//! [`simulate`]: takes a scenario and a seed, lets the real controller work in the world that they give, in virtual time,
//! and gives what came of it. Reads no clock: callers that want a speed keep it in `watch`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use davylamp_api::Instant as WallTime;
use davylamp_api::scalar::Duration as After;
use davylamp_controller::clock::Clock;
use davylamp_controller::{Config, leader};
use davylamp_world::World;
use http::Method;
use kube::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::api::FaultyApi;
use crate::fault::{What, When};
use crate::faults::{Faults, Process};
use crate::objects::{self, Names};
use crate::prometheus::Prometheus;
use crate::report::{Entry, Frame, Kind, Report};
use crate::scenario::{Event, Expect, Happening, Scenario};
use crate::story::Story;
use crate::user::{Form, Refused, User};

/// From the end of a process until it is started again.
const RESTART: Duration = Duration::from_secs(1);
/// For how long the Rollout must be at rest: longer than another process needs for the lease, or a watch for its next try.
const REST: Duration = Duration::from_mins(1);
/// The same when it waits for somebody: data may come again.
const WAIT: Duration = Duration::from_mins(2);

/// Why there was no simulation, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The Rollout has no name.
    #[error("the scenario's rollout has no metadata.name")]
    Nameless,
    /// The scenario names an endpoint or a dependency that is none.
    #[error("{0} is of no endpoint in world.users.endpoints")]
    Nobody(String),
    /// The API server does not take what the scenario starts with.
    #[error("{what} is refused: {message}")]
    Refused {
        /// Kind and name.
        what: String,
        /// The server's own words.
        message: String,
    },
    /// The process lacks something.
    #[error("the simulation cannot run here")]
    Runtime(#[from] std::io::Error),
    /// The controller wrote something that is not of the API.
    #[error("an object cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

/// Runs a scenario from a seed to its end; `watch` sees a frame each virtual second, and may block the thread: that is how a
/// speed is kept. Not to be called from async code, for it is a runtime of its own.
pub fn simulate(scenario: &Scenario, seed: u64, watch: &mut dyn FnMut(&Frame)) -> Result<Report, SimError> {
    simulate_open(scenario, seed, &mut |_| {}, watch)
}

/// The same; `open` gets the world before anything happens, for others to look into.
pub fn simulate_open(
    scenario: &Scenario,
    seed: u64,
    open: &mut dyn FnMut(&World),
    watch: &mut dyn FnMut(&Frame),
) -> Result<Report, SimError> {
    // The back-off of kube draws from this thread's generator.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(async {
        let mut simulation = Simulation::start(scenario, seed).await?;
        open(&simulation.world);
        simulation.go(watch).await?;
        simulation.end(seed).await
    })
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    names: Names,
    world: World,
    /// When the simulation began, in the world's own time.
    wall: WallTime,
    start: Instant,
    user: User,
    faults: Faults,
    metrics: Arc<Prometheus>,
    story: Story,
    tasks: JoinSet<()>,
    processes: Processes,
    /// The scenario's events and the faults at a time that are still to come, in the order of time.
    events: VecDeque<&'a Event>,
    /// From when on the first of them is waited for; None before its moment.
    since: Option<Instant>,
    breaks: VecDeque<(Instant, &'a What)>,
    actions: u32,
}

/// Processes of the controller.
#[derive(Default)]
struct Processes {
    tasks: JoinSet<(Process, String)>,
    begun: Process,
    /// When another one is to begin.
    restarts: Vec<Instant>,
}

impl<'a> Simulation<'a> {
    async fn start(scenario: &'a Scenario, seed: u64) -> Result<Self, SimError> {
        if let Some(name) = scenario.nameless() {
            return Err(SimError::Nobody(name));
        }
        let config = davylamp_world::Config { seed, ..davylamp_world::Config::default() };
        let (wall, start) = (config.start, Instant::now());
        let world = World::new(config, scenario.world.clone());
        let names = Names::of(&scenario.rollout)?;
        let user = User::new(world.server().clone(), names.namespace.clone());
        let faults = Faults::new(&scenario.faults, world.clone());
        objects::install(world.server(), &user, &names, scenario).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(world.clone().live());
        let mut breaks: Vec<_> = scenario
            .faults
            .iter()
            .filter_map(|fault| match fault.when {
                When::At(at) => Some((start + Duration::from_millis(at.as_millis()), &fault.what)),
                When::Write(_) | When::Event(_) => None,
            })
            .collect();
        breaks.sort_by_key(|(at, _)| *at);
        let mut events: Vec<_> = scenario.events.iter().collect();
        if events.iter().all(|event| event.since.is_none()) {
            events.sort_by_key(|event| event.at);
        }
        let story = Story::new(&user, &names, &scenario.world.scrapes).await;
        let metrics = Arc::new(Prometheus::new(world.clone(), faults.clone()));
        let replicas = if scenario.faults.iter().any(|fault| fault.what == What::HandOver) { 2 } else { 1 };
        let processes = Processes { restarts: vec![start; replicas], ..Processes::default() };
        Ok(Self {
            scenario,
            names,
            world,
            wall,
            start,
            user,
            faults,
            metrics,
            story,
            tasks,
            processes,
            events: events.into(),
            since: None,
            breaks: breaks.into(),
            actions: 0,
        })
    }

    /// Until all that was to happen has happened, and the Rollout is at rest; or until the time is over.
    async fn go(&mut self, watch: &mut dyn FnMut(&Frame)) -> Result<(), SimError> {
        let last = self.start + Duration::from_millis(self.scenario.last.as_millis());
        let (mut second, mut busy) = (self.start, self.start);
        loop {
            self.look_for_moment();
            let due = self.due().into_iter().chain([second]).min().unwrap_or(second);
            tokio::select! {
                biased;
                news = self.story.news() => self.story.take(&news, self.faults.now_ms())?,
                Some(ended) = self.processes.tasks.join_next() => self.ended(ended.ok()),
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if self.happen(now).await? {
                        busy = now;
                    }
                    if now < second {
                        continue;
                    }
                    self.faults.news().into_iter().for_each(|entry| self.story.tell(entry));
                    let at = now.saturating_duration_since(self.start);
                    watch(&self.story.frame(at, self.world.tally(), self.faults.led()));
                    second = now + Duration::from_secs(1);
                    let rest = match &self.story.rollout {
                        Some(seen) if !seen.rests() => {
                            busy = now;
                            REST
                        }
                        Some(seen) if seen.waits() => WAIT,
                        Some(_) | None => REST,
                    };
                    busy = busy.max(self.faults.over().unwrap_or(busy));
                    let idle = now.saturating_duration_since(busy) >= rest && self.due().is_none();
                    if idle || now >= last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// When something is to happen next.
    fn due(&self) -> Option<Instant> {
        let event = self.next_event();
        let fault = self.breaks.front().map(|(at, _)| *at);
        event.into_iter().chain(fault).chain(self.processes.restarts.iter().copied()).min()
    }

    /// When the next event is due; None while its moment has not come.
    fn next_event(&self) -> Option<Instant> {
        let event = self.events.front()?;
        let since = if event.since.is_none() { Some(self.start) } else { self.since };
        Some(since? + Duration::from_millis(event.at.as_millis()))
    }

    /// Whether the moment has come that the next event waits for.
    fn look_for_moment(&mut self) {
        if let Some(moment) = self.events.front().and_then(|event| event.since.as_ref())
            && self.since.is_none()
            && self.story.is_at(moment)
        {
            self.since = Some(Instant::now());
        }
    }

    /// Everything whose time has come. Whether there was something.
    async fn happen(&mut self, now: Instant) -> Result<bool, SimError> {
        let mut any = false;
        while self.next_event().is_some_and(|due| due <= now)
            && let Some(event) = self.events.pop_front()
        {
            any = true;
            self.since = None;
            let at_ms = self.faults.now_ms();
            let done = self.act(&event.what).await;
            let text = match done {
                Ok(()) => event.what.to_string(),
                Err(Refused { message, .. }) => format!("{}: refused: {message}", event.what),
            };
            self.story.tell(Entry { at_ms, kind: Kind::Event, text });
        }
        while let Some((_, what)) = self.breaks.pop_front_if(|(at, _)| *at <= now) {
            self.faults.begin(what);
            any = true;
        }
        while let Some(index) = self.processes.restarts.iter().position(|at| *at <= now) {
            self.processes.restarts.remove(index);
            self.begin().await?;
            any = true;
        }
        Ok(any)
    }

    /// Starts a process of the controller.
    async fn begin(&mut self) -> Result<(), SimError> {
        self.processes.begun += 1;
        let process = self.processes.begun;
        let client = Client::new(
            FaultyApi::new(self.world.server().clone(), self.faults.clone(), process),
            self.names.namespace.clone(),
        );
        let now = self.wall.saturating_add(self.start.elapsed()).unwrap_or(self.wall);
        let clock = Clock::virtual_from(now);
        let config = Config {
            namespace: objects::CONTROLLER.to_owned(),
            lease: "davylamp-controller".to_owned(),
            identity: format!("controller-{process}"),
            // Renewed less often than by default, which is as safe, and half the price of an idle hour.
            election: leader::Config { retry_period: Duration::from_secs(5), ..leader::Config::default() },
            call_limit: Duration::from_secs(5),
            concurrency: 4,
        };
        // For probes, which nobody asks here.
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let metrics = self.metrics.clone();
        let handle = self.processes.tasks.spawn(async move {
            let run =
                davylamp_controller::run(client, clock, metrics, listener, config, std::future::pending());
            let ended = Box::pin(run).await;
            (process, ended.map_or_else(|error| error.to_string(), |()| "it was told to".to_owned()))
        });
        self.faults.started(process, handle);
        Ok(())
    }

    /// A process has ended: killed, or by itself for a reason.
    fn ended(&mut self, ended: Option<(Process, String)>) {
        if let Some((process, why)) = ended {
            self.faults.ended(process);
            self.faults.note(format!("the controller ends: {why}"));
        }
        self.processes.restarts.push(Instant::now() + RESTART);
    }

    async fn act(&mut self, what: &Happening) -> Result<(), Refused> {
        let (rollout, route) = (self.names.rollout(), self.names.route());
        let seen = self.story.rollout.as_ref();
        match what {
            Happening::Release(image) => {
                let field = "/spec/template/spec/containers/0/image";
                let patch = json!([{"op": "replace", "path": field, "value": image}]);
                self.patch(&rollout, Form::Json, &patch).await?;
                self.story.released(self.faults.now_ms());
            }
            Happening::Action(verb) => {
                let status = seen.map(|seen| &seen.status);
                let run = status.and_then(|status| status.run.clone());
                let step = status.and_then(|status| status.step.as_ref()).map(|step| step.index);
                let spec = match verb {
                    davylamp_api::action::Verb::Promote => json!({"run": run, "step": step}),
                    davylamp_api::action::Verb::Abort => json!({"run": run}),
                    davylamp_api::action::Verb::Retry => json!({}),
                };
                self.action(json!(verb), spec).await?;
            }
            Happening::PromoteFully => {
                let run = seen.and_then(|seen| seen.status.run.clone());
                self.action(json!("promote"), json!({"run": run, "full": true})).await?;
            }
            Happening::Scale(replicas) => {
                let patch = json!({"spec": {"replicas": replicas}});
                self.patch(&format!("{rollout}/scale"), Form::Merge, &patch).await?;
            }
            Happening::Patch(patch) => self.patch(&rollout, Form::Merge, patch).await?,
            Happening::PatchRoute(patch) => self.patch(&route, Form::Merge, patch).await?,
            Happening::Apply(object) => self.user.apply(object).await?,
            Happening::Delete => self.delete(&rollout).await?,
            Happening::Create => self.user.apply(&self.scenario.rollout).await?,
            Happening::DeleteRoute => self.delete(&route).await?,
            Happening::Incident(incident) => self.world.incident(incident.clone()),
            Happening::Lose(share) => self.world.lose(self.newest(), *share),
            Happening::Restore => self.world.restore(),
            Happening::Users(rate) => self.world.users(*rate),
            Happening::Ready(ready) => self.world.ready(self.newest(), *ready),
        }
        Ok(())
    }

    /// The image that is on trial, or else the one that is wanted.
    fn newest(&self) -> &str {
        self.story.rollout.as_ref().map_or("", |seen| seen.canary().unwrap_or_else(|| seen.image()))
    }

    async fn patch(&self, path: &str, form: Form, change: &Value) -> Result<(), Refused> {
        self.user.ask(Method::PATCH, path, form, change).await.map(|_| ())
    }

    async fn delete(&self, path: &str) -> Result<(), Refused> {
        self.user.ask(Method::DELETE, path, Form::Whole, &Value::Null).await.map(|_| ())
    }

    async fn action(&mut self, verb: Value, mut spec: Value) -> Result<(), Refused> {
        self.actions += 1;
        spec["rollout"] = self.names.name.clone().into();
        spec["verb"] = verb;
        let object = json!({
            "apiVersion": "davylamp.dev/v1alpha1", "kind": "RolloutAction",
            "metadata": {"name": format!("{}-{}", self.names.name, self.actions)}, "spec": spec,
        });
        self.user
            .ask(Method::POST, &self.names.ours("rolloutactions"), Form::Whole, &object)
            .await
            .map(|_| ())
    }

    async fn end(mut self, seed: u64) -> Result<Report, SimError> {
        let ended_ms = self.faults.now_ms();
        let objects = objects::left(&self.user, &self.names).await?;
        self.tasks.abort_all();
        let (mut writes, events) = self.faults.record();
        writes.sort_by(|a, b| {
            (a.at_ms, &a.path, &a.verb, &a.digest).cmp(&(b.at_ms, &b.path, &b.verb, &b.digest))
        });
        let report = self.story.end(&self.world.tally());
        let mut failures = failures(&report, &self.scenario.expect);
        let left = self.events.iter().map(|event| format!("events: {} was never done", event.what));
        failures.extend(left);
        Ok(Report { seed, ended_ms, writes, events, failures, objects, ..report })
    }
}

/// What was expected and did not come.
fn failures(report: &Report, expect: &Expect) -> Vec<String> {
    let Expect { outcome, phase, stable, within, lost } = expect;
    let mut failures = Vec::new();
    let mut compare = |what: &str, wanted: &Option<String>, found: &str| {
        if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
            failures.push(format!("{what}: {wanted:?} was expected, it is {found:?}"));
        }
    };
    compare("outcome", outcome, report.outcome.as_deref().unwrap_or("none"));
    compare("phase", phase, &report.phase);
    compare("stable", stable, &report.stable);
    if let Some(within) = within {
        match report.took_ms {
            None => failures.push(format!("within: {within} was expected, the run has not ended")),
            Some(took) if took > within.as_millis() => {
                let took = After::from_millis(took);
                failures.push(format!("within: {within} was expected, it took {took}"));
            }
            Some(_) => {}
        }
    }
    let most = lost.unwrap_or(0);
    if report.lost > most {
        failures.push(format!("lost: {most} was expected at most, {} requests were lost", report.lost));
    }
    failures
}
