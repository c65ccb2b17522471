//! Judges objects together: what refers to nothing, what is there twice, and what contradicts each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::crd::destination_rule::DestinationRuleSpec;
use crate::crd::traffic_policy::PortTrafficPolicy;
use crate::crd::virtual_service::VirtualServiceSpec;
use crate::crd::{Object, ObjectRef};
use crate::source::{Diagnostic, FieldPath, Finding, Loaded};

use super::text::covers;

/// The suffix of Kubernetes' services where none is given.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Judges a set of objects for what one object alone does not show. What [`super::check`] finds is not repeated.
///
/// Hosts and subsets that no object defines are only reported when services are among the objects: without them,
/// others must be known elsewhere.
pub fn analyze_set(objects: &[Loaded]) -> Vec<Diagnostic> {
    analyze_among(objects, &BTreeSet::new(), CLUSTER_DOMAIN)
}

/// As [`analyze_set`], among services that are known elsewhere: `services` are their complete hosts, `domain` is the
/// suffix that those of Kubernetes have.
pub fn analyze_among<'a>(
    objects: impl IntoIterator<Item = &'a Loaded>,
    services: &BTreeSet<String>,
    domain: &str,
) -> Vec<Diagnostic> {
    let set = Set::new(objects.into_iter().collect(), services, domain);
    let mut diagnostics = set.duplicates();
    for loaded in &set.objects {
        let findings = match &loaded.object {
            Object::VirtualService(object) => set.virtual_service(loaded, &object.spec),
            Object::DestinationRule(object) => set.destination_rule(loaded, &object.spec),
            Object::MeshConfig(_) => set.mesh_config(loaded),
            _ => Vec::new(),
        };
        diagnostics.extend(findings.into_iter().map(|finding| loaded.locate(finding)));
    }
    diagnostics
}

