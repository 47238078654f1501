//! How lines look: JSON for programs, text for people. Each is on standard output when `print` returns.

use std::io::{self, Write as _};
use std::iter;

use clap::ValueEnum;
use davylamp_demo::report::{Counts, Failure, Latency, Line};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Json,
    Text,
}

pub(crate) fn print(line: &Line, format: Format) -> io::Result<()> {
    let text = match format {
        Format::Json => serde_json::to_string(line)?,
        Format::Text => text(line),
    };
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()
}

fn text(line: &Line) -> String {
    match line {
        Line::Progress(progress) => format!("{:6.1}s  {}", progress.seconds, counts(&progress.interval)),
        Line::Summary(summary) => {
            let first = format!("{:6.1}s  {} in all", summary.seconds, counts(&summary.counts));
            let latency = summary.latency_ms.iter().map(|Latency { p50, p95, p99, max }| {
                format!("latency  p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, max {max} ms")
            });
            let failures = summary.failures.iter().map(|Failure { reason, count, first, last }| {
                format!("failed   {count} times, {first} to {last}: {reason}")
            });
            iter::once(first).chain(latency).chain(failures).collect::<Vec<_>>().join("\n")
        }
    }
}

fn counts(counts: &Counts) -> String {
    let Counts { sent, answered, failed, late, by_version } = counts;
    let all = format!("{sent} sent, {answered} answered, {failed} failed, {late} late");
    let versions = by_version.iter().map(|(version, statuses)| {
        let share = counts.share(version).unwrap_or_default() * 100.0;
        let statuses: Vec<_> = statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        format!("{version} {share:.1}% ({})", statuses.join(", "))
    });
    iter::once(all).chain(versions).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use davylamp_demo::report::{Progress, Summary};
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn people_read_shares_latency_and_reasons() {
        let mut counts = Counts { sent: 5, failed: 1, ..Counts::default() };
        for (version, status) in [("v1", 200), ("v1", 200), ("v1", 500), ("v2", 200)] {
            counts.count_answer(version, status);
        }
        let at = Timestamp::UNIX_EPOCH;
        let progress = Progress { at, seconds: 1.0, interval: counts.clone(), total: counts.clone() };
        let expected =
            "   1.0s  5 sent, 4 answered, 1 failed, 0 late; v1 75.0% (200: 2, 500: 1); v2 25.0% (200: 1)";
        assert_eq!(text(&Line::Progress(progress)), expected);

        let summary = Summary {
            counts,
            failures: vec![Failure { reason: "connect".to_owned(), count: 1, first: at, last: at }],
            latency_ms: Some(Latency { p50: 1.5, p95: 2.0, p99: 2.0, max: 2.0 }),
            seconds: 1.0,
        };
        let expected = [
            &format!("{expected} in all"),
            "latency  p50 1.5 ms, p95 2 ms, p99 2 ms, max 2 ms",
            "failed   1 times, 1970-01-01T00:00:00Z to 1970-01-01T00:00:00Z: connect",
        ];
        assert_eq!(text(&Line::Summary(summary)), expected.join("\n"));
    }
}
