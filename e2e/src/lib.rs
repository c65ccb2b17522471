//! What the tests and benchmarks of several processes share: finding rival proxies, starting and measuring processes,
//! making load. Nothing here is part of the mesh.

pub mod app;
pub mod bench;
pub mod binaries;
pub mod bodies;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod control;
pub mod credentials;
pub mod demo;
pub mod envoy;
pub mod exposition;
pub mod grpc;
pub mod netns;
pub mod peers;
pub mod plain;
pub mod sample;
pub mod traffic;
