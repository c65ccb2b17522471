//! What checks say, and how it is shown.

use std::fmt::Write as _;

use serde::Serialize;

/// Where hints are: a heading of this page for each.
const GUIDE: &str = "https://github.com/mesh-dev/mesh/blob/main/docs/troubleshooting.md";

/// The headings that checks lead to.
#[cfg(test)]
pub(super) const HINTS: &[&str] = &[
    hint::API,
    hint::VERSION,
    hint::PERMISSIONS,
    hint::INSTALLED,
    hint::OTHER_MESH,
    hint::ISTIO_CRDS,
    hint::POD_SECURITY,
    hint::CONTROL_PLANE,
    hint::CRDS,
    hint::MESH_CONFIG,
    hint::VERSIONS,
    hint::ROOT,
    hint::ROOT_EXPIRY,
    hint::ROOT_CONFIG_MAP,
    hint::WEBHOOK,
    hint::PROXIES,
    hint::NOT_INJECTED,
    hint::NOT_SYNCED,
    hint::POLICY,
];

/// Headings of the guide.
pub(super) mod hint {
    pub const API: &str = "check-api";
    pub const VERSION: &str = "check-version";
    pub const PERMISSIONS: &str = "check-permissions";
    pub const INSTALLED: &str = "check-installed";
    pub const OTHER_MESH: &str = "check-other-mesh";
    pub const ISTIO_CRDS: &str = "check-istio-crds";
    pub const POD_SECURITY: &str = "check-pod-security";
    pub const CONTROL_PLANE: &str = "check-control-plane";
    pub const CRDS: &str = "check-crds";
    pub const MESH_CONFIG: &str = "check-mesh-config";
    pub const VERSIONS: &str = "check-versions";
    pub const ROOT: &str = "check-root";
    pub const ROOT_EXPIRY: &str = "check-root-expiry";
    pub const ROOT_CONFIG_MAP: &str = "check-root-config-map";
    pub const WEBHOOK: &str = "check-webhook";
    pub const PROXIES: &str = "check-proxies";
    pub const NOT_INJECTED: &str = "check-not-injected";
    pub const NOT_SYNCED: &str = "check-not-synced";
    pub const POLICY: &str = "check-policy";
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Well.
    #[serde(rename = "success")]
    Passed,
    /// It works, but not as it should.
    Warning,
    /// It does not work.
    #[serde(rename = "error")]
    Failed,
}

impl Level {
    pub(super) fn sign(self, colourful: bool) -> String {
        let (sign, colour) = match self {
            Self::Passed => ("√", 32),
            Self::Warning => ("‼", 33),
            Self::Failed => ("×", 31),
        };
        if colourful {
            format!("\x1b[{colour}m{sign}\x1b[0m")
        } else {
            sign.to_owned()
        }
    }

    /// Of several checks.
    pub(super) fn worst(outcomes: &[Outcome]) -> Self {
        outcomes
            .iter()
            .map(|outcome| outcome.level)
            .max()
            .unwrap_or(Self::Passed)
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Outcome {
    pub description: String,
    #[serde(rename = "result")]
    pub level: Level,
    /// Why it is not well.
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Outcome {
    pub(super) fn passed(description: impl Into<String>) -> Self {
        Self {
            description: description.into(),
            level: Level::Passed,
            reason: None,
            hint: None,
        }
    }

    pub(super) fn failed(description: impl Into<String>, reason: impl ToString, hint: &str) -> Self {
        Self::not_well(Level::Failed, description.into(), reason.to_string(), hint)
    }

    pub(super) fn warning(description: impl Into<String>, reason: impl ToString, hint: &str) -> Self {
        Self::not_well(Level::Warning, description.into(), reason.to_string(), hint)
    }

    fn not_well(level: Level, description: String, reason: String, hint: &str) -> Self {
        Self {
            description,
            level,
            reason: Some(reason),
            hint: Some(format!("{GUIDE}#{hint}")),
        }
    }

    /// Passed when nothing is wrong, else failed with all that is.
    pub(super) fn none_wrong(description: impl Into<String>, wrong: &[String], hint: &str) -> Self {
        Self::unless(Level::Failed, description.into(), wrong, hint)
    }

    /// As [`Self::none_wrong`], but it only warns.
    pub(super) fn none_doubtful(description: impl Into<String>, doubtful: &[String], hint: &str) -> Self {
        Self::unless(Level::Warning, description.into(), doubtful, hint)
    }

    fn unless(level: Level, description: String, wrong: &[String], hint: &str) -> Self {
        /// More than this nobody reads.
        const SHOWN: usize = 10;
        if wrong.is_empty() {
            return Self::passed(description);
        }
        let mut reason = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
        if wrong.len() > SHOWN {
            let _ = write!(reason, "\nand {} more", wrong.len() - SHOWN);
        }
        Self::not_well(level, description, reason, hint)
    }
}

/// Checks that belong together.
#[derive(Debug, Serialize)]
pub(super) struct Category {
    #[serde(rename = "categoryName")]
    pub name: &'static str,
    #[serde(rename = "checks")]
    pub outcomes: Vec<Outcome>,
}

impl Category {
    /// As text; `all`, or only what is not well. Nothing where there is nothing to show.
    pub(super) fn shown(&self, colourful: bool, all: bool) -> String {
        let mut text = String::new();
        for outcome in self.outcomes.iter().filter(|o| all || o.level != Level::Passed) {
            let _ = writeln!(text, "{} {}", outcome.level.sign(colourful), outcome.description);
            for line in outcome.reason.iter().flat_map(|reason| reason.lines()) {
                let _ = writeln!(text, "    {line}");
            }
            if let Some(hint) = &outcome.hint {
                let _ = writeln!(text, "    see {hint} for hints");
            }
        }
        if text.is_empty() {
            return text;
        }
        format!("{}\n{}\n{text}\n", self.name, "-".repeat(self.name.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_look_as_users_of_linkerd_know_them() {
        let category = Category {
            name: "kubernetes-api",
            outcomes: vec![
                Outcome::passed("can initialize the client"),
                Outcome::failed("can query the Kubernetes API", "connection refused", hint::API),
            ],
        };
        assert_eq!(
            category.shown(false, true),
            "kubernetes-api\n--------------\n√ can initialize the client\n× can query the Kubernetes API\n    connection \
             refused\n    see https://github.com/mesh-dev/mesh/blob/main/docs/troubleshooting.md#check-api for hints\n\n"
        );
        assert!(!category.shown(false, false).contains("initialize"));
        assert!(category.shown(true, true).contains("\x1b[31m×"));
    }

    #[test]
    fn long_lists_are_cut() {
        let wrong: Vec<_> = (0..12).map(|i| format!("pod-{i}")).collect();
        let outcome = Outcome::none_doubtful("pods are injected", &wrong, hint::NOT_INJECTED);
        assert!(outcome.reason.unwrap().ends_with("pod-9\nand 2 more"));
        assert_eq!(Outcome::none_wrong("a", &[], hint::API).level, Level::Passed);
    }
}
