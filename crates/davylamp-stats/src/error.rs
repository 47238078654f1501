//! The errors of this crate: an argument or a saved state that cannot be used, named.

/// Why a function of this crate refused its input. Nothing is changed by a call that returns one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// An argument is not a number, infinite or outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Argument {
        /// The argument, or the field of it.
        name: &'static str,
        /// What it was.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// Two lists that belong together differ in length.
    #[error("{log_e} log e-values but {weights} weights")]
    Lengths {
        /// The number of e-values.
        log_e: usize,
        /// The number of weights.
        weights: usize,
    },
    /// A list does not have the length of what it belongs to.
    #[error("{name} has {found} entries, expected {expected}")]
    Length {
        /// The list.
        name: &'static str,
        /// The number of its entries.
        found: usize,
        /// How many it may have.
        expected: usize,
    },
    /// A saved state is too short or too long for the process it is restored into.
    #[error("the saved state has {found} bytes, expected {expected}")]
    StateLength {
        /// The number of bytes given.
        found: usize,
        /// The number of bytes of this process.
        expected: usize,
    },
    /// A saved state was written by another version of the format.
    #[error("the saved state has version {found}, expected {expected}")]
    StateVersion {
        /// The version in the bytes.
        found: u8,
        /// The version that this crate reads.
        expected: u8,
    },
    /// A value in a saved state is one that no process can have.
    #[error("the saved state has {field} {value}, expected {expected}")]
    StateField {
        /// The field.
        field: &'static str,
        /// What it was.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
}

impl Error {
    /// The error that names the argument, unless `ok`.
    pub(crate) fn unless(
        ok: bool,
        name: &'static str,
        value: f64,
        expected: &'static str,
    ) -> Result<(), Self> {
        if ok { Ok(()) } else { Err(Self::Argument { name, value, expected }) }
    }

    /// The error that names the list, unless it is as long as expected.
    pub(crate) fn unless_length(name: &'static str, found: usize, expected: usize) -> Result<(), Self> {
        if found == expected { Ok(()) } else { Err(Self::Length { name, found, expected }) }
    }

    /// The error that names the argument, unless it is a ratio that can be computed with.
    pub(crate) fn unless_ratio(name: &'static str, value: f64) -> Result<(), Self> {
        Self::unless((1e-9..=1e9).contains(&value), name, value, "a ratio from 1e-9 to 1e9")
    }
}
