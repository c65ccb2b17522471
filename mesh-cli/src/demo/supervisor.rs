//! Child processes: started from this very program, restarted when they fail, gone when it goes.
//!
//! Every child holds the read end of a pipe whose write end is the demo's: when the demo ends, however it ends, the pipe
//! closes and the child stops. So no process is left behind, and nothing needs process groups or signals.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between the end of a child and its next start; doubled, up to the bound, as long as it ends soon again.
const RESTART_DELAY: Duration = Duration::from_millis(500);
const MAX_RESTART_DELAY: Duration = Duration::from_secs(10);
/// A child that lived so long has worked.
const LIVED: Duration = Duration::from_secs(10);
/// How long a child may take to stop by itself.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// For messages: `reviews-v1 sidecar`.
    pub label: String,
    /// Arguments to this program.
    pub args: Vec<OsString>,
    /// Where standard output and error go.
    pub log: PathBuf,
}

/// A child that is kept running.
pub struct Supervised {
    stop: watch::Sender<bool>,
    pid: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

/// A child that runs now.
struct Running {
    process: Child,
    /// The pipe that keeps it alive. It cannot stay in `process`: waiting for a child closes its standard input.
    life: Option<ChildStdin>,
}

impl Supervised {
    /// Starts a child, and starts it again whenever it ends.
    ///
    /// # Errors
    /// When it cannot be started the first time.
    pub fn start(spec: Spec) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let pid = Arc::new(AtomicU32::new(0));
        let child = spawn(&spec)?;
        pid.store(child.process.id().unwrap_or(0), Ordering::Relaxed);
        let task = tokio::spawn(keep_running(spec, child, pid.clone(), stopped));
        Ok(Self { stop, pid, task })
    }

    /// Process id of the current child.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Asks the child to stop, and waits until it has.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.task.await;
    }
}

async fn keep_running(spec: Spec, mut child: Running, pid: Arc<AtomicU32>, mut stop: watch::Receiver<bool>) {
    let mut delay = RESTART_DELAY;
    loop {
        let started = Instant::now();
        let status = tokio::select! {
            () = asked_to_stop(&mut stop) => {
                child.end().await;
                return;
            }
            status = child.process.wait() => {
                status.map_or_else(|error| error.to_string(), |status| status.to_string())
            }
        };
        delay = if started.elapsed() < LIVED {
            delay
        } else {
            RESTART_DELAY
        };
        let (label, log) = (&spec.label, spec.log.display());
        eprintln!("{label} ended ({status}) and is started again in {delay:?}; its log: {log}");
        tokio::select! {
            () = asked_to_stop(&mut stop) => return,
            () = tokio::time::sleep(delay) => {}
        }
        delay = (delay * 2).min(MAX_RESTART_DELAY);
        match spawn(&spec) {
            Ok(next) => {
                pid.store(next.process.id().unwrap_or(0), Ordering::Relaxed);
                child = next;
            }
            Err(error) => {
                eprintln!("{} cannot be started again: {error}", spec.label);
                return;
            }
        }
    }
}

async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Running {
    async fn end(mut self) {
        drop(self.life);
        if tokio::time::timeout(STOP_LIMIT, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

fn spawn(spec: &Spec) -> io::Result<Running> {
    let log = open_log(&spec.log)?;
    let mut command = Command::new(std::env::current_exe()?);
    // Settings of the user's own proxies are not for these.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MESH_")) {
        command.env_remove(name);
    }
    let mut process = command
        .args(&spec.args)
        // Ctrl-C is for the demo alone, which stops its children in order.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()?;
    let life = process.stdin.take();
    Ok(Running { process, life })
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// In a child: calls `stop` when the parent's end of standard input closes.
pub fn on_parent_gone(stop: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        let mut sink = [0_u8; 64];
        loop {
            match io::stdin().read(&mut sink) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        stop();
    });
}
