//! One look at the directories after the other: which files changed, whether they are complete, and what is in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_api::crd::{Object, ObjectRef};
use mesh_api::source::{self, Diagnostic, FieldPath, Finding, Loaded, MAX_BYTES, Position, Severity};
use mesh_api::validate;

use super::Options;
use crate::source::Event;

/// A file is read when it has been the same for so long.
const SETTLE: Duration = Duration::from_millis(100);

/// A file is gone when it has not been there for so long: a renamed one, and one that an editor replaces, comes back.
const GONE: Duration = Duration::from_millis(300);

/// Contents that are wrong, or lack an object that was there, are believed when the file has been the same for so long: it may be half written.
const DOUBT: Duration = Duration::from_millis(500);

/// A file that was emptied is about to be written: whoever wants its objects gone deletes it.
const EMPTY: Duration = Duration::from_secs(3);

/// Files that are read; beyond, a diagnostic says so.
const MAX_FILES: usize = 10_000;

/// What a look found.
#[derive(Debug, Default)]
pub struct Found {
    /// What changed.
    pub events: Vec<Event>,
    /// All diagnostics, if they may have changed.
    pub diagnostics: Option<Vec<Diagnostic>>,
    /// When to look again at the latest, because of files that are being waited for.
    pub next: Option<Duration>,
    /// Whether nothing is being waited for.
    pub settled: bool,
}

/// The state of the directories as far as it is known.
#[derive(Debug)]
pub struct Scanner {
    options: Options,
    files: BTreeMap<PathBuf, File>,
    /// Directories that cannot be read, or hold too much.
    roots: BTreeMap<PathBuf, Diagnostic>,
    in_force: HashMap<ObjectRef, Arc<Object>>,
    /// Whether this is the first look.
    first: bool,
}

/// A file and what it said.
#[derive(Debug)]
struct File {
    /// Position of its directory among the roots: a tie-breaker.
    root: usize,
    /// As it was last seen; `None` when it is gone.
    stamp: Option<Stamp>,
    /// Since when it has been so.
    since: Instant,
    /// As it was when it was last read and believed.
    read: Option<Stamp>,
    /// Its objects: the last good version of each.
    objects: Vec<Arc<Good>>,
    diagnostics: Vec<Diagnostic>,
}

/// An object that is good.
#[derive(Debug)]
struct Good {
    loaded: Loaded,
    object: Arc<Object>,
    reference: ObjectRef,
}

/// What changes when a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
}

