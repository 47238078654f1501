//! The crate holds integration tests only; see `tests/`.
