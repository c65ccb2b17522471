//! The access log: lines go from workers to a file or standard output without ever making a worker wait.
//!
//! A worker formats a line into a buffer that it keeps, and appends it to a shared buffer of its own, which the writer thread
//! takes as a whole and writes at once. When a buffer is full, because the reader of the log is slow, lines are dropped and
//! counted (`mesh_access_log_lines_dropped_total`). The order of lines is that of each worker.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::format::LogFormat;
use super::record::LogRecord;
use super::recorder::ProcessMetrics;
use super::series::{copies, thread_number};

/// Most bytes that wait for the writer, for each worker.
pub(super) const MAX_WAITING: usize = 1024 * 1024;
/// Longest line; what is longer is cut.
const MAX_LINE: usize = 32 * 1024;
/// How long the writer lets lines gather after the first one.
const GATHER: Duration = Duration::from_millis(2);

/// Writes lines of records, if a log is configured.
pub struct AccessLog {
    active: ArcSwapOption<ActiveLog>,
}

/// A format and where its lines go.
pub(super) struct ActiveLog {
    pub format: LogFormat,
    pub writer: Arc<LogWriter>,
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    pub(super) const fn off() -> Self {
        Self {
            active: ArcSwapOption::const_empty(),
        }
    }

    pub(super) fn replace(&self, active: Option<Arc<ActiveLog>>) {
        self.active.store(active);
    }

    pub(super) fn active(&self) -> Option<Arc<ActiveLog>> {
        self.active.load_full()
    }

    /// Whether lines are written at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.active.load().is_some()
    }

    /// Waits until what was logged before is written, at most for `deadline`. Blocks.
    pub fn flush(&self, deadline: Duration) {
        if let Some(active) = self.active() {
            active.writer.flush(deadline);
        }
    }

    /// Calls `with` with the format in force.
    pub(super) fn with_format<T>(&self, with: impl FnOnce(&LogFormat) -> T) -> Option<T> {
        self.active.load().as_ref().map(|active| with(&active.format))
    }

    /// Writes the line of a record, if the log is on. Never waits.
    pub fn log(&self, record: &LogRecord<'_>) {
        let active = self.active.load();
        let Some(active) = active.as_ref() else { return };
        LINE.with_borrow_mut(|line| {
            line.clear();
            active.format.write(record, line);
            if line.len() > MAX_LINE {
                line.truncate(MAX_LINE - 1);
                line.push(b'\n');
            }
            active.writer.push(line);
        });
    }
}

/// Takes lines to one file.
pub(super) struct LogWriter {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    path: Arc<str>,
}

struct Queue {
    /// One for each worker, so that workers do not meet at the lock.
    buffers: Box<[Mutex<Vec<u8>>]>,
    /// Whether the writer knows that there is something.
    woken: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    dropped: metrics::Counter,
}

#[derive(Default)]
struct State {
    wake: bool,
    end: bool,
    /// Flushes asked for, and done.
    flush: u64,
    flushed: u64,
}

impl LogWriter {
    /// Opens `path` for appending; `/dev/stdout` and `/dev/stderr` are this process's.
    pub(super) fn open(path: &Arc<str>, metrics: &ProcessMetrics) -> io::Result<Self> {
        let target: Box<dyn Write + Send> = match &**path {
            "/dev/stdout" => Box::new(io::stdout()),
            "/dev/stderr" => Box::new(io::stderr()),
            path => Box::new(OpenOptions::new().append(true).create(true).open(path)?),
        };
        Self::start(path, target, metrics)
    }

    fn start(path: &Arc<str>, target: Box<dyn Write + Send>, metrics: &ProcessMetrics) -> io::Result<Self> {
        let queue = Arc::new(Queue {
            buffers: (0..copies()).map(|_| Mutex::default()).collect(),
            woken: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            dropped: metrics.counter(
                "mesh_access_log_lines_dropped_total",
                "Lines of the access log that were dropped because its reader is slow or a write failed.",
            ),
        });
        let thread = std::thread::Builder::new().name("access-log".to_owned()).spawn({
            let (queue, path) = (Arc::clone(&queue), Arc::clone(path));
            move || write_loop(&queue, target, &path)
        })?;
        Ok(Self {
            queue,
            thread: Some(thread),
            path: Arc::clone(path),
        })
    }

    /// Where lines go.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    fn push(&self, line: &[u8]) {
        let queue = &*self.queue;
        {
            let mut buffer = lock(&queue.buffers[thread_number() % queue.buffers.len()]);
            if buffer.len() + line.len() > MAX_WAITING {
                drop(buffer);
                queue.dropped.increment(1);
                return;
            }
            buffer.extend_from_slice(line);
        }
        if !queue.woken.swap(true, Ordering::AcqRel) {
            lock(&queue.state).wake = true;
            queue.changed.notify_all();
        }
    }

    /// Waits until everything pushed before is written, at most for `deadline`.
    pub(super) fn flush(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let mut state = lock(&self.queue.state);
        state.flush += 1;
        let wanted = state.flush;
        self.queue.changed.notify_all();
        while state.flushed < wanted {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return;
            };
            state = match self.queue.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        lock(&self.queue.state).end = true;
        self.queue.changed.notify_all();
        // The thread writes what is left and ends by itself: a full pipe must not hold up whoever changed the settings.
        drop(self.thread.take());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_loop(queue: &Queue, mut target: Box<dyn Write + Send>, path: &str) {
    let mut batch = Vec::new();
    let mut failing = false;
    loop {
        let (end, flush) = wait_for_lines(queue);
        // From here on a worker that adds a line wakes the writer again.
        queue.woken.store(false, Ordering::Release);
        for buffer in &queue.buffers {
            batch.clear();
            std::mem::swap(&mut batch, &mut *lock(buffer));
            if batch.is_empty() {
                continue;
            }
            match target.write_all(&batch).and_then(|()| target.flush()) {
                Ok(()) => failing = false,
                Err(error) => {
                    let lines = batch.iter().filter(|byte| **byte == b'\n').count();
                    queue.dropped.increment(lines as u64);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, path, "the access log cannot be written");
                    }
                }
            }
        }
        let mut state = lock(&queue.state);
        if state.flushed < flush {
            state.flushed = flush;
            queue.changed.notify_all();
        }
        if end {
            return;
        }
    }
}

/// Waits until there is something to write, and a moment more for company. Says whether the log ends, and which
/// flush is answered by writing everything now.
fn wait_for_lines(queue: &Queue) -> (bool, u64) {
    let mut state = lock(&queue.state);
    while !state.wake && !state.end && state.flush == state.flushed {
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if !state.end && state.flush == state.flushed {
        state = match queue
            .changed
            .wait_timeout_while(state, GATHER, |state| !state.end && state.flush == state.flushed)
        {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    state.wake = false;
    (state.end, state.flush)
}

#[cfg(test)]
mod tests;
