//! Single requests: as `get` with an answer in JSON, for tests, and as `curl` with those of its options that people and
//! documents use.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, Parser};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::{Value, json};

use super::http::{Answer, Call};

/// Requests, one after the other.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// `http://host:port/path`
    pub url: Uri,
    /// `name: value`. Repeatable.
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    pub headers: Vec<String>,
    /// Method.
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: Method,
    /// The body.
    #[arg(short, long, default_value = "")]
    pub data: String,
    /// How many.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub count: u32,
    /// Seconds that each may take.
    #[arg(short = 'm', long, default_value_t = 30.0)]
    pub max_time: f64,
    /// HTTP/2 from the first byte.
    #[arg(long)]
    pub http2: bool,
    /// All on one connection.
    #[arg(long)]
    pub keep_alive: bool,
}

/// Makes requests and prints each answer as a line of JSON: `status` (0 without an answer), `headers`, `body`, `error`,
/// `seconds`.
///
/// # Errors
/// When the request cannot be made at all.
pub async fn run(args: GetArgs) -> anyhow::Result<()> {
    let call = Call {
        method: args.method,
        url: args.url,
        headers: headers(&args.headers)?,
        body: Bytes::from(args.data),
        http2: args.http2,
    };
    let limit = Duration::from_secs_f64(args.max_time);
    let mut connection = None;
    for _ in 0..args.count {
        let start = Instant::now();
        let answer = tokio::time::timeout(limit, async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => call.connect(limit).await?,
            };
            anyhow::ensure!(open.ready().await, "the connection has ended");
            let answer = open.send(&call).await?;
            anyhow::Ok((answer, open))
        })
        .await;
        let answer = match answer {
            Ok(Ok((answer, open))) => {
                connection = args.keep_alive.then_some(open);
                Ok(answer)
            }
            Ok(Err(error)) => Err(format!("{error:#}")),
            Err(_) => Err("no answer in time".to_owned()),
        };
        println!("{}", described(answer, start.elapsed()));
    }
    Ok(())
}

fn described(answer: Result<Answer, String>, time: Duration) -> Value {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return json!({ "status": 0, "error": error, "seconds": time.as_secs_f64() }),
    };
    let mut headers = serde_json::Map::new();
    for name in answer.headers.keys() {
        let values: Vec<_> = answer
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), Value::from(values.join(",")));
    }
    let body = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&answer.body).into_owned()));
    json!({
        "status": answer.status.as_u16(),
        "version": format!("{:?}", answer.version),
        "headers": headers,
        "body": body,
        "seconds": time.as_secs_f64(),
    })
}

fn headers(lines: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("{line}: a header is name: value"))?;
        headers.append(
            HeaderName::from_bytes(name.trim().as_bytes())?,
            HeaderValue::from_str(value.trim())?,
        );
    }
    Ok(headers)
}

/// Transfers a URL over plain HTTP.
#[derive(Debug, Parser)]
#[command(name = "curl", disable_help_flag = true)]
struct Curl {
    /// `http://` may be left out.
    url: String,
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    #[arg(short = 'X', long = "request")]
    method: Option<Method>,
    #[arg(short, long)]
    data: Option<String>,
    #[arg(short = 'm', long, default_value_t = 60.0)]
    max_time: f64,
    /// Headers before the body.
    #[arg(short, long)]
    include: bool,
    /// Nothing but the body is printed anyway.
    #[arg(short, long)]
    silent: bool,
    /// Errors are shown anyway.
    #[arg(short = 'S', long)]
    show_error: bool,
    /// A status from 400 is an error.
    #[arg(short, long)]
    fail: bool,
    /// Where the body goes: `/dev/null` or nowhere else than standard output.
    #[arg(short, long)]
    output: Option<String>,
    /// Printed at the end; `%{http_code}` and `\n` are known.
    #[arg(short, long)]
    write_out: Option<String>,
    #[arg(long)]
    http2_prior_knowledge: bool,
}

/// What `curl` does with these arguments.
///
/// # Errors
/// As curl: when there is no answer, or with `--fail` one from 400.
pub async fn curl(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> anyhow::Result<()> {
    let args = Curl::parse_from(arguments);
    let url = if args.url.contains("://") {
        args.url
    } else {
        format!("http://{}", args.url)
    };
    let default = if args.data.is_some() { Method::POST } else { Method::GET };
    let call = Call {
        method: args.method.unwrap_or(default),
        url: url.parse()?,
        headers: headers(&args.headers)?,
        body: Bytes::from(args.data.unwrap_or_default()),
        http2: args.http2_prior_knowledge,
    };
    let limit = Duration::from_secs_f64(args.max_time);
    let answer = tokio::time::timeout(limit, async {
        let mut open = call.connect(limit).await?;
        anyhow::Ok(open.send(&call).await?)
    })
    .await
    .context("no answer in time")??;
    let mut out = std::io::stdout().lock();
    if args.include {
        writeln!(out, "{:?} {}", answer.version, answer.status)?;
        for (name, value) in &answer.headers {
            writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        writeln!(out)?;
    }
    if args.output.as_deref() != Some("/dev/null") {
        out.write_all(&answer.body)?;
    }
    if let Some(format) = args.write_out {
        let code = answer.status.as_u16().to_string();
        write!(out, "{}", format.replace("%{http_code}", &code).replace("\\n", "\n"))?;
    }
    if args.fail {
        anyhow::ensure!(answer.status.as_u16() < 400, "the server answered {}", answer.status);
    }
    Ok(())
}
