//! `meshctl proxy-config`: what one proxy holds, from its administration port.

use clap::{Args as ClapArgs, Subcommand};
use http::Uri;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;

use super::Verdict;
use super::proxy_status::{Asked, ControlPlane, choose};
use crate::cluster::{ADMIN_PORT, Cluster, has_sidecar, is_running};
use crate::fetch::{Pages, url_of};
use crate::output::{Output, print, rendered, table};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Ports of the workload, their mutual TLS, and the policies that select it.
    Inbound(Of),
    /// Clusters that it sends to, with their policy.
    Outbound(Of),
    /// Endpoints of its clusters and their state.
    Endpoints(Of),
    /// HTTP routes by destination.
    Routes(Of),
    /// Certificates with serial and expiry.
    Secrets(Of),
}

#[derive(Debug, ClapArgs)]
struct Of {
    /// The workload, such as `reviews-v1` or `reviews-v1.default`; in a cluster a pod, or `deployment/NAME`.
    #[arg(value_name = "WORKLOAD", required_unless_present = "admin")]
    workload: Option<String>,

    /// Administration address of the proxy, where the control plane shall not be asked for it.
    #[arg(long, value_name = "URL")]
    admin: Option<Uri>,

    /// Namespace of the pod.
    #[arg(short, long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,

    #[command(flatten)]
    control_plane: ControlPlane,

    #[command(flatten)]
    output: Output,
}

/// Takes from a dump what a command shows.
type Pick = fn(&Value) -> Value;
/// Shows it to people.
type Show = fn(&Value) -> String;

pub(super) async fn run(args: &Args) -> anyhow::Result<Verdict> {
    let (of, pick, show): (_, Pick, Show) = match &args.what {
        What::Inbound(of) => (of, |dump| dump["inbound"].clone(), inbound),
        What::Outbound(of) => (of, outbound_of, outbound),
        What::Endpoints(of) => (of, |dump| dump["endpoints"].clone(), endpoints),
        What::Routes(of) => (of, |dump| dump["destinations"].clone(), routes),
        What::Secrets(of) => (of, |dump| dump["certificates"].clone(), secrets),
    };
    let part = pick(&of.dump().await?);
    if !of.output.structured(&part)? {
        print(&show(&part))?;
    }
    Ok(Verdict::Well)
}

impl Of {
    async fn dump(&self) -> anyhow::Result<Value> {
        const PAGE: &str = "/config_dump";
        let pages = Pages::default();
        let page = match (&self.admin, &self.workload) {
            (Some(admin), _) => pages.get(admin, PAGE).await?,
            (None, Some(workload)) => match self.control_plane.reach().await? {
                Asked::Cluster(cluster) => {
                    let (pod, namespace) = pod_of(&cluster, workload, &self.namespace).await?;
                    cluster.page(&namespace, &pod, ADMIN_PORT, PAGE).await?
                }
                asked @ Asked::Address(_) => {
                    let proxies = asked.proxies(&pages).await?;
                    let proxy = choose(&proxies, workload)?;
                    let admin = proxy.admin.map(url_of).ok_or_else(|| {
                        anyhow::anyhow!("{} does not say where its administration is: pass --admin", proxy.name)
                    })?;
                    pages.get(&admin, PAGE).await?
                }
            },
            (None, None) => anyhow::bail!("name a workload, or pass --admin"),
        };
        Ok(serde_json::from_slice(&page)?)
    }
}

/// The pod that is meant by `pod`, `pod.namespace` or `deployment/name`: whether its proxy is connected or not.
async fn pod_of(cluster: &Cluster, workload: &str, namespace: &str) -> anyhow::Result<(String, String)> {
    if let Some((kind, name)) = workload.split_once('/') {
        anyhow::ensure!(
            matches!(kind, "deployment" | "deployments" | "deploy" | "pod" | "pods" | "po"),
            "`{workload}`: name a pod, or deployment/NAME"
        );
        if kind.starts_with("po") {
            return Ok((name.to_owned(), namespace.to_owned()));
        }
        let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
        let selector = api.get(name).await?.spec.and_then(|spec| spec.selector.match_labels);
        let labels: Vec<_> = selector
            .iter()
            .flatten()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let pods = cluster.pods(Some(namespace), &labels.join(",")).await?;
        let pod = pods.into_iter().find(|pod| is_running(pod) && has_sidecar(pod));
        let name = pod.and_then(|pod| pod.metadata.name);
        let name = name.ok_or_else(|| anyhow::anyhow!("no running pod of {workload} in {namespace} has a sidecar"))?;
        return Ok((name, namespace.to_owned()));
    }
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    if api.get_opt(workload).await?.is_some() {
        return Ok((workload.to_owned(), namespace.to_owned()));
    }
    // Names of pods may hold dots themselves; namespaces may not.
    if let Some((pod, namespace)) = workload.rsplit_once('.') {
        return Ok((pod.to_owned(), namespace.to_owned()));
    }
    anyhow::bail!(
        "no pod `{workload}` in namespace {namespace}; other namespaces are named by -n, or as {workload}.NAMESPACE"
    )
}

fn outbound_of(dump: &Value) -> Value {
    let mut seen = Vec::new();
    let clusters = list(&dump["destinations"]).flat_map(|destination| list(&destination["destination"]["clusters"]));
    clusters
        .filter(|cluster| {
            let new = !seen.contains(&cluster["name"]);
            if new {
                seen.push(cluster["name"].clone());
            }
            new
        })
        .cloned()
        .collect()
}

