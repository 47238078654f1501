//! Weights in routes: reads a route and what its gateways say of it, edits its numbers, and writes it. Takes routes as
//! JSON, so that every field we do not know survives; never changes anything of a route but weights and our own entry
//! in `managedFields`.

mod effective;
mod gateway;
mod router;

pub use effective::Parents;
pub use gateway::{Backends, forget_patch, observe, restored, with_weight};
pub use router::{GatewayRouter, TrafficError};
