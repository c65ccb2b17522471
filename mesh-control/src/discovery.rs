//! Delta discovery: subscriptions of proxies in, resources and their changes out, acknowledgements kept as sync state.
//!
//! The module knows nothing of policy: what a name means to a client is the [`Resources`](resources::Resources)
//! trait's answer.

pub mod resources;
