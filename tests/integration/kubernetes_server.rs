//! The harness's Kubernetes API server, asked by the client that the agent is built on.

mod faults;
mod lists;
mod watches;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::Pod,
};
use kube::{
    Api, Client, Config, Error,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};

use crate::harness::{
    ApiServer, CONTEXT, Right, USER, WRONG_CONTEXT,
    fixtures::{self, NAMESPACE},
    rollout::{PodState, Rollout},
};

/// A client as these settings make it, by the context of that name if any.
async fn client_with(settings: &[(String, String)], context: Option<&str>) -> Client {
    election_agent::tls::install_provider();
    let (_, kubeconfig) = settings
        .iter()
        .find(|(name, _)| name == "KUBECONFIG")
        .expect("set");
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

async fn client(server: &ApiServer) -> Client {
    client_with(&server.settings(), None).await
}

/// The error that the API server reports.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> Status {
    match answer {
        Err(Error::Api(status)) => *status,
        other => panic!("no Status: {other:?}"),
    }
}

fn apply_all(server: &ApiServer, objects: Vec<serde_json::Value>) {
    for object in objects {
        server.apply(object);
    }
}

fn names<T: kube::ResourceExt>(objects: &[T]) -> Vec<String> {
    objects.iter().map(|object| object.name_any()).collect()
}

