//! How long a block has to be, and how little a burst may count: learnt from the history of a service.
//!
//! Takes what each stable pod counted, round by round, and gives the length and the clip of the blocks of
//! [`EventProcess`](crate::EventProcess) and [`ProportionProcess`](crate::ProportionProcess).
//!
//! **Null hypothesis.** None is tested. All pods run the same version, so that every alarm of a test of some
//! of them against the others is a false one.
//!
//! **Formula.** A placebo is the process of an hour of as many pods as the canary will have, each with those
//! that follow it in a circle, against all others: `ρ₀ = 1`, half of the capital in reserve, constant hazard
//! `L/900 s`, an alarm at `1/α`. Of the settings
//! ```text
//! block length L   5     15    15    30    60    120  s      rounded up to whole rounds
//! clip b           ln10  ln10  1.5   1.5   1.5   1.5
//! ```
//! the first is chosen that has at most `max(⌈N/200⌉, 1.5·fewest)` alarms, where `N` is the number of placebos
//! and `fewest` that of the alarms of the best setting. Settings whose `L` is below a round are left out; if
//! none is left, a block is one round and the clip `ln 10`. With fewer than three pods, or less than an hour,
//! there is nothing to learn: the smallest `L` of 15 seconds or more and `ln 10`.
//!
//! **Why it is valid.** Independent events need no calibration. Bursts within a block are bounded by the clip
//! whatever they are; the calibration finds out how long they last. What is chosen depends on the past alone,
//! so that the processes of the rollout stay what they are.
//!
//! **Source.** Placebo tests as in Kohavi, Tang and Xu (2020), *Trustworthy online controlled experiments*,
//! where they are called A/A tests; the rule is this crate's.
//!
//! **Cost.** Twelve logarithms for each round of each pod, and twelve exponentials for each block; as much
//! again for the other settings if the first does not do. Twelve hours of 20 pods at 5 s: 50 ms, 100 ms.
//!
//! **When not to use it.** With a history that is unlike the rollout: another version, other traffic, pods
//! that were starting.

use crate::blocks::RESTART_SECONDS;
use crate::counts::{number, validate_count};
use crate::event::{LARGEST_CLIP, RATIOS, UNIFORM, clip, log_factors};
use crate::{Counts, Error};

/// `L` in seconds, and the clip.
const SETTINGS: [(f64, f64); 6] =
    [(5.0, LARGEST_CLIP), (15.0, LARGEST_CLIP), (15.0, 1.5), (30.0, 1.5), (60.0, 1.5), (120.0, 1.5)];

/// Without a history a block is not shorter than this many seconds.
const DEFAULT_SECONDS: f64 = 15.0;

/// A placebo runs for this many seconds.
const PLACEBO_SECONDS: f64 = 3600.0;

/// Pods below which nothing can be learnt from a comparison.
const FEWEST_PODS: usize = 3;

/// Whole rounds are found in spite of rounding.
const ROUNDING: f64 = 1e-9;

/// Events and exposure of one pod.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PodCounts {
    /// Events, or for a latency the summed seconds.
    pub events: f64,
    /// Exposure, usually requests.
    pub exposure: f64,
}

impl PodCounts {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        validate_count("events", self.events)?;
        validate_count("exposure", self.exposure)
    }
}

/// The length and the clip of a block, and how they did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// The length in seconds, whole rounds.
    pub block_seconds: f64,
    /// What the log factors of a block are capped at, instead of `ln 10`.
    pub clip: f64,
    /// How many hours of some pods were compared with the other pods.
    pub placebos: u32,
    /// How many of them would have raised an alarm.
    pub alarms: u32,
}

