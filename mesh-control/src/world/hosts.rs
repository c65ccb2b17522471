//! Host names as policy objects write them: short names, trailing dots, wildcards.

use std::sync::Arc;

/// A host as an object of `namespace` means it: lower case, without trailing dot, and completed with
/// `<namespace>.svc.<domain>` if it has no dot. Wildcards stay as they are.
#[must_use]
pub fn qualify(host: &str, namespace: &str, domain: &str) -> Arc<str> {
    let host = normal(host);
    if host.contains('.') || host.contains('*') || host.is_empty() {
        host.into()
    } else {
        format!("{host}.{namespace}.svc.{domain}").into()
    }
}

/// Lower case, without trailing dot.
#[must_use]
pub fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The host itself, then the wildcards that cover it, the most specific first: `a.b.c`, `*.b.c`, `*.c`, `*`.
pub fn covering(host: &str) -> impl Iterator<Item = String> {
    let mut rest = Some(host.strip_prefix("*.").unwrap_or(host));
    let wildcards = std::iter::from_fn(move || match rest {
        Some("") | None => None,
        Some(current) => match current.split_once('.') {
            Some((_, parent)) => {
                rest = Some(parent);
                Some(format!("*.{parent}"))
            }
            None => {
                rest = None;
                Some("*".to_owned())
            }
        },
    });
    std::iter::once(host.to_owned()).chain(wildcards)
}

/// Name and namespace of a service with a Kubernetes name, `<name>.<namespace>.svc.<domain>`.
#[must_use]
pub fn kubernetes_name<'a>(host: &'a str, domain: &str) -> Option<(&'a str, &'a str)> {
    let (name, namespace) = host
        .strip_suffix(domain)?
        .strip_suffix(".svc.")?
        .split_once('.')
        .filter(|(name, namespace)| !name.is_empty() && !namespace.is_empty())?;
    (!namespace.contains('.')).then_some((name, namespace))
}

/// The hosts that a client in `namespace` may mean by an authority, the likeliest first.
#[must_use]
pub fn candidates(authority: &str, namespace: &str, domain: &str) -> Vec<String> {
    let host = normal(authority);
    let mut candidates = vec![host.clone()];
    let labels: Vec<&str> = host.split('.').collect();
    match labels.as_slice() {
        [name] if !name.is_empty() => candidates.push(format!("{name}.{namespace}.svc.{domain}")),
        [_, _] => candidates.push(format!("{host}.svc.{domain}")),
        [_, _, "svc"] => candidates.push(format!("{host}.{domain}")),
        _ => {}
    }
    candidates
}

/// Host name of a pod, name of its headless Service, and namespace of both if it is said, of a name such as
/// `db-0.db.default.svc.cluster.local`, `db-0.db.default` or `db-0.db`.
#[must_use]
pub fn pod_name(authority: &str, domain: &str) -> Option<(String, String, Option<String>)> {
    let host = normal(authority);
    let rest = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
    let full = rest.unwrap_or(&host).strip_suffix(".svc");
    if rest.is_some() && full.is_none() {
        return None;
    }
    let labels: Vec<&str> = full.unwrap_or(&host).split('.').collect();
    match labels.as_slice() {
        [pod, service, namespace] => Some(((*pod).into(), (*service).into(), Some((*namespace).into()))),
        [pod, service] if full.is_none() => Some(((*pod).into(), (*service).into(), None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_in_the_objects_namespace() {
        let rows = [
            ("reviews", "reviews.shop.svc.cluster.local"),
            ("Reviews.", "reviews.shop.svc.cluster.local"),
            ("reviews.shop", "reviews.shop"),
            ("reviews.shop.svc.cluster.local.", "reviews.shop.svc.cluster.local"),
            ("*.example.com", "*.example.com"),
            ("*", "*"),
        ];
        for (host, expected) in rows {
            assert_eq!(&*qualify(host, "shop", "cluster.local"), expected, "{host}");
        }
    }

    #[test]
    fn wildcards_cover_from_the_most_specific() {
        assert_eq!(covering("a.b.c").collect::<Vec<_>>(), ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(covering("*.b.c").collect::<Vec<_>>(), ["*.b.c", "*.c", "*"]);
        assert_eq!(covering("a").collect::<Vec<_>>(), ["a", "*"]);
    }

    #[test]
    fn kubernetes_names_have_exactly_two_labels_before_svc() {
        let rows = [
            ("reviews.default.svc.cluster.local", Some(("reviews", "default"))),
            ("a.reviews.default.svc.cluster.local", None),
            ("default.svc.cluster.local", None),
            ("example.com", None),
        ];
        for (host, expected) in rows {
            assert_eq!(kubernetes_name(host, "cluster.local"), expected, "{host}");
        }
    }

    #[test]
    fn pods_have_names_under_their_services() {
        let rows = [
            ("db-0.db.ns.svc.cluster.local", Some("db-0 db ns")),
            ("DB-0.db.ns.svc.cluster.local.", Some("db-0 db ns")),
            ("db-0.db.ns.svc", Some("db-0 db ns")),
            ("db-0.db.ns", Some("db-0 db ns")),
            ("db-0.db", Some("db-0 db -")),
            ("db.ns.svc.cluster.local", None),
            ("a.b.c.d", None),
            ("x.db-0.db.ns.svc.cluster.local", None),
            ("a.cluster.local", None),
            ("db", None),
        ];
        for (name, expected) in rows {
            let parts = pod_name(name, "cluster.local");
            let text = parts.map(|(pod, service, ns)| format!("{pod} {service} {}", ns.unwrap_or("-".into())));
            assert_eq!(text.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn authorities_may_be_short() {
        let rows: [(&str, &[&str]); 5] = [
            ("reviews", &["reviews", "reviews.ns.svc.cluster.local"]),
            (
                "reviews.default",
                &["reviews.default", "reviews.default.svc.cluster.local"],
            ),
            (
                "reviews.default.svc",
                &["reviews.default.svc", "reviews.default.svc.cluster.local"],
            ),
            (
                "REVIEWS.default.svc.cluster.local.",
                &["reviews.default.svc.cluster.local"],
            ),
            ("api.example.com", &["api.example.com"]),
        ];
        for (authority, expected) in rows {
            assert_eq!(candidates(authority, "ns", "cluster.local"), expected, "{authority}");
        }
    }
}
