//! Two proportions that are not rare: the factor that is exact for Bernoulli events, and the process that
//! bets with it when the pooled rate is above [`COMMON_RATE`].
//!
//! **Null hypothesis.** In every round the canary's average event probability is at most `ρ₀` times the
//! baseline's: `H₀: p_C ≤ ρ₀·p_B`. With an absolute margin: `p_C ≤ p_B + δ`.
//!
//! **Formula.** An alternative `(θ₁C, θ₁B)` is compared with the point `(θ₀C, θ₀B)` of the null that is
//! nearest to it, by the Kullback-Leibler divergence with the exposures as weights:
//! ```text
//! ℓ = Σ_C,B  x·ln(θ₁/θ₀) + (n − x)·ln((1 − θ₁)/(1 − θ₀))                with x = min(x, n)
//! ratio        θ₀B = t and θ₀C = ρ₀·t: the smaller root of ρ₀·t² − b·t + 1 − u − v = 0, where
//!              u = n_B·(1 − θ₁B)/(n_C + n_B), v = n_C·(1 − θ₁C)/(n_C + n_B), b = 1 − v + ρ₀·(1 − u)
//! difference   θ₀B = t and θ₀C = t + δ, where the divergence has the derivative 0 with respect to t
//! ```
//! Inside the null the nearest point is the alternative itself and `ℓ = 0`. The process bets on the twelve
//! ratios of [`RATIO_GRID`], with `θ₁B = (x + ½)/(n + 1)` from the events and the exposure of both cohorts in
//! closed blocks, and `θ₁C = ρ₀·r_j·θ₁B`; a ratio for which that is no probability takes no part. Clip,
//! reserve and restarts are those of [`EventProcess`](crate::EventProcess).
//!
//! **Why it is valid.** `E[e^ℓ] = Π(1 + s·(p − θ₀)) ≤ exp(Σ s·(p − θ₀))` over the requests of both cohorts,
//! where `s = (θ₁ − θ₀)/(θ₀(1 − θ₀))` of the cohort. That sum is the derivative of the divergence at its
//! minimum, in the direction from the nearest point to `(p_C, p_B)`, with its sign changed: at most 0 for
//! every point of a convex null. What `θ₁B` is does not matter for this, as long as it is known before.
//!
//! **Source.** Grünwald, de Heide and Koolen (2024), *Safe testing*; Turner, Ly and Grünwald (2024), *Generic
//! e-variables for exact sequential k-sample tests that allow for optional stopping*.
//!
//! **Cost.** Twelve square roots and 48 logarithms a round: four times that of the binomial form.
//!
//! **When not to use it.** Below a rate of 20 %, where the binomial form is as strong and needs no estimate
//! of the rate. When the events may outnumber the exposure. For a small difference at equal traffic: a block
//! that says much is worth no more than the clip, `ln 2` there, so that shorter blocks are needed.

use crate::blocks::{Blocks, Restarts};
use crate::event::{LARGEST_CLIP, RATIO_GRID, RATIOS, UNIFORM, clip};
use crate::state::{Reader, Writer};
use crate::{Counts, Error};

/// The pooled rate in the history of a service above which its events are not rare: from there on this
/// process finds a regression sooner than [`EventProcess`](crate::EventProcess).
pub const COMMON_RATE: f64 = 0.2;

/// Rates are not closer to 0 or 1 than this.
const SMALLEST_RATE: f64 = 1e-12;

/// After so many halvings an interval between two rates has no number inside it.
const HALVINGS: u32 = 100;

/// An event probability for each cohort.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// That of the canary.
    pub canary: f64,
    /// That of the baseline.
    pub baseline: f64,
}

impl Rates {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        for (name, value) in [("canary", self.canary), ("baseline", self.baseline)] {
            let ok = (SMALLEST_RATE..=1.0 - SMALLEST_RATE).contains(&value);
            Error::unless(ok, name, value, "a probability from 1e-12 to 1 - 1e-12")?;
        }
        Ok(())
    }

    /// The nearest point with `p_C ≤ ρ₀·p_B`, for exposures that are above 0.
    pub(crate) fn project_on_ratio(self, rho0: f64, n_canary: f64, n_baseline: f64) -> Self {
        let Self { canary, baseline } = self;
        if canary <= rho0 * baseline {
            return self;
        }
        let weight = n_canary / (n_canary + n_baseline);
        let mean = weight * canary + (1.0 - weight) * baseline;
        let (u, v) = ((1.0 - weight) * (1.0 - baseline), weight * (1.0 - canary));
        let (one, other) = (1.0 - v, rho0 * (1.0 - u));
        // The discriminant as a sum, in which nothing cancels; for ρ₀ = 1 the root is the mean.
        let root = ((one - other) * (one - other) + 4.0 * rho0 * u * v).sqrt();
        // Rounding must not put it beyond where one of the two rates is that of the alternative.
        let nearest = (2.0 * mean / (one + other + root)).max(baseline).min(canary / rho0);
        Self { canary: (rho0 * nearest).min(canary), baseline: nearest.min(1.0 - f64::EPSILON) }
    }

    /// The nearest point with `p_C ≤ p_B + δ`, for exposures that are above 0.
    fn project_on_difference(self, delta: f64, n_canary: f64, n_baseline: f64) -> Self {
        let Self { canary, baseline } = self;
        if canary <= baseline + delta {
            return self;
        }
        let slope = |n: f64, rate: f64, null: f64| n * ((1.0 - rate) / (1.0 - null) - rate / null);
        let (mut below, mut above) = (baseline, canary - delta);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(below, above);
            if slope(n_canary, canary, middle + delta) + slope(n_baseline, baseline, middle) < 0.0 {
                below = middle;
            } else {
                above = middle;
            }
        }
        Self { canary: (below + delta).min(canary), baseline: below }
    }
}

