//! The cells: one line each says what is simulated, for how long and how often.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use crate::latency::{self, Change, LatencyCell};
use crate::promotion::PromotionCell;
use crate::ratio::{self, RatioCell, RatioRule};
use crate::results::Ending;
use crate::rollout::{self, Driver, Gate, Past, RolloutCell};
use crate::traffic::{Bursts, Incident, Metric, Service, Split};

/// Runs of a cell in which rare endings are counted.
const MANY: u32 = 10_000;

/// Runs of a cell of which a mean is taken.
const SOME: u32 = 2_000;

/// One line of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    pub name: String,
    pub group: Group,
    /// What the row of the table is called.
    pub title: String,
    pub runs: u32,
    kind: Kind,
}

/// The table that a cell stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// A canary that is no worse: who rolls it back?
    Good,
    /// The same, with few events.
    Few,
    /// One service, regressions of growing size: who finds them, and when?
    Sizes,
    /// Many services: how close to the bound?
    Efficiency,
    /// Regressions whose bound is shorter than a block.
    Strong,
    /// A regression that begins late.
    Late,
    /// More is better.
    Decrease,
    /// A distribution; the good ones are among them.
    Latency,
    /// A good canary at one step: how long until it is promoted?
    Promotion,
    Rollout,
}

#[derive(Debug, Clone)]
enum Kind {
    Ratio(RatioCell),
    Latency(LatencyCell),
    Promotion(PromotionCell),
    Rollout(RolloutCell),
}

impl Group {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Few => "few",
            Self::Sizes => "sizes",
            Self::Efficiency => "efficiency",
            Self::Strong => "strong",
            Self::Late => "late",
            Self::Decrease => "decrease",
            Self::Latency => "latency",
            Self::Promotion => "promotion",
            Self::Rollout => "rollout",
        }
    }
}

impl Cell {
    fn ratio(group: Group, name: &str, title: &str, runs: u32, cell: RatioCell) -> Self {
        let name = format!("{}/{name}", group.name());
        Self { name, group, title: title.to_owned(), runs, kind: Kind::Ratio(cell) }
    }

    /// One run: how each rule ended.
    pub fn run(&self, run: u32) -> Result<Vec<Ending>> {
        match &self.kind {
            Kind::Ratio(cell) => cell.run(&self.name, run),
            Kind::Latency(cell) => cell.run(&self.name, run),
            Kind::Promotion(cell) => cell.run(&self.name, run),
            Kind::Rollout(cell) => cell.run(&self.name, run),
        }
    }

    /// The names of the rules, in the order of the endings.
    #[must_use]
    pub fn rules(&self) -> Vec<String> {
        match &self.kind {
            Kind::Ratio(cell) => cell.rules.iter().map(|rule| rule.name()).collect(),
            Kind::Latency(cell) => cell.rules.iter().map(|rule| rule.name()).collect(),
            Kind::Promotion(_) => vec!["davylamp".to_owned()],
            Kind::Rollout(cell) => cell.drivers.iter().map(|driver| driver.name().to_owned()).collect(),
        }
    }

    /// Kullback and Leibler's bound in minutes, where there is something to find.
    #[must_use]
    pub fn bound(&self) -> Option<f64> {
        match (&self.kind, self.group) {
            (
                Kind::Ratio(cell),
                Group::Sizes | Group::Efficiency | Group::Strong | Group::Late | Group::Decrease,
            ) => Some(cell.bound()),
            (Kind::Latency(cell), _) => cell.bound(),
            _ => None,
        }
    }

    /// What the histories of the runs so far have led to.
    #[must_use]
    pub fn calibrations(&self) -> BTreeMap<String, u32> {
        match &self.kind {
            Kind::Ratio(cell) => cell.calibrations.counts(),
            Kind::Latency(_) | Kind::Promotion(_) => BTreeMap::new(),
            Kind::Rollout(cell) => cell.calibrations.counts(),
        }
    }

    /// What the planner says, in minutes.
    pub fn planned(&self) -> Result<Option<f64>> {
        match (&self.kind, self.group) {
            (Kind::Ratio(cell), Group::Sizes | Group::Efficiency | Group::Strong) => cell.planned(),
            (Kind::Promotion(cell), _) => cell.planned(),
            _ => Ok(None),
        }
    }

