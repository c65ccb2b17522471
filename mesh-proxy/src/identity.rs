//! This proxy's own identity: proof of it goes to the control plane, certificates come back, and everybody who needs
//! them takes the current ones from the [`CertStore`]. Keys are made here, stay in memory, and are never written.

mod client;
mod control;
mod store;

pub use client::{IdentityClient, IdentityError};
pub(crate) use control::describe;
pub use control::{ControlAddress, ControlChannel, ControlPlane, ControlPlaneConfig, InvalidAddress, TokenSource};
pub use store::{CertStore, Credentials, CredentialsError};
