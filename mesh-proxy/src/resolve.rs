//! Names that only the application knows: resolved when traffic to them is let through.

use std::net::SocketAddr;
use std::time::Duration;

use crate::failure::Failure;
use crate::resolver;

/// As long as a connection may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The first address of a host.
pub(crate) async fn address(host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let resolved = tokio::time::timeout(LIMIT, resolver::system().lookup(host)).await;
    let error = match resolved {
        Ok(Ok(addresses)) => match addresses.first() {
            Some(address) => return Ok(SocketAddr::new(*address, port)),
            None => "no address".to_owned(),
        },
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    Err(Failure::ConnectFailure(
        format!("dns_resolution_failure: {host}: {error}").into(),
    ))
}
