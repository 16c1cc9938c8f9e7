//! Serves pods from a cache that watches keep up to date.
//!
//! Three watches fill three tables: pods, ReplicaSets and Deployments. A complete list replaces a table as a whole, so
//! no table is ever served in part; the events that follow update it. After an error the watch pauses, with exponential
//! backoff until a watch succeeds.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event, watcher},
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::{
    Error, LookupMode, Pods, Settings, Status, Wanted,
    cache::{Kept, Tables, not_listed},
    client::{Access, is_unauthorized},
    freshness::Freshness,
    objects::{Fold, SeenDeployment, SeenPod, SeenReplicaSet},
    table::Table,
    trouble::too_old,
};
use crate::causes;

/// Page size of lists. Larger pages are faster but leave more memory unused afterwards.
const PAGE: u32 = 100;
/// How long a connection may be silent beyond the duration of a watch.
const SILENCE: Duration = Duration::from_secs(10);
/// Minimum and maximum duration of a watch, in seconds. The minimum leaves the API server time to send a bookmark with
/// its position, which it does two seconds before the end.
const SHORTEST: u64 = 3;
const LONGEST: u64 = 15;
/// How far the watch of ReplicaSets may lag behind the watch of pods while both are healthy.
const BEHIND: Duration = Duration::from_secs(1);

/// A cache of one namespace, or of all.
#[derive(Debug)]
pub(super) struct Watched {
    tables: Arc<RwLock<Tables>>,
    freshness: [Freshness; 3],
    max_staleness: Duration,
}

impl Watched {
    /// Starts the watches of one namespace, or of all.
    pub(super) fn start(settings: &Settings, namespace: Option<&str>) -> Self {
        let tables = Arc::new(RwLock::new(Tables::default()));
        let place = namespace.map_or_else(String::new, |namespace| format!(" of {namespace}"));
        let freshness = ["pods", "replica sets", "deployments"]
            .map(|kind| Freshness::new(format!("the {kind}{place}")));
        let watch = Watch {
            access: settings.access.clone(),
            namespace: namespace.map(str::to_owned),
            lasts: lasts(settings.max_staleness),
            tables: Arc::clone(&tables),
            freshness: freshness[0].clone(),
        };
        let of = |freshness: &Freshness| Watch {
            freshness: freshness.clone(),
            ..watch.clone()
        };
        tokio::spawn(of(&freshness[0]).follow::<SeenPod>());
        tokio::spawn(of(&freshness[1]).follow::<SeenReplicaSet>());
        tokio::spawn(of(&freshness[2]).follow::<SeenDeployment>());
        Self {
            tables,
            freshness,
            max_staleness: settings.max_staleness,
        }
    }

    pub(super) fn pods(&self, wanted: &Wanted) -> Result<Pods, Error> {
        let tables = self.tables.read();
        let Some([pods, sets, deployments]) = self.as_of() else {
            return Err(not_listed());
        };
        let age = pods.min(sets).min(deployments).elapsed();
        if age > self.max_staleness {
            return Err(too_old(age, self.max_staleness));
        }
        let pods = tables.pods(wanted, sets.checked_sub(BEHIND).unwrap_or(sets))?;
        Ok(Pods { pods, age })
    }

    pub(super) fn status(&self) -> Status {
        let tables = self.tables.read();
        let oldest = self.as_of().and_then(|tables| tables.into_iter().min());
        Status {
            mode: LookupMode::Watch,
            age: oldest.map(|oldest| oldest.elapsed()),
            pods: tables.pods.as_ref().map_or(0, Table::len),
            error: self.freshness.iter().find_map(Freshness::error),
        }
    }

    /// Returns when each table was up to date; [`None`] if one is not filled. Call this while holding the lock of the
    /// tables, so that the times match their contents.
    fn as_of(&self) -> Option<[Instant; 3]> {
        let [pods, sets, deployments] = self.freshness.each_ref().map(Freshness::last);
        Some([pods?, sets?, deployments?])
    }
}

