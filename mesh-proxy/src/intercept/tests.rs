//! What options make of rules, and what the kernel is told. That the rules do what they say is shown on real traffic in
//! `e2e/tests/capture`.

use super::rules::{Chain, ruleset};
use super::*;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

fn options(args: &str) -> Options {
    let args = std::iter::once("intercept").chain(args.split_whitespace());
    <Cli as clap::Parser>::parse_from(args).options
}

fn rules(args: &str, chain: Chain) -> Vec<String> {
    let ruleset = ruleset(&options(args)).unwrap();
    let rules = ruleset.rules.iter().filter(|rule| rule.chain == chain);
    rules.map(ToString::to_string).collect()
}

#[test]
fn everything_is_captured_but_the_sidecar_and_loopback() {
    assert_eq!(
        rules("", Chain::Output),
        [
            "oifname lo ip saddr 127.0.0.6/32 return",
            "oifname lo ip6 saddr ::6/128 return",
            "oifname lo meta skuid 1337 meta l4proto tcp ip daddr != 127.0.0.0/8 redirect to :15006",
            "oifname lo meta skuid 1337 meta l4proto tcp ip6 daddr != ::1/128 redirect to :15006",
            "oifname lo meta skuid != 1337 return",
            "meta skuid 1337 return",
            "meta skgid 1337 return",
            "ip daddr 127.0.0.1/32 return",
            "ip6 daddr ::1/128 return",
            "meta l4proto tcp redirect to :15001",
        ]
    );
    let inbound = rules("", Chain::Prerouting);
    let own = [15000, 15001, 15006, 15008, 15020, 15021, 15053, 15090];
    let excluded = own.map(|port| format!("meta l4proto tcp tcp dport {port} return"));
    assert_eq!(inbound[..8], excluded);
    assert_eq!(inbound[8..], ["meta l4proto tcp redirect to :15006"]);
}

/// Exclusions come first, included ports do not ask for ranges, and the sidecar's ports and user may be others.
#[test]
fn includes_and_excludes() {
    for (args, chain, expected) in [
        (
            "--inbound-ports 80,8080,15021",
            Chain::Prerouting,
            &[
                "meta l4proto tcp tcp dport 80 redirect to :15006",
                "meta l4proto tcp tcp dport 8080 redirect to :15006",
            ][..],
        ),
        ("--inbound-ports=", Chain::Prerouting, &[]),
        (
            "--inbound-ports 80,81 --exclude-inbound-ports 81",
            Chain::Prerouting,
            &["meta l4proto tcp tcp dport 80 redirect to :15006"],
        ),
        (
            "--inbound-ports 80 --exclude-interfaces eth1,net1 --inbound-port 16006",
            Chain::Prerouting,
            &[
                "iifname eth1 return",
                "iifname net1 return",
                "meta l4proto tcp tcp dport 80 redirect to :16006",
            ],
        ),
        (
            "--exclude-outbound-ports 25,3306 --exclude-outbound-ranges 198.18.7.7,2001:db8:7::/48 --outbound-ports 443 \
             --outbound-ranges 198.18.0.0/16,2001:db8::/32 --exclude-interfaces eth1 --proxy-uid 7 --proxy-gid 8 \
             --outbound-port 16001",
            Chain::Output,
            &[
                "oifname eth1 return",
                "meta l4proto tcp tcp dport 25 return",
                "meta l4proto tcp tcp dport 3306 return",
                "oifname lo ip saddr 127.0.0.6/32 return",
                "oifname lo ip6 saddr ::6/128 return",
                "oifname lo meta skuid 7 meta l4proto tcp ip daddr != 127.0.0.0/8 redirect to :15006",
                "oifname lo meta skuid 7 meta l4proto tcp ip6 daddr != ::1/128 redirect to :15006",
                "oifname lo meta skuid != 7 return",
                "meta skuid 7 return",
                "meta skgid 8 return",
                "ip daddr 127.0.0.1/32 return",
                "ip6 daddr ::1/128 return",
                "ip daddr 198.18.7.7/32 return",
                "ip6 daddr 2001:db8:7::/48 return",
                "meta l4proto tcp tcp dport 443 redirect to :16001",
                "meta l4proto tcp ip daddr 198.18.0.0/16 redirect to :16001",
                "meta l4proto tcp ip6 daddr 2001:db8::/32 redirect to :16001",
            ],
        ),
    ] {
        assert_eq!(rules(args, chain), expected, "{args}");
    }
    let outbound = rules("--outbound-ranges= --outbound-ports 80", Chain::Output);
    assert_eq!(
        outbound.last().unwrap(),
        "meta l4proto tcp tcp dport 80 redirect to :15001"
    );
    let outbound = rules("--outbound-ranges=", Chain::Output);
    assert!(!outbound.iter().any(|rule| rule.contains("15001")));
    // Whoever names loopback wants it captured.
    let outbound = rules("--outbound-ranges 127.1.0.0/16", Chain::Output);
    assert!(!outbound.contains(&"oifname lo meta skuid != 1337 return".to_owned()));
}

#[test]
fn settings_that_cannot_be() {
    for args in [
        ["--inbound-ports", "0"],
        ["--inbound-ports", "80;81"],
        ["--exclude-outbound-ports", "65536"],
        ["--outbound-ranges", "198.18.0.0/33"],
        ["--exclude-outbound-ranges", "host"],
        ["--exclude-interfaces", "a-name-that-is-too-long"],
        ["--exclude-interfaces", "a/b"],
        ["--outbound-port", "0"],
    ] {
        let parsed = <Cli as clap::Parser>::try_parse_from(["intercept", args[0], args[1]]);
        assert!(parsed.is_err(), "{args:?}");
    }
    let many: Vec<String> = (1..600).map(|port| port.to_string()).collect();
    let error = ruleset(&options(&format!("--outbound-ports {}", many.join(",")))).unwrap_err();
    assert!(matches!(error, InterceptError::TooMany(..)), "{error}");
}

#[test]
fn spaces_and_single_addresses() {
    assert_eq!(" 80, 81 ".parse(), Ok(Ports::Only([80, 81].into())));
    assert_eq!("*".parse(), Ok(Ports::All));
    let ranges: Ranges = "198.18.1.1/16, ::2".parse().unwrap();
    let expected = ["198.18.0.0/16", "::2/128"].map(|text| text.parse().unwrap());
    assert_eq!(ranges, Ranges::Only(expected.into()));
}
