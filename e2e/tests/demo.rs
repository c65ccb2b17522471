//! The demo from the outside: started as a user starts it, called with curl, ended by signals.
// What fails in a helper fails its test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use e2e::demo::{Answer, Demo, is_alive, manifest, send};
use e2e::plain::eventually;
use serde_json::Value;

const REVIEWS: &str = "http://reviews.default.svc.cluster.local";

/// How many answers each version gave to `count` requests.
fn versions(demo: &Demo, count: usize, args: &[&str]) -> BTreeMap<String, usize> {
    let mut versions = BTreeMap::new();
    for _ in 0..count {
        let version = demo.curl("client", args).unwrap().field("version");
        *versions.entry(version).or_default() += 1;
    }
    versions
}

/// Waits until the configuration of a workload's sidecar satisfies a condition.
fn configured(demo: &Demo, workload: &str, what: &str, condition: impl Fn(&str) -> bool) {
    eventually(what, || {
        let dump = demo.admin(workload, "/config_dump").ok()?;
        condition(&dump).then_some(())
    })
    .unwrap();
}

#[test]
fn a_demo_serves_shows_itself_and_leaves_nothing() {
    let mut demo = Demo::start(&[]).unwrap();
    let names: Vec<_> = demo.info["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["name"].clone())
        .collect();
    let expected = [
        "client",
        "api-gateway",
        "auth-service",
        "order-service",
        "inventory-service",
        "payment-service",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        demo.workload("reviews-v2")["identity"],
        "spiffe://cluster.local/ns/default/sa/reviews"
    );

    // Through the whole shop, every hop with its caller's identity; a forged identity does not pass.
    let forged = "x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/default/sa/admin";
    let shop = "http://api-gateway.default.svc.cluster.local:8080/";
    let answer = demo.curl("client", &["-H", forged, shop]).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json().unwrap();
    assert_eq!(answer["caller"], "spiffe://cluster.local/ns/default/sa/client");
    assert!(!answer["headers"].to_string().contains("sa/admin"), "{answer}");
    let order = answer["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| &call["answer"])
        .find(|a| a["service"] == "order-service");
    let reviews = order.unwrap()["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| &call["answer"])
        .find(|a| a["service"] == "reviews");
    assert_eq!(
        reviews.unwrap()["caller"],
        "spiffe://cluster.local/ns/default/sa/order-service"
    );

    // All versions of a service answer on both of its ports, to every method.
    for url in [format!("{REVIEWS}/"), format!("{REVIEWS}:9080/")] {
        assert_eq!(versions(&demo, 40, &["-X", "PUT", "-d", "x", &url]).len(), 3, "{url}");
    }
    let wished = demo
        .curl("client", &[&format!("{REVIEWS}:9080/?status=418&delay=300ms")])
        .unwrap();
    assert_eq!(wished.status, 418);
    assert!(wished.seconds >= 0.3, "{wished:?}");

    shows_itself(&demo);

    let (pids, log) = (demo.pids(), demo.workload("client")["logs"]["sidecar"].clone());
    assert_eq!(pids.len(), 19);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    assert!(Path::new(log.as_str().unwrap()).exists());
    demo.signal("INT").unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0), "{}", demo.errors());
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "a process is left");
    assert!(!Path::new(log.as_str().unwrap()).exists(), "files are left");
}

