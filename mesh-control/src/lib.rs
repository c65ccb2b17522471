//! The control plane: sources of policy, the world, the compiler, delta discovery and the certificate authority.

pub mod discovery;
