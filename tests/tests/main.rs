//! One binary for all tests that look at the project as a whole: its files, and a real cluster.
//!
//! The cluster tests share one cluster and one controller; each has a namespace of its own. They need root, and the
//! programs that `make programs` builds.

mod cluster;
mod conformance;
mod project;