/// Chooses the length and the clip of a block. `rounds` holds the counts of every pod in every round, the
/// same pod at the same place; a pod that was not there has none. A canary of `canary_pods` is hit by that
/// many times as many bursts as one of a single pod; more than half of the pods count as half of them. A
/// round takes `round_seconds`, from 0.1 to 3600; `alpha` is the rate of false alarms that the rollout is to
/// have.
///
/// ```
/// use davylamp_stats::{PodCounts, calibrate};
///
/// // Three pods for two hours, 50 requests a round and an error now and then, at one pod or another.
/// let healthy = |round: usize, pod: usize| PodCounts {
///     events: if (7 * round + 3 * pod) % 11 == 0 { 1.0 } else { 0.0 },
///     exposure: 50.0,
/// };
/// let mut rounds: Vec<[PodCounts; 3]> =
///     (0..1440).map(|round| [0, 1, 2].map(|pod| healthy(round, pod))).collect();
/// let calibration = calibrate(&rounds, 1, 5.0, 0.01)?;
/// assert_eq!((calibration.block_seconds, calibration.alarms, calibration.placebos), (5.0, 0, 6));
///
/// // Now one of them fails for a minute and a half, every ten minutes.
/// for start in (0..1440).step_by(120) {
///     for round in start..start + 18 {
///         rounds[round][start / 120 % 3].events = 10.0;
///     }
/// }
/// let calibration = calibrate(&rounds, 1, 5.0, 0.01)?;
/// assert_eq!((calibration.block_seconds, calibration.clip), (30.0, 1.5));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn calibrate(
    rounds: &[impl AsRef<[PodCounts]>],
    canary_pods: usize,
    round_seconds: f64,
    alpha: f64,
) -> Result<Calibration, Error> {
    let ok = (0.1..=PLACEBO_SECONDS).contains(&round_seconds);
    Error::unless(ok, "round_seconds", round_seconds, "a number from 0.1 to 3600")?;
    Error::unless(alpha > 0.0 && alpha < 1.0, "alpha", alpha, "a probability above 0 and below 1")?;
    let pods = rounds.first().map_or(0, |round| round.as_ref().len());
    let mut seen = vec![false; pods];
    for round in rounds {
        let round = round.as_ref();
        Error::unless(round.len() == pods, "rounds", number(round.len()), "as many pods in every round")?;
        for (seen, pod) in seen.iter_mut().zip(round) {
            pod.validate()?;
            *seen |= pod.exposure > 0.0;
        }
    }

    let whole = |seconds: f64| f64::from(rounds_within(seconds, round_seconds)) * round_seconds;
    let default =
        Calibration { block_seconds: whole(DEFAULT_SECONDS), clip: LARGEST_CLIP, placebos: 0, alarms: 0 };
    let settings: Vec<Calibration> = SETTINGS
        .into_iter()
        .filter(|&(seconds, _)| seconds >= round_seconds)
        .map(|(seconds, clip)| Calibration { block_seconds: whole(seconds), clip, ..default })
        .collect();
    let Some((first, others)) = settings.split_first() else { return Ok(default) };
    if seen.into_iter().filter(|&seen| seen).count() < FEWEST_PODS {
        return Ok(default);
    }

    let group = canary_pods.clamp(1, pods / 2);
    let history = History { rounds, pods, group, round_seconds, threshold: 1.0 / alpha };
    let mut tried = history.try_out(std::slice::from_ref(first));
    // How the others do matters only if the first raises more than a few alarms.
    if tried.iter().any(|first| first.alarms > few(first.placebos)) {
        tried.extend(history.try_out(others));
    }
    let fewest = tried.iter().map(|setting| u64::from(setting.alarms)).min().unwrap_or(0);
    let acceptable = |setting: &Calibration| {
        setting.alarms <= few(setting.placebos) || 2 * u64::from(setting.alarms) <= 3 * fewest
    };
    Ok(tried.into_iter().find(acceptable).filter(|chosen| chosen.placebos > 0).unwrap_or(default))
}

/// Alarms that speak for less than one in a hundred. With one in a hundred themselves, a setting of twice as
/// many passes in a fourth of all histories.
fn few(placebos: u32) -> u32 {
    placebos.div_ceil(200)
}

/// The fewest rounds that take at least so many seconds.
fn rounds_within(seconds: f64, round_seconds: f64) -> u32 {
    let mut rounds = 1;
    while f64::from(rounds) * round_seconds < seconds * (1.0 - ROUNDING) {
        rounds += 1;
    }
    rounds
}