    pub fn parameters(&self) -> Result<Value> {
        Ok(match &self.kind {
            Kind::Ratio(cell) => serde_json::to_value(cell)?,
            Kind::Latency(cell) => serde_json::to_value(cell)?,
            Kind::Promotion(cell) => serde_json::to_value(cell)?,
            Kind::Rollout(cell) => serde_json::to_value(cell)?,
        })
    }

    /// About how long a run takes, in no particular unit.
    #[must_use]
    pub fn cost(&self) -> f64 {
        match &self.kind {
            Kind::Ratio(cell) => match self.bound() {
                Some(bound) => 2.0 * bound.max(1.0),
                None => f64::from(cell.minutes),
            },
            Kind::Latency(cell) => {
                self.bound().map_or_else(|| f64::from(cell.minutes), |bound| 4.0 * bound.max(1.0))
            }
            Kind::Promotion(_) => 20.0,
            Kind::Rollout(cell) => 10.0 * f64::from(u32::try_from(cell.drivers.len()).unwrap_or(1)),
        }
    }
}

/// The service that most tables are about: 200 requests a second, 0.5 % errors.
fn service() -> Service {
    Service::new(200.0, 0.005, 1.0)
}

/// All cells, in the order of the tables.
#[must_use]
pub fn all() -> Vec<Cell> {
    [
        good(),
        few(),
        sizes(),
        efficiency(),
        strong(),
        late(),
        decrease(),
        latencies(),
        promotions(),
        rollouts(),
    ]
    .concat()
}

fn good() -> Vec<Cell> {
    let (two, one, five) = (Split::new(0.1, 20), Split::new(0.1, 10), Split::new(0.5, 10));
    let short = Some(Bursts { per_hour: 60.0, mean: 50.0, seconds: 5 });
    let long = Some(Bursts { per_hour: 60.0, mean: 50.0, seconds: 30 });
    let incident = Some(Incident { from_minute: 20, minutes: 5, factor: 20.0 });
    let cell = |name: &str, title: &str, service: Service, split: Split| {
        let mut rules = vec![RatioRule::Defaults, RatioRule::Calibrated, RatioRule::Exact];
        if name == "clean" {
            rules.push(RatioRule::Horizon);
        }
        rules.extend(ratio::RIVALS);
        let threshold = Some(0.01);
        Cell::ratio(
            Group::Good,
            name,
            title,
            MANY,
            RatioCell { threshold, draws_history: true, ..RatioCell::new(service, split, 60, &rules) },
        )
    };
    vec![
        cell("clean", "clean", service(), two),
        cell(
            "bursty-traffic",
            "traffic CV 50 %, drifting rate",
            Service { traffic_cv: 0.5, drift: 0.5, ..service() },
            two,
        ),
        cell("incident", "incident ×20 in both, 5 min", Service { incident, ..service() }, two),
        cell("bursts", "bursts, 60/h of 50 errors, < 5 s", Service { bursts: short, ..service() }, two),
        cell("bursts-30s", "bursts lasting 30 s", Service { bursts: long, ..service() }, two),
        cell("pods-2-18", "pods CV 20 %, 2+18", Service { pod_cv: 0.2, ..service() }, two),
        cell("pods-1-9", "pods CV 20 %, 1+9", Service { pod_cv: 0.2, ..service() }, one),
        cell("pods-5-5", "pods CV 20 %, 5+5", Service { pod_cv: 0.2, ..service() }, five),
        cell(
            "pods-bursts-2-18",
            "pods CV 20 % and 30 s bursts, 2+18",
            Service { pod_cv: 0.2, bursts: long, ..service() },
            two,
        ),
        cell(
            "pods-bursts-1-9",
            "pods CV 20 % and 30 s bursts, 1+9",
            Service { pod_cv: 0.2, bursts: long, ..service() },
            one,
        ),
    ]
}

