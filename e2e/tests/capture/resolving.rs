//! Names in pods: the sidecar resolves them itself, with the pod's own `resolv.conf`.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use e2e::netns::Host;
use e2e::plain::eventually;

use crate::world::*;

/// Answers every question for an IPv4 address with `address`, on port 53 of a host, until its host goes.
pub fn name_server(host: &Host, address: IpAddr) -> anyhow::Result<()> {
    let socket = host.within(|| UdpSocket::bind(SocketAddr::new(host.v4(), 53)))??;
    let IpAddr::V4(address) = address else {
        anyhow::bail!("IPv4 only");
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            let wants_v4 = answer[length - 4..length - 2] == [0, 1];
            // A response that recursion gave, with as many records as there are.
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..8].copy_from_slice(&[0, u8::from(wants_v4)]);
            if wants_v4 {
                // The name of the question, an address, a minute.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

#[test]
fn the_control_plane_and_services_by_name() {
    let policy = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: named, namespace: \
         default}}\nspec:\n  hosts: [named.example]\n  addresses: [198.18.100.7]\n  resolution: DNS\n  location: \
         MESH_EXTERNAL\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {HTTP}}}]\n  endpoints: \
         [{{address: control.mesh.example}}]\n"
    );
    let plan = Plan {
        policy: &policy,
        by_name: true,
    };
    let Some(world) = World::start(plan) else { return };
    let app = world
        .control_host
        .within(|| e2e::app::App::http_at("named", SocketAddr::new(world.control_host.v4(), HTTP)));
    let _app = app.unwrap().unwrap();
    eventually("the name is resolved", || {
        let answer = request(&world.client.host, "198.18.100.7", 80, "named.example", "/").unwrap();
        (answer.status == 200).then(|| assert_eq!(answer.body, "named"))
    })
    .unwrap();
}
