//! [`MeshSettings`] to and from `mesh.v1.MeshSettings`.

use super::field::{self, FieldError, InField, each, each_value, optional};
use super::proto::{self, access_log::Format};
use super::text::{decode_range, encode_range};
use crate::identity::TrustDomain;
use crate::model::{AccessLog, AccessLogFormat, MeshSettings, OutboundPolicy, Owned, Tracing};

pub(super) fn encode(settings: &MeshSettings) -> proto::MeshSettings {
    proto::MeshSettings {
        trust_domain: settings.trust_domain.to_string(),
        trust_domain_aliases: settings.trust_domain_aliases.iter().map(ToString::to_string).collect(),
        owned_ranges: settings.owned.ranges.iter().map(encode_range).collect(),
        owned_host_suffixes: field::strings(&settings.owned.host_suffixes),
        owned_short_names: settings.owned.short_names,
        outbound_policy: match settings.outbound_policy {
            OutboundPolicy::AllowAny => proto::OutboundPolicy::AllowAny,
            OutboundPolicy::RegistryOnly => proto::OutboundPolicy::RegistryOnly,
        }
        .into(),
        access_log: settings.access_log.as_ref().map(encode_access_log),
        tracing: settings.tracing.as_ref().map(|tracing| proto::Tracing {
            endpoint: tracing.endpoint.to_string(),
            sampling_per_million: tracing.sampling.per_million(),
        }),
    }
}

pub(super) fn decode(mesh: proto::MeshSettings) -> Result<MeshSettings, FieldError> {
    let domain = |text: String| text.parse::<TrustDomain>();
    Ok(MeshSettings {
        trust_domain: domain(mesh.trust_domain).field("trust_domain")?,
        trust_domain_aliases: each_value("trust_domain_aliases", mesh.trust_domain_aliases, domain)?,
        owned: Owned {
            ranges: each("owned_ranges", mesh.owned_ranges, decode_range)?,
            host_suffixes: field::shared_all(mesh.owned_host_suffixes),
            short_names: mesh.owned_short_names,
        },
        outbound_policy: match field::known("outbound_policy", mesh.outbound_policy)? {
            proto::OutboundPolicy::Unspecified => return field::unspecified("outbound_policy"),
            proto::OutboundPolicy::AllowAny => OutboundPolicy::AllowAny,
            proto::OutboundPolicy::RegistryOnly => OutboundPolicy::RegistryOnly,
        },
        access_log: optional("access_log", mesh.access_log, decode_access_log)?,
        tracing: optional("tracing", mesh.tracing, |tracing| {
            Ok(Tracing {
                endpoint: tracing.endpoint.into(),
                sampling: field::percentage("sampling_per_million", tracing.sampling_per_million)?,
            })
        })?,
    })
}

fn encode_access_log(log: &AccessLog) -> proto::AccessLog {
    let format = match &log.format {
        AccessLogFormat::Text(None) => Format::DefaultText(true),
        AccessLogFormat::Text(Some(format)) => Format::Text(format.to_string()),
        AccessLogFormat::Json => Format::Json(true),
    };
    proto::AccessLog {
        path: log.path.to_string(),
        format: Some(format),
    }
}

fn decode_access_log(log: proto::AccessLog) -> Result<AccessLog, FieldError> {
    Ok(AccessLog {
        path: log.path.into(),
        format: match log.format {
            Some(Format::DefaultText(_)) => AccessLogFormat::Text(None),
            Some(Format::Text(format)) => AccessLogFormat::Text(Some(format.into())),
            Some(Format::Json(_)) => AccessLogFormat::Json,
            None => return field::unspecified("format"),
        },
    })
}
