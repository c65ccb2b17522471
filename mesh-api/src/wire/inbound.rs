//! [`Inbound`] to and from `mesh.v1.Inbound`.

use std::sync::Arc;

use super::field::{self, FieldError, each, required};
use super::{authorization, endpoint, proto, traffic};
use crate::model::{Inbound, InboundPort, MtlsMode};

pub(super) fn encode(inbound: &Inbound) -> proto::Inbound {
    proto::Inbound {
        workload: Some(endpoint::encode_workload(&inbound.workload)),
        ports: inbound
            .ports
            .iter()
            .map(|port| proto::InboundPort {
                port: port.port.into(),
                protocol: traffic::encode_protocol(port.protocol),
                mtls: encode_mode(port.mtls),
                services: port.services.iter().map(field::encode_service).collect(),
            })
            .collect(),
        default_mtls: encode_mode(inbound.default_mtls),
        authorization: inbound.authorization.iter().map(authorization::encode).collect(),
    }
}

pub(super) fn decode(inbound: proto::Inbound) -> Result<Inbound, FieldError> {
    Ok(Inbound {
        workload: Arc::new(required("workload", inbound.workload, endpoint::decode_workload)?),
        ports: each("ports", inbound.ports, |port| {
            Ok(InboundPort {
                port: field::port("port", port.port)?,
                protocol: traffic::decode_protocol(port.protocol)?,
                mtls: decode_mode("mtls", port.mtls)?,
                services: each("services", port.services, field::decode_service)?,
            })
        })?,
        default_mtls: decode_mode("default_mtls", inbound.default_mtls)?,
        authorization: each("authorization", inbound.authorization, authorization::decode)?,
    })
}

fn encode_mode(mode: MtlsMode) -> i32 {
    match mode {
        MtlsMode::Disable => proto::MtlsMode::Disable,
        MtlsMode::Permissive => proto::MtlsMode::Permissive,
        MtlsMode::Strict => proto::MtlsMode::Strict,
    }
    .into()
}

fn decode_mode(field: &str, mode: i32) -> Result<MtlsMode, FieldError> {
    match field::known(field, mode)? {
        proto::MtlsMode::Unspecified => field::unspecified(field),
        proto::MtlsMode::Disable => Ok(MtlsMode::Disable),
        proto::MtlsMode::Permissive => Ok(MtlsMode::Permissive),
        proto::MtlsMode::Strict => Ok(MtlsMode::Strict),
    }
}
