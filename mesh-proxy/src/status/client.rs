//! Requests to the application in the same pod, over plaintext or TLS that nobody verifies.
//!
//! They go straight to it: whoever is beside the application, with the right to look at it, needs no policy of the mesh.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

/// Connections of the proxy to its own application leave from here: interception tells by it that they are to go through.
const OWN_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const OWN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// Whether the target is this pod itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// The pod's own address, or loopback.
    Here,
    /// Another host, which a probe may name.
    Elsewhere,
}

/// Connects.
pub(super) async fn connect(address: SocketAddr, target: Where) -> io::Result<TcpStream> {
    let (socket, own) = if address.is_ipv4() {
        (TcpSocket::new_v4()?, OWN_V4)
    } else {
        (TcpSocket::new_v6()?, OWN_V6)
    };
    socket.set_nodelay(true)?;
    if target == Where::Here {
        // The address of IPv6 exists only where interception has added it; elsewhere any will do.
        let _ = socket.bind(SocketAddr::new(own, 0));
    }
    socket.connect(address).await
}

/// A connection of either kind.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How to speak on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// TLS to a server that may be anybody.
pub(super) async fn unverified_tls(stream: TcpStream, address: IpAddr) -> Result<(Box<dyn Io>, Version), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { schemes }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::IpAddress(address.into());
    let connected = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let stream = connected.map_err(|error| format!("TLS: {error}"))?;
    let version = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Version::Http2,
        _ => Version::Http1,
    };
    Ok((Box::new(stream), version))
}

/// Takes any certificate, as the kubelet does: the question is whether the application lives, not who it is.
#[derive(Debug)]
struct Anybody {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
    /// Whether the body went on beyond the bound.
    pub cut: bool,
}

/// Sends one request and reads its response, of the body at most `most` bytes. The connection ends with it.
pub(super) async fn exchange(
    io: Box<dyn Io>,
    version: Version,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Reply, String> {
    let io = TokioIo::new(io);
    let failed = |error: hyper::Error| chain(&error);
    match version {
        Version::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
            drive(connection, async {
                read(sender.send_request(request).await, most).await
            })
            .await
        }
        Version::Http2 => {
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
            let (mut sender, connection) = handshake.await.map_err(failed)?;
            drive(connection, async {
                read(sender.send_request(request).await, most).await
            })
            .await
        }
    }
}

/// Runs a connection for as long as something is wanted of it.
async fn drive<T>(connection: impl Future<Output = hyper::Result<()>>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = std::pin::pin!(wanted);
    tokio::select! {
        biased;
        result = wanted.as_mut() => return result,
        _ = connection => {}
    }
    // What it had received is still there.
    wanted.await
}

async fn read(response: hyper::Result<http::Response<hyper::body::Incoming>>, most: usize) -> Result<Reply, String> {
    let (head, mut incoming) = response.map_err(|error| chain(&error))?.into_parts();
    let mut reply = Reply {
        status: head.status,
        headers: head.headers,
        body: Bytes::new(),
        trailers: HeaderMap::new(),
        cut: false,
    };
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        match frame.map_err(|error| chain(&error))?.into_data() {
            Ok(piece) => {
                reply.cut = body.len() + piece.len() > most;
                body.extend_from_slice(&piece[..piece.len().min(most - body.len())]);
            }
            Err(frame) => reply.trailers = frame.into_trailers().unwrap_or_default(),
        }
        if reply.cut {
            break;
        }
    }
    reply.body = body.freeze();
    Ok(reply)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
