//! Blocks of rounds, and when capital in reserve is put to work: what the tests that run over a whole rollout
//! share.
//!
//! Takes the log factors of rounds and the cap of each block; the kind of metric computes both. Half of the
//! capital is at work from the start, the other half is kept for regressions that begin late.

use crate::state::{Reader, Writer};
use crate::{Capital, Error};

/// Seconds after which the hazard of a restart has halved.
pub(crate) const RESTART_SECONDS: f64 = 900.0;

/// The share of the reserve that is put to work at the start of a block of `L` seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Restarts {
    /// `L/(900 s + L·blocks before)`: less and less, for one regression in a rollout of unknown length.
    Fading,
    /// `L` divided by this many seconds: the same at any time.
    Steady(f64),
}

/// Capital that is put to work block by block.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Blocks<const J: usize> {
    capital: Capital<J>,
    seconds: f64,
    restarts: Restarts,
    /// Blocks opened since the beginning, the open one included.
    opened: u32,
    open: bool,
}

impl<const J: usize> Blocks<J> {
    /// `seconds` is the nominal length of a block, also of one that is closed early.
    pub(crate) fn new(prior: [f64; J], seconds: f64, restarts: Restarts) -> Result<Self, Error> {
        let ok = seconds > 0.0 && seconds.is_finite();
        Error::unless(ok, "block_seconds", seconds, "a finite number above 0")?;
        Ok(Self { capital: Capital::new(prior, 0.5)?, seconds, restarts, opened: 0, open: false })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Opens a block, unless one is open.
    pub(crate) fn open(&mut self) {
        if !self.open {
            self.capital.restart(self.hazard(self.opened));
            self.opened = self.opened.saturating_add(1);
            self.open = true;
        }
    }

    /// Multiplies the open block's factor of each alternative by that of one more round.
    pub(crate) fn add(&mut self, log_factors: &[f64; J]) -> Result<(), Error> {
        self.capital.add(log_factors)
    }

    /// Replaces the open block's factor of each alternative, which is known as a whole only.
    pub(crate) fn replace(&mut self, log_factors: &[f64; J]) -> Result<(), Error> {
        self.capital.replace(log_factors)
    }

    /// Closes the open block, if any; gives its hazard.
    pub(crate) fn close(&mut self, cap: f64) -> Option<f64> {
        if !self.open {
            return None;
        }
        self.capital.close(cap);
        self.open = false;
        Some(self.hazard(self.opened - 1))
    }

    /// The logarithm of the evidence, with the open block's log factors capped at `cap`.
    pub(crate) fn log_e(&self, cap: f64) -> f64 {
        self.capital.log_e(cap)
    }

    /// The logarithm of the evidence, without the open block.
    pub(crate) fn log_e_before(&self) -> f64 {
        self.capital.log_e_before()
    }

    /// That of the block that has `before` blocks before it.
    fn hazard(&self, before: u32) -> f64 {
        match self.restarts {
            Restarts::Fading => self.seconds / (RESTART_SECONDS + self.seconds * f64::from(before)),
            Restarts::Steady(seconds) => self.seconds / seconds,
        }
    }

    /// A flag, an integer and the capital.
    pub(crate) fn write(&self, writer: &mut Writer) {
        let Self { capital, seconds: _, restarts: _, opened, open } = self;
        writer.flag(*open);
        writer.integer(*opened);
        capital.write(writer);
    }

    /// Replaces the state of `self`, which brings the prior and the length of a block.
    pub(crate) fn read(self, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let open = reader.flag("open")?;
        let opened = reader.integer()?;
        if open && opened == 0 {
            let expected = "1 or more with an open block";
            return Err(Error::StateField { field: "blocks", value: 0.0, expected });
        }
        Ok(Self { open, opened, capital: self.capital.read(reader)?, ..self })
    }
}
