//! Runs the real controller on a world in one process, in virtual time: [`Scenario`] says what happens, [`Report`] what
//! came of it. Reads no clock and draws no number that its seed does not give.

mod api;
mod fault;
mod faults;
mod objects;
mod prometheus;
mod report;
mod run;
mod scenario;
mod story;
mod user;

pub use fault::{Fault, What, When};
pub use report::{Cohort, Entry, Frame, Kind, Report, Write};
pub use run::{SimError, simulate, simulate_open};
pub use scenario::{Event, Expect, Happening, Moment, Scenario};
