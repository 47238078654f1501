//! The page of the guide: its text is `statistics.md` beside this file, in which each line `{{table}}` or
//! `{{picture}}` gives way to what the results say.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::pictures;
use crate::results::{CellResult, Outcome, Results, RuleResult};

const TEXT: &str = include_str!("statistics.md");

const QUICK: &str = "> **A quick look with few runs, not the results.**\n\n";

/// The files of the guide by their paths below its sources: the page and its pictures.
pub fn files(results: &Results, quick: bool) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut page = String::from(
        "<!-- Written by `make bench-stats` from bench/src/statistics.md and bench/results/statistics.json. -->\n",
    );
    if quick {
        page.push_str(QUICK);
    }
    for line in TEXT.lines() {
        let generated = line.strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
        match generated.map(|words| words.split_once(' ').unwrap_or((words, ""))) {
            Some(("table", name)) => page.push_str(&table(results, name)?),
            Some(("picture", words)) => {
                let (name, caption) = words.split_once(' ').context("a picture needs a caption")?;
                if let Some(svg) = pictures::draw(results, name)? {
                    writeln!(page, "![{caption}](statistics/{name}.svg)")?;
                    files.insert(PathBuf::from(format!("statistics/{name}.svg")), svg);
                }
            }
            _ => {
                page.push_str(line);
                page.push('\n');
            }
        }
    }
    files.insert(PathBuf::from("statistics.md"), page);
    Ok(files)
}

/// The cells of a group, in the order of the list.
pub(crate) fn group<'a>(results: &'a Results, name: &str) -> Vec<&'a CellResult> {
    results.cells.iter().filter(|cell| cell.group == name).collect()
}

fn table(results: &Results, name: &str) -> Result<String> {
    let cells = group(results, name);
    let Some(first) = cells.first() else { return Ok("*Not run yet.*\n".to_owned()) };
    let rules: Vec<&str> = first.rules.iter().map(|rule| rule.rule.as_str()).collect();
    let show: fn(&CellResult, &RuleResult) -> String = match name {
        "good" | "few" => |_, rule| share(rule.fraction),
        "sizes" | "late" | "decrease" | "latency" => |_, rule| {
            if rule.fraction < 0.5 {
                format!("({})", share(rule.fraction))
            } else if rule.fraction < 0.995 {
                format!("{} ({})", time(rule.minutes.mean), share(rule.fraction))
            } else {
                time(rule.minutes.mean)
            }
        },
        "promotion" => |_, rule| time(rule.minutes.mean),
        "strong" => |_, rule| format!("{:.0} s, {:.0} s", 60.0 * rule.minutes.mean, 60.0 * rule.minutes.p90),
        "rollout" => |_, rule| rollout(rule),
        _ => |_, rule| rule.per_bound.map_or(String::new(), |ratio| format!("{ratio:.2}")),
    };
    let bound = cells.iter().any(|cell| cell.kl_bound.is_some());
    let planned = cells.iter().any(|cell| cell.planned.is_some());
    let mut text = String::from("| |");
    if bound {
        text.push_str(" bound |");
    }
    for rule in &rules {
        write!(text, " {rule} |")?;
    }
    if planned {
        text.push_str(" planned |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(rules.len() + usize::from(bound) + usize::from(planned)));
    text.push('\n');
    for cell in &cells {
        write!(text, "| {} |", cell.title)?;
        if bound {
            write!(text, " {} |", cell.kl_bound.map_or(String::new(), time))?;
        }
        for rule in &rules {
            let cell = cell.rule(rule).map_or(String::new(), |result| show(cell, result));
            write!(text, " {cell} |")?;
        }
        if planned {
            write!(text, " {} |", plan(cell))?;
        }
        text.push('\n');
    }
    if name == "efficiency" {
        text.push_str(&averages(&cells, &rules)?);
    }
    Ok(text)
}

/// How far the planner is from the simulated mean of the first rule.
fn plan(cell: &CellResult) -> String {
    match (cell.planned, cell.rules.first()) {
        (Some(planned), Some(rule)) => {
            format!("{} ({:+.0} %)", time(planned), 100.0 * (planned / rule.minutes.mean - 1.0))
        }
        _ => String::new(),
    }
}

/// The last row: the mean of each column.
fn averages(cells: &[&CellResult], rules: &[&str]) -> Result<String> {
    let mut text = String::from("| **mean** | |");
    for rule in rules {
        let found: Vec<f64> = cells.iter().filter_map(|cell| cell.rule(rule)?.per_bound).collect();
        let count = f64::from(u32::try_from(found.len())?);
        write!(text, " **{:.2}** |", found.iter().sum::<f64>() / count)?;
    }
    text.push_str(" |\n");
    Ok(text)
}

/// `rolled back / promoted / paused % · median minutes · excess`.
fn rollout(rule: &RuleResult) -> String {
    let share = |outcome| {
        let percent = 100.0 * rule.share(outcome);
        if percent > 0.0 && percent < 1.0 { format!("{percent:.2}") } else { format!("{percent:.0}") }
    };
    let (back, promoted, paused) =
        (share(Outcome::RolledBack), share(Outcome::Promoted), share(Outcome::Paused));
    let excess = rule.excess.map_or(String::new(), |excess| format!(", {excess:.0}"));
    format!("{back}/{promoted}/{paused}, {:.0} min{excess}", rule.minutes.median)
}

fn share(share: f64) -> String {
    let percent = 100.0 * share;
    if percent > 0.0 && percent < 9.95 { format!("{percent:.2} %") } else { format!("{percent:.0} %") }
}

fn time(minutes: f64) -> String {
    if minutes < 2.0 {
        format!("{:.0} s", 60.0 * minutes)
    } else if minutes < 10.0 {
        format!("{minutes:.1} min")
    } else {
        format!("{minutes:.0} min")
    }
}
