//! Several metrics, one decision: the weighted average of their evidence, and which of them it is due to.
//!
//! **Null hypothesis.** No metric is worse than its tolerance: all of the metrics' null hypotheses at once.
//!
//! **Formula.** `ln Ē = ln Σ_i w_i·E_i` with weights of sum 1, from the current values, not their running
//! maxima.
//!
//! **Why it is valid.** The expectation of an average of e-processes is the average of their expectations,
//! whatever the dependence between them; so the average is one, and it ever reaches `1/α` with probability at
//! most `α`.
//!
//! **Source.** Vovk and Wang (2021), *E-values: calibration, combination and applications*.
//!
//! **Cost.** One exponential and one logarithm per metric.
//!
//! **When not to use it.** To show that every metric is fine: for that each one has to reach its own bound.

use crate::Error;
use crate::capital::log_sum_exp;

/// The logarithm of the weighted average of e-values that are given as logarithms.
///
/// ```
/// use davylamp_stats::combine_log_e;
///
/// // A fifth of e^700, although e^710 is no longer a finite number.
/// let log_e = combine_log_e(&[-0.4, 2.1, 6.0, 700.0], &[0.1, 0.4, 0.3, 0.2])?;
/// assert!((log_e - (700.0 + 0.2_f64.ln())).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn combine_log_e(log_e: &[f64], weights: &[f64]) -> Result<f64, Error> {
    if log_e.len() != weights.len() {
        return Err(Error::Lengths { log_e: log_e.len(), weights: weights.len() });
    }
    for (&log_e, &weight) in log_e.iter().zip(weights) {
        Error::unless(log_e.is_finite(), "log_e", log_e, "a finite number")?;
        Error::unless((0.0..=1.0).contains(&weight), "weights", weight, "weights from 0 to 1")?;
    }
    let sum: f64 = weights.iter().sum();
    Error::unless((sum - 1.0).abs() < 1e-9, "weights", sum, "weights with the sum 1")?;
    Ok(log_sum_exp(&weighted(log_e, weights), f64::NEG_INFINITY))
}

/// The metrics a rollback is due to: those that reach `1/α` by themselves with their weight, or else the one
/// that contributes most. Metrics without weight are never among them; a value that is not a number counts as
/// no evidence.
///
/// ```
/// use davylamp_stats::attribution;
///
/// // Ten times 1/α between two metrics, and half of 1/α from each of two.
/// assert_eq!(attribution(&[0.1, 1000.0_f64.ln()], &[0.5, 0.5], 0.01), [1]);
/// assert_eq!(attribution(&[99.0_f64.ln(), 101.0_f64.ln()], &[0.5, 0.5], 0.01), [1]);
/// assert_eq!(attribution(&[200.0_f64.ln() + 1e-9, 1000.0_f64.ln()], &[0.5, 0.5], 0.01), [0, 1]);
/// ```
#[must_use]
pub fn attribution(log_e: &[f64], weights: &[f64], alpha: f64) -> Vec<usize> {
    let evidence = weighted(log_e, weights);
    let needed = -libm::log(alpha);
    let sufficient: Vec<usize> =
        (0..).zip(&evidence).filter(|(_, e)| **e >= needed).map(|(i, _)| i).collect();
    if !sufficient.is_empty() {
        return sufficient;
    }
    let mut largest = (f64::NEG_INFINITY, None);
    for (index, &evidence) in evidence.iter().enumerate() {
        if evidence > largest.0 {
            largest = (evidence, Some(index));
        }
    }
    largest.1.into_iter().collect()
}

/// `ln(w_i·E_i)`; minus infinity without weight.
fn weighted(log_e: &[f64], weights: &[f64]) -> Vec<f64> {
    log_e
        .iter()
        .zip(weights)
        .map(|(log_e, &weight)| if weight > 0.0 { log_e + libm::log(weight) } else { f64::NEG_INFINITY })
        .collect()
}
