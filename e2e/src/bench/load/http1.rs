//! A lean HTTP/1.1 client: one prepared request, written again and again; of the response only what must be checked.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Entry, Form, MAX_HEAD, Plan, connect};

/// A connection kept alive.
pub(super) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    body_bytes: usize,
    buffer: Box<[u8]>,
}

impl Connection {
    pub(super) async fn open(plan: &Plan) -> anyhow::Result<Self> {
        let stream = connect(&plan.entry).await?;
        let buffer = vec![0; MAX_HEAD].into_boxed_slice();
        Ok(Self {
            stream,
            request: request(&plan.entry).into_bytes(),
            body_bytes: plan.body_bytes,
            buffer,
        })
    }

    /// One request, one whole response.
    pub(super) async fn exchange(&mut self) -> anyhow::Result<()> {
        self.stream
            .write_all(&self.request)
            .await
            .context("the connection broke under a request")?;
        let mut filled = 0;
        let head_end = loop {
            ensure!(
                filled < self.buffer.len(),
                "a response head is longer than {MAX_HEAD} bytes"
            );
            // The end may straddle two reads.
            let searched = filled.saturating_sub(3);
            filled += read(&mut self.stream, &mut self.buffer[filled..]).await?;
            if let Some(at) = find(&self.buffer[searched..filled], b"\r\n\r\n") {
                break searched + at + 4;
            }
        };
        let head = Head::parse(&self.buffer[..head_end])?;
        if head.status != 200 || head.content_length != Some(self.body_bytes) {
            bail!(
                "expected status 200 with content-length {}, got:\n{}",
                self.body_bytes,
                String::from_utf8_lossy(&self.buffer[..filled])
            );
        }
        let mut body = filled - head_end;
        while body < self.body_bytes {
            body += read(&mut self.stream, &mut self.buffer).await?;
        }
        ensure!(
            body == self.body_bytes,
            "a response has {} bytes too many",
            body - self.body_bytes
        );
        Ok(())
    }
}

fn request(entry: &Entry) -> String {
    let authority = &entry.authority;
    let target = match entry.form {
        Form::Origin | Form::Connect => "/bench".to_owned(),
        Form::Absolute => format!("http://{authority}/bench"),
    };
    format!("GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
}

async fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<usize> {
    let read = stream
        .read(buffer)
        .await
        .context("the connection broke under a response")?;
    ensure!(read > 0, "the connection was closed instead of a response");
    Ok(read)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// What is checked of a response head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    content_length: Option<usize>,
}

impl Head {
    /// Reads a whole head, its empty line included.
    pub(super) fn parse(head: &[u8]) -> anyhow::Result<Self> {
        let mut lines = head.split(|&byte| byte == b'\n');
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix(b"HTTP/1.1 "))
            .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok())
            .with_context(|| format!("not an HTTP/1.1 response: {}", String::from_utf8_lossy(head)))?;
        let content_length = lines.find_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let (name, value) = line.split_at(colon);
            if !name.eq_ignore_ascii_case(b"content-length") {
                return None;
            }
            std::str::from_utf8(&value[1..]).ok()?.trim().parse().ok()
        });
        Ok(Self { status, content_length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gives_status_and_length() {
        let head = b"HTTP/1.1 503 Service Unavailable\r\nServer: x\r\nCONTENT-length:  91\r\n\r\n";
        assert_eq!(
            Head::parse(head).unwrap(),
            Head {
                status: 503,
                content_length: Some(91)
            }
        );
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(
            Head::parse(head).unwrap(),
            Head {
                status: 200,
                content_length: None
            }
        );
        assert!(Head::parse(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(Head::parse(b"HTTP/1.1 2\r\n\r\n").is_err());
    }

    #[test]
    fn the_form_decides_the_request_line() {
        let mut entry = Entry {
            address: ([127, 0, 0, 1], 1).into(),
            form: Form::Absolute,
            authority: "reviews.default.svc.cluster.local:9080".to_owned(),
        };
        assert!(request(&entry).starts_with(
            "GET http://reviews.default.svc.cluster.local:9080/bench HTTP/1.1\r\nHost: reviews.default.svc.cluster.local:9080\r\n"
        ));
        entry.form = Form::Connect;
        assert!(request(&entry).starts_with("GET /bench HTTP/1.1\r\n"));
    }
}
