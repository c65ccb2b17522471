//! Envoy as Istio would run it beside a workload, for what the settings use: the configuration is written here, as JSON,
//! and nothing in it leaves the machine.
//!
//! Telemetry is on: statistics, Istio's default access log to a file, one route with a header match that the load does
//! not satisfy, and on the side of the backend one ALLOW policy.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::certificates::{BACKEND_ID, CLIENT_ID, Certificates, Leaf};
use super::load::{Entry, Form};
use super::process::{Output, Process};
use super::setting::{Protocol, Setting, Topology};
use super::subject::{Bench, Running, Subject};

/// Istio's access log format (`meshConfig.accessLogFormat` left empty).
const ACCESS_LOG: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
     %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
     %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
     \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% \
     %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% \
     %ROUTE_NAME%\n";

/// The name under which the client side asks for the backend.
const SNI: &str = "outbound_.80_._.backend.default.svc.cluster.local";

/// The name of the one listener.
const LISTENER: &str = "bench";

/// Envoy, from a binary of the user's.
pub struct Envoy {
    binary: PathBuf,
    version: String,
}

impl Envoy {
    /// Asks the binary for its version.
    ///
    /// # Errors
    /// When it does not run.
    pub fn new(binary: PathBuf) -> anyhow::Result<Self> {
        let output = Command::new(&binary)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {} as Envoy", binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "…/envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
        let version = text.split('/').rev().nth(3).unwrap_or("of unknown version");
        Ok(Self {
            version: format!("Envoy {version}"),
            binary,
        })
    }

    fn launch(&self, bench: &Bench<'_>, side: &Side<'_>) -> anyhow::Result<(Process, SocketAddr)> {
        let name = format!("envoy-{}", side.name);
        let path = bench.dir.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_vec_pretty(&side.config(bench.dir))?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let admin_file = bench.dir.join(format!("{name}.admin"));
        let mut command = Command::new(&self.binary);
        command
            .arg("-c")
            .arg(&path)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
        command.arg("--admin-address-path").arg(&admin_file);
        let mut process = bench
            .launcher
            .start(&name, bench.launcher.cores.proxy, bench.dir, &command, Output::Log)?;
        let address = process.wait_for("its listener is not open", || listener_address(&admin_file))?;
        Ok((process, address))
    }
}

impl Subject for Envoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn start(&self, bench: &Bench<'_>, setting: &Setting, backend: SocketAddr) -> anyhow::Result<Running> {
        let (protocol, certificates) = (setting.protocol, bench.certificates);
        let client = |upstream, tls| Side {
            name: "client",
            protocol,
            upstream,
            inner: None,
            outer: tls,
        };
        let (measured, address) = match setting.topology {
            Topology::Single => {
                let (process, address) = self.launch(bench, &client(backend, None))?;
                (vec![process], address)
            }
            Topology::PairMtls => {
                let server = Side {
                    name: "server",
                    protocol,
                    upstream: backend,
                    inner: Some(certificates),
                    outer: None,
                };
                let (server, between) = self.launch(bench, &server)?;
                let (client, address) = self.launch(bench, &client(between, Some(certificates)))?;
                (vec![client, server], address)
            }
        };
        let authority = "backend.default.svc.cluster.local".to_owned();
        Ok(Running {
            entry: Entry {
                address,
                form: Form::Origin,
                authority,
            },
            measured,
            support: Vec::new(),
        })
    }
}

/// One Envoy's place.
struct Side<'a> {
    name: &'static str,
    protocol: Protocol,
    upstream: SocketAddr,
    /// Requires mutual TLS of its clients, and has the authorization policy.
    inner: Option<&'a Certificates>,
    /// Speaks mutual TLS to its upstream.
    outer: Option<&'a Certificates>,
}

