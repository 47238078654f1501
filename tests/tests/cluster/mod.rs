//! Against a real API server, real pods, a real gateway, a real Prometheus, with real requests.

mod audit;
mod by_hand;
mod evidence;
mod faults;
mod gentleness;
mod lifecycle;
mod outcomes;
mod routes;
mod shared;
mod takeover;
