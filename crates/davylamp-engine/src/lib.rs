//! Davylamp engine.