fn inbound(part: &Value) -> String {
    if part.is_null() {
        return "The control plane has said nothing yet: nothing is let in.\n".to_owned();
    }
    let mut ports = table(["PORT", "PROTOCOL", "MTLS", "SERVICES"]);
    for port in list(&part["ports"]) {
        let services: Vec<_> = list(&port["services"]).map(text).collect();
        ports.add_row([
            text(&port["port"]),
            text(&port["protocol"]),
            text(&port["mtls"]),
            services.join(","),
        ]);
    }
    ports.add_row([
        "*".to_owned(),
        "detect".to_owned(),
        text(&part["defaultMtls"]),
        String::new(),
    ]);
    let mut policies = table(["ACTION", "POLICY", "RULES"]);
    for policy in list(&part["authorization"]) {
        let rules: Vec<_> = list(&policy["rules"]).map(ToString::to_string).collect();
        let rules = if rules.is_empty() {
            "none".to_owned()
        } else {
            rules.join("\n")
        };
        policies.add_row([text(&policy["action"]), text(&policy["policy"]), rules]);
    }
    let workload = &part["workload"];
    let mut out = format!(
        "{}.{}   {}\n\n",
        text(&workload["name"]),
        text(&workload["namespace"]),
        text(&workload["identity"])
    );
    out += &rendered(&ports);
    if policies.row_count() > 0 {
        out.push('\n');
        out += &rendered(&policies);
    }
    out
}

fn outbound(part: &Value) -> String {
    let mut rows = table(["HOST", "PORT", "SUBSET", "PROTOCOL", "TLS", "BALANCER", "POLICY"]);
    for cluster in list(part) {
        let balancer = match &cluster["loadBalancer"] {
            Value::String(name) => name.clone(),
            other => other["consistentHash"].to_string(),
        };
        let origins: Vec<_> = list(&cluster["origins"]).map(text).collect();
        let missing = cluster["missing"].as_str().map(|missing| format!("({missing})"));
        rows.add_row([
            text(&cluster["host"]),
            text(&cluster["port"]),
            text(&cluster["subset"]),
            text(&cluster["protocol"]),
            text(&cluster["tls"]["mode"]),
            balancer,
            missing.unwrap_or_else(|| origins.join(", ")),
        ]);
    }
    rendered(&rows)
}

fn endpoints(part: &Value) -> String {
    let mut rows = table([
        "ENDPOINT",
        "STATUS",
        "MTLS",
        "IN FLIGHT",
        "WORKLOAD",
        "IDENTITY",
        "CLUSTER",
    ]);
    for cluster in list(part) {
        for endpoint in list(&cluster["endpoints"]) {
            let facts = &endpoint["facts"];
            let status = if endpoint["ejected"] == true {
                "EJECTED".to_owned()
            } else {
                text(&facts["health"])
            };
            let workload = &facts["workload"];
            rows.add_row([
                text(&endpoint["address"]),
                status,
                if facts["mutualTls"] == true {
                    "yes".to_owned()
                } else {
                    "no".to_owned()
                },
                text(&endpoint["inFlight"]),
                text(&workload["name"]),
                text(&workload["identity"]),
                text(&cluster["cluster"]),
            ]);
        }
    }
    rendered(&rows)
}

fn routes(part: &Value) -> String {
    let mut rows = table(["DESTINATION", "MATCH", "ACTION", "TIMEOUT", "RETRIES", "RULE"]);
    for destination in list(part) {
        let name = text(&destination["name"]);
        if destination["destination"].is_null() {
            rows.add_row([name, String::new(), text(&destination["state"])]);
            continue;
        }
        for route in list(&destination["destination"]["routes"]) {
            let matches: Vec<_> = list(&route["match"]).map(ToString::to_string).collect();
            let rule = match &route["origin"] {
                Value::Null => "default".to_owned(),
                origin => format!("{} {}", text(origin), text(&route["rule"])),
            };
            rows.add_row([
                name.clone(),
                if matches.is_empty() {
                    "*".to_owned()
                } else {
                    matches.join(" or ")
                },
                action(route),
                text(&route["timeout"]),
                text(&route["retries"]["attempts"]),
                rule,
            ]);
        }
    }
    rendered(&rows)
}

fn action(route: &Value) -> String {
    let mut parts = Vec::new();
    if !route["fault"].is_null() {
        parts.push(format!("fault {}", route["fault"]));
    }
    if !route["redirect"].is_null() {
        parts.push(format!("redirect {}", route["redirect"]));
    }
    if !route["directResponse"].is_null() {
        parts.push(format!("respond {}", text(&route["directResponse"]["status"])));
    }
    let legs: Vec<_> = list(&route["route"]).collect();
    for leg in &legs {
        let cluster = text(&leg["cluster"]);
        parts.push(if legs.len() > 1 {
            format!("{cluster} ({})", text(&leg["weight"]))
        } else {
            cluster
        });
    }
    for mirror in list(&route["mirrors"]) {
        parts.push(format!("mirror {}", text(&mirror["cluster"])));
    }
    parts.join(", ")
}

fn secrets(part: &Value) -> String {
    let mut rows = table(["KIND", "NAME", "SERIAL", "NOT BEFORE", "NOT AFTER", "VALID"]);
    for certificate in list(part) {
        let name = match &certificate["identity"] {
            Value::Null => text(&certificate["subject"]),
            identity => text(identity),
        };
        rows.add_row([
            text(&certificate["kind"]),
            name,
            text(&certificate["serial"]),
            text(&certificate["notBefore"]),
            text(&certificate["notAfter"]),
            text(&certificate["valid"]),
        ]);
    }
    rendered(&rows)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value in a cell: texts without quotes, nothing for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
