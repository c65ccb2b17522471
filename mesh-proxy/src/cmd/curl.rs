//! A small `curl` for the sidecar's container, where people are used to one: GET over plaintext HTTP, to loopback only.
//!
//! It takes the options that such calls are typed with, prints what curl prints, and ends with curl's codes. Everything else
//! is refused by name, so that nobody takes silence for success.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Request, Response, Version, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const USAGE: &str = "\
usage: curl [options] URL
GET over plaintext HTTP, from this pod to itself.
  -s, --silent           no messages of errors
  -S, --show-error       but those, with -s
  -f, --fail             a status from 400 on is an error, and no body is printed
  -i, --include          print the head of the response too
  -v, --verbose          print both heads, to standard error
  -o, --output FILE      write the body to a file
  -H, --header LINE      send a header
  -m, --max-time SECONDS
  -G, -X GET, --get      what happens anyway
  -h, --help, -V, --version
";

/// A call that ends without success: curl's code for it, and the message.
#[derive(Debug, PartialEq, Eq)]
struct Failure(u8, String);

/// What was typed.
#[derive(Debug, Default, PartialEq)]
struct Options {
    silent: bool,
    show_error: bool,
    fail: bool,
    include: bool,
    verbose: bool,
    output: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
    limit: Option<Duration>,
    url: Option<String>,
    help: Option<Help>,
}

#[derive(Debug, PartialEq, Eq)]
enum Help {
    Usage,
    Version,
}

/// Where a URL points.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    addresses: Vec<SocketAddr>,
    /// As it is sent in `Host`.
    authority: String,
    path: String,
}

/// Runs `curl` with its arguments, without its own name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = arguments
        .into_iter()
        .map(|argument| argument.to_string_lossy().into_owned());
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(failure) => return report(&failure, true),
    };
    match options.help {
        Some(Help::Usage) => print!("{USAGE}"),
        Some(Help::Version) => println!("curl of mesh-proxy {}", env!("CARGO_PKG_VERSION")),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(transfer(&options)),
                Err(error) => Err(Failure(2, error.to_string())),
            };
            if let Err(failure) = result {
                return report(&failure, !options.silent || options.show_error);
            }
        }
    }
    ExitCode::SUCCESS
}

fn report(Failure(code, message): &Failure, show: bool) -> ExitCode {
    if show {
        eprintln!("curl: ({code}) {message}");
    }
    ExitCode::from(*code)
}

impl Options {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == "--" {
                for url in arguments.by_ref() {
                    options.take_url(url)?;
                }
            } else if let Some(long) = argument.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let short = match name {
                    "silent" => 's',
                    "show-error" => 'S',
                    "fail" => 'f',
                    "include" => 'i',
                    "verbose" => 'v',
                    "output" => 'o',
                    "header" => 'H',
                    "max-time" => 'm',
                    "request" => 'X',
                    "get" => 'G',
                    "help" => 'h',
                    "version" => 'V',
                    _ => return Err(unknown(&argument)),
                };
                options.take(short, &argument, value, &mut arguments)?;
            } else if let Some(shorts) = argument.strip_prefix('-').filter(|shorts| !shorts.is_empty()) {
                let mut rest = shorts.chars();
                while let Some(short) = rest.next() {
                    let takes_value = matches!(short, 'o' | 'H' | 'm' | 'X');
                    let attached = (takes_value && !rest.as_str().is_empty()).then(|| rest.as_str().to_owned());
                    let ends = attached.is_some();
                    options.take(short, &argument, attached, &mut arguments)?;
                    if ends {
                        break;
                    }
                }
            } else {
                options.take_url(argument)?;
            }
        }
        if options.url.is_none() && options.help.is_none() {
            return Err(Failure(2, format!("no URL specified\n{USAGE}")));
        }
        Ok(options)
    }

    fn take(
        &mut self,
        short: char,
        typed: &str,
        attached: Option<String>,
        more: &mut impl Iterator<Item = String>,
    ) -> Result<(), Failure> {
        let mut value = || {
            let value = attached.clone().or_else(|| more.next());
            value.ok_or_else(|| Failure(2, format!("option {typed}: requires parameter")))
        };
        match short {
            's' => self.silent = true,
            'S' => self.show_error = true,
            'f' => self.fail = true,
            'i' => self.include = true,
            'v' => self.verbose = true,
            'G' => {}
            'h' => self.help = Some(Help::Usage),
            'V' => self.help = Some(Help::Version),
            'o' => self.output = Some(value()?),
            'H' => self.headers.push(parse_header(&value()?)?),
            'm' => {
                let text = value()?;
                let limit = text
                    .parse()
                    .ok()
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                self.limit = Some(limit.ok_or_else(|| Failure(2, format!("option {typed}: expected seconds")))?);
            }
            'X' => {
                let method = value()?;
                if method != "GET" {
                    return Err(Failure(2, format!("this small curl only sends GET, not {method}")));
                }
            }
            _ => return Err(unknown(typed)),
        }
        Ok(())
    }

    fn take_url(&mut self, url: String) -> Result<(), Failure> {
        if self.url.replace(url).is_some() {
            return Err(Failure(2, "this small curl takes one URL at a time".to_owned()));
        }
        Ok(())
    }
}

