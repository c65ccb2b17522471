//! meshctl: runs the mesh on one machine, and shows and checks what a mesh does.

pub mod demo;
