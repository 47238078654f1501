//! The saved form of a process: a version byte, then little-endian numbers in a fixed order.
//!
//! Takes and gives bytes; never guesses. The parameters of a process are not saved, because they belong to
//! the configuration that the caller holds anyway.

use crate::Error;

/// The version of every saved process; the length tells which process it is.
const VERSION: u8 = 1;

/// No process reaches this magnitude, and sums of a few such numbers are still finite.
const LARGEST: f64 = 1e300;

/// Appends the numbers of a process.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(length: usize) -> Self {
        let mut bytes = Vec::with_capacity(length);
        bytes.push(VERSION);
        Self { bytes }
    }

    pub(crate) fn flag(&mut self, value: bool) {
        self.bytes.push(u8::from(value));
    }

    pub(crate) fn integer(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    pub(crate) fn numbers(&mut self, values: &[f64]) {
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads the numbers of a process back and refuses those that no process writes.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Checks the version and the length, so that the reads that follow cannot run out of bytes.
    pub(crate) fn new(bytes: &'a [u8], expected: usize) -> Result<Self, Error> {
        let length = Error::StateLength { found: bytes.len(), expected };
        let Some((&version, rest)) = bytes.split_first() else { return Err(length) };
        if version != VERSION {
            return Err(Error::StateVersion { found: version, expected: VERSION });
        }
        if bytes.len() != expected {
            return Err(length);
        }
        Ok(Self { rest })
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, Error> {
        let [value] = self.take::<1>()?;
        match value {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Error::StateField { field, value: f64::from(value), expected: "0 or 1" }),
        }
    }

    pub(crate) fn integer(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    /// A finite number.
    pub(crate) fn number(&mut self, field: &'static str) -> Result<f64, Error> {
        let value = f64::from_le_bytes(self.take()?);
        if value.abs() <= LARGEST {
            Ok(value)
        } else {
            Err(Error::StateField { field, value, expected: "a finite number" })
        }
    }

    /// A sum of exposures.
    pub(crate) fn exposure(&mut self, field: &'static str) -> Result<f64, Error> {
        let value = self.number(field)?;
        if value >= 0.0 {
            Ok(value)
        } else {
            Err(Error::StateField { field, value, expected: "a number not below 0" })
        }
    }

    /// The logarithm of a share; minus infinity is a share of zero.
    pub(crate) fn log_share(&mut self, field: &'static str) -> Result<f64, Error> {
        let value = f64::from_le_bytes(self.take()?);
        if value == f64::NEG_INFINITY || (-LARGEST..=1e-6).contains(&value) {
            Ok(value)
        } else {
            Err(Error::StateField { field, value, expected: "the logarithm of a share" })
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(Error::StateLength { found: self.rest.len(), expected: N }),
        }
    }
}
