//! Caches Deployments, ReplicaSets and pods with their ownership.
//!
//! An object's owner is the controller in its `ownerReferences`, identified by uid. A name is not enough: another
//! object may have reused the name of a deleted one.

use tokio::time::Instant;

use super::{
    Error, Pod, Wanted,
    objects::{self, Counts, Deployment, Owner, ReplicaSet},
    table::{Key, Row, Table, key},
};

/// The known objects of one namespace or of all. A table is [`None`] until it is filled.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) deployments: Option<Table<Deployment>>,
    pub(super) replica_sets: Option<Table<ReplicaSet>>,
    pub(super) pods: Option<Table<objects::Pod>>,
}

impl Row for Deployment {
    fn relations(&self) -> [Option<&str>; 2] {
        [None, None]
    }
}

/// Relation of ReplicaSets and pods: the uid of the controller.
const BY_OWNER: usize = 0;
/// Relation of pods: the Deployment that their ReplicaSet is named after.
const BY_NAMED_DEPLOYMENT: usize = 1;

impl Row for ReplicaSet {
    fn relations(&self) -> [Option<&str>; 2] {
        [self.owner.as_ref().map(|owner| &*owner.name), None]
    }
}

impl Row for objects::Pod {
    fn relations(&self) -> [Option<&str>; 2] {
        [self.set().map(|set| &*set.name), self.named_deployment()]
    }

    fn share(&mut self, with: &Self) {
        if self.set() == with.set() && self.named_deployment() == with.named_deployment() {
            self.owner.clone_from(&with.owner);
        }
    }
}

/// An object kind that has a table.
pub(super) trait Kept: Row {
    /// Returns the table of this kind.
    fn table(tables: &mut Tables) -> &mut Option<Table<Self>>;
}

impl Kept for Deployment {
    fn table(tables: &mut Tables) -> &mut Option<Table<Self>> {
        &mut tables.deployments
    }
}

impl Kept for ReplicaSet {
    fn table(tables: &mut Tables) -> &mut Option<Table<Self>> {
        &mut tables.replica_sets
    }
}

impl Kept for objects::Pod {
    fn table(tables: &mut Tables) -> &mut Option<Table<Self>> {
        &mut tables.pods
    }
}

impl Tables {
    /// Replaces a table and returns the previous one. Dropping a large table takes time, so the caller chooses where to
    /// drop it.
    pub(super) fn swap<T: Kept>(&mut self, table: Table<T>) -> Option<Table<T>> {
        T::table(self).replace(table)
    }

    /// Returns the wanted pods, newest revision first, then by name.
    ///
    /// `sets_as_of` is the time at which the table of ReplicaSets was up to date. If a pod first referred to a missing
    /// ReplicaSet after that time, the ReplicaSet may still arrive; the pod is left out until the ReplicaSet is known
    /// or known to be deleted.
    ///
    /// # Errors
    /// The Deployment or pod does not exist, the tables are not filled yet, or the ReplicaSet of the wanted pod is not
    /// known yet.
    pub(super) fn pods(&self, wanted: &Wanted, sets_as_of: Instant) -> Result<Vec<Pod>, Error> {
        let view = self.view(sets_as_of)?;
        match wanted {
            Wanted::Deployment { namespace, name } => view.deployment(namespace, name),
            Wanted::Siblings { namespace, pod } => view.siblings(namespace, pod),
        }
    }

    fn view(&self, sets_as_of: Instant) -> Result<View<'_>, Error> {
        match (&self.deployments, &self.replica_sets, &self.pods) {
            (Some(deployments), Some(replica_sets), Some(pods)) => Ok(View {
                deployments,
                replica_sets,
                sets_as_of,
                pods,
            }),
            _ => Err(not_listed()),
        }
    }
}

/// The error before the tables are filled.
pub(super) fn not_listed() -> Error {
    Error::Unavailable("the pods have not been listed yet".to_owned())
}

/// All tables, filled.
struct View<'a> {
    deployments: &'a Table<Deployment>,
    replica_sets: &'a Table<ReplicaSet>,
    sets_as_of: Instant,
    pods: &'a Table<objects::Pod>,
}

/// The ReplicaSet that controls a pod.
enum SetOf<'a> {
    Known(&'a ReplicaSet),
    Gone,
    /// The ReplicaSet is missing, but the table may be older than the ReplicaSet.
    Unknown,
}

