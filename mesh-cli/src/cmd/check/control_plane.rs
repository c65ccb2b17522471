//! Whether the mesh is there and trusted: its deployments, its kinds, its root, its webhooks.

use std::collections::BTreeMap;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use mesh_api::crd::Kind;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::data_plane::is_labelled;
use super::outcome::{Outcome, hint};
use super::setup::foreign_crds;
use crate::cluster::{Cluster, STATUS_PORT, list};

const DEPLOYMENTS: [&str; 2] = ["mesh-control", "mesh-injector"];
const INJECTOR: &str = "mesh-injector";
const VALIDATOR: &str = "mesh-validator";
/// In every namespace of the mesh: the root certificates that proxies trust.
const ROOT_CONFIG_MAP: &str = "mesh-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";
/// A root that ends sooner must be replaced now.
const ROOT_DAYS: i64 = 60;

/// The deployments, the kinds and the settings.
pub(super) async fn existence(cluster: &Cluster) -> Vec<Outcome> {
    let namespace = &cluster.mesh_namespace;
    let mut outcomes = Vec::new();
    let exists = format!("namespace {namespace} exists");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    match namespaces.get_opt(namespace).await {
        Ok(Some(_)) => outcomes.push(Outcome::passed(exists)),
        Ok(None) => {
            let reason = "there is none; is the mesh elsewhere (--mesh-namespace)?";
            outcomes.push(Outcome::failed(exists, reason, hint::CONTROL_PLANE));
            return outcomes;
        }
        Err(error) => outcomes.push(Outcome::failed(exists, error, hint::API)),
    }
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    for name in DEPLOYMENTS {
        let ready = format!("{name} is ready");
        outcomes.push(match deployments.get_opt(name).await {
            Ok(Some(deployment)) => match unready(&deployment) {
                None => Outcome::passed(ready),
                Some(reason) => Outcome::failed(ready, reason, hint::CONTROL_PLANE),
            },
            Ok(None) => Outcome::failed(
                ready,
                format!("deployment {namespace}/{name} is not there"),
                hint::CONTROL_PLANE,
            ),
            Err(error) => Outcome::failed(ready, error, hint::API),
        });
    }
    outcomes.push(kinds(cluster).await);
    outcomes.push(foreign_crds(cluster).await);
    outcomes.push(mesh_config(cluster).await);
    outcomes.push(versions(cluster).await);
    outcomes
}

fn unready(deployment: &Deployment) -> Option<String> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let available = status.and_then(|status| status.available_replicas).unwrap_or(0);
    let updated = status.and_then(|status| status.updated_replicas).unwrap_or(0);
    if available < wanted {
        return Some(format!("{available} of {wanted} replicas are available"));
    }
    (updated < wanted).then(|| format!("{updated} of {wanted} replicas are up to date"))
}

async fn kinds(cluster: &Cluster) -> Outcome {
    let description = "all policy kinds are defined";
    let mut missing = Vec::new();
    for kind in Kind::ALL {
        match cluster.objects(*kind, None).await {
            Ok(Some(_)) => {}
            Ok(None) => missing.push(format!("{kind} of {} is not defined", kind.group())),
            Err(error) => missing.push(format!("{kind}: {error:#}")),
        }
    }
    Outcome::none_wrong(description, &missing, hint::CRDS)
}

async fn mesh_config(cluster: &Cluster) -> Outcome {
    let description = "the mesh's settings exist";
    match cluster.objects(Kind::MeshConfig, None).await {
        Ok(Some(found)) if found.len() == 1 => Outcome::passed(description),
        Ok(Some(found)) if found.len() > 1 => {
            let reason = format!(
                "there are {} MeshConfigs: the oldest is in force, remove the others",
                found.len()
            );
            Outcome::warning(description, reason, hint::MESH_CONFIG)
        }
        Ok(_) => Outcome::warning(
            description,
            "there is no MeshConfig: the defaults are in force",
            hint::MESH_CONFIG,
        ),
        Err(error) => Outcome::failed(description, format!("{error:#}"), hint::MESH_CONFIG),
    }
}

