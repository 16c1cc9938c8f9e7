//! Objects as an API server keeps them: every version of each, until the history is compacted.
//!
//! An object's JSON text is made once for each version. It lacks the opening brace, kind and apiVersion, as
//! items of a list have neither.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::selector::Selector;

/// The resourceVersion before the first change.
const FIRST_VERSION: u64 = 1_000;
/// How many changes are kept at least.
const KEPT: usize = 50_000;

/// What is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Pods,
    ReplicaSets,
    Deployments,
}

impl Resource {
    pub(crate) const ALL: [Self; 3] = [Self::Pods, Self::ReplicaSets, Self::Deployments];

    /// As paths and rights have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::ReplicaSets => "replicasets",
            Self::Deployments => "deployments",
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::ReplicaSets => "ReplicaSet",
            Self::Deployments => "Deployment",
        }
    }

    /// The API group, empty for the core.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Pods => "",
            Self::ReplicaSets | Self::Deployments => "apps",
        }
    }

    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::Pods => "v1",
            Self::ReplicaSets | Self::Deployments => "apps/v1",
        }
    }

    /// What an object's text starts with where it stands alone.
    pub(crate) fn opening(self) -> String {
        let (kind, version) = (self.kind(), self.api_version());
        format!(r#"{{"kind":"{kind}","apiVersion":"{version}","#)
    }

    pub(crate) fn of_kind(kind: &str) -> Self {
        let found = Self::ALL.into_iter().find(|one| one.kind() == kind);
        found.unwrap_or_else(|| panic!("{kind} is none of what the API server keeps"))
    }
}

pub(crate) type Labels = BTreeMap<String, String>;

/// One version of an object.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) version: u64,
    pub(crate) labels: Arc<Labels>,
    /// The JSON text, but for how it opens.
    pub(crate) text: Bytes,
    /// Whether this is what was left of it when it was deleted.
    pub(crate) deleted: bool,
}

impl Object {
    fn value(&self) -> Value {
        let text = [b"{", &self.text[..]].concat();
        serde_json::from_slice(&text).expect("JSON")
    }
}

/// What happened to an object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) resource: Resource,
    /// `namespace/name`, in whose order objects are listed.
    pub(crate) key: String,
    pub(crate) before: Option<Arc<Object>>,
    pub(crate) after: Arc<Object>,
}

impl Change {
    /// The event for watches that select only such objects.
    pub(crate) fn event(
        &self,
        namespace: Option<&str>,
        selector: &Selector,
    ) -> Option<&'static str> {
        if !self.key.starts_with(&prefix(namespace)) {
            return None;
        }
        let seen = |object: &Object| !object.deleted && selector.selects(&object.labels);
        let before = self.before.as_ref().is_some_and(|before| seen(before));
        match (before, seen(&self.after)) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }
}

/// What the keys of a namespace's objects start with; none: of all namespaces.
pub(crate) fn prefix(namespace: Option<&str>) -> String {
    namespace.map_or_else(String::new, |namespace| format!("{namespace}/"))
}

