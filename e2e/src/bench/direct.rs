//! No proxy at all: what load generator and backend cost by themselves.

use std::net::SocketAddr;

use super::load::{Entry, Form};
use super::setting::Setting;
use super::subject::{Bench, Running, Subject};

/// The load generator connected straight to the backend.
pub struct Direct;

impl Subject for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn version(&self) -> String {
        "no proxy".to_owned()
    }

    fn start(&self, _: &Bench<'_>, _: &Setting, backend: SocketAddr) -> anyhow::Result<Running> {
        let entry = Entry {
            address: backend,
            form: Form::Origin,
            authority: backend.to_string(),
        };
        Ok(Running {
            entry,
            measured: Vec::new(),
            support: Vec::new(),
        })
    }
}