async fn versions(cluster: &Cluster) -> Outcome {
    let description = "control plane and meshctl are of one version";
    let own = env!("CARGO_PKG_VERSION");
    let asked = async {
        let mut other = Vec::new();
        for replica in cluster.control_planes().await? {
            let page = cluster
                .page(&cluster.mesh_namespace, &replica, STATUS_PORT, "/version")
                .await?;
            let page: Value = serde_json::from_slice(&page)?;
            let version = page["version"].as_str().unwrap_or("unknown");
            if version != own {
                other.push(format!("{replica} is {version}, meshctl is {own}"));
            }
        }
        anyhow::Ok(other)
    };
    match asked.await {
        Ok(other) => Outcome::none_doubtful(description, &other, hint::VERSIONS),
        Err(error) => Outcome::failed(description, format!("{error:#}"), hint::CONTROL_PLANE),
    }
}

/// The root certificate, and whether every namespace of the mesh has it.
pub(super) async fn identity(cluster: &Cluster) -> Vec<Outcome> {
    let given = "every namespace of the mesh has the root certificate";
    let (labelled, roots) = match roots(cluster).await {
        Ok(found) => found,
        Err(error) => return vec![Outcome::failed(given, format!("{error:#}"), hint::API)],
    };
    let missing: Vec<_> = labelled
        .iter()
        .filter(|namespace| !roots.contains_key(*namespace))
        .map(|namespace| format!("namespace {namespace} has no ConfigMap {ROOT_CONFIG_MAP}: its pods cannot start"))
        .collect();
    let mut outcomes = vec![Outcome::none_wrong(given, &missing, hint::ROOT_CONFIG_MAP)];
    let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (namespace, text) in &roots {
        texts.entry(text).or_default().push(namespace);
    }
    let differing: Vec<_> = match texts.len() {
        0 | 1 => Vec::new(),
        _ => texts
            .values()
            .map(|namespaces| format!("one root in {}", namespaces.join(", ")))
            .collect(),
    };
    outcomes.push(Outcome::none_wrong(
        "all namespaces have the same root",
        &differing,
        hint::ROOT,
    ));
    if let Some(text) = texts.keys().next() {
        outcomes.extend(validity("root certificates are valid", text));
    }
    outcomes
}

type Roots = (Vec<String>, BTreeMap<String, String>);

async fn roots(cluster: &Cluster) -> anyhow::Result<Roots> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let labelled = list(&namespaces, &ListParams::default())
        .await?
        .into_iter()
        .filter(|namespace| namespace.metadata.labels.as_ref().is_some_and(is_labelled))
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
        .filter_map(|namespace| namespace.metadata.name)
        .collect();
    let maps: Api<ConfigMap> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={ROOT_CONFIG_MAP}"));
    let roots = list(&maps, &named).await?.into_iter().filter_map(|map| {
        let text = map.data?.remove(ROOT_KEY)?;
        Some((map.metadata.namespace?, text))
    });
    Ok((labelled, roots.collect()))
}

/// Two outcomes: valid now, and for long enough.
fn validity(description: &str, pem: &str) -> Vec<Outcome> {
    let days = match days_left(pem) {
        Ok(days) => days,
        Err(reason) => return vec![Outcome::failed(description, reason, hint::ROOT)],
    };
    if days < 0 {
        return vec![Outcome::failed(description, "it has ended", hint::ROOT_EXPIRY)];
    }
    let long = format!("{description} for at least {ROOT_DAYS} days");
    let long = if days < ROOT_DAYS {
        Outcome::warning(long, format!("{days} days are left"), hint::ROOT_EXPIRY)
    } else {
        Outcome::passed(long)
    };
    vec![Outcome::passed(description), long]
}

/// Until the first certificate ends.
fn days_left(pem: &str) -> Result<i64, String> {
    let mut least: Option<i64> = None;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("not PEM: {error}"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| error.to_string())?;
        let seconds = parsed.validity().not_after.timestamp() - Timestamp::now().as_second();
        let days = seconds.div_euclid(24 * 60 * 60);
        least = Some(least.map_or(days, |least| least.min(days)));
    }
    least.ok_or_else(|| "no certificate in it".to_owned())
}

