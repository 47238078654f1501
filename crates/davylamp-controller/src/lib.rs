//! Observes, decides, records and applies.

pub mod traffic;
