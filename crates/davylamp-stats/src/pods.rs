//! Gauges (memory, processor time, depth of a queue): a t-test whose units are pods, not points in time.
//!
//! **Null hypothesis.** The canary's pods have the level of the baseline's, times `1 + τ` at most; or they
//! grow like the baseline's, times `1 + τ` at most. One pod is one observation, because the values of a pod
//! over time depend on each other.
//!
//! **Formula.** One number `y` per pod,
//! ```text
//! level    mean over time of ln(max(v, f)), the canary's v divided by 1 + τ, f = 1 % of the mean of all pods
//! growth   mean of the last 3 minutes − value right after warm-up, at the same age in both cohorts
//! t = (ȳ_C − c·ȳ_B)/(s·√(1/k_C + c²/k_B))     s² = Σ (y − ȳ)²/ν     ν = k_C + k_B − 2
//! ```
//! with `c = 1` for a level, and for a growth `c = 1 + τ` (in the numerator 1 if the baseline shrinks);
//! `p = P(T_ν ≥ t)`, and 1 if `s` is 0.
//!
//! **Why it is valid.** Of independent pods with the same normal distribution in a cohort and the same
//! variance in both, `t` has the t distribution on the boundary of the null. With moderately unequal and
//! skewed values it is close, and conservative if the smaller cohort varies less. Looks are few and fixed
//! beforehand, so that `p ≤ α/(gauges·looks)` keeps `α` over all of them.
//!
//! **Source.** Student (1908), *The probable error of a mean*.
//!
//! **Cost.** One logarithm per value, and some hundreds of multiplications.
//!
//! **When not to use it.** With one pod per cohort, which is no test. For a growth against pods of another
//! age. More often than at the looks that were declared.

use crate::Error;
use crate::counts::number;
use crate::student;

/// A value this far below the mean of all pods counts as this part of it.
const FLOOR: f64 = 0.01;

/// So large that no gauge reaches it, and so small that its square is a number.
const LARGEST: f64 = 1e100;

/// Seconds of a step between two looks.
const LOOK_SECONDS: f64 = 600.0;

/// What the pods of the canary are compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// The mean over time since warm-up.
    Level,
    /// What was added since warm-up.
    Growth,
}

/// The outcome of a test of pods at one look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PodsTest {
    /// How many standard errors the canary is above what is tolerated.
    pub t: f64,
    /// Degrees of freedom: pods of both cohorts less two.
    pub df: u32,
    /// The probability of a `t` this large if the canary is as bad as tolerated.
    pub p: f64,
    gauge: Gauge,
    /// Mean of the canary less mean of the baseline, without a tolerance; of logarithms for a level.
    difference: f64,
    /// Of the difference.
    standard_error: f64,
}

