//! The whole mesh on one machine: control plane, sidecars and a shop of small services, as processes of one tree.
//!
//! | module | what |
//! |---|---|
//! | [`shop`] | which workloads there are, their addresses, and the objects that tell the mesh of them |
//! | [`place`] | the directory of one run: authority, tokens, built-in objects, logs |
//! | [`processes`] | the processes of one run and their arguments |
//! | [`supervisor`] | one child process, kept running, gone when the demo goes |
//! | [`ready`] | waiting until everything serves |
//! | [`report`] | what is printed when it does |
//! | [`traffic`], [`metrics`], [`live`] | steady requests, what sidecars counted of them, and the table of it |
//! | [`run`] | the demo from start to end |
//! | [`app`], [`proxied`] | the program that plays every service |

pub mod app;
pub mod live;
pub mod metrics;
pub mod place;
pub mod processes;
pub mod proxied;
pub mod ready;
pub mod report;
pub mod run;
pub mod shop;
pub mod supervisor;
pub mod traffic;
