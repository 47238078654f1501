//! How long a rollout will take: until a regression is found, and until a good canary is promoted.
//!
//! Takes the traffic, the rate of events and the parameters of a process; gives the mean time until that
//! process reaches its threshold.
//!
//! **Null hypothesis.** None is tested; the processes are [`EventProcess`](crate::EventProcess) and
//! [`NonInferiority`](crate::NonInferiority).
//!
//! **Formula.** In a block the gain of alternative `j`, `min(ℓ_j, b, ln g)`, has the mean `μ_j` and the
//! deviation `σ_j`: summed over the canary's events, which are Poisson, with those of the baseline normal.
//! After `k` blocks, with the luck `y ~ N(0, 1)` that all alternatives share,
//! ```text
//! M_k(y)  = Σ_j π_j·exp(min(k·μ_j + √k·σ_j·y, k·b))       π_j: the prior, half of it on the way to a rollback
//! T/L     = Σ_{k≥0} P(M_k < 1/α) − H(μ/σ)·σ/μ             μ, σ: where M_k(0) crosses
//! H(d)    = 1/(2d) − 0.5826 + d/4 − 0.0415·d²             up to d = 2, then 0
//! ```
//! The second term takes off the blocks in which the capital is below the threshold again after it has
//! crossed. Restarts lower the threshold of a detection by `½·E ln(1 + 4h/(σ²·G))`, at most 2, with `G`
//! gamma-distributed of shape `2μ/σ²`: half of what capital that is put to work at the constant hazard `h`
//! gains over capital that had to bear the worst phase. With a floor, `v_i` is its average halfway.
//!
//! **Why it is valid.** It is an approximation. Against simulations of 20, 200 and 1000 requests a second
//! with rates from 0.1 to 3 % and weights from 5 to 50 %, in blocks of 15 s: a detection of the ratios 2, 3 and
//! 5 is −5 to +10 % of the mean; with a floor of 0.1 % −15 to +18 %, or −39 % where it takes more than an hour.
//! A promotion at the margins 1.5, 2 and 3 is −4 to +12 %, or half a block where it takes two.
//!
//! **Source.** Siegmund (1985), *Sequential analysis*, for `H`; Woodroofe (1982), *Nonlinear renewal theory in
//! sequential analysis*; Dufresne (1990), *The distribution of a perpetuity*, for `G`.
//!
//! **Cost.** Half a millisecond for a promotion, a whole one for a detection.
//!
//! **When not to use it.** For rates above 20 %, which are found sooner, or events that come in bursts, which
//! are found later.
//!
//! A floor makes short blocks blind where there is little traffic: in a block in which the canary happens to
//! have no event, both the ratio and the floor speak for it. At 20 requests a second and half of the weight, a
//! rise from 0.3 to 0.9 % is found within an hour in 7 % of cases with blocks of 15 s, in 99 % with 60 s.

use crate::bernoulli::Bernoulli;
use crate::blocks::RESTART_SECONDS;
use crate::capital::log_sum_exp;
use crate::event::{LARGEST_CLIP, UNIFORM, clip, floor_rate, log_factors};
use crate::hypergeometric::stirling;
use crate::information::{Traffic, capped, risk};
use crate::non_inferiority::absolute_rate;
use crate::{Counts, Error};

/// What takes longer than this many blocks is never reached.
const LONGEST: f64 = 1e9;

/// Events of a block.
const LARGEST_EVENTS: f64 = 1e12;

/// Luck beyond this is ignored: a probability of 3·10⁻⁵.
const LARGEST_LUCK: f64 = 4.0;

/// Restarts lower what is needed by at most this, and to no less than the other.
const LARGEST_RESTART_GAIN: f64 = 2.0;
const SMALLEST_NEED: f64 = 0.1;

/// Five equally probable parts of a normal distribution, by their medians.
const LUCK: [f64; 5] = [-1.2816, -0.5244, 0.0, 0.5244, 1.2816];

/// Twice the mean over the variance of a block, which is 1 for a likelihood ratio. Below this a crossing is
/// mere luck.
const SMALLEST_SHAPE: f64 = 0.1;

/// Largest ratio that is looked for, as a multiple of the tolerated one.
const LARGEST_MULTIPLE: f64 = 1000.0;

/// The process that is to find a regression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// The tolerated ratio, widened for the difference between pods.
    pub rho0: f64,
    /// The share of the rate of false alarms that this metric alone may use: its weight times `α`.
    pub alpha: f64,
    /// The absolute floor.
    pub floor: Option<f64>,
    /// The largest clip.
    pub clip: f64,
}