/// All objects, and what happened to them.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    /// Up to here nothing is known but the last state.
    compacted: u64,
    collections: [BTreeMap<String, Vec<Arc<Object>>>; 3],
    history: VecDeque<Change>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            version: FIRST_VERSION,
            compacted: 0,
            collections: Default::default(),
            history: VecDeque::new(),
        }
    }

    /// The version of the latest change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// From which version on changes are known.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn get(&self, resource: Resource, key: &str) -> Option<&Arc<Object>> {
        let latest = self.collections[resource as usize].get(key)?.last()?;
        (!latest.deleted).then_some(latest)
    }

    pub(crate) fn value(&self, resource: Resource, key: &str) -> Option<Value> {
        self.get(resource, key).map(|object| object.value())
    }

    /// The objects as they were at a version, in their order, from the first key after this one on.
    pub(crate) fn at(
        &self,
        version: u64,
        resource: Resource,
        namespace: Option<&str>,
        after: &str,
    ) -> impl Iterator<Item = (&String, &Arc<Object>)> {
        let prefix = prefix(namespace);
        // No key is as short as a prefix.
        let from = Bound::Excluded(prefix.as_str().max(after).to_owned());
        self.collections[resource as usize]
            .range((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .filter_map(move |(key, versions)| {
                let known = versions.partition_point(|object| object.version <= version);
                let object = versions.get(known.checked_sub(1)?)?;
                (!object.deleted).then_some((key, object))
            })
    }

    /// What happened after a version, oldest first.
    pub(crate) fn since(&self, version: u64) -> impl Iterator<Item = &Change> {
        let known = |change: &Change| change.after.version <= version;
        self.history.range(self.history.partition_point(known)..)
    }

    /// Creates the object or replaces it. What an API server sets is set where it is missing.
    pub(crate) fn apply(&mut self, mut object: Value) -> u64 {
        let members = object.as_object_mut().expect("an object");
        let kind = members.shift_remove("kind").expect("a kind");
        members.shift_remove("apiVersion");
        let resource = Resource::of_kind(kind.as_str().expect("a text"));
        let metadata = object["metadata"].as_object().expect("metadata");
        let text = |name: &str| metadata[name].as_str().expect("a text").to_owned();
        let key = format!("{}/{}", text("namespace"), text("name"));
        let before = self.value(resource, &key);
        complete(resource, &mut object, before.as_ref(), self.version + 1);
        // As a real one does: what changes nothing is no change.
        if let Some(before) = before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if before == object {
                return self.version;
            }
        }
        self.put(resource, key, object, false)
    }

    /// Whether there was one.
    pub(crate) fn delete(&mut self, resource: Resource, key: &str) -> bool {
        let Some(last) = self.value(resource, key) else {
            return false;
        };
        self.put(resource, key.to_owned(), last, true);
        true
    }

    fn put(&mut self, resource: Resource, key: String, mut object: Value, deleted: bool) -> u64 {
        object["metadata"]["resourceVersion"] = (self.version + 1).to_string().into();
        let labels = object["metadata"]["labels"].as_object();
        let labels = labels.map(|labels| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            labels
                .iter()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect()
        });
        let text = object.to_string().split_off(1);
        self.insert(
            resource,
            key,
            Arc::new(labels.unwrap_or_default()),
            text,
            deleted,
        )
    }

    /// The next version of an object, whose text says so already.
    pub(crate) fn insert(
        &mut self,
        resource: Resource,
        key: String,
        labels: Arc<Labels>,
        text: String,
        deleted: bool,
    ) -> u64 {
        self.version += 1;
        let after = Arc::new(Object {
            version: self.version,
            labels,
            text: text.into(),
            deleted,
        });
        let versions = self.collections[resource as usize]
            .entry(key.clone())
            .or_default();
        let before = versions.last().filter(|before| !before.deleted).cloned();
        versions.push(Arc::clone(&after));
        self.history.push_back(Change {
            resource,
            key,
            before,
            after,
        });
        if self.history.len() > 2 * KEPT {
            self.forget(KEPT);
        }
        self.version
    }

    /// From now on earlier versions are gone.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
    }

    /// Drops what happened before the last changes.
    fn forget(&mut self, kept: usize) {
        let forgotten = self.history.len().saturating_sub(kept);
        for change in self.history.drain(..forgotten) {
            let version = change.after.version;
            self.compacted = self.compacted.max(version);
            let collection = &mut self.collections[change.resource as usize];
            let Some(versions) = collection.get_mut(&change.key) else {
                continue;
            };
            let known = versions.partition_point(|object| object.version <= version);
            versions.drain(..known.saturating_sub(1));
            if versions.len() == 1 && versions[0].deleted {
                collection.remove(&change.key);
            }
        }
    }
}

/// Sets what an API server sets.
fn complete(resource: Resource, object: &mut Value, before: Option<&Value>, number: u64) {
    let changed = before.is_some_and(|before| before["spec"] != object["spec"]);
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    for (name, made) in [
        ("uid", format!("5d0c7a52-91be-4f6e-8b1d-{number:012x}")),
        ("creationTimestamp", "2025-06-17T08:21:35Z".to_owned()),
    ] {
        // Nobody changes what there is.
        let known = before.map(|before| before["metadata"][name].clone());
        let given = metadata.shift_remove(name).filter(|value| !value.is_null());
        let value = known.or(given).unwrap_or_else(|| made.into());
        metadata.insert(name.to_owned(), value);
    }
    if resource != Resource::Pods {
        let last = before.and_then(|before| before["metadata"]["generation"].as_u64());
        let given = metadata.get("generation").and_then(Value::as_u64);
        let generation = last.map_or(given.unwrap_or(1), |last| last + u64::from(changed));
        metadata.insert("generation".to_owned(), generation.into());
    }
}

/// An object's metadata and nothing else, as bookmarks have it.
pub(crate) fn bookmark(resource: Resource, version: u64) -> String {
    let mut object = Map::new();
    object.insert("kind".to_owned(), resource.kind().into());
    object.insert("apiVersion".to_owned(), resource.api_version().into());
    object.insert(
        "metadata".to_owned(),
        json!({"resourceVersion": version.to_string(), "creationTimestamp": null}),
    );
    if resource == Resource::Pods {
        object.insert("spec".to_owned(), json!({"containers": null}));
    }
    object.insert("status".to_owned(), json!({}));
    Value::Object(object).to_string()
}
