//! Injection of files.

use super::*;

const FILE: &str = r#"# a shop
apiVersion: v1
kind: Service
metadata: {name: shop}   # stays as it is
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: web}
spec:
  template:
    metadata: {labels: {version: "1.10"}}
    spec:
      containers:
      - {name: shop, image: shop, env: [{name: A, value: "yes"}, {name: B, value: "0123"}, {name: C, value: "12:30"}]}
---
# nothing but a comment
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: job}]}}}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: one}
  spec: {containers: [{name: one, image: one}]}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: two}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node}
spec: {template: {spec: {hostNetwork: true, containers: [{name: node, image: node}]}}}
"#;

#[test]
fn files() {
    let out = manifests_with_notes(FILE, &InjectorConfig::default()).unwrap();
    let first = FILE.split("---\n").next().unwrap();
    assert!(
        out.yaml.starts_with(first),
        "documents that do not change are given back to the letter"
    );
    assert!(out.yaml.contains("---\n# nothing but a comment\n---\n"));
    assert!(out.yaml.ends_with(FILE.rsplit("---\n").next().unwrap()));
    assert_eq!(out.notes.len(), 1, "{:?}", out.notes);
    assert!(
        out.notes[0].starts_with("DaemonSet node: not injected: it uses the network"),
        "{:?}",
        out.notes
    );

    let values: Vec<Value> = out
        .yaml
        .split("---\n")
        .filter(|document| !document.trim_start_matches("# nothing but a comment").trim().is_empty())
        .map(|document| serde_saphyr::from_str(document).unwrap())
        .collect();
    assert_eq!(values.len(), 5);
    let template = &values[1]["spec"]["template"];
    assert_eq!(names(&template["spec"]["initContainers"]), ["mesh-init", "istio-proxy"]);
    assert_eq!(
        template["metadata"]["labels"]["service.istio.io/canonical-name"],
        "shop"
    );
    assert_eq!(template["metadata"]["labels"]["version"], "1.10");
    assert_eq!(template["spec"]["containers"][0]["env"][0]["value"], "yes");
    for quoted in [r#""yes""#, r#""0123""#, r#""12:30""#, r#""1.10""#, r#""true""#] {
        assert!(
            out.yaml.contains(quoted) || out.yaml.contains(&quoted.replace('"', "'")),
            "{quoted} stays a text for every reader:\n{}",
            out.yaml
        );
    }
    let job = &values[2]["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(names(&job["spec"]["initContainers"]), ["mesh-init", "istio-proxy"]);
    assert_eq!(
        names(&values[3]["items"][0]["spec"]["initContainers"]),
        ["mesh-init", "istio-proxy"]
    );
    assert_eq!(values[3]["items"][1]["kind"], "ConfigMap");

    let again = manifests(&out.yaml, &InjectorConfig::default()).unwrap();
    assert_eq!(again, out.yaml, "what is injected already stays as it is");
}

#[test]
fn what_cannot_be_read_is_named() {
    let config = InjectorConfig::default();
    for (yaml, part) in [
        ("a: b\n---\nc: [", "document 2"),
        (
            "kind: Pod\napiVersion: v1\nmetadata: {name: p, annotations: {sidecar.istio.io/proxyCPU: x}}\nspec: {containers: []}",
            "document 1 (Pod p): annotation sidecar.istio.io/proxyCPU",
        ),
        (
            "kind: Pod\napiVersion: v1\nmetadata: {name: p}\nspec: {containers: 3}",
            "document 1 (Pod p): its pod cannot be read",
        ),
    ] {
        let error = manifests(yaml, &config).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for yaml in [
        "",
        "# only this",
        "---\n---\n",
        "kind: Deployment\napiVersion: apps/v1\n",
        "3",
        "kind: Pod\napiVersion: foo/v1\n",
    ] {
        assert_eq!(manifests(yaml, &config).unwrap(), yaml);
    }
}
