//! What a server does for the kinds it has built in: defaults, what it fills in itself, and what it refuses. Only as much
//! as a controller or a user can notice here; the words are those of a real server.

mod defaults;
mod events;
mod rules;

pub(super) use defaults::{default, fill};
pub(super) use events::{from_core, to_core};
pub(super) use rules::problems;
