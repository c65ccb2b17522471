//! Pools against real servers on loopback.

mod limits;
mod reuse;
mod streams;
mod tunnels;
