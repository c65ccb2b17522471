//! The difference of two pods as a JSON patch (RFC 6902).
//!
//! Lists of things with names (containers, volumes) are compared by name: what was added is inserted at its place, and
//! the others are left alone. A comparison by index would rewrite every container behind an inserted one field by
//! field, and mix up fields that this program does not know.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Map, Value};

/// The patch that makes `after` out of `before`.
pub fn between(before: &Value, after: &Value) -> Patch {
    let mut operations = Vec::new();
    compare(before, after, &mut PointerBuf::new(), &mut operations);
    Patch(operations)
}

fn compare(before: &Value, after: &Value, at: &mut PointerBuf, operations: &mut Vec<PatchOperation>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => objects(before, after, at, operations),
        (Value::Array(before), Value::Array(after)) if only_adds(before, after) => {
            let mut left = before.iter().peekable();
            for (index, item) in after.iter().enumerate() {
                at.push_back(index);
                match left.next_if(|candidate| name(candidate) == name(item)) {
                    Some(same) => compare(same, item, at, operations),
                    None => operations.push(add(at, item)),
                }
                at.pop_back();
            }
        }
        _ => operations.push(PatchOperation::Replace(ReplaceOperation {
            path: at.clone(),
            value: after.clone(),
        })),
    }
}

fn objects(
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    at: &mut PointerBuf,
    operations: &mut Vec<PatchOperation>,
) {
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        at.push_back(key.as_str());
        operations.push(PatchOperation::Remove(RemoveOperation { path: at.clone() }));
        at.pop_back();
    }
    for (key, value) in after {
        at.push_back(key.as_str());
        match before.get(key) {
            Some(old) => compare(old, value, at, operations),
            None => operations.push(add(at, value)),
        }
        at.pop_back();
    }
}

fn add(at: &PointerBuf, value: &Value) -> PatchOperation {
    PatchOperation::Add(AddOperation {
        path: at.clone(),
        value: value.clone(),
    })
}

fn name(item: &Value) -> Option<&str> {
    item.get("name")?.as_str()
}

/// Whether all items have names and those of `before` are among those of `after`, in the same order.
fn only_adds(before: &[Value], after: &[Value]) -> bool {
    let mut names = after.iter().map(name);
    before
        .iter()
        .all(|item| name(item).is_some() && names.any(|candidate| candidate == name(item)))
        && after.iter().all(|item| name(item).is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(before: &Value, after: &Value) -> Patch {
        let patch = between(before, after);
        let mut patched = before.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        assert_eq!(&patched, after, "{patch}");
        patch
    }

    #[test]
    fn things_with_names_are_inserted_at_their_place() {
        let before = json!({"c": [{"name": "a", "x": 1}, {"name": "b", "x": 2}], "m": {"a/b": "1", "k~": "2"}});
        let after = json!({
            "c": [{"name": "new"}, {"name": "a", "x": 1}, {"name": "mid"}, {"name": "b", "x": 3}, {"name": "end"}],
            "m": {"a/b": "3"},
        });
        let patch = apply(&before, &after);
        let text = patch.to_string();
        assert!(!text.contains("/c/1"), "what did not change is not named: {text}");
        assert!(text.contains(r#""path":"/m/a~1b""#), "{text}");
        assert_eq!(patch.0.len(), 6, "{text}");
    }

    #[test]
    fn other_lists_are_replaced() {
        apply(&json!([1, 2]), &json!([0, 1, 2]));
        apply(
            &json!([{"name": "a"}, {"name": "b"}]),
            &json!([{"name": "b"}, {"name": "a"}]),
        );
        apply(&json!({"a": [1]}), &json!({}));
        assert!(between(&json!({"a": [1]}), &json!({"a": [1]})).0.is_empty());
    }
}
