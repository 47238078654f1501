//! What happens in a simulation: [`Scenario`], as it stands in a YAML file. Only data; nothing here runs.

use std::fmt;

use davylamp_api::action::Verb;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::status::StateName;
use davylamp_world::{Incident, Setting};
use serde::Deserialize;
use serde_json::Value;
use serde_yaml::with::singleton_map;

use crate::fault::Fault;

/// A Rollout, a world, what happens to them, and what is expected.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scenario {
    /// In one sentence, for people.
    #[serde(default)]
    pub description: String,
    /// The Rollout, as it is applied first: its first container's image is the stable version.
    pub rollout: Value,
    /// What else is applied before it: Service, route, `MetricSource`, templates. What is absent is made to suit the
    /// Rollout, but for templates.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// Users, versions, and the cluster's habits.
    #[serde(default)]
    pub world: Setting,
    /// What is done: in the order of time; in the order in which it is written, if something of it has a `since`.
    #[serde(default)]
    pub events: Vec<Event>,
    /// What breaks.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// When the simulation ends at the latest. It ends earlier when all events are past and the Rollout is at rest.
    #[serde(default = "longest")]
    pub last: Duration,
    /// What must come of it.
    #[serde(default)]
    pub expect: Expect,
}

impl Scenario {
    /// What it names and nothing in it is called.
    pub(crate) fn nameless(&self) -> Option<String> {
        let endpoints = &self.world.users.endpoints;
        let needed =
            |name: &String| endpoints.iter().any(|endpoint| endpoint.dependency.as_ref() == Some(name));
        let served = |path: &String| path == "/" || endpoints.iter().any(|endpoint| endpoint.path == *path);
        let incidents = self.events.iter().filter_map(|event| {
            let Happening::Incident(incident) = &event.what else { return None };
            incident.dependency.as_ref()
        });
        let versions = self.world.versions.values().chain([&self.world.default]);
        let unneeded = incidents.filter(|name| !needed(name)).map(|name| format!("dependency {name:?}"));
        let unserved = versions.flat_map(|version| version.endpoints.keys()).filter(|path| !served(path));
        unneeded.chain(unserved.map(|path| format!("path {path:?}"))).next()
    }
}

const fn longest() -> Duration {
    Duration::from_secs(3_600)
}

/// Something that is done at a time.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// After the start, or after the moment that `since` names.
    pub at: Duration,
    /// The first moment, once all events before it are done, at which the Rollout is like this.
    #[serde(default)]
    pub since: Option<Moment>,
    /// What.
    #[serde(rename = "do", with = "singleton_map")]
    pub what: Happening,
}

/// How a Rollout stands. What is absent is not looked at: `{}` is any moment, with a Rollout or without.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Moment {
    /// Its state, like `Judging`.
    pub state: Option<StateName>,
    /// The step, counted from 1.
    pub step: Option<i32>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Happening {
    /// Another image for the first container: a new version, or an older one again.
    Release(String),
    /// A word to the run: `promote`, `abort`, `retry`.
    Action(Verb),
    /// Promote through all steps.
    PromoteFully,
    /// Another number of pods.
    Scale(i32),
    /// A merge patch of the Rollout.
    Patch(Value),
    /// A merge patch of the route.
    PatchRoute(Value),
    /// An object is created, or replaced.
    Apply(Value),
    /// The Rollout is deleted.
    Delete,
    /// The Rollout is created again as it was first.
    Create,
    /// The route is deleted.
    DeleteRoute,
    /// Errors that hit both versions: all requests, or those of a dependency's endpoints or of some nodes.
    Incident(Incident),
    /// This share of the canary's pods is lost, and does not come back before `restore`.
    Lose(Percent),
    /// The cluster has room again.
    Restore,
    /// Another rate of requests a second.
    Users(f64),
    /// The version of this image has no pod that becomes ready from now on, or has again.
    Ready(bool),
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(image) => write!(f, "release of {image}"),
            Self::Action(Verb::Promote) => f.write_str("promote"),
            Self::Action(Verb::Abort) => f.write_str("abort"),
            Self::Action(Verb::Retry) => f.write_str("retry"),
            Self::PromoteFully => f.write_str("promote through all steps"),
            Self::Scale(replicas) => write!(f, "scale to {replicas}"),
            Self::Patch(patch) => write!(f, "patch of the Rollout: {patch}"),
            Self::PatchRoute(patch) => write!(f, "patch of the route: {patch}"),
            Self::Apply(object) => {
                let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
                write!(f, "apply of {}/{}", text("/kind"), text("/metadata/name"))
            }
            Self::Delete => f.write_str("the Rollout is deleted"),
            Self::Create => f.write_str("the Rollout is created again"),
            Self::DeleteRoute => f.write_str("the route is deleted"),
            Self::Incident(Incident { last, errors, dependency, nodes }) => {
                write!(f, "incident: {errors} more of all requests")?;
                if let Some(dependency) = dependency {
                    write!(f, " that need {dependency:?}")?;
                }
                if let Some(nodes) = nodes {
                    write!(f, " on {nodes} node{}", if *nodes == 1 { "" } else { "s" })?;
                }
                write!(f, " fail, for {last}")
            }
            Self::Lose(share) => write!(f, "{share} of the canary's pods are lost"),
            Self::Restore => f.write_str("the cluster has room again"),
            Self::Users(rate) => write!(f, "{rate} requests a second from now on"),
            Self::Ready(true) => f.write_str("pods of the newest version become ready again"),
            Self::Ready(false) => f.write_str("no pod of the newest version becomes ready any more"),
        }
    }
}

/// What must come of it. What is absent is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Expect {
    /// The outcome of the last run, like `Promoted` or `RolledBack`.
    pub outcome: Option<String>,
    /// The phase at the end, like `Healthy` or `Paused`.
    pub phase: Option<String>,
    /// The image of the stable version at the end.
    pub stable: Option<String>,
    /// From the last release until the run ended, at most.
    pub within: Option<Duration>,
    /// Requests that no pod answered, at most. Absent: none may be lost.
    pub lost: Option<u64>,
}
