//! Observes, decides, records and applies: the effects around `davylamp_engine::decide`.
//!
//! [`run()`] takes a client, a clock, a metrics API and a configuration, and goes on until the lease is lost or it is
//! told to end. Nothing here decides: what should be comes from the engine, and is repeated until it is.

pub mod apply;
pub mod cache;
pub mod call;
pub mod clock;
pub mod crd;
pub mod events;
pub mod incidents;
pub mod json;
pub mod key;
pub mod leader;
pub mod memory;
pub mod metrics;
pub mod objects;
pub mod observe;
pub mod outbox;
pub mod reconcile;
pub mod record;
pub mod run;
pub mod server;
pub mod telemetry;
pub mod traffic;
pub mod views;

mod series;

#[cfg(test)]
mod fake;

pub use run::{Config, run};
