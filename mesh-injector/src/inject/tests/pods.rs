//! What is added to a pod.

use super::probes::PROBED;
use super::*;

fn injected_shop(annotations: &[(&str, &str)]) -> (Value, Vec<String>) {
    injected(
        &annotated(annotations),
        &labelled_namespace(),
        &InjectorConfig::default(),
    )
}

#[test]
fn a_native_sidecar() {
    let (pod, warnings) = injected_shop(&[]);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(names(&pod["spec"]["initContainers"]), ["mesh-init", "istio-proxy"]);
    assert_eq!(names(&pod["spec"]["containers"]), ["shop"]);
    assert_eq!(names(&pod["spec"]["volumes"]), ["mesh-token", "mesh-ca-root-cert"]);
    let metadata = &pod["metadata"];
    assert_eq!(
        metadata["labels"],
        json!({
            "app": "shop", "version": "v2", "pod-template-hash": "7d4b9", "security.istio.io/tlsMode": "istio",
            "service.istio.io/canonical-name": "shop", "service.istio.io/canonical-revision": "v2",
        })
    );
    assert_eq!(
        metadata["annotations"]["kubectl.kubernetes.io/default-container"],
        "shop"
    );
    assert_eq!(metadata["annotations"]["prometheus.io/port"], "15020");
    let status: Value = serde_json::from_str(metadata["annotations"][STATUS].as_str().unwrap()).unwrap();
    assert_eq!(
        status,
        json!({
            "initContainers": ["mesh-init", "istio-proxy"], "containers": null,
            "volumes": ["mesh-token", "mesh-ca-root-cert"], "imagePullSecrets": null, "revision": "default",
        })
    );

    let proxy = container(&pod, PROXY_CONTAINER);
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(
        proxy["startupProbe"]["httpGet"],
        json!({"path": "/healthz/ready", "port": 15021})
    );
    assert_eq!(proxy["startupProbe"]["periodSeconds"], 1);
    assert_eq!(proxy["startupProbe"]["failureThreshold"], 600);
    assert_eq!(proxy["readinessProbe"]["httpGet"]["port"], 15021);
    assert_eq!(
        proxy["lifecycle"],
        json!({"preStop": {"exec": {"command": [PROXY_BINARY, "drain"]}}})
    );
    assert_eq!(
        proxy["volumeMounts"],
        json!([
            {"name": "mesh-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": "mesh-ca-root-cert", "mountPath": "/var/run/secrets/mesh", "readOnly": true},
        ])
    );
    for (name, value) in [
        ("MESH_TRUST_DOMAIN", "cluster.local"),
        ("MESH_CONTROL_PLANE", "mesh-control.mesh-system.svc:15012"),
        ("MESH_CONTROL_PLANE_IDENTITY", "mesh-system/mesh-control"),
        ("MESH_TOKEN_FILE", "/var/run/secrets/tokens/mesh-token"),
        ("MESH_ROOT_CERT_FILE", "/var/run/secrets/mesh/root-cert.pem"),
        ("MESH_CAPTURE", "true"),
        ("MESH_METRICS", "0.0.0.0:15090"),
        ("MESH_READINESS", "0.0.0.0:15021"),
        ("MESH_STATUS_PORT", "15020"),
        ("MESH_DRAIN_DURATION", "30s"),
        ("MESH_LOG", "info"),
    ] {
        assert_eq!(env(&pod, name), Some(value), "{name}");
    }
    for (name, path) in [
        ("MESH_WORKLOAD", "metadata.name"),
        ("MESH_NAMESPACE", "metadata.namespace"),
        ("MESH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("MESH_ADDRESS", "status.podIP"),
    ] {
        let variables = proxy["env"].as_array().unwrap();
        let variable = variables.iter().find(|variable| variable["name"] == name).unwrap();
        assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], path, "{name}");
    }
    for name in ["MESH_CONCURRENCY", "MESH_APP_PROBERS", "MESH_PROMETHEUS"] {
        assert_eq!(env(&pod, name), None, "{name}");
    }

    let token = &pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(
        *token,
        json!({"audience": "mesh-ca", "expirationSeconds": 43200, "path": "mesh-token"})
    );
    assert_eq!(pod["spec"]["volumes"][1]["configMap"]["name"], "mesh-ca-root-cert");
    assert_eq!(
        container(&pod, INIT_CONTAINER)["args"],
        json!(["intercept", "--inbound-ports=*", "--outbound-ranges=*"])
    );
}

