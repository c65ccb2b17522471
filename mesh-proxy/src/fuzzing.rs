//! Bodies of the fuzz targets under `fuzz/`: a body takes any bytes and panics when a promise is broken.

use http::{HeaderValue, Request, StatusCode, header::HOST};
use mesh_api::model::{HttpMatch, Redirect, RedirectPort, Rewrite, TextMatch};

use crate::policy::{RequestView, normalize_path, redirect_location, rewrite_path};
use crate::tls::hello::{Sniffed, sniff};

/// The first bytes of a connection: what is no TLS stays no TLS as more bytes arrive, and a hello stays the same hello.
pub fn fuzz_hello(data: &[u8]) {
    let whole = sniff(data);
    let Ok(half) = sniff(&data[..data.len() / 2]) else {
        assert!(whole.is_err(), "more bytes mended a malformed hello");
        return;
    };
    if !matches!(half, Sniffed::NeedMore { .. }) {
        assert_eq!(whole, Ok(half), "more bytes changed what was certain");
    } else if half == (Sniffed::NeedMore { certain: true }) {
        assert_ne!(whole, Ok(Sniffed::NotTls), "a certain hello became no TLS");
    }
}

/// Authorities from the network, as `Host` and as request target, on their way into a redirect.
pub fn fuzz_authority(data: &[u8]) {
    let Ok(host) = HeaderValue::from_bytes(data) else {
        return;
    };
    if let Some(text) = host.to_str().ok().filter(|text| !text.is_empty()) {
        if let Ok(hostname) = text.parse::<mesh_api::names::Hostname>() {
            assert_eq!(
                hostname.as_str().parse(),
                Ok(hostname.clone()),
                "a host name is its own normal form"
            );
        }
        if let Ok(request) = Request::builder().uri(format!("http://{text}/")).body(()) {
            redirects(&request.into_parts().0);
        }
    }
    if let Ok(request) = Request::builder().uri("/").header(HOST, host).body(()) {
        redirects(&request.into_parts().0);
    }
}

fn redirects(parts: &http::request::Parts) {
    let request = RequestView::new(parts, "http");
    assert!(!request.authority.contains('@'), "user information in an authority");
    for port in [
        None,
        Some(RedirectPort::Number(8443)),
        Some(RedirectPort::FromProtocolDefault),
    ] {
        let redirect = Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            uri: None,
            prefix_rewrite: None,
            authority: None,
            scheme: Some("https".into()),
            port,
        };
        let location = redirect_location(&redirect, None, &request, 80);
        assert!(
            location.starts_with("https://") && HeaderValue::from_str(&location).is_ok(),
            "{location}"
        );
    }
}

/// Paths: normal forms are final and free of dot segments, and a rewritten path is a path.
pub fn fuzz_path(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(normalized) = normalize_path(path) else {
        return;
    };
    let normal = normalized.as_deref().unwrap_or(path);
    assert_eq!(normalize_path(normal), Ok(None), "not final: {normal:?}");
    let (only_path, _) = normal.split_once('?').unwrap_or((normal, ""));
    if !only_path.starts_with('/') {
        return;
    }
    assert!(
        !only_path.split('/').any(|segment| matches!(segment, "." | "..")),
        "{normal:?}"
    );
    let rewrite = Rewrite {
        uri: Some("/new".into()),
        ..Rewrite::default()
    };
    let entry = HttpMatch {
        path: Some(TextMatch::Prefix("/a".into())),
        ..HttpMatch::default()
    };
    if let Some(rewritten) = rewrite_path(&rewrite, Some(&entry), normal) {
        assert!(rewritten.starts_with("/new"), "{rewritten:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, body: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&corpus).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", corpus.display());
    }

    #[test]
    fn seeds_of_hello() {
        replay("hello", super::fuzz_hello);
    }

    #[test]
    fn seeds_of_authority() {
        replay("authority", super::fuzz_authority);
    }

    #[test]
    fn seeds_of_path() {
        replay("path", super::fuzz_path);
    }
}
