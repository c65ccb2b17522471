//! The mesh's vocabulary: policy kinds as users write them, the compiled model that proxies act on, and the protocol
//! between control plane and proxies. Types and pure functions only: no input or output, nothing asynchronous.

pub mod bootstrap;
#[cfg(feature = "crd")]
pub mod crd;
pub mod duration;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod log_format;
pub mod model;
pub mod names;
#[cfg(feature = "crd")]
pub mod source;
#[cfg(feature = "crd")]
pub mod validate;
pub mod wire;