fn shows_itself(demo: &Demo) {
    let (status, well) = demo.meshctl(&["proxy-status", "-o", "json"]).unwrap();
    assert!(well, "{status}");
    let proxies: Vec<Value> = serde_json::from_str(&status).unwrap();
    assert_eq!(proxies.len(), 9);
    for proxy in &proxies {
        for kind in ["mesh", "inbound"] {
            assert_eq!(proxy["types"][kind]["state"], "SYNCED", "{proxy}");
        }
    }
    for (what, expected) in [
        ("inbound", "spiffe://cluster.local/ns/default/sa/client"),
        ("outbound", "reviews.default.svc.cluster.local"),
        ("endpoints", "outbound|9080||reviews.default.svc.cluster.local"),
        ("routes", "reviews.default.svc.cluster.local:9080"),
        ("secrets", "spiffe://cluster.local/ns/default/sa/client"),
    ] {
        let (text, well) = demo.meshctl(&["proxy-config", what, "client"]).unwrap();
        assert!(well && text.contains(expected), "{what}: {text}");
        let (json, well) = demo
            .meshctl(&["proxy-config", what, "client.default", "-o", "json"])
            .unwrap();
        assert!(
            well && serde_json::from_str::<Value>(&json).is_ok_and(|json| !json.is_null()),
            "{what}: {json}"
        );
    }
    let (text, well) = demo.meshctl(&["proxy-config", "routes", "nobody"]).unwrap();
    assert!(!well && text.contains("no proxy of `nobody` is connected"), "{text}");
}

#[test]
fn the_documents_routes_faults_and_authorization_take_effect() {
    let demo = Demo::start(&[]).unwrap();
    let url = format!("{REVIEWS}:9080/");
    let canary = ["-H", "canary: true", &url];

    for name in ["canary-by-header", "canary-with-port"] {
        demo.write("reviews.yaml", &manifest(name).unwrap()).unwrap();
        eventually(name, || {
            (versions(&demo, 5, &canary) == [("v2".to_owned(), 5)].into()).then_some(())
        })
        .unwrap();
        assert_eq!(versions(&demo, 20, &canary), [("v2".to_owned(), 20)].into(), "{name}");
        assert_eq!(versions(&demo, 20, &[&url]), [("v1".to_owned(), 20)].into(), "{name}");
        let other = ["-H", "canary: false", &url];
        assert_eq!(versions(&demo, 5, &other), [("v1".to_owned(), 5)].into(), "{name}");
    }

    demo.write("reviews.yaml", &manifest("fault-delay").unwrap()).unwrap();
    configured(&demo, "client", "the fault is in force", |dump| {
        dump.contains("\"fixedDelay\": \"5s\"")
    });
    let burst = format!("{REVIEWS}:9080/?[1-100]");
    let answers = demo
        .curl_all(
            "client",
            &["-Z", "--parallel-immediate", "--parallel-max", "100", &burst],
        )
        .unwrap();
    assert_eq!(answers.len(), 100);
    assert!(answers.iter().all(|answer| answer.status == 200));
    let delayed = answers.iter().filter(|answer| answer.seconds >= 5.0).count();
    assert!((30..=70).contains(&delayed), "{delayed} of 100 were delayed");
    assert!(answers.iter().filter(|answer| answer.seconds < 4.5).count() == 100 - delayed);
    demo.delete("reviews.yaml").unwrap();

    // Only order-service may read; it may write with the second policy only.
    demo.write("authz.yaml", &manifest("authorization-read").unwrap())
        .unwrap();
    let denied = eventually("the policy denies", || {
        demo.curl("client", &[&url]).ok().filter(|answer| answer.status == 403)
    });
    assert_eq!(denied.unwrap().body, "RBAC: access denied");
    let from_order = |method: &str| demo.curl("order-service", &["-X", method, &url]).unwrap().status;
    for _ in 0..6 {
        assert_eq!((from_order("GET"), from_order("POST")), (200, 403));
    }
    demo.write("authz.yaml", &manifest("authorization-read-write").unwrap())
        .unwrap();
    eventually("the policy allows to write", || {
        (0..6).all(|_| from_order("POST") == 200).then_some(())
    })
    .unwrap();
    assert_eq!((from_order("GET"), from_order("DELETE")), (200, 403));
    demo.delete("authz.yaml").unwrap();
    eventually("the policy is gone", || {
        demo.curl("client", &[&url]).ok().filter(|answer| answer.status == 200)
    })
    .unwrap();
}

