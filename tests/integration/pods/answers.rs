//! What is answered, from a cache that watches keep.

use election_proto as proto;
use http_body_util::BodyExt as _;
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use super::{LONG, agent, eventually_web, filled, get_pods, names, server, web};
use crate::harness::{
    ApiServer, Ask, Protocol, Right, eventually, eventually_within, fixtures, framed,
    rollout::Rollout,
};

const GET_PODS: &str = "/grpc.election_agent.v1.Election/GetPods";
const WEB_PODS: &str = "/kube/shop/web/pods";
/// Watches are confirmed every few seconds, so what is not there is soon known to have gone.
const OFTEN: [(&str, &str); 1] = [("EA_KUBE_MAX_STALENESS", "5s")];

#[tokio::test]
async fn a_deployment_in_the_middle_of_a_rollout_is_told_with_every_field() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    let answer = web(&agent).await;
    let ready = json!({
        "phase": "Running", "reason": "", "terminating": false, "podScheduled": true,
        "podInitialized": true, "podReady": true, "containersReady": true,
    });
    let mut terminating = ready.clone();
    terminating["terminating"] = true.into();
    let pending = json!({
        "phase": "Pending", "reason": "", "terminating": false, "podScheduled": false,
        "podInitialized": false, "podReady": false, "containersReady": false,
    });
    let newest = json!({
        "name": "web-7d4b9c6f5d", "revision": 3, "availableReplicas": 1, "fullyLabeledReplicas": 2,
        "readyReplicas": 1, "replicas": 2, "desiredReplicas": 3, "maxReplicas": 4,
    });
    let older = json!({
        "name": "web-6bb5d7c9f8", "revision": 2, "availableReplicas": 1, "fullyLabeledReplicas": 1,
        "readyReplicas": 1, "replicas": 1, "desiredReplicas": 3, "maxReplicas": 4,
    });
    let pod = |name: &str, ip: &str, status: &Value, set: &Value| json!({"name": name, "deployment": "web", "ip": ip, "status": status, "replicaSet": set});
    let expected = json!({"items": [
        pod("web-7d4b9c6f5d-9wjlr", "", &pending, &newest),
        pod("web-7d4b9c6f5d-x2x7p", "10.244.1.77", &ready, &newest),
        pod("web-6bb5d7c9f8-k8mzt", "10.244.2.31", &ready, &older),
        pod("web-6bb5d7c9f8-q4nhd", "10.244.3.18", &terminating, &older),
    ]});
    assert_eq!((answer.status, &answer.body), (200, &expected));
    let siblings = agent
        .get("/kube/shop/pods/web-6bb5d7c9f8-q4nhd/siblings")
        .await;
    assert_eq!((siblings.status, &siblings.body), (200, &expected));

    let (told, _) = get_pods(&agent, "shop", "web", "").await.expect("pods");
    let (siblings, _) = get_pods(&agent, "shop", "ignored", "web-7d4b9c6f5d-x2x7p")
        .await
        .expect("pods");
    assert_eq!(told, siblings);
    assert_eq!(told.items.len(), 4);
    let (pod, expected) = (&told.items[3], &expected["items"][3]);
    let (status, set) = (pod.status.as_ref(), pod.replica_set.as_ref());
    let (status, set) = (status.expect("a status"), set.expect("a replica set"));
    let grpc = json!({
        "name": pod.name, "deployment": pod.deployment, "ip": pod.ip,
        "status": {
            "phase": status.phase, "reason": status.reason, "terminating": status.terminating,
            "podScheduled": status.pod_scheduled, "podInitialized": status.pod_initialized,
            "podReady": status.pod_ready, "containersReady": status.containers_ready,
        },
        "replicaSet": {
            "name": set.name, "revision": set.revision, "availableReplicas": set.available_replicas,
            "fullyLabeledReplicas": set.fully_labeled_replicas, "readyReplicas": set.ready_replicas,
            "replicas": set.replicas, "desiredReplicas": set.desired_replicas, "maxReplicas": set.max_replicas,
        },
    });
    assert_eq!(&grpc, expected);
}

#[tokio::test]
async fn pods_that_have_come_to_a_bad_end_are_told_as_they_are() {
    let api = server(Right::watching()).await;
    api.apply(fixtures::pod_of_lost_node());
    api.apply(fixtures::evicted_pod());
    let agent = agent(&api, &[]).await;
    let of = |items: &[Value], name: &str| {
        let pod = items.iter().find(|pod| pod["name"] == name)?;
        let status = &pod["status"];
        Some((
            status["phase"].clone(),
            status["reason"].clone(),
            status["terminating"].clone(),
        ))
    };
    let [lost, evicted] = eventually_web(&agent, "six pods", |items| {
        (items.len() == 6).then_some([
            of(items, "web-6bb5d7c9f8-m6vbx")?,
            of(items, "web-6bb5d7c9f8-7rfgw")?,
        ])
    })
    .await;
    // Its deletion was requested, but it may run on for ever.
    assert_eq!(lost, ("Running".into(), "NodeLost".into(), false.into()));
    assert_eq!(evicted, ("Failed".into(), "Evicted".into(), false.into()));
}