/// Returns the duration of a watch in seconds: short enough to detect in time that a watch is cut off.
fn lasts(max_staleness: Duration) -> u32 {
    let seconds = (max_staleness / 4).as_secs().clamp(SHORTEST, LONGEST);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// What is watched, and the table that it fills.
#[derive(Debug, Clone)]
struct Watch {
    access: Access,
    namespace: Option<String>,
    /// In seconds.
    lasts: u32,
    tables: Arc<RwLock<Tables>>,
    freshness: Freshness,
}

impl Watch {
    /// Keeps the table of these objects up to date; never returns.
    async fn follow<K>(self)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Fold<Folded: Kept>
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
            match builder.map(|builder| builder.with_layer(&self.freshness).build()) {
                Err(what) => sleep(self.freshness.failed(what)).await,
                Ok(client) => {
                    let api: Api<K> = match &self.namespace {
                        Some(namespace) => Api::namespaced(client, namespace),
                        None => Api::all(client),
                    };
                    self.watch(api, config.clone()).await;
                }
            }
        }
    }

    /// Keeps the table up to date until the watch cannot continue by itself.
    async fn watch<K>(&self, api: Api<K>, config: watcher::Config)
    where
        K: Resource<DynamicType = ()>
            + Fold<Folded: Kept>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let mut events = std::pin::pin!(watcher(api, config));
        let (mut listed, mut began) = (Table::default(), Instant::now());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => (listed, began) = (Table::default(), Instant::now()),
                Ok(Event::InitApply(object)) => {
                    if let Some((namespace, name)) = named(&object) {
                        listed.put(&namespace, &name, object.fold());
                    }
                }
                Ok(Event::InitDone) => {
                    let listed = std::mem::take(&mut listed);
                    let old = self.change(|tables| {
                        self.freshness.filled(began);
                        tables.swap(listed)
                    });
                    drop(old);
                }
                Ok(Event::Apply(object)) => {
                    let named = named(&object);
                    let row = object.fold();
                    self.change_table(|table| {
                        if let Some((namespace, name)) = named {
                            table.put(&namespace, &name, row);
                        }
                    });
                }
                Ok(Event::Delete(object)) => {
                    let named = named(&object);
                    self.change_table(|table: &mut Table<K::Folded>| {
                        if let Some((namespace, name)) = named {
                            table.remove(&namespace, &name);
                        }
                    });
                }
                Err(error) => {
                    if is_behind(&error) {
                        self.freshness.was_behind();
                    }
                    sleep(self.freshness.failed(causes(&error))).await;
                    if is_stuck(&error) {
                        return;
                    }
                }
            }
        }
    }

    fn change_table<T: Kept>(&self, change: impl FnOnce(&mut Table<T>)) {
        self.change(|tables| {
            if let Some(table) = T::table(tables) {
                change(table);
            }
            self.freshness.confirmed();
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self.tables.write();
        change(&mut tables)
    }
}

/// Returns an object's namespace and name. Every object from an API server has both.
fn named(object: &impl Resource) -> Option<(String, String)> {
    let metadata = object.meta();
    metadata.namespace.clone().zip(metadata.name.clone())
}

/// Returns whether a watch failed to deliver events.
fn is_behind(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(_)) || is_unreadable(error)
}

/// Returns whether a watch delivered an event that cannot be read. Skipping it would lose it.
fn is_unreadable(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::WatchFailed(
            kube::Error::SerdeError(_) | kube::Error::LinesCodecMaxLineLengthExceeded
        )
    )
}

/// Returns whether a watch would repeat the same error forever: its credentials are no longer valid, its position has
/// expired and the server reports that as a status (`watcher` handles the event form itself), or it stopped at an event
/// that cannot be read.
fn is_stuck(watch: &watcher::Error) -> bool {
    match watch {
        watcher::Error::InitialListFailed(error) => is_unauthorized(error),
        watcher::Error::WatchFailed(error) => is_unauthorized(error) || is_unreadable(watch),
        watcher::Error::WatchStartFailed(error) => {
            is_unauthorized(error)
                || matches!(error, kube::Error::Api(status) if status.code == 410)
        }
        _ => false,
    }
}