#[test]
fn the_documents_resilience_takes_effect() {
    let demo = Demo::start(&[]).unwrap();
    // The sidecar holds what its workload has asked for.
    assert_eq!(demo.curl("client", &[&format!("{REVIEWS}:9080/")]).unwrap().status, 200);

    demo.write("breaker.yaml", &manifest("circuit-breaker").unwrap())
        .unwrap();
    configured(&demo, "client", "the limits are in force", |dump| {
        dump.contains("\"maxConnections\": 100")
    });
    breaks_the_circuit(&demo);

    demo.write("retry.yaml", &manifest("retry").unwrap()).unwrap();
    demo.write("timeout.yaml", &manifest("timeout").unwrap()).unwrap();
    configured(&demo, "client", "all three rules are in force", |dump| {
        let pieces = [
            "\"maxConnections\": 100",
            "\"perTryTimeout\": \"2s\"",
            "\"timeout\": \"5s\"",
            "\"connectTimeout\": \"3s\"",
        ];
        pieces.iter().all(|piece| dump.contains(piece))
    });
    // Half of the tries fail: without retries half of the requests would, with three they are one in sixteen.
    let flaky = format!("{REVIEWS}:9080/?fail=0.5&[1-100]");
    let answers = demo
        .curl_all("client", &["-Z", "--parallel-max", "10", &flaky])
        .unwrap();
    let succeeded = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(succeeded >= 80, "{succeeded} of {} succeeded", answers.len());
    // Tries end after 2 s, the request with all its tries after 5 s.
    let slow = demo.curl("client", &[&format!("{REVIEWS}:9080/?delay=8s")]).unwrap();
    assert_eq!(slow.status, 504, "{slow:?}");
    assert!((4.9..7.0).contains(&slow.seconds), "{slow:?}");
}

/// 300 requests at once against a backend that takes 2 s: 100 in flight, 50 waiting, the others refused at once.
fn breaks_the_circuit(demo: &Demo) {
    let burst = format!("{REVIEWS}:9080/?delay=2s&[1-300]");
    let args = ["-Z", "--parallel-immediate", "--parallel-max", "300", &burst];
    let (answers, most_in_flight) = std::thread::scope(|scope| {
        let requests = scope.spawn(|| demo.curl_all("client", &args).unwrap());
        let mut most = 0;
        while !requests.is_finished() {
            most = most.max(in_flight(&demo.admin("client", "/clusters").unwrap()));
        }
        (requests.join().unwrap(), most)
    });
    assert_eq!(answers.len(), 300);
    let (served, refused): (Vec<&Answer>, Vec<&Answer>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(
        refused
            .iter()
            .all(|answer| answer.status == 503 && answer.seconds < 1.9),
        "{refused:?}"
    );
    assert_eq!(served.len(), 150, "100 in flight and 50 that waited");
    let first = served.iter().filter(|answer| answer.seconds < 3.9).count();
    assert_eq!(first, 100, "the others came after those");
    assert!(
        (90..=100).contains(&most_in_flight),
        "{most_in_flight} were in flight at once"
    );
}

/// Requests in flight to reviews, as the sidecar's cluster page has them.
fn in_flight(clusters: &str) -> u64 {
    let lines = clusters
        .lines()
        .filter(|line| line.starts_with("outbound|9080||reviews."));
    lines
        .filter_map(|line| line.split_once("::rq_active::")?.1.parse::<u64>().ok())
        .sum()
}

#[test]
fn wrong_files_are_reported_and_change_nothing() {
    let demo = Demo::start(&[]).unwrap();
    let url = format!("{REVIEWS}:9080/");
    let good = manifest("canary-by-header").unwrap();
    demo.write("reviews.yaml", &good).unwrap();
    let only_v1 = || versions(&demo, 5, &[&url]) == [("v1".to_owned(), 5)].into();
    eventually("the rule is in force", || only_v1().then_some(())).unwrap();

    let wrong = good.replace("subset: v1", "subset: v3\n      weight: ten");
    demo.write("reviews.yaml", &wrong).unwrap();
    let line = format!(
        "{}:21:7: error: spec.http[1].route[0].weight: ",
        demo.policy_path("reviews.yaml").display()
    );
    eventually("the error is on the terminal", || {
        demo.errors().contains(&line).then_some(())
    })
    .unwrap_or_else(|error| {
        panic!("{error}: {line}\n{}", demo.errors());
    });
    assert!(only_v1(), "the last good version stays in force");

    // One object in two files: the file that was modified last wins, and both are named.
    demo.write("again.yaml", &good.replace("subset: v1", "subset: v3"))
        .unwrap();
    eventually("the newer file wins", || {
        (versions(&demo, 5, &[&url]) == [("v3".to_owned(), 5)].into()).then_some(())
    })
    .unwrap();
    let both = |line: &str| line.contains("error") && line.contains("reviews.yaml") && line.contains("again.yaml");
    eventually("an error names both files", || {
        demo.errors().lines().any(both).then_some(())
    })
    .unwrap();

    demo.delete("again.yaml").unwrap();
    demo.delete("reviews.yaml").unwrap();
    eventually("all versions answer again", || {
        (versions(&demo, 20, &[&url]).len() == 3).then_some(())
    })
    .unwrap();
}

#[test]
fn a_demo_for_some_time_sums_up() {
    let fault = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: payment}\nspec:\n  hosts: \
                 [payment-service]\n  http:\n  - fault: {abort: {percentage: {value: 50}, httpStatus: 503}}\n    route: \
                 [{destination: {host: payment-service}}]\n";
    let mut demo = Demo::start_with(&[("fault.yaml", fault)], &["--for", "4s", "--traffic", "20"]).unwrap();
    let last = demo.line().unwrap();
    let totals = &last["totals"];
    assert!((60..=100).contains(&totals["requests"].as_u64().unwrap()), "{last}");
    assert_eq!(
        totals["failed"],
        0,
        "what policy aborts has not failed: {last}\n{}",
        demo.errors()
    );
    assert_eq!(totals["success_rate"], 1.0, "{last}");
    assert_eq!(totals["mtls"], 1.0, "{last}");
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert!(!demo.pids().into_iter().any(is_alive), "a process is left");
}

