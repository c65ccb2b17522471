//! Probes and hooks of the application.

use super::*;

pub(super) const PROBED: &str = r#"
metadata: {name: probed}
spec:
  initContainers:
  - name: helper
    restartPolicy: Always
    startupProbe: {tcpSocket: {port: 9000}}
  - name: once
  containers:
  - name: web
    ports: [{name: http, containerPort: 8080}, {name: grpc, containerPort: 9090}]
    livenessProbe: {httpGet: {path: /live, port: http, scheme: HTTPS, httpHeaders: [{name: Host, value: web}]}, timeoutSeconds: 7, periodSeconds: 3}
    readinessProbe: {tcpSocket: {port: grpc}}
    startupProbe: {grpc: {port: 9090, service: shop}, failureThreshold: 9}
    lifecycle:
      postStart: {httpGet: {path: /started, port: 8080}}
      preStop: {exec: {command: [sleep, "1"]}}
  - name: other
    livenessProbe: {exec: {command: ["true"]}}
    readinessProbe: {httpGet: {host: example.org, port: 80}}
    startupProbe: {httpGet: {port: 15021}}
"#;

#[test]
fn probes_go_through_the_proxy() {
    let before = pod(PROBED);
    let (after, warnings) = injected(&before, &labelled_namespace(), &InjectorConfig::default());
    assert_eq!(warnings, [""; 0]);
    let through = |path: &str| json!({"path": path, "port": 15020, "scheme": "HTTP"});
    let web = container(&after, "web");
    assert_eq!(
        web["livenessProbe"],
        json!({"httpGet": through("/app-health/web/livez"), "timeoutSeconds": 7, "periodSeconds": 3})
    );
    assert_eq!(
        web["readinessProbe"],
        json!({"httpGet": through("/app-health/web/readyz")})
    );
    assert_eq!(
        web["startupProbe"],
        json!({"httpGet": through("/app-health/web/startupz"), "failureThreshold": 9})
    );
    assert_eq!(
        web["lifecycle"]["postStart"]["httpGet"],
        through("/app-lifecycle/web/poststartz")
    );
    assert_eq!(
        web["lifecycle"]["preStop"],
        json!({"exec": {"command": ["sleep", "1"]}})
    );
    assert_eq!(
        container(&after, "helper")["startupProbe"],
        json!({"httpGet": through("/app-health/helper/startupz")})
    );
    let original = serde_json::to_value(&before).unwrap();
    assert_eq!(container(&after, "other"), container(&original, "other"));
    let probers: Value = serde_json::from_str(env(&after, "MESH_APP_PROBERS").unwrap()).unwrap();
    assert_eq!(
        probers,
        json!({
            "/app-health/web/livez": {
                "httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "web"}]},
                "timeoutSeconds": 7,
            },
            "/app-health/web/readyz": {"tcpSocket": {"port": 9090}},
            "/app-health/web/startupz": {"grpc": {"port": 9090, "service": "shop"}},
            "/app-lifecycle/web/poststartz": {"httpGet": {"path": "/started", "port": 8080}, "timeoutSeconds": 3600},
            "/app-health/helper/startupz": {"tcpSocket": {"port": 9000}},
        })
    );
}

#[test]
fn probes_are_left_alone_where_they_are_to_be() {
    let before = pod(PROBED);
    let original = serde_json::to_value(&before).unwrap();
    let mut off = before.clone();
    off.metadata.annotations = Some([(REWRITE_PROBES.to_owned(), "false".to_owned())].into());
    let (after, _) = injected(&off, &labelled_namespace(), &InjectorConfig::default());
    assert_eq!(container(&after, "web"), container(&original, "web"));
    assert_eq!(env(&after, "MESH_APP_PROBERS"), None);

    let (after, warnings) = injected(&before, &classic(), &InjectorConfig::default());
    assert_eq!(
        container(&after, "helper"),
        container(&original, "helper"),
        "the proxy is not up yet"
    );
    assert!(warnings[0].contains("init container helper"), "{warnings:?}");
}
