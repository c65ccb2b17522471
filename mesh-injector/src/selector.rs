//! Label selectors, as Kubernetes means them: whether a set of labels is selected.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// What a selector cannot say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSelector {
    /// Not one of the four operators.
    #[error("operator {0:?}: expected In, NotIn, Exists or DoesNotExist")]
    Operator(String),
    /// `In` and `NotIn` compare with something.
    #[error("operator {0} of key {1:?} needs values")]
    NoValues(String, String),
    /// An empty selector would select everything, which nobody means here.
    #[error("the selector is empty and would select every pod: give matchLabels or matchExpressions")]
    Empty,
}

/// Checks a selector.
///
/// # Errors
/// When it is empty, or an expression is not one.
pub fn check(selector: &LabelSelector) -> Result<(), InvalidSelector> {
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if expressions.is_empty() && selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) {
        return Err(InvalidSelector::Empty);
    }
    for expression in expressions {
        match expression.operator.as_str() {
            "Exists" | "DoesNotExist" => {}
            "In" | "NotIn" if expression.values.as_ref().is_none_or(Vec::is_empty) => {
                return Err(InvalidSelector::NoValues(
                    expression.operator.clone(),
                    expression.key.clone(),
                ));
            }
            "In" | "NotIn" => {}
            other => return Err(InvalidSelector::Operator(other.to_owned())),
        }
    }
    Ok(())
}

/// Whether a checked selector selects what has these labels.
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|expression| {
            let label = labels.get(&expression.key);
            let listed = || label.is_some_and(|label| expression.values.iter().flatten().any(|value| value == label));
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => label.is_some(),
                _ => label.is_none(),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(yaml: &str) -> LabelSelector {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn selection() {
        let labels = BTreeMap::from([("app".to_owned(), "shop".to_owned())]);
        for (yaml, selected) in [
            ("matchLabels: {app: shop}", true),
            ("matchLabels: {app: shop, tier: web}", false),
            ("matchExpressions: [{key: app, operator: In, values: [a, shop]}]", true),
            ("matchExpressions: [{key: app, operator: NotIn, values: [shop]}]", false),
            (
                "matchExpressions: [{key: other, operator: NotIn, values: [shop]}]",
                true,
            ),
            ("matchExpressions: [{key: app, operator: Exists}]", true),
            ("matchExpressions: [{key: app, operator: DoesNotExist}]", false),
        ] {
            let selector = selector(yaml);
            assert_eq!(check(&selector), Ok(()), "{yaml}");
            assert_eq!(matches(&selector, &labels), selected, "{yaml}");
        }
    }

    #[test]
    fn selectors_that_say_nothing() {
        for yaml in [
            "{}",
            "matchLabels: {}",
            "matchExpressions: [{key: a, operator: In}]",
            "matchExpressions: [{key: a, operator: Like, values: [b]}]",
        ] {
            assert!(check(&selector(yaml)).is_err(), "{yaml}");
        }
    }
}