/// What was counted in the past.
#[derive(Debug)]
struct History<'a, R> {
    rounds: &'a [R],
    pods: usize,
    /// Pods of a placebo.
    group: usize,
    round_seconds: f64,
    /// The capital at which there is an alarm.
    threshold: f64,
}

impl<R: AsRef<[PodCounts]>> History<'_, R> {
    /// The settings, with their placebos and the alarms of these. Hours in which pods cannot be compared are
    /// none, and an hour that is not complete is left out.
    fn try_out(&self, settings: &[Calibration]) -> Vec<Calibration> {
        let mut settings = settings.to_vec();
        let mut hour = rounds_within(PLACEBO_SECONDS, self.round_seconds);
        if f64::from(hour) * self.round_seconds > PLACEBO_SECONDS * (1.0 + ROUNDING) {
            hour -= 1;
        }
        for hour in self.rounds.chunks_exact(usize::try_from(hour).unwrap_or(usize::MAX)) {
            let all: Vec<PodCounts> = hour.iter().map(|round| sum(round.as_ref().iter())).collect();
            for first in 0..self.pods {
                let of_group = |(round, all): (&R, &PodCounts)| {
                    let pods = round.as_ref();
                    let own = sum(pods.iter().chain(pods).skip(first).take(self.group));
                    Counts {
                        x_canary: own.events,
                        x_baseline: (all.events - own.events).max(0.0),
                        n_canary: own.exposure,
                        n_baseline: (all.exposure - own.exposure).max(0.0),
                    }
                };
                self.run(&mut settings, hour.iter().zip(&all).map(of_group));
            }
        }
        settings
    }

    /// One hour of some pods against the others.
    fn run(&self, settings: &mut [Calibration], rounds: impl Iterator<Item = Counts>) {
        let mut placebos: Vec<Placebo> =
            settings.iter().map(|setting| Placebo::new(setting, self.round_seconds)).collect();
        let mut compared = false;
        for counts in rounds {
            compared |= counts.comparable();
            let eventful = counts.comparable() && counts.events() > 0.0;
            let log_factors = eventful.then(|| log_factors(1.0, &counts));
            for placebo in &mut placebos {
                placebo.round(&counts, log_factors.as_ref(), self.threshold);
            }
            if placebos.iter().all(|placebo| placebo.alarm) {
                break;
            }
        }
        for (setting, placebo) in settings.iter_mut().zip(placebos) {
            setting.placebos += u32::from(compared);
            setting.alarms += u32::from(placebo.alarm);
        }
    }
}

/// The events and the exposure of these pods.
fn sum<'a>(pods: impl Iterator<Item = &'a PodCounts>) -> PodCounts {
    pods.fold(PodCounts::default(), |sum, pod| PodCounts {
        events: sum.events + pod.events,
        exposure: sum.exposure + pod.exposure,
    })
}

/// A process with constant hazard as [`Blocks`](crate::blocks) has it, for an hour: the shares need no
/// logarithms, and they are summed only where an alarm is possible or a block ends.
#[derive(Debug)]
struct Placebo {
    rounds_per_block: u32,
    clip: f64,
    /// `exp(clip)`.
    largest_gain: f64,
    hazard: f64,
    shares: [f64; RATIOS],
    reserve: f64,
    /// `Σ shares + reserve`.
    capital: f64,
    /// Rounds that the open block still takes; 0 without one.
    left: u32,
    /// Of the open block, `ℓ_j`.
    log_factors: [f64; RATIOS],
    eventful: bool,
    n_canary: f64,
    n_baseline: f64,
    alarm: bool,
}

impl Placebo {
    fn new(setting: &Calibration, round_seconds: f64) -> Self {
        Self {
            rounds_per_block: rounds_within(setting.block_seconds, round_seconds),
            clip: setting.clip,
            largest_gain: libm::exp(setting.clip),
            hazard: (setting.block_seconds / RESTART_SECONDS).min(1.0),
            shares: UNIFORM.map(|share| 0.5 * share),
            reserve: 0.5,
            capital: 1.0,
            left: 0,
            log_factors: [0.0; RATIOS],
            eventful: false,
            n_canary: 0.0,
            n_baseline: 0.0,
            alarm: false,
        }
    }

