//! What the demo prints when everything serves: a table and commands to copy, or one line of JSON.

use std::path::Path;

use serde_json::{Value, json};

use super::processes::{ControlPlane, Running};
use super::shop;
use crate::output::{rendered, table};

/// The policy that the demo proposes.
const PROPOSAL: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {host: reviews, subset: v1}
      weight: 90
    - destination: {host: reviews, subset: v2}
      weight: 10
";

/// Everything that is printed about a run.
pub struct Report<'a> {
    /// The control plane.
    pub control_plane: &'a ControlPlane,
    /// All workloads.
    pub workloads: &'a [Running],
    /// The policy directory.
    pub policies: &'a Path,
    /// Where logs are.
    pub logs: &'a Path,
    /// This program.
    pub program: &'a Path,
}

impl Report<'_> {
    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut rows = table(["WORKLOAD", "IDENTITY", "ADDRESS", "ADMIN"]);
        for running in self.workloads {
            let workload = &running.workload;
            rows.add_row([
                workload.name.to_owned(),
                workload.identity.to_string(),
                workload.inbound.to_string(),
                format!("http://{}", workload.admin),
            ]);
        }
        let client = self
            .workloads
            .iter()
            .find(|running| running.workload.name == shop::CLIENT);
        let proxy = client.map_or_else(String::new, |running| running.workload.outbound.to_string());
        let file = absolute(self.policies).join("reviews.yaml");
        format!(
            "{table}\n\
             Policy directory: {policies} (changes take effect within a second)\n\
             Logs: {logs}\n\n\
             Call a service through the client's sidecar:\n\n  \
             curl -x http://{proxy} {reviews}\n\n\
             Send a tenth of the traffic to another version:\n\n  \
             cat > {file} <<'EOF'\n{PROPOSAL}EOF\n\n\
             See what the sidecars hold:\n\n  \
             {program} proxy-status --control-plane http://{status}\n\n\
             Ctrl-C stops everything.\n",
            table = rendered(&rows),
            policies = self.policies.display(),
            logs = self.logs.display(),
            reviews = shop::REVIEWS,
            file = quoted(&file),
            program = quoted(self.program),
            status = self.control_plane.status,
        )
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let workloads = self.workloads.iter().map(|running| {
            let workload = &running.workload;
            json!({
                "name": workload.name,
                "namespace": shop::NAMESPACE,
                "service": workload.service,
                "version": workload.version,
                "identity": workload.identity.as_str(),
                "inbound_address": workload.inbound.to_string(),
                "app_address": workload.app.to_string(),
                "proxy_url": format!("http://{}", workload.outbound),
                "admin_url": format!("http://{}", workload.admin),
                "metrics_url": format!("http://{}/stats/prometheus", workload.metrics),
                "readiness_url": format!("http://{}/healthz/ready", workload.readiness),
                "sidecar_pid": running.sidecar_pid(),
                "app_pid": running.app_pid(),
                "logs": { "sidecar": running.sidecar_log, "app": running.app_log },
            })
        });
        json!({
            "workloads": workloads.collect::<Vec<_>>(),
            "policies": absolute(self.policies),
            "control_plane": {
                "address": self.control_plane.address.to_string(),
                "status_url": format!("http://{}", self.control_plane.status),
                "pid": self.control_plane.pid(),
                "log": self.control_plane.log,
            },
        })
    }
}

/// A path that works from anywhere.
fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proposal_is_right() {
        let contents = mesh_api::source::read("reviews.yaml", PROPOSAL.as_bytes(), "default");
        assert_eq!(contents.diagnostics, []);
        assert_eq!(mesh_api::validate::analyze(&contents.objects[0]), []);
    }

    #[test]
    fn paths_are_quoted_when_a_shell_needs_it() {
        assert_eq!(
            quoted(Path::new("/tmp/mesh-demo-1/policies")),
            "/tmp/mesh-demo-1/policies"
        );
        assert_eq!(quoted(Path::new("/home/a b/it's")), r"'/home/a b/it'\''s'");
    }
}
