//! Failures that an API server reports.

use http::{Response, header};
use serde_json::{Map, Value, json};

use super::{USER, requests::Asked};
use crate::harness::http::{Body, whole};

/// A `Status` object of a failure.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    code: u16,
    status: Box<Value>,
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "reason": reason,
        });
        Self {
            code,
            status: Box::new(status),
        }
    }

    fn with(mut self, member: &str, value: Value) -> Self {
        self.status[member] = value;
        self
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(asked: &Asked) -> Self {
        let (verb, resource, group) = (asked.verb, &asked.resource, &asked.group);
        let scope = match &asked.namespace {
            Some(namespace) => format!(r#"in the namespace "{namespace}""#),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            r#"{} is forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group "{group}" {scope}"#,
            subject(asked),
        );
        Self::new(403, "Forbidden", message).about(asked)
    }

    pub(crate) fn not_found(asked: &Asked) -> Self {
        let message = format!("{} not found", subject(asked));
        Self::new(404, "NotFound", message).about(asked)
    }

    /// There is no such resource.
    pub(crate) fn no_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(404, "NotFound", message).with("details", json!({}))
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with("details", json!({}))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// A watch that starts before what is known.
    pub(crate) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(
            410,
            "Expired",
            format!("too old resource version: {asked} ({oldest})"),
        )
    }

    /// A list at a version that is no longer known.
    pub(crate) fn version_too_old(asked: u64) -> Self {
        let message = format!("The resourceVersion for the provided list is too old: {asked}");
        Self::new(410, "Expired", message)
    }

    /// A page of a list that began before what is known; the token goes on without regard to that.
    pub(crate) fn continue_too_old(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can \
            start a new list without the continue parameter, or use the continue token in this response to \
            retrieve the remainder of the results. Continuing with the provided token results in an inconsistent \
            list - objects that were created, modified, or deleted between the time the first chunk was returned \
            and now may show up in the list.";
        Self::new(410, "Expired", message).with("metadata", json!({"continue": token}))
    }

    /// A version that is not there yet.
    pub(crate) fn version_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        Self::new(504, "Timeout", message).with("details", json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }))
    }

    pub(crate) fn streaming_lists_are_off() -> Self {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is \
            forbidden for watch unless the WatchList feature gate is enabled";
        Self::new(422, "Invalid", message)
    }

    fn about(self, asked: &Asked) -> Self {
        let mut details = Map::new();
        for (name, value) in [
            ("name", asked.name.as_deref().unwrap_or_default()),
            ("group", asked.group),
            ("kind", &asked.resource),
        ] {
            if !value.is_empty() {
                details.insert(name.to_owned(), value.into());
            }
        }
        self.with("details", Value::Object(details))
    }

    /// The object's JSON text.
    pub(crate) fn text(&self) -> String {
        let mut status = self.status.clone();
        status["code"] = self.code.into();
        status.to_string()
    }

    pub(crate) fn response(&self) -> Response<Body> {
        if self.code != 429 {
            return json_response(self.code, whole(self.text()));
        }
        // Load is shed before there are Status objects.
        Response::builder()
            .status(self.code)
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(header::RETRY_AFTER, "1")
            .body(whole("Too many requests, please try again later.\n"))
            .expect("a response")
    }
}

pub(crate) fn json_response(status: u16, body: Body) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(body)
        .expect("a response")
}

/// `pods "x"` or `deployments.apps`.
fn subject(asked: &Asked) -> String {
    let mut subject = asked.resource.clone();
    if !asked.group.is_empty() {
        subject = format!("{subject}.{}", asked.group);
    }
    match &asked.name {
        Some(name) => format!(r#"{subject} "{name}""#),
        None => subject,
    }
}
