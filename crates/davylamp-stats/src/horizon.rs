//! A lower threshold for a limited number of events: what the capital reaches in one of a hundred good
//! rollouts, instead of Ville's `1/α` for ever.
//!
//! **Null hypothesis.** That of [`EventProcess`](crate::EventProcess), on its boundary and with a constant
//! split of the traffic: each event is the canary's with the probability `q₀ = ρ₀·n_C/(ρ₀·n_C + n_B)`.
//!
//! **Formula.** The threshold `c` is the `1 − 0.8·α` quantile of the largest capital within `N` events, from
//! simulated runs. A rollout is rolled back when the capital reaches `c` within the first `N` events, or
//! `1/(0.2·α)` at any time.
//!
//! **Why it is valid.** Given that an event happened, whose it is depends on `q₀` alone and not on the rate of
//! events; so the null law is known, and `0.8·α` is spent on it. Ville's inequality spends the rest. A canary
//! that is better than the boundary raises the capital less.
//!
//! **Source.** Ville (1939), *Étude critique de la notion de collectif*; Wald and Wolfowitz (1948), *Optimum
//! character of the sequential probability ratio test*, for what there is to gain.
//!
//! **Cost.** Twelve multiplications an event and run: 20,000 runs of 1000 events take a quarter of a second.
//! With 400 runs above it, the threshold is known to 5 %.
//!
//! **When not to use it.** When the weight changes within the horizon, when events come in bursts or pods
//! differ, for which Ville's threshold leaves room: here the promise is used up.

use crate::event::{self, RATIO_GRID, RATIOS, UNIFORM};
use crate::{Error, blocks};

/// The part of `α` that is spent on the horizon.
const SPENT: f64 = 0.8;

/// More events than this in all runs together are refused.
const MOST_EVENTS: f64 = 1e11;

/// The null law of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NullLaw {
    /// `q₀`.
    pub canary_share: f64,
    /// How rounds and blocks are made of events; `None` for a look after each event, all capital at work and
    /// no clip.
    pub blocks: Option<NullBlocks>,
}

/// How the events of both cohorts come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NullBlocks {
    /// Their mean number in a round, at the end of which there is a look.
    pub events_per_round: f64,
    /// Whole rounds of a block.
    pub rounds: u32,
    /// The length of a block in seconds.
    pub seconds: f64,
    /// The largest clip.
    pub clip: f64,
}

/// The two thresholds.
///
/// ```
/// use davylamp_stats::{Horizon, NullLaw};
///
/// // A tenth of the traffic, 300 errors at most.
/// let law = NullLaw { canary_share: 0.1, blocks: None };
/// let horizon = Horizon::simulate(&law, 300, 0.01, 20_000, 7)?;
/// assert!((43.0..57.0).contains(&horizon.threshold()));
/// assert!(horizon.is_reached(60.0_f64.ln(), 250.0));
/// // Beyond the horizon 500 is needed.
/// assert!(!horizon.is_reached(60.0_f64.ln(), 301.0));
/// assert!(horizon.is_reached(501.0_f64.ln(), 1e6));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Horizon {
    events: f64,
    log_threshold: f64,
    log_for_ever: f64,
}

impl Horizon {
    /// Simulates `runs` of `events` each, always the same ones for a `seed`.
    pub fn simulate(law: &NullLaw, events: u32, alpha: f64, runs: u32, seed: u64) -> Result<Self, Error> {
        Error::unless(alpha > 0.0 && alpha < 1.0, "alpha", alpha, "a probability above 0 and below 1")?;
        let threshold = horizon_threshold(law, events, SPENT * alpha, runs, seed)?;
        let for_ever = 1.0 / ((1.0 - SPENT) * alpha);
        Ok(Self {
            events: f64::from(events),
            log_threshold: libm::log(threshold.min(for_ever)),
            log_for_ever: libm::log(for_ever),
        })
    }

    /// What the capital has to reach within the horizon.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        libm::exp(self.log_threshold)
    }

    /// Whether evidence of `log_e` is enough after so many events of both cohorts.
    #[must_use]
    pub fn is_reached(&self, log_e: f64, events: f64) -> bool {
        log_e >= if events <= self.events { self.log_threshold } else { self.log_for_ever }
    }
}

