//! `mesh-proxy intercept` itself: what it leaves behind, and what it says when it cannot work.

use std::process::Command;

use e2e::binaries;
use e2e::netns::{Net, User, available};

use crate::world::finish;

fn intercept(host: &e2e::netns::Host, user: User, arguments: &[&str]) -> anyhow::Result<String> {
    finish(
        host.command(binaries::mesh_proxy(), user)
            .arg("intercept")
            .args(arguments)
            .output()?,
    )
}

#[test]
fn a_second_run_replaces_the_first() {
    if !available() {
        return;
    }
    let net = Net::new().unwrap();
    let host = net.host("pod", 30).unwrap();
    for arguments in [
        &["--check"][..],
        &["--check", "--outbound-ranges", "198.18.0.0/15"],
        &["--check"],
    ] {
        let said = intercept(&host, User::Root, arguments).unwrap();
        assert!(said.starts_with("redirection is in place and checked"), "{said}");
    }
    let Ok(output) = host.command("nft", User::Root).args(["list", "ruleset"]).output() else {
        return;
    };
    if let Ok(listed) = finish(output) {
        assert_eq!(listed.matches("table ").count(), 1, "{listed}");
        assert_eq!(listed.matches("redirect to :15001").count(), 1, "{listed}");
        assert!(listed.contains("type nat hook output priority -100"), "{listed}");
    } else {
        eprintln!("SKIPPED: looking at the rules with other eyes needs the program nft (package nftables)");
    }
}

#[test]
fn what_is_missing_is_said() {
    if !available() {
        return;
    }
    let net = Net::new().unwrap();
    let host = net.host("pod", 30).unwrap();
    // The programs of a build directory may not be there for others.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("mesh-proxy");
    std::fs::copy(binaries::mesh_proxy(), &program).unwrap();
    let output = host
        .command(&program, User::Application)
        .arg("intercept")
        .output()
        .unwrap();
    let error = finish(output).unwrap_err().to_string();
    assert!(error.contains("NET_ADMIN"), "{error}");
    // Nothing is changed by settings that cannot be.
    let error = intercept(&host, User::Root, &["--outbound-ranges", "everywhere"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("`everywhere` is not a range"), "{error}");
    let help = Command::new(&program).args(["intercept", "--help"]).output().unwrap();
    assert!(finish(help).unwrap().contains("MESH_INTERCEPT_EXCLUDE_OUTBOUND_PORTS"));
}
