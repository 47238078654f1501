//! A distribution, canary against baseline: the test that finds a regression of latency.
//!
//! **Null hypothesis.** In every block the canary's values, divided by `1 + m`, are stochastically not larger
//! than the baseline's: above no boundary is there more of them: `H₀: C/(1 + m) ≤_st B`.
//!
//! **Formula.** With the counts `c_b` of the canary, whose values are divided by `1 + m` (see
//! [`shift_histogram`](crate::shift_histogram)), and `d_b` of the baseline, `q = Σc/(Σc + Σd)`, scores `a_b`
//! that do not fall from bucket to bucket and `θ > 0`,
//! ```text
//! ℓ = Σ_b θ·a_b·c_b − (c_b + d_b)·ln(1 − q + q·exp(θ·a_b))
//! ```
//! for nineteen pairs of scores and `θ`, in five families of the same prior. Where the share `F` of the
//! pooled counts of earlier blocks lies below the middle of a bucket,
//! ```text
//! van der Waerden   Φ⁻¹(F)                             θ = 0.06, 0.12, 0.25, 0.5, 1      shifts of the body
//! Savage            −ln(1 − F) − 1                     θ = 0.06, 0.12, 0.25, 0.5         longer tails
//! tails             1 if at least 85 % lie below it    θ = 0.15, 0.4, 1                  outliers
//!                   98 %                               θ = 0.25, 0.6, 1.2, 2.5
//!                   99.8 %                             θ = 0.5, 1.2, 2.5
//! ```
//! with `F` between `1/2N` and `1 − 1/2N`. Clip and restarts are those of events, with `q₀ = q`.
//!
//! **Why it is valid.** With `z_b = 1 + q·(exp(θ·a_b) − 1)`, `u_b = exp(θ·a_b)/z_b` and `v_b = 1/z_b`,
//! `E[e^ℓ] ≤ exp(n_C·(E_C[u] − 1) + n_B·(E_B[v] − 1))`, and `q·u_b + (1 − q)·v_b = 1`. Since `u` rises with
//! `b`, `E_C[u] ≤ E_B[u]` under the null, which leaves an exponent of at most 0. The scores of a block come
//! from earlier blocks, so nothing is chosen after the fact; without any they are 0, and the factor is 1.
//!
//! **Source.** van der Waerden (1952), *Order tests for the two-sample problem*; Savage (1956),
//! *Contributions to the theory of rank order statistics*, for the scores; the factor is that of
//! [`EventProcess`](crate::EventProcess) for each bucket.
//!
//! **Cost.** Nine logarithms a round for each bucket with counts; once a block, a quantile, four logarithms
//! and three exponentials for each bucket.
//!
//! **When not to use it.** For changes within one bucket, which it cannot see; for values that are the sum of
//! a pod (memory, processor time); and see [`shift_histogram`](crate::shift_histogram) for tolerances.

use crate::Error;
use crate::blocks::{Blocks, Restarts};
use crate::event::{LARGEST_CLIP, clip};
use crate::histogram::{Layout, total};
use crate::normal::upper_quantile;
use crate::shift::{Shift, unless_tolerance};
use crate::state::{Reader, Writer};

/// `θ` of the scores of van der Waerden.
const VAN_DER_WAERDEN: [f64; 5] = [0.06, 0.12, 0.25, 0.5, 1.0];

/// `θ` of the scores of Savage.
const SAVAGE: [f64; 4] = [0.06, 0.12, 0.25, 0.5];

/// The share of the pooled counts that lie below each tail.
const TAILS: [f64; 3] = [0.85, 0.98, 0.998];

/// A tail, and `θ`.
const TAIL_TILTS: [(usize, f64); 10] =
    [(0, 0.15), (0, 0.4), (0, 1.0), (1, 0.25), (1, 0.6), (1, 1.2), (1, 2.5), (2, 0.5), (2, 1.2), (2, 2.5)];

/// How many alternatives have a score that rises with the rank.
const RANKED: usize = VAN_DER_WAERDEN.len() + SAVAGE.len();

/// How many alternatives there are.
const ALTERNATIVES: usize = RANKED + TAIL_TILTS.len();

