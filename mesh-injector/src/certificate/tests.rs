//! Generations of certificates under a clock of the tests' own.

use super::*;

const TTL: Duration = Duration::from_secs(90 * 24 * 3600);

fn names() -> Vec<String> {
    vec!["mesh-injector.mesh-system.svc".to_owned(), "other.example".to_owned()]
}

/// A moment of a year to come: nothing here may look at the real clock.
fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(3_000_000_000)
}

fn authorities(serving: &Serving) -> Vec<CertificateDer<'static>> {
    certificates(CA, &serving.ca_pem).unwrap()
}

/// Whether a client with this bundle takes that certificate.
fn trusts(bundle: &Serving, serving: &Serving, now: SystemTime) -> bool {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    verify(&serving.key.cert, &authorities(bundle), &names(), now, &provider).is_ok()
}

#[test]
fn a_certificate_survives_its_secret() {
    let serving = Serving::issue(&names(), start(), TTL, None).unwrap();
    let read = Serving::parse(&serving.data(), &names(), start()).unwrap();
    assert!(read.is_same(&serving));
    assert_eq!(read.renew_at(), start() + TTL * 2 / 3);
    assert_eq!(read.not_after(), start() + TTL);
    assert!(trusts(&read, &serving, start() - BACKDATE / 2), "clocks may be behind");
}

#[test]
fn generations_trust_each_other_while_they_live() {
    let mut now = start();
    let mut old = Serving::issue(&names(), now, TTL, None).unwrap();
    for _ in 0..5 {
        now = old.renew_at();
        let new = Serving::issue(&names(), now, TTL, Some(&old)).unwrap();
        assert!(!new.is_same(&old));
        assert!(
            trusts(&new, &old, now),
            "replicas that show the old one are still trusted"
        );
        assert!(trusts(&new, &new, now));
        assert!(
            !trusts(&old, &new, now),
            "who has not heard of the new one refuses it: it must not be shown yet"
        );
        assert_eq!(authorities(&new).len(), 2, "authorities whose time is over are dropped");
        old = Serving::parse(&new.data(), &names(), now).unwrap();
    }
    for _ in 0..10 {
        old = Serving::issue(&names(), now, TTL, Some(&old)).unwrap();
    }
    assert_eq!(authorities(&old).len(), MAX_AUTHORITIES);
}

#[test]
fn what_is_of_no_use() {
    let now = start();
    let serving = Serving::issue(&names(), now, TTL, None).unwrap();
    let other = Serving::issue(&names(), now, TTL, None).unwrap();
    let good = serving.data();
    let with = |key: &str, value: Option<&[u8]>| {
        let mut data = good.clone();
        match value {
            Some(value) => data.insert(key.to_owned(), ByteString(value.to_vec())),
            None => data.remove(key),
        };
        Serving::parse(&data, &names(), now).unwrap_err().to_string()
    };
    for (key, value, part) in [
        (CA, None, "ca.crt is missing"),
        (CERTIFICATE, None, "tls.crt is missing"),
        (KEY, None, "tls.key is missing"),
        (CA, Some(&b"\xff"[..]), "ca.crt is no text"),
        (CERTIFICATE, Some(b"nonsense"), "tls.crt holds no certificate"),
        (
            CERTIFICATE,
            Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "tls.crt",
        ),
        (KEY, Some(b"nonsense"), "tls.key"),
        (
            KEY,
            Some(other.key_pem.as_bytes()),
            "tls.key does not belong to tls.crt",
        ),
        (CA, Some(other.ca_pem.as_bytes()), "tls.crt is not valid"),
    ] {
        let message = with(key, value);
        assert!(message.contains(part), "{message}");
    }
    assert!(Serving::parse(&good, &["another.example".to_owned()], now).is_err());
    assert!(Serving::parse(&good, &names(), now + TTL + Duration::from_secs(1)).is_err());
    assert!(Serving::issue(&["no name".to_owned()], now, TTL, None).is_err());
}