#[tokio::test]
async fn pods_that_belong_to_no_deployment_have_no_siblings() {
    let api = server(Right::watching()).await;
    for pod in [
        fixtures::bare_pod(),
        fixtures::stateful_pod(),
        fixtures::job_pod(),
        fixtures::initializing_pod(),
    ] {
        api.apply(pod);
    }
    let agent = agent(&api, &OFTEN).await;
    filled(&agent).await;
    assert_eq!(
        web(&agent).await.body["items"].as_array().map(Vec::len),
        Some(4)
    );
    for pod in [
        "debug",
        "db-0",
        "report-29168640-8fjx2",
        "api-84c5bd9f67-tw5kd",
    ] {
        // A ReplicaSet that is not there may be yet to come.
        let told = eventually_within(LONG, pod, async || {
            let told = agent.get(&format!("/kube/shop/pods/{pod}/siblings")).await;
            assert_ne!(told.status, 200, "{told:?}");
            (told.text("code") == "NotFound").then_some(told)
        })
        .await;
        let expected = format!("the pod shop/{pod} belongs to no deployment");
        assert_eq!(told.text("message"), expected);
    }
}

#[tokio::test]
async fn what_there_is_not_and_what_cannot_be_is_told_apart() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    for (namespace, deployment, pod, told) in [
        ("shop", "gone", "", "there is no deployment shop/gone"),
        ("gone", "web", "", "there is no deployment gone/web"),
        ("shop", "", "gone", "there is no pod shop/gone"),
        (
            "gone",
            "",
            "web-6bb5d7c9f8-k8mzt",
            "there is no pod gone/web-6bb5d7c9f8-k8mzt",
        ),
        ("shop", "web.v2", "", "there is no deployment shop/web.v2"),
    ] {
        let refused = get_pods(&agent, namespace, deployment, pod)
            .await
            .expect_err(told);
        assert_eq!((refused.code(), refused.message()), (Code::NotFound, told));
    }
    for (namespace, deployment, pod, field) in [
        ("", "web", "", "`namespace` is empty"),
        ("Shop", "web", "", "`namespace` is no name"),
        ("shop.a", "web", "", "`namespace` is no name"),
        ("shop", "", "", "`deployment` is empty"),
        ("shop", "web_1", "", "`deployment` is no name"),
        ("shop", "web", "Pod", "`pod_name` is no name"),
    ] {
        let refused = get_pods(&agent, namespace, deployment, pod)
            .await
            .expect_err(field);
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert!(
            refused.message().starts_with(field),
            "{}",
            refused.message()
        );
    }
    for (path, told) in [
        ("/kube/Shop/web/pods", "`namespace` is no name"),
        ("/kube/shop/web%2fx/pods", "`deployment` is no name"),
        ("/kube/shop/pods/-/siblings", "`pod` is no name"),
        ("/kube/shop/web/pods?x=1", "the query is not"),
        ("/kube/shop/%ff/pods", "the path cannot be read"),
    ] {
        let refused = agent.get(path).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (400, "InvalidArgument"),
            "{path}"
        );
        assert!(refused.text("message").starts_with(told), "{refused:?}");
    }
}

#[tokio::test]
async fn an_answer_says_how_old_it_is_in_its_headers_and_over_grpc_in_its_trailers() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &[("EA_CORS_ORIGINS", "*")]).await;
    filled(&agent).await;
    let message = proto::GetPodsRequest {
        namespace: "shop".to_owned(),
        deployment: "web".to_owned(),
        pod_name: String::new(),
    }
    .encode_to_vec();
    let frame = framed(&message);
    let age = |headers: &http::HeaderMap| {
        let age = headers.get("x-election-agent-cache-age");
        let age: Option<u64> = age.and_then(|age| age.to_str().ok()?.parse().ok());
        age.expect("an age")
    };
    for protocol in Protocol::ALL {
        let ask = Ask::new(protocol)
            .at(GET_PODS, WEB_PODS)
            .with("origin", "https://dashboard.example");
        let ask = match protocol {
            Protocol::Rest => ask.by(Method::GET).sending(Vec::new()),
            Protocol::Grpc | Protocol::GrpcWeb => ask.sending(frame.clone()),
        };
        let (head, body) = ask.send(agent.address()).await.into_parts();
        let in_headers = age(&head.headers);
        let exposed = head.headers.get("access-control-expose-headers");
        let exposed = exposed
            .and_then(|exposed| exposed.to_str().ok())
            .unwrap_or_default();
        assert!(exposed.contains("x-election-agent-cache-age"), "{exposed}");
        let body = body.collect().await.expect("a body");
        match protocol {
            Protocol::Rest => {}
            Protocol::Grpc => {
                let trailers = body.trailers().expect("trailers");
                assert_eq!(trailers["grpc-status"], "0");
                assert_eq!(age(trailers), in_headers);
            }
            Protocol::GrpcWeb => {
                let bytes = body.to_bytes();
                let trailers = String::from_utf8_lossy(&bytes);
                let told = format!("x-election-agent-cache-age:{in_headers}\r\n");
                assert!(trailers.contains(&told), "{trailers}");
            }
        }
    }
}

