//! Pods that are read when they are asked for.
//!
//! What was read is kept for a short time, and while it is read everybody waits for the same answers: the API
//! server is asked as often as if one caller asked, however many do. What cannot be read is told by what was
//! read before, if that is not too old.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::try_join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client, Resource as _, api::ListParams, core::Selector};
use quick_cache::sync::Cache;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Error, Mode, Pods, Status, Wanted,
    cache::{Table, Tables},
    client::{Access, is_unauthorized},
    objects::{self, Fold as _, SeenPod, SeenReplicaSet},
    scope::too_old,
};
use crate::{causes, config};

/// How many questions' answers are kept.
const KEPT: usize = 1_000;
/// How many of them may be asked at once: callers' made-up names must not be a burden for the API server.
const AT_ONCE: usize = 16;
/// How long the API server may take to answer one.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How many pods a list's page has.
const PAGE: u32 = 500;

/// Reads pods, and keeps them for a short time.
pub(super) struct OnDemand(Arc<Inner>);

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").finish_non_exhaustive()
    }
}

struct Inner {
    access: Access,
    client: Mutex<Client>,
    ttl: Duration,
    max_staleness: Duration,
    kept: Cache<Wanted, Kept>,
    under_way: Semaphore,
    last: Mutex<Last>,
}

/// What came of the last question.
#[derive(Debug, Default)]
struct Last {
    read: Option<Instant>,
    error: Option<String>,
}

/// The pods, or that there is no such Deployment.
type Answer = Result<Arc<[super::Pod]>, Error>;

/// What was read.
#[derive(Debug, Clone)]
struct Kept {
    /// The last answer that there was, and when it was asked for.
    answer: Option<(Answer, Instant)>,
    /// Until when it is not asked for again.
    until: Instant,
}

impl OnDemand {
    pub(super) fn new(config: &config::Kube, client: Client) -> Self {
        Self(Arc::new(Inner {
            access: config.access.clone(),
            client: Mutex::new(client),
            ttl: config.cache_ttl,
            max_staleness: config.max_staleness,
            kept: Cache::new(KEPT),
            under_way: Semaphore::new(AT_ONCE),
            last: Mutex::default(),
        }))
    }

    pub(super) async fn pods(&self, wanted: &Wanted, deadline: Instant) -> Result<Pods, Error> {
        let inner = &self.0;
        let fresh = inner.kept.get(wanted);
        let kept = match fresh.filter(|kept| Instant::now() < kept.until) {
            Some(kept) => kept,
            None => {
                let (inner, wanted) = (Arc::clone(inner), wanted.clone());
                // It goes on when the caller does not: others wait for it, too.
                let reading = tokio::spawn(async move { inner.read_once(wanted).await });
                let read = timeout_at(deadline, reading).await;
                let read = read.map_err(|_| Error::DeadlineExceeded)?;
                read.map_err(|_| Error::Unavailable("the reading was broken off".to_owned()))?
            }
        };
        let Some((answer, asked)) = kept.answer else {
            return Err(Error::Unavailable(
                "the Kubernetes API server gave no answer; the agent's log says more".to_owned(),
            ));
        };
        let age = asked.elapsed();
        if age > inner.max_staleness {
            return Err(too_old(age, inner.max_staleness));
        }
        Ok(Pods {
            pods: answer?.to_vec(),
            age,
        })
    }

    pub(super) fn status(&self) -> Status {
        let last = self.0.last();
        let kept = self.0.kept.iter().filter_map(|(_, kept)| kept.answer);
        let pods = kept.filter_map(|(answer, _)| Some(answer.ok()?.len()));
        Status {
            mode: Mode::OnDemand,
            age: last.read.map(|read| read.elapsed()),
            pods: pods.sum(),
            error: last.error.clone(),
        }
    }
}

impl Inner {
    async fn read_once(&self, wanted: Wanted) -> Kept {
        let now = Instant::now();
        let before = self.kept.get(&wanted).and_then(|kept| kept.answer);
        self.kept.remove_if(&wanted, |kept| kept.until <= now);
        let reading = async {
            let read = self.read(&wanted).await;
            Ok::<_, Infallible>(Kept {
                answer: read.or(before),
                until: Instant::now() + self.ttl,
            })
        };
        let Ok(kept) = self.kept.get_or_insert_async(&wanted, reading).await;
        kept
    }