/// A fifth for each family.
#[rustfmt::skip]
const PRIOR: [f64; ALTERNATIVES] = [
    1.0 / 25.0, 1.0 / 25.0, 1.0 / 25.0, 1.0 / 25.0, 1.0 / 25.0,
    1.0 / 20.0, 1.0 / 20.0, 1.0 / 20.0, 1.0 / 20.0,
    1.0 / 15.0, 1.0 / 15.0, 1.0 / 15.0,
    1.0 / 20.0, 1.0 / 20.0, 1.0 / 20.0, 1.0 / 20.0,
    1.0 / 15.0, 1.0 / 15.0, 1.0 / 15.0,
];

/// Up to this, `exp(θ·a)` is far from infinity.
const LARGEST_TILT: f64 = 300.0;

/// The scores of each bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `Φ⁻¹(F)`.
    pub van_der_waerden: Vec<f64>,
    /// `−ln(1 − F) − 1`.
    pub savage: Vec<f64>,
    /// The first bucket of each of the tails above 85 %, 98 % and 99.8 %: from there on the score is 1,
    /// before it 0. The number of buckets if there is none.
    pub tails: [usize; 3],
}

/// The scores that follow from pooled counts per bucket; all are 0 when less than one was counted.
///
/// ```
/// use davylamp_stats::scores;
///
/// let scores = scores(&[500.0, 400.0, 85.0, 15.0])?;
/// assert!((scores.van_der_waerden[1] - 0.524_400_5).abs() < 1e-6); // 70 % lie below the middle
/// assert!((scores.savage[1] - 0.203_972_8).abs() < 1e-6);
/// assert_eq!(scores.tails, [2, 3, 4]);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn scores(pooled: &[f64]) -> Result<Scores, Error> {
    total("pooled", pooled, pooled.len())?;
    Ok(Scores::new(pooled))
}

/// The log factor of one round for one alternative: counts per bucket, the scores of the buckets, which do
/// not fall, and `θ`; the canary has `exp(θ·a)` times its share in a bucket, but for a constant. `θ·a` may
/// lie between −300 and 300.
///
/// ```
/// use davylamp_stats::score_log_factor;
///
/// // A tenth of the requests above the boundary against a twentieth.
/// let log_e = score_log_factor(&[90.0, 10.0], &[950.0, 50.0], &[0.0, 1.0], 0.7)?;
/// assert!((log_e - 1.7106).abs() < 5e-5);
///
/// // One cohort alone: the factor is exactly 1.
/// assert!(score_log_factor(&[90.0, 10.0], &[0.0, 0.0], &[0.0, 1.0], 0.7)? == 0.0);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn score_log_factor(canary: &[f64], baseline: &[f64], scores: &[f64], theta: f64) -> Result<f64, Error> {
    let n_canary = total("canary", canary, scores.len())?;
    let n_baseline = total("baseline", baseline, scores.len())?;
    Error::unless(theta > 0.0 && theta.is_finite(), "theta", theta, "a finite number above 0")?;
    for (index, &score) in scores.iter().enumerate() {
        let ok =
            (theta * score).abs() <= LARGEST_TILT && index.checked_sub(1).is_none_or(|i| scores[i] <= score);
        Error::unless(ok, "scores", score, "numbers that do not fall, from -300 to 300 times theta")?;
    }
    if n_canary == 0.0 || n_baseline == 0.0 {
        return Ok(0.0);
    }
    let share = n_canary / (n_canary + n_baseline);
    let bucket = |((canary, baseline), score): ((&f64, &f64), &f64)| {
        let tilt = theta * score;
        tilt * canary - (canary + baseline) * libm::log1p(share * libm::expm1(tilt))
    };
    Ok(canary.iter().zip(baseline).zip(scores).map(bucket).sum())
}

