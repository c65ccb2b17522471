//! What the types of the configuration cannot say: values that no pod could start with.

use std::collections::BTreeMap;

use mesh_api::identity::{SpiffeId, TrustDomain};

use super::{InjectorConfig, ProbeTimes, Resources};
use crate::inject::capture;
use crate::{quantity, selector};

/// The shortest life of a token that the API server gives.
const MIN_TOKEN_SECONDS: i64 = 600;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// Not YAML, or a key or type that does not exist.
    #[error("{0}")]
    Syntax(#[from] serde_saphyr::Error),
    /// A value that cannot work.
    #[error("{key}: {reason}")]
    Value {
        /// The key, from the root.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl InjectorConfig {
    /// Checks what the reader cannot.
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        let domain = self.trust_domain.parse::<TrustDomain>();
        let domain = domain.map_err(|e| invalid("trustDomain", e))?;
        image("images.proxy", &self.images.proxy)?;
        image("images.init", self.init_image())?;
        one_of(
            "imagePullPolicy",
            &self.image_pull_policy,
            &["Always", "IfNotPresent", "Never"],
        )?;
        name("meshNamespace", &self.mesh_namespace)?;
        name("rootCertConfigMap", &self.root_cert_config_map)?;
        name("revision", &self.revision)?;
        for secret in &self.image_pull_secrets {
            name("imagePullSecrets", secret)?;
        }
        if self.token_audience.is_empty() {
            return Err(invalid(
                "tokenAudience",
                "it is empty; the control plane expects mesh-ca",
            ));
        }
        if self.token_expiration_seconds < MIN_TOKEN_SECONDS {
            let reason = format!("{}: at least {MIN_TOKEN_SECONDS}", self.token_expiration_seconds);
            return Err(invalid("tokenExpirationSeconds", reason));
        }
        let address = self.control_plane_address();
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Err(invalid(
                "controlPlane.address",
                format!("{address:?}: expected host:port"),
            ));
        }
        let identity = self.control_plane_identity();
        let parts = identity.split_once('/');
        if parts.is_none_or(|(namespace, account)| SpiffeId::new(&domain, namespace, account).is_err()) {
            let reason = format!("{identity:?}: expected <namespace>/<service account>");
            return Err(invalid("controlPlane.identity", reason));
        }
        self.check_proxy()?;
        resources("init.resources", &self.init.resources)?;
        self.check_interception()?;
        for (key, selectors) in [
            ("alwaysInjectSelector", &self.always_inject_selector),
            ("neverInjectSelector", &self.never_inject_selector),
        ] {
            for (index, selector) in selectors.iter().enumerate() {
                selector::check(selector).map_err(|e| invalid(&format!("{key}[{index}]"), e))?;
            }
        }
        Ok(())
    }

    fn check_proxy(&self) -> Result<(), InvalidConfig> {
        let proxy = &self.proxy;
        resources("proxy.resources", &proxy.resources)?;
        if crate::inject::log_filter(&proxy.log_level).is_none() {
            let reason = format!(
                "{:?}: expected trace, debug, info, warning, error or off",
                proxy.log_level
            );
            return Err(invalid("proxy.logLevel", reason));
        }
        if proxy.concurrency.is_some_and(|workers| !(1..=256).contains(&workers)) {
            return Err(invalid("proxy.concurrency", "from 1 to 256"));
        }
        if format!("{}:15090", proxy.listen_address)
            .parse::<std::net::SocketAddr>()
            .is_err()
        {
            let reason = format!("{:?}: expected 0.0.0.0 or [::]", proxy.listen_address);
            return Err(invalid("proxy.listenAddress", reason));
        }
        probe("proxy.readiness", &proxy.readiness)?;
        probe("proxy.startup", &proxy.startup)?;
        for key in proxy.env.keys() {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(invalid("proxy.env", format!("{key:?} is no name of a variable")));
            }
        }
        Ok(())
    }

    fn check_interception(&self) -> Result<(), InvalidConfig> {
        let set = &self.interception;
        for (key, text) in [
            ("interception.includeInboundPorts", &set.include_inbound_ports),
            ("interception.includeOutboundPorts", &set.include_outbound_ports),
        ] {
            capture::ports_or_all(text).map_err(|e| invalid(key, e))?;
        }
        for (key, text) in [
            ("interception.excludeInboundPorts", &set.exclude_inbound_ports),
            ("interception.excludeOutboundPorts", &set.exclude_outbound_ports),
        ] {
            capture::ports(text).map_err(|e| invalid(key, e))?;
        }
        capture::ranges_or_all(&set.include_outbound_ranges)
            .map_err(|e| invalid("interception.includeOutboundIPRanges", e))?;
        capture::ranges(&set.exclude_outbound_ranges)
            .map_err(|e| invalid("interception.excludeOutboundIPRanges", e))?;
        capture::interfaces(&set.exclude_interfaces).map_err(|e| invalid("interception.excludeInterfaces", e))?;
        Ok(())
    }
}

fn invalid(key: &str, reason: impl ToString) -> InvalidConfig {
    InvalidConfig::Value {
        key: key.to_owned(),
        reason: reason.to_string(),
    }
}

/// What registries take; enough to find templates that were not filled in.
pub(crate) fn is_image(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/' | b':' | b'@' | b'+'))
}

fn image(key: &str, text: &str) -> Result<(), InvalidConfig> {
    if is_image(text) {
        Ok(())
    } else {
        Err(invalid(key, format!("{text:?} is no name of an image")))
    }
}

fn one_of(key: &str, text: &str, known: &[&str]) -> Result<(), InvalidConfig> {
    if known.contains(&text) {
        Ok(())
    } else {
        Err(invalid(key, format!("{text:?}: expected one of {}", known.join(", "))))
    }
}

fn name(key: &str, text: &str) -> Result<(), InvalidConfig> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed) {
        Ok(())
    } else {
        Err(invalid(key, format!("{text:?} is no name of an object")))
    }
}

fn probe(key: &str, times: &ProbeTimes) -> Result<(), InvalidConfig> {
    if times.initial_delay_seconds >= 0 && times.period_seconds >= 1 && times.failure_threshold >= 1 {
        Ok(())
    } else {
        let reason = "periodSeconds and failureThreshold are 1 or more, initialDelaySeconds 0 or more";
        Err(invalid(key, reason))
    }
}

fn resources(key: &str, resources: &Resources) -> Result<(), InvalidConfig> {
    for (part, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        for (name, amount) in amounts {
            quantity::parse(amount).map_err(|e| invalid(&format!("{key}.{part}.{name}"), e))?;
        }
    }
    if let Some(name) = exceeded(&resources.requests, &resources.limits) {
        let reason = format!("the request for {name} is more than its limit");
        return Err(invalid(key, reason));
    }
    Ok(())
}

/// The resource whose request is more than its limit, which the API server refuses.
pub(crate) fn exceeded<'a>(
    requests: &'a BTreeMap<String, String>,
    limits: &BTreeMap<String, String>,
) -> Option<&'a str> {
    requests
        .iter()
        .find(|(name, request)| {
            let limit = limits.get(*name).map(|limit| quantity::parse(limit));
            matches!((quantity::parse(request), limit), (Ok(request), Some(Ok(limit))) if request > limit)
        })
        .map(|(name, _)| name.as_str())
}
