//! Findings about DestinationRules.

use mesh_api::crd::Kind;

use super::{Row, check};

/// Rows about one traffic policy, in each of the places where a policy can stand.
fn check_policy(rows: &[Row<'_>]) {
    for (policy, expected) in rows {
        for (before, after, place) in [
            ("trafficPolicy: {", "}", "spec.trafficPolicy"),
            (
                "subsets: [{name: v1, trafficPolicy: {",
                "}}]",
                "spec.subsets[0].trafficPolicy",
            ),
            (
                "trafficPolicy: {portLevelSettings: [{port: {number: 80}, ",
                "}]}",
                "spec.trafficPolicy.portLevelSettings[0]",
            ),
        ] {
            let expected: Vec<String> = expected.iter().map(|e| e.replace("$", place)).collect();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            check(
                Kind::DestinationRule,
                &[(&format!("host: a\n{before}{policy}{after}"), &expected)],
            );
        }
    }
}

#[test]
fn destination_rule_as_a_whole() {
    check(
        Kind::DestinationRule,
        &[
            (
                "host: '*.shop.svc.cluster.local'\nsubsets: [{name: v1, labels: {version: v1}}]",
                &[],
            ),
            ("host: a/b", &["!bad-value spec.host: no host name"]),
            (
                "host: a\nsubsets: [{name: v1}, {name: v1}]",
                &["!bad-value spec.subsets[1].name: already"],
            ),
            (
                "host: a\nsubsets: [{name: v.1}]",
                &["!bad-value spec.subsets[0].name: no DNS label"],
            ),
            (
                "host: a\ntrafficPolicy: {}",
                &["!missing-field spec.trafficPolicy: empty"],
            ),
            (
                "host: a\nworkloadSelector: {matchLabels: {app: a}}\nexportTo: ['*']",
                &["!bad-value spec.exportTo: own namespace"],
            ),
            (
                "host: a\ntrafficPolicy: {portLevelSettings: [{port: {number: 80}}]}",
                &["!missing-field spec.trafficPolicy.portLevelSettings[0]: empty"],
            ),
            (
                "host: a\ntrafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}",
                &["!missing-field spec.trafficPolicy.portLevelSettings[0].port: need its number"],
            ),
            (
                "host: a\ntrafficPolicy: {tunnel: {targetHost: b, targetPort: 0, protocol: GET}, proxyProtocol: {version: V2}}",
                &[
                    "!one-of spec.trafficPolicy.proxyProtocol: with tunnel",
                    "!bad-value spec.trafficPolicy.tunnel.protocol: CONNECT and POST",
                    "!bad-value spec.trafficPolicy.tunnel.targetPort: no port",
                    "not-supported-yet spec.trafficPolicy.tunnel: tunnel",
                    "not-supported-yet spec.trafficPolicy.proxyProtocol: proxyProtocol",
                ],
            ),
            (
                "host: a\ntrafficPolicy: {retryBudget: {percent: 20, minRetryConcurrency: 3}}",
                &[],
            ),
            (
                "host: a\ntrafficPolicy: {retryBudget: {percent: 120}}",
                &["!bad-value spec.trafficPolicy.retryBudget.percent: not from 0 to 100"],
            ),
        ],
    );
}

#[test]
fn traffic_policies() {
    check_policy(&[
        ("loadBalancer: {simple: LEAST_REQUEST}", &[]),
        ("loadBalancer: {simple: PASSTHROUGH}", &[]),
        // What is switched off needs nobody to act on it.
        ("loadBalancer: {localityLbSetting: {enabled: false}}", &[]),
        (
            "loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}}}",
            &[],
        ),
        (
            "loadBalancer: {consistentHash: {httpCookie: {name: c, path: /, ttl: 0s}}}",
            &[],
        ),
        ("loadBalancer: {consistentHash: {useSourceIp: true}}", &[]),
        (
            "loadBalancer: {consistentHash: {useSourceIp: false}}",
            &["!missing-field $.loadBalancer.consistentHash: nothing to hash by"],
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}",
            &[
                "!bad-value $.loadBalancer.consistentHash.maglev.tableSize: a prime",
                "not-supported-yet $.loadBalancer.consistentHash.maglev: maglev",
            ],
        ),
        (
            "loadBalancer: {consistentHash: {useSourceIp: true, minimumRingSize: 10}}",
            &["deprecated $.loadBalancer.consistentHash.minimumRingSize: superseded"],
        ),
        (
            "loadBalancer: {warmup: {duration: 0s, aggression: 0}}",
            &[
                "!bad-value $.loadBalancer.warmup.duration: at least 1ms",
                "!bad-value $.loadBalancer.warmup.aggression: not greater than 0",
                "not-supported-yet $.loadBalancer.warmup: warmup",
            ],
        ),
        (
            "loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}",
            &[
                "!bad-value $.loadBalancer.localityLbSetting.distribute[0].to: add up to 100",
                "not-supported-yet $.loadBalancer.localityLbSetting: localityLbSetting",
            ],
        ),
        (
            "connectionPool: {tcp: {maxConnections: 100, connectTimeout: 3s, idleTimeout: 0s, tcpKeepalive: {time: 1h}}, \
             http: {http1MaxPendingRequests: 50, http2MaxRequests: 100, h2UpgradePolicy: UPGRADE}}",
            &[],
        ),
        ("connectionPool: {}", &["!missing-field $.connectionPool: empty"]),
        (
            "connectionPool: {tcp: {maxConnections: -1, connectTimeout: 0s}}",
            &[
                "!bad-value $.connectionPool.tcp.maxConnections: negative",
                "!bad-value $.connectionPool.tcp.connectTimeout: at least 1ms",
            ],
        ),
        (
            "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}",
            &["!one-of $.connectionPool.http.useClientProtocol: h2UpgradePolicy"],
        ),
        (
            "connectionPool: {http: {http2KeepAlive: {interval: 1s}}}",
            &[
                "!missing-field $.connectionPool.http.http2KeepAlive.timeout: needs its timeout",
                "not-supported-yet $.connectionPool.http.http2KeepAlive: http2KeepAlive",
            ],
        ),
        (
            "outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 30s, maxEjectionPercent: 50}",
            &[],
        ),
        (
            "outlierDetection: {maxEjectionPercent: 101}",
            &["!bad-value $.outlierDetection.maxEjectionPercent: not from 0 to 100"],
        ),
        (
            "outlierDetection: {consecutiveErrors: 5}",
            &["no-effect $.outlierDetection.consecutiveErrors: here as in Istio"],
        ),
        (
            "outlierDetection: {consecutiveLocalOriginFailures: 5}",
            &["!bad-value $.outlierDetection.consecutiveLocalOriginFailures: splitExternalLocalOriginErrors"],
        ),
        (
            "outlierDetection: {minHealthPercent: 10}",
            &["not-supported-yet $.outlierDetection.minHealthPercent: minHealthPercent"],
        ),
        (
            "tls: {mode: ISTIO_MUTUAL, sni: a.b, subjectAltNames: [spiffe://x/ns/y/sa/z]}",
            &[],
        ),
        (
            "tls: {mode: SIMPLE, caCrl: /c}",
            &[
                "not-supported-yet $.tls.mode: SIMPLE",
                "not-supported-yet $.tls.caCrl: caCrl",
            ],
        ),
        (
            "tls: {mode: MUTUAL}",
            &[
                "!missing-field $.tls.clientCertificate: MUTUAL",
                "!missing-field $.tls.privateKey: MUTUAL",
                "not-supported-yet $.tls.mode: MUTUAL",
            ],
        ),
        (
            "tls: {mode: ISTIO_MUTUAL, privateKey: /k}",
            &[
                "!bad-value $.tls.privateKey: the mesh has its own",
                "not-supported-yet $.tls.privateKey: privateKey",
            ],
        ),
        (
            "retryPolicy: {attempts: 3, perTryTimeout: 2s, retryOn: '5xx,connect-failure,refused-stream'}",
            &[],
        ),
        ("retryPolicy: {}", &["!missing-field $.retryPolicy: empty"]),
        (
            "retryPolicy: {attempts: 1, retryOn: 'http3-post-connect-failure,503,retriable-status-codes'}",
            &["not-supported-yet $.retryPolicy.retryOn: http3-post-connect-failure"],
        ),
        (
            "retryPolicy: {attempts: -1, retryOn: never}",
            &[
                "!bad-value $.retryPolicy.attempts: negative",
                "!bad-value $.retryPolicy.retryOn: no condition of retries",
            ],
        ),
        ("timeout: {http: 5s, connectTimeout: 3s}", &[]),
        ("timeout: {}", &["!missing-field $.timeout: empty"]),
        ("timeout: {http: 0s}", &["!bad-value $.timeout.http: at least 1ms"]),
        (
            "timeout: {connectTimeout: 3s}, connectionPool: {tcp: {connectTimeout: 1s}}",
            &["conflict $.timeout.connectTimeout: is set as well and wins"],
        ),
    ]);
}
