//! The load generator: requests at a constant rate over kept HTTP/1.1 connections, and an exact account of who
//! answered them. The rate is kept whatever the answers take, as far as the connections allow. It ends after its
//! duration or number of requests, on SIGTERM or SIGINT, and with its standard input if told so; then it waits for
//! the answers under way and prints its summary.

mod client;
mod output;
mod schedule;
mod tally;
mod target;

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use davylamp_demo::parse;
use davylamp_demo::report::Line;
use davylamp_demo::termination::Termination;
use futures::future::{OptionFuture, join_all};
use hyper::header::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, interval_at, sleep_until};

use crate::client::{Client, Exchange};
use crate::output::Format;
use crate::schedule::Schedule;
use crate::tally::Tally;
use crate::target::Target;

/// The longest run, whatever was asked for.
const LONGEST: Duration = Duration::from_hours(1);
/// The most requests of a run, whatever was asked for.
const MOST: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);

/// Send requests at a constant rate and count the answers by version
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What to request; the host is a loopback or private address, or localhost
    #[arg(long)]
    url: Target,

    /// Header `host` of the requests; the URL's by default
    #[arg(long)]
    host: Option<HeaderValue>,

    /// Requests per second
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,

    /// How long to send requests, at most an hour
    #[arg(long, default_value = "60s", value_parser = run_duration)]
    duration: Duration,

    /// Stop when standard input ends, so that the load never outlives the program that started it
    #[arg(long)]
    until_stdin_closes: bool,

    /// Connections, which is also the most requests under way at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,

    /// Longest time for a request and its answer
    #[arg(long, default_value = "5s", value_parser = parse::duration)]
    timeout: Duration,

    /// Stop after that many requests
    #[arg(long, default_value_t = MOST, value_parser = clap::value_parser!(u64).range(1..=MOST))]
    max_requests: u64,

    /// Print a line each second
    #[arg(long)]
    progress: bool,

    /// Form of what is printed
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
}

fn run_duration(text: &str) -> Result<Duration, String> {
    match parse::duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("a run lasts at most an hour".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut termination = Termination::catch().context("catch signals")?;
    let args = Args::parse();
    let host = match args.host {
        Some(host) => host,
        None => HeaderValue::from_str(&args.url.authority).context("host of the URL")?,
    };
    let exchange = Exchange { target: args.url, host, timeout: args.timeout };
    let begin = Instant::now();
    let run = Run {
        began: Began { instant: begin, timestamp: wall_clock() },
        schedule: RefCell::new(Schedule::new(begin, args.duration, args.rate, args.max_requests)),
        tally: RefCell::default(),
    };

    let (stop, stopped) = watch::channel(false);
    let workers = (0..args.connections).map(|_| run.work(Client::new(&exchange), stopped.clone()));
    let mut workers = pin!(join_all(workers));
    let mut input = pin!(OptionFuture::from(args.until_stdin_closes.then(stdin_closes)));
    let mut seconds = interval_at(begin + SECOND, SECOND);
    loop {
        tokio::select! {
            _ = &mut workers => break,
            () = termination.requested() => { stop.send_replace(true); }
            Some(()) = &mut input, if !*stop.borrow() => { stop.send_replace(true); }
            now = seconds.tick(), if args.progress => {
                let progress = run.tally.borrow_mut().progress(run.began.timestamp_at(now), now - begin);
                output::print(&Line::Progress(progress), args.output)?;
            }
        }
    }
    let summary = run.tally.take().summary(begin.elapsed());
    output::print(&Line::Summary(summary), args.output)?;
    Ok(())
}

/// What the connections share.
#[derive(Debug)]
struct Run {
    began: Began,
    schedule: RefCell<Schedule>,
    tally: RefCell<Tally>,
}

impl Run {
    /// Sends requests over one connection, each when it is due, until there are no more or the run is stopped.
    async fn work(&self, mut client: Client<'_>, mut stopped: watch::Receiver<bool>) {
        loop {
            let claim = self.schedule.borrow_mut().claim(Instant::now());
            self.tally.borrow_mut().late(claim.late);
            let Some(due) = claim.due else { return };
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return,
                () = sleep_until(due) => {}
            }
            self.tally.borrow_mut().sent();
            let result = client.request().await;
            let now = Instant::now();
            let mut tally = self.tally.borrow_mut();
            match result {
                Ok(answer) => tally.answered(&answer.version, answer.status, now - due),
                Err(error) => tally.failed(format!("{error:#}"), self.began.timestamp_at(now)),
            }
        }
    }
}

/// The beginning on both clocks.
#[derive(Debug, Clone, Copy)]
struct Began {
    instant: Instant,
    timestamp: Timestamp,
}

impl Began {
    fn timestamp_at(self, instant: Instant) -> Timestamp {
        let elapsed = SignedDuration::try_from(instant - self.instant).unwrap_or_default();
        self.timestamp.saturating_add(elapsed).unwrap_or(self.timestamp)
    }
}

#[expect(clippy::disallowed_methods, reason = "the only reading: failures are found in logs by their time")]
fn wall_clock() -> Timestamp {
    Timestamp::now()
}

/// Waits for the end of standard input. A thread of its own reads it, because the end of the runtime would wait
/// for a read that the runtime had begun.
async fn stdin_closes() {
    let (closed, end) = oneshot::channel();
    thread::spawn(move || {
        // An input that cannot be read has ended, too; and without a receiver the run is over.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = closed.send(());
    });
    let _ = end.await;
}
