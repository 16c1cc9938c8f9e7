//! Many pods: what they cost, and how quickly they are listed.
//!
//! With `--nocapture` it prints figures; it fails on none that a slow day could spoil.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{agent, filled, get_pods};
use crate::harness::{ApiServer, eventually, eventually_within};

const DEPLOYMENTS: usize = 5_000;
const PODS_EACH: usize = 4;
const PODS: usize = DEPLOYMENTS * PODS_EACH;
const EVENTS_PER_SECOND: u32 = 200;
/// The first questions after the events began, which are not measured, and those after them.
const WARM_UP: usize = 500;
const MEASURED: usize = 5_000;
/// The C library keeps memory for each thread by itself: how much is unused depends on the number of cores.
const ONE_ARENA: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "1")];
/// In bytes; the Deployments and ReplicaSets are counted in.
const MOST_FOR_A_POD: usize = 1_024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_pods_are_told_at_once_and_take_little_room() {
    let empty = ApiServer::start().await;
    let without = agent(&empty, &ONE_ARENA).await;
    filled(&without).await;

    let api = ApiServer::start().await;
    let pods = api.bulk(DEPLOYMENTS, PODS_EACH);
    let began = Instant::now();
    let agent = agent(&api, &ONE_ARENA).await;
    let limit = Duration::from_secs(120);
    eventually_within(limit, "the first answer", async || {
        get_pods(&agent, "team-0", "app-0", "").await.ok()
    })
    .await;
    let first = began.elapsed();
    let told = agent.get("/readyz").await.body["pods"]["namespaces"][0]["pods"].clone();
    assert_eq!(told, json!(PODS));

    let each = (agent.memory() - without.memory()) / PODS;
    println!("{PODS} pods: first answer after {first:?}, {each} bytes each");
    assert!(each <= MOST_FOR_A_POD, "a pod takes {each} bytes");

    // Events continue while pods are requested.
    let publishing = async {
        let mut ticks = interval(Duration::from_secs(1) / EVENTS_PER_SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for n in 0_usize.. {
            ticks.tick().await;
            let (namespace, name) = &pods[(n * 7_919) % pods.len()];
            api.update("Pod", namespace, name, |pod| {
                pod["status"]["podIP"] = format!("10.9.{}.{}", n / 250 % 250, n % 250).into();
            });
        }
    };
    let asked = api.requests().len();
    let asking = async {
        let mut took = Vec::new();
        for n in 0..WARM_UP + MEASURED {
            let app = n * 31 % DEPLOYMENTS;
            let (namespace, pod) = &pods[app * PODS_EACH];
            let began = Instant::now();
            let (told, _) = get_pods(&agent, namespace, "", pod).await.expect("pods");
            took.push(began.elapsed());
            assert_eq!(told.items.len(), PODS_EACH);
        }
        took.split_off(WARM_UP)
    };
    let began = Instant::now();
    let mut took = tokio::select! {
        took = asking => took,
        () = publishing => unreachable!("it goes on"),
    };
    took.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| took[took.len() * percent / 100]);
    println!(
        "{MEASURED} questions in {:?}, {EVENTS_PER_SECOND} events a second: p50 {p50:?}, p99 {p99:?}",
        began.elapsed()
    );
    // The changes arrived, and the API server served nothing but watches.
    let (namespace, name) = &pods[0];
    api.update("Pod", namespace, name, |pod| {
        pod["status"]["podIP"] = "10.99.99.99".into();
    });
    eventually("the last event is seen", async || {
        let (told, _) = get_pods(&agent, namespace, "", name).await.ok()?;
        told.items
            .iter()
            .any(|pod| pod.ip == "10.99.99.99")
            .then_some(())
    })
    .await;
    let more = api.requests().split_off(asked);
    assert!(
        more.iter().all(|request| request.verb == "watch"),
        "{more:?}"
    );
}