    /// Without log factors the round changes nothing.
    fn round(&mut self, counts: &Counts, log_factors: Option<&[f64; RATIOS]>, threshold: f64) {
        if self.alarm || self.left == 0 && !counts.comparable() {
            return;
        }
        if self.left == 0 {
            self.open();
        }
        self.left -= 1;
        self.n_canary += counts.n_canary;
        self.n_baseline += counts.n_baseline;
        if let Some(log_factors) = log_factors {
            self.eventful = true;
            for (sum, log_factor) in self.log_factors.iter_mut().zip(log_factors) {
                *sum += log_factor;
            }
        }
        if self.eventful && (self.left == 0 || self.capital * self.largest_gain >= threshold) {
            let cap = clip(1.0, self.n_canary, self.n_baseline, self.clip);
            let mut shares = self.shares;
            for (share, log_factor) in shares.iter_mut().zip(self.log_factors) {
                *share *= libm::exp(log_factor.min(cap));
            }
            let capital = shares.iter().sum::<f64>() + self.reserve;
            self.alarm = capital >= threshold;
            if self.left == 0 {
                self.shares = shares;
                self.capital = capital;
            }
        }
    }

    fn open(&mut self) {
        let moved = self.hazard * self.reserve;
        for (share, prior) in self.shares.iter_mut().zip(UNIFORM) {
            *share += moved * prior;
        }
        self.reserve -= moved;
        self.left = self.rounds_per_block;
        self.log_factors = [0.0; RATIOS];
        self.eventful = false;
        self.n_canary = 0.0;
        self.n_baseline = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Blocks, Restarts};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_placebo_raises_its_alarm_in_the_round_in_which_a_process_does(
            rounds in prop::collection::vec(
                ((0_u32..4, 0_u32..9), (0_u32..9, 0_u32..3), prop_oneof![9 => Just(0_u32), 1 => 0_u32..9]), 60
            ),
            setting in prop::sample::select(SETTINGS.to_vec()),
            alpha in prop::sample::select(vec![0.3, 0.1, 0.01]),
        ) {
            let (seconds, cap) = setting;
            let setting = Calibration { block_seconds: seconds, clip: cap, placebos: 0, alarms: 0 };
            let mut placebo = Placebo::new(&setting, 5.0);
            let mut blocks = Blocks::new(UNIFORM, seconds, Restarts::Steady(RESTART_SECONDS)).unwrap();
            let (mut left, mut n_canary, mut n_baseline) = (0, 0.0, 0.0);
            for ((x_canary, x_baseline), (n_c, n_b), burst) in rounds {
                let counts = Counts {
                    x_canary: f64::from(x_canary + burst),
                    x_baseline: f64::from(x_baseline),
                    n_canary: f64::from(10 * n_c),
                    n_baseline: f64::from(100 * n_b),
                };
                if left == 0 && !counts.comparable() {
                    continue;
                }
                if left == 0 {
                    blocks.close(clip(1.0, n_canary, n_baseline, cap));
                    (left, n_canary, n_baseline) = (rounds_within(seconds, 5.0), 0.0, 0.0);
                    blocks.open();
                }
                left -= 1;
                n_canary += counts.n_canary;
                n_baseline += counts.n_baseline;
                let log_factors = log_factors(1.0, &counts);
                blocks.add(&log_factors).unwrap();
                let log_e = blocks.log_e(clip(1.0, n_canary, n_baseline, cap));
                let eventful = counts.comparable() && counts.events() > 0.0;
                placebo.round(&counts, eventful.then_some(&log_factors), 1.0 / alpha);
                prop_assert_eq!(placebo.alarm, log_e >= -libm::log(alpha), "{} {}", placebo.capital, log_e);
                if placebo.alarm {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_length_is_rounded_up_to_whole_rounds() {
        for (seconds, round_seconds, rounds) in
            [(15.0, 5.0, 3), (15.0, 15.0, 1), (15.0, 10.0, 2), (15.0, 0.1, 150), (3600.0, 0.1, 36_000)]
        {
            assert_eq!(rounds_within(seconds, round_seconds), rounds, "{seconds} {round_seconds}");
        }
    }
}
