//! Path normalization.

use proptest::prelude::*;

use super::super::{InvalidPath, normalize_path};

#[test]
fn normal_forms() {
    let table = [
        ("a normal path stays", "/a/b", None),
        ("dots in names stay", "/a.b/..c/d..", None),
        ("slashes are not merged", "//a///b", None),
        ("a parent segment", "/a/../b", Some("/b")),
        ("a current segment", "/a/./b", Some("/a/b")),
        ("at the end", "/a/b/..", Some("/a/")),
        ("above the root", "/../../a", Some("/a")),
        ("nothing left", "/..", Some("/")),
        ("an encoded parent segment", "/public/%2e%2E/admin", Some("/admin")),
        ("encoded letters", "/%61dmin", Some("/admin")),
        ("backslashes are slashes", "/a\\b", Some("/a/b")),
        ("and part of parent segments", "/public\\..\\admin", Some("/admin")),
        ("an encoded slash stays", "/a%2Fb", None),
        ("an encoded percent stays: decoding is once", "/%252e%252e/a", None),
        ("a broken encoding stays", "/a%zz%4", None),
        ("the query is not touched", "/a/../b?x=/../%61", Some("/b?x=/../%61")),
        ("not even when only it looks odd", "/b?x=/../%61", None),
        ("what is no path stays", "*", None),
        ("the empty path as well", "", None),
    ];
    for (sentence, path, expected) in table {
        assert_eq!(normalize_path(path).unwrap().as_deref(), expected, "{sentence}");
    }
    assert_eq!(normalize_path("/a%00b"), Err(InvalidPath::Nul));
    assert_eq!(normalize_path("/%6%31dmin"), Err(InvalidPath::NestedEncoding));
    assert_eq!(normalize_path("/a%0%30b"), Err(InvalidPath::Nul));
}

proptest! {
    #[test]
    fn normalizing_twice_changes_nothing(path in "/([a/.%\\\\é]|%2[eEfF]|%4|1|%31|%41|%5[cC]|\\?){0,16}") {
        if let Ok(Some(normal)) = normalize_path(&path) {
            prop_assert_eq!(normalize_path(&normal), Ok(None));
            let path = normal.split('?').next().unwrap();
            prop_assert!(!path.split('/').any(|segment| segment == ".." || segment == "."));
        }
    }

    #[test]
    fn any_text_is_taken(path in "\\PC{0,20}") {
        let _ = normalize_path(&path);
    }
}
