//! meshctl: installs the mesh, runs it on one machine, and shows and checks what it does.

pub mod chart;
pub mod cluster;
pub mod cmd;
pub mod demo;
pub mod fetch;
pub mod output;