impl Detection {
    /// Without a floor, and with the clip that is used when nothing is known.
    #[must_use]
    pub fn new(rho0: f64, alpha: f64) -> Self {
        Self { rho0, alpha, floor: None, clip: LARGEST_CLIP }
    }
}

/// The process that is to promote a canary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promotion {
    /// The ratio to be ruled out, narrowed for the difference between pods.
    pub margin: f64,
    /// The rate of false promotions.
    pub beta: f64,
    /// The tolerated rate and the weight of the next step, as for
    /// [`NonInferiority`](crate::NonInferiority::new).
    pub absolute: Option<(f64, f64)>,
}

/// The mean time in seconds until a canary with `ratio` times the rate of the baseline is found. `None` if
/// that is not to be expected. Warm-up and settling are not included.
///
/// ```
/// use davylamp_stats::{Detection, Traffic, detect_seconds};
///
/// // 50 requests a second, 1 % errors, 5 % of the traffic: a doubling takes 12 minutes, ×5 less than two.
/// let traffic = Traffic { requests_per_second: 50.0, weight: 0.05, rate: 0.01, block_seconds: 15.0 };
/// let detection = Detection::new(1.0, 0.01);
/// let minutes = |ratio: f64| Ok(detect_seconds(&traffic, ratio, &detection)?.unwrap() / 60.0);
/// assert!((minutes(2.0)? - 12.37).abs() < 0.01);
/// assert!((minutes(5.0)? - 1.89).abs() < 0.01);
/// // What is tolerated is never found.
/// assert_eq!(detect_seconds(&traffic, 1.05, &Detection::new(1.1, 0.01))?, None);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn detect_seconds(traffic: &Traffic, ratio: f64, detection: &Detection) -> Result<Option<f64>, Error> {
    let Detection { rho0, alpha, floor, clip: largest } = *detection;
    traffic.validate()?;
    Error::unless_ratio("ratio", ratio)?;
    Error::unless_ratio("rho0", rho0)?;
    Error::unless(largest > 0.0 && largest.is_finite(), "clip", largest, "a finite number above 0")?;
    let needed = -libm::log(risk("alpha", alpha)?);
    let floor = floor.map(floor_rate).transpose()?;

    let block = Block::new(traffic, ratio);
    let cap = clip(rho0, block.exposures.n_canary, block.exposures.n_baseline, largest);
    // The bets and what they need, as they are halfway through so many blocks.
    let race = |blocks: f64| {
        let half = 0.5 * blocks;
        let hazard = traffic.block_seconds / (RESTART_SECONDS + traffic.block_seconds * half);
        let mut caps = vec![cap; block.outcomes.len()];
        if let Some(rate) = &floor {
            for (cap, gain) in caps.iter_mut().zip(block.floor_gains(rate, half, hazard)) {
                *cap = gain.min(*cap);
            }
        }
        let bets = Bets(block.ratio_bets(0.5, rho0, cap, &caps, |counts| counts));
        let gain = bets.restart_gain(bets.crossing(needed)?, hazard);
        Some((bets, (needed - gain).max(SMALLEST_NEED)))
    };
    let in_time = |blocks: f64| {
        let crossing = race(blocks).and_then(|(bets, needed)| bets.crossing(needed));
        crossing.is_some_and(|crossing| crossing <= blocks)
    };
    let blocks = first(in_time).and_then(race).and_then(|(bets, needed)| bets.mean_blocks(needed));
    Ok(blocks.map(|blocks| blocks * traffic.block_seconds))
}

