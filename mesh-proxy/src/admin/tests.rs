use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;

use mesh_api::identity::TrustDomain;
use mesh_api::model::{Inbound, MtlsMode, Workload};

use super::*;
use crate::tls::verify::TrustDomains;

/// An administration of a proxy that holds only its inbound policy, on three ports.
struct Running {
    admin: Arc<Admin>,
    ports: [SocketAddr; 3],
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// The process has one log.
pub(crate) fn logging() -> Logging {
    static LOGGING: OnceLock<Logging> = OnceLock::new();
    LOGGING.get_or_init(|| Logging::install("info").unwrap()).clone()
}

fn start() -> Running {
    let workload = Arc::new(Workload {
        name: "reviews-v1".into(),
        namespace: "default".into(),
        ..Workload::default()
    });
    let inbound = Arc::new(Inbound {
        workload: workload.clone(),
        ports: Vec::new(),
        default_mtls: MtlsMode::Strict,
        authorization: Vec::new(),
    });
    let admin = Arc::new(Admin {
        workload: "reviews-v1.default".parse().unwrap(),
        boot: String::new(),
        view: Box::new(move || View {
            inbound: Some(inbound.clone()),
            ..View::default()
        }),
        telemetry: Telemetry::new(crate::telemetry::Options {
            node: "node".into(),
            mesh: "mesh".into(),
            workload,
            runtime: None,
            limits: crate::telemetry::Limits::default(),
        }),
        certificates: CertStore::new(TrustDomains::new(TrustDomain::cluster_local(), Vec::new())),
        logging: logging(),
        drain: Drain::default(),
        quit: CancellationToken::new(),
        started: Instant::now(),
    });
    let shutdown = CancellationToken::new();
    let faces = [Face::Administration, Face::Metrics, Face::Readiness];
    let (admin_of_thread, shutdown_of_thread) = (admin.clone(), shutdown.clone());
    let listeners = faces.map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for (face, listener) in faces.into_iter().zip(listeners) {
                listener.set_nonblocking(true).unwrap();
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::spawn(serve(
                    admin_of_thread.clone(),
                    face,
                    listener,
                    shutdown_of_thread.clone(),
                ));
            }
            shutdown_of_thread.cancelled().await;
        });
    });
    Running { admin, ports, shutdown }
}

