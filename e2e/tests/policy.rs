//! Policy files and what becomes of them in real processes: how soon, what is said of wrong ones, and what a proxy refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::app::App;
use e2e::client::Call;
use e2e::plain::{Mesh, Sidecar, SidecarOptions, eventually, get, service_entry, workload_entry};
use serde_json::Value;

const HOST: &str = "server.default.svc.cluster.local";
const URL: &str = "http://server.default.svc.cluster.local/";

/// What users are promised, and what a busy machine that runs other tests may add.
const SECOND: Duration = Duration::from_secs(1);
const MARGIN: Duration = Duration::from_millis(500);

struct World {
    mesh: Mesh,
    http: App,
    server: Sidecar,
    client: Sidecar,
}

fn world() -> anyhow::Result<World> {
    let mesh = Mesh::start(|mesh| {
        [
            workload_entry("server", mesh.address(0), "server", "v1"),
            workload_entry("client", mesh.address(1), "client", "v1"),
            service_entry("server", &[(80, "http", "HTTP", 8080)]),
        ]
        .concat()
    })?;
    let http = App::http("answer")?;
    let inbound = vec![(8080, http.address)];
    let mut server = mesh.sidecar(
        "server",
        &SidecarOptions {
            inbound,
            ..Default::default()
        },
    )?;
    let mut client = mesh.sidecar(
        "client",
        &SidecarOptions {
            index: 1,
            ..Default::default()
        },
    )?;
    server.wait_ready()?;
    client.wait_ready()?;
    let world = World {
        mesh,
        http,
        server,
        client,
    };
    assert_eq!(world.status(), 200);
    Ok(world)
}

impl World {
    fn status(&self) -> u16 {
        Call::get(URL).through(self.client.outbound()).unwrap().status
    }

    /// Waits until requests are answered so, at most the second that is promised since `from`.
    fn soon(&self, what: &str, from: Instant, status: u16) {
        eventually(what, || (self.status() == status).then_some(())).unwrap();
        let took = from.elapsed();
        assert!(took < SECOND + MARGIN, "{what}: in force after {took:?}");
    }

    fn diagnostics(&self) -> Vec<String> {
        let (status, page) = get(self.mesh.status_address(), "/debug/diagnostics").unwrap();
        assert_eq!(status, 200);
        let list: Value = serde_json::from_str(&page).unwrap();
        list.as_array().unwrap().iter().map(ToString::to_string).collect()
    }

    fn control_log(&self) -> String {
        self.mesh.control.as_ref().unwrap().output()
    }

    /// State of a resource type of a proxy, and its error.
    fn sync(&self, proxy: &str, kind: &str) -> Option<(String, Value)> {
        let (_, page) = get(self.mesh.status_address(), "/debug/syncz").ok()?;
        let proxies: Value = serde_json::from_str(&page).ok()?;
        let proxy = proxies.as_array()?.iter().find(|known| known["name"] == proxy)?.clone();
        let state = proxy["types"].as_object()?.get(kind)?;
        Some((state["state"].as_str()?.to_owned(), state["error"].clone()))
    }
}

fn answers(status: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: server\nspec:\n  hosts:\n  - {HOST}\n  http:\n  \
         - directResponse:\n      status: {status}\n"
    )
}

