//! What breaks in a simulation, as data: [`Fault`] is a [`What`] at a [`When`].

use davylamp_api::scalar::Duration;
use serde::{Deserialize, Serialize};
use serde_yaml::with::singleton_map;

/// Something breaks at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// When.
    #[serde(with = "singleton_map")]
    pub when: When,
    /// What.
    #[serde(with = "singleton_map")]
    pub what: What,
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum When {
    /// After the start.
    At(Duration),
    /// At the controller's n-th write, from 1; its lease is not counted.
    Write(u64),
    /// At the n-th event, from 1, that a watch of the controller would tell; its first lists are not counted.
    Event(u64),
}

/// What breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum What {
    /// The controller is killed before the write is done, and started again a second later.
    CrashBefore,
    /// The controller is killed after the write is done, before it hears the answer, and started again a second later.
    CrashAfter,
    /// Another replica takes over once the lease of this one, which stops at once, has run out.
    HandOver,
    /// The write is not done; the answer is this code: 409, 429, 500.
    Refuse(u16),
    /// The write is done, and yet the answer is this code: 504.
    DoneBut(u16),
    /// The event is never told. Its watch ends a minute later with 410, so that all is listed again.
    Lose,
    /// Watches of the controller tell everything so much later, from now on.
    Lag(Duration),
    /// The API server answers nobody for so long.
    Away(Duration),
    /// Prometheus answers nobody for so long.
    MetricsAway(Duration),
    /// Prometheus answers after so long, for five minutes.
    MetricsSlow(Duration),
    /// Prometheus has lost all samples until now.
    MetricsEmpty,
}
