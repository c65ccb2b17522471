use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Version};
use mesh_api::names::ObjectRef;
use proptest::prelude::*;

use super::super::record::Headers;
use super::super::trace::TraceId;
use super::*;
use crate::flags::ResponseFlags;

fn line(format: &LogFormat, record: &LogRecord<'_>) -> String {
    let mut out = Vec::new();
    format.write(record, &mut out);
    String::from_utf8(out).unwrap()
}

fn text(format: &str, record: &LogRecord<'_>) -> String {
    let mut line = line(&LogFormat::text(format).unwrap(), record);
    assert_eq!(line.pop(), Some('\n'));
    line
}

fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap()))
        .collect()
}

/// A request through the client's sidecar, as in Istio's documentation of the access log.
fn request<'a>(request_headers: &'a HeaderMap, response_headers: &'a HeaderMap) -> LogRecord<'a> {
    LogRecord {
        start: "2026-11-25T21:26:18.409Z".parse().unwrap(),
        duration: Duration::from_micros(3_900),
        request_duration: Some(Duration::ZERO),
        response_duration: Some(Duration::from_millis(2)),
        method: Some(&Method::GET),
        scheme: Some("http"),
        authority: Some("httpbin:8000"),
        path: Some("/status/418"),
        protocol: Some(Version::HTTP_11),
        request_headers: Headers::All(request_headers),
        response_headers: Headers::All(response_headers),
        response_code: Some(418),
        response_code_details: Some("via_upstream"),
        bytes_received: 0,
        bytes_sent: 135,
        upstream_host: Some("10.44.1.27:80".parse().unwrap()),
        upstream_cluster: Some("outbound|8000||httpbin.foo.svc.cluster.local"),
        upstream_local_address: Some("10.44.1.23:37652".parse().unwrap()),
        upstream_attempts: 1,
        downstream_local_address: Some("10.0.45.184:8000".parse().unwrap()),
        downstream_remote_address: Some("10.44.1.23:46520".parse().unwrap()),
        route_name: Some("default"),
        ..LogRecord::default()
    }
}

fn usual_headers() -> (HeaderMap, HeaderMap) {
    let request = headers(&[
        ("user-agent", b"curl/7.73.0-DEV"),
        ("x-request-id", b"84961386-6d84-929d-98bd-c5aee93b5c88"),
    ]);
    (request, headers(&[("x-envoy-upstream-service-time", b"4")]))
}

#[test]
fn istios_default_line() {
    let (request_headers, response_headers) = usual_headers();
    let record = request(&request_headers, &response_headers);
    let default = LogFormat::text(ISTIO_TEXT).unwrap();
    assert_eq!(
        line(&default, &record),
        "[2026-11-25T21:26:18.409Z] \"GET /status/418 HTTP/1.1\" 418 - via_upstream - \"-\" 0 135 3 4 \"-\" \
         \"curl/7.73.0-DEV\" \"84961386-6d84-929d-98bd-c5aee93b5c88\" \"httpbin:8000\" \"10.44.1.27:80\" \
         outbound|8000||httpbin.foo.svc.cluster.local 10.44.1.23:37652 10.0.45.184:8000 10.44.1.23:46520 - default\n"
    );
}

#[test]
fn istios_default_line_of_a_denied_request() {
    let (request_headers, no_headers) = (usual_headers().0, HeaderMap::new());
    let record = LogRecord {
        method: Some(&Method::POST),
        original_path: Some("/v1/reviews?x=1"),
        path: Some("/reviews?x=1"),
        protocol: Some(Version::HTTP_2),
        response_code: Some(403),
        response_code_details: Some("rbac_access_denied_matched_policy[ns[default]-policy[reviews-authz]-rule[0]]"),
        flags: ResponseFlags::UAEX,
        upstream_host: None,
        upstream_cluster: Some("inbound|9080||"),
        upstream_local_address: None,
        requested_server_name: Some("outbound_.9080_._.reviews.default.svc.cluster.local"),
        ..request(&request_headers, &no_headers)
    };
    assert_eq!(
        line(&LogFormat::text(ISTIO_TEXT).unwrap(), &record),
        "[2026-11-25T21:26:18.409Z] \"POST /v1/reviews?x=1 HTTP/2\" 403 UAEX \
         rbac_access_denied_matched_policy[ns[default]-policy[reviews-authz]-rule[0]] - \"-\" 0 135 3 - \"-\" \
         \"curl/7.73.0-DEV\" \"84961386-6d84-929d-98bd-c5aee93b5c88\" \"httpbin:8000\" \"-\" inbound|9080|| - \
         10.0.45.184:8000 10.44.1.23:46520 outbound_.9080_._.reviews.default.svc.cluster.local default\n"
    );
}

