//! `meshctl demo` as a user runs it, for tests: started as a process, called with curl, given policy in its directory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries;
use crate::plain::eventually;

/// A demo that runs.
pub struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Its first line.
    pub info: Value,
    dir: TempDir,
}

/// What curl got.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status; 0 without an answer.
    pub status: u16,
    /// How long it took.
    pub seconds: f64,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }

    /// A field of a JSON body, as text; empty when absent.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        let value = self.json().map(|json| json[name].clone()).unwrap_or_default();
        value.as_str().unwrap_or_default().to_owned()
    }
}

impl Demo {
    /// Starts a demo with further arguments and waits for its first line.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(args: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(&[], args)
    }

    /// As [`Self::start`], with files in the policy directory from the beginning.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(policies: &[(&str, &str)], args: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("policies"))?;
        for (file, text) in policies {
            fs::write(dir.path().join("policies").join(file), text)?;
        }
        let errors = fs::File::create(dir.path().join("stderr"))?;
        let mut child = Command::new(binaries::meshctl())
            .args(["demo", "-o", "json", "--policies"])
            .arg(dir.path().join("policies"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()?;
        let output = child.stdout.take().context("standard output is a pipe")?;
        let mut demo = Self {
            child,
            output: BufReader::new(output),
            info: Value::Null,
            dir,
        };
        demo.info = demo.line().with_context(|| demo.errors())?;
        Ok(demo)
    }

    /// The next line of its output.
    ///
    /// # Errors
    /// When it has ended, or the line is not JSON.
    pub fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the demo ended without a line");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// What it wrote to standard error.
    #[must_use]
    pub fn errors(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// What its first line says of a workload.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a test that asks for another workload is wrong")]
    pub fn workload(&self, name: &str) -> &Value {
        let workloads = self.info["workloads"].as_array().expect("a list of workloads");
        workloads
            .iter()
            .find(|workload| workload["name"] == name)
            .expect("a workload of this name")
    }

    /// A text of what its first line says of a workload.
    #[must_use]
    pub fn text(&self, workload: &str, field: &str) -> String {
        self.workload(workload)[field].as_str().unwrap_or_default().to_owned()
    }

    /// All processes that it has started.
    #[must_use]
    pub fn pids(&self) -> Vec<u64> {
        let workloads = self.info["workloads"].as_array().into_iter().flatten();
        let of_workloads = workloads.flat_map(|workload| [&workload["sidecar_pid"], &workload["app_pid"]]);
        of_workloads
            .chain([&self.info["control_plane"]["pid"]])
            .filter_map(Value::as_u64)
            .collect()
    }

    /// A file in the policy directory.
    #[must_use]
    pub fn policy_path(&self, file: &str) -> PathBuf {
        self.dir.path().join("policies").join(file)
    }

    /// Writes or overwrites a file of policy.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.policy_path(file), text)?)
    }

    /// Deletes a file of policy.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self, file: &str) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.policy_path(file))?)
    }

    /// Calls a URL with the real curl through the sidecar of a workload.
    ///
    /// # Errors
    /// When curl cannot be run.
    pub fn curl(&self, from: &str, args: &[&str]) -> anyhow::Result<Answer> {
        let mut answers = self.curl_all(from, args)?;
        answers.pop().context("curl made no request")
    }

    /// As [`Self::curl`], for arguments that make several requests, such as `-Z` with a range in the URL. Bodies are
    /// kept of single requests only.
    ///
    /// # Errors
    /// When curl cannot be run.
    pub fn curl_all(&self, from: &str, args: &[&str]) -> anyhow::Result<Vec<Answer>> {
        const END: &str = "\u{1}";
        let output = Command::new("curl")
            .args(["-s", "--max-time", "60", "-x", &self.text(from, "proxy_url")])
            .args(["-w", &format!("{END}%{{http_code}} %{{time_total}}{END}")])
            .args(args)
            .output()
            .context("running curl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let parts: Vec<&str> = text.split(END).collect();
        let answers = parts.chunks_exact(2).map(|chunk| {
            let (status, seconds) = chunk[1].split_once(' ').context("curl's own line")?;
            Ok(Answer {
                status: status.parse()?,
                seconds: seconds.parse()?,
                body: chunk[0].to_owned(),
            })
        });
        answers.collect()
    }

    /// A page of a workload's administration.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, workload: &str, path: &str) -> anyhow::Result<String> {
        let address = self.text(workload, "admin_url");
        let address = address.strip_prefix("http://").unwrap_or(&address).parse()?;
        Ok(crate::plain::get(address, path)?.1)
    }

    /// Runs meshctl against this demo's control plane. Standard output, and whether it ended well.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn meshctl(&self, args: &[&str]) -> anyhow::Result<(String, bool)> {
        let status_url = self.info["control_plane"]["status_url"].as_str().unwrap_or_default();
        let output = Command::new(binaries::meshctl())
            .args(args)
            .args(["--control-plane", status_url])
            .output()?;
        let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        Ok((text, output.status.success()))
    }

    /// Sends a signal to the demo itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        send(signal, u64::from(self.child.id()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it goes on.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        eventually("the demo ends", || self.child.try_wait().ok().flatten())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the demo wrote:\n{}", self.errors());
        }
        // Its children end when it does, however that is.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// When it is gone.
pub fn send(signal: &str, pid: u64) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status()?;
    if !status.success() {
        bail!("process {pid} took no signal");
    }
    Ok(())
}

/// Whether a process is there and has not ended.
#[must_use]
pub fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses.
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// A manifest of the reference document, as it stands there.
///
/// # Errors
/// When there is none of this name.
pub fn manifest(name: &str) -> anyhow::Result<String> {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-api/tests/policies");
    let path = policies.join(name).with_extension("yaml");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}
