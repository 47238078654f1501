//! The ranks of the canary's pods among all: a test by permutation for what grows, and a guard against one
//! odd pod.
//!
//! **Null hypothesis.** Given the past, the increments of all pods in a block are exchangeable: any set of
//! `k` pods could have been the canary's. For the guard, the same of the evidence of single pods.
//!
//! **Formula.** With the sum `R` of the canary's mid-ranks among all `K` pods,
//! ```text
//! ℓ = θ·R − ln E[exp(θR)]       E over all choices of k pods = e_k(exp(θr₁), …, exp(θr_K))/C(K, k)
//! ```
//! where `e_k` is the elementary symmetric polynomial; six `θ = {0.05, 0.1, 0.2, 0.4, 0.8, 1.6}·6/K`, each
//! capped at `ln 10` a block; half of the capital in reserve as in [`EventProcess`](crate::EventProcess).
//! Blocks of one, three and six minutes are three processes, of which the average counts.
//!
//! **Why it is valid.** The expectation of `exp(θR)` under the null is the one it is divided by, ties
//! included. All three processes are looked at when a block of each ends, every six minutes: within a longer
//! block the shorter ones would tell how it is going to end.
//!
//! **Source.** Wilcoxon (1945), *Individual comparisons by ranking methods*; Grünwald, de Heide and Koolen
//! (2024), *Safe testing*, for the e-value.
//!
//! **Cost.** `k·(K − k)` exponentials and logarithms for each `θ` and block: 60 of these in six minutes.
//!
//! **When not to use it.** On levels: a pod that is different stays so, and the same ranks again and again
//! look like evidence (30 % false alarms). For a decision that is smaller than [`smallest_rank_p`].

use crate::Error;
use crate::blocks::{Blocks, Restarts};
use crate::capital::{log_add, log_sum_exp};
use crate::counts::number;
use crate::event::LARGEST_CLIP;
use crate::state::{Reader, Writer};

/// The alternatives `θ`, to be multiplied by `6/K`.
const THETA_GRID: [f64; 6] = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6];

/// The lengths of the blocks, in minutes.
const MINUTES: [usize; 3] = [1, 3, 6];

/// Minutes after which a block of each length ends.
const WINDOW: usize = 6;

/// Multiplications that a rank sum may cost; beyond, its probability is bounded instead of counted.
const LARGEST_COST: f64 = 3e7;

/// How far the probability of a rank sum may be off by rounding, relatively.
const ROUNDING: f64 = 1e-9;

/// The evidence in the ranks of one block for one alternative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankTilt {
    /// The sum of the canary's mid-ranks.
    pub rank_sum: f64,
    /// The logarithm of `E[exp(θR)]` over all choices of as many pods.
    pub log_mgf: f64,
    /// The log factor.
    pub log_e: f64,
}

/// The log factor of the increments of pods in one block, for the alternative `theta` (up to 1e6) that the
/// canary's are larger. 0 if a cohort has no pod or all increments are the same.
///
/// ```
/// use davylamp_stats::rank_tilt_log_e;
///
/// // Both pods of the canary grew more than all six of the baseline: one of C(8, 2) = 28 possibilities.
/// let tilt = rank_tilt_log_e(&[7.0, 9.0], &[3.0, 3.0, 1.0, 2.0, 4.0, 3.0], 1.0)?;
/// assert!(tilt.rank_sum == 15.0);
/// assert!((tilt.log_e.exp() - 16.0).abs() < 0.1);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn rank_tilt_log_e(canary: &[f64], baseline: &[f64], theta: f64) -> Result<RankTilt, Error> {
    Error::unless((-1e6..=1e6).contains(&theta), "theta", theta, "a number from -1e6 to 1e6")?;
    Ok(Ranks::new(canary, baseline)?.tilt(theta))
}

/// The ranks of the values from 1 on, the mean of them for values that are equal.
///
/// ```
/// assert_eq!(davylamp_stats::mid_ranks(&[7.0, 3.0, 3.0, 9.0])?, [3.0, 1.5, 1.5, 4.0]);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn mid_ranks(values: &[f64]) -> Result<Vec<f64>, Error> {
    Ok(doubled_ranks(values)?.into_iter().map(|doubled| number(doubled) / 2.0).collect())
}

