//! Against a real API server, real pods, a real gateway, a real Prometheus, with real requests.

mod actions;
mod audit;
mod bad_input;
mod by_hand;
mod conformance;
mod evidence;
mod exporter;
mod faults;
mod gateway;
mod gentleness;
mod histograms;
mod kinds;
mod lifecycle;
mod outcomes;
mod routes;
mod schema;
mod scripted;
mod shared;
mod split;
mod takeover;
mod templates;
