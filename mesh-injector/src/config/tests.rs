use super::*;

#[test]
fn defaults_are_usable_and_written_as_they_are_read() {
    let config = InjectorConfig::default();
    config.check().unwrap();
    assert_eq!(config.control_plane_address(), "mesh-control.mesh-system.svc:15012");
    assert_eq!(config.control_plane_identity(), "mesh-system/mesh-control");
    assert_eq!(config.init_image(), config.images.proxy);
    let yaml = serde_saphyr::to_string(&config).unwrap();
    assert_eq!(InjectorConfig::parse(&yaml).unwrap(), config, "{yaml}");
    assert_eq!(InjectorConfig::parse("").unwrap(), config);
}

#[test]
fn every_key_is_taken() {
    let config = InjectorConfig::parse(
        r#"
images: {proxy: registry.example/proxy:1, init: registry.example/init:1}
imagePullPolicy: Always
imagePullSecrets: [registry]
meshNamespace: mesh
trustDomain: example.org
controlPlane: {address: "control.example:15012", identity: mesh/control}
tokenAudience: istio-ca
tokenExpirationSeconds: 3600
rootCertConfigMap: roots
revision: canary
proxy:
  resources: {requests: {cpu: 50m}, limits: {memory: 256Mi}}
  logLevel: debug
  concurrency: 4
  terminationDrainDuration: 20s
  listenAddress: "[::]"
  holdApplicationUntilProxyStarts: false
  readiness: {periodSeconds: 5, failureThreshold: 3}
  startup: {periodSeconds: 2, failureThreshold: 30}
  env: {MESH_X: "1"}
init:
  resources: {}
nativeSidecar: false
rewriteAppHTTPProbers: false
enablePrometheusMerge: false
interception:
  includeInboundPorts: "80,8080"
  excludeOutboundPorts: "3306"
  includeOutboundIPRanges: 10.0.0.0/8
  excludeInterfaces: net1
enableNamespacesByDefault: true
istioLabels: true
alwaysInjectSelector: [{matchLabels: {mesh: "yes"}}]
neverInjectSelector: [{matchExpressions: [{key: legacy, operator: Exists}]}]
ignoredNamespaces: [infra]
"#,
    )
    .unwrap();
    assert_eq!(config.control_plane_address(), "control.example:15012");
    assert_eq!(config.native_sidecar, Toggle::False);
    assert_eq!(config.istio_labels, Toggle::True);
    assert_eq!(config.proxy.resources.requests["cpu"], "50m");
    assert_eq!(
        config.interception.include_outbound_ports, "",
        "what is left out keeps its default"
    );
    assert_eq!(config.proxy.concurrency, Some(4));
}

#[test]
fn what_cannot_work_is_refused_with_its_key() {
    for (yaml, part) in [
        ("imagesPullPolicy: Always", "imagesPullPolicy"),
        ("imagePullPolicy: Sometimes", "imagePullPolicy"),
        ("images: {proxy: '{{ .Values.image }}'}", "images.proxy"),
        ("trustDomain: Example.org", "trustDomain"),
        ("tokenExpirationSeconds: 10", "tokenExpirationSeconds"),
        ("tokenAudience: ''", "tokenAudience"),
        ("controlPlane: {address: control}", "controlPlane.address"),
        ("controlPlane: {identity: control}", "controlPlane.identity"),
        (
            "proxy: {resources: {requests: {cpu: many}}}",
            "proxy.resources.requests.cpu",
        ),
        (
            "proxy: {resources: {requests: {cpu: '2'}, limits: {cpu: '1'}}}",
            "proxy.resources",
        ),
        ("proxy: {logLevel: loud}", "proxy.logLevel"),
        ("proxy: {concurrency: 0}", "proxy.concurrency"),
        ("proxy: {listenAddress: eth0}", "proxy.listenAddress"),
        (
            "proxy: {readiness: {periodSeconds: 0, failureThreshold: 1}}",
            "proxy.readiness",
        ),
        ("nativeSidecar: maybe", "auto, true or false"),
        (
            "interception: {includeInboundPorts: '80,x'}",
            "interception.includeInboundPorts",
        ),
        (
            "interception: {excludeOutboundIPRanges: '*'}",
            "interception.excludeOutboundIPRanges",
        ),
        ("alwaysInjectSelector: [{}]", "alwaysInjectSelector[0]"),
        ("meshNamespace: A", "meshNamespace"),
        ("[]", ""),
    ] {
        let error = InjectorConfig::parse(yaml).unwrap_err().to_string();
        assert!(error.contains(part), "{yaml}: {error}");
    }
}

#[test]
fn a_bad_change_leaves_the_last_good_one_in_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    std::fs::write(&path, "revision: a").unwrap();
    let (live, mut source) = LiveConfig::open(&path).unwrap();
    assert_eq!(live.get().revision, "a");
    std::fs::write(&path, "revision: b").unwrap();
    source.look();
    assert_eq!(live.get().revision, "b");
    for bad in ["revision: C", "nope: 1", "\u{0}"] {
        std::fs::write(&path, bad).unwrap();
        source.look();
        assert_eq!(live.get().revision, "b", "{bad:?}");
    }
    std::fs::remove_file(&path).unwrap();
    source.look();
    assert_eq!(live.get().revision, "b");
    std::fs::write(&path, "revision: d").unwrap();
    source.look();
    assert_eq!(live.get().revision, "d");
}