/// The point of the null that is nearest to an alternative, and the evidence for the latter against it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ripr {
    /// The nearest rates under the null; the alternative itself if it is one of them.
    pub null: Rates,
    /// The log factor of the counts.
    pub log_e: f64,
}

/// The factor of one round for the alternative `rates`, against all rates with `p_C ≤ ρ₀·p_B`.
///
/// ```
/// use davylamp_stats::ripr::{Rates, ratio_log_factor};
/// use davylamp_stats::Counts;
///
/// let counts = Counts { x_canary: 11.0, x_baseline: 25.0, n_canary: 80.0, n_baseline: 720.0 };
/// let alternative = Rates { canary: 0.09, baseline: 0.03 };
/// let ripr = ratio_log_factor(1.1, &alternative, &counts)?;
/// assert!((ripr.null.baseline - 0.035_662_223).abs() < 1e-9);
/// assert!((ripr.null.canary - 1.1 * ripr.null.baseline).abs() < 1e-12);
/// assert!((ripr.log_e - 5.134_807_007).abs() < 1e-9);
///
/// // Three times the rate is no alternative to at most four times.
/// assert!(ratio_log_factor(4.0, &alternative, &counts)?.log_e == 0.0);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn ratio_log_factor(rho0: f64, rates: &Rates, counts: &Counts) -> Result<Ripr, Error> {
    Error::unless_ratio("rho0", rho0)?;
    against(rates, counts, |rates| rates.project_on_ratio(rho0, counts.n_canary, counts.n_baseline))
}

/// The factor of one round for the alternative `rates`, against all rates with `p_C ≤ p_B + δ`; `delta` is at
/// least 0 and below 1.
///
/// ```
/// use davylamp_stats::ripr::{Rates, difference_log_factor};
/// use davylamp_stats::Counts;
///
/// let counts = Counts { x_canary: 11.0, x_baseline: 25.0, n_canary: 80.0, n_baseline: 720.0 };
/// let alternative = Rates { canary: 0.09, baseline: 0.03 };
/// let ripr = difference_log_factor(0.01, &alternative, &counts)?;
/// assert!((ripr.null.baseline - 0.033_991_328).abs() < 1e-9);
/// assert!((ripr.log_e - 4.213_708_516).abs() < 1e-9);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn difference_log_factor(delta: f64, rates: &Rates, counts: &Counts) -> Result<Ripr, Error> {
    Error::unless((0.0..1.0).contains(&delta), "delta", delta, "a number from 0, below 1")?;
    against(rates, counts, |rates| rates.project_on_difference(delta, counts.n_canary, counts.n_baseline))
}

fn against(rates: &Rates, counts: &Counts, project: impl Fn(Rates) -> Rates) -> Result<Ripr, Error> {
    rates.validate()?;
    counts.validate()?;
    if !counts.comparable() {
        return Ok(Ripr { null: *rates, log_e: 0.0 });
    }
    let null = project(*rates);
    Ok(Ripr { null, log_e: log_factor(rates, &null, counts) })
}

/// `ℓ` for rates between 0 and 1 and exposures above 0.
fn log_factor(rates: &Rates, null: &Rates, counts: &Counts) -> f64 {
    let cohort = |x: f64, n: f64, rate: f64, null: f64| {
        let x = x.min(n);
        x * libm::log(rate / null) + (n - x) * libm::log1p((null - rate) / (1.0 - null))
    };
    cohort(counts.x_canary, counts.n_canary, rates.canary, null.canary)
        + cohort(counts.x_baseline, counts.n_baseline, rates.baseline, null.baseline)
}

