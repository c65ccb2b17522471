//! The choice of an endpoint, for every balancer and several sizes; beside it two atomic additions, which any balancer
//! that counts requests needs.

#![allow(clippy::expect_used, reason = "a benchmark may stop")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_api::model::{self, Balancer, HashKey, HashPolicy};
use mesh_proxy::upstream::{Cluster, Upstreams};

fn cluster(upstreams: &Upstreams, balancer: Balancer, endpoints: u16, weighted: bool) -> Arc<Cluster> {
    let model = model::Cluster {
        service: model::ServiceRef {
            host: "reviews.default.svc.cluster.local".parse().expect("a host name"),
            name: "reviews".into(),
            namespace: "default".into(),
        },
        port: 9080,
        subset: None,
        selector: BTreeMap::new(),
        location: model::Location::MeshInternal,
        protocol: model::Protocol::Http,
        endpoints: model::EndpointSource::Slices(Vec::new()),
        balancer,
        pool: model::ConnectionPool::default(),
        outlier: None,
        retry_budget: None,
        tls: model::ClientTls::Auto,
        subject_alt_names: Vec::new(),
        origins: Vec::new(),
    };
    let endpoints = (0..endpoints).map(|index| model::Endpoint {
        address: model::EndpointAddress::Ip(IpAddr::from([127, 0, 0, 1])),
        port: 1000 + index,
        workload: Arc::default(),
        weight: if weighted { u32::from(index) + 1 } else { 1 },
        mutual_tls: false,
        health: model::Health::Healthy,
    });
    let slice = model::EndpointSlice {
        endpoints: endpoints.collect(),
    };
    upstreams.cluster(Arc::new(model), &[Arc::new(slice)])
}

fn pick(c: &mut Criterion) {
    let ring = Balancer::RingHash {
        hash: HashPolicy { key: HashKey::SourceIp },
        minimum_ring_size: 1024,
    };
    let upstreams = Upstreams::new();
    let mut group = c.benchmark_group("pick");
    let counter = AtomicU32::new(0);
    group.bench_function("floor/two-atomic-additions", |b| {
        b.iter(|| {
            counter.fetch_add(1, Ordering::Relaxed);
            black_box(&counter).fetch_sub(1, Ordering::Relaxed)
        });
    });
    for (name, balancer) in [
        ("least-request", Balancer::LeastRequest),
        ("round-robin", Balancer::RoundRobin),
        ("random", Balancer::Random),
        ("ring-hash", ring),
    ] {
        for (endpoints, weighted) in [(1, false), (3, false), (3, true), (1000, false), (1000, true)] {
            let cluster = cluster(&upstreams, balancer.clone(), endpoints, weighted);
            let size = format!("{endpoints}{}", if weighted { "-weighted" } else { "" });
            let mut hash = 0_u64;
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter(|| {
                    hash = hash.wrapping_add(0x9E37_79B9_7F4A_7C15);
                    black_box(cluster.pick(Some(hash), &[]))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
