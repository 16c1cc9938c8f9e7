//! Reads pods on demand.
//!
//! The pods of a Deployment are cached for a short time, so the API server receives as many requests as one caller
//! would cause. A pod's siblings are the pods of its Deployment; the name of a pod's Deployment is cached too. If a
//! read fails or is slow, callers get the previous data while it is within the maximum staleness.

use std::{fmt, sync::Arc, time::Duration};

use kube::Client;
use parking_lot::{Mutex, MutexGuard};
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Error, LookupMode, Pod, Pods, Settings, Status, Wanted,
    flights::Flights,
    reading::{Fetched, Reader, no_deployment},
    trouble::{Trouble, too_old},
};
use crate::{causes, telemetry::trace};

/// Capacity of the pod cache: the number of pods, plus one per Deployment.
const PODS: usize = 50_000;
/// Number of pods whose Deployment's name is cached.
const OWNERS: usize = 50_000;
/// Number of cached names of objects that do not exist, and of cached failures.
const OTHERS: usize = 1_000;
/// Timeout of one read from the API server.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long callers wait for a read when cached data is available.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of the caller's remaining time that wait leaves.
const SPARE: Duration = Duration::from_millis(50);
/// Maximum time after a failed read before the same read is retried.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads pods and caches them for a short time.
pub(super) struct OnDemand(Arc<Inner>);

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").finish_non_exhaustive()
    }
}

struct Inner {
    reader: Reader,
    ttl: Duration,
    max_staleness: Duration,
    /// The pods of Deployments from the latest read. Only newer data replaces an entry.
    known: Cache<Wanted, KnownPods, ByPods>,
    /// The names of pods' Deployments. A name is valid only if the Deployment's pods include the pod.
    owners: Cache<Wanted, Arc<str>>,
    /// Objects that do not exist. Separate from `known`: the number of names that callers can invent is unlimited.
    absent: Cache<Wanted, KnownPods>,
    /// Failed reads: the error, and until when the read is not retried.
    failed: Cache<Wanted, (Error, Instant)>,
    flights: Arc<Flights<Result<Found, Error>>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    read: Option<Instant>,
    trouble: Trouble,
}

/// The pods of a Deployment, or that it does not exist, and when the API server was asked.
#[derive(Debug, Clone)]
struct KnownPods {
    pods: Result<Arc<[Pod]>, Error>,
    asked: Instant,
}

impl KnownPods {
    fn has(&self, name: &str) -> bool {
        let pods = self.pods.as_deref().unwrap_or_default();
        pods.iter().any(|pod| pod.name == name)
    }

    /// Returns whether the API server was asked within this time.
    fn within(&self, time: Duration) -> bool {
        self.asked.elapsed() <= time
    }
}

/// The result of a read.
#[derive(Debug, Clone)]
enum Found {
    Pods(KnownPods),
    /// The name of a pod's Deployment.
    Owner(Arc<str>, Instant),
}

/// Weighs an entry by its number of pods, so that a large Deployment takes the space of many small ones.
#[derive(Debug, Clone)]
struct ByPods;

impl Weighter<Wanted, KnownPods> for ByPods {
    fn weight(&self, _: &Wanted, known: &KnownPods) -> u64 {
        known.pods.as_ref().map_or(1, |pods| 1 + pods.len() as u64)
    }
}

/// How long a caller waits.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// The limit if cached data is available.
    otherwise: Instant,
    deadline: Instant,
}

impl OnDemand {
    pub(super) fn new(settings: &Settings, client: Client) -> Self {
        // One shard: a large Deployment must not exceed the capacity of a shard.
        let kept = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(OTHERS)
            .weight_capacity(PODS as u64)
            .build();
        #[expect(clippy::expect_used, reason = "it fails only if one is left out")]
        let kept = kept.expect("both capacities are given");
        Self(Arc::new(Inner {
            reader: Reader::new(settings.access.clone(), client),
            ttl: settings.cache_ttl,
            max_staleness: settings.max_staleness,
            known: Cache::with_options(
                kept,
                ByPods,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            owners: Cache::new(OWNERS),
            absent: Cache::new(OTHERS),
            failed: Cache::new(OTHERS),
            flights: Flights::new(),
            state: Mutex::default(),
        }))
    }

    pub(super) async fn pods(&self, wanted: &Wanted, deadline: Instant) -> Result<Pods, Error> {
        let inner = &self.0;
        let now = Instant::now();
        let in_time = deadline.checked_sub(SPARE).unwrap_or(now);
        let waits = Waits {
            otherwise: in_time.min(now + PATIENCE),
            deadline,
        };
        let known = match wanted {
            Wanted::Deployment { .. } => inner.deployment(wanted, None, waits).await?,
            Wanted::Siblings { namespace, pod } => {
                inner.siblings(wanted, namespace, pod, waits).await?
            }
        };
        let age = known.asked.elapsed();
        if age > inner.max_staleness {
            return Err(too_old(age, inner.max_staleness));
        }
        Ok(Pods {
            pods: known.pods?.to_vec(),
            age,
        })
    }

    pub(super) fn status(&self) -> Status {
        let state = self.0.state();
        let known = self.0.known.iter();
        let pods = known.filter_map(|(_, known)| Some(known.pods.ok()?.len()));
        Status {
            mode: LookupMode::OnDemand,
            age: state.read.map(|read| read.elapsed()),
            pods: pods.sum(),
            error: state.trouble.error().map(str::to_owned),
        }
    }
}

impl Inner {
    /// Returns the pods of a Deployment, read at `since` or later if it is given.
    async fn deployment(
        self: &Arc<Self>,
        wanted: &Wanted,
        since: Option<Instant>,
        waits: Waits,
    ) -> Result<KnownPods, Error> {
        let is_since = |known: &KnownPods| since.is_none_or(|since| known.asked >= since);
        // A read that is already in progress may have begun before `since`; the next one has not.
        for _ in 0..2 {
            let last = self.last(wanted).filter(is_since);
            let until = match last {
                Some(known) if known.within(self.ttl) => return Ok(known),
                Some(ref known) if known.within(self.max_staleness) => waits.otherwise,
                _ => waits.deadline,
            };
            match self.read(wanted, until).await {
                Ok(Found::Pods(known)) if is_since(&known) => return Ok(known),
                Ok(_) => {}
                Err(error) => return last.ok_or(error),
            }
        }
        Err(Error::DeadlineExceeded)
    }

