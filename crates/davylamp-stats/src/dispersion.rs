//! How much more the counts of pods vary than independent events would: the dispersion that a test can be
//! tempered with.
//!
//! **Null hypothesis.** None is tested. Independent events give a dispersion of 1 on average, events that
//! come in clusters of `φ` one of `φ`.
//!
//! **Formula.** With the counts `x` of pods in blocks and what was to be expected of a pod by its part of the
//! block's exposure, `e = n·Σx/Σn` with sums over the pods of the block,
//! `φ = Σ (x − e)²/e / Σ_blocks (pods − 1)` over the blocks with events and their pods with exposure.
//!
//! **Why it is valid.** Given the events of a block, each of them falls on a pod with the probability of its
//! part of the exposure; then the sum over the block is `pods − 1` on average, with one event as with many.
//! If events come in clusters of at most `φ` that are independent of each other, a log factor of events
//! divided by `φ` is valid again: the geometric mean of the factors of a cluster is at most their arithmetic
//! mean, however they depend on each other.
//!
//! **Source.** Wedderburn (1974), *Quasi-likelihood functions, generalized linear models, and the
//! Gauss–Newton method*, for the estimate.
//!
//! **Cost.** Three passes over the counts.
//!
//! **When not to use it.** For rare bursts of many events: a dispersion of 45 makes every test 45 times as
//! slow, where a cap on each block costs a little.

use crate::Error;
use crate::counts::{number, validate_count};

/// Smallest exposure of a pod, so that its part of all exposure is a number to divide by.
const SMALLEST_EXPOSURE: f64 = 1e-9;

/// The dispersion `φ` of counts. `counts` has a row of blocks for each pod, and `exposure` another of the
/// same shape, or `None` if it is the same for all. `None` if no block with events has two pods with
/// exposure.
///
/// ```
/// use davylamp_stats::pearson_dispersion;
///
/// // Two pods, three blocks; in the third one pod has a burst.
/// let counts = [[2.0, 1.0, 12.0], [1.0, 2.0, 0.0]];
/// let dispersion = pearson_dispersion(&counts, None)?.unwrap();
/// assert!((dispersion - (1.0 / 3.0 + 1.0 / 3.0 + 12.0) / 3.0).abs() < 1e-12);
///
/// // As expected of a pod with 99 % of the requests.
/// let exposure = [[50.0, 50.0, 990.0], [50.0, 50.0, 10.0]];
/// assert!(pearson_dispersion(&counts, Some(&exposure))?.unwrap() < 0.3);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn pearson_dispersion<Row: AsRef<[f64]>>(
    counts: &[Row],
    exposure: Option<&[Row]>,
) -> Result<Option<f64>, Error> {
    let blocks = counts.first().map_or(0, |row| row.as_ref().len());
    validate(counts, counts.len(), blocks, "counts")?;
    if let Some(exposure) = exposure {
        validate(exposure, counts.len(), blocks, "exposure")?;
        for &n in exposure.iter().flat_map(AsRef::as_ref) {
            let ok = n <= 0.0 || n >= SMALLEST_EXPOSURE;
            Error::unless(ok, "exposure", n, "0 or a number from 1e-9")?;
        }
    }

    let (mut sum, mut degrees) = (0.0, 0.0);
    for block in 0..blocks {
        let pod = |row: usize| {
            (counts[row].as_ref()[block], exposure.map_or(1.0, |exposure| exposure[row].as_ref()[block]))
        };
        let pods: Vec<(f64, f64)> = (0..counts.len()).map(pod).filter(|(_, n)| *n > 0.0).collect();
        let (events, exposure) = pods.iter().fold((0.0, 0.0), |(x, n), pod| (x + pod.0, n + pod.1));
        if events <= 0.0 {
            continue;
        }
        for (x, n) in &pods {
            let expected = n / exposure;
            let excess = x / events - expected;
            sum += events * (excess * excess / expected);
            degrees += 1.0;
        }
        degrees -= 1.0;
    }
    Ok((degrees > 0.0).then(|| sum / degrees))
}

/// Refuses rows of another shape, and what is no count.
fn validate<Row: AsRef<[f64]>>(
    rows: &[Row],
    pods: usize,
    blocks: usize,
    name: &'static str,
) -> Result<(), Error> {
    Error::unless(rows.len() == pods, name, number(rows.len()), "a row for each pod")?;
    for row in rows {
        let row = row.as_ref();
        Error::unless(row.len() == blocks, name, number(row.len()), "as many blocks for each pod")?;
        row.iter().try_for_each(|&value| validate_count(name, value))?;
    }
    Ok(())
}
