//! One question to the name servers: the first that gives a usable answer decides.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::files::ResolvConf;

/// Without EDNS, answers over UDP have at most 512 bytes; more is taken all the same.
const DATAGRAM_MOST: usize = 4096;
/// Aliases that are followed within an answer.
const ALIASES_MOST: usize = 16;

/// What the servers say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one.
    Addresses(Vec<IpAddr>),
    /// There is no such name, or it has no such address.
    None,
    /// No server gave a usable answer.
    Failed(String),
}

pub(super) async fn ask(config: &ResolvConf, name: &Name, kind: RecordType) -> Answer {
    let mut reason = String::new();
    for _ in 0..config.attempts {
        for server in &config.servers {
            let answer = timeout(config.timeout, exchange(*server, name, kind)).await;
            match answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(response) => match response.metadata.response_code {
                    ResponseCode::NoError => return addresses(&response, name, kind),
                    ResponseCode::NXDomain => return Answer::None,
                    code => reason = format!("the name server {server} answers {code}"),
                },
                Err(error) => reason = format!("the name server {server}: {error}"),
            }
        }
    }
    Answer::Failed(reason)
}

/// The addresses that a response gives the name, through aliases.
fn addresses(response: &Message, name: &Name, kind: RecordType) -> Answer {
    let mut owner = name.clone();
    for _ in 0..ALIASES_MOST {
        let own = |candidate: &Name| candidate.eq_ignore_root(&owner);
        let records = || response.answers.iter().filter(|record| own(&record.name));
        let found: Vec<IpAddr> = records()
            .filter_map(|record| match (&record.data, kind) {
                (RData::A(address), RecordType::A) => Some(IpAddr::from(address.0)),
                (RData::AAAA(address), RecordType::AAAA) => Some(IpAddr::from(address.0)),
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            return Answer::Addresses(found);
        }
        let alias = records().find_map(|record| match &record.data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) => owner = alias,
            None => break,
        }
    }
    Answer::None
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut request = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(name.clone(), kind));
    let bytes = request.to_vec().map_err(io::Error::other)?;
    let response = over_udp(server, &request, &bytes).await?;
    if !response.metadata.truncation {
        return Ok(response);
    }
    over_tcp(server, &request, &bytes).await
}

async fn over_udp(server: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    // A port of its own for each question: who answers must know it, and the number.
    let socket = UdpSocket::bind(unspecified(server)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; DATAGRAM_MOST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Strays are passed over; the answer may still come.
        if let Some(response) = matching(request, &buffer[..length]) {
            return Ok(response);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    matching(request, &buffer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
}

fn matching(request: &Message, bytes: &[u8]) -> Option<Message> {
    let response = Message::from_vec(bytes).ok()?;
    let same = response.metadata.id == request.metadata.id
        && response.metadata.message_type == MessageType::Response
        && match (response.queries.first(), request.queries.first()) {
            (Some(got), Some(asked)) => {
                got.query_type() == asked.query_type() && got.name().eq_ignore_root(asked.name())
            }
            // Servers that refuse leave the question out.
            (None, _) => response.metadata.response_code != ResponseCode::NoError,
            _ => false,
        };
    same.then_some(response)
}

/// Whether this machine has a route to an address; nothing is sent.
pub(super) fn has_route(address: IpAddr) -> bool {
    let destination = SocketAddr::new(address, 9);
    std::net::UdpSocket::bind(unspecified(destination)).is_ok_and(|socket| socket.connect(destination).is_ok())
}

fn unspecified(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
