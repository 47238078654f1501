//! What came of one run, in words. Every figure is the report's.

use davylamp_sim::{Cohort, Report};

use crate::figures::{clock, counted, length, share, whole};

/// One line for each thing that is worth knowing at the end.
pub(crate) fn summary(report: &Report) -> String {
    let mut lines = vec![row("outcome", &outcome(report)), row("message", &report.message)];
    lines.push(row("stable", &report.stable));
    for (image, Cohort { requests, errors }) in &report.versions {
        let failed = share(*errors, *requests);
        lines.push(row(
            "requests",
            &format!("{image}: {}, {} failed ({failed})", counted(*requests, "request"), errors),
        ));
    }
    lines.push(row("users", &format!("{} because of the canary", met(report.errors_of_canary))));
    lines.push(row("lost", &format!("{} found no pod", counted(report.lost, "request"))));
    let expected = if report.failures.is_empty() {
        "all that was expected came".to_owned()
    } else {
        report.failures.join("; ")
    };
    lines.push(row(if report.failures.is_empty() { "expected" } else { "FAILED" }, &expected));
    lines.join("\n")
}

/// How it ended, and how long it took.
pub(crate) fn outcome(report: &Report) -> String {
    let ended = clock(std::time::Duration::from_millis(report.ended_ms));
    match (&report.outcome, report.took_ms) {
        (Some(outcome), Some(took)) => {
            format!("{outcome} {} after the last release; phase {} at {ended}", length(took), report.phase)
        }
        (Some(outcome), None) => format!("{outcome}; phase {} at {ended}", report.phase),
        (None, _) => format!("phase {} at {ended}", report.phase),
    }
}

/// Users who met an error that the stable version would not have made.
pub(crate) fn met(errors: f64) -> String {
    match whole(errors) {
        0 => "no user met an error".to_owned(),
        n => format!("{} met an error", counted(n, "user")),
    }
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<10}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_stands_in_it() {
        let report = Report {
            outcome: Some("RolledBack".to_owned()),
            phase: "Degraded".to_owned(),
            took_ms: Some(192_000),
            ended_ms: 300_000,
            versions: [("shop:2".to_owned(), Cohort { requests: 1_200, errors: 30 })].into(),
            errors_of_canary: 24.4,
            failures: vec!["outcome: Promoted expected".to_owned()],
            ..Report::default()
        };
        let text = summary(&report);
        for part in [
            "RolledBack 3m12s after the last release; phase Degraded at 5:00",
            "shop:2: 1,200 requests, 30 failed (2.50 %)",
            "24 users met an error because of the canary",
            "0 requests found no pod",
            "FAILED    outcome: Promoted expected",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
