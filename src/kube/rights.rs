//! What the agent may ask of the API server, asked of the server itself
//! ([SelfSubjectAccessReview](https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/)).

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use super::{Mode, Without};
use crate::causes;

/// A verb on a resource of a group.
type Right = (&'static str, &'static str, &'static str);

/// What it takes to watch.
const TO_WATCH: [Right; 6] = [
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("list", "replicasets", "apps"),
    ("watch", "replicasets", "apps"),
    ("list", "deployments", "apps"),
    ("watch", "deployments", "apps"),
];

/// What it takes to read on demand.
const TO_READ: [Right; 4] = [
    ("get", "pods", ""),
    ("list", "pods", ""),
    ("get", "replicasets", "apps"),
    ("get", "deployments", "apps"),
];

/// How pods may be looked up in a namespace, or in all.
///
/// # Errors
/// The server cannot be asked, or rights are missing.
pub(super) async fn mode(client: &Client, namespace: Option<&str>) -> Result<Mode, Without> {
    let no_watch = missing(client, namespace, &TO_WATCH).await?;
    if no_watch.is_empty() {
        return Ok(Mode::Watch);
    }
    let no_read = missing(client, namespace, &TO_READ).await?;
    let place = place(namespace);
    if no_read.is_empty() {
        tracing::warn!(
            "pods of {place} are read when they are asked for, and kept for EA_KUBE_CACHE_TTL: to watch them, \
             the agent needs the right to {} there",
            no_watch.join(", ")
        );
        return Ok(Mode::OnDemand);
    }
    Err(Without::forbidden(format!(
        "in {place} it may not {}, which it needs to watch pods; nor may it {}, which it needs to read them on \
         demand: bind it to a Role or a ClusterRole with either",
        no_watch.join(", "),
        no_read.join(", ")
    )))
}

fn place(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("the namespace {namespace}"),
        None => "all namespaces".to_owned(),
    }
}

/// Those of the rights that the agent does not have, in words.
async fn missing(
    client: &Client,
    namespace: Option<&str>,
    rights: &[Right],
) -> Result<Vec<String>, Without> {
    let reviews = Api::all(client.clone());
    let asked = rights.iter().map(|right| has(&reviews, namespace, *right));
    let answers = try_join_all(asked).await?;
    let lacking = rights.iter().zip(answers).filter(|(_, has)| !has);
    let in_words = lacking.map(|((verb, resource, group), _)| match *group {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {resource}.{group}"),
    });
    Ok(in_words.collect())
}

async fn has(
    reviews: &Api<SelfSubjectAccessReview>,
    namespace: Option<&str>,
    (verb, resource, group): Right,
) -> Result<bool, Without> {
    let attributes = ResourceAttributes {
        namespace: namespace.map(str::to_owned),
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &review).await;
    let review = answer.map_err(|error| Without::unreachable(causes(&error)))?;
    Ok(review.status.is_some_and(|status| status.allowed))
}
