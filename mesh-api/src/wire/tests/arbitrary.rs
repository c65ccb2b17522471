//! Generators of model values: anything that the model's documentation allows.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use crate::identity::{SpiffeId, TrustDomain};
use crate::model::*;
use crate::names::{Hostname, ObjectRef};

mod destination;

pub(super) use destination::destination;

fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        "[a-z/.*-]{0,8}".prop_map(Arc::from),
        "\\PC{0,6}".prop_map(Arc::from),
        Just(Arc::default())
    ]
}

fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,8}".prop_map(Arc::from)
}

fn texts() -> impl Strategy<Value = Vec<Arc<str>>> {
    vec(text(), 0..3)
}

fn object() -> impl Strategy<Value = ObjectRef> {
    (name(), name(), name()).prop_map(|(kind, namespace, name)| ObjectRef { kind, namespace, name })
}

fn service() -> impl Strategy<Value = ServiceRef> {
    (name(), name()).prop_map(|(name, namespace)| ServiceRef {
        host: format!("{name}.{namespace}.svc.cluster.local")
            .parse::<Hostname>()
            .unwrap(),
        name,
        namespace,
    })
}

fn port() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn share() -> impl Strategy<Value = Percentage> {
    (0..=1_000_000_u32).prop_map(Percentage::from_per_million)
}

fn range() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(address, prefix)| IpNet::new(address.into(), prefix).unwrap());
    let v6 = (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(address, prefix)| IpNet::new(address.into(), prefix).unwrap());
    prop_oneof![v4, v6]
}

fn blocks() -> impl Strategy<Value = IpBlocks> {
    vec(range(), 0..3).prop_map(IpBlocks)
}

fn regex() -> impl Strategy<Value = FullRegex> {
    select(vec!["a+", "", "(x|y)?z", "^/v[0-9]+/.*$"]).prop_map(|source| FullRegex::new(source).unwrap())
}

fn text_match() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        text().prop_map(TextMatch::Exact),
        text().prop_map(TextMatch::Prefix),
        regex().prop_map(TextMatch::Regex),
        text().prop_map(TextMatch::ExactIgnoreCase),
        text().prop_map(TextMatch::PrefixIgnoreCase),
        Just(TextMatch::Present),
    ]
}

fn term() -> impl Strategy<Value = TermMatch> {
    prop_oneof![
        text().prop_map(TermMatch::Exact),
        text().prop_map(TermMatch::Prefix),
        text().prop_map(TermMatch::Suffix),
        regex().prop_map(TermMatch::Regex),
        Just(TermMatch::Present),
    ]
}

fn terms<T: Clone + std::fmt::Debug>(one: impl Strategy<Value = T> + Clone) -> impl Strategy<Value = Terms<T>> {
    (vec(one.clone(), 0..3), vec(one, 0..2)).prop_map(|(any, none)| Terms { any, none })
}

fn term_list() -> impl Strategy<Value = Terms<TermMatch>> {
    (vec(term(), 0..3), vec(term(), 0..2)).prop_map(|(any, none)| Terms { any, none })
}

fn block_list() -> impl Strategy<Value = Terms<IpBlocks>> {
    (vec(blocks(), 0..3), vec(blocks(), 0..2)).prop_map(|(any, none)| Terms { any, none })
}

fn header_name() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,6}".prop_map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap())
}

fn header_value() -> impl Strategy<Value = HeaderValue> {
    vec(select((0x20..0x7f).chain(0x80..=0xff).collect::<Vec<u8>>()), 0..6)
        .prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

fn status() -> impl Strategy<Value = StatusCode> {
    (200..600_u16).prop_map(|status| StatusCode::from_u16(status).unwrap())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![
        Protocol::Http,
        Protocol::Http2,
        Protocol::Grpc,
        Protocol::Tcp,
        Protocol::Tls,
        Protocol::Detect,
    ])
}

fn location() -> impl Strategy<Value = Location> {
    select(vec![Location::MeshInternal, Location::MeshExternal])
}

fn trust_domain() -> impl Strategy<Value = TrustDomain> {
    "[a-z0-9._-]{1,12}".prop_map(|text| text.parse().unwrap())
}

