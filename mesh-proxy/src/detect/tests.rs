use proptest::prelude::*;
use tokio::io::{AsyncWriteExt as _, duplex};

use super::*;

fn verdict(text: &str) -> Verdict {
    judge(text.as_bytes()).unwrap()
}

#[test]
fn http_is_decided_by_as_few_bytes_as_can() {
    use Detected::{Http1, Opaque};
    for (text, expected) in [
        ("", Verdict::Undecided),
        ("G", Verdict::Undecided),
        ("GET", Verdict::Undecided),
        ("GET ", Verdict::Undecided),
        ("GET /", Verdict::Is(Http1)),
        ("GET ht", Verdict::Undecided),
        ("GET HTTP://", Verdict::Is(Http1)),
        ("GET https://h/", Verdict::Is(Http1)),
        ("GET key\r\n", Verdict::Is(Opaque)),
        ("GET\t/", Verdict::Is(Opaque)),
        ("GETS /", Verdict::Is(Opaque)),
        ("get /", Verdict::Is(Opaque)),
        ("OPTIONS *", Verdict::Is(Http1)),
        ("GET *", Verdict::Is(Opaque)),
        ("CONNECT h", Verdict::Is(Http1)),
        ("P", Verdict::Undecided),
        ("PR", Verdict::Undecided),
        ("PROP", Verdict::Undecided),
        ("PATCH /", Verdict::Is(Http1)),
        ("UNSUBSCRIBE /", Verdict::Is(Http1)),
        ("PRI * HTTP/2.0\r\n", Verdict::Undecided),
        ("PRI * HTTP/1.1\r\n", Verdict::Is(Opaque)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict::Is(Detected::Http2)),
        ("*1\r\n$4\r\nPING\r\n", Verdict::Is(Opaque)),
        ("EHLO mail", Verdict::Is(Opaque)),
        ("\u{0}", Verdict::Is(Opaque)),
    ] {
        assert_eq!(verdict(text), expected, "{text:?}");
    }
}

async fn detect_portions(portions: &[&[u8]], timeout: Option<Duration>) -> io::Result<(Detected, Vec<u8>)> {
    let (near, mut far) = duplex(64 * 1024);
    let write = async {
        for portion in portions {
            far.write_all(portion).await.unwrap();
            tokio::task::yield_now().await;
        }
        far
    };
    let (far, outcome) = tokio::join!(write, detect(near, timeout));
    let (detected, mut stream) = outcome?;
    drop(far);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    Ok((detected, all))
}

#[tokio::test]
async fn partial_input_waits_and_no_byte_is_lost() {
    let request = b"POST /orders HTTP/1.1\r\nhost: orders\r\n\r\n";
    let portions: Vec<&[u8]> = request.chunks(1).collect();
    let (detected, all) = detect_portions(&portions, None).await.unwrap();
    assert_eq!(detected, Detected::Http1);
    assert_eq!(all, request);
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_server_that_speaks_first() {
    let (near, _far) = duplex(64);
    let (detected, stream) = detect(near, Some(Duration::from_secs(1))).await.unwrap();
    assert_eq!(detected, Detected::Opaque);
    assert!(stream.prefix().is_empty());

    let (near, mut far) = duplex(64);
    far.write_all(b"GE").await.unwrap();
    let (detected, stream) = detect(near, Some(Duration::from_secs(1))).await.unwrap();
    assert_eq!(detected, Detected::Opaque);
    assert_eq!(stream.prefix(), &b"GE"[..]);
}

#[tokio::test(start_paused = true)]
async fn without_timeout_silence_is_waited_out() {
    let (near, mut far) = duplex(64);
    let write = async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    };
    let ((), outcome) = tokio::join!(write, detect(near, None));
    assert_eq!(outcome.unwrap().0, Detected::Http1);
}

#[tokio::test(start_paused = true)]
async fn a_client_hello_must_become_whole() {
    let hello = crate::tls::hello::tests::client_hello("example.test", &["istio"]);
    for (bytes, kind) in [(&hello[..20], io::ErrorKind::TimedOut)] {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(bytes).await.unwrap();
        let started = Instant::now();
        let error = detect(near, Some(Duration::from_secs(1))).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(started.elapsed().as_secs(), 10);
    }
    let (near, mut far) = duplex(64 * 1024);
    far.write_all(&hello[..20]).await.unwrap();
    drop(far);
    assert_eq!(
        detect(near, None).await.unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn tls_is_known_with_what_it_offers() {
    let hello = crate::tls::hello::tests::client_hello("example.test", &["istio-h2", "istio", "h2"]);
    let (first, second) = hello.split_at(40);
    let (detected, all) = detect_portions(&[first, second], None).await.unwrap();
    let Detected::Tls(offered) = detected else {
        panic!("{detected:?}")
    };
    assert_eq!(offered.sni.as_deref(), Some("example.test"));
    assert_eq!(offered.alpn, [b"istio-h2".to_vec(), b"istio".to_vec(), b"h2".to_vec()]);
    assert_eq!(all, hello);
}

proptest! {
    #[test]
    fn more_bytes_never_change_a_decision(bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0_usize..64) {
        let cut = cut.min(bytes.len());
        if let Ok(Verdict::Is(decided)) = judge(&bytes[..cut])
            && let Ok(Verdict::Is(later)) = judge(&bytes)
        {
            prop_assert_eq!(decided, later);
        }
    }

    #[test]
    fn http_like_prefixes_keep_their_decision(method in 0..METHODS.len(), rest in "[ /*a-z:]{0,12}", cut in 0_usize..32) {
        let mut bytes = METHODS[method].to_vec();
        bytes.extend_from_slice(rest.as_bytes());
        let cut = cut.min(bytes.len());
        if let Verdict::Is(decided) = judge(&bytes[..cut]).unwrap() {
            prop_assert_eq!(Verdict::Is(decided), judge(&bytes).unwrap());
        }
    }
}