/// The probability that the canary's ranks have a sum as large as these or larger, if all pods are
/// exchangeable. Exact by counting, ties included, for up to about 200 pods; beyond, an upper bound.
///
/// ```
/// use davylamp_stats::ranksum_p_upper;
///
/// // First and third among eight; C(8, 2) = 28 possibilities, four of them at least as good.
/// let p = ranksum_p_upper(&[5.0, 8.0], &[1.0, 2.0, 3.0, 4.0, 6.0, 7.0])?;
/// assert!((p - 4.0 / 28.0).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn ranksum_p_upper(canary: &[f64], baseline: &[f64]) -> Result<f64, Error> {
    Ok(Ranks::new(canary, baseline)?.p_upper())
}

/// The smallest probability that ranks can have: `1/C(K, k)`, that of the canary's pods being the first ones.
/// Whoever asks for less never gets an answer.
///
/// ```
/// // One pod of ten; three of ten.
/// assert!((davylamp_stats::smallest_rank_p(1, 9) - 0.1).abs() < 1e-12);
/// assert!((davylamp_stats::smallest_rank_p(3, 7) - 0.0083).abs() < 5e-5);
/// ```
#[must_use]
pub fn smallest_rank_p(canary_pods: usize, baseline_pods: usize) -> f64 {
    let (fewer, more) = (canary_pods.min(baseline_pods), canary_pods.max(baseline_pods));
    let mut p = 1.0;
    for chosen in 1..=fewer {
        p *= number(chosen) / number(more.saturating_add(chosen));
        if p <= 0.0 {
            break;
        }
    }
    p
}

/// Whether the evidence against the version is evidence against its pods: the canary's single processes rank
/// on top of the baseline's, at `alpha` over all metrics and steps or as far as so few pods allow.
///
/// ```
/// use davylamp_stats::rank_guard;
///
/// // The log e-values of the pods, each against the others: one odd pod of two is not enough, both are.
/// let baseline = [-0.3, 0.1, -0.2, 0.4, 0.0, -0.1, 0.2, 0.3];
/// assert!(!rank_guard(&[9.0, -0.4], &baseline, 0.01, 3, 4)?);
/// assert!(rank_guard(&[4.0, 5.0], &baseline, 0.01, 3, 4)?);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn rank_guard(
    canary: &[f64],
    baseline: &[f64],
    alpha: f64,
    metrics: u32,
    steps: u32,
) -> Result<bool, Error> {
    Error::unless(alpha > 0.0 && alpha < 1.0, "alpha", alpha, "a probability above 0 and below 1")?;
    Error::unless(metrics >= 1, "metrics", f64::from(metrics), "1 or more")?;
    Error::unless(steps >= 1, "steps", f64::from(steps), "1 or more")?;
    let wanted = alpha / (f64::from(metrics) * f64::from(steps));
    let threshold = wanted.max(smallest_rank_p(canary.len(), baseline.len()));
    Ok(ranksum_p_upper(canary, baseline)? <= threshold * (1.0 + ROUNDING))
}

/// The test of a gauge that grows: evidence that it grows more in the canary's pods, minute by minute.
///
/// ```
/// use davylamp_stats::RankProcess;
///
/// // Two pods leak a megabyte a minute more than eight others, which differ by more than that from minute to
/// // minute.
/// let noise = [3.0, -1.0, 0.0, 2.0, -3.0, -1.0];
/// let pod = |i: usize, leak: f64| {
///     let mut increments = noise.map(|value| value + leak);
///     increments.rotate_left(i % 6);
///     increments
/// };
/// let baseline: Vec<[f64; 6]> = (0..8).map(|i| pod(i, 0.0)).collect();
/// let mut process = RankProcess::new()?;
/// let mut windows = 0;
/// while process.log_e() < 100.0_f64.ln() {
///     process.window(&[pod(0, 1.0), pod(3, 1.0)], &baseline)?;
///     windows += 1;
/// }
/// assert!(windows < 10);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RankProcess {
    /// One for each length of a block.
    lengths: [Blocks<6>; 3],
}

