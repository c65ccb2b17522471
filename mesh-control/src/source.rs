//! Where policy objects come from. A source emits events; the world takes them in. What is wrong with an object never
//! stops the others: it is said in a diagnostic, and what was last good stays in force.

pub mod dir;

use std::sync::Arc;

use mesh_api::crd::{Object, ObjectRef};

/// What a source says.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is there, or has changed.
    Applied(Arc<Object>),
    /// An object is gone.
    Deleted(ObjectRef),
    /// Everything that was there at the start has been said.
    Synced,
}
