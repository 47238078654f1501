//! `decide(input, status, observed, now) -> Decision`: the pure heart of Davylamp. No tokio, no client, no clock, no
//! randomness; the same arguments give the same answer.
#![deny(missing_docs)]

mod background;
mod calibration;
mod conflicts;
mod decide;
mod decision;
mod desired;
mod ending;
mod explain;
pub mod expression;
pub mod figures;
mod fold;
pub mod forecast;
mod incidents;
pub mod observed;
mod outlook;
mod pass;
mod program;
pub mod replay;
mod rest;
pub mod selector;
mod states;
mod steps;
pub mod templates;

pub use calibration::History;
pub use decide::decide;
pub use decision::{Decision, Desired, HistoryQuery, MetricQuery, Named, Names, Query, RouteGoal, Wake, Why};
pub use explain::SUGGESTED;
pub use program::{
    CohortPods, Conduct, Exposure, ExpressionPlan, GaugePlan, Input, LimitPlan, MetricPlan, Plan, Problem,
    Program, pods_for,
};