/// Status and body of one request.
fn ask(address: SocketAddr, method: &str, target: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn each_port_serves_its_face_only() {
    let running = start();
    let [admin, metrics, readiness] = running.ports;
    for (address, path, status) in [
        (admin, "/config_dump", 200),
        (admin, "/metrics", 200),
        (admin, "/certs", 200),
        (admin, "/clusters", 200),
        (admin, "/server_info", 200),
        (admin, "/nothing", 404),
        (metrics, "/stats/prometheus", 200),
        (metrics, "/metrics", 200),
        (metrics, "/stats", 200),
        (metrics, "/help", 200),
        (metrics, "/debug/pprof/trace", 404),
        (metrics, "/config_dump", 404),
        (metrics, "/healthz/ready", 404),
        (readiness, "/healthz/ready", 503),
        (readiness, "/metrics", 404),
    ] {
        assert_eq!(ask(address, "GET", path, "").0, status, "{path}");
    }
}

#[test]
fn the_dump_shows_what_is_held() {
    let running = start();
    let (_, body) = ask(running.ports[0], "GET", "/config_dump", "");
    let dump: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(dump["inbound"]["defaultMtls"], "STRICT");
    assert_eq!(dump["workload"], "reviews-v1.default");
    assert!(dump["settings"].is_null());
}

#[test]
fn changes_need_a_post_to_the_administration_port() {
    let running = start();
    let [admin, metrics, readiness] = running.ports;
    assert_eq!(ask(admin, "GET", "/drain", "").0, 405);
    assert_eq!(ask(metrics, "POST", "/drain", "").0, 404);
    assert_eq!(ask(readiness, "POST", "/quitquitquit", "").0, 404);
    assert_eq!(ask(admin, "POST", "/drain", "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(running.admin.drain.stage(), Stage::Serving);

    // Who drains inbound traffic only still takes it.
    assert_eq!(ask(admin, "POST", "/drain?inboundonly", "").0, 200);
    assert_eq!(running.admin.drain.stage(), Stage::Draining);
    assert!(!ask(readiness, "GET", "/healthz/ready", "").1.contains("draining"));

    assert_eq!(ask(admin, "POST", "/drain", "").0, 200);
    assert_eq!(running.admin.drain.stage(), Stage::Ending);
    let (status, body) = ask(readiness, "GET", "/healthz/ready", "");
    assert_eq!((status, body.as_str()), (503, "not ready: draining\n"));
    assert_eq!(ask(admin, "POST", "/quitquitquit", "").0, 200);
    assert!(running.admin.quit.is_cancelled());
}

#[test]
fn stats_are_lines_of_name_and_value() {
    let running = start();
    let [admin, metrics, _] = running.ports;
    let (status, page) = ask(metrics, "GET", "/stats", "");
    assert_eq!(status, 200);
    for line in page.lines() {
        let (name, value) = line.rsplit_once(": ").unwrap();
        assert!(!name.is_empty() && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(page.contains("server.live: 0\n"), "{page}");
    assert!(page.contains("istio_build{component=\"proxy\""), "{page}");
    let (_, page) = ask(admin, "GET", "/stats?filter=%5Eserver%5C.(live|uptime)$&usedonly", "");
    assert!(page.is_empty() || page.starts_with("server.uptime: "), "{page}");
    assert_eq!(ask(admin, "GET", "/stats?filter=(", "").0, 400);
    let (_, page) = ask(admin, "GET", "/stats?format=json&filter=server.live", "");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["stats"][0]["value"], 0);
    assert!(
        ask(admin, "GET", "/stats?format=prometheus", "")
            .1
            .contains("# TYPE istio_build gauge")
    );
}

#[test]
fn live_events_are_recorded_for_as_long_as_asked() {
    let running = start();
    let admin = running.ports[0];
    for target in [
        "/debug/pprof/trace?seconds=0",
        "/debug/pprof/trace?seconds=61",
        "/debug/pprof/trace?seconds=x",
    ] {
        assert_eq!(ask(admin, "GET", target, "").0, 400, "{target}");
    }
    let recording = std::thread::spawn(move || ask(admin, "GET", "/debug/pprof/trace?seconds=1", ""));
    let context = crate::telemetry::TraceContext::none(crate::telemetry::SpanKind::Server);
    while !running.admin.telemetry.wants_record(&context) {
        std::thread::yield_now();
    }
    assert_eq!(ask(admin, "GET", "/debug/pprof/trace?seconds=1", "").0, 409);
    running
        .admin
        .telemetry
        .finish(&context, "", &crate::telemetry::LogRecord::default());
    let (status, page) = recording.join().unwrap();
    assert_eq!(status, 200);
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["otherData"]["events"], 1);
    assert_eq!(page["otherData"]["process"], "reviews-v1.default");
    assert!(!running.admin.telemetry.wants_record(&context));
}

#[test]
fn the_log_filter_is_shown_and_checked() {
    let running = start();
    let admin = running.ports[0];
    assert_eq!(ask(admin, "GET", "/logging", ""), (200, "info\n".to_owned()));
    assert_eq!(ask(admin, "GET", "/logging?level=debug", "").0, 405);
    assert_eq!(ask(admin, "POST", "/logging?level=a%3Dnolevel", "").0, 400);
    assert_eq!(ask(admin, "POST", "/logging?level=warn,mesh_proxy%3Ddebug", "").0, 200);
    assert_eq!(ask(admin, "GET", "/logging", "").1, "warn,mesh_proxy=debug\n");
}
