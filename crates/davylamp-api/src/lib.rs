//! Davylamp api.