impl View<'_> {
    fn deployment(&self, namespace: &str, name: &str) -> Result<Vec<Pod>, Error> {
        let deployment = self.deployments.get(namespace, name);
        let deployment = deployment
            .ok_or_else(|| Error::NotFound(format!("there is no deployment {namespace}/{name}")))?;
        Ok(self.pods_of(namespace, name, deployment))
    }

    fn siblings(&self, namespace: &str, pod: &str) -> Result<Vec<Pod>, Error> {
        let found = self.pods.get(namespace, pod);
        let found =
            found.ok_or_else(|| Error::NotFound(format!("there is no pod {namespace}/{pod}")))?;
        if let Some(SetOf::Unknown) = self.set_of(namespace, found) {
            return Err(Error::Unavailable(format!(
                "the replica set of the pod {namespace}/{pod} is not known yet"
            )));
        }
        let (name, deployment) = self.deployment_of(namespace, found).ok_or_else(|| {
            Error::NotFound(format!(
                "the pod {namespace}/{pod} belongs to no deployment"
            ))
        })?;
        Ok(self.pods_of(namespace, name, deployment))
    }

    fn pods_of(&self, namespace: &str, name: &str, deployment: &Deployment) -> Vec<Pod> {
        let deployment_key = key(namespace, name);
        let mut pods = Vec::new();
        for (set_key, set) in self.replica_sets.related(BY_OWNER, &deployment_key) {
            if !is(set.owner.as_ref(), &deployment.uid) {
                continue;
            }
            for (pod_key, pod) in self.pods.related(BY_OWNER, set_key) {
                if is(pod.set(), &set.uid) {
                    let set = (name_of(set_key), set.counts);
                    pods.push(described(pod_key, pod, name, set));
                }
            }
        }
        for (pod_key, pod) in self.pods.related(BY_NAMED_DEPLOYMENT, &deployment_key) {
            let gone = matches!(self.set_of(namespace, pod), Some(SetOf::Gone));
            if gone && outlived(pod, deployment) {
                pods.push(described(pod_key, pod, name, ("", Counts::default())));
            }
        }
        pods.sort_unstable_by(|a, b| {
            let newer = b.replica_set.1.revision.cmp(&a.replica_set.1.revision);
            newer.then_with(|| a.name.cmp(&b.name))
        });
        pods
    }

    fn deployment_of<'b>(
        &'b self,
        namespace: &str,
        pod: &'b objects::Pod,
    ) -> Option<(&'b str, &'b Deployment)> {
        let found = |name: &str| self.deployments.get(namespace, name);
        match self.set_of(namespace, pod)? {
            SetOf::Known(set) => {
                let owner = set.owner.as_ref()?;
                let deployment = found(&owner.name)?;
                (deployment.uid == owner.uid).then_some((&*owner.name, deployment))
            }
            SetOf::Gone => {
                let name = pod.named_deployment()?;
                let deployment = found(name)?;
                outlived(pod, deployment).then_some((name, deployment))
            }
            SetOf::Unknown => None,
        }
    }

    /// Returns the ReplicaSet that controls a pod, if there is one.
    fn set_of(&self, namespace: &str, pod: &objects::Pod) -> Option<SetOf<'_>> {
        let owner = pod.owner.as_ref()?;
        let set = self.replica_sets.get(namespace, &owner.set.name);
        Some(match set.filter(|set| set.uid == owner.set.uid) {
            Some(set) => SetOf::Known(set),
            None if owner.seen <= self.sets_as_of => SetOf::Gone,
            None => SetOf::Unknown,
        })
    }
}

fn is(owner: Option<&Owner>, uid: &str) -> bool {
    owner.is_some_and(|owner| &*owner.uid == uid)
}

/// Returns whether a pod whose ReplicaSet is deleted can belong to this Deployment rather than to an earlier one of the
/// same name.
fn outlived(pod: &objects::Pod, deployment: &Deployment) -> bool {
    pod.created >= deployment.created
}

fn name_of(key: &Key) -> &str {
    key.split_once('/').map_or(key, |(_, name)| name)
}

