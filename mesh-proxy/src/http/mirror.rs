//! Copies of requests: sent beside the original, their responses read and thrown away. A copy never delays the original;
//! when a worker has too many under way, or one reads too slowly, it is dropped and counted.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;

use super::HttpVersion;
use super::forward::{Outgoing, upstream_version};
use super::headers;
use crate::body::MIRROR_LIMIT;
use crate::upstream::{Cluster, UpstreamProto};
use crate::worker::Worker;

/// Most copies that a worker has under way.
const MOST: usize = 256;
/// Longest that a copy may take.
const LIMIT: Duration = Duration::from_secs(60);

thread_local! {
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// Sends a copy of the request to `cluster`; returns the original.
pub(crate) fn mirror_to(worker: &Rc<Worker>, cluster: &Arc<Cluster>, outgoing: Outgoing) -> Outgoing {
    if outgoing.upgrade {
        return outgoing;
    }
    if UNDER_WAY.get() >= MOST {
        metrics::counter!("mesh_mirror_dropped_total").increment(1);
        return outgoing;
    }
    let version = upstream_version(cluster, &outgoing);
    let Outgoing {
        parts,
        body,
        authority,
        client_version,
        upgrade,
    } = outgoing;
    let (body, copy) = body.tee(MIRROR_LIMIT);
    let mut copied = parts.clone();
    // An upgrade of the copy would have no one to talk to.
    headers::remove_hop_by_hop(&mut copied.headers, false);
    let protocol = match version {
        HttpVersion::Http1 => UpstreamProto::Http1,
        HttpVersion::Http2 => UpstreamProto::Http2,
    };
    let formed = headers::target(
        &mut copied.uri,
        &mut copied.version,
        &mut copied.headers,
        &authority,
        version,
        false,
    )
    .is_ok();
    if formed {
        let worker = worker.clone();
        let cluster = cluster.clone();
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        tokio::task::spawn_local(async move {
            let sending = async {
                let Ok(endpoint) = cluster.pick(None, &[]) else { return };
                let request = Request::from_parts(copied, copy);
                if let Ok(answer) = worker
                    .pool
                    .send(&cluster, &endpoint, protocol, &worker.connector, request)
                    .await
                {
                    let mut body = answer.response.into_body();
                    while let Some(Ok(_)) = body.frame().await {}
                }
            };
            let _ = tokio::time::timeout(LIMIT, sending).await;
            UNDER_WAY.set(UNDER_WAY.get() - 1);
        });
    }
    Outgoing {
        parts,
        body,
        authority,
        client_version,
        upgrade,
    }
}
