use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// The first flight of a rustls client.
pub(crate) fn client_hello(sni: &str, alpn: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = sni.to_owned().try_into().unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name)
        .unwrap()
        .write_tls(&mut bytes)
        .unwrap();
    bytes
}

/// The same message in records of `size` bytes.
fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for fragment in hello[5..].chunks(size) {
        out.extend_from_slice(&[22, 3, 1]);
        out.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        out.extend_from_slice(fragment);
    }
    out
}

#[test]
fn a_real_hello_is_read_once_it_is_whole() {
    let sni = "outbound_.9080_.v1_.reviews.default.svc.cluster.local";
    let bytes = client_hello(sni, &["istio-http/1.1", "istio", "http/1.1"]);
    for length in 0..bytes.len() {
        let certain = length >= 6;
        assert_eq!(sniff(&bytes[..length]), Ok(Sniffed::NeedMore { certain }), "{length}");
    }
    let Ok(Sniffed::Hello(hello)) = sniff(&bytes) else {
        panic!()
    };
    assert_eq!(
        hello.sni.as_deref(),
        Some(sni),
        "underscores go out and come in as they are"
    );
    assert_eq!(
        hello.alpn,
        [b"istio-http/1.1".to_vec(), b"istio".to_vec(), b"http/1.1".to_vec()]
    );

    for size in [1, 3, 100] {
        assert_eq!(
            sniff(&fragmented(&bytes, size)),
            Ok(Sniffed::Hello(hello.clone())),
            "records of {size}"
        );
    }
    let mut followed = bytes.clone();
    followed.extend_from_slice(b"early data");
    assert_eq!(sniff(&followed), Ok(Sniffed::Hello(hello)));
}

#[test]
fn without_extensions_nothing_is_offered() {
    let bytes = client_hello("127.0.0.1", &[]);
    assert_eq!(sniff(&bytes), Ok(Sniffed::Hello(Hello::default())));
}

#[test]
fn what_the_mesh_carries_is_read_from_the_offer() {
    for (offered, carries) in [
        (vec!["istio-http/1.1", "istio", "http/1.1"], Some(AlpnKind::Http1)),
        (vec!["istio-http/1.0"], Some(AlpnKind::Http1)),
        (vec!["istio-h2", "istio", "h2"], Some(AlpnKind::Http2)),
        (vec!["istio"], Some(AlpnKind::Tcp)),
        (vec!["istio-peer-exchange", "istio"], Some(AlpnKind::Tcp)),
        (vec!["h2", "http/1.1"], None),
        (vec![], None),
    ] {
        let hello = Hello {
            sni: None,
            alpn: offered.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        assert_eq!(hello.mesh_protocol(), carries, "{offered:?}");
    }
}

#[test]
fn other_protocols_are_not_tls() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x02\x01\x00\x10\x01",
        b"\x16\x03\x05\x00\x10\x01",
        b"\x16\x03\x01\x00\x00\x01",
        b"\x16\x03\x01\x50\x00\x01",
        b"\x16\x03\x01\x00\x10\x02",
        b"\x17\x03\x03\x00\x10\x01",
        b"\x80\x2e\x01\x03\x01",
    ] {
        assert_eq!(sniff(bytes), Ok(Sniffed::NotTls), "{bytes:02x?}");
    }
}

#[test]
fn malformed_hellos_are_errors() {
    let good = client_hello("example.test", &["istio"]);
    let mut too_long = good.clone();
    too_long[6] = 1; // a message of 64 KiB and more
    assert!(sniff(&too_long).is_err());

    let mut session_id = good.clone();
    session_id[5 + 4 + 34] = 255;
    let mut body = session_id;
    body.truncate(5 + 4 + 60);
    let length = u8::try_from(body.len() - 9).unwrap();
    (body[3], body[4], body[6], body[7], body[8]) = (0, length + 4, 0, 0, length);
    assert!(sniff(&body).is_err(), "a vector longer than the message");

    let mut interrupted = fragmented(&good, 50);
    interrupted[55] = 23;
    assert!(sniff(&interrupted).is_err(), "application data inside the hello");

    let drip = fragmented(&[1; 200], 1);
    let mut endless = vec![22, 3, 1, 0, 4, 1, 0, 0x40, 0];
    while endless.len() < MAX_SNIFFED {
        endless.extend_from_slice(&drip);
    }
    assert!(sniff(&endless).is_err(), "bounded");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = sniff(&bytes);
    }

    #[test]
    fn arbitrary_hello_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..512), size in 1_usize..64) {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        let mut message = vec![22, 3, 1, 0, 0, 1, 0, length[0], length[1]];
        message.extend_from_slice(&body);
        prop_assert!(!matches!(sniff(&fragmented(&message, size)), Ok(Sniffed::NotTls)));
    }

    #[test]
    fn flipped_bytes_never_panic(position in 0_usize..200, value in any::<u8>()) {
        let mut bytes = client_hello("outbound_.80_._.a.b", &["istio-h2", "istio"]);
        let position = position % bytes.len();
        bytes[position] = value;
        let _ = sniff(&bytes);
    }

    #[test]
    fn protocols_and_names_survive(names in proptest::collection::vec("[a-z/0-9.-]{1,20}", 1..6)) {
        let offered: Vec<&str> = names.iter().map(String::as_str).collect();
        let Ok(Sniffed::Hello(hello)) = sniff(&client_hello("a.example", &offered)) else {
            return Err(TestCaseError::fail("not a hello"));
        };
        prop_assert_eq!(hello.alpn, names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>());
    }
}
