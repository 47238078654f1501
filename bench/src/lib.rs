//! Simulations of rollout decisions, and what they came to.
//!
//! Draws the counts of services (`traffic`, `random`), lets rules decide on them (`rules`, `ratio`, `promotion`,
//! `rollout`), for a list of cells (`cells`), and writes down how they ended (`results`, `page`, `pictures`).
//! Every number follows from the name of a cell and the number of a run.

pub mod cells;
mod history;
pub mod latency;
pub mod page;
pub mod pictures;
pub mod promotion;
pub mod random;
pub mod ratio;
pub mod results;
pub mod rollout;
pub mod rules;
pub mod run;
pub mod traffic;
