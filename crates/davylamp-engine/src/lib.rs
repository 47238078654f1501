//! `decide(input, status, observed, now) -> Decision`: the pure heart of Davylamp. No tokio, no client, no clock, no
//! randomness; the same arguments give the same answer.
#![deny(missing_docs)]

mod decision;
pub mod observed;

pub use decision::{Decision, Desired, Query, RatioQuery, RouteGoal, Wake, Why};