/// What the largest capital within `events` reaches with the probability `alpha`: the smallest number that is
/// reached in no more than that share of the runs.
///
/// ```
/// use davylamp_stats::{NullLaw, horizon_threshold};
///
/// let law = NullLaw { canary_share: 0.1, blocks: None };
/// let threshold = horizon_threshold(&law, 100, 0.01, 20_000, 7)?;
/// assert!((26.0..32.0).contains(&threshold));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn horizon_threshold(law: &NullLaw, events: u32, alpha: f64, runs: u32, seed: u64) -> Result<f64, Error> {
    let NullLaw { canary_share, blocks } = *law;
    Error::unless((0.0..=1.0).contains(&canary_share), "canary_share", canary_share, "a share from 0 to 1")?;
    if let Some(NullBlocks { events_per_round, rounds, seconds, clip }) = blocks {
        let ok = (1e-3..=1e6).contains(&events_per_round);
        Error::unless(ok, "events_per_round", events_per_round, "a number from 0.001 to 1e6")?;
        Error::unless((1..=1000).contains(&rounds), "rounds", f64::from(rounds), "a number from 1 to 1000")?;
        Error::unless((1e-3..=1e6).contains(&seconds), "seconds", seconds, "a number from 0.001 to 1e6")?;
        Error::unless(clip > 0.0 && clip.is_finite(), "clip", clip, "a finite number above 0")?;
    }
    Error::unless(alpha > 0.0 && alpha < 1.0, "alpha", alpha, "a probability above 0 and below 1")?;
    let few = f64::from(runs) * alpha;
    Error::unless(few >= 1.0, "runs", f64::from(runs), "at least 1/alpha")?;
    let ok = f64::from(events) * f64::from(runs) <= MOST_EVENTS;
    Error::unless(ok, "events", f64::from(events), "no more than 1e11 in all runs")?;

    let simulation = Simulation::new(canary_share, events);
    let mut largest: Vec<f64> = (0..runs)
        .map(|run| {
            let mut random = Random::new(seed, run);
            match &blocks {
                Some(blocks) => simulation.in_blocks(blocks, &mut random),
                None => simulation.one_by_one(&mut random),
            }
        })
        .collect();
    largest.sort_by(f64::total_cmp);
    // As many runs as may reach it are above.
    let above = largest.iter().rev().nth(whole(few)).copied();
    Ok(above.unwrap_or(1.0).max(1.0))
}

/// The runs of one law.
#[derive(Debug)]
struct Simulation {
    canary_share: f64,
    events: u32,
    /// What an event of the canary multiplies each alternative by, and one of the baseline.
    gains: [[f64; RATIOS]; 2],
}

impl Simulation {
    fn new(canary_share: f64, events: u32) -> Self {
        let of_baseline = RATIO_GRID.map(|ratio| 1.0 / (1.0 + canary_share * (ratio - 1.0)));
        let mut of_canary = of_baseline;
        for (gain, ratio) in of_canary.iter_mut().zip(RATIO_GRID) {
            *gain *= ratio;
        }
        Self { canary_share, events, gains: [of_canary, of_baseline] }
    }

    /// What one more event multiplies the alternatives by.
    fn event(&self, random: &mut Random) -> &[f64; RATIOS] {
        &self.gains[usize::from(random.uniform() >= self.canary_share)]
    }

    /// The largest capital with a look after each event.
    fn one_by_one(&self, random: &mut Random) -> f64 {
        let mut shares = UNIFORM;
        let mut largest = 1.0_f64;
        for _ in 0..self.events {
            for (share, gain) in shares.iter_mut().zip(self.event(random)) {
                *share *= gain;
            }
            largest = largest.max(shares.iter().sum());
        }
        largest
    }

    /// The largest capital of an [`EventProcess`](crate::EventProcess), whose shares need no logarithms here:
    /// what vanishes would not have come back.
    fn in_blocks(&self, blocks: &NullBlocks, random: &mut Random) -> f64 {
        let NullBlocks { events_per_round, rounds, seconds, clip } = *blocks;
        let cap = libm::exp(event::clip(1.0, self.canary_share, 1.0 - self.canary_share, clip));
        let (mut shares, mut reserve) = (UNIFORM.map(|prior| 0.5 * prior), 0.5);
        let (mut largest, mut due, mut counted, mut before) = (1.0_f64, 0.0, 0, 0);
        while counted < self.events {
            let moved =
                reserve * (seconds / (blocks::RESTART_SECONDS + seconds * f64::from(before))).min(1.0);
            for (share, prior) in shares.iter_mut().zip(UNIFORM) {
                *share += moved * prior;
            }
            reserve -= moved;
            before += 1;
            let mut factors = [1.0; RATIOS];
            for _ in 0..rounds {
                due += events_per_round;
                while f64::from(counted) + 1.0 <= due && counted < self.events {
                    counted += 1;
                    for (factor, gain) in factors.iter_mut().zip(self.event(random)) {
                        *factor *= gain;
                    }
                }
                let at_work: f64 = shares.iter().zip(factors).map(|(share, f)| share * f.min(cap)).sum();
                largest = largest.max(at_work + reserve);
            }
            for (share, factor) in shares.iter_mut().zip(factors) {
                *share *= factor.min(cap);
            }
        }
        largest
    }
}

/// Numbers that look random: `SplitMix64`.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new(seed: u64, run: u32) -> Self {
        let mut random = Self(seed ^ u64::from(run).wrapping_mul(0xD134_2543_DE82_EF95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / 9_007_199_254_740_992.0
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and the number of runs"
)]
fn whole(number: f64) -> usize {
    number as usize
}