/// The mean time in seconds until a canary that is as good as the baseline is promoted. `None` if that is not
/// to be expected. Settling is not included, nor the shortest duration of a step.
///
/// ```
/// use davylamp_stats::{Promotion, Traffic, promote_seconds};
///
/// // From 10 % to a quarter of the traffic, which allows a ratio of 3.
/// let healthy = Traffic { requests_per_second: 200.0, weight: 0.1, rate: 0.002, block_seconds: 15.0 };
/// let promotion = Promotion { margin: 3.0, beta: 0.05, absolute: Some((0.001, 0.25)) };
/// let seconds = |traffic: &Traffic, promotion: &Promotion| Ok(promote_seconds(traffic, promotion)?.unwrap());
/// assert!((seconds(&healthy, &promotion)? - 168.3).abs() < 0.1);
/// // Without any errors a rate of 0.4 % is ruled out soon, but no ratio ever.
/// let flawless = Traffic { rate: 0.0, ..healthy };
/// assert!((seconds(&flawless, &promotion)? - 75.0).abs() < 1.0);
/// assert_eq!(promote_seconds(&flawless, &Promotion { absolute: None, ..promotion })?, None);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn promote_seconds(traffic: &Traffic, promotion: &Promotion) -> Result<Option<f64>, Error> {
    let Promotion { margin, beta, absolute } = *promotion;
    traffic.validate()?;
    Error::unless_ratio("margin", margin)?;
    let needed = -libm::log(risk("beta", beta)?);
    let absolute = absolute.map(|(delta, next_weight)| absolute_rate(delta, next_weight)).transpose()?;

    let block = Block::new(traffic, 1.0);
    let caps = vec![LARGEST_CLIP; block.outcomes.len()];
    let half = if absolute.is_some() { 0.5 } else { 1.0 };
    let mut bets = block.ratio_bets(half, 1.0 / margin, LARGEST_CLIP, &caps, |counts| counts.swapped());
    if let Some(rate) = absolute {
        for (i, prior) in rate.prior().into_iter().enumerate() {
            let gain = |events: f64| rate.log_factors(events, block.exposures.n_canary)[i];
            bets.push(block.bet(0.5 * prior, LARGEST_CLIP, &caps, gain, 0.0));
        }
    }
    Ok(Bets(bets).mean_blocks(needed).map(|blocks| blocks * traffic.block_seconds))
}

/// The smallest ratio that is found within a mean time: the minimum detectable effect. `None` if that is more
/// than 1000 times the tolerated one.
///
/// ```
/// use davylamp_stats::{Detection, Traffic, smallest_ratio};
///
/// let traffic = Traffic { requests_per_second: 50.0, weight: 0.05, rate: 0.01, block_seconds: 15.0 };
/// let found = smallest_ratio(&traffic, 600.0, &Detection::new(1.1, 0.01))?.unwrap();
/// assert!((found - 2.29).abs() < 0.01);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn smallest_ratio(traffic: &Traffic, seconds: f64, detection: &Detection) -> Result<Option<f64>, Error> {
    Error::unless(seconds >= 0.0 && seconds.is_finite(), "seconds", seconds, "a finite number from 0")?;
    let rho0 = detection.rho0;
    let found = |multiple: f64| {
        let ratio = (rho0 * multiple).min(1e9);
        Ok(detect_seconds(traffic, ratio, detection)?.is_some_and(|mean| mean <= seconds))
    };
    let (mut inside, mut outside) = (0.0, libm::log(LARGEST_MULTIPLE));
    if !found(LARGEST_MULTIPLE)? {
        return Ok(None);
    }
    for _ in 0..20 {
        let middle = f64::midpoint(inside, outside);
        if found(libm::exp(middle))? {
            outside = middle;
        } else {
            inside = middle;
        }
    }
    Ok(Some((rho0 * libm::exp(outside)).min(1e9)))
}

/// The time of a rollout without incidents: of each step, the mean time of the metric that is promoted last.
/// Every step takes the time to settle and then at least what is missing to the shortest duration; the first
/// one warms up before.
///
/// ```
/// // 5, 4 and 12 minutes of evidence.
/// let seconds = davylamp_stats::rollout_seconds(&[300.0, 60.0, 720.0], 120.0, 30.0, 180.0)?;
/// assert_eq!(seconds, 120.0 + 330.0 + 180.0 + 750.0);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn rollout_seconds(steps: &[f64], warmup: f64, settle: f64, shortest: f64) -> Result<f64, Error> {
    for (name, value) in [("warmup", warmup), ("settle", settle), ("shortest", shortest)] {
        Error::unless((0.0..=1e9).contains(&value), name, value, "a number from 0 to 1e9")?;
    }
    let mut seconds = warmup;
    for &step in steps {
        Error::unless((0.0..=1e300).contains(&step), "steps", step, "finite numbers from 0")?;
        seconds += (settle + step).max(shortest);
    }
    Ok(seconds)
}

/// A step whose mean time is `seconds` will often not be decided within `longest`: in one case of ten it
/// takes about twice the mean. Worth a warning before the rollout begins.
#[must_use]
pub fn often_undecided(seconds: Option<f64>, longest: f64) -> bool {
    seconds.is_none_or(|seconds| 2.0 * seconds > longest)
}

/// The smallest number of blocks with which this holds; `None` if with none.
fn first(holds: impl Fn(f64) -> bool) -> Option<f64> {
    let mut outside = 1.0;
    while !holds(outside) {
        outside *= 2.0;
        if outside > LONGEST {
            return None;
        }
    }
    let mut inside = if outside > 1.0 { 0.5 * outside } else { 0.0 };
    while outside - inside > 1e-3 * outside {
        let middle = f64::midpoint(inside, outside);
        if holds(middle) {
            outside = middle;
        } else {
            inside = middle;
        }
    }
    Some(outside)
}