/// Three rates, weights and loads; the canary is as bad as the baseline or exactly at a tolerance of 10 %.
fn few() -> Vec<Cell> {
    let mut cells = Vec::new();
    for rate in [0.0001, 0.001, 0.01] {
        for weight in [0.01, 0.1, 0.5] {
            for requests in [1.0, 10.0, 100.0] {
                for ratio in [1.0, 1.1] {
                    let title = format!(
                        "{requests} rps, {} %, weight {} %, ratio {ratio}",
                        percent(rate),
                        percent(weight)
                    );
                    let name = format!("{requests}rps-{}%-w{}%-x{ratio}", percent(rate), percent(weight));
                    let service = Service::new(requests, rate, ratio);
                    let mut rules = vec![RatioRule::Defaults, RatioRule::Boundary];
                    rules.extend([
                        RatioRule::Threshold(0),
                        RatioRule::Threshold(3),
                        RatioRule::ZTest(5),
                        RatioRule::ZTest(1),
                    ]);
                    let cell = RatioCell::new(service, Split::new(weight, 100), 60, &rules);
                    cells.push(Cell::ratio(
                        Group::Few,
                        &name,
                        &title,
                        MANY,
                        RatioCell { threshold: Some(0.01), ..cell },
                    ));
                }
            }
        }
    }
    cells
}

/// The default service at 10 %, for an hour.
fn sizes() -> Vec<Cell> {
    [1.2, 1.5, 2.0, 3.0, 5.0, 10.0]
        .into_iter()
        .map(|ratio| {
            let mut rules =
                vec![RatioRule::Exact, RatioRule::Calibrated, RatioRule::Defaults, RatioRule::Oracle];
            rules.extend(ratio::RIVALS);
            let cell = RatioCell::new(Service::new(200.0, 0.005, ratio), Split::new(0.1, 20), 120, &rules);
            let cell = RatioCell { threshold: Some(0.01), ..cell };
            Cell::ratio(Group::Sizes, &format!("x{ratio}"), &format!("×{ratio}"), SOME, cell)
        })
        .collect()
}

/// Every combination whose bound lies between two minutes and an hour.
fn efficiency() -> Vec<Cell> {
    let mut cells = Vec::new();
    for rate in [0.001, 0.01] {
        for weight in [0.05, 0.2, 0.5] {
            for requests in [10.0, 50.0, 200.0] {
                for ratio in [1.5, 2.0, 3.0, 5.0] {
                    let service = Service::new(requests, rate, ratio);
                    let rules = [
                        RatioRule::Exact,
                        RatioRule::Calibrated,
                        RatioRule::Horizon,
                        RatioRule::Defaults,
                        RatioRule::Oracle,
                    ];
                    let cell = RatioCell::new(service, Split::new(weight, 20), 60, &rules);
                    let bound = cell.bound();
                    if (2.0..60.0).contains(&bound) {
                        let title = format!(
                            "{requests} rps, {} %, weight {} %, ×{ratio}",
                            percent(rate),
                            percent(weight)
                        );
                        let name = format!("{requests}rps-{}%-w{}%-x{ratio}", percent(rate), percent(weight));
                        let cell = RatioCell { minutes: whole(10.0 * bound) + 1, ..cell };
                        cells.push(Cell::ratio(Group::Efficiency, &name, &title, SOME, cell));
                    }
                }
            }
        }
    }
    cells
}

fn strong() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (requests, rate, weight) in [
        (200.0, 0.01, 0.05),
        (200.0, 0.01, 0.1),
        (1000.0, 0.01, 0.05),
        (1000.0, 0.01, 0.1),
        (200.0, 0.01, 0.2),
        (200.0, 0.01, 0.5),
    ] {
        for ratio in [5.0, 10.0, 20.0] {
            let title =
                format!("{requests} rps, {} %, weight {} %, ×{ratio}", percent(rate), percent(weight));
            let name = format!("{requests}rps-{}%-w{}%-x{ratio}", percent(rate), percent(weight));
            let rules = [RatioRule::Exact, RatioRule::Calibrated, RatioRule::Defaults, RatioRule::Oracle];
            let cell =
                RatioCell::new(Service::new(requests, rate, ratio), Split::new(weight, 20), 30, &rules);
            cells.push(Cell::ratio(Group::Strong, &name, &title, SOME, cell));
        }
    }
    cells
}

