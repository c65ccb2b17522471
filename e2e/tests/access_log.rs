//! The access log of both sidecars on real traffic: Istio's text line field by field, Istio's JSON keys, and who decided.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use e2e::app::{App, ping};
use e2e::client::{Call, tunnel};
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, service_entry, workload_entry};
use regex::Regex;
use serde_json::Value;

const HOST: &str = "server.default.svc.cluster.local";

struct World {
    _mesh: Mesh,
    http: App,
    _tcp: App,
    server: Sidecar,
    client: Sidecar,
}

fn world(mesh_config: &str, policy: &str) -> anyhow::Result<World> {
    let mesh = Mesh::start(|mesh| {
        [
            workload_entry("server", mesh.address(0), "server", "v1"),
            workload_entry("client", mesh.address(1), "client", "v1"),
            service_entry("server", &[(80, "http", "HTTP", 8080), (90, "tcp", "TCP", 9000)]),
            format!(
                "---\napiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec: {{accessLogFile: /dev/stdout, \
                 {mesh_config}}}\n"
            ),
            policy.to_owned(),
        ]
        .concat()
    })?;
    let (http, tcp) = (App::http("answer")?, App::tcp("")?);
    let inbound = vec![(8080, http.address), (9000, tcp.address)];
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )?;
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    server.wait_ready()?;
    client.wait_ready()?;
    Ok(World {
        _mesh: mesh,
        http,
        _tcp: tcp,
        server,
        client,
    })
}

/// The line of a sidecar's log that has this text.
fn line(sidecar: &Sidecar, text: &str) -> String {
    eventually(&format!("a line with {text}"), || {
        let output = sidecar.process.output();
        output.lines().find(|line| line.contains(text)).map(str::to_owned)
    })
    .unwrap()
}

/// Fields of Istio's default line, as regular expressions; what is quoted in the format has its quotes here.
type Fields<'a> = [(&'a str, &'a str); 24];

fn check(line: &str, fields: &Fields<'_>) {
    let mut rest = line;
    for (index, (name, pattern)) in fields.iter().enumerate() {
        let separator = match index {
            0 => "",
            // METHOD, PATH and PROTOCOL share their quotes.
            _ => " ",
        };
        rest = rest
            .strip_prefix(separator)
            .unwrap_or_else(|| panic!("no separator before {name} in {line}"));
        let found = Regex::new(&format!("^(?:{pattern})")).unwrap().find(rest);
        let end = found
            .unwrap_or_else(|| panic!("{name} is not {pattern}: {rest}\nin {line}"))
            .end();
        rest = &rest[end..];
    }
    assert_eq!(rest, "", "after the last field of {line}");
}

const TIME: &str = r"\[\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z\]";
const ID: &str = r#""[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}""#;
const QUOTED_ADDRESS: &str = r#""127\.[\d.]+:\d+""#;
const ADDRESS: &str = r"127\.[\d.]+:\d+";

