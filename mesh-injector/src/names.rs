//! The names that pods, their users and the other parts of the mesh rely on: labels, annotations, containers, ports.

/// The proxy's container.
pub const PROXY_CONTAINER: &str = "istio-proxy";
/// The init container that programs the redirection of connections.
pub const INIT_CONTAINER: &str = "mesh-init";
/// The volume of the service account token.
pub const TOKEN_VOLUME: &str = "mesh-token";
/// The volume of the mesh's root certificates.
pub const ROOT_VOLUME: &str = "mesh-ca-root-cert";
/// The program in the proxy's image.
pub const PROXY_BINARY: &str = "/usr/local/bin/mesh-proxy";
/// User and group of the proxy; connections of theirs are not redirected.
pub const PROXY_UID: i64 = 1337;

/// Merged metrics, and the application's probes.
pub const STATUS_PORT: u16 = 15020;
/// The proxy's readiness.
pub const READINESS_PORT: u16 = 15021;
/// The proxy's own metrics.
pub const METRICS_PORT: u16 = 15090;
/// The ports that the proxy holds in its pod.
pub const PROXY_PORTS: [u16; 6] = [15000, 15001, 15006, STATUS_PORT, READINESS_PORT, METRICS_PORT];

/// Label of namespaces (`enabled`, `disabled`) and pods (`true`, `false`): the mesh's own.
pub const MESH_INJECT: &str = "mesh.dev/inject";
/// Istio's label of namespaces.
pub const ISTIO_INJECTION: &str = "istio-injection";
/// Istio's label of pods; also an annotation.
pub const SIDECAR_INJECT: &str = "sidecar.istio.io/inject";
/// Which of several control planes of Istio a namespace or pod belongs to.
pub const ISTIO_REVISION: &str = "istio.io/rev";
/// Whether Istio's node proxy takes a namespace or pod.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// What was added to a pod, as JSON.
pub const STATUS: &str = "sidecar.istio.io/status";

/// Settings of the proxy as YAML.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// The proxy's image.
pub const PROXY_IMAGE: &str = "sidecar.istio.io/proxyImage";
/// CPU that the proxy requests.
pub const PROXY_CPU: &str = "sidecar.istio.io/proxyCPU";
/// CPU that the proxy is limited to.
pub const PROXY_CPU_LIMIT: &str = "sidecar.istio.io/proxyCPULimit";
/// Memory that the proxy requests.
pub const PROXY_MEMORY: &str = "sidecar.istio.io/proxyMemory";
/// Memory that the proxy is limited to.
pub const PROXY_MEMORY_LIMIT: &str = "sidecar.istio.io/proxyMemoryLimit";
/// What the proxy logs.
pub const LOG_LEVEL: &str = "sidecar.istio.io/logLevel";
/// Whether the proxy is a native sidecar.
pub const NATIVE_SIDECAR: &str = "sidecar.istio.io/nativeSidecar";
/// Whether probes go through the proxy.
pub const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// How connections are redirected.
pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// Further volumes of the pod, as JSON.
pub const USER_VOLUME: &str = "sidecar.istio.io/userVolume";
/// Further mounts of the proxy, as JSON.
pub const USER_VOLUME_MOUNT: &str = "sidecar.istio.io/userVolumeMount";
/// Delay before the proxy's first readiness probe.
pub const READINESS_DELAY: &str = "readiness.status.sidecar.istio.io/initialDelaySeconds";
/// Period of the proxy's readiness probe.
pub const READINESS_PERIOD: &str = "readiness.status.sidecar.istio.io/periodSeconds";
/// Failures after which the proxy is not ready.
pub const READINESS_FAILURES: &str = "readiness.status.sidecar.istio.io/failureThreshold";
/// Inbound ports that are redirected.
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Inbound ports that are not.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// Outbound ports that are redirected whatever the address.
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Outbound ports that are not redirected.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Outbound address ranges that are redirected.
pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Outbound address ranges that are not.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Interfaces whose connections are not redirected.
pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
/// Whether the application's metrics are merged with the proxy's.
pub const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";

/// Annotations and their prefixes that Istio knows and that do nothing here.
pub const WITHOUT_EFFECT: [&str; 21] = [
    "inject.istio.io/templates",
    "istio.io/reroute-virtual-interfaces",
    "readiness.status.sidecar.istio.io/applicationPorts",
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/componentLogLevel",
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/extraStatTags",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/statsCompression",
    "sidecar.istio.io/statsEvictionInterval",
    "sidecar.istio.io/statsFlushInterval",
    "sidecar.istio.io/statsHistogramBuckets",
    "sidecar.istio.io/statsInclusionPrefixes",
    "sidecar.istio.io/statsInclusionRegexps",
    "sidecar.istio.io/statsInclusionSuffixes",
    "status.sidecar.istio.io/port",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "traffic.istio.io/nodeSelector",
    "proxy.istio.io/overrides",
];

/// How peers are to talk to the workload.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
/// The service that metrics name.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// The version that metrics name.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// The container that `kubectl exec` and `kubectl logs` mean.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
