use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::kube::fake::FakeApi;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh-system/leases/mesh-control-leader";

struct Replica {
    leadership: Leadership,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn start(api: &FakeApi, name: &str) -> Replica {
    let elector = Elector::new(api.client(), "mesh-system", name, Timing::default());
    let (leadership, shutdown) = (elector.leadership(), CancellationToken::new());
    let task = tokio::spawn(elector.run(shutdown.clone()));
    Replica {
        leadership,
        shutdown,
        task,
    }
}

impl Replica {
    async fn leads(&self, expected: bool) {
        let mut leads = self.leadership.0.clone();
        let reached = tokio::time::timeout(Duration::from_secs(300), leads.wait_for(|leads| *leads == expected)).await;
        assert!(reached.is_ok(), "leads: expected {expected}");
    }
}

fn holder(api: &FakeApi) -> Option<String> {
    let lease = api.get(PATH)?;
    Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_hands_over_when_it_stops() {
    let api = FakeApi::new();
    let first = start(&api, "control-1");
    first.leads(true).await;
    let second = start(&api, "control-2");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(first.leadership.is_leader() && !second.leadership.is_leader());
    let lease = api.get(PATH).unwrap();
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
    assert_eq!(lease["spec"]["leaseTransitions"], 0);

    let stopped = Instant::now();
    first.shutdown.cancel();
    first.task.await.unwrap();
    assert!(!first.leadership.is_leader());
    assert_eq!(holder(&api), None);
    second.leads(true).await;
    assert!(stopped.elapsed() < Duration::from_secs(4), "{:?}", stopped.elapsed());
    assert_eq!(holder(&api).as_deref(), Some("control-2"));
    assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_vanished_is_followed_after_its_lease() {
    let api = FakeApi::new();
    let first = start(&api, "control-1");
    first.leads(true).await;
    first.task.abort();
    let second = start(&api, "control-2");
    let vanished = Instant::now();
    second.leads(true).await;
    let took = vanished.elapsed().as_secs();
    assert!((15..20).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_others_begin() {
    let api = FakeApi::new();
    let first = start(&api, "control-1");
    first.leads(true).await;
    api.set_away(true);
    let away = Instant::now();
    first.leads(false).await;
    assert!(away.elapsed() < Duration::from_secs(13), "{:?}", away.elapsed());
    api.set_away(false);
    first.leads(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_by_force_is_given_up() {
    let api = FakeApi::new();
    let first = start(&api, "control-1");
    first.leads(true).await;
    let mut lease = api.get(PATH).unwrap();
    lease["spec"]["holderIdentity"] = json!("somebody");
    api.put(PATH, lease);
    first.leads(false).await;
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_at_once_have_one_leader() {
    let api = FakeApi::new();
    let replicas: Vec<_> = (0..5).map(|number| start(&api, &format!("control-{number}"))).collect();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let leaders = replicas.iter().filter(|replica| replica.leadership.is_leader());
    assert_eq!(leaders.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn work_runs_only_while_leading() {
    let api = FakeApi::new();
    let first = start(&api, "control-1");
    let runs = std::sync::Arc::new(watch::Sender::new(0));
    let (counted, work_ends) = (runs.clone(), CancellationToken::new());
    let work = first.leadership.clone().while_leading(work_ends.clone(), move || {
        let counted = counted.clone();
        async move {
            struct Ended(std::sync::Arc<watch::Sender<i32>>);
            impl Drop for Ended {
                fn drop(&mut self) {
                    self.0.send_modify(|runs| *runs -= 1);
                }
            }
            counted.send_modify(|runs| *runs += 1);
            let _ended = Ended(counted);
            std::future::pending::<()>().await;
        }
    });
    let work = tokio::spawn(work);
    let running = async |expected: i32| {
        let mut runs = runs.subscribe();
        runs.wait_for(|runs| *runs == expected).await.map(|_| ()).unwrap();
    };
    running(1).await;
    api.set_away(true);
    running(0).await;
    api.set_away(false);
    running(1).await;
    work_ends.cancel();
    work.await.unwrap();
    running(0).await;
}
