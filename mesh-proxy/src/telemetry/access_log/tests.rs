use std::io;
use std::sync::mpsc;

use super::*;
use crate::telemetry::format::LogFormat;

fn dropped(metrics: &ProcessMetrics) -> u64 {
    let mut text = String::new();
    metrics.render(&mut text);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("mesh_access_log_lines_dropped_total "));
    line.unwrap().parse().unwrap()
}

fn record(number: u64) -> LogRecord<'static> {
    LogRecord {
        bytes_sent: number,
        ..LogRecord::default()
    }
}

fn log_to(writer: LogWriter, format: &str) -> AccessLog {
    let log = AccessLog::off();
    log.replace(Some(Arc::new(ActiveLog {
        format: LogFormat::text(format).unwrap(),
        writer: Arc::new(writer),
    })));
    log
}

#[test]
fn lines_of_all_threads_reach_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    std::fs::write(&path, "before\n").unwrap();
    let metrics = ProcessMetrics::new();
    let log = log_to(
        LogWriter::open(&path.to_str().unwrap().into(), &metrics).unwrap(),
        "%BYTES_SENT%",
    );
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || (0..500).for_each(|line| log.log(&record(thread * 500 + line))));
        }
    });
    log.flush(Duration::from_secs(10));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("before"), "files are appended to");
    let mut numbers: Vec<u64> = lines.map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..2_000).collect::<Vec<_>>());
    assert_eq!(dropped(&metrics), 0);
}

/// A reader that takes nothing until it is told to.
struct Stuck {
    begun: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    taken: Arc<Mutex<Vec<u8>>>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.begun.send(());
        let _ = self.go_on.recv();
        lock(&self.taken).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_reader_costs_lines_and_never_time() {
    let (begun_tx, begun) = mpsc::channel();
    let (go_on, go_on_rx) = mpsc::channel();
    let taken = Arc::new(Mutex::default());
    let stuck = Stuck {
        begun: begun_tx,
        go_on: go_on_rx,
        taken: Arc::clone(&taken),
    };
    let metrics = ProcessMetrics::new();
    let log = log_to(
        LogWriter::start(&"stuck".into(), Box::new(stuck), &metrics).unwrap(),
        &"x".repeat(1023),
    );
    log.log(&record(0));
    begun.recv_timeout(Duration::from_secs(10)).unwrap();
    // The writer is stuck with the first line: this thread's buffer fills, and the rest is dropped.
    let fitting = MAX_WAITING / 1024;
    for _ in 0..fitting + 7 {
        log.log(&record(0));
    }
    assert_eq!(dropped(&metrics), 7);
    drop(go_on);
    log.flush(Duration::from_secs(10));
    assert_eq!(lock(&taken).len(), (fitting + 1) * 1024);
}

#[test]
fn a_failing_target_is_counted() {
    struct Failing;
    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("no space"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = ProcessMetrics::new();
    let log = log_to(
        LogWriter::start(&"failing".into(), Box::new(Failing), &metrics).unwrap(),
        "line",
    );
    (0..3).for_each(|_| log.log(&record(0)));
    log.flush(Duration::from_secs(10));
    assert_eq!(dropped(&metrics), 3);
}

#[test]
fn what_is_queued_is_written_after_the_log_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = log_to(
        LogWriter::open(&path.to_str().unwrap().into(), &ProcessMetrics::new()).unwrap(),
        "line",
    );
    log.log(&record(0));
    log.replace(None);
    assert!(!log.is_on());
    log.log(&record(0));
    let end = Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(&path).unwrap() != "line\n" {
        assert!(Instant::now() < end, "the line is missing");
        std::thread::yield_now();
    }
}
