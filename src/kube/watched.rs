//! Pods from a cache that watches keep.
//!
//! Three watches fill three tables: pods, ReplicaSets and Deployments. A table is replaced as a whole when a
//! list has come to its end, so that none is ever served in part; from then on it follows the events. Errors
//! are waited out, longer and longer, by the watches of the kube crate.

use std::{
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};

use super::{
    Error, Mode, Pods, Status, Wanted,
    cache::{Row, Table, Tables},
    client::{Access, is_unauthorized},
    heard::Heard,
    objects::{Fold, SeenDeployment, SeenPod, SeenReplicaSet},
    scope::too_old,
};
use crate::{causes, config};

/// How many objects are listed at once. More would be quicker, and leave more memory behind that nobody uses.
const PAGE: u32 = 100;
/// How long a connection may be silent beyond the time that a watch lasts.
const SILENCE: Duration = Duration::from_secs(10);
/// How long after a watch that does not go on the next one begins, with the credentials of then.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

/// A cache of a namespace, or of all; not watched any more when dropped.
#[derive(Debug)]
pub(super) struct Watched {
    tables: Arc<RwLock<Tables>>,
    heard: [Heard; 3],
    max_staleness: Duration,
    watching: [AbortHandle; 3],
}

impl Watched {
    /// Starts to watch a namespace, or all.
    pub(super) fn start(config: &config::Kube, namespace: Option<&str>) -> Self {
        let tables = Arc::new(RwLock::new(Tables::default()));
        let place = namespace.map_or_else(String::new, |namespace| format!(" of {namespace}"));
        let heard = ["pods", "replica sets", "deployments"]
            .map(|kind| Heard::new(format!("the {kind}{place}")));
        let watch = Watch {
            access: config.access.clone(),
            namespace: namespace.map(str::to_owned),
            lasts: lasts(config.max_staleness),
            tables: Arc::clone(&tables),
            heard: heard[0].clone(),
        };
        let of = |heard: &Heard| Watch {
            heard: heard.clone(),
            ..watch.clone()
        };
        let watching = [
            tokio::spawn(of(&heard[0]).follow::<SeenPod>()).abort_handle(),
            tokio::spawn(of(&heard[1]).follow::<SeenReplicaSet>()).abort_handle(),
            tokio::spawn(of(&heard[2]).follow::<SeenDeployment>()).abort_handle(),
        ];
        Self {
            tables,
            heard,
            max_staleness: config.max_staleness,
            watching,
        }
    }

    pub(super) fn pods(&self, wanted: &Wanted) -> Result<Pods, Error> {
        let age = self.age();
        if let Some(age) = age.filter(|age| *age > self.max_staleness) {
            return Err(too_old(age, self.max_staleness));
        }
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let pods = tables.pods(wanted)?;
        Ok(Pods {
            pods,
            age: age.unwrap_or_default(),
        })
    }

    pub(super) fn status(&self) -> Status {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        Status {
            mode: Mode::Watch,
            age: self.age(),
            pods: tables.pods.as_ref().map_or(0, Table::len),
            error: self.heard.iter().find_map(Heard::error),
        }
    }

    /// How old the oldest table is; [`None`] if one is not filled.
    fn age(&self) -> Option<Duration> {
        let ages = self.heard.iter().map(|heard| Some(heard.last()?.elapsed()));
        let ages: Option<Vec<_>> = ages.collect();
        ages?.into_iter().max()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.iter().for_each(AbortHandle::abort);
    }
}

/// How long a watch lasts before it is asked for anew: often enough to know in time that one is cut off.
fn lasts(max_staleness: Duration) -> u32 {
    let seconds = (max_staleness / 4).as_secs().clamp(1, 15);
    u32::try_from(seconds).unwrap_or(15)
}

/// What is watched, and where it is kept.
#[derive(Debug, Clone)]
struct Watch {
    access: Access,
    namespace: Option<String>,
    /// In seconds.
    lasts: u32,
    tables: Arc<RwLock<Tables>>,
    heard: Heard,
}

impl Watch {
    /// Keeps the table of these objects for ever.
    async fn follow<K>(self)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Fold<Folded: Row>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let config = watcher::Config::default()
            .timeout(self.lasts)
            .page_size(PAGE);
        let silence = Duration::from_secs(self.lasts.into()) + SILENCE;
        loop {
            let builder = self.access.builder(silence).await;
            match builder.map(|builder| builder.with_layer(&self.heard).build()) {
                Err(what) => self.heard.failed(what),
                Ok(client) => {
                    let api: Api<K> = match &self.namespace {
                        Some(namespace) => Api::namespaced(client, namespace),
                        None => Api::all(client),
                    };
                    self.watch(api, config.clone()).await;
                }
            }
            sleep(BEGIN_AGAIN).await;
        }
    }

    /// Keeps the table until the watch has come to where it will not go on by itself.
    async fn watch<K>(&self, api: Api<K>, config: watcher::Config)
    where
        K: Resource<DynamicType = ()>
            + Fold<Folded: Row>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff());
        let (mut listed, mut began) = (Table::default(), Instant::now());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => (listed, began) = (Table::default(), Instant::now()),
                Ok(Event::InitApply(object)) => put(&mut listed, object),
                Ok(Event::InitDone) => {
                    let old = self.change(|tables| tables.swap(std::mem::take(&mut listed)));
                    self.heard.filled(began);
                    drop(old);
                }
                Ok(Event::Apply(object)) => self.change(|tables| {
                    if let Some(table) = Row::table(tables) {
                        put(table, object);
                    }
                }),
                Ok(Event::Delete(object)) => self.change(|tables| {
                    if let Some(table) = <K::Folded as Row>::table(tables) {
                        let metadata = object.meta();
                        let (namespace, name) = (&metadata.namespace, &metadata.name);
                        if let Some((namespace, name)) = namespace.as_ref().zip(name.as_ref()) {
                            table.remove(namespace, name);
                        }
                    }
                }),
                Err(error) => {
                    if let watcher::Error::WatchError(_) = error {
                        self.heard.was_behind();
                    }
                    let stuck = is_stuck(&error);
                    self.heard.failed(causes(&error));
                    if stuck {
                        return;
                    }
                }
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut tables)
    }
}

fn put<K>(table: &mut Table<K::Folded>, object: K)
where
    K: Resource + Fold<Folded: Row>,
{
    let metadata = object.meta();
    let named = metadata.namespace.clone().zip(metadata.name.clone());
    // Whatever comes from an API server has both.
    if let Some((namespace, name)) = named {
        table.put(&namespace, &name, object.fold());
    }
}

/// Whether a watch would make the same mistake for ever: ask in the name of somebody who is not known any more,
/// or from where the server knows nothing any more, if it answers with that as a status (as an event the crate
/// knows it).
fn is_stuck(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchFailed(error) => {
            is_unauthorized(error)
        }
        watcher::Error::WatchStartFailed(error) => {
            is_unauthorized(error)
                || matches!(error, kube::Error::Api(status) if status.code == 410)
        }
        _ => false,
    }
}