fn late() -> Vec<Cell> {
    [1.5, 2.0, 4.0]
        .into_iter()
        .map(|ratio| {
            let metrics = vec![Metric { rate: 0.005, ratio, onset: 20 }];
            let rules = [
                RatioRule::Exact,
                RatioRule::Defaults,
                RatioRule::MannWhitney,
                RatioRule::ZTest(1),
                RatioRule::Threshold(0),
                RatioRule::Threshold(3),
            ];
            let cell = RatioCell::new(Service { metrics, ..service() }, Split::new(0.1, 20), 140, &rules);
            let cell = RatioCell { threshold: Some(0.01), ..cell };
            Cell::ratio(Group::Late, &format!("x{ratio}"), &format!("×{ratio} from minute 20"), SOME, cell)
        })
        .collect()
}

/// Sign-ups, 2 % of the requests.
fn decrease() -> Vec<Cell> {
    let mut cells = Vec::new();
    for weight in [0.1, 0.5] {
        for ratio in [0.9, 0.8, 0.5] {
            let title = format!("sign-ups −{} %, weight {} %", percent(1.0 - ratio), percent(weight));
            let rules = [
                RatioRule::Exact,
                RatioRule::Defaults,
                RatioRule::Oracle,
                RatioRule::ZTest(1),
                RatioRule::MannWhitney,
            ];
            let cell = RatioCell::new(Service::new(200.0, 0.02, ratio), Split::new(weight, 20), 120, &rules);
            let cell = RatioCell { higher_is_better: true, ..cell };
            cells.push(Cell::ratio(
                Group::Decrease,
                &format!("w{}%-x{ratio}", percent(weight)),
                &title,
                SOME,
                cell,
            ));
        }
    }
    cells
}

/// Latency of 200 requests a second, log-normal with a median of 100 ms.
fn latencies() -> Vec<Cell> {
    let cell = |name: &str,
                title: &str,
                runs: u32,
                requests_per_second: f64,
                change: Change,
                native: Option<u32>| {
        let minutes = if matches!(change, Change::None) { 60 } else { 120 };
        let rules = latency::RULES.to_vec();
        let cell = LatencyCell { requests_per_second, weight: 0.1, change, native, minutes, rules };
        Cell {
            name: format!("latency/{name}"),
            group: Group::Latency,
            title: title.to_owned(),
            runs,
            kind: Kind::Latency(cell),
        }
    };
    vec![
        cell("good", "good", MANY, 200.0, Change::None, None),
        cell("x1.2", "all ×1.2", SOME, 200.0, Change::All(1.2), None),
        cell("x1.3", "all ×1.3", SOME, 200.0, Change::All(1.3), None),
        cell("x1.5", "all ×1.5", SOME, 200.0, Change::All(1.5), None),
        cell("slowest-x2", "slowest 2 % ×2", SOME, 200.0, Change::Slowest(2.0), None),
        cell("slowest-x4", "slowest 2 % ×4", SOME, 200.0, Change::Slowest(4.0), None),
        cell("10rps-x1.2", "all ×1.2, 10 rps", SOME, 10.0, Change::All(1.2), None),
        cell("10rps-x1.3", "all ×1.3, 10 rps", SOME, 10.0, Change::All(1.3), None),
        cell("10rps-slowest-x2", "slowest 2 % ×2, 10 rps", SOME, 10.0, Change::Slowest(2.0), None),
        cell("native-x1.3", "all ×1.3, 104 buckets", SOME, 200.0, Change::All(1.3), Some(8)),
        cell("native-slowest-x2", "slowest 2 % ×2, 104 buckets", SOME, 200.0, Change::Slowest(2.0), Some(8)),
    ]
}