#[test]
fn failures_that_nobody_asked_for_count() {
    let mut demo = Demo::start(&["--for", "4s", "--traffic", "20"]).unwrap();
    // Its application answers no more; the sidecar cannot reach it.
    send("KILL", demo.workload("payment-service")["app_pid"].as_u64().unwrap()).unwrap();
    let last = demo.line().unwrap();
    assert!(last["totals"]["failed"].as_u64().unwrap() > 0, "{last}");
    assert!(last["totals"]["success_rate"].as_f64().unwrap() < 1.0, "{last}");
    assert_eq!(demo.wait().unwrap().code(), Some(1));
}

#[test]
fn children_end_with_a_demo_that_is_killed() {
    let mut demo = Demo::start(&[]).unwrap();
    let pids = demo.pids();
    demo.signal("KILL").unwrap();
    demo.wait().unwrap();
    eventually("all processes end", || {
        (!pids.iter().any(|pid| is_alive(*pid))).then_some(())
    })
    .unwrap();
}

#[test]
fn a_killed_process_is_started_again() {
    let demo = Demo::start(&[]).unwrap();
    let url = format!("{REVIEWS}:9080/");
    assert_eq!(demo.curl("client", &[&url]).unwrap().status, 200);
    // Without a control plane nothing changes for traffic.
    send("KILL", demo.info["control_plane"]["pid"].as_u64().unwrap()).unwrap();
    assert_eq!(versions(&demo, 20, &[&url]).len(), 3);
    send("KILL", demo.workload("client")["sidecar_pid"].as_u64().unwrap()).unwrap();
    eventually("the client's sidecar is back", || {
        demo.curl("client", &[&url]).ok().filter(|answer| answer.status == 200)
    })
    .unwrap();
    // What is written now reaches proxies that outlived the control plane.
    demo.write("reviews.yaml", &manifest("canary-by-header").unwrap())
        .unwrap();
    eventually("policy is in force", || {
        (versions(&demo, 5, &[&url]) == [("v1".to_owned(), 5)].into()).then_some(())
    })
    .unwrap();
}
