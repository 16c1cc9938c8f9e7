//! Requests to an API server.

use http::{Method, Uri};
use url::form_urlencoded;

use super::store::Resource;

/// A request, as rights and counts see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// `get`, `list`, `watch` or `create`.
    pub(crate) verb: &'static str,
    /// The API group, empty for the core.
    pub(crate) group: &'static str,
    pub(crate) resource: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    /// The query's parameters.
    pub(crate) query: Vec<(String, String)>,
}

/// Why this server does not know a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unknown {
    Path,
    Method,
}

impl Asked {
    pub(crate) fn read(method: &Method, uri: &Uri) -> Result<Self, Unknown> {
        let query = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let query = query.into_owned().collect();
        let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let (group, rest) = match &path[..] {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", "apps", "v1", rest @ ..] => ("apps", rest),
            ["apis", "authorization.k8s.io", "v1", rest @ ..] => ("authorization.k8s.io", rest),
            ["apis", "authentication.k8s.io", "v1", rest @ ..] => ("authentication.k8s.io", rest),
            _ => return Err(Unknown::Path),
        };
        let (namespace, resource, name) = match rest {
            [resource] => (None, *resource, None),
            ["namespaces", namespace, resource] => (Some(*namespace), *resource, None),
            ["namespaces", namespace, resource, name] => (Some(*namespace), *resource, Some(*name)),
            _ => return Err(Unknown::Path),
        };
        let kept = Resource::ALL
            .into_iter()
            .any(|one| (one.group(), one.name()) == (group, resource));
        let created = matches!(resource, "selfsubjectaccessreviews" | "tokenreviews");
        let mut asked = Self {
            verb: "list",
            group,
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            query,
        };
        asked.verb = match *method {
            Method::GET if kept && name.is_some() => "get",
            Method::GET if kept && asked.is_set("watch") => "watch",
            Method::GET if kept => "list",
            Method::POST if created && namespace.is_none() => "create",
            _ if kept || created => return Err(Unknown::Method),
            _ => return Err(Unknown::Path),
        };
        Ok(asked)
    }

    /// A parameter's value, if it has one.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut named = self.query.iter().filter(|(one, _)| one == name);
        named
            .next()
            .map(|(_, value)| &**value)
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn is_set(&self, name: &str) -> bool {
        matches!(self.parameter(name), Some("true" | "1"))
    }

    /// What of the store it is about.
    pub(crate) fn kept(&self) -> Option<Resource> {
        Resource::ALL
            .into_iter()
            .find(|one| one.name() == self.resource)
    }
}
