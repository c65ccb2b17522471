//! What is hashed, row by row.

use http::Request;

use super::*;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 5));

fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn hash(key: HashKey, uri: &str, headers: &[(&str, &str)]) -> Hashed {
    hash_of(&HashPolicy { key }, &parts(uri, headers), CLIENT)
}

fn cookie_key(ttl: Option<u64>) -> HashKey {
    HashKey::Cookie {
        name: "user".into(),
        path: Some("/shop".into()),
        ttl: ttl.map(Duration::from_secs),
    }
}

#[test]
fn xxhash_is_xxhash() {
    for (text, seed, hash) in [
        ("", 0, 0xef46_db37_51d8_e999),
        ("a", 0, 0xd24e_c4f1_a98c_6e5b),
        ("abc", 0, 0x44bc_2cf5_ad77_0999),
        ("Nobody inspects the spammish repetition", 0, 0xfbce_a83c_8a37_8bf1),
        ("xxhash", 20_141_025, 0xb559_b98d_844e_0635),
    ] {
        assert_eq!(xxh64(text.as_bytes(), seed), hash, "{text}");
    }
}

#[test]
fn each_source() {
    let of = |text: &str| Some(xxh64(text.as_bytes(), 0));
    let header = || HashKey::Header("x-user".into());
    let query = || HashKey::QueryParameter("id".into());
    for (key, uri, headers, expected) in [
        (header(), "/", &[("x-user", "jason")][..], of("jason")),
        (header(), "/", &[("x-other", "jason")], None),
        (HashKey::SourceIp, "/", &[], of("127.0.0.5")),
        (query(), "/a?x=1&id=7&id=8", &[], of("7")),
        (query(), "/a?identity=7", &[], None),
        (query(), "/a?id", &[], of("")),
        (query(), "/a", &[], None),
        (
            cookie_key(None),
            "/",
            &[("cookie", "a=b; user=jason; c=d")],
            of("jason"),
        ),
        (
            cookie_key(None),
            "/",
            &[("cookie", "a=b"), ("cookie", "user=\"jason\"")],
            of("jason"),
        ),
        (cookie_key(None), "/", &[("cookie", "superuser=jason")], None),
        (cookie_key(None), "/", &[], None),
        (cookie_key(Some(5)), "/", &[("cookie", "user=jason")], of("jason")),
    ] {
        let hashed = hash(key.clone(), uri, headers);
        assert_eq!(
            hashed,
            Hashed {
                hash: expected,
                set_cookie: None
            },
            "{key:?} {uri} {headers:?}"
        );
    }
}

#[test]
fn the_order_of_a_headers_values_does_not_matter() {
    let key = || HashKey::Header("x-user".into());
    let one = hash(key(), "/", &[("x-user", "a"), ("x-user", "b")]);
    assert_eq!(one, hash(key(), "/", &[("x-user", "b"), ("x-user", "a")]));
    assert_ne!(one, hash(key(), "/", &[("x-user", "a")]));
}

#[test]
fn an_absent_cookie_is_generated_and_brings_the_client_back() {
    for (ttl, attributes) in [
        (3600, "; Max-Age=3600; Path=/shop; HttpOnly"),
        (0, "; Path=/shop; HttpOnly"),
    ] {
        let first = hash(cookie_key(Some(ttl)), "/", &[]);
        let cookie = first.set_cookie.unwrap();
        let cookie = cookie.to_str().unwrap();
        assert!(
            cookie.starts_with("user=\"") && cookie.ends_with(attributes),
            "{cookie}"
        );
        let sent_back = cookie.split(';').next().unwrap();
        let second = hash(cookie_key(Some(ttl)), "/", &[("cookie", sent_back)]);
        assert_eq!(
            second,
            Hashed {
                hash: first.hash,
                set_cookie: None
            }
        );
    }
}
