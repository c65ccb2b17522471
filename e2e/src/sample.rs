//! What runs in pods of the tests, as one static program: services of the shop, steady traffic that counts its failures,
//! single requests, a TCP echo, and a look at what passes on the wire.
//!
//! It knows nothing of the mesh: it resolves names and connects as any application does.

pub mod get;
pub mod http;
pub mod load;
pub mod resolve;
pub mod shop;
pub mod tcp;
pub mod wire;
