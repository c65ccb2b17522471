//! The admission webhooks: pods come in, pods with a proxy beside them go out; policy objects come in, a judgement goes
//! out. What a pod becomes is decided by pure functions; around them is only HTTPS.

pub mod admission;
pub mod certificate;
pub mod cluster;
pub mod config;
pub mod events;
pub mod inject;
mod keeper;
pub mod names;
pub mod options;
pub mod quantity;
pub mod run;
pub mod selector;
pub mod server;
mod status;
#[cfg(test)]
mod testing;
pub mod validation;
