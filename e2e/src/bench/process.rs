//! Processes under measurement: started on a core of their own, accounted from `/proc`, ended with their owner.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The hidden subcommand by which the benchmark binary turns into the program to measure; see [`become_program`].
pub const PINNED: &str = "pinned";

/// How long a process may take to be ready, or to say what it was asked.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Which core does what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cores {
    /// The proxies under test, alone.
    pub proxy: usize,
    /// Load generator, backend, control plane and this program.
    pub rest: usize,
}

impl Cores {
    /// The first two that this process may use; one for both where there is only one.
    ///
    /// # Errors
    /// When the system does not say which there are.
    pub fn of_this_machine() -> anyhow::Result<Self> {
        let set = sched_getaffinity(None).context("cannot read which cores may be used")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core));
        let proxy = usable.next().ok_or_else(|| anyhow!("no core may be used"))?;
        Ok(Self {
            proxy,
            rest: usable.next().unwrap_or(proxy),
        })
    }
}

/// Confines this thread, and what it starts, to `core`.
///
/// # Errors
/// When the core does not exist or is forbidden to this process.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot use core {core}"))
}

/// Turns this process into `program`, on `core`, to die with its parent. Returns only when that fails.
///
/// # Errors
/// When the core or the program is not to be had.
pub fn become_program(core: usize, program: &[std::ffi::OsString]) -> anyhow::Result<std::convert::Infallible> {
    pin(core)?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot bind this process to its parent's life")?;
    let (program, args) = program.split_first().context("no program given")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Where a process's stdout goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Into its log, with stderr.
    Log,
    /// To [`Process::line`]; the process blocks when nobody reads much of it.
    Read,
}

/// Starts processes by way of the benchmark binary's own [`PINNED`] subcommand.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The benchmark binary.
    pub this_program: PathBuf,
    /// Who runs where.
    pub cores: Cores,
}

impl Launcher {
    /// Starts `command` on `core`. Its stderr goes to `DIR/NAME.log`, which a failure quotes, and its stdout where
    /// `output` says.
    ///
    /// # Errors
    /// When the log cannot be written or the process cannot be started.
    pub fn start(
        &self,
        name: &str,
        core: usize,
        dir: &Path,
        command: &Command,
        output: Output,
    ) -> anyhow::Result<Process> {
        let log = dir.join(format!("{name}.log"));
        let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let stdout = match output {
            Output::Log => stderr.try_clone()?.into(),
            Output::Read => Stdio::piped(),
        };
        let mut pinned = Command::new(&self.this_program);
        pinned
            .args([PINNED, "--core", &core.to_string(), "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => pinned.env(key, value),
                None => pinned.env_remove(key),
            };
        }
        pinned.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        let mut child = pinned.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Process {
            name: name.to_owned(),
            child,
            stdin,
            stdout,
            log,
        })
    }

    /// Starts a subcommand of the benchmark binary itself on the core of the rest.
    ///
    /// # Errors
    /// As [`Launcher::start`].
    pub fn start_own(&self, name: &str, dir: &Path, args: &[String]) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.this_program);
        command.args(args);
        self.start(name, self.cores.rest, dir, &command, Output::Read)
    }
}

/// A started process; dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its stdout.
    ///
    /// # Errors
    /// When it ends without one; the error quotes its log.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if let Some(stdout) = &mut self.stdout {
            stdout
                .read_line(&mut line)
                .with_context(|| format!("cannot read what {} says", self.name))?;
        }
        if line.ends_with('\n') {
            return Ok(line.trim_end().to_owned());
        }
        let status = self.child.wait()?;
        Err(self.ended(status))
    }

    /// Its stdin, to write to.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.stdin.as_mut()
    }

    /// Waits until `probe` gives a value.
    ///
    /// # Errors
    /// When the process ends first or takes longer than [`PATIENCE`]; `what` says what was waited for.
    pub fn wait_for<T>(&mut self, what: &str, mut probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = probe() {
                return Ok(value);
            }
            self.check()?;
            if Instant::now() > deadline {
                bail!(
                    "{} was not ready within {PATIENCE:?}: {what}; its log ends: {}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Fails when the process has ended.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    /// User and system time used so far, all threads, ended ones included.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("{} has ended", self.name))?;
        let ticks = cpu_ticks(&stat).with_context(|| format!("{path} is not as proc(5) says"))?;
        Ok(Duration::from_secs_f64(
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        ))
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("{} has ended", self.name))?;
        resident_bytes(&status).with_context(|| format!("{path} is not as proc(5) says"))
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!(
            "{} ended early ({status}); its log ends: {}",
            self.name,
            self.log_tail()
        )
    }

    fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..])
            .trim()
            .to_owned();
        if text.is_empty() { "(empty)".to_owned() } else { text }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors here mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `utime` + `stime` of a `/proc/PID/stat`; the name before them may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// `VmRSS` of a `/proc/PID/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_a_name_with_parentheses() {
        let stat = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 900 0 0 0 120 34 7 8 20 0 3 0 100 1000 200 1 1";
        assert_eq!(cpu_ticks(stat), Some(154));
        assert_eq!(cpu_ticks("4242 (short) S 1"), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(
            resident_bytes("Name:\tx\nVmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }
}
