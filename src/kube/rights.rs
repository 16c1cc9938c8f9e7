//! Determines the agent's rights by asking the API server
//! ([SelfSubjectAccessReview](https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/)).

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::{LookupMode, Without};
use crate::causes;

/// Timeout of one access review.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// A verb, a resource, and the resource's API group.
type Right = (&'static str, &'static str, &'static str);

/// The rights that watching requires.
const TO_WATCH: [Right; 6] = [
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("list", "replicasets", "apps"),
    ("watch", "replicasets", "apps"),
    ("list", "deployments", "apps"),
    ("watch", "deployments", "apps"),
];

/// The rights that reading on demand requires.
const TO_READ: [Right; 4] = [
    ("get", "pods", ""),
    ("list", "pods", ""),
    ("get", "replicasets", "apps"),
    ("get", "deployments", "apps"),
];

/// Returns the best mode that the agent's rights permit in a namespace, or in all, and the rights that watching lacks.
///
/// # Errors
/// The server does not report the rights, or reading on demand lacks rights.
pub(super) async fn mode(
    client: &Client,
    namespace: Option<&str>,
) -> Result<(LookupMode, Vec<String>), Without> {
    let (no_watch, mut reasons) = missing(client, namespace, &TO_WATCH).await?;
    if no_watch.is_empty() {
        return Ok((LookupMode::Watch, no_watch));
    }
    let (no_read, more) = missing(client, namespace, &TO_READ).await?;
    if no_read.is_empty() {
        return Ok((LookupMode::OnDemand, no_watch));
    }
    reasons.extend(more);
    let reasons = match reasons.is_empty() {
        true => String::new(),
        false => format!(
            " (the API server says: {})",
            reasons.into_iter().collect::<Vec<_>>().join("; ")
        ),
    };
    let advice = match namespace {
        Some(_) => "bind it to a Role or a ClusterRole with either",
        None => {
            "bind it to a ClusterRole with either by a ClusterRoleBinding, or set EA_KUBE_NAMESPACES to those in \
             which it may"
        }
    };
    Err(Without::forbidden(format!(
        "in {} it may not {}, which it needs to watch pods; nor may it {}, which it needs to read them on \
         demand{reasons}: {advice}",
        place(namespace),
        no_watch.join(", "),
        no_read.join(", ")
    )))
}

/// Logs the rights that watching lacks.
pub(super) fn warn(namespace: Option<&str>, no_watch: &[String]) {
    tracing::warn!(
        "pods of {} are read on demand and cached for EA_KUBE_CACHE_TTL: to watch them, grant the agent the right to \
         {} there and restart it",
        place(namespace),
        no_watch.join(", ")
    );
}

fn place(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("the namespace {namespace}"),
        None => "all namespaces".to_owned(),
    }
}

/// Returns the rights that the agent lacks, as text, with the server's reason if it gives one.
async fn missing(
    client: &Client,
    namespace: Option<&str>,
    rights: &[Right],
) -> Result<(Vec<String>, BTreeSet<String>), Without> {
    let reviews = Api::all(client.clone());
    let asked = rights.iter().map(|right| has(&reviews, namespace, *right));
    let answers = try_join_all(asked).await?;
    let (mut lacking, mut reasons) = (Vec::new(), BTreeSet::new());
    for ((verb, resource, group), answer) in rights.iter().zip(answers) {
        let Review::No(reason) = answer else {
            continue;
        };
        reasons.extend(reason);
        lacking.push(match *group {
            "" => format!("{verb} {resource}"),
            group => format!("{verb} {resource}.{group}"),
        });
    }
    Ok((lacking, reasons))
}

/// The result of an access review.
enum Review {
    Yes,
    /// The server's reason, if it gives one.
    No(Option<String>),
}

async fn has(
    reviews: &Api<SelfSubjectAccessReview>,
    namespace: Option<&str>,
    (verb, resource, group): Right,
) -> Result<Review, Without> {
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
    let parameters = PostParams::default();
    let asked = timeout(REVIEW_TIMEOUT, reviews.create(&parameters, &review)).await;
    let answer = asked.map_err(|_| Without::unreachable("it does not answer"))?;
    let review = answer.map_err(|error| Without::unreachable(causes(&error)))?;
    let status = review.status.unwrap_or_default();
    // An evaluation error is not a denial: an unreachable authorizer may grant the right.
    match status.evaluation_error.filter(|error| !error.is_empty()) {
        _ if status.allowed => Ok(Review::Yes),
        Some(error) => Err(Without::unreachable(format!(
            "it does not know whether it lets the agent {verb} {resource}: {error}"
        ))),
        None => Ok(Review::No(
            status.reason.filter(|reason| !reason.is_empty()),
        )),
    }
}