impl Side<'_> {
    fn config(&self, dir: &Path) -> Value {
        let mut filters = Vec::new();
        if self.inner.is_some() {
            filters.push(allow_policy());
        }
        filters.push(typed(
            "envoy.filters.http.router",
            "envoy.extensions.filters.http.router.v3.Router",
            json!({}),
        ));
        let mut manager = json!({
            "stat_prefix": self.name,
            "codec_type": match self.protocol { Protocol::Http1 => "HTTP1", Protocol::Http2 => "HTTP2" },
            "route_config": { "name": self.name, "virtual_hosts": [{
                "name": "backend", "domains": ["*"], "routes": [
                    { "name": "canary", "match": { "prefix": "/", "headers": [
                        { "name": "x-canary", "string_match": { "exact": "true" } } ] }, "route": { "cluster": "canary" } },
                    { "name": "default", "match": { "prefix": "/" }, "route": { "cluster": "backend" } }
                ] }] },
            "http_filters": filters,
            "access_log": [typed("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog", json!({
                "path": dir.join(format!("{}-access.log", self.name)),
                "log_format": { "text_format_source": { "inline_string": ACCESS_LOG } }
            }))],
        });
        if self.inner.is_some() {
            manager["forward_client_cert_details"] = json!("APPEND_FORWARD");
            manager["set_current_client_cert_details"] = json!({ "subject": true, "uri": true });
        }
        let manager = typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            manager,
        );
        let mut chain = json!({ "filters": [manager] });
        if let Some(certificates) = self.inner {
            chain["transport_socket"] = downstream_tls(certificates);
        }
        json!({
            "admin": { "address": socket_address(([127, 0, 0, 1], 0).into()) },
            "static_resources": {
                "listeners": [{
                    "name": LISTENER,
                    "address": socket_address(([127, 0, 0, 1], 0).into()),
                    "filter_chains": [chain],
                }],
                "clusters": [self.cluster("backend"), self.cluster("canary")],
            },
        })
    }

    fn cluster(&self, name: &str) -> Value {
        let codec = match self.protocol {
            Protocol::Http1 => json!({ "http_protocol_options": {} }),
            Protocol::Http2 => json!({ "http2_protocol_options": {} }),
        };
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "10s",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket_address(self.upstream) } } ] }] },
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": codec,
            } },
        });
        if let Some(certificates) = self.outer {
            let alpn = match self.protocol {
                Protocol::Http1 => json!(["istio-http/1.1", "istio", "http/1.1"]),
                Protocol::Http2 => json!(["istio-h2", "istio", "h2"]),
            };
            cluster["transport_socket"] = typed(
                "envoy.transport_sockets.tls",
                "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                json!({ "sni": SNI, "common_tls_context": tls(&certificates.client, &certificates.root, BACKEND_ID, &alpn) }),
            );
        }
        cluster
    }
}

fn downstream_tls(certificates: &Certificates) -> Value {
    let alpn = json!([
        "h2",
        "http/1.1",
        "istio-h2",
        "istio-http/1.1",
        "istio-http/1.0",
        "istio"
    ]);
    typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({
            "require_client_certificate": true,
            "common_tls_context": tls(&certificates.backend, &certificates.root, CLIENT_ID, &alpn),
        }),
    )
}

fn tls(own: &Leaf, root: &Path, peer: &str, alpn: &Value) -> Value {
    json!({
        // Envoy's clients stop at TLS 1.2 unless told otherwise.
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": alpn,
        "tls_certificates": [{
            "certificate_chain": { "filename": own.certificate },
            "private_key": { "filename": own.key },
        }],
        "validation_context": {
            "trusted_ca": { "filename": root },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    })
}

/// As Istio compiles an AuthorizationPolicy that lets one principal read.
fn allow_policy() -> Value {
    typed(
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        json!({ "rules": { "action": "ALLOW", "policies": { "ns[default]-policy[backend]-rule[0]": {
            "permissions": [{ "and_rules": { "rules": [{ "or_rules": { "rules": [
                { "header": { "name": ":method", "string_match": { "exact": "GET" } } } ] } }] } }],
            "principals": [{ "and_ids": { "ids": [{ "or_ids": { "ids": [
                { "authenticated": { "principal_name": { "exact": CLIENT_ID } } } ] } }] } }],
        } } } }),
    )
}

pub(crate) fn typed(name: &str, message: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{message}"));
    json!({ "name": name, "typed_config": config })
}

pub(crate) fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

/// Where the one listener is open, once it is.
fn listener_address(admin_file: &Path) -> Option<SocketAddr> {
    let admin: SocketAddr = fs::read_to_string(admin_file).ok()?.trim().parse().ok()?;
    let listeners = get(admin, "/listeners").ok()?;
    let line = listeners
        .lines()
        .find_map(|line| line.strip_prefix(LISTENER)?.strip_prefix("::"))?;
    let address: SocketAddr = line.trim().parse().ok()?;
    let ready = get(admin, "/ready").ok()?.contains("LIVE");
    (ready && address.port() != 0).then_some(address)
}

/// An answer by the admin interface, with head and framing, which its readers skip. It refuses HTTP/1.0.
pub(crate) fn get(admin: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
