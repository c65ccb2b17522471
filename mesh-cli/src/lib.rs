//! meshctl: runs the mesh on one machine, and shows and checks what a mesh does.

pub mod cmd;
pub mod demo;
pub mod fetch;
pub mod output;
