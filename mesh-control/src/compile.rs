//! From the world to what proxies act on: pure functions of the world and the subject that asks. This is where the
//! semantics of Istio's API live.
//!
//! A compile function reads the world through a [`Reader`], which notes the facts that it read (so that an answer is
//! computed anew only when one of them changes) and what it learnt of the client (so that all clients alike in those
//! points share one answer, the *view*).

mod authorization;
mod cluster;
mod delegate;
mod destination;
mod endpoints;
mod inbound;
mod lookup;
mod matches;
mod policy;
mod reader;
pub mod resolver;
mod retry;
mod route;
mod routing;
mod settings;

#[cfg(test)]
mod tests;

pub use destination::destination;
pub use endpoints::{SliceName, slice, workload_at};
pub use inbound::inbound;
pub use lookup::{Target, lookup};
pub use reader::{ClientFacts, Reader};
pub use resolver::Resolver;
pub use settings::settings;
