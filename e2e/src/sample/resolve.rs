//! Names to addresses without the C library, whose resolver static programs lack: /etc/hosts, then the name servers of
//! /etc/resolv.conf with its search list.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

/// For one answer of one server.
const LIMIT: Duration = Duration::from_secs(2);
/// Times that each server is asked.
const ATTEMPTS: usize = 3;
/// Of an answer over UDP.
const ANSWER_MOST: usize = 4096;

/// The addresses of a host, IPv4 before IPv6.
///
/// # Errors
/// When it has none, or no server answers.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    let known = hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if !known.is_empty() {
        return Ok(known);
    }
    let settings = Settings::parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    for name in settings.candidates(host) {
        let mut found = settings.ask(&name, RecordType::A).await?;
        found.extend(settings.ask(&name, RecordType::AAAA).await?);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{host}: no such host")))
}

fn hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect()
}

#[derive(Debug, PartialEq)]
struct Settings {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    dots: usize,
}

impl Settings {
    fn parse(text: &str) -> Self {
        let mut settings = Self {
            servers: Vec::new(),
            search: Vec::new(),
            dots: 1,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => settings
                    .servers
                    .extend(words.next().and_then(|w| w.parse::<IpAddr>().ok())),
                Some("search") => settings.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    for dots in words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()) {
                        settings.dots = dots;
                    }
                }
                _ => {}
            }
        }
        if settings.servers.is_empty() {
            settings.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        settings
    }

    /// The names that are asked for, in order, as resolv.conf(5) says.
    fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{host}.{domain}.")).collect();
        let itself = format!("{host}.");
        if host.matches('.').count() >= self.dots {
            names.insert(0, itself);
        } else {
            names.push(itself);
        }
        names
    }

    async fn ask(&self, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::new(io::ErrorKind::TimedOut, format!("{name}: no name server answers"));
        for _ in 0..ATTEMPTS {
            for server in &self.servers {
                match tokio::time::timeout(LIMIT, ask(*server, name, kind)).await {
                    Ok(Ok(addresses)) => return Ok(addresses),
                    Ok(Err(error)) => last = error,
                    Err(_) => {}
                }
            }
        }
        Err(last)
    }
}

async fn ask(server: IpAddr, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let local: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect((server, 53)).await?;
    let name: Name = name
        .parse()
        .map_err(|error| io::Error::other(format!("{name}: {error}")))?;
    let id = fastrand::u16(..);
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    socket.send(&query.to_vec().map_err(io::Error::other)?).await?;
    let mut buffer = [0; ANSWER_MOST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Ok(answer) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        if answer.metadata.id != id {
            continue;
        }
        return match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(address) => Some(IpAddr::V4(address.0)),
                    RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                    _ => None,
                })
                .collect()),
            code => Err(io::Error::other(format!("{name}: {code}"))),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_comes_first_for_names_with_few_dots() {
        let settings = Settings::parse("search a.svc b\nnameserver 198.18.0.10\noptions ndots:2 edns0\n");
        assert_eq!(settings.servers, ["198.18.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            settings.candidates("reviews"),
            ["reviews.a.svc.", "reviews.b.", "reviews."]
        );
        assert_eq!(settings.candidates("x.y.z")[0], "x.y.z.");
        assert_eq!(settings.candidates("x."), ["x."]);
    }

    #[test]
    fn hosts_are_read() {
        let text = "127.0.0.1 localhost # me\n198.18.0.1\tpod pod.x\n";
        assert_eq!(hosts(text, "pod.x"), ["198.18.0.1".parse::<IpAddr>().unwrap()]);
        assert!(hosts(text, "me").is_empty());
    }
}