impl Scanner {
    /// Nothing is known yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            files: BTreeMap::new(),
            roots: BTreeMap::new(),
            in_force: HashMap::new(),
            first: true,
        }
    }

    /// Looks at the directories.
    pub fn scan(&mut self, now: Instant, clock: SystemTime) -> Found {
        let mut changed = self.look(now);
        let mut found = Found::default();
        let mut wait = |time: Duration| {
            found.next = Some(found.next.map_or(time, |next: Duration| next.min(time)));
        };
        let mut gone = Vec::new();
        for (path, file) in &mut self.files {
            let age = now.saturating_duration_since(file.since);
            if file.stamp == file.read && file.stamp.is_some() {
                continue;
            }
            if age < SETTLE && !(self.first && file.is_old(clock)) {
                wait(SETTLE - age);
                continue;
            }
            let Some(stamp) = file.stamp else {
                if age < GONE {
                    wait(GONE - age);
                } else {
                    gone.push(path.clone());
                }
                continue;
            };
            let contents = read(path, stamp, &self.options.default_namespace);
            if stamp_of(path).ok() != Some(stamp) {
                wait(SETTLE);
                continue;
            }
            let patience = if stamp.length == 0 { EMPTY } else { DOUBT };
            if (contents.has_errors() || file.would_lose(&contents)) && age < patience {
                wait(patience - age);
                continue;
            }
            file.read = Some(stamp);
            file.take(contents);
            changed = true;
        }
        for path in gone {
            self.files.remove(&path);
            changed = true;
        }
        self.first = false;
        found.settled = found.next.is_none();
        if changed {
            let (events, diagnostics) = self.settle();
            found.events = events;
            found.diagnostics = Some(diagnostics);
        }
        found
    }

    /// Takes stock of the files; says whether a directory became readable or unreadable.
    fn look(&mut self, now: Instant) -> bool {
        let before = std::mem::take(&mut self.roots);
        let mut seen = BTreeSet::new();
        let mut unreadable = BTreeSet::new();
        for (position, root) in self.options.roots.iter().enumerate() {
            match files_of(root) {
                Ok(paths) => {
                    for path in paths {
                        if seen.len() >= MAX_FILES {
                            let message = format!(
                                "more than {MAX_FILES} files: {} and others are not read",
                                path.display()
                            );
                            self.roots
                                .insert(root.clone(), problem(root, "too-many-files", message));
                            break;
                        }
                        let Ok(stamp) = stamp_of(&path) else { continue };
                        let file = self
                            .files
                            .entry(path.clone())
                            .or_insert_with(|| File::new(position, now));
                        file.see(Some(stamp), now);
                        seen.insert(path);
                    }
                }
                Err(error) => {
                    let message = format!("the directory cannot be read: {error}");
                    self.roots
                        .insert(root.clone(), problem(root, "unreadable-directory", message));
                    if error.kind() != io::ErrorKind::NotFound {
                        unreadable.insert(position);
                    }
                }
            }
        }
        for (path, file) in &mut self.files {
            // What is in a directory that cannot be read now may well be there still.
            if !seen.contains(path) && !unreadable.contains(&file.root) {
                file.see(None, now);
            }
        }
        before != self.roots
    }

    /// Decides what is in force; gives what changed and all diagnostics.
    fn settle(&mut self) -> (Vec<Event>, Vec<Diagnostic>) {
        let mut diagnostics: Vec<Diagnostic> = self.roots.values().cloned().collect();
        let mut winners: BTreeMap<&ObjectRef, (SystemTime, &Arc<Good>)> = BTreeMap::new();
        for file in self.files.values() {
            diagnostics.extend(file.diagnostics.iter().cloned());
            let modified = file.read.map_or(SystemTime::UNIX_EPOCH, |stamp| stamp.modified);
            for good in &file.objects {
                let Some((other_modified, other)) = winners.get(&good.reference).copied() else {
                    winners.insert(&good.reference, (modified, good));
                    continue;
                };
                let (winner, loser) = if modified >= other_modified {
                    winners.insert(&good.reference, (modified, good));
                    (good, other)
                } else {
                    (other, good)
                };
                diagnostics.push(duplicate(winner, loser));
            }
        }
        let loaded: Vec<Loaded> = winners.values().map(|(_, good)| good.loaded.clone()).collect();
        diagnostics.extend(validate::analyze_set(&loaded));

        let mut events = Vec::new();
        let mut in_force = HashMap::with_capacity(winners.len());
        for (reference, (_, good)) in winners {
            let old = self.in_force.remove(reference);
            if old.is_none_or(|old| *old != *good.object) {
                events.push(Event::Applied(good.object.clone()));
            }
            in_force.insert(reference.clone(), good.object.clone());
        }
        let mut deleted: Vec<ObjectRef> = self.in_force.drain().map(|(reference, _)| reference).collect();
        deleted.sort();
        events.extend(deleted.into_iter().map(Event::Deleted));
        self.in_force = in_force;
        (events, diagnostics)
    }
}

impl File {
    fn new(root: usize, now: Instant) -> Self {
        Self {
            root,
            stamp: None,
            since: now,
            read: None,
            objects: Vec::new(),
            diagnostics: Vec::new(),
        }
    }

    fn see(&mut self, stamp: Option<Stamp>, now: Instant) {
        if self.stamp != stamp {
            self.stamp = stamp;
            self.since = now;
        }
    }

    /// Whether its time of modification says that it has been complete for long. Once a file is being watched that is no
    /// proof: some file systems shorten a file first and note the time later.
    fn is_old(&self, clock: SystemTime) -> bool {
        self.stamp
            .and_then(|stamp| clock.duration_since(stamp.modified).ok())
            .is_some_and(|age| age >= SETTLE)
    }

