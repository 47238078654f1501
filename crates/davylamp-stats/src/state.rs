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
    pub(crate) fn new() -> Self {
        Self { bytes: vec![VERSION] }
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

    /// In half of the space.
    pub(crate) fn counts(&mut self, values: &[f32]) {
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads the numbers of a process back and refuses those that no process writes.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Checks the version.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Self { bytes, position: 0 };
        let [version] = reader.take()?;
        if version == VERSION {
            Ok(reader)
        } else {
            Err(Error::StateVersion { found: version, expected: VERSION })
        }
    }

    /// Refuses bytes that are left over.
    pub(crate) fn finish(self) -> Result<(), Error> {
        if self.position == self.bytes.len() {
            Ok(())
        } else {
            Err(Error::StateLength { found: self.bytes.len(), expected: self.position })
        }
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

    /// A finite number that is not below 0.
    pub(crate) fn not_negative(&mut self, field: &'static str) -> Result<f64, Error> {
        let value = self.number(field)?;
        if value >= 0.0 {
            Ok(value)
        } else {
            Err(Error::StateField { field, value, expected: "a number not below 0" })
        }
    }

    /// One of the numbers written in half of the space.
    pub(crate) fn count(&mut self, field: &'static str) -> Result<f32, Error> {
        let value = f32::from_le_bytes(self.take()?);
        if value.is_finite() && value >= 0.0 {
            Ok(value)
        } else {
            let expected = "a finite number not below 0";
            Err(Error::StateField { field, value: f64::from(value), expected })
        }
    }

    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let end = self.position + N;
        match self.bytes.get(self.position..end).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => {
                self.position = end;
                Ok(bytes)
            }
            None => Err(Error::StateLength { found: self.bytes.len(), expected: end }),
        }
    }
}
