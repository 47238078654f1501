//! A Kubernetes API server in one process: what the simulator and the tests run the real controller against. Takes
//! requests through `tower::Service`, answers as a real server does, in tokio's time, from one seed; never reads the
//! system's clock, never draws a number that the seed does not give, and knows nothing of the controller or its engine:
//! a fake must not share a mistake with what it tests.
//!
//! ```no_run
//! # async fn example() {
//! use davylamp_world::{ApiServer, Config};
//! let server = ApiServer::new(Config::default());
//! let client = server.client();
//! # }
//! ```

mod apply;
mod clock;
mod discovery;
mod garbage;
mod http;
mod kinds;
mod memo;
mod patch;
mod refusal;
mod request;
mod schema;
mod selector;
mod server;
mod setting;
mod store;
mod walk;
mod world;

pub use http::serve;
pub use refusal::Refusal;
pub use server::{ApiServer, Body, Config};
pub use setting::{
    BadPods, Breaks, Bursts, Endpoint, Gateway, Incident, Later, Memory, Misroutes, Missing, Pods, Restarts,
    Scrapes, Setting, Users, Version, Warmup,
};
pub use world::{Bucket, NativeHistogram, Series, Tally, World, query};