/// A host as an object in a namespace means it: short names are those of services of the namespace.
fn resolve(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if host.contains(['.', '*']) {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

struct Set<'a> {
    objects: Vec<&'a Loaded>,
    domain: &'a str,
    /// Hosts of services that are known elsewhere.
    elsewhere: &'a BTreeSet<String>,
    /// Hosts of services, complete.
    services: BTreeSet<String>,
    /// Those of them that are wildcards.
    wildcards: Vec<String>,
    /// VirtualServices of the mesh by namespace and host.
    virtual_services: BTreeMap<(&'a str, String), Vec<&'a Loaded>>,
    /// DestinationRules by namespace and host.
    destination_rules: BTreeMap<(&'a str, String), Vec<&'a Loaded>>,
    /// Names of subsets by host.
    subsets: BTreeMap<String, BTreeSet<&'a str>>,
    /// VirtualServices that others delegate to, by namespace and name.
    delegates: BTreeSet<(String, String)>,
}

impl<'a> Set<'a> {
    fn new(objects: Vec<&'a Loaded>, elsewhere: &'a BTreeSet<String>, domain: &'a str) -> Self {
        let resolve = |host: &str, namespace: &str| resolve(host, namespace, domain);
        let mut set = Self {
            objects: Vec::new(),
            domain,
            elsewhere,
            services: BTreeSet::new(),
            wildcards: Vec::new(),
            virtual_services: BTreeMap::new(),
            destination_rules: BTreeMap::new(),
            subsets: BTreeMap::new(),
            delegates: BTreeSet::new(),
        };
        for loaded in objects.iter().copied() {
            let namespace = loaded.object.namespace();
            match &loaded.object {
                Object::ServiceEntry(object) => {
                    set.services
                        .extend(object.spec.hosts.iter().map(|host| resolve(host, namespace)));
                }
                Object::DestinationRule(object) => {
                    let host = resolve(&object.spec.host, namespace);
                    let names = object.spec.subsets.iter().map(|subset| subset.name.as_str());
                    set.subsets.entry(host.clone()).or_default().extend(names);
                    set.destination_rules.entry((namespace, host)).or_default().push(loaded);
                }
                Object::VirtualService(object) => {
                    if applies_in_mesh(&object.spec) {
                        for host in &object.spec.hosts {
                            let key = (namespace, resolve(host, namespace));
                            set.virtual_services.entry(key).or_default().push(loaded);
                        }
                    }
                    for delegate in object.spec.http.iter().filter_map(|route| route.delegate.as_ref()) {
                        let of = delegate.namespace.as_deref().filter(|namespace| !namespace.is_empty());
                        let name = delegate.name.clone().unwrap_or_default();
                        set.delegates.insert((of.unwrap_or(namespace).to_owned(), name));
                    }
                }
                _ => {}
            }
        }
        set.wildcards = set
            .services
            .iter()
            .filter(|host| host.starts_with('*'))
            .cloned()
            .collect();
        set.objects = objects;
        set
    }

    fn resolve(&self, host: &str, namespace: &str) -> String {
        resolve(host, namespace, self.domain)
    }

    fn knows_services(&self) -> bool {
        !self.services.is_empty() || !self.elsewhere.is_empty()
    }

    fn has_service(&self, host: &str) -> bool {
        self.services.contains(host)
            || self.elsewhere.contains(host)
            || self.wildcards.iter().any(|wildcard| covers(wildcard, host))
            || host.starts_with('*')
                && self
                    .services
                    .iter()
                    .chain(self.elsewhere)
                    .any(|service| covers(host, service))
    }

    /// Objects of the same kind, namespace and name, each at its own place.
    fn duplicates(&self) -> Vec<Diagnostic> {
        let mut seen: BTreeMap<ObjectRef, Vec<&Loaded>> = BTreeMap::new();
        for loaded in &self.objects {
            seen.entry(loaded.reference()).or_default().push(loaded);
        }
        let mut diagnostics = Vec::new();
        for (reference, places) in seen.iter().filter(|(_, places)| places.len() > 1) {
            for loaded in places {
                let others: Vec<String> = places
                    .iter()
                    .filter(|other| !std::ptr::eq(**other, *loaded))
                    .map(|other| format!("{}:{}", other.file, other.line))
                    .collect();
                let message = format!("{reference} is defined as well in {}", others.join(", "));
                let field = FieldPath::new("metadata.name");
                diagnostics.push(loaded.locate(Finding::error(field, "duplicate-object", message)));
            }
        }
        diagnostics
    }

    fn virtual_service(&self, loaded: &Loaded, spec: &VirtualServiceSpec) -> Vec<Finding> {
        let mut findings = Vec::new();
        let namespace = loaded.object.namespace();
        let is_delegate = self
            .delegates
            .contains(&(namespace.to_owned(), loaded.object.name().to_owned()));
        if spec.hosts.is_empty() && !is_delegate {
            let hosts: BTreeSet<String> = destinations(spec).into_iter().map(|(d, _)| d.host.clone()).collect();
            let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!(
                "without hosts the rules apply to those of the destinations ({hosts}), and only while no other \
                 VirtualService has them"
            );
            findings.push(Finding::warning(FieldPath::new("spec.hosts"), "no-hosts", message));
        }
        for (index, host) in spec.hosts.iter().enumerate() {
            if let Some(other) = self.earlier_owner(loaded, &self.resolve(host, namespace)) {
                let message = format!(
                    "{} has the host {host:?} as well and takes precedence",
                    other.reference()
                );
                let field = FieldPath::new("spec.hosts").index(index);
                findings.push(Finding::warning(field, "conflict", message));
            }
        }
        if !self.knows_services() {
            return findings;
        }
        for (destination, at) in destinations(spec) {
            let host = self.resolve(&destination.host, namespace);
            if !self.has_service(&host) {
                let message = format!("there is no service {host:?}");
                findings.push(Finding::warning(at.field("host"), "unknown-host", message));
            } else if let Some(subset) = &destination.subset {
                let known = self
                    .subsets
                    .get(&host)
                    .is_some_and(|names| names.contains(subset.as_str()))
                    || self
                        .subsets
                        .iter()
                        .any(|(of, names)| covers(of, &host) && names.contains(subset.as_str()));
                if !known {
                    let message = format!("no DestinationRule for {host} has a subset {subset:?}: requests get 503");
                    findings.push(Finding::warning(at.field("subset"), "unknown-subset", message));
                }
            }
        }
        findings
    }

    /// Another VirtualService of the same namespace that has the host and goes first: the older, then by name.
    fn earlier_owner(&self, loaded: &Loaded, host: &str) -> Option<&'a Loaded> {
        let owners = self
            .virtual_services
            .get(&(loaded.object.namespace(), host.to_owned()))?;
        owners.iter().copied().find(|other| precedes(other, loaded))
    }

    /// There is one set of settings for the mesh.
    fn mesh_config(&self, loaded: &Loaded) -> Vec<Finding> {
        let owner = self.objects.iter().copied().find(|other| precedes(other, loaded));
        let finding = |owner: &Loaded| {
            let message = format!("{} takes precedence; this object has no effect", owner.reference());
            Finding::warning(FieldPath::root(), "conflict", message)
        };
        owner.map(finding).into_iter().collect()
    }

    fn destination_rule(&self, loaded: &Loaded, spec: &DestinationRuleSpec) -> Vec<Finding> {
        let namespace = loaded.object.namespace();
        let host = self.resolve(&spec.host, namespace);
        let mut findings = Vec::new();
        if self.knows_services() && !self.has_service(&host) {
            let message = format!("there is no service {host:?}");
            findings.push(Finding::warning(FieldPath::new("spec.host"), "unknown-host", message));
        }
        let others = self.destination_rules.get(&(namespace, host.clone()));
        for other in others.into_iter().flatten().filter(|other| precedes(other, loaded)) {
            let Object::DestinationRule(earlier) = &other.object else {
                continue;
            };
            if earlier.spec.workload_selector != spec.workload_selector {
                continue;
            }
            let theirs = blocks(&earlier.spec);
            for block in blocks(spec).intersection(&theirs) {
                let message = format!(
                    "{} sets {block} for {host} as well and takes precedence",
                    other.reference()
                );
                let field = FieldPath::new("spec.trafficPolicy").field(block);
                findings.push(Finding::warning(field, "conflict", message));
            }
            for (index, number) in port_numbers(spec) {
                if port_numbers(&earlier.spec).any(|(_, theirs)| theirs == number) {
                    let message = format!(
                        "{} has settings for port {number} of {host} as well and takes precedence",
                        other.reference()
                    );
                    let field = FieldPath::new("spec.trafficPolicy.portLevelSettings").index(index);
                    findings.push(Finding::warning(field, "conflict", message));
                }
            }
            for (index, subset) in spec.subsets.iter().enumerate() {
                if earlier.spec.subsets.iter().any(|s| s.name == subset.name) {
                    let message = format!(
                        "{} defines the subset {:?} of {host} as well",
                        other.reference(),
                        subset.name
                    );
                    let field = FieldPath::new("spec.subsets").index(index).field("name");
                    findings.push(Finding::warning(field, "conflict", message));
                }
            }
            let both = |one: &DestinationRuleSpec, two: &DestinationRuleSpec| {
                pool_connect_timeout(one) && timeout_connect_timeout(two)
            };
            if both(spec, &earlier.spec) || both(&earlier.spec, spec) {
                let message = format!(
                    "{} and this object set both connectionPool.tcp.connectTimeout, which wins, and timeout.connectTimeout",
                    other.reference()
                );
                findings.push(Finding::warning(
                    FieldPath::new("spec.trafficPolicy"),
                    "conflict",
                    message,
                ));
            }
        }
        findings
    }
}

/// Whether one object goes before the other where only one can win.
fn precedes(one: &Loaded, other: &Loaded) -> bool {
    one.object.kind() == other.object.kind() && one.object.seniority() < other.object.seniority()
}

fn applies_in_mesh(spec: &VirtualServiceSpec) -> bool {
    spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh")
}

/// All destinations that an object names, with where it names them.
fn destinations(spec: &VirtualServiceSpec) -> Vec<(&crate::crd::common::Destination, FieldPath)> {
    let mut found = Vec::new();
    for (index, route) in spec.http.iter().enumerate() {
        let at = FieldPath::new("spec.http").index(index);
        for (index, leg) in route.route.iter().enumerate() {
            found.push((&leg.destination, at.field("route").index(index).field("destination")));
        }
        if let Some(mirror) = &route.mirror {
            found.push((mirror, at.field("mirror")));
        }
        for (index, mirror) in route.mirrors.iter().enumerate() {
            found.push((
                &mirror.destination,
                at.field("mirrors").index(index).field("destination"),
            ));
        }
    }
    let tls = spec.tls.iter().map(|route| &route.route);
    let tcp = spec.tcp.iter().map(|route| &route.route);
    for (kind, routes) in [("spec.tls", tls.collect::<Vec<_>>()), ("spec.tcp", tcp.collect())] {
        for (index, legs) in routes.into_iter().enumerate() {
            let at = FieldPath::new(kind).index(index).field("route");
            for (index, leg) in legs.iter().enumerate() {
                found.push((&leg.destination, at.index(index).field("destination")));
            }
        }
    }
    found
}

/// The blocks that the top-level policy of a rule sets.
fn blocks(spec: &DestinationRuleSpec) -> BTreeSet<&'static str> {
    let Some(policy) = &spec.traffic_policy else {
        return BTreeSet::new();
    };
    [
        ("loadBalancer", policy.load_balancer.is_some()),
        ("connectionPool", policy.connection_pool.is_some()),
        ("outlierDetection", policy.outlier_detection.is_some()),
        ("tls", policy.tls.is_some()),
        ("retryBudget", policy.retry_budget.is_some()),
        ("retryPolicy", policy.retry_policy.is_some()),
        ("timeout", policy.timeout.is_some()),
    ]
    .into_iter()
    .filter(|(_, set)| *set)
    .map(|(name, _)| name)
    .collect()
}

/// Ports that the top-level policy of a rule has settings for, with their places in the list.
fn port_numbers(spec: &DestinationRuleSpec) -> impl Iterator<Item = (usize, u32)> {
    let settings = spec
        .traffic_policy
        .iter()
        .flat_map(|policy| &policy.port_level_settings);
    let number = |settings: &PortTrafficPolicy| settings.port.as_ref().and_then(|port| port.number);
    settings
        .enumerate()
        .filter_map(move |(index, settings)| Some((index, number(settings)?)))
}

fn pool_connect_timeout(spec: &DestinationRuleSpec) -> bool {
    let pool = spec
        .traffic_policy
        .as_ref()
        .and_then(|policy| policy.connection_pool.as_ref());
    pool.and_then(|pool| pool.tcp.as_ref())
        .is_some_and(|tcp| tcp.connect_timeout.is_some())
}

fn timeout_connect_timeout(spec: &DestinationRuleSpec) -> bool {
    let timeout = spec.traffic_policy.as_ref().and_then(|policy| policy.timeout.as_ref());
    timeout.is_some_and(|timeout| timeout.connect_timeout.is_some())
}
