//! `/etc/hosts` and `/etc/resolv.conf`, read again when they have changed.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::rr::Name;

/// More of a file is not read.
const FILE_MOST: u64 = 1024 * 1024;
const SERVERS_MOST: usize = 3;
const SEARCH_MOST: usize = 32;
const PORT: u16 = 53;

/// A file's content as it is understood.
pub(super) trait Parsed: Default {
    fn parse(text: &str) -> Self;
}

/// A file that is looked at whenever its content is needed.
pub(super) struct Watched<T> {
    path: PathBuf,
    read: Mutex<(Option<Stamp>, Arc<T>)>,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// What `/etc/hosts` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(HashMap<String, Vec<IpAddr>>);

/// What `/etc/resolv.conf` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<Name>,
    /// A name with fewer dots is looked for in the search list first.
    pub ndots: usize,
    /// How long a server may take.
    pub timeout: Duration,
    /// How often all servers are tried.
    pub attempts: usize,
}

impl<T: Parsed> Watched<T> {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read: Mutex::new((None, Arc::default())),
        }
    }

    /// The content now. A file that cannot be read is as good as empty.
    pub fn current(&self) -> Arc<T> {
        let file = File::open(&self.path);
        let stamp = file.as_ref().ok().and_then(|file| {
            let facts = file.metadata().ok()?;
            Some(Stamp {
                inode: facts.ino(),
                length: facts.len(),
                changed: (facts.mtime(), facts.mtime_nsec()),
            })
        });
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp.is_none() || read.0 != stamp {
            let mut text = Vec::new();
            if let Ok(file) = file
                && let Err(error) = file.take(FILE_MOST).read_to_end(&mut text)
            {
                tracing::warn!(path = %self.path.display(), %error, "cannot read a file that names are resolved with");
            }
            *read = (stamp, Arc::new(T::parse(&String::from_utf8_lossy(&text))));
        }
        read.1.clone()
    }
}

impl Hosts {
    /// The addresses of a name in lower case, in the order of the file.
    pub fn get(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.0.get(name).cloned()
    }
}

impl Parsed for Hosts {
    fn parse(text: &str) -> Self {
        let mut known: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in lines(text, &['#']) {
            let mut words = line.split_whitespace();
            let Some(address) = words.next().and_then(address) else {
                continue;
            };
            for name in words {
                let addresses = known.entry(name.to_ascii_lowercase()).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Self(known)
    }
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        }
    }
}

impl Parsed for ResolvConf {
    /// With the limits of the C library.
    fn parse(text: &str) -> Self {
        let mut config = Self::default();
        for line in lines(text, &['#', ';']) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => config.servers.extend(words.next().and_then(server)),
                Some("domain" | "search") => {
                    let domain = |word: &str| {
                        let mut domain = Name::from_ascii(word).ok()?;
                        domain.set_fqdn(true);
                        (!domain.is_root()).then_some(domain)
                    };
                    config.search = words.filter_map(domain).take(SEARCH_MOST).collect();
                }
                Some("options") => words.for_each(|option| config.set(option)),
                _ => {}
            }
        }
        config.servers.truncate(SERVERS_MOST);
        if config.servers.is_empty() {
            config.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        config
    }
}

impl ResolvConf {
    fn set(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else {
            return;
        };
        let Ok(value) = value.parse::<u64>() else { return };
        let limited = |most: u64| usize::try_from(value.min(most)).unwrap_or(0);
        match name {
            "ndots" => self.ndots = limited(15),
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30)),
            "attempts" => self.attempts = limited(5).max(1),
            _ => {}
        }
    }
}

/// An address, or one with a port in tests; a zone is dropped.
fn server(word: &str) -> Option<SocketAddr> {
    word.parse()
        .ok()
        .or_else(|| address(word).map(|address| (address, PORT).into()))
}

fn address(word: &str) -> Option<IpAddr> {
    word.split('%').next()?.parse().ok()
}

fn lines<'a>(text: &'a str, comments: &'a [char]) -> impl Iterator<Item = &'a str> {
    text.lines()
        .map(move |line| line.split(comments).next().unwrap_or_default())
}
