//! Observes, decides, records and applies.
