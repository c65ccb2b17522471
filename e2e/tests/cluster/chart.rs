//! The chart before it is installed: it lints, its values are checked, and an API server takes what it renders.

use std::time::Duration;

use e2e::cluster::{mesh, tools, wait};

/// Sets of values, each far from the defaults in some respect.
const VALUES: [&[&str]; 6] = [
    &[],
    &[
        "control.replicas=2",
        "control.autoscaling.enabled=false",
        "injector.replicas=3",
    ],
    &[
        "podDisruptionBudget.enabled=false",
        "networkPolicy.enabled=false",
        "injector.validation=false",
        "crds.enabled=false",
    ],
    &[
        "injection.istioLabels=false",
        "image.tag=x",
        "image.hub=h.example/y",
        "image.pullSecrets={a,b}",
    ],
    &[
        "injection.istioLabels=true",
        "meshConfig.trustDomain=td.example",
        "meshConfig.rootNamespace=istio-system",
        "control.tokenAudiences={mesh-ca,istio-ca}",
        "control.podRanges={198.18.0.0/16}",
        "control.serviceRanges={198.19.0.0/20}",
    ],
    &[
        "control.extraArgs={--log=debug}",
        "control.env[0].name=A",
        "control.env[0].value=b",
        "control.nodeSelector.disk=ssd",
        "control.tolerations[0].key=k",
        "control.tolerations[0].operator=Exists",
        "control.priorityClassName=system-cluster-critical",
        "injector.podLabels.team=x",
        "injector.podAnnotations.a=b",
        "injector.failurePolicy=Ignore",
    ],
];

fn with_values<'a>(args: &[&'a str], values: &[&'a str]) -> Vec<&'a str> {
    let mut all = args.to_vec();
    for value in values {
        all.extend(["--set", value]);
    }
    all
}

#[test]
#[ignore = "needs helm"]
fn it_lints() -> anyhow::Result<()> {
    let chart = mesh::chart().to_string_lossy().into_owned();
    for values in VALUES {
        tools::helm(&with_values(&["lint", "--strict", &chart], values))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs helm"]
fn values_that_mean_nothing_are_refused() -> anyhow::Result<()> {
    let chart = mesh::chart().to_string_lossy().into_owned();
    for (value, told) in [
        ("control.replica=2", "replica"),
        ("control.replicas=0", "/control/replicas"),
        ("injector.failurePolicy=fail", "/injector/failurePolicy"),
        ("injection.istioLabels=always", "/injection/istioLabels"),
        ("control.tokenAudiences=null", "tokenAudiences"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
    ] {
        let args = with_values(&["template", "mesh", &chart], &[value]);
        let outcome = tools::run("helm", &args, None, tools::LIMIT)?;
        assert!(!outcome.success, "{value} is taken");
        assert!(outcome.stderr.contains(told), "{value}: {}", outcome.stderr);
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn an_api_server_takes_what_it_renders() -> anyhow::Result<()> {
    let chart = mesh::chart().to_string_lossy().into_owned();
    // A namespace of its own: objects of namespaces are not taken without it.
    let namespace = e2e::cluster::Namespace::new("rendered", &[])?;
    for values in VALUES {
        let rendered = tools::helm(&with_values(
            &["template", "mesh", &chart, "-n", namespace.name()],
            values,
        ))?;
        // Server-side, so that objects of an installed release are no surprise.
        let args = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        let outcome = tools::run("kubectl", &args, Some(&rendered), Duration::from_secs(120))?;
        assert!(outcome.success, "{values:?}: {}", outcome.stderr);
        assert!(outcome.stderr.is_empty(), "{values:?}: {}", outcome.stderr);
    }
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn its_pods_are_restricted() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    // The API server warns of pods that are there and would not be let in.
    let args = [
        "label",
        "--dry-run=server",
        "--overwrite",
        "namespace",
        mesh::NAMESPACE,
        "pod-security.kubernetes.io/enforce=restricted",
    ];
    let outcome = tools::run("kubectl", &args, None, tools::LIMIT)?;
    assert!(outcome.success && outcome.stderr.is_empty(), "{}", outcome.stderr);
    Ok(())
}

#[test]
#[ignore = "needs a cluster"]
fn helm_test_passes() -> anyhow::Result<()> {
    let _mesh = mesh::shared()?;
    wait::rollout(mesh::NAMESPACE, "deployment/mesh-control")?;
    tools::helm(&["test", mesh::RELEASE, "-n", mesh::NAMESPACE, "--timeout=120s"])?;
    Ok(())
}
