//! Real directories, with deadlines.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::Mutex;

use mesh_api::crd::ObjectRef;
use tempfile::TempDir;

use super::*;

/// Generous against a busy machine; what is promised to users is tested apart.
const DEADLINE: Duration = Duration::from_secs(20);

type InForce = Arc<Mutex<BTreeMap<String, serde_json::Value>>>;

struct Watched {
    dirs: Vec<TempDir>,
    source: DirSource,
    in_force: InForce,
    /// Number of deletions that were said.
    deletions: Arc<Mutex<usize>>,
}

impl Watched {
    async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_roots(&[files]).await
    }

    async fn start_roots(roots: &[&[(&str, &str)]]) -> Self {
        let dirs: Vec<TempDir> = roots
            .iter()
            .map(|files| {
                let dir = tempfile::tempdir().unwrap();
                for (name, text) in *files {
                    fs::write(dir.path().join(name), text).unwrap();
                }
                dir
            })
            .collect();
        let in_force = InForce::default();
        let deletions = Arc::new(Mutex::new(0));
        let (objects, deleted) = (in_force.clone(), deletions.clone());
        let options = Options::new(dirs.iter().map(|dir| dir.path().to_owned()));
        let source = DirSource::start(options, move |events| {
            let mut objects = objects.lock().unwrap();
            for event in events {
                match event {
                    Event::Applied(object) => {
                        let spec = object.to_value().unwrap()["spec"].clone();
                        objects.insert(key(&object.reference()), spec);
                    }
                    Event::Deleted(reference) => {
                        *deleted.lock().unwrap() += 1;
                        objects.remove(&key(&reference));
                    }
                    Event::Synced => {}
                    Event::Observed(_) | Event::Vanished(_) => panic!("files have no objects of Kubernetes"),
                }
            }
        })
        .unwrap();
        source.synced().await;
        Self {
            dirs,
            source,
            in_force,
            deletions,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dirs[0].path().join(name), text).unwrap();
    }

    fn hosts(&self) -> BTreeMap<String, String> {
        let objects = self.in_force.lock().unwrap();
        objects
            .iter()
            .map(|(name, spec)| (name.clone(), spec["hosts"][0].as_str().unwrap_or_default().to_owned()))
            .collect()
    }

    /// Waits until these objects are in force, with these hosts.
    async fn expect(&self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(name, host)| (format!("VirtualService {name}"), (*host).to_owned()))
            .collect();
        let start = Instant::now();
        while self.hosts() != expected {
            assert!(
                start.elapsed() < DEADLINE,
                "in force: {:?}, expected: {expected:?}",
                self.hosts()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits for a list of diagnostics that a test accepts; gives their texts.
    async fn diagnostics(&self, accept: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut diagnostics = self.source.diagnostics();
        let texts = |list: &Arc<[Diagnostic]>| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let found = tokio::time::timeout(DEADLINE, diagnostics.wait_for(|list| accept(&texts(list)))).await;
        match found {
            Ok(list) => texts(&list.unwrap()),
            Err(_) => panic!("{:?}", texts(&self.source.diagnostics().borrow())),
        }
    }
}

fn key(reference: &ObjectRef) -> String {
    reference.to_string()
}

fn service(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {name}\nspec:\n  hosts: [{host}]\n  \
         http:\n  - route:\n    - destination:\n        host: {host}\n"
    )
}

#[tokio::test]
async fn everything_that_is_there_at_the_start_is_in_force_when_synced() {
    let one = service("one", "a");
    let watched = Watched::start(&[
        ("one.yaml", &one),
        ("two.yml", &service("two", "b")),
        ("three.json", &serde_json::json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "three", "namespace": "other"}, "spec": {"hosts": ["c"], "http": [{"route": [{"destination": {"host": "c"}}]}]}}).to_string()),
        (".hidden.yaml", &service("hidden", "d")),
        ("notes.txt", "not: policy"),
    ])
    .await;
    assert_eq!(
        watched.hosts().into_iter().collect::<Vec<_>>(),
        [
            ("VirtualService default/one".to_owned(), "a".to_owned()),
            ("VirtualService default/two".to_owned(), "b".to_owned()),
            ("VirtualService other/three".to_owned(), "c".to_owned()),
        ]
    );
}

