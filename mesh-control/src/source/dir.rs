//! Policy objects from directories of YAML and JSON files, watched: a change is in force within a second.
//!
//! Files come in, events and diagnostics go out. A file that becomes wrong keeps the last good version of its objects in
//! force; only deleting a file, or a document from a file that is otherwise right, takes an object away. Files that are
//! being written are waited for. Reading happens on a thread of its own: nothing here blocks an async task.

mod scan;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use mesh_api::source::{Diagnostic, Severity};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::watch;

use self::scan::Scanner;
use super::Event;

/// How often files are looked at, whether or not the system says that they changed: notification misses changes on some
/// file systems.
const POLL: Duration = Duration::from_millis(250);

/// What to read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories; files directly in them that end in `.yaml`, `.yml` or `.json` are read, hidden ones are not.
    pub roots: Vec<PathBuf>,
    /// Namespace of objects that name none.
    pub default_namespace: String,
}

impl Options {
    /// Reads directories; objects without namespace are in `default`.
    #[must_use]
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            default_namespace: "default".to_owned(),
        }
    }
}

/// The running source. It ends when this is dropped.
#[derive(Debug)]
pub struct DirSource {
    diagnostics: watch::Receiver<Arc<[Diagnostic]>>,
    synced: watch::Receiver<bool>,
    wake: SyncSender<Wake>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    Changed,
    Stop,
}

impl DirSource {
    /// Starts to read and to watch. `sink` gets the events of one change together; the first ones end with
    /// [`Event::Synced`].
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(options: Options, sink: impl FnMut(Vec<Event>) + Send + 'static) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let (publish, diagnostics) = watch::channel(Arc::from([]));
        let (sync, synced) = watch::channel(false);
        let loop_ = Loop {
            watcher: watcher(&options, wake.clone()),
            scanner: Scanner::new(options),
            woken,
            sink,
            publish,
            sync,
            printed: HashSet::new(),
        };
        let thread = std::thread::Builder::new()
            .name("policy-files".to_owned())
            .spawn(move || loop_.run())?;
        Ok(Self {
            diagnostics,
            synced,
            wake,
            thread: Some(thread),
        })
    }

    /// What is wrong in the files now; a new list whenever that changes.
    #[must_use]
    pub fn diagnostics(&self) -> watch::Receiver<Arc<[Diagnostic]>> {
        self.diagnostics.clone()
    }

    /// Waits until everything that was there at the start has gone to the sink.
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        // An error means that the thread is gone, which happens only when this is dropped.
        let _ = synced.wait_for(|synced| *synced).await;
    }
}

impl Drop for DirSource {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = self.wake.send(Wake::Stop);
            let _ = thread.join();
        }
    }
}

/// Asks the system to wake the thread. Without that, polling still finds every change.
fn watcher(options: &Options, wake: SyncSender<Wake>) -> Option<notify::RecommendedWatcher> {
    let changed = move |event: notify::Result<notify::Event>| {
        // Reading the files is an event too, and must not be a reason to read them.
        if event.map_or(true, |event| is_change(event.kind)) {
            // A full channel has a waking in it already.
            let _ = wake.try_send(Wake::Changed);
        }
    };
    let mut watcher = notify::recommended_watcher(changed)
        .inspect_err(|error| tracing::warn!("files are polled only: {error}"))
        .ok()?;
    for root in &options.roots {
        if let Err(error) = watcher.watch(root, RecursiveMode::NonRecursive) {
            tracing::warn!("{} is polled only: {error}", root.display());
        }
    }
    Some(watcher)
}

fn is_change(event: EventKind) -> bool {
    match event {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

struct Loop<S> {
    /// Kept for its thread.
    watcher: Option<notify::RecommendedWatcher>,
    scanner: Scanner,
    woken: Receiver<Wake>,
    sink: S,
    publish: watch::Sender<Arc<[Diagnostic]>>,
    sync: watch::Sender<bool>,
    /// Diagnostics that hold and have been logged.
    printed: HashSet<String>,
}

impl<S: FnMut(Vec<Event>)> Loop<S> {
    fn run(mut self) {
        loop {
            let found = self.scanner.scan(Instant::now(), SystemTime::now());
            let mut events = found.events;
            if let Some(diagnostics) = found.diagnostics {
                self.report(diagnostics);
            }
            let synced = found.settled && !*self.sync.borrow();
            if synced {
                events.push(Event::Synced);
            }
            if !events.is_empty() {
                (self.sink)(events);
            }
            if synced {
                self.sync.send_replace(true);
            }
            match self.woken.recv_timeout(found.next.map_or(POLL, |next| next.min(POLL))) {
                Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        drop(self.watcher);
    }

    /// Logs what is new, once, and publishes the list.
    fn report(&mut self, diagnostics: Vec<Diagnostic>) {
        let mut holding = HashSet::with_capacity(diagnostics.len());
        for diagnostic in &diagnostics {
            let text = diagnostic.to_string();
            if !self.printed.contains(&text) && !holding.contains(&text) {
                match diagnostic.severity {
                    Severity::Error => tracing::error!("{text}"),
                    Severity::Warning => tracing::warn!("{text}"),
                }
            }
            holding.insert(text);
        }
        self.printed = holding;
        self.publish.send_replace(diagnostics.into());
    }
}
