//! The manifests of the document that the demo's users start from, as they stand there.

use std::time::Duration;

use mesh_api::model::{Action, Balancer, Percentage, RetryCondition, TermMatch};

use super::*;

const CANARY: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts:
  - reviews
  http:
  - match:
    - headers:
        canary:
          exact: "true"
    route:
    - destination:
        host: reviews
        subset: v2
        port:
          number: 9080
  - route:
    - destination:
        host: reviews
        subset: v1
        port:
          number: 9080
"#;

const FAULT: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: reviews
spec:
  http:
  - fault:
      delay:
        percentage:
          value: 50
        fixedDelay: 5s
    route:
    - destination:
        host: reviews
"#;

const AUTHORIZATION: &str = r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: reviews-authz
  namespace: default
spec:
  selector:
    matchLabels:
      app: reviews
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/order-service"]
    to:
    - operation:
        methods: ["GET", "POST"]
"#;

const BREAKER: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: reviews-circuit-breaker
spec:
  host: reviews
  trafficPolicy:
    connectionPool:
      tcp:
        maxConnections: 100
      http:
        http1MaxPendingRequests: 50
        http2MaxRequests: 100
    outlierDetection:
      consecutive5xxErrors: 5
      interval: 30s
      baseEjectionTime: 30s
      maxEjectionPercent: 50
"#;

const RETRY: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: reviews-retry
spec:
  host: reviews
  trafficPolicy:
    retryPolicy:
      attempts: 3
      perTryTimeout: 2s
      retryOn: 5xx,connect-failure,refused-stream
"#;

const TIMEOUT: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: reviews-timeout
spec:
  host: reviews
  trafficPolicy:
    timeout:
      http: 5s
      connectTimeout: 3s
"#;

/// Every order of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[track_caller]
fn assert_all_three_act(cluster: &Cluster, forward: &Forward) {
    assert_eq!(cluster.pool.max_connections, 100);
    assert_eq!(cluster.pool.max_pending_requests, 50);
    assert_eq!(cluster.pool.max_requests, 100);
    assert_eq!(cluster.pool.connect_timeout, Duration::from_secs(3));
    let outlier = cluster.outlier.as_ref().unwrap();
    assert_eq!(outlier.consecutive_5xx, Some(5));
    assert_eq!(outlier.interval, Duration::from_secs(30));
    assert_eq!(outlier.base_ejection_time, Duration::from_secs(30));
    assert_eq!(outlier.max_ejection_percent, 50);
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!(retry.attempts, 3);
    assert_eq!(retry.per_try_timeout, Some(Duration::from_secs(2)));
    assert_eq!(
        retry.retry_on,
        [
            RetryCondition::ServerError,
            RetryCondition::ConnectFailure,
            RetryCondition::RefusedStream
        ]
    );
    assert_eq!(forward.timeout, Some(Duration::from_secs(5)));
    assert_eq!(cluster.balancer, Balancer::LeastRequest);
}

#[test]
fn all_three_rules_act_at_once_whatever_their_order() {
    for order in ORDERS {
        let rules = [BREAKER, RETRY, TIMEOUT];
        let mut mesh = Mesh::shop("");
        for index in order {
            mesh.add(rules[index]);
        }
        let destination = mesh.destination("reviews:9080");
        assert_all_three_act(&destination.clusters[0], forward(&destination.routes[0]));

        // On the starter's subsets as well, which another rule defines.
        mesh.add(CANARY);
        let destination = mesh.destination("reviews:80");
        for route in &destination.routes {
            let forward = forward(route);
            assert_all_three_act(&destination.clusters[forward.clusters[0].cluster], forward);
        }
    }
}

#[test]
fn the_canary_header_leads_to_v2_and_all_else_to_v1() {
    for port in [80, 9080] {
        let mesh = Mesh::shop(CANARY);
        let destination = mesh.destination(&format!("reviews.default.svc.cluster.local:{port}"));
        let [canary, rest] = destination.routes.as_slice() else {
            panic!("{:?}", destination.routes);
        };
        assert_eq!(canary.matches[0].headers[0].name, "canary");
        assert!(canary.matches[0].headers[0].value.is_match("true"));
        assert!(!canary.matches[0].headers[0].value.is_match("false"));
        let to = |subset: &str| vec![(format!("outbound|9080|{subset}|reviews.default.svc.cluster.local"), 1)];
        assert_eq!(legs(&destination, canary), to("v2"));
        assert!(rest.matches.is_empty());
        assert_eq!(legs(&destination, rest), to("v1"));
    }
}

#[test]
fn the_fault_without_hosts_is_for_reviews() {
    let mesh = Mesh::shop(FAULT);
    let destination = mesh.destination("reviews:9080");
    let fault = destination.routes[0].fault.as_ref().unwrap();
    assert_eq!(
        fault.delay,
        Some((Percentage::from_percent(50.0), Duration::from_secs(5)))
    );
    assert_eq!(fault.abort, None);
    assert_eq!(mesh.destination("orders:8080").routes[0].fault, None);

    // Overwritten, as the document's reader does.
    let mut mesh = mesh;
    mesh.add(CANARY);
    assert_eq!(mesh.destination("reviews:9080").routes.len(), 2);
    mesh.add(FAULT);
    assert_eq!(mesh.destination("reviews:9080").routes.len(), 1);

    // Beside another object that has the host, it is not in force.
    mesh.add(&CANARY.replace("name: reviews\n", "name: canary\n"));
    assert_eq!(mesh.destination("reviews:9080").routes[0].fault, None);

    // With the three rules, the delayed half has them too.
    let mesh = Mesh::shop(&[FAULT, BREAKER, RETRY, TIMEOUT].join("---"));
    let destination = mesh.destination("reviews:9080");
    assert!(destination.routes[0].fault.is_some());
    assert_all_three_act(&destination.clusters[0], forward(&destination.routes[0]));
}

#[test]
fn only_order_service_may_read() {
    let mesh = Mesh::shop(AUTHORIZATION);
    let policy = mesh.inbound("reviews-v2.default").authorization.remove(0);
    assert_eq!(policy.action, Action::Allow);
    let rule = &policy.rules[0];
    assert_eq!(
        rule.from[0].principals.any,
        [TermMatch::Exact("cluster.local/ns/default/sa/order-service".into())]
    );
    assert_eq!(
        rule.to[0].methods.any,
        [TermMatch::Exact("GET".into()), TermMatch::Exact("POST".into())]
    );
    assert!(rule.http_only && rule.invalid.is_none());
    assert!(mesh.inbound("client.default").authorization.is_empty());
}