impl RankProcess {
    /// A process without evidence.
    pub fn new() -> Result<Self, Error> {
        let [one, three, six] =
            MINUTES.map(|minutes| Blocks::new([1.0 / 6.0; 6], 60.0 * number(minutes), Restarts::Fading));
        Ok(Self { lengths: [one?, three?, six?] })
    }

    /// Takes six minutes: for each pod that was there from the first to the last what the gauge grew by in
    /// each of them. Without a pod in one of the cohorts nothing is learnt.
    pub fn window(&mut self, canary: &[[f64; WINDOW]], baseline: &[[f64; WINDOW]]) -> Result<(), Error> {
        let mut factors: [Vec<[f64; 6]>; 3] = [const { Vec::new() }; 3];
        for (factors, minutes) in factors.iter_mut().zip(MINUTES) {
            for first in (0..WINDOW).step_by(minutes) {
                let block = |pods: &[[f64; WINDOW]]| -> Vec<f64> {
                    pods.iter().map(|pod| pod[first..first + minutes].iter().sum()).collect()
                };
                factors.push(Ranks::new(&block(canary), &block(baseline))?.log_factors());
            }
        }
        if canary.is_empty() || baseline.is_empty() {
            return Ok(());
        }
        for (blocks, factors) in self.lengths.iter_mut().zip(&factors) {
            for factors in factors {
                blocks.open();
                blocks.add(factors)?;
                blocks.close(LARGEST_CLIP);
            }
        }
        Ok(())
    }

    /// The logarithm of the evidence against the null.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let log_e = self.lengths.each_ref().map(Blocks::log_e_before);
        log_sum_exp(&log_e, f64::NEG_INFINITY) - libm::log(3.0)
    }

    /// The state: 352 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { lengths } = self;
        let mut writer = Writer::new();
        for blocks in lengths {
            blocks.write(&mut writer);
        }
        writer.finish()
    }

    /// The process whose state was saved: it continues to the bit.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let [one, three, six] = self.lengths;
        let lengths = [one.read(&mut reader)?, three.read(&mut reader)?, six.read(&mut reader)?];
        reader.finish()?;
        Ok(Self { lengths })
    }
}

/// Twice the mid-ranks of all pods, which are whole numbers; the canary's come first.
struct Ranks {
    doubled: Vec<usize>,
    canary: usize,
}

impl Ranks {
    fn new(canary: &[f64], baseline: &[f64]) -> Result<Self, Error> {
        Ok(Self { doubled: doubled_ranks(&[canary, baseline].concat())?, canary: canary.len() })
    }

    /// There are two cohorts and two ranks.
    fn comparable(&self) -> bool {
        (1..self.doubled.len()).contains(&self.canary)
            && self.doubled.windows(2).any(|pair| pair[0] != pair[1])
    }

    /// The log factors for [`THETA_GRID`].
    fn log_factors(&self) -> [f64; 6] {
        let unit = 6.0 / number(self.doubled.len()).max(1.0);
        THETA_GRID.map(|theta| self.tilt(theta * unit).log_e)
    }

    fn tilt(&self, theta: f64) -> RankTilt {
        // From the mean rank, so that the numbers stay small.
        let mean = f64::midpoint(1.0, number(self.doubled.len()));
        let ranks: Vec<f64> = self.doubled.iter().map(|&doubled| number(doubled) / 2.0 - mean).collect();
        let sum: f64 = ranks[..self.canary].iter().sum();
        let shift = number(self.canary) * mean;
        let log_mgf = if self.comparable() { log_mgf(&ranks, self.canary, theta) } else { theta * sum };
        RankTilt { rank_sum: sum + shift, log_mgf: log_mgf + theta * shift, log_e: theta * sum - log_mgf }
    }

    fn p_upper(&self) -> f64 {
        if !self.comparable() {
            return 1.0;
        }
        // Count the smaller cohort, by ranks from the other end if it is the baseline.
        let (canary, baseline) = self.doubled.split_at(self.canary);
        let chosen = canary.len().min(baseline.len());
        let ranks: Vec<usize> = if canary.len() <= baseline.len() {
            self.doubled.clone()
        } else {
            let last = 2 * self.doubled.len();
            baseline.iter().chain(canary).map(|doubled| last - doubled).collect()
        };
        let sum: usize = ranks[..chosen].iter().sum();
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        let largest: usize = sorted.iter().rev().take(chosen).sum();
        if number(ranks.len()) * number(chosen) * number(largest) <= LARGEST_COST {
            exact_p_upper(&ranks, chosen, sum, largest)
        } else {
            hoeffding_p_upper(&ranks, chosen, sum)
        }
    }
}

