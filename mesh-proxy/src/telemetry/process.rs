//! Processor time, memory and descriptors of this process, under the names that Prometheus clients use.

use std::fmt::Write as _;
use std::fs;

/// Appends the process's metrics; those that the system does not tell are left out.
pub(super) fn render(out: &mut String) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(Stat::parse)
    {
        write(
            out,
            "process_cpu_seconds_total",
            "counter",
            "User and system processor time.",
            stat.cpu_seconds,
        );
        write(
            out,
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory.",
            stat.resident_bytes,
        );
        write(
            out,
            "process_virtual_memory_bytes",
            "gauge",
            "Virtual memory.",
            stat.virtual_bytes,
        );
        write(out, "process_threads", "gauge", "Threads.", stat.threads);
        if let Some(boot) = boot_seconds() {
            let help = "Start of the process, in seconds since 1970.";
            write(
                out,
                "process_start_time_seconds",
                "gauge",
                help,
                boot + stat.start_seconds,
            );
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory itself is open while it is read.
        write(
            out,
            "process_open_fds",
            "gauge",
            "Open descriptors.",
            open.count().saturating_sub(1),
        );
    }
    if let Some(max) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        write(
            out,
            "process_max_fds",
            "gauge",
            "Most descriptors that may be open.",
            max,
        );
    }
}

fn write(out: &mut String, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
}

/// What is used of `/proc/self/stat` (proc_pid_stat(5)).
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// Since the machine's start.
    start_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    #[allow(clippy::cast_precision_loss, reason = "ticks of years stay far below 2^52")]
    fn parse(text: &str) -> Option<Self> {
        // The second field is the command in brackets and may hold anything; what follows begins with the third.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start_seconds: field(22)? as f64 / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

fn boot_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_and_spaces_is_skipped() {
        let text = "7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 250 50 0 0 20 0 9 0 1000 4096 3 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.threads, 9);
        assert_eq!(stat.virtual_bytes, 4096);
        assert!(stat.cpu_seconds > 0.0 && stat.start_seconds > 0.0 && stat.resident_bytes > 0);
    }

    #[test]
    fn this_process_is_described() {
        let mut text = String::new();
        render(&mut text);
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
        ] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(line.trim().parse::<f64>().unwrap() >= 0.0, "{name}{line}");
        }
    }
}
