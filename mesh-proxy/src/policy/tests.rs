//! Semantics as tables: one row per sentence of the specification. Properties compare with a naive reference.

mod authorization;
mod headers;
mod path;
mod reference;
mod retry;
mod rewrite;
mod route;

use http::request::Parts;
use http::{HeaderName, Request};
use mesh_api::model::{Forward, FullRegex, HeaderMatch, HttpMatch, HttpRoute, RouteAction, TextMatch, WeightedCluster};

/// A request line such as `GET /path?query` to `http://reviews`, with headers.
fn parts(line: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, target) = line.split_once(' ').unwrap();
    let uri = match target.strip_prefix('/') {
        Some(_) => format!("http://reviews{target}"),
        None => target.to_owned(),
    };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn prefix(text: &str) -> TextMatch {
    TextMatch::Prefix(text.into())
}

fn regex(source: &str) -> TextMatch {
    TextMatch::Regex(FullRegex::new(source).unwrap())
}

fn header(name: &str, value: TextMatch) -> HeaderMatch {
    HeaderMatch {
        name: HeaderName::from_bytes(name.as_bytes()).unwrap(),
        value,
    }
}

fn path_is(path: TextMatch) -> HttpMatch {
    HttpMatch {
        path: Some(path),
        ..HttpMatch::default()
    }
}

fn legs(weights: &[u32]) -> Forward {
    Forward {
        clusters: weights
            .iter()
            .enumerate()
            .map(|(cluster, weight)| WeightedCluster {
                cluster,
                weight: *weight,
                headers: Default::default(),
            })
            .collect(),
        timeout: None,
        retry: None,
        rewrite: Default::default(),
        mirrors: Vec::new(),
    }
}

fn route(matches: Vec<HttpMatch>) -> HttpRoute {
    HttpRoute {
        name: "default".into(),
        origin: None,
        matches,
        action: RouteAction::Forward(Box::new(legs(&[1]))),
        headers: Default::default(),
        fault: None,
    }
}
