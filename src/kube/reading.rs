//! The requests to the API server that one lookup needs.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client, Resource as _, api::ListParams, core::Selector};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Error, Pod, Wanted,
    cache::Tables,
    client::{Access, is_unauthorized},
    objects::{self, Fold as _, SeenPod, SeenReplicaSet},
    table::Table,
};
use crate::causes;

/// Number of pods per page of a list.
const PAGE: u32 = 500;
/// Minimum age of a client before a rejected token replaces it. A kubeconfig may run a program to obtain the token.
const RENEW_AFTER: Duration = Duration::from_secs(5);

/// The requested data, or that the object does not exist.
pub(super) enum Fetched {
    /// A Deployment's pods.
    Pods(Result<Vec<Pod>, Error>),
    /// The name of a pod's Deployment, as the pod and its ReplicaSet state it.
    Deployment(Result<String, Error>),
}

/// Reads pods from the API server.
pub(super) struct Reader {
    access: Access,
    /// The client and when it was created.
    client: Mutex<(Client, Instant)>,
    renewing: tokio::sync::Mutex<()>,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Refused(#[from] kube::Error),
    #[error("{0}")]
    Unusable(String),
}

impl Reader {
    pub(super) fn new(access: Access, client: Client) -> Self {
        Self {
            access,
            client: Mutex::new((client, Instant::now())),
            renewing: tokio::sync::Mutex::default(),
        }
    }

    /// Reads the wanted data.
    ///
    /// # Errors
    /// The API server does not respond, or rejects the request.
    pub(super) async fn read(&self, wanted: &Wanted) -> Result<Fetched, Failure> {
        let (client, made) = self.client();
        let read = Reading(client).answer(wanted).await;
        if !matches!(&read, Err(Failure::Refused(error)) if is_unauthorized(error)) {
            return read;
        }
        // The token may have been rotated.
        match self.renewed(made).await? {
            Some(client) => Reading(client).answer(wanted).await,
            None => read,
        }
    }

    /// Returns a client created after `made`, unless the present client is too young to replace.
    async fn renewed(&self, made: Instant) -> Result<Option<Client>, Failure> {
        let _alone = self.renewing.lock().await;
        let (client, latest) = self.client();
        if latest > made {
            return Ok(Some(client));
        }
        if latest.elapsed() < RENEW_AFTER {
            return Ok(None);
        }
        let client = self.access.connect().await.map_err(Failure::Unusable)?;
        let mut kept = self.client.lock();
        *kept = (client.clone(), Instant::now());
        Ok(Some(client))
    }

    fn client(&self) -> (Client, Instant) {
        let kept = self.client.lock();
        kept.clone()
    }
}

/// One read.
struct Reading(Client);

impl Reading {
    async fn answer(&self, wanted: &Wanted) -> Result<Fetched, Failure> {
        Ok(match wanted {
            Wanted::Deployment { namespace, name } => {
                let tables = self.tables(namespace, name).await?;
                Fetched::Pods(tables.pods(wanted, Instant::now()))
            }
            Wanted::Siblings { namespace, pod } => {
                Fetched::Deployment(self.deployment_of(namespace, pod).await?)
            }
        })
    }

    /// Reads the tables that a Deployment's pods are determined from, with few other objects.
    async fn tables(&self, namespace: &str, name: &str) -> Result<Tables, Failure> {
        let (mut deployments, mut replica_sets, mut pods) =
            (Table::default(), Table::default(), Table::default());
        let api: Api<Deployment> = Api::namespaced(self.0.clone(), namespace);
        if let Some(deployment) = api.get_opt(name).await? {
            let selector = deployment.spec.map(|spec| spec.selector);
            deployments.put(
                namespace,
                name,
                objects::Deployment::of(deployment.metadata),
            );
            let selector: Selector = selector.unwrap_or_default().try_into().map_err(|error| {
                Failure::Unusable(format!(
                    "the selector of {namespace}/{name}: {}",
                    causes(&error)
                ))
            })?;
            let mut sets = BTreeSet::new();
            for pod in self.list(namespace, &selector).await? {
                let Some(name) = pod.meta().name.clone() else {
                    continue;
                };
                let pod = pod.fold();
                sets.extend(pod.set().map(|set| set.name.to_string()));
                pods.put(namespace, &name, pod);
            }
            let sets = sets.iter().map(async |name| {
                let set = self.replica_set(namespace, name).await?;
                Ok::<_, kube::Error>((name, set))
            });
            for (name, set) in try_join_all(sets).await? {
                if let Some(set) = set {
                    replica_sets.put(namespace, name, set);
                }
            }
        }
        Ok(Tables {
            deployments: Some(deployments),
            replica_sets: Some(replica_sets),
            pods: Some(pods),
        })
    }

    /// Returns the name of a pod's Deployment, or that the pod has none.
    async fn deployment_of(
        &self,
        namespace: &str,
        pod: &str,
    ) -> Result<Result<String, Error>, kube::Error> {
        let pods: Api<SeenPod> = Api::namespaced(self.0.clone(), namespace);
        let Some(found) = pods.get_opt(pod).await? else {
            let none = format!("there is no pod {namespace}/{pod}");
            return Ok(Err(Error::NotFound(none)));
        };
        let found = found.fold();
        let name = match found.set() {
            None => None,
            Some(owner) => {
                let set = self.replica_set(namespace, &owner.name).await?;
                match set.filter(|set| set.uid == owner.uid) {
                    Some(set) => set.owner.map(|owner| owner.name.into()),
                    None => found.named_deployment().map(str::to_owned),
                }
            }
        };
        Ok(name.ok_or_else(|| no_deployment(namespace, pod)))
    }

    async fn replica_set(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<objects::ReplicaSet>, kube::Error> {
        let sets: Api<SeenReplicaSet> = Api::namespaced(self.0.clone(), namespace);
        let set = sets.get_opt(name).await?;
        Ok(set.map(SeenReplicaSet::fold))
    }

    /// Lists all pods that match a selector.
    async fn list(
        &self,
        namespace: &str,
        selector: &Selector,
    ) -> Result<Vec<SeenPod>, kube::Error> {
        let pods: Api<SeenPod> = Api::namespaced(self.0.clone(), namespace);
        let mut wanted = ListParams::default().labels_from(selector).limit(PAGE);
        let mut listed = Vec::new();
        loop {
            let page = pods.list(&wanted).await?;
            listed.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => wanted.continue_token = Some(token),
                None => return Ok(listed),
            }
        }
    }
}

/// The error for a pod that exists but belongs to no Deployment.
pub(super) fn no_deployment(namespace: &str, pod: &str) -> Error {
    Error::NotFound(format!(
        "the pod {namespace}/{pod} belongs to no deployment"
    ))
}