fn unknown(option: &str) -> Failure {
    Failure(2, format!("option {option}: is unknown to this small curl; see --help"))
}

fn parse_header(line: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let parsed = line.split_once(':').and_then(|(name, value)| {
        let name: HeaderName = name.trim().parse().ok()?;
        Some((name, HeaderValue::from_str(value.trim()).ok()?))
    });
    parsed.ok_or_else(|| Failure(2, format!("option -H: `{line}` is no header")))
}

impl Target {
    fn parse(url: &str) -> Result<Self, Failure> {
        let malformed = || Failure(3, format!("URL rejected: `{url}` is malformed"));
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(Failure(1, format!("Protocol \"{scheme}\" not supported: only http"))),
            None => url,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority: Authority = authority.parse().map_err(|_| malformed())?;
        let after_host = authority.as_str().strip_prefix(authority.host());
        if !matches!(after_host, Some("" | ":")) && (after_host.is_none() || authority.port_u16().is_none()) {
            return Err(malformed());
        }
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        path.parse::<PathAndQuery>().map_err(|_| malformed())?;
        let port = authority.port_u16().unwrap_or(80);
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = match bare.parse::<IpAddr>() {
            Ok(ip) if ip.to_canonical().is_loopback() => vec![ip],
            Err(_) if bare.eq_ignore_ascii_case("localhost") => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            _ => {
                return Err(Failure(
                    6,
                    format!("{host}: this small curl only reaches this pod itself, at localhost"),
                ));
            }
        };
        Ok(Self {
            addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
            authority: authority.as_str().to_owned(),
            path,
        })
    }
}

async fn transfer(options: &Options) -> Result<(), Failure> {
    let target = Target::parse(options.url.as_deref().unwrap_or_default())?;
    let transferring = exchange(options, &target);
    match options.limit {
        None => transferring.await,
        Some(limit) => match tokio::time::timeout(limit, transferring).await {
            Ok(result) => result,
            Err(_) => Err(Failure(
                28,
                format!("Operation timed out after {} milliseconds", limit.as_millis()),
            )),
        },
    }
}

