//! Envoy with the TLS settings that Istio gives its sidecars, to stand as a peer of ours: as a client that offers Istio's
//! ALPN lists and server names, and as a server that chooses by them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::bench::envoy::{get, socket_address, typed};
use crate::credentials::Leaf;
use crate::plain::{Running, eventually};

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Carries {
    /// What Istio's client sidecars offer.
    #[must_use]
    pub fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::Http1 => &["istio-http/1.1", "istio", "http/1.1"],
            Self::Http2 => &["istio-h2", "istio", "h2"],
            Self::Tcp => &["istio"],
        }
    }
}

/// One listener of a client, and where it leads.
#[derive(Clone, Debug)]
pub struct ClientPath<'a> {
    /// Its name.
    pub name: &'a str,
    /// Protocol of both sides.
    pub carries: Carries,
    /// Protocols to offer.
    pub alpn: &'a [&'a str],
    /// `TLSv1_3`; `None` is Envoy's default, which ends at TLS 1.2.
    pub tls_version: Option<&'a str>,
    /// Server name.
    pub sni: &'a str,
    /// Where to.
    pub upstream: SocketAddr,
    /// Identity that the server has to prove.
    pub expected: &'a str,
}

/// A running Envoy.
pub struct Envoy {
    /// The process.
    pub process: Running,
    admin: SocketAddr,
    access_log: PathBuf,
}