/// The test of one distribution of which larger values are worse: evidence that the canary's, divided by
/// `1 + tolerance`, are larger than the baseline's.
///
/// It runs over all steps of a rollout, in blocks that the caller decides on, as
/// [`EventProcess`](crate::EventProcess) does. All counts are on its [`Layout`].
///
/// ```
/// use davylamp_stats::{Layout, ScoreProcess};
///
/// let layout = Layout::classic(&[0.1, 0.2, 0.5, 1.0, f64::INFINITY])?;
/// let history = [6000.0, 3000.0, 900.0, 90.0, 10.0];
/// let mut process = ScoreProcess::new(layout, 0.1, 15.0)?.with_history(&history)?;
/// let baseline = [600.0, 300.0, 90.0, 9.0, 1.0];
/// for _ in 0..40 {
///     process.round(&[66.0, 33.0, 10.0, 1.0, 0.0], &baseline, true)?;
/// }
/// assert!(process.log_e() < 0.0);
///
/// // The canary becomes half as slow again. ln(100) = 4.6 is needed at a false alarm rate of 1 %.
/// let mut blocks = 0;
/// while process.log_e() < 100.0_f64.ln() {
///     process.round(&[46.0, 38.0, 21.0, 4.0, 1.0], &baseline, true)?;
///     blocks += 1;
/// }
/// assert_eq!(blocks, 5);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreProcess {
    tolerance: f64,
    /// The largest clip: `ln 10`, or what history has shown a cluster to be.
    largest_clip: f64,
    layout: Layout,
    /// Counts of history and of closed blocks, the canary's with its values divided by `1 + tolerance`; in
    /// half of the space, also here, so that a restored process has the same.
    pooled: Vec<f32>,
    blocks: Blocks<ALTERNATIVES>,
    /// While a block is open.
    block: Option<Block>,
}

impl ScoreProcess {
    /// A process without evidence. `tolerance` is the `m` by which the canary's values may be larger,
    /// `block_seconds` the nominal length of a block.
    pub fn new(layout: Layout, tolerance: f64, block_seconds: f64) -> Result<Self, Error> {
        unless_tolerance(tolerance)?;
        Ok(Self {
            tolerance,
            largest_clip: LARGEST_CLIP,
            pooled: vec![0.0; layout.bounds().len()],
            layout,
            blocks: Blocks::new(PRIOR, block_seconds, Restarts::Fading)?,
            block: None,
        })
    }

    /// Starts with counts of the stable version: without them the first block can show nothing. Ten minutes
    /// are enough.
    pub fn with_history(mut self, counts: &[f64]) -> Result<Self, Error> {
        total("history", counts, self.pooled.len())?;
        self.close_block();
        self.pool(counts);
        Ok(self)
    }

    /// Caps the log factors of each block at `largest`, above 0, instead of at `ln 10`.
    pub fn with_clip(self, largest: f64) -> Result<Self, Error> {
        Error::unless(largest > 0.0 && largest.is_finite(), "largest", largest, "a finite number above 0")?;
        Ok(Self { largest_clip: largest, ..self })
    }

    /// Changes the tolerance: the open block is closed, and the next one tests this one.
    pub fn tolerate(&mut self, tolerance: f64) -> Result<(), Error> {
        unless_tolerance(tolerance)?;
        self.close_block();
        self.tolerance = tolerance;
        Ok(())
    }

    /// Moves to another layout because samples can no longer be put on this one: the open block is closed,
    /// and what was pooled is counted on the new layout, exactly if that is the common one of both.
    pub fn relayout(&mut self, layout: Layout) {
        self.close_block();
        let pooled = self.layout.rebin(&self.pooled(), &layout);
        self.pooled = vec![0.0; pooled.len()];
        self.pool(&pooled);
        self.layout = layout;
    }

    /// Takes one round: what was counted in each bucket of the layout. With `new_block` it is the first of a
    /// block: the open one is closed before. Without an open block, any round is the first of one.
    pub fn round(&mut self, canary: &[f64], baseline: &[f64], new_block: bool) -> Result<(), Error> {
        let n_canary = total("canary", canary, self.pooled.len())?;
        let n_baseline = total("baseline", baseline, self.pooled.len())?;
        if new_block {
            self.close_block();
        }
        let mut block = match self.block.take() {
            Some(block) => block,
            None => self.new_block(),
        };
        self.blocks.open();
        let log_factors = block.add((canary, n_canary), (baseline, n_baseline));
        self.block = Some(block);
        self.blocks.add(&log_factors)
    }

    /// Closes the open block, if any, because the traffic weight or a cohort changes.
    pub fn close_block(&mut self) {
        let cap = self.cap();
        if let Some(block) = self.block.take() {
            self.blocks.close(cap);
            self.pool(&block.counts);
        }
    }