#[test]
fn files_take_effect_within_a_second() -> anyhow::Result<()> {
    let world = world()?;
    let now = || -> Instant { Instant::now() };
    let (begun, _) = (now(), world.mesh.write("routes.yaml", &answers(201))?);
    world.soon("a new file", begun, 201);
    let (begun, _) = (now(), world.mesh.write("routes.yaml", &answers(202))?);
    world.soon("a change", begun, 202);
    let (begun, _) = (now(), world.mesh.delete("routes.yaml")?);
    world.soon("a deletion", begun, 200);

    // Policy of the receiving side as well.
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n";
    let (begun, _) = (now(), world.mesh.write("deny.yaml", deny)?);
    world.soon("an authorization policy", begun, 403);
    let (begun, _) = (now(), world.mesh.delete("deny.yaml")?);
    world.soon("its deletion", begun, 200);

    // STRICT: what came in plaintext before is refused.
    let address = SocketAddr::new(world.server.address, 8080);
    assert_eq!(Call::get("http://server/").to(address)?.status, 200);
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: mesh-system}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    let begun = now();
    world.mesh.write("strict.yaml", strict)?;
    eventually("plaintext is refused", || {
        Call::get("http://server/").to(address).is_err().then_some(())
    })?;
    assert!(begun.elapsed() < SECOND + MARGIN, "{:?}", begun.elapsed());
    assert_eq!(world.status(), 200);
    Ok(())
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_is_reported() -> anyhow::Result<()> {
    let world = world()?;
    world.mesh.write("routes.yaml", &answers(201))?;
    eventually("the rule is in force", || (world.status() == 201).then_some(()))?;

    for (wrong, place) in [
        // Not YAML at all, a field that does not exist, a value that cannot be.
        (answers(201).replace("hosts:", "hosts: ["), "routes.yaml:7:3: error: "),
        (
            answers(201).replace("      status", "      statsu"),
            "routes.yaml:10:7: error: spec.http[0].directResponse.statsu: ",
        ),
        (
            answers(201).replace("status: 201", "status: 20"),
            "routes.yaml:10:7: error: spec.http[0].directResponse.status: ",
        ),
    ] {
        world.mesh.write("routes.yaml", &wrong)?;
        eventually("the log says where", || {
            world.control_log().contains(place).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {place} in\n{}", world.control_log()));
        eventually("the status page says it", || {
            let said = world.diagnostics();
            said.iter()
                .any(|line| line.contains("routes.yaml") && line.contains("error"))
                .then_some(())
        })?;
        assert_eq!(world.status(), 201, "the last good version stays in force");
        // Other files are not held up.
        world.mesh.write(
            "deny.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n",
        )?;
        let plain = SocketAddr::new(world.server.address, 8080);
        let denied = || {
            Call::get("http://server/")
                .to(plain)
                .is_ok_and(|answer| answer.status == 403)
                .then_some(())
        };
        eventually("another file is in force", denied)?;
        world.mesh.delete("deny.yaml")?;
        eventually("and taken away", || (denied().is_none()).then_some(()))?;
        world.mesh.write("routes.yaml", &answers(201))?;
        eventually("nothing is wrong any more", || {
            world.diagnostics().is_empty().then_some(())
        })?;
    }

    world.mesh.write("routes.yaml", "spec: [")?;
    eventually("it is reported", || (!world.diagnostics().is_empty()).then_some(()))?;
    assert_eq!(world.status(), 201);
    world.mesh.delete("routes.yaml")?;
    eventually("deletion removes what the file held", || {
        (world.status() == 200).then_some(())
    })?;
    eventually("and what was said of it", || {
        world.diagnostics().is_empty().then_some(())
    })?;
    assert!(!world.http.take().is_empty());
    Ok(())
}

#[test]
fn of_two_files_with_one_object_the_last_modified_wins() -> anyhow::Result<()> {
    let world = world()?;
    world.mesh.write("b.yaml", &answers(201))?;
    eventually("the first is in force", || (world.status() == 201).then_some(()))?;
    world.mesh.write("a.yaml", &answers(202))?;
    eventually("the last modified wins", || (world.status() == 202).then_some(()))?;
    let both = |line: &String| line.contains("a.yaml") && line.contains("b.yaml") && line.contains("error");
    eventually("both are named on the status page", || {
        world.diagnostics().iter().any(both).then_some(())
    })?;
    let logged = |line: &str| line.contains("a.yaml") && line.contains("b.yaml");
    eventually("and in the log", || {
        world.control_log().lines().any(logged).then_some(())
    })?;

    world.mesh.write("b.yaml", &answers(203))?;
    eventually("again", || (world.status() == 203).then_some(()))?;
    world.mesh.delete("b.yaml")?;
    eventually("the other is left", || (world.status() == 202).then_some(()))?;
    eventually("nothing is wrong any more", || {
        world.diagnostics().is_empty().then_some(())
    })?;
    Ok(())
}

#[test]
fn what_a_proxy_refuses_leaves_the_last_good_in_force() -> anyhow::Result<()> {
    let world = world()?;
    let settings = |file: &str, format: &str, mode: &str| {
        format!(
            "apiVersion: mesh.dev/v1\nkind: MeshConfig\nmetadata: {{name: mesh}}\nspec:\n  accessLogFile: {file}\n  \
             accessLogFormat: |\n    {format}\n  outboundTrafficPolicy: {{mode: {mode}}}\n"
        )
    };
    let out = "/dev/stdout";
    let outside = App::http("outside")?;
    let url = format!("http://{}/", outside.address);
    let leave = || Call::get(&url).through(world.client.outbound()).unwrap().status;
    world
        .mesh
        .write("mesh.yaml", &settings(out, "first %RESPONSE_CODE%", "REGISTRY_ONLY"))?;
    eventually("the settings are in force", || (leave() == 502).then_some(()))?;

    // What the control plane can judge does not come as far as to the proxies.
    world
        .mesh
        .write("mesh.yaml", &settings(out, "second %NO_SUCH_THING%", "ALLOW_ANY"))?;
    eventually("the control plane refuses what it can judge", || {
        let said = world.diagnostics();
        said.iter().any(|line| line.contains("NO_SUCH_THING")).then_some(())
    })?;
    assert_eq!(leave(), 502, "the last good version stays in force");

    // Whether a file can be opened only the proxy knows.
    world
        .mesh
        .write("mesh.yaml", &settings("/no/such/directory/log", "second", "ALLOW_ANY"))?;
    let (_, error) = eventually("the proxy refuses them", || {
        world
            .sync("client.default", "mesh")
            .filter(|(state, _)| state == "ERROR")
    })?;
    assert!(
        error
            .as_str()
            .is_some_and(|error| error.contains("/no/such/directory/log")),
        "{error}"
    );
    assert_eq!(leave(), 502, "all of the last good settings are in force");
    eventually("also the log", || {
        let lines = world.client.process.output();
        lines.lines().any(|line| line == "first 502").then_some(())
    })?;
    assert!(
        world.client.process.output().contains("refused"),
        "the proxy says so itself"
    );
    let (_, metrics) = get(world.mesh.status_address(), "/metrics")?;
    assert!(metrics.contains("pilot_total_xds_rejects{"), "{metrics}");
    assert_eq!(world.status(), 200, "everything else goes on");

    world
        .mesh
        .write("mesh.yaml", &settings(out, "third %RESPONSE_CODE%", "ALLOW_ANY"))?;
    eventually("mended", || (leave() == 200).then_some(()))?;
    eventually("and in sync", || {
        world
            .sync("client.default", "mesh")
            .filter(|(state, _)| state == "SYNCED")
    })?;
    eventually("in the log too", || {
        world.client.process.output().contains("third 200").then_some(())
    })?;
    Ok(())
}