impl Envoy {
    /// A client sidecar: every listener, at a port of the system's choice, leads over mutual TLS to its upstream.
    ///
    /// # Errors
    /// When it does not start.
    pub fn client(
        binary: &Path,
        dir: &Path,
        leaf: &Leaf,
        source: SocketAddr,
        paths: &[ClientPath<'_>],
    ) -> anyhow::Result<Self> {
        let access_log = dir.join("envoy-client-access.log");
        let listeners: Vec<Value> = paths
            .iter()
            .map(|path| {
                listener(
                    path.name,
                    ([127, 0, 0, 1], 0).into(),
                    &[chain(path.name, path.carries, path.name, &access_log)],
                )
            })
            .collect();
        let clusters: Vec<Value> = paths
            .iter()
            .map(|path| {
                let mut context = tls_context(leaf, path.alpn, &[path.expected]);
                if let Some(version) = path.tls_version {
                    context["tls_params"] =
                        json!({ "tls_minimum_protocol_version": version, "tls_maximum_protocol_version": version });
                }
                let mut cluster = cluster(path.name, path.carries, path.upstream);
                cluster["upstream_bind_config"] =
                    json!({ "source_address": { "address": source.ip(), "port_value": 0 } });
                cluster["transport_socket"] = typed(
                    "envoy.transport_sockets.tls",
                    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    json!({ "sni": path.sni, "common_tls_context": context }),
                );
                cluster
            })
            .collect();
        Self::start(binary, dir, "envoy-client", &access_log, listeners, clusters)
    }

    /// A server sidecar at `address`, as Istio's inbound listener is: connections that offer Istio's HTTP protocols are
    /// HTTP for `http`, those that offer its TCP protocol go to `tcp`, and any other matches nothing.
    ///
    /// # Errors
    /// When it does not start.
    pub fn server(
        binary: &Path,
        dir: &Path,
        leaf: &Leaf,
        address: SocketAddr,
        client: &str,
        http: SocketAddr,
        tcp: SocketAddr,
    ) -> anyhow::Result<Self> {
        let access_log = dir.join("envoy-server-access.log");
        let offered = [
            "h2",
            "http/1.1",
            "istio-h2",
            "istio-http/1.1",
            "istio-http/1.0",
            "istio",
        ];
        let secured = |name: &str, carries, matches: Value, alpn: &[&str]| {
            let mut chain = chain(name, carries, name, &access_log);
            chain["filter_chain_match"] = json!({ "transport_protocol": "tls", "application_protocols": matches });
            chain["transport_socket"] = typed(
                "envoy.transport_sockets.tls",
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                json!({ "require_client_certificate": true, "common_tls_context": tls_context(leaf, alpn, &[client]) }),
            );
            chain
        };
        let chains = [
            secured(
                "http",
                Carries::Http1,
                json!(["istio-http/1.0", "istio-http/1.1", "istio-h2"]),
                &offered,
            ),
            secured(
                "tcp",
                Carries::Tcp,
                json!(["istio-peer-exchange", "istio"]),
                &["istio-peer-exchange", "istio"],
            ),
        ];
        let mut listener = listener("inbound", address, &chains);
        listener["listener_filters"] = json!([typed(
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            json!({})
        )]);
        let clusters = vec![cluster("http", Carries::Http1, http), cluster("tcp", Carries::Tcp, tcp)];
        Self::start(binary, dir, "envoy-server", &access_log, vec![listener], clusters)
    }

    fn start(
        binary: &Path,
        dir: &Path,
        name: &str,
        access_log: &Path,
        listeners: Vec<Value>,
        clusters: Vec<Value>,
    ) -> anyhow::Result<Self> {
        let config = json!({
            "admin": { "address": socket_address(([127, 0, 0, 1], 0).into()) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        let config_file = dir.join(format!("{name}.json"));
        fs::write(&config_file, serde_json::to_vec_pretty(&config)?)?;
        let admin_file = dir.join(format!("{name}.admin"));
        let mut command = Command::new(binary);
        command.arg("-c").arg(&config_file).args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warn",
            "--file-flush-interval-msec",
            "20",
        ]);
        command.arg("--admin-address-path").arg(&admin_file);
        let process = Running::start(name, dir, command)?;
        let admin = eventually("Envoy is live", || {
            let admin: SocketAddr = fs::read_to_string(&admin_file).ok()?.trim().parse().ok()?;
            get(admin, "/ready").ok()?.contains("LIVE").then_some(admin)
        })
        .with_context(|| format!("Envoy wrote: {}", process.output()))?;
        Ok(Self {
            process,
            admin,
            access_log: access_log.to_owned(),
        })
    }

    /// Where a listener is open.
    ///
    /// # Errors
    /// When it is not.
    pub fn listener(&self, name: &str) -> anyhow::Result<SocketAddr> {
        eventually(&format!("Envoy's listener {name} is open"), || {
            let listeners = get(self.admin, "/listeners").ok()?;
            let line = listeners
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix("::"))?;
            line.trim()
                .parse()
                .ok()
                .filter(|address: &SocketAddr| address.port() != 0)
        })
    }

    /// Finished requests and connections: listener or chain, protocol, status, TLS version, server name, the client's
    /// identity, the server's identity.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.access_log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn listener(name: &str, address: SocketAddr, chains: &[Value]) -> Value {
    json!({ "name": name, "address": socket_address(address), "filter_chains": chains })
}

fn chain(name: &str, carries: Carries, cluster: &str, access_log: &Path) -> Value {
    let format = format!(
        "{name} %PROTOCOL% %RESPONSE_CODE% %DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% \
         %UPSTREAM_TLS_VERSION% %UPSTREAM_PEER_URI_SAN%\n"
    );
    let log = json!([typed(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({ "path": access_log, "log_format": { "text_format_source": { "inline_string": format } } })
    )]);
    let filter = match carries {
        Carries::Tcp => typed(
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({ "stat_prefix": name, "cluster": cluster, "access_log": log }),
        ),
        Carries::Http1 | Carries::Http2 => typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({
                "stat_prefix": name,
                "codec_type": "AUTO",
                "access_log": log,
                "forward_client_cert_details": "SANITIZE_SET",
                "set_current_client_cert_details": { "uri": true },
                "route_config": { "virtual_hosts": [{
                    "name": name, "domains": ["*"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }]
                }] },
                "http_filters": [typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}))],
            }),
        ),
    };
    json!({ "filters": [filter] })
}

fn cluster(name: &str, carries: Carries, upstream: SocketAddr) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket_address(upstream) } } ] }] },
    });
    let codec = match carries {
        Carries::Http1 => json!({ "http_protocol_options": {} }),
        Carries::Http2 => json!({ "http2_protocol_options": {} }),
        Carries::Tcp => return cluster,
    };
    cluster["typed_extension_protocol_options"] = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": codec,
    } });
    cluster
}

fn tls_context(own: &Leaf, alpn: &[&str], peers: &[&str]) -> Value {
    let names: Vec<Value> = peers
        .iter()
        .map(|peer| json!({ "san_type": "URI", "matcher": { "exact": peer } }))
        .collect();
    json!({
        "alpn_protocols": alpn,
        "tls_certificates": [{
            "certificate_chain": { "filename": own.chain },
            "private_key": { "filename": own.key },
        }],
        "validation_context": { "trusted_ca": { "filename": own.roots }, "match_typed_subject_alt_names": names },
    })
}