async fn exchange(options: &Options, target: &Target) -> Result<(), Failure> {
    let stream = connect(target).await?;
    let mut request = Request::builder()
        .uri(&target.path)
        .header(header::HOST, &target.authority)
        .header(
            header::USER_AGENT,
            concat!("curl/mesh-proxy-", env!("CARGO_PKG_VERSION")),
        )
        .header(header::ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure(3, error.to_string()))?;
    for (name, value) in &options.headers {
        request.headers_mut().insert(name.clone(), value.clone());
    }
    if options.verbose {
        eprint!("{}", head_of_request(&request));
    }
    let broken = |error: hyper::Error| match error.is_incomplete_message() {
        true => Failure(52, "Empty reply from server".to_owned()),
        false => Failure(56, format!("Recv failure: {error}")),
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(broken)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    if options.verbose {
        eprint!("{}", head_of_response(&response, "< "));
    }
    let status = response.status().as_u16();
    if options.fail && status >= 400 {
        return Err(Failure(22, format!("The requested URL returned error: {status}")));
    }
    let mut out: Box<dyn Write> = match options.output.as_deref() {
        None | Some("-") => Box::new(std::io::stdout().lock()),
        Some(path) => {
            let file = std::fs::File::create(path);
            Box::new(file.map_err(|error| Failure(23, format!("Failure writing output to {path}: {error}")))?)
        }
    };
    let unwritten = |error: std::io::Error| Failure(23, format!("Failure writing output: {error}"));
    if options.include {
        out.write_all(head_of_response(&response, "").as_bytes())
            .map_err(unwritten)?;
    }
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure(18, format!("transfer closed with data outstanding: {error}")))?;
        if let Some(piece) = frame.data_ref() {
            out.write_all(piece).map_err(unwritten)?;
        }
    }
    out.flush().map_err(unwritten)
}

async fn connect(target: &Target) -> Result<TcpStream, Failure> {
    let mut failed = None;
    for address in &target.addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            // The first family's reason is the one that people look for.
            Err(error) => _ = failed.get_or_insert(error),
        }
    }
    let reason = failed.map(|error| error.to_string()).unwrap_or_default();
    Err(Failure(
        7,
        format!("Failed to connect to {}: {reason}", target.authority),
    ))
}

fn head_of_request(request: &Request<Empty<Bytes>>) -> String {
    let mut text = format!("> {} {} HTTP/1.1\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("> {name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text + ">\n"
}

fn head_of_response(response: &Response<Incoming>, prefix: &str) -> String {
    let version = if response.version() == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let mut text = format!("{prefix}{version} {}\r\n", response.status());
    for (name, value) in response.headers() {
        text += &format!("{prefix}{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    text + prefix.trim_end() + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_people_type() {
        let options = parse("-sS localhost:15000/config_dump").unwrap();
        assert!(options.silent && options.show_error);
        assert_eq!(options.url.as_deref(), Some("localhost:15000/config_dump"));
        let options = parse("-sfi -o /tmp/x --header=a:b -Hc:d -m 2.5 -X GET http://127.0.0.1/").unwrap();
        assert!(options.fail && options.include && !options.verbose);
        assert_eq!(options.output.as_deref(), Some("/tmp/x"));
        assert_eq!(options.headers.len(), 2);
        assert_eq!(options.limit, Some(Duration::from_millis(2500)));
        assert_eq!(parse("--help").unwrap().help, Some(Help::Usage));
        for line in [
            "",
            "-s",
            "-d x localhost",
            "-XPOST localhost",
            "--data x localhost",
            "-H nothing localhost",
            "-o",
            "a b",
            "-m soon localhost",
        ] {
            assert_eq!(parse(line).unwrap_err().0, 2, "{line}");
        }
    }

    #[test]
    fn only_this_pod_is_reached() {
        for (url, authority, path) in [
            ("localhost:15090/stats", "localhost:15090", "/stats"),
            ("http://LOCALHOST?a=b", "LOCALHOST", "/?a=b"),
            ("127.9.8.7:1/x#y", "127.9.8.7:1", "/x"),
            ("http://[::1]:15000", "[::1]:15000", "/"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.authority.as_str(), target.path.as_str()), (authority, path));
            assert!(target.addresses.iter().all(|address| address.ip().is_loopback()));
        }
        for (url, code) in [
            ("https://localhost", 1),
            ("file:///etc/passwd", 1),
            ("http://", 3),
            ("localhost:99999/", 3),
            ("localhost:x/", 3),
            ("user@localhost", 3),
            ("localhost:80/a b", 3),
            ("reviews:9080", 6),
            ("198.18.0.1", 6),
            ("0.0.0.0:15000", 6),
        ] {
            assert_eq!(Target::parse(url).unwrap_err().0, code, "{url}");
        }
    }
}
