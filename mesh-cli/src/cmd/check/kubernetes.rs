//! Whether there is a cluster to talk to, and whether it is new enough.

use super::outcome::{Outcome, hint};
use crate::cluster::{Access, Cluster};

/// The oldest Kubernetes that the mesh is made for: Leases, EndpointSlices and `admission.k8s.io/v1` are served, and
/// pods may have sidecars of either kind.
const OLDEST: (u32, u32) = (1, 25);
/// The first with native sidecars switched on.
const NATIVE_SIDECARS: (u32, u32) = (1, 29);

/// Connects; a cluster when there is one to go on with.
pub(super) async fn api(access: &Access) -> (Option<Cluster>, Vec<Outcome>) {
    let initialize = "can initialize the client";
    let cluster = match access.connect().await {
        Ok(cluster) => cluster,
        Err(error) => return (None, vec![Outcome::failed(initialize, format!("{error:#}"), hint::API)]),
    };
    let mut outcomes = vec![Outcome::passed(initialize)];
    let query = "can query the Kubernetes API";
    let version = match cluster.client.apiserver_version().await {
        Ok(version) => version,
        Err(error) => {
            outcomes.push(Outcome::failed(query, error, hint::API));
            return (None, outcomes);
        }
    };
    outcomes.push(Outcome::passed(query));
    outcomes.push(new_enough(&version.git_version));
    (Some(cluster), outcomes)
}

fn new_enough(version: &str) -> Outcome {
    let description = format!("is running Kubernetes {}.{} or newer", OLDEST.0, OLDEST.1);
    match parse(version) {
        None => Outcome::warning(
            description,
            format!("version `{version}` is not understood"),
            hint::VERSION,
        ),
        Some(found) if found < OLDEST => Outcome::failed(description, format!("it is {version}"), hint::VERSION),
        Some(found) if found < NATIVE_SIDECARS => Outcome::warning(
            description,
            format!(
                "it is {version}: before {}.{} there are no native sidecars, so Jobs need care",
                NATIVE_SIDECARS.0, NATIVE_SIDECARS.1
            ),
            hint::VERSION,
        ),
        Some(_) => Outcome::passed(description),
    }
}

/// Major and minor of `v1.35.4` or `v1.27.3-gke.100`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let number = |part: &str| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    };
    Some((number(parts.next()?)?, number(parts.next()?)?))
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Level;
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse("v1.35.4"), Some((1, 35)));
        assert_eq!(parse("v1.27+"), Some((1, 27)));
        assert_eq!(parse("x"), None);
        let level = |version| new_enough(version).level;
        assert_eq!(level("v1.35.4"), Level::Passed);
        assert_eq!(level("v1.27.1-gke.5"), Level::Warning);
        assert_eq!(level("v1.19.0"), Level::Failed);
    }
}
