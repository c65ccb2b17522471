//! Names to addresses without the C library, whose resolver static binaries lack.
//!
//! In comes a host name; out go its addresses, from `/etc/hosts` or the name servers of `/etc/resolv.conf`, read again
//! whenever they change. Search list, `ndots`, `timeout` and `attempts` mean what they mean to the C library; A and AAAA are
//! asked for at the same time, over UDP, and over TCP when an answer does not fit. Nothing is cached: those who ask keep
//! what they need.
//!
//! A server that fails ends the search: an answer for another name of the search list must not take the place of one that
//! could not be had.

mod files;
mod query;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use files::{Hosts, ResolvConf, Watched};
use query::Answer;

/// Names that are looked up at the same time; more wait.
const LOOKUPS_MOST: usize = 64;
/// Long enough for the next name server when one is silent.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);
/// To each address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses that a connection is tried to.
const CONNECT_TO_MOST: usize = 4;
/// Addresses of one name.
const ADDRESSES_MOST: usize = 256;

/// Looks names up. One for the process, see [`system`]; tests make their own.
pub struct Resolver {
    hosts: Watched<Hosts>,
    config: Watched<ResolvConf>,
    places: Semaphore,
}

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No DNS name has this form.
    #[error("`{0}` is not a host name")]
    NotAName(String),
    /// The servers say that there is none.
    #[error("{0}: no such host")]
    NotFound(String),
    /// No server gave a usable answer.
    #[error("{name}: {reason}")]
    Unanswered {
        /// The name that was asked for.
        name: String,
        /// What the last server did.
        reason: String,
    },
}

impl From<ResolveError> for io::Error {
    fn from(error: ResolveError) -> Self {
        let kind = match &error {
            ResolveError::NotAName(_) => io::ErrorKind::InvalidInput,
            ResolveError::NotFound(_) => io::ErrorKind::NotFound,
            ResolveError::Unanswered { .. } => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// Connects to the first address of a host that answers.
///
/// # Errors
/// When the name does not resolve, or with what the last address said.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = timeout(LOOKUP_TIMEOUT, system().lookup(host))
        .await
        .unwrap_or_else(|_| {
            Err(ResolveError::Unanswered {
                name: host.to_owned(),
                reason: "no name server answered in time".to_owned(),
            })
        })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses.into_iter().take(CONNECT_TO_MOST) {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect((address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// The resolver of this process: `/etc/hosts` and `/etc/resolv.conf`.
#[must_use]
pub fn system() -> &'static Resolver {
    static SYSTEM: LazyLock<Resolver> = LazyLock::new(|| Resolver::new("/etc/hosts", "/etc/resolv.conf"));
    &SYSTEM
}

impl Resolver {
    /// Reads these files instead of the system's.
    #[must_use]
    pub fn new(hosts: impl Into<PathBuf>, resolv_conf: impl Into<PathBuf>) -> Self {
        Self {
            hosts: Watched::new(hosts),
            config: Watched::new(resolv_conf),
            places: Semaphore::new(LOOKUPS_MOST),
        }
    }

    /// All addresses of a host: those that this machine has a route to first, and of these IPv4 first. An address in text
    /// form is itself.
    ///
    /// # Errors
    /// When there is none, or no server says.
    pub async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let name = Name::from_ascii(host).map_err(|_| ResolveError::NotAName(host.to_owned()))?;
        if name.num_labels() == 0 {
            return Err(ResolveError::NotAName(host.to_owned()));
        }
        let bare = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let mut addresses = match self.hosts(&bare) {
            Some(addresses) => addresses,
            // RFC 6761 §6.3: never asked of a server.
            None if bare == "localhost" || bare.ends_with(".localhost") => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            None => self.search(&name, host).await?,
        };
        addresses.truncate(ADDRESSES_MOST);
        // Each is tried once: with a comparison that asks again, an order may contradict itself.
        addresses.sort_by_cached_key(|address| (!query::has_route(*address), address.is_ipv6()));
        Ok(addresses)
    }

    fn hosts(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.hosts.current().get(name)
    }

    async fn search(&self, name: &Name, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        // Never closed.
        let _place = self.places.acquire().await;
        let config = self.config.current();
        for candidate in candidates(name, &config) {
            let (v4, v6) = tokio::join!(
                query::ask(&config, &candidate, RecordType::A),
                query::ask(&config, &candidate, RecordType::AAAA)
            );
            let (mut addresses, mut failure) = (Vec::new(), None);
            for answer in [v4, v6] {
                match answer {
                    Answer::Addresses(found) => addresses.extend(found),
                    Answer::None => {}
                    Answer::Failed(reason) => failure = Some(reason),
                }
            }
            match (addresses.is_empty(), failure) {
                (false, _) => return Ok(addresses),
                (true, None) => {}
                (true, Some(reason)) => {
                    return Err(ResolveError::Unanswered {
                        name: candidate.to_ascii(),
                        reason,
                    });
                }
            }
        }
        Err(ResolveError::NotFound(host.to_owned()))
    }
}

/// The names to ask for, in order (resolv.conf(5), `search` and `ndots`).
fn candidates(name: &Name, config: &ResolvConf) -> Vec<Name> {
    let absolute = || {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        absolute
    };
    if name.is_fqdn() {
        return vec![absolute()];
    }
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let mut candidates: Vec<Name> = config
        .search
        .iter()
        // One that would be too long is no name.
        .filter_map(|domain| name.clone().append_domain(domain).ok())
        .collect();
    if dots >= config.ndots {
        candidates.insert(0, absolute());
    } else {
        candidates.push(absolute());
    }
    candidates
}