    /// Returns the pods of the Deployment that a pod belongs to.
    async fn siblings(
        self: &Arc<Self>,
        wanted: &Wanted,
        namespace: &str,
        pod: &str,
        waits: Waits,
    ) -> Result<KnownPods, Error> {
        let absent = self.absent.get(wanted);
        if let Some(absent) = absent.filter(|absent| absent.within(self.ttl)) {
            return Ok(absent);
        }
        let of = |name: &str| Wanted::Deployment {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        if let Some(name) = self.owners.get(wanted) {
            let known = self.deployment(&of(&name), None, waits).await?;
            if known.has(pod) {
                return Ok(known);
            }
        }
        let (name, asked) = match self.read(wanted, waits.deadline).await? {
            Found::Owner(name, asked) => (name, asked),
            Found::Pods(none) => return Ok(none),
        };
        // Data from before the pod's creation would list its siblings without it.
        let known = self.deployment(&of(&name), Some(asked), waits).await?;
        if known.has(pod) {
            return Ok(known);
        }
        // The pod belongs to an earlier Deployment of the same name.
        let none = KnownPods {
            pods: Err(no_deployment(namespace, pod)),
            asked: known.asked,
        };
        self.owners.remove(wanted);
        self.absent.insert(wanted.clone(), none.clone());
        Ok(none)
    }

    /// Returns the latest cached data of a Deployment.
    fn last(&self, wanted: &Wanted) -> Option<KnownPods> {
        let (known, absent) = (self.known.get(wanted), self.absent.get(wanted));
        known
            .into_iter()
            .chain(absent)
            .max_by_key(|last| last.asked)
    }

    /// Reads from the API server. Concurrent callers share one read.
    async fn read(self: &Arc<Self>, wanted: &Wanted, until: Instant) -> Result<Found, Error> {
        let failed = self.failed.get(wanted);
        if let Some((error, _)) = failed.filter(|(_, until)| Instant::now() < *until) {
            return Err(error);
        }
        let reading = || {
            let (inner, wanted) = (Arc::clone(self), wanted.clone());
            async move { inner.ask(wanted).await }
        };
        let read = timeout_at(until, self.flights.read(wanted, reading)).await;
        read.map_err(|_| Error::DeadlineExceeded)??
    }

    /// Asks the API server and caches the result.
    async fn ask(&self, wanted: Wanted) -> Result<Found, Error> {
        let asked = Instant::now();
        let read = trace::call("Kubernetes read", async {
            match timeout(READ_TIMEOUT, self.reader.read(&wanted)).await {
                Ok(read) => read.map_err(|error| causes(&error)),
                Err(_) => Err("it does not answer".to_owned()),
            }
        });
        let answer = match read.await {
            Ok(answer) => answer,
            Err(what) => {
                let mut state = self.state();
                if state.trouble.add(what) {
                    let what = state.trouble.error().unwrap_or_default();
                    tracing::error!("pods cannot be read: {what}");
                }
                drop(state);
                let error = Error::Unavailable(
                    "the Kubernetes API server could not be read; the agent's log says more"
                        .to_owned(),
                );
                let until = Instant::now() + PAUSE.min(self.ttl);
                self.failed.insert(wanted, (error.clone(), until));
                return Err(error);
            }
        };
        let mut state = self.state();
        if state.trouble.recovered() {
            tracing::info!("pods are read again");
        }
        state.read = state.read.max(Some(asked));
        drop(state);
        Ok(self.keep(wanted, answer, asked))
    }

    fn keep(&self, wanted: Wanted, answer: Fetched, asked: Instant) -> Found {
        let absent = |error| KnownPods {
            pods: Err(error),
            asked,
        };
        match answer {
            Fetched::Pods(Ok(pods)) => {
                if let Wanted::Deployment { namespace, name } = &wanted {
                    let name: Arc<str> = name.as_str().into();
                    for pod in &pods {
                        let siblings = Wanted::Siblings {
                            namespace: namespace.clone(),
                            pod: pod.name.clone(),
                        };
                        self.owners.insert(siblings, Arc::clone(&name));
                    }
                }
                let known = KnownPods {
                    pods: Ok(pods.into()),
                    asked,
                };
                self.known.insert(wanted, known.clone());
                Found::Pods(known)
            }
            Fetched::Pods(Err(error)) => {
                let known = absent(error);
                self.absent.insert(wanted.clone(), known.clone());
                self.known.remove(&wanted);
                Found::Pods(known)
            }
            Fetched::Deployment(Ok(name)) => {
                let name: Arc<str> = name.into();
                self.owners.insert(wanted, Arc::clone(&name));
                Found::Owner(name, asked)
            }
            Fetched::Deployment(Err(error)) => {
                let known = absent(error);
                self.owners.remove(&wanted);
                self.absent.insert(wanted, known.clone());
                Found::Pods(known)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