/// A number of the canary's events in a block.
struct Outcome {
    events: f64,
    probability: f64,
}

/// What is counted in a block.
struct Block {
    /// Without the events.
    exposures: Counts,
    /// The mean number of events.
    canary: f64,
    baseline: f64,
    /// The canary's events, at most some hundred values of them.
    outcomes: Vec<Outcome>,
}

impl Block {
    fn new(traffic: &Traffic, ratio: f64) -> Self {
        let all = traffic.exposures();
        // Events beyond what can be counted exactly change nothing: a block is worth no more than its cap.
        let expected = traffic.rate * (all.n_canary * ratio + all.n_baseline);
        let scale = if expected > LARGEST_EVENTS { LARGEST_EVENTS / expected } else { 1.0 };
        let exposures = Counts { n_canary: scale * all.n_canary, n_baseline: scale * all.n_baseline, ..all };
        let canary = exposures.n_canary * traffic.rate * ratio;
        let spread = 8.0 * canary.sqrt();
        let (first, last) = ((canary - spread - 2.0).floor().max(0.0), (canary + spread + 8.0).ceil());
        let step = ((last - first) / 64.0).ceil().max(1.0);
        let mut outcomes = Vec::new();
        let (mut events, mut total) = (first, 0.0);
        while events <= last {
            // Poisson; 0·ln 0 is 0.
            let power = if events > 0.0 { events * libm::log(canary / events) } else { 0.0 };
            let probability = libm::exp(power + events - canary - stirling(events));
            total += probability;
            outcomes.push(Outcome { events, probability });
            events += step;
        }
        for outcome in &mut outcomes {
            outcome.probability /= total;
        }
        Self { exposures, canary, baseline: exposures.n_baseline * traffic.rate, outcomes }
    }

    /// `ln g` for each of the outcomes, after some blocks: the shares are averages over the luck until then.
    fn floor_gains(&self, rate: &Bernoulli<6>, blocks: f64, hazard: f64) -> Vec<f64> {
        let exposure = self.exposures.n_canary;
        let prior = rate.prior();
        let mut shares = prior.map(|prior| hazard * prior);
        for luck in LUCK {
            let events = (blocks * self.canary + (blocks * self.canary).sqrt() * luck).max(0.0);
            let mut terms = rate.log_factors(events, blocks * exposure);
            for (term, prior) in terms.iter_mut().zip(prior) {
                *term += libm::log(prior);
            }
            let total = log_sum_exp(&terms, f64::NEG_INFINITY);
            for (share, term) in shares.iter_mut().zip(terms) {
                *share += (1.0 - hazard) * 0.2 * libm::exp(term - total);
            }
        }
        let gain = |outcome: &Outcome| {
            let mut terms = rate.log_factors(outcome.events, exposure);
            for (term, share) in terms.iter_mut().zip(shares) {
                *term += libm::log(share);
            }
            log_sum_exp(&terms, f64::NEG_INFINITY)
        };
        self.outcomes.iter().map(gain).collect()
    }

    /// The twelve ratios, which have a part of the capital; with the cohorts in the order of a process.
    fn ratio_bets(
        &self,
        capital: f64,
        rho0: f64,
        largest: f64,
        caps: &[f64],
        order: impl Fn(Counts) -> Counts,
    ) -> Vec<Bet> {
        let event = |x_canary: f64, x_baseline: f64| {
            log_factors(rho0, &order(Counts { x_canary, x_baseline, ..self.exposures }))
        };
        let of_both = event(1.0, 0.0).into_iter().zip(event(0.0, 1.0)).zip(UNIFORM);
        of_both
            .map(|((canary, baseline), prior)| {
                self.bet(capital * prior, largest, caps, |events| events * canary, baseline)
            })
            .collect()
    }

    /// The bet that gains `gain` for the canary's events and `event` for each of the baseline's, but at most
    /// the cap of the outcome.
    fn bet(&self, capital: f64, largest: f64, caps: &[f64], gain: impl Fn(f64) -> f64, event: f64) -> Bet {
        let deviation = self.baseline.sqrt() * event.abs();
        let (mut mean, mut square) = (0.0, 0.0);
        for (Outcome { events, probability }, &cap) in self.outcomes.iter().zip(caps) {
            let (part, deviation) = capped(gain(*events) + self.baseline * event, deviation, cap);
            mean += probability * part;
            square += probability * (part * part + deviation * deviation);
        }
        let deviation = (square - mean * mean).max(0.0).sqrt();
        Bet { log_capital: libm::log(capital), mean, deviation, largest }
    }
}

