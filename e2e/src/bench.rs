//! The data-plane benchmark: rival proxies under the same load in the same run.
//!
//! [`run`] walks settings, rounds and [`subject`]s; each measurement starts fresh processes ([`process`]): a [`backend`],
//! the subject's proxies on a core of their own, and a load generator ([`load`]) beside the backend on another core.
//! [`report`] turns the measurements into tables and JSON.

pub mod backend;
pub mod certificates;
pub mod direct;
pub mod envoy;
pub mod load;
pub mod mesh;
pub mod process;
pub mod report;
pub mod run;
pub mod setting;
pub mod subject;
