//! The command line: its shapes, and what each command does from its words to its last line.

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use davylamp_sim::simulate;
use davylamp_world::World;
use serde::Serialize;

use crate::acts::{SPEED, acts};
use crate::distribution::distribution;
use crate::doctor::Doctor;
use crate::door::Door;
use crate::input::{self, Flags, Input};
use crate::pace::Speed;
use crate::planned::Planned;
use crate::rates::Known;
use crate::show::Show;
use crate::summary::summary;
use crate::verify::Verify;

/// Progressive delivery by measurement: plan a Rollout and try it before it is trusted.
#[derive(Debug, Parser)]
#[command(name = "kubectl-davylamp", bin_name = "kubectl davylamp", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// No colours, as with the variable `NO_COLOR`
    #[arg(long, global = true, env = "NO_COLOR", hide_env = true, value_parser = FalseyValueParser::new())]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the real controller on a simulated cluster, in virtual time
    ///
    /// Exits with 0 when all that the scenario expects came, with 1 when not, and with 2 when the input is wrong.
    Simulate(Simulate),
    /// How long each step will take, what it will find, and what to change when that is too long
    ///
    /// Exits with 0 when each step can be judged, with 1 when not, and with 2 when the input is wrong.
    #[command(after_help = EXAMPLES)]
    Plan(Plan),
    /// Ask for the samples of a run again and recompute the evidence of each of its decisions
    ///
    /// Exits with 0 when all is as recorded, with 1 when not, and with 2 when the input is wrong or the source does not answer.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(VerifyArguments),
    /// What is wrong with Davylamp on this cluster, and what to do; reads only
    ///
    /// Exits with 0 when nothing is a problem, with 1 when something is, and with 2 when it could not look.
    Doctor(DoctorArguments),
    /// A good version is promoted, a bad one rolled back, and a controller killed in the middle; about a minute
    Demo(Demo),
}

#[derive(Args, Debug)]
struct Simulate {
    /// A scenario, or manifests with a Rollout, whose image is then released; - reads standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// All randomness comes from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many runs, from this seed on; then the distribution is printed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    runs: u64,
    /// 60x is a minute each second, drawn as it happens; max is as quick as it can be
    #[arg(long, default_value = "max", conflicts_with = "runs")]
    speed: Speed,
    /// Let kubectl look in at this loopback address, like 127.0.0.1:8001; also when it is over, until Ctrl-C
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["runs", "output"])]
    listen: Option<SocketAddr>,
    /// For people, or for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    flags: Flags,
}

const EXAMPLES: &str = "Examples:
  kubectl davylamp plan -f rollout.yaml --rps 200 --errors 0.5%
  kubectl davylamp plan -f rollout.yaml --rps 200 --errors errors=0.5% --errors slow=2%
  kubectl davylamp plan -f rollout.yaml --prometheus http://localhost:9090 --namespace shop --window 24h
  kubectl get rollout checkout -o yaml | kubectl davylamp plan -f - --rps 200 -o json";

#[derive(Args, Debug)]
struct Plan {
    /// Manifests with a Rollout, with its templates, and with its `MetricSource` if that is at hand, or a scenario; -
    /// reads standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// For people, or for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    known: Known,
}

const VERIFY_EXAMPLES: &str = "Examples:
  kubectl davylamp verify checkout-13-1 -n shop --prometheus http://localhost:9090
  kubectl get rolloutrun checkout-13-1 -o yaml | kubectl davylamp verify -f - --prometheus http://localhost:9090";

#[derive(Args, Debug)]
struct VerifyArguments {
    #[command(flatten)]
    verify: Verify,
    /// For people, or for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Args, Debug)]
struct DoctorArguments {
    #[command(flatten)]
    doctor: Doctor,
    /// For people, or for programs
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Args, Debug)]
struct Demo {
    /// All randomness comes from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// 35x is 35 virtual seconds a second; max is as quick as it can be
    #[arg(long, default_value = SPEED)]
    speed: Speed,
}

impl Cli {
    /// Whether all came that was expected.
    pub(crate) fn run(self) -> Result<bool> {
        let colour = !self.no_color;
        match self.command {
            Command::Simulate(arguments) => arguments.run(colour),
            Command::Plan(arguments) => arguments.run(colour),
            Command::Verify(VerifyArguments { verify, output }) => {
                let verified = verify.run()?;
                match output {
                    Output::Json => print_json(&verified)?,
                    Output::Text => verified.print(&mut io::stdout())?,
                }
                Ok(verified.holds())
            }
            Command::Doctor(DoctorArguments { doctor, output }) => {
                let diagnosis = doctor.run()?;
                match output {
                    Output::Json => print_json(&diagnosis)?,
                    Output::Text => {
                        let colour = colour && io::stdout().is_terminal();
                        diagnosis.print(&mut io::stdout(), colour)?;
                    }
                }
                Ok(diagnosis.is_well())
            }
            Command::Demo(Demo { seed, speed }) => {
                let mut show = Show::stdout(colour);
                show.catch_interrupt()?;
                let expected = acts(&mut show, seed, speed)?;
                show.close()?;
                Ok(expected)
            }
        }
    }
}