/// Both webhooks: whether the API server can believe them, and whether they answer.
pub(super) async fn webhooks(cluster: &Cluster) -> Vec<Outcome> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let injecting = mutating.get_opt(INJECTOR).await.map(|found| {
        found.map(|found| {
            let webhooks = found.webhooks.unwrap_or_default();
            webhooks.into_iter().map(|webhook| webhook.client_config).collect()
        })
    });
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let validator = validating.get_opt(VALIDATOR).await.map(|found| {
        found.map(|found| {
            let webhooks = found.webhooks.unwrap_or_default();
            webhooks.into_iter().map(|webhook| webhook.client_config).collect()
        })
    });
    let mut outcomes = believed("the injector's webhook", INJECTOR, injecting);
    outcomes.extend(believed("the validating webhook", VALIDATOR, validator));
    outcomes.push(refuses_nonsense(cluster).await);
    outcomes
}

fn believed(what: &str, name: &str, found: kube::Result<Option<Vec<WebhookClientConfig>>>) -> Vec<Outcome> {
    let description = format!("{what} is configured");
    let configs = match found {
        Ok(Some(configs)) => configs,
        Ok(None) => {
            return vec![Outcome::failed(
                description,
                format!("{name} is not there"),
                hint::WEBHOOK,
            )];
        }
        Err(error) => return vec![Outcome::failed(description, error, hint::API)],
    };
    let bundles: Option<Vec<_>> = configs.iter().map(|config| config.ca_bundle.as_ref()).collect();
    let Some(bundles) = bundles.filter(|bundles| !bundles.is_empty()) else {
        let reason = format!("{name} has no caBundle yet: the injector has not started, or may not write it");
        return vec![Outcome::failed(description, reason, hint::WEBHOOK)];
    };
    let mut outcomes = vec![Outcome::passed(description)];
    let days = bundles
        .iter()
        .map(|bundle| days_left(&String::from_utf8_lossy(&bundle.0)));
    let wrong: Vec<_> = days
        .filter_map(|days| match days {
            Ok(0..) => None,
            Ok(_) => Some("its certificate has ended".to_owned()),
            Err(reason) => Some(reason),
        })
        .collect();
    outcomes.push(Outcome::none_wrong(
        format!("{what}'s certificate is valid"),
        &wrong,
        hint::WEBHOOK,
    ));
    outcomes
}

/// Asks for an object that makes no sense, without making it.
async fn refuses_nonsense(cluster: &Cluster) -> Outcome {
    let description = "the validating webhook refuses what cannot work";
    let resource = ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "networking.istio.io/v1".to_owned(),
        kind: "VirtualService".to_owned(),
        plural: "virtualservices".to_owned(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "default", &resource);
    let nonsense = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "name": "meshctl-check" },
        "spec": { "hosts": ["meshctl-check"], "http": [{ "route": [
            { "destination": { "host": "meshctl-check" }, "weight": -1 },
        ] }] },
    });
    let object = match serde_json::from_value(nonsense) {
        Ok(object) => object,
        Err(error) => return Outcome::failed(description, error, hint::WEBHOOK),
    };
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry_run, &object).await {
        Err(kube::Error::Api(status)) if status.message.contains("mesh.dev") => Outcome::passed(description),
        Ok(_) => Outcome::failed(
            description,
            "a negative weight was admitted: the webhook does not answer, and it fails open",
            hint::WEBHOOK,
        ),
        Err(error) => Outcome::failed(description, error, hint::WEBHOOK),
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Level;
    use super::*;

    #[test]
    fn deployments_are_ready_when_all_replicas_are() {
        let deployment = |status: Value| {
            serde_json::from_value::<Deployment>(json!({
                "spec": { "replicas": 2, "selector": {}, "template": {} }, "status": status,
            }))
            .unwrap()
        };
        assert_eq!(
            unready(&deployment(json!({ "availableReplicas": 1 }))).unwrap(),
            "1 of 2 replicas are available"
        );
        assert_eq!(
            unready(&deployment(json!({ "availableReplicas": 2, "updatedReplicas": 2 }))),
            None
        );
    }

    #[test]
    fn webhooks_need_a_bundle() {
        let none = believed("a", "b", Ok(Some(vec![WebhookClientConfig::default()])));
        assert_eq!(none[0].level, Level::Failed);
        assert_eq!(believed("a", "b", Ok(None))[0].level, Level::Failed);
    }

    #[test]
    fn what_is_no_certificate_is_said() {
        assert!(days_left("").is_err());
        assert_eq!(validity("roots", "junk")[0].level, Level::Failed);
    }
}
