//! `kubectl davylamp`.

fn main() {}
