//! Davylamp controller.
