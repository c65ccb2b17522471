//! What follows an upgrade.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::bodies::{Body, full};

/// Agrees to any upgrade: WebSocket gets its messages back, anything else its bytes.
pub(super) fn accept_upgrade(headers: &HeaderMap, upgrade: OnUpgrade) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let protocol = headers.get(http::header::UPGRADE).cloned();
    let key = headers.get("sec-websocket-key").cloned();
    let answer = response.headers_mut();
    answer.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.extend(protocol.map(|protocol| (http::header::UPGRADE, protocol)));
    let websocket = key.and_then(|key| HeaderValue::from_str(&accept_key(key.as_bytes())).ok());
    let is_websocket = websocket.is_some();
    answer.extend(websocket.map(|accept| (http::header::SEC_WEBSOCKET_ACCEPT, accept)));
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let stream = TokioIo::new(upgraded);
        let _ = if is_websocket {
            echo_messages(stream).await
        } else {
            let (mut reader, mut writer) = tokio::io::split(stream);
            tokio::io::copy(&mut reader, &mut writer).await.map(drop)
        };
    });
    response
}

/// RFC 6455 §4.2.2.
fn accept_key(key: &[u8]) -> String {
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// Short frames of RFC 6455 §5.2 back, unmasked as a server sends them, until a close frame has gone back too.
async fn echo_messages(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let mut head = [0; 6];
        stream.read_exact(&mut head).await?;
        let length = usize::from(head[1] & 0x7f);
        if length > 125 {
            return Ok(());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= head[2 + index % 4];
        }
        let frame = [&[head[0], head[1] & 0x7f], payload.as_slice()].concat();
        stream.write_all(&frame).await?;
        if head[0] & 0x0f == 8 {
            return stream.shutdown().await;
        }
    }
}
