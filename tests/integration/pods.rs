//! Agents that look pods up at an API server.

mod answers;
mod failures;
mod on_demand;
mod rights;
mod scale;
mod trouble;

use election_proto::{GetPodsRequest, Pods};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Agent, Answer, ApiServer, Right, eventually, eventually_within, fixtures, owned,
};

/// For what takes longer as it is tried again and again.
const LONG: Duration = Duration::from_secs(60);

/// A server with `web` in the middle of a rollout.
async fn server(rights: Vec<Right>) -> ApiServer {
    let api = ApiServer::start().await;
    for object in fixtures::web_rollout() {
        api.apply(object);
    }
    api.set_rights(rights);
    api
}

/// An agent that must look pods up, with these settings.
async fn agent(api: &ApiServer, given: &[(&str, &str)]) -> Agent {
    let mut settings = api.settings();
    settings.extend(owned(&[("EA_KUBE_ENABLE", "true")]));
    settings.extend(owned(given));
    Agent::start(&settings).await
}

/// The agent's reply about the pods of `web`.
async fn web(agent: &Agent) -> Answer {
    agent.get("/kube/shop/web/pods").await
}

/// Waits until the agent replies this about the pods of `web`.
async fn eventually_web<T>(agent: &Agent, what: &str, says: impl Fn(&[Value]) -> Option<T>) -> T {
    eventually(what, async || {
        let answer = web(agent).await;
        says(answer.body["items"].as_array()?)
    })
    .await
}

/// Waits until the agent knows the pods.
async fn filled(agent: &Agent) {
    eventually("the pods are listed", async || {
        let answer = agent.get("/kube/shop/gone/pods").await;
        (answer.status == 404).then_some(())
    })
    .await;
}

/// Waits until all three are watched.
async fn watched(api: &ApiServer) {
    eventually_within(LONG, "three watches", async || {
        let watching = ["pods", "replicasets", "deployments"].map(|it| api.watching(it));
        (watching == [1; 3]).then_some(())
    })
    .await;
}

/// Another pod of revision 3.
fn another(name: &str) -> Value {
    let mut pod = fixtures::web_rollout()
        .pop()
        .expect("the last one is a pod");
    pod["metadata"]["name"] = name.into();
    pod["metadata"]
        .as_object_mut()
        .expect("metadata")
        .remove("uid");
    pod
}

/// Waits until the agent lists this pod.
async fn told_of(agent: &Agent, name: &str) {
    eventually_within(LONG, name, async || {
        let answer = web(agent).await;
        has(answer.body["items"].as_array()?, name)
    })
    .await;
}

fn has(items: &[Value], name: &str) -> Option<()> {
    names(items).contains(&name).then_some(())
}

/// The age that the reply reports, in milliseconds.
fn age(answer: &Answer) -> u64 {
    let age = answer.header("x-election-agent-cache-age");
    age.parse().expect("an age")
}

fn names(items: &[Value]) -> Vec<&str> {
    items
        .iter()
        .filter_map(|pod| pod["name"].as_str())
        .collect()
}

/// The pods that the agent returns over gRPC, or the status, and their reported age.
async fn get_pods(
    agent: &Agent,
    namespace: &str,
    deployment: &str,
    pod_name: &str,
) -> Result<(Pods, u64), tonic::Status> {
    let request = GetPodsRequest {
        namespace: namespace.to_owned(),
        deployment: deployment.to_owned(),
        pod_name: pod_name.to_owned(),
    };
    let answer = agent.grpc().get_pods(request).await?;
    let age = answer.metadata().get("x-election-agent-cache-age");
    let age = age.and_then(|age| age.to_str().ok()?.parse().ok());
    Ok((answer.into_inner(), age.expect("an age")))
}

/// The agent's report about its lookup, on which readiness does not depend.
async fn lookup(agent: &Agent) -> Value {
    let answer = agent.get("/readyz").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["pods"].clone()
}