#[test]
fn istios_default_line_of_a_tcp_connection() {
    let record = LogRecord {
        start: "2026-11-25T21:26:18.409Z".parse().unwrap(),
        duration: Duration::from_secs(2),
        flags: ResponseFlags::UF | ResponseFlags::URX,
        upstream_transport_failure_reason: Some("delayed connect error: Connection refused"),
        bytes_received: 517,
        upstream_host: Some("[::1]:9000".parse().unwrap()),
        upstream_cluster: Some("outbound|9000||db.default.svc.cluster.local"),
        downstream_local_address: Some("127.0.0.1:9000".parse().unwrap()),
        downstream_remote_address: Some("127.0.0.1:50000".parse().unwrap()),
        ..LogRecord::default()
    };
    assert_eq!(
        line(&LogFormat::text(ISTIO_TEXT).unwrap(), &record),
        "[2026-11-25T21:26:18.409Z] \"- - -\" 0 UF,URX - - \"delayed connect error: Connection refused\" 517 0 2000 - \
         \"-\" \"-\" \"-\" \"-\" \"[::1]:9000\" outbound|9000||db.default.svc.cluster.local - 127.0.0.1:9000 \
         127.0.0.1:50000 - -\n"
    );
}

#[test]
fn json_has_istios_keys_and_the_deciding_policy() {
    let (request_headers, response_headers) = usual_headers();
    let policy = ObjectRef::new("AuthorizationPolicy", "default", "reviews-authz");
    let record = LogRecord {
        response_code_details: Some("two words"),
        trace_id: Some(TraceId(0x4b)),
        policy: Some(&policy),
        rule: Some("0"),
        reason: Some("source \"x\"\nis not allowed"),
        ..request(&request_headers, &response_headers)
    };
    let line = line(&LogFormat::json().unwrap(), &record);
    assert_eq!(
        line,
        "{\"start_time\":\"2026-11-25T21:26:18.409Z\",\"route_name\":\"default\",\"method\":\"GET\",\
         \"path\":\"/status/418\",\"protocol\":\"HTTP/1.1\",\"response_code\":418,\"response_flags\":\"-\",\
         \"response_code_details\":\"two_words\",\"connection_termination_details\":null,\"bytes_received\":0,\
         \"bytes_sent\":135,\"duration\":3,\"upstream_service_time\":\"4\",\"x_forwarded_for\":null,\
         \"user_agent\":\"curl/7.73.0-DEV\",\"request_id\":\"84961386-6d84-929d-98bd-c5aee93b5c88\",\
         \"authority\":\"httpbin:8000\",\"upstream_host\":\"10.44.1.27:80\",\
         \"upstream_cluster\":\"outbound|8000||httpbin.foo.svc.cluster.local\",\
         \"upstream_local_address\":\"10.44.1.23:37652\",\"downstream_local_address\":\"10.0.45.184:8000\",\
         \"downstream_remote_address\":\"10.44.1.23:46520\",\"requested_server_name\":null,\
         \"upstream_transport_failure_reason\":null,\"trace_id\":\"0000000000000000000000000000004b\",\
         \"policy\":\"AuthorizationPolicy default/reviews-authz\",\"rule\":\"0\",\
         \"reason\":\"source \\\"x\\\"\\nis not allowed\"}\n"
    );
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["reason"], "source \"x\"\nis not allowed");
    // An empty record is an object as well.
    let empty: serde_json::Value =
        serde_json::from_str(&self::line(&LogFormat::json().unwrap(), &LogRecord::default())).unwrap();
    assert_eq!(empty["response_code"], 0);
    assert!(empty["policy"].is_null());
}