/// Compares the pods of two cohorts, with the relative tolerance `τ` from 0 on. Each pod brings its samples:
/// values of a gauge not below 0 for a level; for a growth what it has grown by, of which the mean counts.
/// `None` if nothing can be tested: a cohort without a pod, or one pod in each; pods without a sample are
/// none.
///
/// ```
/// use davylamp_stats::{Gauge, pods_t_test};
///
/// // Megabytes of pods: 107 against 93 in the mean.
/// let canary = [[101.0], [98.0], [120.0], [111.0]];
/// let baseline = [[90.0], [88.0], [95.0], [99.0], [93.0]];
/// let test = pods_t_test(&canary, &baseline, Gauge::Level, 0.0)?.unwrap();
/// assert!((test.t - 3.0476).abs() < 5e-5);
/// assert!((test.p - 0.0093).abs() < 5e-5);
/// assert!((test.upper_bound(0.05)? - 1.260).abs() < 5e-4);
///
/// // With 10 % tolerated there is not much left of it.
/// assert!(pods_t_test(&canary, &baseline, Gauge::Level, 0.1)?.unwrap().p > 0.1);
/// assert_eq!(pods_t_test(&canary[..1], &baseline[..1], Gauge::Level, 0.0)?, None);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn pods_t_test<Pod: AsRef<[f64]>>(
    canary: &[Pod],
    baseline: &[Pod],
    gauge: Gauge,
    tolerance: f64,
) -> Result<Option<PodsTest>, Error> {
    Error::unless((0.0..=1e6).contains(&tolerance), "tolerance", tolerance, "a number from 0 to 1e6")?;
    let smallest = if gauge == Gauge::Level { 0.0 } else { -LARGEST };
    let cohort = |pods: &[Pod], name: &'static str| -> Result<Vec<Vec<f64>>, Error> {
        let pods: Vec<Vec<f64>> =
            pods.iter().map(|pod| pod.as_ref().to_vec()).filter(|pod| !pod.is_empty()).collect();
        for &value in pods.iter().flatten() {
            let expected = "a finite number up to 1e100, of a level not below 0";
            Error::unless((smallest..=LARGEST).contains(&value), name, value, expected)?;
        }
        Ok(pods)
    };
    let (mut canary, mut baseline) = (cohort(canary, "canary")?, cohort(baseline, "baseline")?);
    let ratio = 1.0 + tolerance;
    if gauge == Gauge::Level {
        canary.iter_mut().flatten().for_each(|value| *value /= ratio);
        let floor = FLOOR * mean(&[per_pod(&canary), per_pod(&baseline)].concat());
        let log = |value: &mut f64| *value = libm::log(value.max(floor).max(f64::MIN_POSITIVE));
        canary.iter_mut().flatten().for_each(log);
        baseline.iter_mut().flatten().for_each(log);
    }
    let (canary, baseline) = (per_pod(&canary), per_pod(&baseline));
    if canary.is_empty() || baseline.is_empty() || canary.len() + baseline.len() < 3 {
        return Ok(None);
    }

    let df = u32::try_from(canary.len() + baseline.len() - 2).unwrap_or(u32::MAX);
    let variance = (squares(&canary) + squares(&baseline)) / f64::from(df);
    let standard_error =
        |c: f64| (variance * (1.0 / number(canary.len()) + c * c / number(baseline.len()))).sqrt();
    let apart = mean(&canary) - mean(&baseline);
    let (excess, error, difference) = match gauge {
        Gauge::Level => (apart, standard_error(1.0), apart + libm::log(ratio)),
        Gauge::Growth => (apart - tolerance * mean(&baseline).max(0.0), standard_error(ratio), apart),
    };
    let t = if error > 0.0 { excess / error } else { 0.0 };
    let p = if error > 0.0 { student::upper_tail(t, df) } else { 1.0 };
    Ok(Some(PodsTest { t, df, p, gauge, difference, standard_error: standard_error(1.0) }))
}

impl PodsTest {
    /// What the canary is below with the confidence `1 − beta`, `beta` up to one half. For a level this is the
    /// ratio of the canary's to the baseline's, to be compared with 1 and the margin. For a growth it is the
    /// difference, in the unit of the gauge: a healthy baseline does not grow, and a ratio to nothing has no
    /// bound. Infinity if so few pods vary so much that there is none.
    pub fn upper_bound(&self, beta: f64) -> Result<f64, Error> {
        let bound = self.difference + t_critical(beta, self.df)? * self.standard_error;
        Ok(match self.gauge {
            Gauge::Level => libm::exp(bound),
            Gauge::Growth => bound,
        })
    }
}

/// How often each gauge is looked at in a rollout: at the end of each step, and every ten minutes of the
/// longest that a step may take.
///
/// ```
/// // Four steps of up to an hour.
/// assert_eq!(davylamp_stats::pods_looks(4, 3600.0)?, 24);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 2e6")]
pub fn pods_looks(steps: u32, longest_step_seconds: f64) -> Result<u32, Error> {
    let ok = (0.0..=1e9).contains(&longest_step_seconds);
    Error::unless(ok, "longest_step_seconds", longest_step_seconds, "a number from 0 to 1e9")?;
    let whole = (longest_step_seconds / LOOK_SECONDS).ceil().max(1.0);
    Ok(steps.saturating_mul(whole as u32))
}

/// The `t` that is exceeded with the probability `level`, above 0 and up to one half, at `df` degrees of
/// freedom: what a test has to reach.
///
/// ```
/// // 1 % over six looks, nine pods.
/// assert!((davylamp_stats::t_critical(0.01 / 6.0, 7)? - 4.355275).abs() < 1e-6);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn t_critical(level: f64, df: u32) -> Result<f64, Error> {
    Error::unless((1e-100..=0.5).contains(&level), "level", level, "a probability from 1e-100 to 0.5")?;
    Error::unless(df >= 1, "df", f64::from(df), "1 or more")?;
    Ok(student::critical_value(level, df))
}

/// One number for each pod.
fn per_pod(pods: &[Vec<f64>]) -> Vec<f64> {
    pods.iter().map(|pod| mean(pod)).collect()
}

/// Of equal values it is that value to the bit; 0 of none.
fn mean(values: &[f64]) -> f64 {
    let first = values.first().copied().unwrap_or(0.0);
    first + values.iter().map(|value| value - first).sum::<f64>() / number(values.len()).max(1.0)
}

/// The squares of the deviations from the mean.
fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean) * (value - mean)).sum()
}
