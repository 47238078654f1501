//! The lines that `demo-load` prints with `-o json`, one JSON object each: a [`Line::Progress`] every second if
//! asked for, and one [`Line::Summary`] at the end. Whoever reads them parses a [`Line`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line of output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    Progress(Progress),
    Summary(Summary),
}

/// How it stands while the load runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// When the line was made.
    pub at: Timestamp,
    /// The time since the load began.
    pub seconds: f64,
    /// What happened since the line before.
    pub interval: Counts,
    /// What happened since the load began.
    pub total: Counts,
}

/// How it went, after the last answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    #[serde(flatten)]
    pub counts: Counts,
    /// The first distinct reasons of failures; a reason that came after the list was full is only counted.
    pub failures: Vec<Failure>,
    /// Absent when nothing was answered.
    pub latency_ms: Option<Latency>,
    /// The time from the beginning to the last answer.
    pub seconds: f64,
}

/// What became of the requests. Each one sent ends as answered or failed, so that
/// `sent == answered + failed` whenever none is on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests whose sending began, by opening a connection if need be.
    pub sent: u64,
    /// Whole answers of the application, which name its version; a 500 is one too.
    pub answered: u64,
    /// Requests without such an answer: a transport error, a timeout, or somebody else's answer.
    pub failed: u64,
    /// Requests left out because no connection was free when they were due; they are not in `sent`.
    pub late: u64,
    /// Answers by version, then by status.
    pub by_version: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Counts {
    /// The part of the answers that came from `version`; nothing if there were no answers.
    #[must_use]
    pub fn share(&self, version: &str) -> Option<f64> {
        let answers: u64 = self.by_version.get(version).into_iter().flat_map(BTreeMap::values).sum();
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        (self.answered > 0).then(|| answers as f64 / self.answered as f64)
    }

    /// Adds an answer of `version`.
    pub fn count_answer(&mut self, version: &str, status: u16) {
        self.answered += 1;
        *self.by_version.entry(version.to_owned()).or_default().entry(status.to_string()).or_default() += 1;
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        let Self { sent, answered, failed, late, by_version } = other;
        self.sent += sent;
        self.answered += answered;
        self.failed += failed;
        self.late += late;
        for (version, statuses) in by_version {
            let own = self.by_version.entry(version.clone()).or_default();
            for (status, count) in statuses {
                *own.entry(status.clone()).or_default() += count;
            }
        }
    }
}

/// A reason for which requests failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: String,
    pub count: u64,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// How long answers took, in milliseconds from when the request was due to the end of its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts() -> Counts {
        let mut counts = Counts { sent: 5, failed: 1, late: 2, ..Counts::default() };
        for (version, status) in [("v1", 200), ("v1", 200), ("v1", 500), ("v2", 200)] {
            counts.count_answer(version, status);
        }
        counts
    }

    #[test]
    fn answers_are_counted_by_version_and_status() {
        let counts = counts();
        assert_eq!(counts.answered, 4);
        assert_eq!(counts.by_version["v1"]["200"], 2);
        assert_eq!(counts.by_version["v1"]["500"], 1);
        assert_eq!(counts.share("v1"), Some(0.75));
        assert_eq!(counts.share("v3"), Some(0.0));
        assert_eq!(Counts::default().share("v1"), None);
    }

    #[test]
    fn merging_adds_everything() {
        let mut total = counts();
        total.merge(&counts());
        assert_eq!((total.sent, total.answered, total.failed, total.late), (10, 8, 2, 4));
        assert_eq!(total.by_version["v1"]["200"], 4);
        assert_eq!(total.by_version["v2"]["200"], 2);
    }

    #[test]
    fn a_line_survives_being_written_and_read() {
        let progress = Progress {
            at: Timestamp::UNIX_EPOCH,
            seconds: 1.0,
            interval: Counts::default(),
            total: counts(),
        };
        let summary = Summary { counts: counts(), failures: Vec::new(), latency_ms: None, seconds: 2.5 };
        for line in [Line::Progress(progress), Line::Summary(summary)] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
    }
}