#[test]
fn operators() {
    let request_headers = headers(&[("x-a", b"first"), ("host", b"from-host")]);
    let response_headers = headers(&[("server", b"istio-envoy")]);
    let trailers = headers(&[("grpc-message", b"why")]);
    let peer = "spiffe://cluster.local/ns/default/sa/client".parse().unwrap();
    let record = LogRecord {
        response_trailers: Headers::All(&trailers),
        grpc_status: Some(14),
        upstream_service_time: Some(Duration::from_millis(7)),
        downstream_peer: Some(&peer),
        downstream_direct_remote_address: Some("127.0.0.9:1".parse().unwrap()),
        downstream_tls_version: Some("TLSv1.3"),
        flags: ResponseFlags::DI,
        bytes_received: u64::MAX,
        bytes_sent: 10,
        ..request(&request_headers, &response_headers)
    };
    for (format, expected) in [
        ("%START_TIME(%Y%m%dT%H%M%S%z)%", "20261125T212618+0000"),
        (
            "%START_TIME(%s.%3f)%|%START_TIME%",
            "1795641978.409|2026-11-25T21:26:18.409Z",
        ),
        (
            "%REQ(X-A)% %REQ(x-a):3% %REQ(:METHOD):1% %REQ(X-B?X-A):2%",
            "first fir G fi",
        ),
        ("%REQ(X-B)% %REQ(X-B?X-C)%", "- -"),
        (
            "%RESP(SERVER)% %TRAILER(grpc-message)% %RESP(:STATUS)%",
            "istio-envoy why 418",
        ),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "7"),
        (
            "%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%",
            "3 0 2 1",
        ),
        (
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:%UPSTREAM_REMOTE_PORT%",
            "10.44.1.27:80",
        ),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
            "10.44.1.23 127.0.0.9",
        ),
        (
            "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN%",
            "spiffe://cluster.local/ns/default/sa/client -",
        ),
        (
            "%GRPC_STATUS% %GRPC_STATUS_NUMBER% %GRPC_STATUS(NUMBER)%",
            "Unavailable 14 14",
        ),
        (
            "%METHOD% %PATH% %DOWNSTREAM_TLS_VERSION% %UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "GET /status/418 TLSv1.3 1",
        ),
        ("%RESPONSE_FLAGS% 100%% %MESH_POLICY% %TRACE_ID%", "DI 100% - -"),
        ("%BYTES_RECEIVED% %BYTES_SENT%", "18446744073709551615 10"),
        ("no operator at all\n", "no operator at all"),
    ] {
        assert_eq!(text(format, &record), expected, "{format}");
    }
}

#[test]
fn refused_formats() {
    for (format, needle) in [
        ("%NO_SUCH_THING%", "`%NO_SUCH_THING%`"),
        ("ok %DURATION", "at byte 3"),
        ("%REQ%", "header name"),
        ("%REQ()%", "is no header"),
        ("%REQ(a b)%", "`a b` is no header"),
        ("%REQ(X):ten%", "maximal length"),
        ("%START_TIME(%Q)%", "%Q"),
        ("%DURATION(x)%", "`%DURATION(x)%`"),
        ("%REQ(X", "closing"),
    ] {
        let error = LogFormat::text(format).unwrap_err().to_string();
        assert!(error.contains(needle), "{format}: {error}");
    }
    assert_eq!(
        LogFormat::text(&"x".repeat(log_format::MAX_FORMAT + 1)).unwrap_err(),
        FormatError::TooLong(log_format::MAX_FORMAT + 1)
    );
}

#[test]
fn headers_that_a_format_prints() {
    let format = LogFormat::text("%REQ(X-A?X-B)% %REQ(x-a)% %RESP(S)% %TRAILER(T)% %REQ(:METHOD)%").unwrap();
    assert_eq!(format.request_headers(), ["x-a", "x-b"].map(HeaderName::from_static));
    assert_eq!(format.response_headers(), [HeaderName::from_static("s")]);
    assert_eq!(format.trailers(), [HeaderName::from_static("t")]);
}

#[test]
fn nobody_forges_fields_or_lines() {
    let no_headers = HeaderMap::new();
    let request_headers = headers(&[("user-agent", b"a\" 200 \\ \xff\t\xc2\x9b2J\xc3\xa9")]);
    let record = LogRecord {
        requested_server_name: Some("evil\nname"),
        response_code_details: Some("a b\nc"),
        ..request(&request_headers, &no_headers)
    };
    assert_eq!(
        text(
            "\"%REQ(USER-AGENT)%\" %REQUESTED_SERVER_NAME% %RESPONSE_CODE_DETAILS%",
            &record
        ),
        "\"a\\x22 200 \\x5C \\xFF\\x09\\xC2\\x9B2J\u{e9}\" evil\\x0Aname a_b_c"
    );
}

proptest! {
    /// One record is one line, in both encodings, whatever a peer sends.
    #[test]
    fn a_record_is_one_line(agent: Vec<u8>, path in ".*", name in ".*", details in ".*") {
        let mut request_headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&agent) {
            request_headers.insert("user-agent", value);
        }
        let record = LogRecord {
            path: Some(&path),
            authority: Some(&name),
            response_code_details: Some(&details),
            reason: Some(&details),
            request_headers: Headers::All(&request_headers),
            ..LogRecord::default()
        };
        let text = line(&LogFormat::text(ISTIO_TEXT).unwrap(), &record);
        prop_assert!(text.ends_with('\n') && text.chars().filter(|c| c.is_control()).count() == 1);
        prop_assert_eq!(text.matches('"').count(), 14);
        let json = line(&LogFormat::json().unwrap(), &record);
        prop_assert!(json.ends_with('\n') && json.matches('\n').count() == 1);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        if !path.is_empty() {
            prop_assert_eq!(value["path"].as_str(), Some(path.as_str()));
        }
    }

    #[test]
    fn any_format_compiles_or_says_why(format in "[%A-Z_()?:a-z0-9 ]{0,60}") {
        if let Ok(format) = LogFormat::text(&format) {
            line(&format, &LogRecord::default());
        }
    }
}
