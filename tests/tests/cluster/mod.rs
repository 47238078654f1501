//! Against a real API server, real pods, a real gateway, a real Prometheus, with real requests.

mod actions;
mod bad_input;
mod outcomes;
mod schema;
mod shared;
mod watched;