/// Refuses what is no number.
fn doubled_ranks(values: &[f64]) -> Result<Vec<usize>, Error> {
    values
        .iter()
        .try_for_each(|&value| Error::unless(value.is_finite(), "values", value, "finite numbers"))?;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut doubled = vec![0; values.len()];
    let mut before = 0;
    #[expect(clippy::float_cmp, reason = "a tie is exact")]
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &pod in equal {
            // The first of their ranks and the last.
            doubled[pod] = before + 1 + before + equal.len();
        }
        before += equal.len();
    }
    Ok(doubled)
}

/// `ln E[exp(θR)]` for the sum `R` of `chosen` of these ranks, any choice as likely as the others.
fn log_mgf(ranks: &[f64], chosen: usize, theta: f64) -> f64 {
    // Logarithms of the elementary symmetric polynomials of the ranks so far.
    let mut polynomials = vec![f64::NEG_INFINITY; chosen + 1];
    polynomials[0] = 0.0;
    let mut log_choices = 0.0;
    for (i, rank) in (1..).zip(ranks) {
        // Only those that can still become the last one.
        for j in ((chosen + i).saturating_sub(ranks.len()).max(1)..=chosen.min(i)).rev() {
            polynomials[j] = log_add(polynomials[j], polynomials[j - 1] + theta * rank);
        }
    }
    for i in 1..=chosen {
        log_choices += libm::log(number(ranks.len() - chosen + i) / number(i));
    }
    polynomials[chosen] - log_choices
}

/// `P(R ≥ sum)` for the sum `R` of `chosen` of these ranks, any choice as likely as the others; `largest` is
/// the largest that it can be.
fn exact_p_upper(ranks: &[usize], chosen: usize, sum: usize, largest: usize) -> f64 {
    // probabilities[j][s]: that j of the ranks so far have the sum s.
    let mut probabilities = vec![vec![0.0; largest + 1]; chosen + 1];
    probabilities[0][0] = 1.0;
    for (i, &rank) in (1..).zip(ranks) {
        for j in (1..=chosen.min(i)).rev() {
            let (with, without) = (number(j) / number(i), number(i - j) / number(i));
            let (fewer, these) = probabilities.split_at_mut(j);
            let (fewer, these) = (&fewer[j - 1], &mut these[0]);
            for s in 0..=largest {
                let from = if s >= rank { fewer[s - rank] } else { 0.0 };
                these[s] = these[s] * without + from * with;
            }
        }
    }
    probabilities[chosen][sum..].iter().sum::<f64>().min(1.0)
}

/// At least `P(R ≥ sum)`, after Hoeffding (1963), who treats draws without replacement, too.
fn hoeffding_p_upper(ranks: &[usize], chosen: usize, sum: usize) -> f64 {
    let mean = number(ranks.iter().sum()) / number(ranks.len());
    let above = number(sum) / number(chosen) - mean;
    let range =
        ranks.iter().max().zip(ranks.iter().min()).map_or(0, |(largest, smallest)| largest - smallest);
    let part = above / number(range.max(1));
    if part > 0.0 { libm::exp(-2.0 * number(chosen) * part * part) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_not_below_the_probability() {
        for values in [&[1.0, 2.0, 2.0, 5.0, 7.0, 8.0, 9.0, 9.0][..], &[0.0, 0.0, 0.0, 0.0, 3.0]] {
            let ranks = doubled_ranks(values).unwrap();
            let largest: usize = ranks.iter().sum();
            for chosen in 1..values.len() {
                for sum in 0..=largest {
                    let exact = exact_p_upper(&ranks, chosen, sum, largest);
                    assert!(hoeffding_p_upper(&ranks, chosen, sum) >= exact, "{values:?} {chosen} {sum}");
                }
            }
        }
    }
}