impl Simulate {
    fn run(&self, colour: bool) -> Result<bool> {
        let Input { name, scenario, notes } = input::read(&self.files, &self.flags)?;
        for note in notes {
            writeln!(io::stderr(), "note: {note}")?;
        }
        if self.runs > 1 {
            let distribution = distribution(&scenario, self.seed, self.runs).context(name)?;
            match self.output {
                Output::Json => print_json(&distribution)?,
                Output::Text => writeln!(io::stdout(), "{}", distribution.table())?,
            }
            return Ok(distribution.is_expected());
        }
        if self.output == Output::Json {
            let report = simulate(&scenario, self.seed, &mut |_| {}).context(name)?;
            print_json(&report)?;
            return Ok(report.failures.is_empty());
        }
        let mut show = Show::stdout(colour);
        show.title(&scenario.description);
        if self.speed != Speed::Max {
            show.catch_interrupt()?;
        }
        let door = self.listen.map(Door::new).transpose()?;
        if let Some(door) = &door {
            writeln!(io::stderr(), "note: {}", door.hint())?;
        }
        let mut opened = Ok(());
        let mut open = |world: &World| {
            if let Some(door) = &door {
                opened = door.open(world.server());
            }
        };
        let report = show.run(&scenario, self.seed, self.speed, &mut open).context(name)?;
        opened?;
        show.say(&format!("\n{}\n  {:<10}{}", summary(&report), "repeat", self.repeat()));
        show.close()?;
        if let Some(door) = &door {
            writeln!(io::stderr(), "note: it is over; until Ctrl-C you can still look: {}", door.hint())?;
            loop {
                thread::park();
            }
        }
        Ok(report.failures.is_empty())
    }

    /// The line that does it again.
    fn repeat(&self) -> String {
        let mut words = vec!["kubectl davylamp simulate".to_owned()];
        words.extend(self.files.iter().map(|file| format!("-f {}", file.display())));
        words.extend(self.flags.words());
        words.push(format!("--seed {}", self.seed));
        words.join(" ")
    }
}

impl Plan {
    fn run(&self, colour: bool) -> Result<bool> {
        let Input { name, scenario, .. } = input::read(&self.files, &Flags::default())?;
        let planned = Planned::new(&scenario.rollout, &scenario.objects, &self.known).context(name)?;
        if self.output == Output::Json {
            print_json(&planned)?;
        } else {
            let mut show = Show::stdout(colour);
            show.title(&planned.title());
            show.say(&planned.text());
            show.close()?;
        }
        Ok(planned.is_judged())
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(io::stdout().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn simulation(words: &str) -> Result<Simulate, clap::Error> {
        let words = ["kubectl-davylamp", "simulate"].into_iter().chain(words.split_whitespace());
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Simulate(arguments) => arguments,
            Command::Plan(_) | Command::Verify(_) | Command::Doctor(_) | Command::Demo(_) => {
                panic!("another command")
            }
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_file_alone_is_enough() {
        let arguments = simulation("-f shop.yaml").unwrap();
        assert_eq!((arguments.seed, arguments.runs, arguments.speed), (1, 1, Speed::Max));
        assert_eq!(arguments.output, Output::Text);
        assert_eq!(arguments.flags, Flags::default());
        assert_eq!(arguments.repeat(), "kubectl davylamp simulate -f shop.yaml --seed 1");
    }

    #[test]
    fn the_line_that_repeats_a_run_says_all_that_matters() {
        let words = "-f a.yaml -f b.yaml --rps 200 --errors 0.5% --canary-errors 2% --for 1h --seed 7";
        let arguments = simulation(&format!("{words} --speed 60x")).unwrap();
        assert_eq!(arguments.repeat(), format!("kubectl davylamp simulate {words}"));
    }

    #[test]
    fn wrong_words_are_refused_with_what_to_write() {
        for (words, says) in [
            ("", "--filename"),
            ("-f a --errors 2", "write one like"),
            ("-f a --latency 5", "write one like"),
            ("-f a --rps -1", "like 200"),
            ("-f a --speed quick", "60x"),
            ("-f a --runs 0", "1..="),
        ] {
            let error = simulation(words).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        assert_eq!(simulation("-f a --runs 2 --speed 60x").unwrap_err().kind(), ErrorKind::ArgumentConflict);
    }
}
