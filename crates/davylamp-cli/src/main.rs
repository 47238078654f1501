//! `kubectl davylamp`: reads the command line and says what went wrong. The commands are elsewhere.
#![allow(clippy::similar_names, reason = "a seed and a speed are what they are called")]

mod acts;
mod command;
mod distribution;
mod doctor;
mod door;
mod expansion;
mod figures;
mod gauges;
mod input;
mod pace;
mod picture;
mod planned;
mod rates;
mod show;
mod summary;
mod verify;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::command::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let code = match Cli::parse().run() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) if is_closed(&error) => 0,
        Err(error) => {
            // Nobody is left to tell when this fails.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            2
        }
    };
    ExitCode::from(code)
}

/// Whoever read our output, like `head`, has read enough.
fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
