//! The story of the demo: a few scenarios, told as they happen. Each figure is taken from a run.

use std::io::Write;
use std::thread;

use anyhow::{Context, Result};
use davylamp_sim::{Report, Scenario, simulate};

use crate::figures::counted;
use crate::input;
use crate::pace::Speed;
use crate::planned::Planned;
use crate::rates::Known;
use crate::show::Show;
use crate::summary::{met, outcome};

/// At this speed the story takes about a minute.
pub(crate) const SPEED: &str = "35x";

struct Act {
    title: &'static str,
    file: &'static str,
    text: &'static str,
    /// What the plan says is told first.
    planned: bool,
}

macro_rules! act {
    ($title:literal, $file:literal, planned: $planned:literal) => {
        Act {
            title: $title,
            file: concat!("examples/scenarios/", $file),
            text: include_str!(concat!("../../../examples/scenarios/", $file)),
            planned: $planned,
        }
    };
}

const ACTS: [Act; 5] = [
    act!("A good version", "good.yaml", planned: false),
    act!("A bad version", "bad.yaml", planned: false),
    act!("An incident that hits both versions", "incident.yaml", planned: false),
    act!("Too little traffic", "thin-traffic.yaml", planned: true),
    act!("The controller is killed", "killed.yaml", planned: false),
];

/// Plays all of them; whether all came that they expect.
pub(crate) fn acts<W: Write>(show: &mut Show<W>, seed: u64, speed: Speed) -> Result<bool> {
    let mut expected = true;
    for (number, act) in (1..).zip(&ACTS) {
        let scenario = act.scenario()?;
        show.title(&format!("{number} of {}: {}", ACTS.len(), act.title));
        show.say(&format!("{}\n\n", scenario.description));
        if act.planned {
            show.say(&format!("{}\n\n", act.plan(&scenario)?));
        }
        let calm = Scenario { faults: Vec::new(), ..scenario.clone() };
        let (report, without) = thread::scope(|scope| -> Result<_> {
            // Meanwhile, so that nobody waits for it.
            let without = (calm != scenario).then(|| scope.spawn(|| simulate(&calm, seed, &mut |_| {})));
            let report = show.run(&scenario, seed, speed, &mut |_| {}).context(act.file)?;
            let without = without.and_then(|thread| thread.join().ok()).transpose()?;
            Ok((report, without))
        })?;
        show.say(&format!("\n{}", figures(&report)));
        if let Some(without) = without {
            show.say(&compared(&report, &without));
        }
        for failure in &report.failures {
            show.say(&format!("  FAILED: {failure}"));
        }
        show.say(&format!("  Again: kubectl davylamp simulate -f {} --seed {seed}\n\n", act.file));
        expected &= report.failures.is_empty();
    }
    Ok(expected)
}

impl Act {
    fn scenario(&self) -> Result<Scenario> {
        input::scenario(self.text, self.file)
    }

    /// What `plan` says of it, for those users and the errors of the version that runs.
    fn plan(&self, scenario: &Scenario) -> Result<String> {
        let (rps, interval) = (scenario.world.users.requests_per_second, scenario.world.scrapes.interval);
        let errors =
            scenario.world.versions.values().next().map(|version| version.errors).unwrap_or_default();
        let planned =
            Planned::new(&scenario.rollout, &scenario.objects, &Known::given(rps, errors, interval))?;
        Ok(format!(
            "$ kubectl davylamp plan -f {} --rps {rps} --errors {errors} --scrape-interval {interval}\n{}\n{}",
            self.file,
            planned.title(),
            planned.text()
        ))
    }
}

fn figures(report: &Report) -> String {
    let requests = report.versions.values().map(|version| version.requests).sum();
    format!(
        "  {}; stable is {}.\n  {}, {} lost; {} because of the canary.",
        outcome(report),
        report.stable,
        counted(requests, "request"),
        report.lost,
        met(report.errors_of_canary),
    )
}

/// What a fault changed in the end.
fn compared(report: &Report, without: &Report) -> String {
    let objects = report.objects.len() as u64;
    if report.objects == without.objects {
        format!(
            "  Without the fault the same seed ends alike: {} with the same content.",
            counted(objects, "object")
        )
    } else {
        format!(
            "  Without the fault the same seed ends otherwise: {}; stable is {}.",
            outcome(without),
            without.stable
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_takes_about_a_minute() {
        let ms = ACTS.iter().map(|act| simulate(&act.scenario().unwrap(), 1, &mut |_| {}).unwrap().ended_ms);
        let Speed::Times(times) = SPEED.parse().unwrap() else { panic!("a story without a pace") };
        let seconds = crate::figures::float(ms.sum()) / 1_000.0 / times;
        assert!((45.0..=70.0).contains(&seconds), "{seconds}");
    }

    #[test]
    fn all_of_the_story_comes_true() {
        let mut show = Show::new(Vec::new(), false, false);
        let expected = acts(&mut show, 1, Speed::Max).unwrap();
        let text = String::from_utf8(show.written().clone()).unwrap();
        assert!(expected, "kubectl davylamp demo --speed max\n{text}");
        for (number, act) in (1..).zip(&ACTS) {
            assert!(text.contains(&format!("{number} of 5: {}\n", act.title)), "{text}");
            assert!(text.contains(&format!("simulate -f {} --seed 1\n", act.file)), "{text}");
        }
        assert_eq!(text.matches(" after the last release; ").count(), 4, "{text}");
        assert!(text.contains("What to change"), "{text}");
        assert!(text.contains("ends alike"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
