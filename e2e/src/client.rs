//! A plain HTTP/1.1 client for tests: one request, one connection, everything visible. It reaches services as applications
//! do, through their sidecar's explicit proxy, or connects straight to an address.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long a connection may take, and how long a peer may be silent.
const LIMIT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers in the order in which they came; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// First value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    method: &'a str,
    url: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a str,
}

impl<'a> Call<'a> {
    /// GET of `http://host[:port]/path`.
    #[must_use]
    pub fn get(url: &'a str) -> Self {
        Self {
            method: "GET",
            url,
            headers: Vec::new(),
            body: "",
        }
    }

    /// The same with a body.
    #[must_use]
    pub fn post(url: &'a str, body: &'a str) -> Self {
        Self {
            method: "POST",
            body,
            ..Self::get(url)
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'a str, value: &'a str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Sends it through a sidecar's explicit proxy.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub fn through(&self, proxy: SocketAddr) -> anyhow::Result<Answer> {
        let stream = connect(proxy)?;
        self.exchange(stream, self.url)
    }

    /// Sends it to an address, whatever the URL's host resolves to.
    ///
    /// # Errors
    /// When there is no complete answer.
    pub fn to(&self, address: SocketAddr) -> anyhow::Result<Answer> {
        let stream = connect(address)?;
        let (_, path) = self.split()?;
        self.exchange(stream, path)
    }

    /// Writes the request, and gives the connection with the answer unread.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin_through(&self, proxy: SocketAddr) -> anyhow::Result<TcpStream> {
        let mut stream = connect(proxy)?;
        self.write(&mut stream, self.url)?;
        Ok(stream)
    }

    fn split(&self) -> anyhow::Result<(&'a str, &'a str)> {
        let rest = self.url.strip_prefix("http://").context("not an http URL")?;
        Ok(rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash)))
    }

    fn write(&self, stream: &mut TcpStream, target: &str) -> anyhow::Result<()> {
        let (host, _) = self.split()?;
        let mut head = format!(
            "{} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n",
            self.method
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        Ok(stream.write_all(format!("{head}\r\n{}", self.body).as_bytes())?)
    }

    fn exchange(&self, mut stream: TcpStream, target: &str) -> anyhow::Result<Answer> {
        self.write(&mut stream, target)?;
        read_answer(stream).with_context(|| format!("{} {}", self.method, self.url))
    }
}

/// A connection.
///
/// # Errors
/// When it is refused or takes too long.
pub fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to `host:port` through a sidecar's explicit proxy.
///
/// # Errors
/// When the proxy does not agree.
pub fn tunnel(proxy: SocketAddr, target: &str) -> anyhow::Result<TcpStream> {
    let mut stream = connect(proxy)?;
    write!(stream, "CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")?;
    // The head is read byte by byte: what follows belongs to the tunnel.
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            bail!("the proxy ended the connection at CONNECT {target}");
        }
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 200") {
        bail!("CONNECT {target}: {}", String::from_utf8_lossy(&head));
    }
    Ok(stream)
}

/// Reads a whole answer, to the end of its body.
///
/// # Errors
/// When the connection ends first, or what comes is no answer.
pub fn read_answer(stream: TcpStream) -> anyhow::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = || -> anyhow::Result<String> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("the connection ended within an answer's head");
        }
        Ok(line.trim_end().to_owned())
    };
    let status_line = line()?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status line: {status_line}"))?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line}"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        body: String::new(),
    };
    let mut body = Vec::new();
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).with_context(|| format!("no chunk size: {size}"))?;
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..])?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = answer.header("content-length") {
        body.resize(length.parse().context("content-length")?, 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    answer.body = String::from_utf8(body).context("a body that is not text")?;
    Ok(answer)
}

/// Requests one after the other until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tally>>,
}

/// What became of traffic.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers with 200.
    pub good: usize,
    /// What else happened.
    pub bad: Vec<String>,
}

impl Traffic {
    /// Calls `url` through a sidecar, with a connection for each request, `pause` apart.
    #[must_use]
    pub fn start(proxy: SocketAddr, url: &str, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, url) = (stop.clone(), url.to_owned());
        let thread = std::thread::spawn(move || {
            let mut tally = Tally::default();
            while !stopped.load(Ordering::Relaxed) {
                match Call::get(&url).through(proxy) {
                    Ok(answer) if answer.status == 200 => tally.good += 1,
                    Ok(answer) => tally.bad.push(format!("{} {}", answer.status, answer.body)),
                    Err(error) => tally.bad.push(format!("{error:#}")),
                }
                std::thread::sleep(pause);
            }
            tally
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it after the request that is under way.
    #[must_use]
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