    /// What the API server says, and when it was asked; [`None`] if it did not answer.
    async fn read(&self, wanted: &Wanted) -> Option<(Answer, Instant)> {
        let _place = self.under_way.acquire().await;
        let asked = Instant::now();
        let read = timeout(READ_TIMEOUT, self.tables(wanted)).await;
        let read = match read {
            Ok(read) => read.map_err(|error| causes(&error)),
            Err(_) => Err("it does not answer".to_owned()),
        };
        let mut last = self.last();
        match read {
            Ok(tables) => {
                if last.error.take().is_some() {
                    tracing::info!("pods are read again");
                }
                last.read = Some(asked);
                Some((tables.pods(wanted, Instant::now()).map(Arc::from), asked))
            }
            Err(what) => {
                if last.error.is_none() {
                    tracing::error!("pods cannot be read: {what}");
                }
                last.error = Some(what);
                None
            }
        }
    }

    /// Tables of what is needed to answer, and hardly anything else.
    async fn tables(&self, wanted: &Wanted) -> Result<Tables, Failure> {
        let client = self
            .client
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let read = Reading(client).tables(wanted).await;
        if !matches!(&read, Err(Failure::Refused(error)) if is_unauthorized(error)) {
            return read;
        }
        // The token may have been replaced.
        let client = self.access.connect().await.map_err(Failure::Unusable)?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client.clone();
        Reading(client).tables(wanted).await
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Refused(#[from] kube::Error),
    #[error("{0}")]
    Unusable(String),
}

/// One reading.
struct Reading(Client);

impl Reading {
    async fn tables(&self, wanted: &Wanted) -> Result<Tables, Failure> {
        let mut tables = Tables {
            deployments: Some(Table::default()),
            replica_sets: Some(Table::default()),
            pods: Some(Table::default()),
        };
        let (namespace, deployment) = match wanted {
            Wanted::Deployment { namespace, name } => (namespace, Some(name.clone())),
            Wanted::Siblings { namespace, pod } => {
                let deployment = self.deployment_of(namespace, pod, &mut tables).await?;
                (namespace, deployment)
            }
        };
        let Some(name) = deployment else {
            return Ok(tables);
        };
        let deployments: Api<Deployment> = Api::namespaced(self.0.clone(), namespace);
        let deployment = deployments.get_opt(&name).await?;
        let Some(deployment) = deployment else {
            return Ok(tables);
        };
        let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone());
        if let Some(table) = &mut tables.deployments {
            table.put(
                namespace,
                &name,
                objects::Deployment::of(deployment.metadata),
            );
        }
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
            if let Some(table) = &mut tables.pods {
                table.put(namespace, &name, pod);
            }
        }
        let sets = sets.into_iter();
        try_join_all(sets.map(|name| self.replica_set(namespace, name)))
            .await?
            .into_iter()
            .flatten()
            .for_each(|(name, set)| {
                if let Some(table) = &mut tables.replica_sets {
                    table.put(namespace, &name, set);
                }
            });
        Ok(tables)
    }

    /// The name of a pod's Deployment, if it has one.
    async fn deployment_of(
        &self,
        namespace: &str,
        pod: &str,
        tables: &mut Tables,
    ) -> Result<Option<String>, kube::Error> {
        let pods: Api<SeenPod> = Api::namespaced(self.0.clone(), namespace);
        let Some(found) = pods.get_opt(pod).await? else {
            return Ok(None);
        };
        let found = found.fold();
        let named = found.named_deployment().map(str::to_owned);
        let owner = found.set().map(|set| set.name.to_string());
        if let Some(table) = &mut tables.pods {
            table.put(namespace, pod, found);
        }
        let Some(owner) = owner else {
            return Ok(None);
        };
        Ok(match self.replica_set(namespace, owner).await? {
            Some((_, set)) => set.owner.map(|owner| owner.name.into()),
            None => named,
        })
    }

    async fn replica_set(
        &self,
        namespace: &str,
        name: String,
    ) -> Result<Option<(String, objects::ReplicaSet)>, kube::Error> {
        let sets: Api<SeenReplicaSet> = Api::namespaced(self.0.clone(), namespace);
        let set = sets.get_opt(&name).await?;
        Ok(set.map(|set| (name, set.fold())))
    }

    /// All pods that a selector matches.
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
