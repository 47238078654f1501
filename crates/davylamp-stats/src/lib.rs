//! Davylamp stats.
