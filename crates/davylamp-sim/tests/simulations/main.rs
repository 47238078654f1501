//! Whole simulations: the real controller on a world in one process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "tests")]

mod background;
mod bare;
mod calibration;
mod first_release;
mod fresh;
mod incidents;
mod rules;
mod scenario;
mod split;
mod templates;
mod writes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