/// The steps of a rollout, each with what the default of `maxServiceImpact` allows at the next one.
fn promotions() -> Vec<Cell> {
    let mut cells = Vec::new();
    for requests in [50.0, 200.0] {
        for rate in [0.0, 0.005, 0.03] {
            for (weight, next_weight) in [(0.05, 0.25), (0.25, 0.5), (0.5, 1.0)] {
                let cell = PromotionCell {
                    service: Service::new(requests, rate, 1.0),
                    split: Split::new(weight, 20),
                    next_weight,
                    margin: 1.0 + 0.5 / next_weight,
                    safe_rate: 0.001,
                    minutes: 480,
                };
                cells.push(Cell {
                    name: format!("promotion/{requests}rps-{}%-w{}%", percent(rate), percent(weight)),
                    group: Group::Promotion,
                    title: format!("{requests} rps, {} %, weight {} %", percent(rate), percent(weight)),
                    runs: SOME,
                    kind: Kind::Promotion(cell),
                });
            }
        }
    }
    cells
}

fn rollouts() -> Vec<Cell> {
    let of = |requests: f64, rates: [f64; 3], ratios: [f64; 3]| {
        let metrics = rates.into_iter().zip(ratios).map(|(rate, ratio)| Metric { rate, ratio, onset: 0 });
        Service { metrics: metrics.collect(), ..Service::new(requests, 0.0, 1.0) }
    };
    let rates = [0.005, 0.03, 0.02];
    let (none, same) = ([0.0, 0.03, 0.02], [1.0; 3]);
    let good = || of(200.0, rates, same);
    let bad = |ratios: [f64; 3]| of(200.0, rates, ratios);
    let late = || {
        let mut service = bad([4.0, 1.0, 1.0]);
        service.metrics[0].onset = 12;
        service
    };
    let bursts = Some(Bursts { per_hour: 30.0, mean: 50.0, seconds: 5 });
    let incident = Some(Incident { from_minute: 4, minutes: 5, factor: 20.0 });
    let gates = vec![Gate::lower(0.01), Gate::lower(0.06), Gate::higher()];
    let ours = [Driver::Davylamp(Past::History), Driver::Davylamp(Past::Unknown), Driver::Strict];
    let drivers = [&ours[..], &rollout::RIVALS].concat();
    let cell = |name: &str, title: &str, runs: u32, service: Service| Cell {
        name: format!("rollout/{name}"),
        group: Group::Rollout,
        title: title.to_owned(),
        runs,
        kind: Kind::Rollout(RolloutCell::new(service, &gates, &drivers)),
    };
    vec![
        cell("good", "good", MANY, good()),
        cell("good-50rps", "good, 50 rps", MANY, of(50.0, rates, same)),
        cell("good-20rps", "good, 20 rps", SOME, of(20.0, rates, same)),
        cell("no-errors", "good, no error at all", MANY, of(200.0, none, same)),
        cell("no-errors-50rps", "good, no error at all, 50 rps", MANY, of(50.0, none, same)),
        cell("bursts", "good, bursts 30/h", MANY, Service { bursts, ..good() }),
        cell("incident", "good, incident ×20 in both", MANY, Service { incident, ..good() }),
        cell("pods", "good, pods CV 15 %", MANY, Service { pod_cv: 0.15, ..good() }),
        cell("errors-x2", "errors ×2", SOME, bad([2.0, 1.0, 1.0])),
        cell("errors-x4", "errors ×4", SOME, bad([4.0, 1.0, 1.0])),
        cell("slow-x1.5", "slow requests ×1.5", SOME, bad([1.0, 1.5, 1.0])),
        cell("signups-20%", "sign-ups −20 %", SOME, bad([1.0, 1.0, 0.8])),
        cell("late-x4", "errors ×4 from minute 12", SOME, late()),
        cell("all", "errors ×1.5, slow ×1.3, sign-ups −10 %", SOME, bad([1.5, 1.3, 0.9])),
    ]
}

/// A share in per cent, as it is written.
fn percent(share: f64) -> f64 {
    crate::results::six_digits(100.0 * share)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundreds of minutes")]
fn whole(minutes: f64) -> u32 {
    minutes.ceil() as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_cell_has_its_own_name() {
        let cells = super::all();
        let names: BTreeSet<_> = cells.iter().map(|cell| &cell.name).collect();
        assert_eq!(names.len(), cells.len());
        assert_eq!(cells.iter().filter(|cell| cell.group == super::Group::Few).count(), 54);
    }
}
