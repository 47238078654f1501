//! Cost mass (seconds, bytes, calls of a database), canary against baseline: the test of a sum over requests
//! whose single costs are not known.
//!
//! **Null hypothesis.** A request costs on the canary what it would cost on the baseline, times `ρ₀` at most,
//! and the split of the traffic does not look at costs: `H₀: E[s | past, n_C, n_B] ≤ q` for the share `s` of
//! a block. It is not a test of means: a few requests of enormous cost may hit either cohort.
//!
//! **Formula.** From the sums `S` and the exposures `n` of a whole block, for twelve bets `c_j` from 0.004 to
//! 0.9,
//! ```text
//! s = S_C/(S_C + ρ₀·S_B)     q = n_C/(n_C + n_B)     e_j = 1 + c_j·(s/q − 1)
//! ```
//! and 1 without costs. Half of the capital starts in reserve and is put to work as in
//! [`EventProcess`](crate::EventProcess); there is no cap.
//!
//! **Why it is valid.** Under random routing every choice of `n_C` among the requests of a block is as likely
//! as any other, so that the canary's part of their cost is `q` on average, however heavy the tail of the
//! costs. Then `E[e_j] = 1 + c_j·(E[s]/q − 1) ≤ 1`, and `e_j ≥ 1 − c_j > 0`. The evidence moves when a block
//! closes and not before, because the share of a part of a block says nothing about this expectation.
//!
//! **Source.** Waudby-Smith and Ramdas (2024), *Estimating means of bounded random variables by betting*.
//!
//! **Cost.** Twelve logarithms a round, thirteen exponentials a block.
//!
//! **When not to use it.** Where single costs or a histogram of them are known: a block can multiply the
//! capital by `1/q` at most, which makes it slow for counts and blind for decreases at a low weight. For a
//! promotion below a quarter of the traffic.

use crate::blocks::{Blocks, Restarts};
use crate::event::UNIFORM;
use crate::state::{Reader, Writer};
use crate::{Counts, Error};

/// The bets `c_j`: twelve equal steps of the logarithm between 0.004 and 0.9.
#[expect(clippy::unreadable_literal, reason = "the numbers as they are printed")]
pub const SHARE_GRID: [f64; 12] = [
    0.004000000000000002,
    0.0065447756778622005,
    0.010708522168384142,
    0.017521218858372174,
    0.02866811175769364,
    0.046906590140497154,
    0.07674827757074411,
    0.12557506509070565,
    0.20546515793790307,
    0.33618084208002563,
    0.5500570496521461,
    0.9,
];

/// The log factor of one block for one bet `bet`, from 0 to below 1: `share` of the cost is the canary's,
/// where `expected`, above 0, is its share of the exposure.
///
/// ```
/// use davylamp_stats::share_log_e;
///
/// // Three times the cost that a tenth of the traffic should have.
/// let log_e = share_log_e(0.5, 0.3, 0.1)?;
/// assert!((log_e - 2.0_f64.ln()).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn share_log_e(bet: f64, share: f64, expected: f64) -> Result<f64, Error> {
    Error::unless((0.0..1.0).contains(&bet), "bet", bet, "a number from 0 to below 1")?;
    Error::unless((0.0..=1.0).contains(&share), "share", share, "a share from 0 to 1")?;
    let ok = expected > 0.0 && expected <= 1.0;
    Error::unless(ok, "expected", expected, "a share above 0 and up to 1")?;
    Ok(log_factor(bet, share, expected))
}

fn log_factor(bet: f64, share: f64, expected: f64) -> f64 {
    libm::log1p(bet * (share / expected.max(f64::MIN_POSITIVE) - 1.0))
}

/// The test of one sum over requests of which less is better: evidence that the canary's requests cost more
/// than `ρ₀` times as much as the baseline's.
///
/// The [`Counts`] of a round hold costs instead of events, in any unit. For a sum of which more is better,
/// pass [`Counts::swapped`] and `ρ₀ = 1/(1 − tolerance)`.
///
/// ```
/// use davylamp_stats::{Counts, ShareProcess};
///
/// // Half of the traffic; 12 seconds of latency on the canary for every 8 on the baseline.
/// let mut process = ShareProcess::new(1.1, 60.0)?;
/// let round = Counts { x_canary: 12.0, x_baseline: 8.0, n_canary: 100.0, n_baseline: 100.0 };
/// let mut blocks = 0;
/// while process.log_e() < 100.0_f64.ln() {
///     process.round(&round, true)?;
///     process.close_block();
///     blocks += 1;
/// }
/// assert_eq!(blocks, 58);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ShareProcess {
    rho0: f64,
    blocks: Blocks<12>,
    /// Cost and exposure of the open block.
    sums: Counts,
}

impl ShareProcess {
    /// A process without evidence. `rho0` is the tolerated ratio, `block_seconds` the nominal length of a
    /// block.
    pub fn new(rho0: f64, block_seconds: f64) -> Result<Self, Error> {
        Error::unless_ratio("rho0", rho0)?;
        let blocks = Blocks::new(UNIFORM, block_seconds, Restarts::Fading)?;
        Ok(Self { rho0, blocks, sums: Counts::default() })
    }

    /// Takes one round. With `new_block` it is the first of a block: the open one is closed before. Without
    /// an open block, any round is the first of one.
    pub fn round(&mut self, costs: &Counts, new_block: bool) -> Result<(), Error> {
        costs.validate()?;
        if new_block {
            self.close_block();
        }
        self.blocks.open();
        self.sums.x_canary += costs.x_canary;
        self.sums.x_baseline += costs.x_baseline;
        self.sums.n_canary += costs.n_canary;
        self.sums.n_baseline += costs.n_baseline;
        self.blocks.replace(&log_factors(self.rho0, &self.sums))
    }

    /// Closes the open block, if any: only now it counts.
    pub fn close_block(&mut self) {
        self.blocks.close(f64::INFINITY);
        self.sums = Counts::default();
    }

    /// The logarithm of the evidence against the null, without the open block.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.blocks.log_e_before()
    }

    /// The state, without the parameters: 246 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { rho0: _, blocks, sums } = self;
        let Counts { x_canary, x_baseline, n_canary, n_baseline } = *sums;
        let mut writer = Writer::new();
        blocks.write(&mut writer);
        writer.numbers(&[x_canary, x_baseline, n_canary, n_baseline]);
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let restored = Self {
            blocks: self.blocks.read(&mut reader)?,
            sums: Counts {
                x_canary: reader.not_negative("x_canary")?,
                x_baseline: reader.not_negative("x_baseline")?,
                n_canary: reader.not_negative("n_canary")?,
                n_baseline: reader.not_negative("n_baseline")?,
            },
            ..self
        };
        reader.finish()?;
        Ok(restored)
    }
}

/// The log factors of a block for [`SHARE_GRID`].
fn log_factors(rho0: f64, sums: &Counts) -> [f64; 12] {
    if !sums.comparable() || sums.events() <= 0.0 {
        return [0.0; 12];
    }
    let share = 1.0 / (1.0 + sums.x_baseline / sums.x_canary * rho0);
    let expected = 1.0 / (1.0 + sums.n_baseline / sums.n_canary);
    SHARE_GRID.map(|bet| log_factor(bet, share, expected))
}
