//! kubectl and helm as processes, with a limit to their time; KUBECONFIG is theirs to read.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// For one command that waits for nothing.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its line, for messages.
    pub command: String,
    /// Whether it succeeded.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a success.
    ///
    /// # Errors
    /// When it failed.
    pub fn ok(self) -> anyhow::Result<String> {
        if !self.success {
            bail!("{}: {}{}", self.command, self.stderr, self.stdout);
        }
        Ok(self.stdout)
    }
}

/// Runs kubectl.
///
/// # Errors
/// When it fails.
pub fn kubectl<S: AsRef<OsStr>>(args: &[S]) -> anyhow::Result<String> {
    run("kubectl", args, None, LIMIT)?.ok()
}

/// Runs `kubectl … -o json`.
///
/// # Errors
/// When it fails.
pub fn json<S: AsRef<OsStr>>(args: &[S]) -> anyhow::Result<Value> {
    let mut all: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    all.extend(["-o", "json"].map(OsStr::new));
    Ok(serde_json::from_str(&kubectl(&all)?)?)
}

/// Applies manifests with strict validation.
///
/// # Errors
/// When the API server does not take them.
pub fn apply(yaml: &str) -> anyhow::Result<String> {
    try_apply(yaml)?.ok()
}

/// As [`apply`], with whatever comes of it: warnings are on standard error.
///
/// # Errors
/// When kubectl cannot be run.
pub fn try_apply(yaml: &str) -> anyhow::Result<Outcome> {
    run("kubectl", &["apply", "--validate=strict", "-f", "-"], Some(yaml), LIMIT)
}

/// Runs helm.
///
/// # Errors
/// When it fails.
pub fn helm<S: AsRef<OsStr>>(args: &[S]) -> anyhow::Result<String> {
    run("helm", args, None, LIMIT * 3)?.ok()
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be run, or is not at its end in time (it is ended then).
pub fn run<S: AsRef<OsStr>>(
    program: &str,
    args: &[S],
    input: Option<&str>,
    limit: Duration,
) -> anyhow::Result<Outcome> {
    let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect();
    let command = format!("{program} {}", words.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command}: cannot be run"))?;
    let stdout = child.stdout.take().map(reader);
    let stderr = child.stderr.take().map(reader);
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input.map(str::to_owned)) {
        // Programs that do not read all of it still say why.
        thread::spawn(move || stdin.write_all(input.as_bytes()));
    }
    let success = ended(&mut child, limit).with_context(|| command.clone())?;
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    Ok(Outcome {
        command,
        success,
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

fn reader(mut stream: impl std::io::Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn ended(child: &mut Child, limit: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("not at its end after {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