#[tokio::test]
async fn objects_are_got_as_they_were_applied() {
    let server = ApiServer::start().await;
    server.set_rights(Right::looking_up());
    apply_all(&server, fixtures::web_rollout());
    for pod in [
        fixtures::pod_of_lost_node(),
        fixtures::evicted_pod(),
        fixtures::bare_pod(),
        fixtures::stateful_pod(),
        fixtures::job_pod(),
        fixtures::initializing_pod(),
    ] {
        server.apply(pod);
    }
    let client = client(&server).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let web = deployments.get("web").await.expect("there");
    assert_eq!(web.metadata.generation, Some(7));
    assert_eq!(web.metadata.resource_version.as_deref(), Some("1001"));
    let set = sets.get("web-7d4b9c6f5d").await.expect("there");
    let owner = &set.metadata.owner_references.expect("owned")[0];
    assert_eq!(Some(&owner.uid), web.metadata.uid.as_ref());
    let pod = pods.get("web-7d4b9c6f5d-x2x7p").await.expect("there");
    let owner = &pod.metadata.owner_references.expect("owned")[0];
    assert_eq!(Some(&owner.uid), set.metadata.uid.as_ref());
    assert_eq!(
        pods.list(&ListParams::default())
            .await
            .expect("a list")
            .items
            .len(),
        10
    );

    let absent = refused(pods.get("x").await);
    assert_eq!((absent.code, &*absent.reason), (404, "NotFound"));
    assert_eq!(absent.message, r#"pods "x" not found"#);
    let absent = refused(deployments.get("x").await);
    assert_eq!(absent.message, r#"deployments.apps "x" not found"#);
    let details = absent.details.expect("details");
    assert_eq!(
        (&*details.name, &*details.group, &*details.kind),
        ("x", "apps", "deployments")
    );
    assert_eq!(server.count("get", "pods"), 2);
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn a_caller_without_a_right_learns_which() {
    let server = ApiServer::start().await;
    let client = client(&server).await;
    let everywhere: Api<Pod> = Api::all(client.clone());
    let here: Api<Pod> = Api::namespaced(client.clone(), "x");
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), "x");
    let all = ListParams::default();
    here.list(&all)
        .await
        .expect("a right for all namespaces covers each");
    let forbidden = refused(here.get("y").await);
    let cannot = format!(
        r#"pods "y" is forbidden: User "{USER}" cannot get resource "pods" in API group "" in the namespace "x""#
    );
    assert_eq!((forbidden.code, &*forbidden.reason), (403, "Forbidden"));
    assert_eq!(forbidden.message, cannot);

    server.set_rights(vec![Right::within("x", "list", "pods")]);
    here.list(&all).await.expect("a right for this namespace");
    let forbidden = refused(everywhere.list(&all).await);
    let cannot = format!(
        r#"pods is forbidden: User "{USER}" cannot list resource "pods" in API group "" at the cluster scope"#
    );
    assert_eq!(forbidden.message, cannot);
    let forbidden = refused(sets.list(&all).await);
    let cannot = format!(
        r#"replicasets.apps is forbidden: User "{USER}" cannot list resource "replicasets" in API group "apps" in the namespace "x""#
    );
    assert_eq!(forbidden.message, cannot);

    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    server.set_rights(Right::watching_within("x"));
    for (verb, group, resource, namespace, allowed) in [
        ("watch", "", "pods", Some("x"), true),
        ("watch", "", "pods", Some("y"), false),
        ("watch", "", "pods", None, false),
        ("get", "", "pods", Some("x"), false),
        ("list", "apps", "deployments", Some("x"), true),
        ("list", "", "deployments", Some("x"), false),
    ] {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    namespace: namespace.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let review = reviews
            .create(&PostParams::default(), &review)
            .await
            .expect("an answer");
        let status = review.status.expect("a status");
        assert_eq!(
            status.allowed, allowed,
            "{verb} {resource} in {namespace:?}"
        );
    }
    assert_eq!(server.count("create", "selfsubjectaccessreviews"), 6);
}

#[tokio::test]
async fn only_the_latest_token_is_accepted() {
    let server = ApiServer::start().await;
    let all = ListParams::default();
    let old: Api<Pod> = Api::all(client(&server).await);
    old.list(&all).await.expect("a list");
    server.rotate_token("another");
    let refusal = refused(old.list(&all).await);
    assert_eq!((refusal.code, &*refusal.reason), (401, "Unauthorized"));
    assert_eq!(refusal.message, "Unauthorized");
    let new: Api<Pod> = Api::all(client(&server).await);
    new.list(&all).await.expect("a list");

    let anybody = reqwest::get(format!("{}/api/v1/pods", server.url()))
        .await
        .expect("an answer");
    assert_eq!(anybody.status(), 401);
}

#[tokio::test]
async fn a_kubeconfig_leads_here_by_one_context_and_nowhere_by_the_other() {
    let server = ApiServer::start().await;
    let (right, wrong) = (server.settings(), server.settings_with_wrong_context());
    for (settings, context, leads_here) in [
        (&right, None, true),
        (&right, Some(WRONG_CONTEXT), false),
        (&wrong, None, false),
        (&wrong, Some(CONTEXT), true),
    ] {
        let pods: Api<Pod> = Api::all(client_with(settings, context).await);
        let answer = pods.list(&ListParams::default()).await;
        assert_eq!(answer.is_ok(), leads_here, "{context:?}: {answer:?}");
    }
}

#[tokio::test]
async fn a_rollout_replaces_pods_one_by_one_and_never_has_fewer_than_three_ready() {
    let server = ApiServer::start().await;
    let rights = [Right::watching(), Right::looking_up()];
    server.set_rights(rights.concat());
    let rollout = Rollout::new();
    apply_all(&server, rollout.initial);
    let client = client(&server).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let deployments: Api<Deployment> = Api::namespaced(client, NAMESPACE);
    let of = |pods: &[PodState], revision| {
        let of = pods.iter().filter(|pod| pod.revision == revision);
        of.count()
    };
    for step in &rollout.steps {
        let changed = server.version();
        server.take(step);
        let changes = u64::try_from(step.changes.len()).expect("few");
        assert_eq!(server.version(), changed + changes, "{}", step.what);
        let listed = pods.list(&ListParams::default()).await.expect("a list");
        let expected = step.pods.iter().map(|pod| &*pod.name);
        assert_eq!(
            names(&listed.items),
            expected.collect::<Vec<_>>(),
            "{}",
            step.what
        );
        for (pod, expected) in listed.items.iter().zip(&step.pods) {
            let (metadata, status) = (&pod.metadata, pod.status.as_ref().expect("a status"));
            assert_eq!(
                status.phase.as_ref(),
                Some(&expected.phase),
                "{}",
                step.what
            );
            assert_eq!(
                metadata.deletion_timestamp.is_some(),
                expected.terminating,
                "{}",
                step.what
            );
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            assert_eq!(node.is_some(), expected.scheduled, "{}", step.what);
        }
        let web = deployments.get("web").await.expect("there");
        let (metadata, status) = (web.metadata, web.status.expect("a status"));
        let revision = metadata.annotations.expect("annotations");
        let revision = &revision["deployment.kubernetes.io/revision"];
        assert_eq!(*revision, step.revision.to_string(), "{}", step.what);
        assert_eq!(
            status.observed_generation, metadata.generation,
            "{}",
            step.what
        );
        assert!(status.ready_replicas >= Some(3), "{}", step.what);
        assert!(status.replicas <= Some(4), "{}", step.what);
    }
    let last = rollout.steps.last().expect("steps");
    assert_eq!((of(&last.pods, 2), of(&last.pods, 3)), (0, 3));
    assert!(last.pods.iter().all(|pod| pod.ready && !pod.terminating));
}