/// The test of a proportion that is not rare: evidence that the canary's is more than `ρ₀` times the
/// baseline's.
///
/// It is used like [`EventProcess`](crate::EventProcess), which takes any rate; the caller chooses by the
/// pooled rate in the history of the service.
///
/// ```
/// use davylamp_stats::{Counts, EventProcess, ProportionProcess};
///
/// // Half of the requests are cache misses, on the canary 60 %.
/// let round = Counts { x_canary: 90.0, x_baseline: 675.0, n_canary: 150.0, n_baseline: 1350.0 };
/// let mut process = ProportionProcess::new(1.0, 15.0)?;
/// let mut binomial = EventProcess::new(1.0, 15.0, None)?;
/// for _ in 0..3 {
///     process.round(&round, true)?;
///     binomial.round(&round, true)?;
/// }
/// assert!(process.log_e() > 100.0_f64.ln());
/// assert!(binomial.log_e() < 20.0_f64.ln());
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ProportionProcess {
    rho0: f64,
    /// The largest clip: `ln 10`, or what history has shown a cluster to be.
    largest_clip: f64,
    blocks: Blocks<RATIOS>,
    /// Of the open block: exposure of each cohort, events of both.
    n_canary: f64,
    n_baseline: f64,
    events: f64,
    /// Of both cohorts in closed blocks.
    past_events: f64,
    past_exposure: f64,
}

impl ProportionProcess {
    /// A process without evidence. `rho0` is the tolerated ratio, `block_seconds` the nominal length of a
    /// block.
    pub fn new(rho0: f64, block_seconds: f64) -> Result<Self, Error> {
        Error::unless_ratio("rho0", rho0)?;
        Ok(Self {
            rho0,
            largest_clip: LARGEST_CLIP,
            blocks: Blocks::new(UNIFORM, block_seconds, Restarts::Fading)?,
            n_canary: 0.0,
            n_baseline: 0.0,
            events: 0.0,
            past_events: 0.0,
            past_exposure: 0.0,
        })
    }

    /// Caps the log factors of each block at `largest`, above 0, instead of at `ln 10`:
    /// [`calibrate`](crate::calibration) says at what.
    pub fn with_clip(self, largest: f64) -> Result<Self, Error> {
        Error::unless(largest > 0.0 && largest.is_finite(), "largest", largest, "a finite number above 0")?;
        Ok(Self { largest_clip: largest, ..self })
    }

    /// Changes the tolerated ratio: the open block is closed, and the next one tests this one.
    pub fn tolerate(&mut self, rho0: f64) -> Result<(), Error> {
        Error::unless_ratio("rho0", rho0)?;
        self.close_block();
        self.rho0 = rho0;
        Ok(())
    }

    /// Takes one round. With `new_block` it is the first of a block: the open one is closed before. Without
    /// an open block, any round is the first of one. In either cohort as many events count as there is
    /// exposure.
    pub fn round(&mut self, counts: &Counts, new_block: bool) -> Result<(), Error> {
        counts.validate()?;
        if new_block {
            self.close_block();
        }
        self.blocks.open();
        let log_factors = self.log_factors(counts);
        self.n_canary += counts.n_canary;
        self.n_baseline += counts.n_baseline;
        self.events += counts.x_canary.min(counts.n_canary) + counts.x_baseline.min(counts.n_baseline);
        self.blocks.add(&log_factors)
    }

    /// Closes the open block, if any, because the traffic weight or a cohort changes.
    pub fn close_block(&mut self) {
        if self.blocks.close(self.cap()).is_some() {
            self.past_events += self.events;
            self.past_exposure += self.n_canary + self.n_baseline;
            self.n_canary = 0.0;
            self.n_baseline = 0.0;
            self.events = 0.0;
        }
    }

    /// The logarithm of the evidence against the null, with the open block.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.blocks.log_e(self.cap())
    }

    /// The state, without the parameters: 254 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self {
            rho0: _,
            largest_clip: _,
            blocks,
            n_canary,
            n_baseline,
            events,
            past_events,
            past_exposure,
        } = self;
        let mut writer = Writer::new();
        blocks.write(&mut writer);
        writer.numbers(&[*n_canary, *n_baseline, *events, *past_events, *past_exposure]);
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same. Another `rho0` applies from the next round on.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let restored = Self {
            blocks: self.blocks.read(&mut reader)?,
            n_canary: reader.not_negative("n_canary")?,
            n_baseline: reader.not_negative("n_baseline")?,
            events: reader.not_negative("events")?,
            past_events: reader.not_negative("past_events")?,
            past_exposure: reader.not_negative("past_exposure")?,
            ..self
        };
        reader.finish()?;
        Ok(restored)
    }

    /// `ℓ_j` of one round.
    fn log_factors(&self, counts: &Counts) -> [f64; RATIOS] {
        if !counts.comparable() {
            return [0.0; RATIOS];
        }
        let baseline = (self.past_events + 0.5) / (self.past_exposure + 1.0);
        RATIO_GRID.map(|ratio| {
            let rates = Rates { canary: self.rho0 * ratio * baseline, baseline };
            if rates.validate().is_ok() {
                let null = rates.project_on_ratio(self.rho0, counts.n_canary, counts.n_baseline);
                log_factor(&rates, &null, counts)
            } else {
                0.0
            }
        })
    }

    /// What the open block's log factors are capped at.
    fn cap(&self) -> f64 {
        clip(self.rho0, self.n_canary, self.n_baseline, self.largest_clip)
    }
}