    /// Whether an object of the file would be gone.
    fn would_lose(&self, contents: &Contents) -> bool {
        let kept = |old: &Good| contents.objects.iter().any(|new| new.reference == old.reference);
        self.objects.iter().any(|old| !kept(old))
    }

    /// Takes over what a file says. If anything in it is wrong, what it said before and no longer does stays.
    fn take(&mut self, mut contents: Contents) {
        if contents.has_errors() {
            for old in std::mem::take(&mut self.objects) {
                if contents.objects.iter().any(|new| new.reference == old.reference) {
                    continue;
                }
                for diagnostic in &mut contents.diagnostics {
                    if diagnostic.severity == Severity::Error && diagnostic.object.as_ref() == Some(&old.reference) {
                        diagnostic.message.push_str("; its last good version stays in force");
                    }
                }
                contents.objects.push(old);
            }
        }
        for closed in contents.closed {
            if contents
                .objects
                .iter()
                .all(|object| object.reference != closed.reference)
            {
                contents.objects.push(closed);
            }
        }
        self.objects = contents.objects;
        self.diagnostics = contents.diagnostics;
    }
}

/// What a file says at one time.
struct Contents {
    objects: Vec<Arc<Good>>,
    /// In force only where there never was a good version.
    closed: Vec<Arc<Good>>,
    diagnostics: Vec<Diagnostic>,
}

impl Contents {
    fn has_errors(&self) -> bool {
        validate::has_errors(&self.diagnostics)
    }
}

/// Reads and judges a file. Objects with errors are not good, but for those whose absence would let in what they were
/// meant to keep out.
fn read(path: &Path, stamp: Stamp, default_namespace: &str) -> Contents {
    let failed = |code, message| Contents {
        objects: Vec::new(),
        closed: Vec::new(),
        diagnostics: vec![problem(path, code, message)],
    };
    if stamp.length > MAX_BYTES as u64 {
        let message = format!("the file has {} bytes; at most {MAX_BYTES} are read", stamp.length);
        return failed("file-too-large", message);
    }
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    if let Err(error) = fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        return failed("unreadable-file", format!("the file cannot be read: {error}"));
    }
    let contents = source::read(&path.to_string_lossy(), &bytes, default_namespace);
    let mut diagnostics = contents.diagnostics;
    let mut objects: Vec<Arc<Good>> = Vec::with_capacity(contents.objects.len());
    for loaded in contents.objects {
        let findings = validate::analyze(&loaded);
        let good = !validate::has_errors(&findings) || validate::fails_closed(loaded.object.kind());
        diagnostics.extend(findings);
        if good {
            objects.push(Arc::new(Good::from(loaded)));
        }
    }
    let closed = contents
        .closed
        .into_iter()
        .map(|loaded| Arc::new(Good::from(loaded)))
        .collect();
    Contents {
        objects,
        closed,
        diagnostics,
    }
}

impl From<Loaded> for Good {
    fn from(loaded: Loaded) -> Self {
        Self {
            object: Arc::new(loaded.object.clone()),
            reference: loaded.reference(),
            loaded,
        }
    }
}

fn duplicate(winner: &Good, loser: &Good) -> Diagnostic {
    let message = format!(
        "{} is defined as well in {}:{}, which was modified last and is in force; remove one of them",
        loser.reference, winner.loaded.file, winner.loaded.line
    );
    let field = FieldPath::new("metadata.name");
    loser.loaded.locate(Finding::error(field, "duplicate-object", message))
}

fn problem(path: &Path, code: &'static str, message: String) -> Diagnostic {
    let file: Arc<str> = path.to_string_lossy().into();
    Finding::error(FieldPath::root(), code, message).into_diagnostic(&file, Position::START, None)
}

/// Policy files of a directory, in order of their names.
fn files_of(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let policy = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if policy && !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn stamp_of(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(Stamp {
        modified: metadata.modified()?,
        length: metadata.len(),
    })
}