#[tokio::test]
async fn policies_say_who_may_see_which_pods() {
    let api = server(Right::watching()).await;
    let policies = tempfile::TempDir::new().expect("a directory");
    let policy = "permit (principal, action == ElectionAgent::Action::\"pods\", \
                  resource in ElectionAgent::Namespace::\"open\");";
    std::fs::write(policies.path().join("pods.cedar"), policy).expect("written");
    let directory = policies.path().display().to_string();
    let agent = agent(&api, &[("EA_AUTH_POLICY_DIR", &directory)]).await;
    let denied = web(&agent).await;
    assert_eq!(
        (denied.status, denied.text("code")),
        (403, "PermissionDenied")
    );
    let denied = get_pods(&agent, "shop", "", "web-6bb5d7c9f8-k8mzt").await;
    let denied = denied.expect_err("denied");
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(
        denied
            .message()
            .contains("pods the pod shop/web-6bb5d7c9f8-k8mzt"),
        "{denied}"
    );
    eventually("permitted", async || {
        let permitted = get_pods(&agent, "open", "web", "").await.expect_err("none");
        assert_ne!(permitted.code(), Code::PermissionDenied);
        (permitted.code() == Code::NotFound).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ownership_that_changes_is_followed() {
    let api = server(Right::watching()).await;
    let agent = agent(&api, &OFTEN).await;
    filled(&agent).await;
    // A ReplicaSet that goes before its pods, as in a deletion in the background.
    api.delete("ReplicaSet", "shop", "web-6bb5d7c9f8");
    let empty = json!({
        "name": "", "revision": 0, "availableReplicas": 0, "fullyLabeledReplicas": 0, "readyReplicas": 0,
        "replicas": 0, "desiredReplicas": 0, "maxReplicas": 0,
    });
    eventually_within(LONG, "pods without a replica set", async || {
        let answer = web(&agent).await;
        let items = answer.body["items"].as_array()?;
        let without = items.iter().filter(|pod| pod["replicaSet"] == empty);
        let without: Vec<_> = without.filter_map(|pod| pod["name"].as_str()).collect();
        (without == ["web-6bb5d7c9f8-k8mzt", "web-6bb5d7c9f8-q4nhd"] && items.len() == 4)
            .then_some(())
    })
    .await;
    // Released: a person removed a label, to debug the pod undisturbed.
    api.update("Pod", "shop", "web-6bb5d7c9f8-k8mzt", |pod| {
        pod["metadata"]
            .as_object_mut()
            .expect("metadata")
            .remove("ownerReferences");
    });
    // Adopted: a bare pod with the labels of a ReplicaSet.
    let mut bare = fixtures::bare_pod();
    let set = api
        .object("ReplicaSet", "shop", "web-7d4b9c6f5d")
        .expect("a replica set");
    bare["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c6f5d",
        "uid": set["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    }]);
    api.apply(bare);
    eventually_web(
        &agent,
        "an adopted pod, and none that was released",
        |items| {
            let expected = [
                "debug",
                "web-7d4b9c6f5d-9wjlr",
                "web-7d4b9c6f5d-x2x7p",
                "web-6bb5d7c9f8-q4nhd",
            ];
            (names(items) == expected).then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn a_rollout_is_told_step_by_step() {
    let rollout = Rollout::new();
    let api = ApiServer::start().await;
    for object in &rollout.initial {
        api.apply(object.clone());
    }
    let agent = agent(&api, &[]).await;
    filled(&agent).await;
    let mut newest = Vec::new();
    for step in &rollout.steps {
        api.take(step);
        let mut expected: Vec<_> = step.pods.iter().collect();
        expected.sort_by_key(|pod| (std::cmp::Reverse(pod.revision), pod.name.clone()));
        let expected: Vec<_> = expected
            .into_iter()
            .map(|pod| {
                json!([
                    pod.name,
                    pod.revision,
                    pod.phase,
                    pod.scheduled,
                    pod.ready,
                    pod.terminating
                ])
            })
            .collect();
        let told = eventually_web(&agent, &step.what, |items| {
            let told: Vec<_> = items
                .iter()
                .map(|pod| {
                    let status = &pod["status"];
                    json!([
                        pod["name"],
                        pod["replicaSet"]["revision"],
                        status["phase"],
                        status["podScheduled"],
                        status["podReady"],
                        status["terminating"]
                    ])
                })
                .collect();
            (told == expected).then_some(told)
        })
        .await;
        newest.push(told[0][1].clone());
    }
    assert_eq!(
        (newest.first(), newest.last()),
        (Some(&json!(2)), Some(&json!(3))),
        "{newest:?}"
    );
}
