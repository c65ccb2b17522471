//! The certificates in force, without their key.

use mesh_api::identity::SpiffeId;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::CertStore;

pub(super) fn page(store: &CertStore) -> Value {
    let Some(credentials) = store.current() else {
        return Value::Array(Vec::new());
    };
    let (leaf, intermediates) = match credentials.chain() {
        [leaf, intermediates @ ..] => (Some(leaf), intermediates),
        [] => (None, &[][..]),
    };
    let kinds = leaf
        .map(|leaf| ("leaf", leaf))
        .into_iter()
        .chain(intermediates.iter().map(|link| ("intermediate", link)))
        .chain(credentials.roots().iter().map(|root| ("root", root)));
    kinds
        .map(|(kind, der)| certificate(kind, der, credentials.identity()))
        .collect()
}

fn certificate(kind: &str, der: &[u8], identity: &SpiffeId) -> Value {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return json!({ "kind": kind, "error": "malformed" });
    };
    let serial: String = certificate
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let validity = certificate.validity();
    let left = validity.not_after.timestamp() - jiff::Timestamp::now().as_second();
    json!({
        "kind": kind,
        "identity": (kind == "leaf").then(|| identity.to_string()),
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "serial": serial,
        "notBefore": time(validity.not_before.timestamp()),
        "notAfter": time(validity.not_after.timestamp()),
        "secondsLeft": left,
        "valid": left > 0,
    })
}

fn time(seconds: i64) -> Value {
    jiff::Timestamp::from_second(seconds).map_or(Value::Null, |time| time.to_string().into())
}
