//! Observes, decides, records and applies.

pub mod cache;
pub mod call;
pub mod events;
pub mod json;
pub mod key;
pub mod leader;
pub mod server;
pub mod telemetry;

#[cfg(test)]
mod fake;