/// An alternative with its capital, and what happens to it in a block.
struct Bet {
    log_capital: f64,
    mean: f64,
    deviation: f64,
    largest: f64,
}

impl Bet {
    /// The logarithm of the capital after some blocks.
    fn after(&self, blocks: f64, luck: f64) -> f64 {
        let gain = blocks * self.mean + blocks.sqrt() * self.deviation * luck;
        self.log_capital + gain.min(blocks * self.largest)
    }
}

struct Bets(Vec<Bet>);

impl Bets {
    /// `ln M_k(y)`.
    fn after(&self, blocks: f64, luck: f64) -> f64 {
        let terms = self.0.iter().map(|bet| bet.after(blocks, luck));
        let largest = terms.clone().fold(f64::NEG_INFINITY, f64::max);
        largest + libm::log(terms.map(|term| libm::exp(term - largest)).sum())
    }

    /// The blocks after which average luck reaches what is needed; `None` if it never does.
    fn crossing(&self, needed: f64) -> Option<f64> {
        first(|blocks| self.after(blocks, 0.0) >= needed)
    }

    /// `P(M_k < needed)`.
    fn below(&self, blocks: f64, needed: f64) -> f64 {
        let (mut bad, mut good) = (-LARGEST_LUCK, LARGEST_LUCK);
        if self.after(blocks, good) < needed {
            return 1.0;
        }
        if self.after(blocks, bad) >= needed {
            return 0.0;
        }
        for _ in 0..20 {
            let middle = f64::midpoint(bad, good);
            if self.after(blocks, middle) < needed {
                bad = middle;
            } else {
                good = middle;
            }
        }
        0.5 * libm::erfc(-good * std::f64::consts::FRAC_1_SQRT_2)
    }

    /// Mean and deviation of the logarithm of the capital, a block, where it crosses.
    fn slope(&self, crossing: f64) -> (f64, f64) {
        let all = self.after(crossing, 0.0);
        let weighted = |value: fn(&Bet) -> f64| {
            self.0.iter().map(|bet| libm::exp(bet.after(crossing, 0.0) - all) * value(bet)).sum()
        };
        (weighted(|bet| bet.mean), weighted(|bet| bet.deviation))
    }

    /// The mean number of blocks until what is needed is reached.
    fn mean_blocks(&self, needed: f64) -> Option<f64> {
        let (mean, deviation) = self.slope(self.crossing(needed)?);
        if 2.0 * mean < SMALLEST_SHAPE * deviation * deviation {
            return None;
        }
        let (mut blocks, mut below, mut sum) = (0.0_f64, 1.0, 0.0);
        while below > 1e-4 && blocks < LONGEST {
            // One by one at first, then in steps of 5 % with straight lines between.
            let next = (1.05 * blocks).floor().max(blocks + 1.0);
            let then = self.below(next, needed);
            sum += 0.5 * ((next - blocks) * (below + then) + below - then);
            (blocks, below) = (next, then);
        }
        let ratio = mean / deviation;
        let returns = if ratio < 2.0 {
            (0.5 / ratio - 0.5826 + 0.25 * ratio - 0.0415 * ratio * ratio).max(0.0) / ratio
        } else {
            0.0
        };
        Some((sum - returns).max(1.0)).filter(|blocks| blocks.is_finite())
    }

    /// How much less is needed because capital is put to work again and again.
    fn restart_gain(&self, crossing: f64, hazard: f64) -> f64 {
        let (mean, deviation) = self.slope(crossing);
        if mean <= 0.0 || mean > 2.0 * deviation {
            return 0.0;
        }
        let variance = deviation * deviation;
        let shape = 2.0 * mean / variance;
        // Over the logarithm of the gamma variable, around the peak of its density.
        let (peak, width) = (libm::log(shape), 1.0 / shape.min(shape.sqrt()));
        let (first, last) = (peak - 40.0 * width, peak + (12.0 * width).min(12.0 - peak.min(0.0)));
        let step = (last - first) / 400.0;
        let (mut gain, mut total) = (0.0, 0.0);
        let mut at = first + 0.5 * step;
        while at < last {
            let density = libm::exp(shape * (at - peak) - libm::exp(at) + shape);
            gain += density * libm::log1p(4.0 * hazard / variance * libm::exp(-at));
            total += density;
            at += step;
        }
        (0.5 * gain / total).min(LARGEST_RESTART_GAIN)
    }
}
