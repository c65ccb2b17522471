//! Fields of Kubernetes' own kinds that say how traffic is spread, and that the mesh does not act on: nothing is silently
//! ignored.

use std::sync::Arc;

use mesh_api::source::{Diagnostic, FieldPath, Finding, Position};

use crate::source::cluster::Service;

/// What of a Service has no effect on the traffic of proxies.
pub fn of_service(service: &Service) -> Vec<Diagnostic> {
    let spec = &service.spec;
    let fields = [
        ("sessionAffinity", &spec.session_affinity, "None"),
        ("internalTrafficPolicy", &spec.internal_traffic_policy, "Cluster"),
        ("trafficDistribution", &spec.traffic_distribution, ""),
    ];
    let set = fields
        .into_iter()
        .filter(|(_, value, default)| !value.is_empty() && value != default);
    let origin: Arc<str> = format!("Service {}/{}", service.metadata.namespace, service.metadata.name).into();
    set.map(|(field, value, _)| {
        let instead = match field {
            "sessionAffinity" => "; use consistentHash of a DestinationRule",
            _ => "",
        };
        let message = format!("{value} has no effect on traffic from pods of the mesh{instead}");
        let finding = Finding::warning(FieldPath::new("spec").field(field), "not-supported-yet", message);
        Diagnostic {
            line: 0,
            column: 0,
            ..finding.into_diagnostic(&origin, Position::START, None)
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_from_the_default_is_said() {
        let rows = [
            (json!({}), None),
            (
                json!({ "sessionAffinity": "None", "internalTrafficPolicy": "Cluster" }),
                None,
            ),
            (json!({ "sessionAffinity": "ClientIP" }), Some("spec.sessionAffinity")),
            (
                json!({ "internalTrafficPolicy": "Local" }),
                Some("spec.internalTrafficPolicy"),
            ),
            (
                json!({ "trafficDistribution": "PreferClose" }),
                Some("spec.trafficDistribution"),
            ),
        ];
        for (spec, expected) in rows {
            let service = json!({ "metadata": { "name": "a", "namespace": "ns" }, "spec": spec });
            let found = of_service(&serde_json::from_value(service).unwrap());
            let fields: Vec<_> = found.iter().map(|diagnostic| diagnostic.field.as_str()).collect();
            assert_eq!(fields, expected.into_iter().collect::<Vec<_>>(), "{spec}");
            assert!(
                found
                    .iter()
                    .all(|diagnostic| diagnostic.to_string().starts_with("Service ns/a: warning: "))
            );
        }
    }
}