#[tokio::test]
async fn a_file_written_changed_and_deleted_takes_effect() {
    let watched = Watched::start(&[]).await;
    watched.write("one.yaml", &service("one", "a"));
    watched.expect(&[("default/one", "a")]).await;
    watched.write("one.yaml", &service("one", "b"));
    watched.expect(&[("default/one", "b")]).await;
    fs::rename(
        watched.dirs[0].path().join("one.yaml"),
        watched.dirs[0].path().join("uno.yaml"),
    )
    .unwrap();
    watched.write("two.yaml", &service("two", "b"));
    watched.expect(&[("default/one", "b"), ("default/two", "b")]).await;
    assert_eq!(*watched.deletions.lock().unwrap(), 0, "a renamed file deletes nothing");
    fs::remove_file(watched.dirs[0].path().join("uno.yaml")).unwrap();
    watched.expect(&[("default/two", "b")]).await;
}

#[tokio::test]
async fn a_change_is_in_force_within_a_second() {
    let watched = Watched::start(&[("one.yaml", &service("one", "h0"))]).await;
    // The best of several: the machine may be busy, the source must not be slow.
    let mut best = Duration::MAX;
    for turn in 1..=5 {
        let host = format!("h{turn}");
        let start = Instant::now();
        watched.write("one.yaml", &service("one", &host));
        watched.expect(&[("default/one", &host)]).await;
        best = best.min(start.elapsed());
    }
    assert!(best < Duration::from_secs(1), "{best:?}");
}

#[tokio::test]
async fn a_file_that_becomes_wrong_keeps_the_last_good_version() {
    let watched = Watched::start(&[("one.yaml", &service("one", "a"))]).await;
    for (wrong, says) in [
        (
            service("one", "b").replace("http:", "htttp:"),
            "one.yaml:7:3: error: spec.htttp",
        ),
        ("kind: [".to_owned(), "one.yaml:"),
        (
            service("one", "b").replace("  - route:", "  - timeout: 5\n    route:"),
            "error: spec.http[0].timeout",
        ),
        (
            service("one", "b") + "---\nkind: Nonsense\napiVersion: example.com/v1\nmetadata: {name: x}\n",
            "Nonsense",
        ),
    ] {
        watched.write("one.yaml", &wrong);
        watched
            .diagnostics(|list| list.iter().any(|text| text.contains(says)))
            .await;
        let hosts = watched.hosts();
        assert_eq!(hosts.len(), 1, "{wrong}: {hosts:?}");
        watched.write("one.yaml", &service("one", "a"));
        watched
            .diagnostics(|list| list.iter().all(|text| !text.contains("error")))
            .await;
        watched.expect(&[("default/one", "a")]).await;
    }
    assert_eq!(*watched.deletions.lock().unwrap(), 0);
}

#[tokio::test]
async fn the_rest_of_a_wrong_file_and_other_files_keep_working() {
    let watched = Watched::start(&[("both.yaml", &(service("one", "a") + "---\n" + &service("two", "a")))]).await;
    let wrong = service("one", "b").replace("hosts:", "hostss:") + "---\n" + &service("two", "b");
    watched.write("both.yaml", &wrong);
    watched.write("other.yaml", &service("other", "c"));
    watched
        .expect(&[("default/one", "a"), ("default/two", "b"), ("default/other", "c")])
        .await;
    let said = watched
        .diagnostics(|list| list.iter().any(|text| text.contains("hostss")))
        .await;
    let said = said.iter().find(|text| text.contains("hostss")).unwrap();
    assert!(said.contains("its last good version stays in force"), "{said}");
}

#[tokio::test]
async fn only_deleting_a_document_from_a_right_file_deletes_its_object() {
    let watched = Watched::start(&[("both.yaml", &(service("one", "a") + "---\n" + &service("two", "a")))]).await;
    watched.write("both.yaml", &(service("one", "a").replace("hosts:", "hostss:")));
    watched
        .diagnostics(|list| list.iter().any(|text| text.contains("hostss")))
        .await;
    assert_eq!(watched.hosts().len(), 2);
    watched.write("both.yaml", &service("one", "a"));
    watched.expect(&[("default/one", "a")]).await;
    watched.write("both.yaml", "");
    watched.expect(&[]).await;
}