pub(super) fn settings() -> impl Strategy<Value = MeshSettings> {
    let owned = (vec(range(), 0..4), texts(), any::<bool>()).prop_map(|(ranges, host_suffixes, short_names)| Owned {
        ranges,
        host_suffixes,
        short_names,
    });
    let format = prop_oneof![of(text()).prop_map(AccessLogFormat::Text), Just(AccessLogFormat::Json)];
    (
        trust_domain(),
        vec(trust_domain(), 0..3),
        owned,
        select(vec![OutboundPolicy::AllowAny, OutboundPolicy::RegistryOnly]),
        of((text(), format).prop_map(|(path, format)| AccessLog { path, format })),
        of((text(), share()).prop_map(|(endpoint, sampling)| Tracing { endpoint, sampling })),
    )
        .prop_map(
            |(trust_domain, trust_domain_aliases, owned, outbound_policy, access_log, tracing)| MeshSettings {
                trust_domain,
                trust_domain_aliases,
                owned,
                outbound_policy,
                access_log,
                tracing,
            },
        )
}

pub(super) fn workload() -> impl Strategy<Value = Workload> {
    let identity = (trust_domain(), name(), name())
        .prop_map(|(domain, namespace, account)| SpiffeId::new(&domain, &namespace, &account).unwrap());
    let locality = (text(), text(), text()).prop_map(|(region, zone, subzone)| Locality { region, zone, subzone });
    (
        text(),
        text(),
        of(identity),
        btree_map(text(), text(), 0..4),
        text(),
        locality,
    )
        .prop_map(|(name, namespace, identity, labels, cluster, locality)| Workload {
            name,
            namespace,
            identity,
            labels,
            cluster,
            locality,
        })
}

pub(super) fn slice() -> impl Strategy<Value = EndpointSlice> {
    let address = prop_oneof![
        any::<IpAddr>().prop_map(EndpointAddress::Ip),
        name().prop_map(EndpointAddress::Name),
        name().prop_map(EndpointAddress::NameRoundRobin),
    ];
    let health = select(vec![Health::Healthy, Health::Draining, Health::Unhealthy]);
    let endpoint = move |workloads: Vec<Arc<Workload>>| {
        (
            address.clone(),
            port(),
            select(workloads),
            1..=u32::MAX,
            any::<bool>(),
            health.clone(),
        )
            .prop_map(|(address, port, workload, weight, mutual_tls, health)| Endpoint {
                address,
                port,
                workload,
                weight,
                mutual_tls,
                health,
            })
    };
    vec(workload().prop_map(Arc::new), 1..4)
        .prop_flat_map(move |workloads| vec(endpoint(workloads), 0..8))
        .prop_map(|endpoints| EndpointSlice { endpoints })
}

fn source() -> impl Strategy<Value = Source> {
    (term_list(), term_list(), terms(text().boxed()), block_list()).prop_map(
        |(principals, namespaces, service_accounts, ip_blocks)| Source {
            principals,
            namespaces,
            service_accounts,
            ip_blocks,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    (term_list(), terms(port().boxed()), term_list(), term_list()).prop_map(|(hosts, ports, methods, paths)| {
        Operation {
            hosts,
            ports,
            methods,
            paths,
        }
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let of_text = prop_oneof![
        header_name().prop_map(ConditionKey::Header),
        Just(ConditionKey::SourceNamespace),
        Just(ConditionKey::SourcePrincipal),
        Just(ConditionKey::SourceServiceAccount),
        Just(ConditionKey::DestinationPort),
        Just(ConditionKey::ConnectionSni),
    ];
    let of_address = select(vec![ConditionKey::SourceIp, ConditionKey::DestinationIp]);
    prop_oneof![
        (of_text, term_list()).prop_map(|(key, values)| Condition {
            key,
            values,
            blocks: Terms::default(),
        }),
        (of_address, block_list()).prop_map(|(key, blocks)| Condition {
            key,
            values: Terms::default(),
            blocks,
        }),
    ]
}

fn policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let rule = (
        vec(source(), 0..2),
        vec(operation(), 0..2),
        vec(condition(), 0..2),
        of(text()),
        any::<bool>(),
    )
        .prop_map(|(from, to, when, invalid, http_only)| Rule {
            from,
            to,
            when,
            invalid,
            http_only,
        });
    let action = select(vec![Action::Allow, Action::Deny]);
    (object(), action, vec(rule, 0..3)).prop_map(|(origin, action, rules)| AuthorizationPolicy {
        origin,
        action,
        rules,
    })
}

pub(super) fn inbound() -> impl Strategy<Value = Inbound> {
    let mode = || select(vec![MtlsMode::Disable, MtlsMode::Permissive, MtlsMode::Strict]);
    let port =
        (port(), protocol(), mode(), vec(service(), 0..3)).prop_map(|(port, protocol, mtls, services)| InboundPort {
            port,
            protocol,
            mtls,
            services,
        });
    (
        workload().prop_map(Arc::new),
        vec(port, 0..3),
        mode(),
        vec(policy(), 0..3),
    )
        .prop_map(|(workload, ports, default_mtls, authorization)| Inbound {
            workload,
            ports,
            default_mtls,
            authorization,
        })
}
