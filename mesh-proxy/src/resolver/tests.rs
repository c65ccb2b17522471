//! Against a name server in this process, over UDP and TCP.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::files::Parsed as _;
use super::*;

/// What the server does with a question.
#[derive(Clone)]
enum Reply {
    Records(Vec<(&'static str, RData)>),
    Code(ResponseCode),
    /// Over UDP only the news that there is more.
    Truncated(Vec<(&'static str, RData)>),
    /// First answers that are not to the question.
    AfterStrays(Vec<(&'static str, RData)>),
    Silence,
}

type Zone = HashMap<(&'static str, RecordType), Reply>;

struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    zone: Arc<Zone>,
}

impl Server {
    /// What is not in the zone does not exist.
    async fn start(zone: impl IntoIterator<Item = ((&'static str, RecordType), Reply)>) -> Self {
        // A port of one protocol may be taken in the other.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let server = Self {
            address: udp.local_addr().unwrap(),
            asked: Arc::default(),
            zone: Arc::new(zone.into_iter().collect()),
        };
        let (asked, zone) = (server.asked.clone(), server.zone.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let request = Message::from_vec(&buffer[..length]).unwrap();
                asked.lock().unwrap().push(described(&request, "udp"));
                for answer in answers(&zone, &request, true) {
                    udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        let (asked, zone) = (server.asked.clone(), server.zone.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut buffer = vec![0; length.into()];
                stream.read_exact(&mut buffer).await.unwrap();
                let request = Message::from_vec(&buffer).unwrap();
                asked.lock().unwrap().push(described(&request, "tcp"));
                for answer in answers(&zone, &request, false) {
                    let bytes = answer.to_vec().unwrap();
                    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        });
        server
    }

    /// The names that were asked for, each once, in order.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.asked.lock().unwrap().clone();
        names.retain(|asked| asked.starts_with("udp A "));
        names.dedup();
        names.iter().map(|asked| asked["udp A ".len()..].to_owned()).collect()
    }
}

fn described(request: &Message, protocol: &str) -> String {
    let query = &request.queries[0];
    format!("{protocol} {} {}", query.query_type(), query.name())
}

fn answers(zone: &Zone, request: &Message, udp: bool) -> Vec<Message> {
    let query = &request.queries[0];
    let mut answer = request.clone().into_response();
    let name = query.name().to_ascii();
    let reply = zone
        .iter()
        .find(|((known, kind), _)| *kind == query.query_type() && known.eq_ignore_ascii_case(&name))
        .map(|(_, reply)| reply.clone());
    let known = zone.keys().any(|(known, _)| known.eq_ignore_ascii_case(&name));
    let mut fill = |records: Vec<(&str, RData)>| {
        for (owner, data) in records {
            answer.add_answer(Record::from_rdata(Name::from_ascii(owner).unwrap(), 60, data));
        }
    };
    match reply {
        None if known => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Reply::Code(code)) => answer.metadata.response_code = code,
        Some(Reply::Records(records)) => fill(records),
        Some(Reply::Truncated(records)) if udp => {
            fill(records.into_iter().take(1).collect());
            answer.metadata.truncation = true;
        }
        Some(Reply::Truncated(records)) => fill(records),
        Some(Reply::AfterStrays(records)) => {
            fill(records);
            let mut other_number = answer.clone();
            other_number.metadata.id = answer.metadata.id.wrapping_add(1);
            other_number.answers[0].data = a(66);
            let mut other_name = other_number.clone();
            other_name.metadata.id = answer.metadata.id;
            other_name.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
            return vec![other_number, other_name, answer];
        }
        Some(Reply::Silence) => return vec![],
    }
    vec![answer]
}

fn a(last: u8) -> RData {
    RData::A(A([127, 9, 9, last].into()))
}

fn ip(last: u8) -> IpAddr {
    [127, 9, 9, last].into()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(hosts: &str, resolv_conf: &str) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("hosts", hosts);
        files.write("resolv.conf", resolv_conf);
        files
    }

    /// As kubelet and editors do: another file takes the name.
    fn write(&self, file: &str, text: &str) {
        let (new, path) = (self.path().join("new"), self.path().join(file));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn resolver(&self) -> Resolver {
        Resolver::new(self.path().join("hosts"), self.path().join("resolv.conf"))
    }
}

fn resolver_of(server: &Server, rest: &str) -> (Files, Resolver) {
    let files = Files::new("", &format!("nameserver {}\n{rest}", server.address));
    let resolver = files.resolver();
    (files, resolver)
}

const KUBERNETES: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5";

#[tokio::test]
async fn names_are_searched_as_the_c_library_does() {
    for (host, options, asked) in [
        (
            "reviews",
            KUBERNETES,
            &[
                "reviews.shop.svc.cluster.local.",
                "reviews.svc.cluster.local.",
                "reviews.cluster.local.",
                "reviews.",
            ][..],
        ),
        (
            "mesh-control.mesh-system.svc",
            KUBERNETES,
            &[
                "mesh-control.mesh-system.svc.shop.svc.cluster.local.",
                "mesh-control.mesh-system.svc.svc.cluster.local.",
                "mesh-control.mesh-system.svc.cluster.local.",
            ],
        ),
        (
            "a.b.c.d.e.example",
            KUBERNETES,
            &[
                "a.b.c.d.e.example.",
                "a.b.c.d.e.example.shop.svc.cluster.local.",
                "a.b.c.d.e.example.svc.cluster.local.",
                "a.b.c.d.e.example.cluster.local.",
            ],
        ),
        ("reviews.", KUBERNETES, &["reviews."]),
        (
            "www.example",
            "search shop.example",
            &["www.example.", "www.example.shop.example."],
        ),
        ("www", "domain shop.example", &["www.shop.example.", "www."]),
        ("www", "", &["www."]),
    ] {
        let found = Reply::Records(vec![("mesh-control.mesh-system.svc.cluster.local.", a(1))]);
        let server = Server::start([(("mesh-control.mesh-system.svc.cluster.local.", RecordType::A), found)]).await;
        let (_files, resolver) = resolver_of(&server, options);
        let result = resolver.lookup(host).await;
        assert_eq!(server.names(), asked, "{host}");
        match asked.last() {
            Some(&"mesh-control.mesh-system.svc.cluster.local.") => assert_eq!(result, Ok(vec![ip(1)])),
            _ => assert_eq!(result, Err(ResolveError::NotFound(host.to_owned()))),
        }
    }
}

#[tokio::test]
async fn both_families_aliases_and_answers_that_do_not_fit() {
    let v6: IpAddr = "::1".parse().unwrap();
    let aaaa = RData::AAAA(AAAA("::1".parse().unwrap()));
    let alias = |to: &str| RData::CNAME(CNAME(Name::from_ascii(to).unwrap()));
    let many: Vec<_> = (1..=100).map(|last| ("many.example.", a(last))).collect();
    let server = Server::start([
        (
            ("both.example.", RecordType::A),
            Reply::Records(vec![("both.example.", a(1)), ("both.example.", a(2))]),
        ),
        (
            ("both.example.", RecordType::AAAA),
            Reply::Records(vec![("both.example.", aaaa)]),
        ),
        (
            ("alias.example.", RecordType::A),
            Reply::Records(vec![
                ("Alias.example.", alias("next.example.")),
                ("unasked.example.", a(66)),
                ("next.example.", alias("last.example.")),
                ("last.example.", a(3)),
            ]),
        ),
        (
            ("round.example.", RecordType::A),
            Reply::Records(vec![("round.example.", alias("round.example."))]),
        ),
        (("many.example.", RecordType::A), Reply::Truncated(many)),
        (
            ("stray.example.", RecordType::A),
            Reply::AfterStrays(vec![("stray.example.", a(4))]),
        ),
        // One family fails, the other answers.
        (
            ("half.example.", RecordType::A),
            Reply::Records(vec![("half.example.", a(5))]),
        ),
        (("half.example.", RecordType::AAAA), Reply::Code(ResponseCode::ServFail)),
    ])
    .await;
    let (_files, resolver) = resolver_of(&server, "");
    let mut both = resolver.lookup("BOTH.example").await.unwrap();
    // Where there is no IPv6, its address comes last as well.
    assert_eq!(both.pop(), Some(v6));
    assert_eq!(both, [ip(1), ip(2)]);
    assert_eq!(resolver.lookup("alias.example").await, Ok(vec![ip(3)]));
    assert!(matches!(
        resolver.lookup("round.example").await,
        Err(ResolveError::NotFound(_))
    ));
    assert_eq!(resolver.lookup("many.example").await.unwrap().len(), 100);
    assert!(server.asked.lock().unwrap().contains(&"tcp A many.example.".to_owned()));
    assert_eq!(resolver.lookup("stray.example").await, Ok(vec![ip(4)]));
    assert_eq!(resolver.lookup("half.example").await, Ok(vec![ip(5)]));
}

/// The next server is asked; what nobody could say is not taken for "no such host", nor looked for elsewhere.
#[tokio::test]
async fn servers_that_fail() {
    let zone = |reply: Reply| {
        [
            (("www.shop.example.", RecordType::A), reply.clone()),
            (("www.shop.example.", RecordType::AAAA), reply),
        ]
    };
    let good = Server::start(zone(Reply::Records(vec![("www.shop.example.", a(1))]))).await;
    let refusing = Server::start(zone(Reply::Code(ResponseCode::Refused))).await;
    let silent = Server::start(zone(Reply::Silence)).await;
    for bad in [&refusing, &silent] {
        let text = format!(
            "nameserver {}\nnameserver {}\nsearch shop.example\noptions timeout:1 attempts:1",
            bad.address, good.address
        );
        let files = Files::new("", &text);
        let started = Instant::now();
        assert_eq!(files.resolver().lookup("www").await, Ok(vec![ip(1)]));
        assert!(started.elapsed() < Duration::from_secs(4));
        files.write(
            "resolv.conf",
            &text.replace(&good.address.to_string(), &bad.address.to_string()),
        );
        let error = files.resolver().lookup("www").await.unwrap_err();
        assert!(
            matches!(&error, ResolveError::Unanswered { name, .. } if name == "www.shop.example."),
            "{error}"
        );
        assert!(!bad.names().contains(&"www.".to_owned()));
    }
}

#[tokio::test]
async fn hosts_come_first_and_files_are_read_again() {
    let server = Server::start([(
        ("www.example.", RecordType::A),
        Reply::Records(vec![("www.example.", a(1))]),
    )])
    .await;
    let files = Files::new("", "nameserver 127.0.0.1:1\n");
    let resolver = files.resolver();
    files.write("resolv.conf", &format!("nameserver {}", server.address));
    assert_eq!(resolver.lookup("www.example").await, Ok(vec![ip(1)]));
    files.write(
        "hosts",
        "# a comment\n127.9.9.7 Www.Example alias # another\n127.9.9.8 www.example\nnonsense www.example\n",
    );
    assert_eq!(resolver.lookup("www.example").await, Ok(vec![ip(7), ip(8)]));
    assert_eq!(resolver.lookup("alias.").await, Ok(vec![ip(7)]));
    files.write("hosts", "127.9.9.10 www.example");
    assert_eq!(resolver.lookup("www.example").await, Ok(vec![ip(10)]));
    assert_eq!(server.names(), ["www.example."]);
    let localhost = resolver.lookup("localhost").await.unwrap();
    assert!(localhost.contains(&Ipv4Addr::LOCALHOST.into()));
    assert_eq!(
        resolver.lookup("127.0.0.5").await,
        Ok(vec![Ipv4Addr::new(127, 0, 0, 5).into()])
    );
    for host in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(200)] {
        assert!(
            matches!(resolver.lookup(host).await, Err(ResolveError::NotAName(_))),
            "{host}"
        );
    }
}

#[test]
fn resolv_conf() {
    let config = ResolvConf::parse(
        "; comment\nsearch one.example\nnameserver 127.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver \
         ::1\nnameserver 127.0.0.4\nsearch two.example . three.example # four\noptions ndots:99 timeout:0 attempts:9 rotate \
         edns0\noptions ndots:x\n",
    );
    let servers = ["127.0.0.1:53", "[fe80::1]:53", "[::1]:53"].map(|text| text.parse().unwrap());
    assert_eq!(config.servers, servers);
    let search = ["two.example.", "three.example."].map(|text| Name::from_ascii(text).unwrap());
    assert_eq!(config.search, search);
    assert_eq!(
        (config.ndots, config.attempts, config.timeout),
        (15, 5, Duration::from_secs(1))
    );
    let usual = ResolvConf::parse("");
    assert_eq!(usual.servers, ["127.0.0.1:53".parse().unwrap()]);
    assert_eq!(
        (usual.ndots, usual.attempts, usual.timeout),
        (1, 2, Duration::from_secs(5))
    );
}
