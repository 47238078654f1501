//! What the demonstration application (`demo-app`) and the load generator (`demo-load`) share: the header that
//! names a version, how rates and durations are written, what ends a process, and the lines `demo-load` prints.

pub mod parse;
pub mod report;
pub mod termination;

/// The header by which every answer of the application names its version.
pub const VERSION_HEADER: &str = "x-demo";