    /// The logarithm of the evidence against the null, with the open block.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.blocks.log_e(self.cap())
    }

    /// Where the buckets of the counts lie.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Counts per bucket of history and closed blocks, of both cohorts.
    #[must_use]
    pub fn pooled(&self) -> Vec<f64> {
        self.pooled.iter().copied().map(f64::from).collect()
    }

    /// The state, without the parameters but with the layout, which comes from the data: between blocks 331
    /// bytes and 4 a bucket, and 16 for a native layout or 8 for each finite bound of a classic one. While a
    /// block is open, 16 and 8 a bucket more.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { tolerance: _, largest_clip: _, layout, pooled, blocks, block } = self;
        let mut writer = Writer::new();
        blocks.write(&mut writer);
        layout.write(&mut writer);
        writer.counts(pooled);
        if let Some(Block { n_canary, n_baseline, counts, shift: _, tilts: _ }) = block {
            writer.numbers(&[*n_canary, *n_baseline]);
            writer.numbers(counts);
        }
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state and the layout of another: it continues to
    /// the bit like the one that was saved if the parameters are the same.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let blocks = self.blocks.read(&mut reader)?;
        let layout = Layout::read(&mut reader)?;
        let mut pooled = Vec::new();
        for _ in layout.bounds() {
            pooled.push(reader.count("pooled")?);
        }
        let mut restored = Self { blocks, layout, pooled, block: None, ..self };
        if restored.blocks.is_open() {
            let mut block = restored.new_block();
            block.n_canary = reader.not_negative("n_canary")?;
            block.n_baseline = reader.not_negative("n_baseline")?;
            for count in &mut block.counts {
                *count = reader.not_negative("counts")?;
            }
            restored.block = Some(block);
        }
        reader.finish()?;
        Ok(restored)
    }

    /// What the open block's log factors are capped at.
    fn cap(&self) -> f64 {
        let (n_canary, n_baseline) = self.block.as_ref().map_or((0.0, 0.0), |b| (b.n_canary, b.n_baseline));
        clip(1.0, n_canary, n_baseline, self.largest_clip)
    }

    /// A block whose bets follow from what was pooled before.
    fn new_block(&self) -> Block {
        let pooled = self.pooled();
        Block {
            shift: Shift::new(self.layout.bounds(), &pooled, self.tolerance),
            tilts: Tilts::new(&Scores::new(&pooled)),
            n_canary: 0.0,
            n_baseline: 0.0,
            counts: vec![0.0; pooled.len()],
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
    fn pool(&mut self, counts: &[f64]) {
        for (pooled, count) in self.pooled.iter_mut().zip(counts) {
            *pooled = ((f64::from(*pooled) + count) as f32).min(f32::MAX);
        }
    }
}

/// An open block: what it bets on, fixed when it opens, and what has been counted.
#[derive(Debug, Clone, PartialEq)]
struct Block {
    shift: Shift,
    tilts: Tilts,
    /// Exposure.
    n_canary: f64,
    n_baseline: f64,
    /// Of both cohorts, the canary's with its values divided.
    counts: Vec<f64>,
}

impl Block {
    /// The log factors of one more round, of each cohort's counts and their sum.
    fn add(
        &mut self,
        (canary, n_canary): (&[f64], f64),
        (baseline, n_baseline): (&[f64], f64),
    ) -> [f64; ALTERNATIVES] {
        let canary = self.shift.apply(canary);
        self.n_canary += n_canary;
        self.n_baseline += n_baseline;
        for ((count, canary), baseline) in self.counts.iter_mut().zip(&canary).zip(baseline) {
            *count += canary + baseline;
        }
        if n_canary > 0.0 && n_baseline > 0.0 {
            self.tilts.log_factors(&canary, baseline, n_canary / (n_canary + n_baseline))
        } else {
            [0.0; ALTERNATIVES]
        }
    }
}

/// The alternatives of a block.
#[derive(Debug, Clone, PartialEq)]
struct Tilts {
    buckets: Vec<Tilt>,
    tails: [usize; 3],
}

/// Those of one bucket that differ from bucket to bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tilt {
    van_der_waerden: f64,
    savage: f64,
    /// `exp(θ·a) − 1` for each `θ` of both.
    growth: [f64; RANKED],
}