#[test]
fn only_the_init_container_departs_from_the_restricted_standard() {
    let (pod, _) = injected_shop(&[]);
    let restricted = json!({
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "privileged": false,
        "readOnlyRootFilesystem": true, "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    assert_eq!(container(&pod, PROXY_CONTAINER)["securityContext"], restricted);
    let mut init = restricted;
    init["capabilities"] = json!({"add": ["NET_ADMIN"], "drop": ["ALL"]});
    init["runAsUser"] = json!(0);
    init["runAsGroup"] = json!(0);
    init["runAsNonRoot"] = json!(false);
    assert_eq!(container(&pod, INIT_CONTAINER)["securityContext"], init);

    let mut around = labelled_namespace();
    around
        .namespace_labels
        .insert(POD_SECURITY.to_owned(), "restricted".to_owned());
    let warnings = injected(&annotated(&[]), &around, &InjectorConfig::default()).1;
    assert!(
        warnings[0].contains("NET_ADMIN of init container mesh-init"),
        "{warnings:?}"
    );
}

#[test]
fn init_containers_of_the_pod_are_in_the_mesh_only_where_the_proxy_is_up_before_them() {
    let mut pod = pod(SHOP);
    pod.spec.as_mut().unwrap().init_containers = Some(vec![k8s_openapi::api::core::v1::Container {
        name: "migrate".to_owned(),
        ..Default::default()
    }]);
    let (native, _) = injected(&pod, &labelled_namespace(), &InjectorConfig::default());
    assert_eq!(
        names(&native["spec"]["initContainers"]),
        ["mesh-init", "istio-proxy", "migrate"]
    );
    let (classic, _) = injected(&pod, &classic(), &InjectorConfig::default());
    assert_eq!(names(&classic["spec"]["initContainers"]), ["migrate", "mesh-init"]);
}

#[test]
fn a_classic_sidecar_starts_first_and_the_application_waits_for_it() {
    let (pod, warnings) = injected(&annotated(&[]), &classic(), &InjectorConfig::default());
    assert_eq!(warnings, [""; 0]);
    assert_eq!(names(&pod["spec"]["containers"]), ["istio-proxy", "shop"]);
    let proxy = container(&pod, PROXY_CONTAINER);
    assert!(proxy.get("restartPolicy").is_none() && proxy.get("startupProbe").is_none());
    assert_eq!(
        proxy["lifecycle"],
        json!({"postStart": {"exec": {"command": [PROXY_BINARY, "wait"]}}})
    );
    assert_eq!(
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"],
        "shop"
    );
    let status: Value = serde_json::from_str(pod["metadata"]["annotations"][STATUS].as_str().unwrap()).unwrap();
    assert_eq!(status["initContainers"], json!(["mesh-init"]));
    assert_eq!(status["containers"], json!(["istio-proxy"]));

    let free = annotated(&[(PROXY_CONFIG, "holdApplicationUntilProxyStarts: false")]);
    let (pod, _) = injected(&free, &classic(), &InjectorConfig::default());
    assert_eq!(names(&pod["spec"]["containers"]), ["shop", "istio-proxy"]);
    assert!(container(&pod, PROXY_CONTAINER)["lifecycle"].get("postStart").is_none());
}

#[test]
fn native_or_classic() {
    for (annotation, config, possible, native) in [
        (None, "", true, true),
        (None, "", false, false),
        (None, "nativeSidecar: false", true, false),
        (None, "nativeSidecar: true", false, true),
        (Some("false"), "nativeSidecar: true", true, false),
        (Some("true"), "nativeSidecar: false", true, true),
        (Some("true"), "", false, false),
    ] {
        let around = Surroundings {
            native_sidecars: possible,
            ..labelled_namespace()
        };
        let annotations: Vec<_> = annotation.iter().map(|value| (NATIVE_SIDECAR, *value)).collect();
        let config = InjectorConfig::parse(config).unwrap();
        let (pod, warnings) = injected(&annotated(&annotations), &around, &config);
        let is_native = container(&pod, PROXY_CONTAINER).get("restartPolicy").is_some();
        assert_eq!(is_native, native, "{annotation:?} {possible}");
        let refused = annotation == Some("true") && !native;
        assert_eq!(!warnings.is_empty(), refused, "{warnings:?}");
    }
}

#[test]
fn jobs_end_beside_a_native_sidecar_and_are_warned_about_beside_a_classic_one() {
    let mut job = pod(SHOP);
    job.spec.as_mut().unwrap().restart_policy = Some("Never".to_owned());
    let (_, warnings) = injected(&job, &labelled_namespace(), &InjectorConfig::default());
    assert_eq!(warnings, [""; 0]);
    let (_, warnings) = injected(&job, &classic(), &InjectorConfig::default());
    assert!(warnings[0].contains("meant to end"), "{warnings:?}");
}

#[test]
fn annotations_of_the_proxy() {
    let (pod, warnings) = injected_shop(&[
        (PROXY_IMAGE, "registry.example/proxy:2"),
        (PROXY_CPU, "50m"),
        (PROXY_MEMORY_LIMIT, "1Gi"),
        (LOG_LEVEL, "warning"),
        (READINESS_PERIOD, "3"),
        (READINESS_FAILURES, "9"),
        (READINESS_DELAY, "2"),
        (USER_VOLUME, r#"[{"name": "extra", "emptyDir": {}}]"#),
        (USER_VOLUME_MOUNT, r#"[{"name": "extra", "mountPath": "/extra"}]"#),
        (
            PROXY_CONFIG,
            "concurrency: 3\nterminationDrainDuration: 12s\nproxyMetadata: {MESH_LOG: trace, ISTIO_META_X: y}\ntracing: {sampling: 1}",
        ),
        (DEFAULT_CONTAINER, "other"),
    ]);
    let proxy = container(&pod, PROXY_CONTAINER);
    assert_eq!(proxy["image"], "registry.example/proxy:2");
    assert_eq!(
        proxy["resources"],
        json!({"requests": {"cpu": "50m"}, "limits": {"memory": "1Gi"}})
    );
    let readiness = &proxy["readinessProbe"];
    assert_eq!(readiness["periodSeconds"], 3);
    assert_eq!(readiness["failureThreshold"], 9);
    assert_eq!(readiness["initialDelaySeconds"], 2);
    assert_eq!(env(&pod, "MESH_CONCURRENCY"), Some("3"));
    assert_eq!(env(&pod, "MESH_DRAIN_DURATION"), Some("12s"));
    assert_eq!(
        env(&pod, "MESH_LOG"),
        Some("trace"),
        "what the pod says of the environment is last"
    );
    assert_eq!(
        names(&pod["spec"]["volumes"]),
        ["mesh-token", "mesh-ca-root-cert", "extra"]
    );
    assert_eq!(proxy["volumeMounts"][2]["mountPath"], "/extra");
    assert_eq!(pod["metadata"]["annotations"][DEFAULT_CONTAINER], "other");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("tracing has no effect"), "{warnings:?}");
    assert!(warnings[1].contains("proxyMetadata.ISTIO_META_X"), "{warnings:?}");
    assert_eq!(
        container(&pod, INIT_CONTAINER)["image"],
        concat!("mesh.dev/mesh-proxy:", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn annotations_of_capture() {
    let (pod, _) = injected_shop(&[
        (INCLUDE_INBOUND_PORTS, "80, 8080"),
        (EXCLUDE_INBOUND_PORTS, "22"),
        (INCLUDE_OUTBOUND_PORTS, "443"),
        (EXCLUDE_OUTBOUND_PORTS, "3306,5432"),
        (INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8,fd00::/8"),
        (EXCLUDE_OUTBOUND_RANGES, "10.1.0.0/16"),
        (EXCLUDE_INTERFACES, "net1"),
        (INTERCEPTION_MODE, "REDIRECT"),
    ]);
    assert_eq!(
        container(&pod, INIT_CONTAINER)["args"],
        json!([
            "intercept",
            "--inbound-ports=80,8080",
            "--outbound-ranges=10.0.0.0/8,fd00::/8",
            "--exclude-inbound-ports=22",
            "--outbound-ports=443",
            "--exclude-outbound-ports=3306,5432",
            "--exclude-outbound-ranges=10.1.0.0/16",
            "--exclude-interfaces=net1",
        ])
    );
    let (pod, _) = injected_shop(&[(INCLUDE_INBOUND_PORTS, ""), (INCLUDE_OUTBOUND_RANGES, "")]);
    assert_eq!(
        container(&pod, INIT_CONTAINER)["args"],
        json!(["intercept", "--inbound-ports=", "--outbound-ranges="]),
        "nothing is redirected"
    );
}

#[test]
fn annotations_that_cannot_work_are_named_with_their_value() {
    for (annotation, value) in [
        (PROXY_CPU, "lots"),
        (PROXY_MEMORY_LIMIT, "-1"),
        (PROXY_IMAGE, ""),
        (LOG_LEVEL, "loud"),
        (NATIVE_SIDECAR, "yes"),
        (REWRITE_PROBES, "maybe"),
        (MERGE_METRICS, ""),
        (READINESS_PERIOD, "0"),
        (READINESS_DELAY, "1s"),
        (INCLUDE_INBOUND_PORTS, "all"),
        (EXCLUDE_INBOUND_PORTS, "*"),
        (EXCLUDE_OUTBOUND_PORTS, "70000"),
        (INCLUDE_OUTBOUND_RANGES, "10.0.0.1"),
        (EXCLUDE_OUTBOUND_RANGES, "*"),
        (EXCLUDE_INTERFACES, "a/b"),
        (INTERCEPTION_MODE, "TPROXY"),
        (PROXY_CONFIG, "concurrency: many"),
        (PROXY_CONFIG, "concurrency: 1000"),
        (PROXY_CONFIG, "a: b: c"),
        (PROXY_CONFIG, "terminationDrainDuration: 5"),
        (USER_VOLUME, "{"),
        (USER_VOLUME_MOUNT, "3"),
    ] {
        let refusal = inject(
            &annotated(&[(annotation, value)]),
            &labelled_namespace(),
            &InjectorConfig::default(),
        );
        let message = refusal.unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("annotation {annotation}: {value:?}: ")),
            "{annotation}={value}: {message}"
        );
    }
    let more = annotated(&[(PROXY_CPU, "2"), (PROXY_CPU_LIMIT, "1")]);
    let refusal = inject(&more, &labelled_namespace(), &InjectorConfig::default()).unwrap_err();
    assert!(refusal.to_string().contains("more than the limit"), "{refusal}");
}

#[test]
fn names_of_the_mesh_cannot_be_used_twice() {
    let with = |yaml: &str| inject(&pod(yaml), &labelled_namespace(), &InjectorConfig::default()).unwrap_err();
    let volume = with("{metadata: {}, spec: {volumes: [{name: mesh-token}], containers: [{name: app}]}}");
    assert_eq!(volume, Refusal::Volume("mesh-token".to_owned()));
    let container = with("{metadata: {}, spec: {containers: [{name: mesh-init}]}}");
    assert_eq!(container, Refusal::Container("mesh-init".to_owned()));
}

#[test]
fn annotations_without_effect_are_said() {
    let (_, warnings) = injected_shop(&[
        ("sidecar.istio.io/componentLogLevel", "http:debug"),
        ("inject.istio.io/templates", "gateway"),
    ]);
    assert_eq!(
        warnings,
        [
            "annotation inject.istio.io/templates has no effect in this mesh",
            "annotation sidecar.istio.io/componentLogLevel has no effect in this mesh",
        ]
    );
}

#[test]
fn what_will_not_work_is_said() {
    for (spec, part) in [
        (
            "{securityContext: {runAsUser: 1337}, containers: [{name: app}]}",
            "the pod runs as user",
        ),
        (
            "{containers: [{name: app, securityContext: {runAsGroup: 1337}}]}",
            "container app runs as user",
        ),
        (
            "{containers: [{name: app, ports: [{containerPort: 15006}]}]}",
            "has port 15006",
        ),
        ("{dnsPolicy: Default, containers: [{name: app}]}", "dnsPolicy Default"),
        (
            "{containers: [{name: app, readinessProbe: {httpGet: {port: nope}}}]}",
            "container app has no port",
        ),
    ] {
        let (_, warnings) = injected(
            &pod(&format!("{{metadata: {{}}, spec: {spec}}}")),
            &labelled_namespace(),
            &InjectorConfig::default(),
        );
        assert!(
            warnings.len() == 1 && warnings[0].contains(part),
            "{spec}: {warnings:?}"
        );
    }
    let (_, warnings) = injected(
        &pod("{metadata: {}, spec: {securityContext: {fsGroup: 1337}, containers: [{name: app}]}}"),
        &labelled_namespace(),
        &InjectorConfig::default(),
    );
    assert_eq!(warnings, [""; 0], "a supplementary group redirects nothing");
}

#[test]
fn metrics_of_the_application_are_handed_to_the_proxy() {
    let (pod, _) = injected_shop(&[("prometheus.io/scrape", "true"), ("prometheus.io/port", "8080")]);
    assert_eq!(env(&pod, "MESH_PROMETHEUS"), Some(r#"{"scrape":"true","port":"8080"}"#));
    assert_eq!(
        pod["metadata"]["annotations"]["prometheus.io/path"],
        "/stats/prometheus"
    );
    let (pod, _) = injected_shop(&[(MERGE_METRICS, "false"), ("prometheus.io/port", "8080")]);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "8080");
    assert_eq!(env(&pod, "MESH_PROMETHEUS"), None);
}

#[test]
fn configuration_reaches_the_pod() {
    let config = InjectorConfig::parse(
        "{imagePullSecrets: [registry], imagePullPolicy: Always, trustDomain: example.org, tokenAudience: istio-ca, \
         images: {init: 'init:1'}, proxy: {listenAddress: '[::]', env: {MESH_X: y}, terminationDrainDuration: 90s}, \
         meshNamespace: mesh, revision: blue, rewriteAppHTTPProbers: false, enablePrometheusMerge: false}",
    )
    .unwrap();
    let (pod, _) = injected(&pod(PROBED), &labelled_namespace(), &config);
    assert_eq!(names(&pod["spec"]["imagePullSecrets"]), ["registry"]);
    assert_eq!(container(&pod, PROXY_CONTAINER)["imagePullPolicy"], "Always");
    assert_eq!(container(&pod, INIT_CONTAINER)["image"], "init:1");
    assert_eq!(env(&pod, "MESH_TRUST_DOMAIN"), Some("example.org"));
    assert_eq!(env(&pod, "MESH_CONTROL_PLANE"), Some("mesh-control.mesh.svc:15012"));
    assert_eq!(env(&pod, "MESH_METRICS"), Some("[::]:15090"));
    assert_eq!(env(&pod, "MESH_X"), Some("y"));
    assert_eq!(env(&pod, "MESH_DRAIN_DURATION"), Some("1m30s"));
    assert_eq!(env(&pod, "MESH_APP_PROBERS"), None);
    assert!(pod["metadata"]["annotations"].get("prometheus.io/port").is_none());
    let token = &pod["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "istio-ca");
}

#[test]
fn canonical_names() {
    for (metadata, name, revision) in [
        ("{name: alone}", "alone", "latest"),
        ("{generateName: batch-, labels: {}}", "batch", "latest"),
        (
            "{labels: {app: a, app.kubernetes.io/name: b, app.kubernetes.io/version: v1, version: v2}}",
            "b",
            "v1",
        ),
        (
            "{labels: {service.istio.io/canonical-name: c, app: a, version: v2}}",
            "c",
            "v2",
        ),
        (
            "{labels: {pod-template-hash: abc}, ownerReferences: [{kind: ReplicaSet, name: shop-abc, controller: true, apiVersion: apps/v1, uid: u}]}",
            "shop",
            "latest",
        ),
        (
            "{ownerReferences: [{kind: StatefulSet, name: db, controller: true, apiVersion: apps/v1, uid: u}]}",
            "db",
            "latest",
        ),
        (
            "{ownerReferences: [{kind: Job, name: nightly-29012345, controller: true, apiVersion: batch/v1, uid: u}]}",
            "nightly",
            "latest",
        ),
    ] {
        let pod = pod(&format!(
            "{{metadata: {metadata}, spec: {{containers: [{{name: app}}]}}}}"
        ));
        let (pod, _) = injected(&pod, &labelled_namespace(), &InjectorConfig::default());
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels["service.istio.io/canonical-name"], name, "{metadata}");
        assert_eq!(labels["service.istio.io/canonical-revision"], revision, "{metadata}");
    }
}

/// Every combination of what the pod and the cluster may be: asked again, the injector has nothing to add, and what
/// was in the pod stays in it.
#[test]
fn to_be_asked_again_changes_nothing() {
    let mut count = 0;
    for yaml in [SHOP, PROBED] {
        for native in [true, false] {
            for (annotation, value) in [
                ("unrelated", "x"),
                (PROXY_CONFIG, "holdApplicationUntilProxyStarts: false"),
                (REWRITE_PROBES, "false"),
                (MERGE_METRICS, "false"),
                ("prometheus.io/port", "8080"),
                (PROXY_CPU, "1"),
                (INCLUDE_OUTBOUND_RANGES, ""),
            ] {
                let mut pod = pod(yaml);
                pod.metadata.annotations = Some([(annotation.to_owned(), value.to_owned())].into());
                let around = Surroundings {
                    native_sidecars: native,
                    ..labelled_namespace()
                };
                let config = InjectorConfig::default();
                let (first, _) = injected(&pod, &around, &config);
                let again: Pod = serde_json::from_value(first.clone()).unwrap();
                let outcome = inject(&again, &around, &config).unwrap();
                assert!(
                    matches!(
                        outcome,
                        Outcome::Skipped {
                            why: WhyNot::AlreadyInjected,
                            ..
                        }
                    ),
                    "{outcome:?}"
                );
                for list in ["containers", "initContainers"] {
                    let before = serde_json::to_value(&pod).unwrap();
                    let kept: Vec<_> = names(&first["spec"][list])
                        .into_iter()
                        .filter(|name| ![PROXY_CONTAINER, INIT_CONTAINER].contains(name))
                        .map(str::to_owned)
                        .collect();
                    assert_eq!(kept, names(&before["spec"][list]));
                }
                count += 1;
            }
        }
    }
    assert_eq!(count, 28);
}

/// What this program's types do not know of a pod stays where it was.
#[test]
fn unknown_fields_of_containers_stay_with_their_container() {
    let mut raw = serde_json::to_value(pod(PROBED)).unwrap();
    raw["spec"]["initContainers"][0]["fieldOfTheFuture"] = json!("helper's");
    raw["spec"]["containers"][0]["fieldOfTheFuture"] = json!("web's");
    let typed: Pod = serde_json::from_value(raw.clone()).unwrap();
    let Ok(Outcome::Injected { patch, .. }) = inject(&typed, &labelled_namespace(), &InjectorConfig::default()) else {
        panic!("not injected");
    };
    json_patch::patch(&mut raw, &patch).unwrap();
    assert_eq!(container(&raw, "helper")["fieldOfTheFuture"], "helper's");
    assert_eq!(container(&raw, "web")["fieldOfTheFuture"], "web's");
    assert!(container(&raw, PROXY_CONTAINER).get("fieldOfTheFuture").is_none());
}