fn described(key: &Key, pod: &objects::Pod, deployment: &str, set: (&str, Counts)) -> Pod {
    Pod {
        name: name_of(key).to_owned(),
        deployment: deployment.to_owned(),
        ip: pod.ip.to_string(),
        status: pod.status.clone(),
        replica_set: (set.0.to_owned(), set.1),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use tokio::time::advance;

    use super::*;
    use crate::kube::objects::{Fold as _, SeenDeployment, SeenPod, SeenReplicaSet};

    fn metadata(name: &str, uid: &str, created: u32, owner: Option<(&str, &str, &str)>) -> Value {
        let owner = owner.map(|(kind, name, uid)| {
            json!([
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"},
                {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true},
            ])
        });
        json!({
            "namespace": "shop", "name": name, "uid": uid, "ownerReferences": owner,
            "creationTimestamp": format!("2026-11-24T10:00:{created:02}Z"),
        })
    }

    fn tables() -> Tables {
        Tables {
            deployments: Some(Table::default()),
            replica_sets: Some(Table::default()),
            pods: Some(Table::default()),
        }
    }

    impl Tables {
        fn deployment(&mut self, name: &str, uid: &str, created: u32) {
            let object = json!({"metadata": metadata(name, uid, created, None)});
            let object: SeenDeployment = serde_json::from_value(object).expect("a deployment");
            let table = self.deployments.as_mut().expect("filled");
            table.put("shop", name, object.fold());
        }

        fn replica_set(
            &mut self,
            name: &str,
            uid: &str,
            revision: i32,
            owner: Option<(&str, &str)>,
        ) {
            let owner = owner.map(|(name, uid)| ("Deployment", name, uid));
            let mut metadata = metadata(name, uid, 0, owner);
            metadata["annotations"] =
                json!({"deployment.kubernetes.io/revision": revision.to_string()});
            let object = json!({"metadata": metadata, "status": {"replicas": 1}});
            let object: SeenReplicaSet = serde_json::from_value(object).expect("a replica set");
            let table = self.replica_sets.as_mut().expect("filled");
            table.put("shop", name, object.fold());
        }

        /// Adds a pod of a ReplicaSet. The pod template hash is the part after the last dash of the ReplicaSet's name.
        fn pod(&mut self, name: &str, created: u32, owner: Option<(&str, &str)>) {
            let hash = owner.and_then(|(name, _)| name.rsplit_once('-'));
            let owner = owner.map(|(name, uid)| ("ReplicaSet", name, uid));
            let mut metadata = metadata(name, name, created, owner);
            metadata["labels"] = json!({"pod-template-hash": hash.map(|(_, hash)| hash)});
            if hash.is_none() {
                metadata["labels"] = json!({});
            }
            let object = json!({"metadata": metadata, "status": {"phase": "Running"}});
            let object: SeenPod = serde_json::from_value(object).expect("a pod");
            self.pods
                .as_mut()
                .expect("filled")
                .put("shop", name, object.fold());
        }

        /// Returns the pods of a deployment, each with its ReplicaSet.
        fn names(&self, deployment: &str) -> Vec<(String, String)> {
            let wanted = Wanted::deployment("shop", deployment).expect("valid");
            let pods = self.pods(&wanted, Instant::now()).expect("a deployment");
            let names = pods.into_iter().map(|pod| (pod.name, pod.replica_set.0));
            names.collect()
        }

        fn siblings_of(&self, pod: &str) -> Result<Vec<String>, String> {
            let wanted = Wanted::siblings("shop", "pod", pod).expect("valid");
            let pods = self.pods(&wanted, Instant::now());
            let pods = pods.map_err(|error| error.to_string())?;
            Ok(pods.into_iter().map(|pod| pod.name).collect())
        }
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = expected
            .iter()
            .map(|(pod, set)| ((*pod).to_owned(), (*set).to_owned()));
        owned.collect()
    }

    /// Returns `web` with one pod of revision 9 and two of revision 10.
    fn rollout() -> Tables {
        let mut tables = tables();
        tables.deployment("web", "d", 0);
        tables.replica_set("web-old", "old", 9, Some(("web", "d")));
        tables.replica_set("web-new", "new", 10, Some(("web", "d")));
        tables.pod("web-old-1", 1, Some(("web-old", "old")));
        tables.pod("web-new-2", 2, Some(("web-new", "new")));
        tables.pod("web-new-1", 2, Some(("web-new", "new")));
        tables
    }

    #[test]
    fn the_newest_pods_come_first() {
        let tables = rollout();
        let expected = [
            ("web-new-1", "web-new"),
            ("web-new-2", "web-new"),
            ("web-old-1", "web-old"),
        ];
        assert_eq!(tables.names("web"), pairs(&expected));
        let siblings = tables.siblings_of("web-old-1").expect("siblings");
        assert_eq!(siblings, ["web-new-1", "web-new-2", "web-old-1"]);
    }

    #[test]
    fn nothing_is_told_before_all_tables_are_filled() {
        let mut tables = rollout();
        tables.replica_sets = None;
        let wanted = Wanted::deployment("shop", "web").expect("valid");
        let found = tables.pods(&wanted, Instant::now());
        assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
    }

    #[test]
    fn a_pod_whose_replica_set_has_gone_is_told_without_it() {
        let mut tables = rollout();
        tables
            .replica_sets
            .as_mut()
            .expect("filled")
            .remove("shop", "web-old");
        let expected = [
            ("web-new-1", "web-new"),
            ("web-new-2", "web-new"),
            ("web-old-1", ""),
        ];
        assert_eq!(tables.names("web"), pairs(&expected));
        assert_eq!(
            tables.siblings_of("web-old-1").map(|pods| pods.len()),
            Ok(3)
        );
        // Another ReplicaSet of the same name does not own the pod.
        tables.replica_set("web-old", "again", 11, Some(("web", "d")));
        assert_eq!(tables.names("web"), pairs(&expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_set_has_gone_only_if_its_table_is_newer_than_the_pod() {
        let mut tables = rollout();
        let second = Duration::from_secs(1);
        let sets_as_of = Instant::now();
        advance(second).await;
        // Revision 11 begins; the watch of ReplicaSets has not reported it.
        tables.pod("web-next-1", 3, Some(("web-next", "next")));
        let wanted = Wanted::deployment("shop", "web").expect("valid");
        let names = |tables: &Tables, sets_as_of| {
            let pods = tables.pods(&wanted, sets_as_of).expect("a deployment");
            pods.into_iter().map(|pod| pod.name).collect::<Vec<_>>()
        };
        let without = ["web-new-1", "web-new-2", "web-old-1"];
        assert_eq!(names(&tables, sets_as_of), without);
        let siblings = Wanted::siblings("shop", "pod", "web-next-1").expect("valid");
        let found = tables.pods(&siblings, sets_as_of);
        assert!(matches!(found, Err(Error::Unavailable(_))), "{found:?}");
        // A state change and a new pod are not news of the ReplicaSet.
        let later = Instant::now();
        advance(second).await;
        tables.pod("web-next-1", 3, Some(("web-next", "next")));
        tables.pod("web-next-2", 3, Some(("web-next", "next")));
        let with = [&without[..], &["web-next-1", "web-next-2"]].concat();
        assert_eq!(names(&tables, later), with, "it came and went");
        tables.replica_set("web-next", "next", 11, Some(("web", "d")));
        assert_eq!(names(&tables, sets_as_of)[..2], with[3..]);
    }

    #[test]
    fn what_is_left_of_an_earlier_deployment_is_not_of_the_later_one() {
        let mut tables = rollout();
        tables.deployment("web", "d2", 30);
        assert_eq!(tables.names("web"), []);
        let sets = tables.replica_sets.as_mut().expect("filled");
        sets.remove("shop", "web-old");
        assert_eq!(tables.names("web"), []);
        for pod in ["web-old-1", "web-new-1"] {
            let found = tables.siblings_of(pod);
            assert_eq!(
                found,
                Err(format!("the pod shop/{pod} belongs to no deployment"))
            );
        }
    }

    #[test]
    fn ownership_is_what_the_references_say_and_not_the_names() {
        let mut tables = rollout();
        // Adoption: another Deployment adopts the ReplicaSet, and a ReplicaSet adopts a bare pod.
        tables.deployment("api", "a", 0);
        tables.replica_set("web-old", "old", 9, Some(("api", "a")));
        tables.pod("bare", 3, None);
        assert_eq!(tables.names("api"), pairs(&[("web-old-1", "web-old")]));
        assert!(tables.siblings_of("bare").is_err());
        tables.pod("bare", 3, Some(("web-new", "new")));
        assert_eq!(tables.siblings_of("bare").map(|pods| pods.len()), Ok(3));
        // Orphans have no owner.
        tables.pod("bare", 3, None);
        tables.replica_set("web-old", "old", 9, None);
        assert_eq!(tables.names("api"), []);
        assert_eq!(tables.names("web").len(), 2);
        let found = tables.siblings_of("web-old-1");
        assert!(found.is_err(), "{found:?}");
    }

    #[test]
    fn a_table_knows_nothing_of_what_was_removed() {
        let mut tables = rollout();
        let pods = tables.pods.as_mut().expect("filled");
        for pod in ["web-old-1", "web-new-1", "web-new-2", "web-new-2"] {
            pods.remove("shop", pod);
        }
        assert!(pods.is_blank());
        assert_eq!(tables.names("web"), []);
        let wanted = Wanted::deployment("shop", "gone").expect("valid");
        let expected = Error::NotFound("there is no deployment shop/gone".to_owned());
        assert_eq!(tables.pods(&wanted, Instant::now()), Err(expected));
    }
}
