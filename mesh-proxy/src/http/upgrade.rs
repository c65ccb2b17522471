//! Connections that stop being HTTP: CONNECT through the explicit proxy, and upgrades such as WebSocket.

use std::rc::Rc;

use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::exchange::{Downstream, Exchange};
use crate::body::Body;
use crate::failure::Failure;
use crate::io::Prefixed;
use crate::outbound::{self, Target};
use crate::stream::{Connection, Stream};
use crate::tcp;
use crate::upstream::StreamLease;
use crate::worker::Worker;

/// When the client has its answer to CONNECT, carries the rest of its connection as a captured one.
pub(crate) fn captured(worker: &Rc<Worker>, downstream: &Rc<Downstream>, client: OnUpgrade, target: Target) {
    let (worker, downstream) = (worker.clone(), downstream.clone());
    tokio::task::spawn_local(async move {
        let open = worker.proxy.drain.connection();
        if let Ok(upgraded) = client.await {
            outbound::captured(worker, connection(upgraded), downstream, target).await;
        }
        drop(open);
    });
}

/// Makes the answer of an exchange, and lets its connection go on as something else where both sides agreed to.
pub(crate) fn conclude(
    worker: &Rc<Worker>,
    mut exchange: Box<Exchange>,
    client: Option<OnUpgrade>,
    result: Result<Response<Body>, Failure>,
) -> Response<Body> {
    let response = match result {
        Ok(response) => response,
        Err(failure) => exchange.fail(&failure),
    };
    let response = match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let lease = exchange.tunnel.take();
            tunnel(worker, client, response, lease)
        }
        _ => response,
    };
    exchange.complete(response)
}

/// When both sides have switched protocols, copies bytes between them until either is done.
fn tunnel(
    worker: &Rc<Worker>,
    client: OnUpgrade,
    mut response: Response<Body>,
    lease: Option<StreamLease>,
) -> Response<Body> {
    let upstream = hyper::upgrade::on(&mut response);
    let open = worker.proxy.drain.connection();
    tokio::task::spawn_local(async move {
        if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
            let _ = tcp::copy(connection(client), TokioIo::new(upstream), None).await;
        }
        drop((lease, open));
    });
    response.map(|_| Body::empty())
}

/// The connection under an upgrade: the socket itself where there is one.
fn connection(upgraded: Upgraded) -> Connection {
    match upgraded.downcast::<TokioIo<Connection>>() {
        Ok(parts) => {
            let (unread, stream) = parts.io.into_inner().into_parts();
            let mut prefix = bytes::BytesMut::from(&parts.read_buf[..]);
            prefix.extend_from_slice(&unread);
            Prefixed::new(prefix.freeze(), stream)
        }
        Err(upgraded) => Prefixed::new(Bytes::new(), Stream::Tunnel(TokioIo::new(upgraded))),
    }
}
