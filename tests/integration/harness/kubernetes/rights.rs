//! What the agent may do (RBAC).

use serde_json::{Value, json};

use super::requests::Asked;

/// A verb on a resource, in one namespace or in all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Right {
    verb: String,
    resource: String,
    namespace: Option<String>,
}

impl Right {
    /// In all namespaces.
    pub(crate) fn everywhere(verb: &str, resource: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: None,
        }
    }

    pub(crate) fn within(namespace: &str, verb: &str, resource: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..Self::everywhere(verb, resource)
        }
    }

    /// To list and watch all that there is.
    pub(crate) fn watching() -> Vec<Self> {
        let verbs = ["list", "watch"].into_iter();
        verbs
            .flat_map(|verb| {
                ["pods", "replicasets", "deployments"].map(|it| Self::everywhere(verb, it))
            })
            .collect()
    }

    /// The same in one namespace only.
    pub(crate) fn watching_within(namespace: &str) -> Vec<Self> {
        let within = |right: Self| Self::within(namespace, &right.verb, &right.resource);
        Self::watching().into_iter().map(within).collect()
    }

    /// What suffices to look up a deployment's pods by one request after another.
    pub(crate) fn looking_up() -> Vec<Self> {
        [
            ("get", "pods"),
            ("list", "pods"),
            ("get", "deployments"),
            ("get", "replicasets"),
        ]
        .map(|(verb, resource)| Self::everywhere(verb, resource))
        .into()
    }

    /// The API group that the resource is of.
    fn group(&self) -> &'static str {
        if self.resource == "pods" { "" } else { "apps" }
    }

    fn covers(&self, verb: &str, group: &str, resource: &str, namespace: Option<&str>) -> bool {
        self.verb == verb
            && self.group() == group
            && self.resource == resource
            && (self.namespace.is_none() || self.namespace.as_deref() == namespace)
    }
}

/// Whether the request is permitted.
pub(crate) fn permit(rights: &[Right], asked: &Asked) -> bool {
    // Every authenticated user may query its rights.
    asked.verb == "create"
        || rights.iter().any(|right| {
            right.covers(
                asked.verb,
                asked.group,
                &asked.resource,
                asked.namespace.as_deref(),
            )
        })
}

/// The answer to a SelfSubjectAccessReview. If it is undecided, an authorizer that may know more does not answer.
pub(crate) fn review(rights: &[Right], review: &Value, undecided: bool) -> Value {
    let about = &review["spec"]["resourceAttributes"];
    let text = |name: &str| about[name].as_str().unwrap_or_default();
    let namespace = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
    let plain = ["*", "v1", ""].contains(&text("version")) && text("subresource").is_empty();
    let right = rights.iter().find(|right| {
        plain && right.covers(text("verb"), text("group"), text("resource"), namespace)
    });
    let status = match right {
        None if undecided => json!({
            "allowed": false,
            "evaluationError": "webhook authorizer: context deadline exceeded",
        }),
        None => json!({"allowed": false, "reason": "no role says so"}),
        Some(Right { namespace, .. }) => {
            let (binding, role) = match namespace {
                None => (
                    "ClusterRoleBinding \"election-agent\"".to_owned(),
                    "ClusterRole",
                ),
                Some(namespace) => (
                    format!("RoleBinding \"election-agent/{namespace}\""),
                    "Role",
                ),
            };
            let reason = format!(
                "RBAC: allowed by {binding} of {role} \"election-agent\" to ServiceAccount \"agent/election\""
            );
            json!({"allowed": true, "reason": reason})
        }
    };
    json!({
        "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
        "metadata": {"creationTimestamp": null}, "spec": review["spec"], "status": status,
    })
}