impl Tilts {
    fn new(scores: &Scores) -> Self {
        let Scores { van_der_waerden, savage, tails } = scores;
        let tilt = |(&van_der_waerden, &savage): (&f64, &f64)| {
            let (body, tail) = (growth(van_der_waerden), growth(savage));
            let growth = std::array::from_fn(|j| if j < body.len() { body[j] } else { tail[j - body.len()] });
            Tilt { van_der_waerden, savage, growth }
        };
        Self { buckets: van_der_waerden.iter().zip(savage).map(tilt).collect(), tails: *tails }
    }

    /// `share` is the canary's of all counts.
    fn log_factors(&self, canary: &[f64], baseline: &[f64], share: f64) -> [f64; ALTERNATIVES] {
        let (mut van_der_waerden, mut savage) = (0.0, 0.0);
        let mut expected = [0.0; RANKED];
        let mut tails = [(0.0, 0.0); TAILS.len()];
        for (bucket, (canary, baseline)) in canary.iter().zip(baseline).enumerate() {
            let both = canary + baseline;
            if both == 0.0 {
                continue;
            }
            let tilt = &self.buckets[bucket];
            van_der_waerden += tilt.van_der_waerden * canary;
            savage += tilt.savage * canary;
            for (expected, growth) in expected.iter_mut().zip(tilt.growth) {
                *expected += both * libm::log1p(share * growth);
            }
            for (tail, first) in tails.iter_mut().zip(self.tails) {
                if bucket >= first {
                    *tail = (tail.0 + canary, tail.1 + both);
                }
            }
        }
        let mut log_factors = [0.0; ALTERNATIVES];
        for (j, log_factor) in log_factors.iter_mut().enumerate() {
            *log_factor = if j < VAN_DER_WAERDEN.len() {
                VAN_DER_WAERDEN[j] * van_der_waerden - expected[j]
            } else if j < RANKED {
                SAVAGE[j - VAN_DER_WAERDEN.len()] * savage - expected[j]
            } else {
                let (tail, theta) = TAIL_TILTS[j - RANKED];
                theta * tails[tail].0 - tails[tail].1 * libm::log1p(share * libm::expm1(theta))
            };
        }
        log_factors
    }
}

/// `exp(θ·score) − 1` for each `θ` of [`VAN_DER_WAERDEN`], from a single exponential: every one of them is a
/// sum of others, and 0.01.
fn growth(score: f64) -> [f64; VAN_DER_WAERDEN.len()] {
    let both = |one: f64, other: f64| one + other + one * other;
    let twice = |growth: f64| both(growth, growth);
    let hundredth = libm::expm1(0.01 * score);
    let fiftieth = twice(hundredth);
    let first = both(fiftieth, twice(fiftieth));
    let second = twice(first);
    let third = both(twice(second), hundredth);
    [first, second, third, twice(third), twice(twice(third))]
}

impl Scores {
    fn new(pooled: &[f64]) -> Self {
        let all: f64 = pooled.iter().sum();
        let mut scores = Self {
            van_der_waerden: vec![0.0; pooled.len()],
            savage: vec![0.0; pooled.len()],
            tails: [pooled.len(); 3],
        };
        if all < 1.0 {
            return scores;
        }
        let least = 0.5 / all;
        // Both shares, because what is small must not come from a difference.
        let share = |count: f64| (count / all).clamp(least, 1.0 - least);
        let mut above = 0.0;
        for (bucket, count) in pooled.iter().enumerate().rev() {
            let middle = share(above + 0.5 * count);
            scores.savage[bucket] = -libm::log(middle) - 1.0;
            if middle < 0.5 {
                scores.van_der_waerden[bucket] = upper_quantile(middle);
            }
            above += count;
        }
        let mut below = 0.0;
        for (bucket, count) in pooled.iter().enumerate() {
            let middle = share(below + 0.5 * count);
            if middle < 0.5 {
                scores.van_der_waerden[bucket] = -upper_quantile(middle);
            }
            for (tail, quantile) in scores.tails.iter_mut().zip(TAILS) {
                if below / all >= quantile {
                    *tail = bucket.min(*tail);
                }
            }
            below += count;
        }
        ascend(&mut scores.van_der_waerden);
        ascend(&mut scores.savage);
        scores
    }
}

/// Undoes falls by rounding.
fn ascend(scores: &mut [f64]) {
    let mut largest = f64::NEG_INFINITY;
    for score in scores {
        largest = largest.max(*score);
        *score = largest;
    }
}