#[test]
fn the_default_line_is_istios_field_by_field() -> anyhow::Result<()> {
    let world = world("accessLogEncoding: TEXT", "")?;
    let url = format!("http://{HOST}/a/path?x=1");
    let answer = Call::post(&url, "ten bytes!")
        .header("user-agent", "the \"agent\"")
        .through(world.client.outbound())?;
    assert_eq!(answer.status, 200);
    let client = line(&world.client, "/a/path");
    check(
        &client,
        &[
            ("START_TIME", TIME),
            ("METHOD", "\"POST"),
            ("PATH", r"/a/path\?x=1"),
            ("PROTOCOL", "HTTP/1\\.1\""),
            ("RESPONSE_CODE", "200"),
            ("RESPONSE_FLAGS", "-"),
            ("RESPONSE_CODE_DETAILS", "via_upstream"),
            ("CONNECTION_TERMINATION_DETAILS", "-"),
            ("UPSTREAM_TRANSPORT_FAILURE_REASON", "\"-\""),
            ("BYTES_RECEIVED", "10"),
            ("BYTES_SENT", "6"),
            ("DURATION", r"\d+"),
            ("UPSTREAM_SERVICE_TIME", r"\d+"),
            ("X_FORWARDED_FOR", "\"-\""),
            // A client cannot end its field, or the line.
            ("USER_AGENT", r#""the \\x22agent\\x22""#),
            ("REQUEST_ID", ID),
            ("AUTHORITY", r#""server\.default\.svc\.cluster\.local""#),
            ("UPSTREAM_HOST", QUOTED_ADDRESS),
            (
                "UPSTREAM_CLUSTER",
                r"outbound\|80\|\|server\.default\.svc\.cluster\.local",
            ),
            ("UPSTREAM_LOCAL_ADDRESS", ADDRESS),
            ("DOWNSTREAM_LOCAL_ADDRESS", &format!("{}", world.client.outbound())),
            ("DOWNSTREAM_REMOTE_ADDRESS", ADDRESS),
            ("REQUESTED_SERVER_NAME", "-"),
            ("ROUTE_NAME", "default"),
        ],
    );
    let server = line(&world.server, "/a/path");
    check(
        &server,
        &[
            ("START_TIME", TIME),
            ("METHOD", "\"POST"),
            ("PATH", r"/a/path\?x=1"),
            ("PROTOCOL", "HTTP/1\\.1\""),
            ("RESPONSE_CODE", "200"),
            ("RESPONSE_FLAGS", "-"),
            ("RESPONSE_CODE_DETAILS", "via_upstream"),
            ("CONNECTION_TERMINATION_DETAILS", "-"),
            ("UPSTREAM_TRANSPORT_FAILURE_REASON", "\"-\""),
            ("BYTES_RECEIVED", "10"),
            ("BYTES_SENT", "6"),
            ("DURATION", r"\d+"),
            ("UPSTREAM_SERVICE_TIME", r"\d+"),
            ("X_FORWARDED_FOR", "\"-\""),
            // A client cannot end its field, or the line.
            ("USER_AGENT", r#""the \\x22agent\\x22""#),
            ("REQUEST_ID", ID),
            ("AUTHORITY", r#""server\.default\.svc\.cluster\.local""#),
            ("UPSTREAM_HOST", &format!("\"{}\"", world.http.address)),
            ("UPSTREAM_CLUSTER", r"inbound\|8080\|\|"),
            ("UPSTREAM_LOCAL_ADDRESS", ADDRESS),
            ("DOWNSTREAM_LOCAL_ADDRESS", &format!("{}:8080", world.server.address)),
            ("DOWNSTREAM_REMOTE_ADDRESS", &format!(r"{}:\d+", world.client.address)),
            (
                "REQUESTED_SERVER_NAME",
                r"outbound_\.80_\._\.server\.default\.svc\.cluster\.local",
            ),
            ("ROUTE_NAME", "default"),
        ],
    );
    let id = |line: &str| Regex::new(ID).unwrap().find(line).unwrap().as_str().to_owned();
    assert_eq!(id(&client), id(&server), "one request, one id");
    let seen = world.http.take();
    assert_eq!(format!("\"{}\"", seen[0].header("x-request-id").unwrap()), id(&server));

    // A connection that is no HTTP has the same fields.
    let mut stream = tunnel(world.client.outbound(), &format!("{HOST}:90"))?;
    ping(&mut stream, b"twelve bytes")?;
    drop(stream);
    let tcp = line(&world.server, "inbound|9000||");
    let pattern = format!(
        r#"^{TIME} "- - -" 0 - - - "-" 12 12 \d+ - "-" "-" "-" "-" {QUOTED_ADDRESS} inbound\|9000\|\| {ADDRESS} {}:9000 {}:\d+ outbound_\.90_\._\.server\.default\.svc\.cluster\.local -$"#,
        world.server.address, world.client.address
    );
    assert!(Regex::new(&pattern)?.is_match(&tcp), "{tcp}\nis not\n{pattern}");
    Ok(())
}

const ISTIO_KEYS: [&str; 24] = [
    "authority",
    "bytes_received",
    "bytes_sent",
    "connection_termination_details",
    "downstream_local_address",
    "downstream_remote_address",
    "duration",
    "method",
    "path",
    "protocol",
    "request_id",
    "requested_server_name",
    "response_code",
    "response_code_details",
    "response_flags",
    "route_name",
    "start_time",
    "upstream_cluster",
    "upstream_host",
    "upstream_local_address",
    "upstream_service_time",
    "upstream_transport_failure_reason",
    "user_agent",
    "x_forwarded_for",
];

fn json(sidecar: &Sidecar, text: &str) -> Value {
    let line = line(sidecar, text);
    let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let mut expected = [&ISTIO_KEYS[..], &["policy", "reason", "rule", "trace_id"]].concat();
    expected.sort_unstable();
    assert_eq!(keys, expected, "{line}");
    value
}

#[test]
fn json_names_the_policy_and_rule_that_decided() -> anyhow::Result<()> {
    let world = world(
        "accessLogEncoding: JSON",
        &format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: read-only, namespace: default}}\n\
             spec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: DENY\n  rules:\n  \
             - to: [{{operation: {{methods: [PUT]}}}}]\n  - to: [{{operation: {{methods: [DELETE, POST]}}}}]\n\
             ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: known, namespace: default}}\n\
             spec:\n  selector: {{matchLabels: {{app: server}}}}\n  rules:\n  \
             - to: [{{operation: {{paths: [/known*], ports: [\"8080\"]}}}}]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: server, namespace: default}}\n\
             spec:\n  hosts: [{HOST}]\n  http:\n  - name: gone\n    match: [{{uri: {{prefix: /known/gone}}}}]\n    \
             directResponse: {{status: 410}}\n  - name: all\n    route: [{{destination: {{host: {HOST}}}}}]\n"
        ),
    )?;
    let call = |method: &str, path: &str| -> anyhow::Result<(u16, String)> {
        let url = format!("http://{HOST}{path}");
        let call = match method {
            "POST" => Call::post(&url, "body"),
            _ => Call::get(&url),
        };
        let answer = call.through(world.client.outbound())?;
        Ok((answer.status, answer.body))
    };
    assert_eq!(call("GET", "/known/well")?, (200, "answer".to_owned()));
    let server = json(&world.server, "/known/well");
    assert_eq!(
        (&server["response_code"], &server["method"]),
        (&Value::from(200), &Value::from("GET"))
    );
    let client = json(&world.client, "/known/well");
    assert_eq!(client["route_name"], "all");
    assert_eq!(
        (&client["policy"], &client["rule"]),
        (&Value::from("VirtualService default/server"), &Value::from("http[1]"))
    );

    // What the caller learns does not say which policy it was; the log does.
    assert_eq!(call("POST", "/known/change")?, (403, "RBAC: access denied".to_owned()));
    let denied = json(&world.server, "/known/change");
    assert_eq!(
        denied["response_code_details"],
        "rbac_access_denied_matched_policy[ns[default]-policy[read-only]-rule[1]]"
    );
    assert_eq!(
        (&denied["policy"], &denied["rule"]),
        (
            &Value::from("AuthorizationPolicy default/read-only"),
            &Value::from("rules[1]")
        )
    );
    assert_eq!(
        (&denied["response_code"], &denied["upstream_host"]),
        (&Value::from(403), &Value::Null)
    );
    assert!(
        denied["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
        "{denied}"
    );

    assert_eq!(call("GET", "/other")?, (403, "RBAC: access denied".to_owned()));
    let denied = json(&world.server, "/other");
    assert_eq!(
        denied["response_code_details"],
        "rbac_access_denied_matched_policy[none]"
    );
    assert_eq!(
        denied["reason"],
        "ALLOW policies select this workload and none of their rules matches"
    );
    assert_eq!((&denied["policy"], &denied["rule"]), (&Value::Null, &Value::Null));

    assert_eq!(call("GET", "/known/gone")?.0, 410);
    let answered = json(&world.client, "/known/gone");
    assert_eq!(
        (&answered["route_name"], &answered["rule"]),
        (&Value::from("gone"), &Value::from("http[0]"))
    );
    assert_eq!(answered["response_code_details"], "direct_response");
    assert_eq!(world.http.take().len(), 1, "one request was let through");

    // On a port without HTTP only what needs none can let in.
    let mut stream = tunnel(world.client.outbound(), &format!("{HOST}:90"))?;
    assert!(ping(&mut stream, b"hello").is_err());
    let denied = json(&world.server, "inbound|9000||");
    let details = &denied["connection_termination_details"];
    assert_eq!(
        details,
        "rbac_access_denied_matched_policy[ns[default]-policy[read-only]-rule[0]]"
    );
    assert_eq!(denied["policy"], "AuthorizationPolicy default/read-only");
    Ok(())
}