#[tokio::test]
async fn half_written_files_are_waited_for() {
    let watched = Watched::start(&[("one.yaml", &service("one", "a"))]).await;
    let text = service("one", "b") + "---\n" + &service("two", "b");
    // As a slow writer does it: truncated first, then bit by bit.
    let mut file = fs::File::create(watched.dirs[0].path().join("one.yaml")).unwrap();
    for part in text.as_bytes().chunks(text.len() / 8) {
        file.write_all(part).unwrap();
        file.flush().unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    drop(file);
    watched.expect(&[("default/one", "b"), ("default/two", "b")]).await;
    assert_eq!(*watched.deletions.lock().unwrap(), 0);
    let said = watched.source.diagnostics().borrow().to_vec();
    assert!(
        said.iter().all(|diagnostic| diagnostic.severity != Severity::Error),
        "{said:?}"
    );
}

#[tokio::test]
async fn one_object_in_two_files_the_last_modified_wins_and_both_are_named() {
    let watched =
        Watched::start_roots(&[&[("z.yaml", &service("one", "a"))], &[("a.yaml", &service("one", "a"))]]).await;
    watched.write("y.yaml", &service("one", "b"));
    watched.expect(&[("default/one", "b")]).await;
    let said = watched
        .diagnostics(|list| list.iter().filter(|text| text.contains("is defined as well")).count() == 2)
        .await;
    assert!(
        said.iter()
            .any(|text| text.contains("z.yaml:") && text.contains("y.yaml:") && text.contains("error")),
        "{said:?}"
    );
    // Whoever is written last wins, wherever it is.
    fs::write(watched.dirs[1].path().join("a.yaml"), service("one", "c")).unwrap();
    watched.expect(&[("default/one", "c")]).await;
    // The others come back when the winner goes.
    fs::remove_file(watched.dirs[1].path().join("a.yaml")).unwrap();
    watched.expect(&[("default/one", "b")]).await;
}

#[tokio::test]
async fn a_missing_directory_is_said_and_read_when_it_appears() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("policies");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = seen.clone();
    let source = DirSource::start(Options::new([root.clone()]), move |new| {
        events.lock().unwrap().extend(new);
    })
    .unwrap();
    source.synced().await;
    assert!(source.diagnostics().borrow()[0].to_string().contains("cannot be read"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("one.yaml"), service("one", "a")).unwrap();
    let start = Instant::now();
    while !seen
        .lock()
        .unwrap()
        .iter()
        .any(|event| matches!(event, Event::Applied(_)))
    {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_faulty_authorization_policy_is_in_force_to_deny() {
    let watched = Watched::start(&[]).await;
    watched.write(
        "authz.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: strict}\nspec:\n  rules:\n  - when:\n    \
         - {key: no.such.key, values: [a]}\n",
    );
    let start = Instant::now();
    while !watched.hosts().contains_key("AuthorizationPolicy default/strict") {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let said = watched.diagnostics(|list| !list.is_empty()).await;
    assert!(said[0].contains("spec.rules[0].when[0].key"), "{said:?}");
}

#[tokio::test]
async fn an_authorization_policy_that_cannot_be_read_denies_until_it_is_mended() {
    let policy = |operation: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: strict}}\nspec:\n  selector:\n    \
             matchLabels: {{app: one}}\n  rules:\n  - to:\n    - operation: {{{operation}}}\n"
        )
    };
    let watched = Watched::start(&[]).await;
    watched.write("authz.yaml", &policy("method: [GET]"));
    let in_force = |host: &str| {
        let hosts = watched.hosts();
        hosts.contains_key(host)
    };
    let start = Instant::now();
    while !in_force("AuthorizationPolicy default/strict") {
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let said = watched.diagnostics(|list| !list.is_empty()).await;
    assert!(said[0].contains("spec.rules[0].to[0].operation.method"), "{said:?}");
    watched.write("authz.yaml", &policy("methods: [GET]"));
    watched.diagnostics(|list| list.is_empty()).await;
    assert!(in_force("AuthorizationPolicy default/strict"));
}

#[test]
fn reading_files_is_no_reason_to_read_them_again() {
    use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind};

    let (read, written) = (AccessMode::Read, AccessMode::Write);
    for access in [
        AccessKind::Open(read),
        AccessKind::Open(AccessMode::Any),
        AccessKind::Read,
        AccessKind::Close(read),
    ] {
        assert!(!is_change(EventKind::Access(access)), "{access:?}");
    }
    for change in [
        EventKind::Access(AccessKind::Close(written)),
        EventKind::Create(CreateKind::File),
        EventKind::Modify(ModifyKind::Any),
        EventKind::Remove(RemoveKind::File),
        EventKind::Any,
    ] {
        assert!(is_change(change), "{change:?}");
    }
}
