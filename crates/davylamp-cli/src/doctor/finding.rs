//! One thing that was looked at: how it is, what was seen, and what to do next. As JSON all of them are what `-o json`
//! writes; as text a few lines each.

use std::io::Write;

use anyhow::Result;
use crossterm::style::{Color, Stylize};
use serde::Serialize;

use super::cluster::Unread;
use crate::picture::wrap;

/// How it is; the worse the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    Ok,
    /// It could not be looked at.
    LeftOut,
    /// It works, or will: but look at it.
    Warning,
    /// Something does not work before somebody acts.
    Problem,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Check {
    ApiServer,
    Definitions,
    GatewayApi,
    Controller,
    MetricSources,
    Rollouts,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) check: Check,
    /// What was seen.
    pub(super) seen: String,
    /// What to do, or what it means.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) next: String,
    /// The line that does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) command: Option<String>,
    /// What an admin may apply, once it is adapted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<String>,
    /// The condition that is not as it should be,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) condition: Option<Condition>,
    /// and whose it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rollouts: Vec<Affected>,
}

/// A condition of a Rollout. Its message is what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
}

/// A Rollout, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Affected {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) since_seconds: u64,
}

/// All that was found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diagnosis {
    problems: usize,
    warnings: usize,
    left_out: usize,
    findings: Vec<Finding>,
}

impl Finding {
    fn new(level: Level, check: Check, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            level,
            check,
            seen: seen.into(),
            next: next.into(),
            command: None,
            manifest: None,
            condition: None,
            rollouts: Vec::new(),
        }
    }

    pub(super) fn ok(check: Check, seen: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, seen, "")
    }

    pub(super) fn warning(check: Check, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Level::Warning, check, seen, next)
    }

    pub(super) fn problem(check: Check, seen: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Level::Problem, check, seen, next)
    }

    /// `what` as in "you may not list Rollouts".
    pub(super) fn unread(check: Check, what: &str, why: &Unread) -> Self {
        match why {
            Unread::Forbidden => Self::new(Level::LeftOut, check, format!("you may not {what}"), ""),
            Unread::Missing => {
                Self::new(Level::LeftOut, check, format!("no way to {what}: they are not served"), "")
            }
            Unread::Failed(why) => Self::problem(
                check,
                format!("no way to {what}: {why}"),
                "look at the API server, and ask again",
            ),
        }
    }

    pub(super) fn with_command(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::LeftOut => "left out",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }

    const fn colour(self) -> Color {
        match self {
            Self::Ok => Color::Green,
            Self::LeftOut => Color::DarkGrey,
            Self::Warning => Color::Yellow,
            Self::Problem => Color::Red,
        }
    }
}

impl Check {
    const fn word(self) -> &'static str {
        match self {
            Self::ApiServer => "API server",
            Self::Definitions => "definitions",
            Self::GatewayApi => "Gateway API",
            Self::Controller => "controller",
            Self::MetricSources => "MetricSources",
            Self::Rollouts => "Rollouts",
        }
    }
}

/// Lines end before this column, but for what is to be copied.
const WIDTH: usize = 100;
/// Of what was seen.
const COLUMN: usize = 25;

impl Diagnosis {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        let how_many = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self {
            problems: how_many(Level::Problem),
            warnings: how_many(Level::Warning),
            left_out: how_many(Level::LeftOut),
            findings,
        }
    }

    pub(crate) const fn is_well(&self) -> bool {
        self.problems == 0
    }

    /// For people.
    pub(crate) fn print(&self, out: &mut impl Write, colour: bool) -> Result<()> {
        for finding in &self.findings {
            finding.print(out, colour)?;
        }
        let Self { problems, warnings, left_out, findings: _ } = self;
        let mut told = match (problems, warnings) {
            (0, 0) => "Nothing is wrong".to_owned(),
            (0, _) => "No problem".to_owned(),
            (some, _) => counted(*some, "problem"),
        };
        if *warnings > 0 {
            told.extend([", ", &counted(*warnings, "warning")]);
        }
        if *left_out > 0 {
            told.extend([", ", &counted(*left_out, "check"), " left out"]);
        }
        writeln!(out, "\n{told}.")?;
        Ok(())
    }
}

impl Finding {
    fn print(&self, out: &mut impl Write, colour: bool) -> Result<()> {
        let Self { level, check, seen, next, command, manifest, condition: _, rollouts: _ } = self;
        let word = format!("{:<10}", level.word());
        let word = if colour { word.with(level.colour()).to_string() } else { word };
        let mut before = format!("{word}{:<15}", check.word());
        for line in [seen, next].iter().flat_map(|text| wrap(text, WIDTH - COLUMN)) {
            writeln!(out, "{before}{line}")?;
            before = " ".repeat(COLUMN);
        }
        for line in [command, manifest].into_iter().flatten().flat_map(|text| text.lines()) {
            writeln!(out, "{before}  {line}")?;
        }
        Ok(())
    }
}

pub(super) fn counted(n: usize, noun: &str) -> String {
    davylamp_engine::figures::counted(n as u64, noun)
}
