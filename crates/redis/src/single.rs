//! Self-repairing connections to one Redis server.
//!
//! Each of the [`Askers`](super::Askers) has a connection of its own, which it alone uses and drives. A supervisor task
//! owns them. It opens them together, checks that all lead to one server of the expected kind that has the scripts,
//! publishes the connections, and pings them. When one breaks (a request or a ping saw an I/O error), the server is
//! gone or was replaced: the supervisor removes all connections and opens them anew, at once and then with growing,
//! jittered pauses. When some connections are silent while others reply, their askers are stalled, or their packets are
//! lost. The supervisor replaces only those, and the others do not wait.
//!
//! Requests only ever use the published connection. While there is none, they fail at once with the reason, so that a
//! quorum of other nodes can decide without waiting.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use election_core::lease::NodeError;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, InfoDict, RedisError, RedisResult,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    reach::{Names, Reach},
    refusal,
    script::{Call, SCRIPTS},
    server::Server,
};

/// How often an idle connection is pinged.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The first pause after a failed attempt to connect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long the other connections may take after the first one is open, before that one is used without them. By then
/// it should be known whether all lead to one server.
const TOGETHER: Duration = Duration::from_millis(100);

/// How many commands a connection queues before requests wait for it, and how many bytes are written at once.
const PIPELINE: (usize, usize) = (1024, 128 * 1024);

/// The kind of server that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// A standalone server, which accepts writes.
    Server,
    /// The primary that Sentinels have named.
    Primary,
    /// A member of a Redis Cluster; a replica redirects.
    Member,
}

/// Connections to one server. A task maintains them, and ends with this value.
#[derive(Debug)]
pub(super) struct Link {
    server: Box<Server>,
    name: String,
    expect: Expect,
    names: Names,
    /// One state for each asker, in their order.
    states: Vec<watch::Receiver<State>>,
    /// Returns the number of the calling asker.
    number: fn() -> Option<usize>,
    supervisor: AbortHandle,
}

/// The connection, or why there is none.
type State = Result<Live, String>;

#[derive(Debug, Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// The number of this connection among all connections of its asker.
    serial: u64,
    /// Notifies the supervisor that a request found the connection broken.
    broken: Arc<Notify>,
}

/// Why a command got no reply.
pub(super) enum Failed {
    /// There is no connection; the command was not sent.
    Absent(String),
    /// The connection broke, or the server replied with an error.
    Error(RedisError),
}

impl Link {
    /// Starts connecting.
    pub(super) fn start(server: &Server, expect: Expect, reach: Reach) -> Self {
        let Reach {
            askers,
            limit,
            names,
        } = reach;
        let name = server.name().to_owned();
        let slots = askers.all().map(|runtime| Slot {
            runtime: runtime.clone(),
            open: None,
            serial: 0,
            publish: watch::channel(Err(format!("{name}: not connected yet"))).0,
        });
        let slots: Vec<_> = slots.collect();
        let states = slots.iter().map(|slot| slot.publish.subscribe()).collect();
        let supervisor = Supervisor {
            name: name.clone(),
            server: server.clone(),
            expect,
            limit,
            names,
            slots,
            more_than_one: false,
            broken: Arc::default(),
        };
        Self {
            server: Box::new(server.clone()),
            name,
            expect,
            names,
            states,
            number: askers.number,
            supervisor: askers.background.spawn(supervisor.run()).abort_handle(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Runs a script.
    ///
    /// # Errors
    /// Why there is no connection, or why the script failed, with the server's name.
    pub(super) async fn run<T: FromRedisValue>(&self, call: &Call) -> Result<T, NodeError> {
        self.attempt(async |connection| call.run(connection).await)
            .await
            .map_err(|failed| self.explain(failed))
    }

    /// Runs a command on the connection.
    pub(super) async fn attempt<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, Failed> {
        let mut live = self.state().borrow().clone().map_err(Failed::Absent)?;
        command(&mut live.connection).await.map_err(|error| {
            // A replaced connection says nothing of its successors.
            let current = |state: &State| state.as_ref().is_ok_and(|now| now.serial == live.serial);
            if lost(&error) && current(&self.state().borrow()) {
                live.broken.notify_one();
            }
            Failed::Error(error)
        })
    }

    /// Returns this asker's connection, or why there is none.
    fn state(&self) -> &watch::Receiver<State> {
        let last = self.states.len() - 1;
        &self.states[(self.number)().map_or(last, |number| number.min(last))]
    }

    pub(super) fn explain(&self, failed: Failed) -> NodeError {
        match failed {
            Failed::Absent(reason) => NodeError::NotSent(reason),
            Failed::Error(error) => {
                let described = describe(&self.name, self.expect, self.names, &error);
                match is_full(&error) {
                    true => NodeError::Full(described),
                    false => NodeError::Unknown(described),
                }
            }
        }
    }

    /// Waits until the first attempt to connect has ended, successfully or not.
    pub(super) async fn attempted(&self) {
        for state in &self.states {
            // An error means that the supervisor is gone, so nothing is left to wait for.
            let _ = state.clone().changed().await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

struct Supervisor {
    name: String,
    server: Server,
    expect: Expect,
    limit: Duration,
    names: Names,
    slots: Vec<Slot>,
    /// Whether the connections led to more than one server when they were opened last. Then none is used before all are
    /// open and lead to one.
    more_than_one: bool,
    /// Notified by requests that find a connection broken.
    broken: Arc<Notify>,
}

/// An asker's connection.
struct Slot {
    /// The runtime of the asker, which drives the connection.
    runtime: Handle,
    open: Option<Open>,
    /// The number of connections that the slot has had.
    serial: u64,
    publish: watch::Sender<State>,
}

struct Open {
    connection: MultiplexedConnection,
    /// The run id of the connected server.
    run: String,
}

/// The result of a connection's health check.
enum Checked {
    /// The connection was open, and still is.
    Well,
    /// The connection is new.
    Opened(Open),
    /// The connection is new, and the server is not of the expected kind.
    Otherwise(Otherwise),
    /// There was no reply in time.
    Silent,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = Duration::ZERO;
        let mut logged = None;
        loop {
            let all = self.slots.iter().all(|slot| slot.open.is_some());
            let wait = if all { PING_EVERY } else { jittered(pause) };
            let reported = timeout(wait, self.broken.notified()).await.is_ok();
            let longer = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);

            let was_connected = self.is_connected();
            let checked = match self.check().await {
                Ok(_) if reported && was_connected => Err(self.found_broken()),
                checked => checked,
            };
            match checked {
                Ok(lacking) => {
                    if !was_connected {
                        tracing::info!(node = self.name, "connected to Redis");
                    }
                    // Connections that have lasted are reopened at once.
                    let lasted = was_connected && lacking.is_none();
                    pause = if lasted { Duration::ZERO } else { longer };
                    if lacking.is_some() && logged != lacking {
                        tracing::warn!(
                            node = self.name,
                            error = lacking,
                            "some threads have no connection to Redis; trying again"
                        );
                    }
                    logged = lacking;
                }
                Err(error) if was_connected => {
                    tracing::warn!(node = self.name, %error, "lost the connection to Redis");
                    self.withdraw(&error);
                    logged = None;
                }
                Err(error) => {
                    pause = longer;
                    self.withdraw(&error);
                    if logged.as_ref() != Some(&error) {
                        tracing::warn!(node = self.name, %error, "cannot connect to Redis; trying again");
                        logged = Some(error);
                    }
                }
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.slots.iter().any(|slot| slot.open.is_some())
    }

    fn found_broken(&self) -> String {
        format!("{}: a request found it broken", self.name)
    }

    /// Removes all connections.
    fn withdraw(&mut self, why: &str) {
        // Earlier notifications of breaks concern these connections.
        self.broken = Arc::default();
        for slot in &mut self.slots {
            slot.withdraw(why);
        }
    }

    /// Pings the open connections and opens the others, and publishes new ones. Returns why some are not open, if any.
    ///
    /// # Errors
    /// Why all connections must be removed.
    async fn check(&mut self) -> Result<Option<String>, String> {
        let was_connected = self.is_connected();
        let slots = self.slots.iter().enumerate();
        let mut checking: FuturesUnordered<_> = slots
            .map(|(number, slot)| {
                let checking = slot.check(&self.server, self.expect, self.limit);
                async move { (number, checking.await) }
            })
            .collect();
        let mut lacking = None;
        let mut waiting: BTreeSet<_> = (0..self.slots.len()).collect();
        let mut together = None;
        loop {
            let (number, checked) = tokio::select! {
                // Processes results of the same moment before the timer of that moment.
                biased;
                next = checking.next() => match next {
                    Some(next) => next,
                    None => break,
                },
                () = self.broken.notified(), if was_connected => return Err(self.found_broken()),
                () = until(together) => break,
            };
            waiting.remove(&number);
            let slot = &mut self.slots[number];
            match checked {
                Ok(Checked::Well) => {}
                Ok(Checked::Opened(open)) => {
                    slot.open = Some(open);
                    if was_connected {
                        self.publish()?;
                    } else if !self.more_than_one {
                        together.get_or_insert_with(|| Instant::now() + TOGETHER);
                    }
                }
                Ok(Checked::Otherwise(other)) => {
                    let other = other.describe(self.names);
                    return Err(format!("{}: it {other}", self.name));
                }
                Ok(Checked::Silent) => {
                    let what = match slot.open {
                        Some(_) => "PING",
                        None => "connecting",
                    };
                    let silent = self.silent(what);
                    self.slots[number].withdraw(&silent);
                    lacking = Some(silent);
                }
                Err(error) => {
                    let error = describe(&self.name, self.expect, self.names, &error);
                    // A further connection may be unavailable; the existing ones serve.
                    if slot.open.is_some() || !was_connected {
                        return Err(error);
                    }
                    slot.withdraw(&error);
                    lacking = Some(error);
                }
            }
        }
        for number in waiting {
            let silent = format!("{}: connecting takes longer than for others", self.name);
            self.slots[number].withdraw(&silent);
            lacking = Some(silent);
        }
        match lacking {
            Some(lacking) if self.more_than_one || !self.is_connected() => Err(lacking),
            lacking => {
                self.publish()?;
                Ok(lacking)
            }
        }
    }

    /// Publishes to the askers the connections that they do not have yet, if all lead to one server.
    fn publish(&mut self) -> Result<(), String> {
        let open = self.slots.iter().filter_map(|slot| slot.open.as_ref());
        let runs: BTreeSet<_> = open.map(|open| &open.run).collect();
        self.more_than_one = runs.len() > 1;
        if self.more_than_one {
            // A name may have more than one address, and a proxy more than one server behind it.
            return Err(format!(
                "{} leads to more than one server, which would vote as one although none knows what \
                 the others granted: give the address of one of them in {}",
                self.name, self.names.urls
            ));
        }
        for slot in &mut self.slots {
            slot.publish(&self.broken);
        }
        Ok(())
    }

    fn silent(&self, what: &str) -> String {
        format!("{}: no answer to {what} within {:?}", self.name, self.limit)
    }
}

/// Waits for an instant, or for ever if there is none.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl Slot {
    /// Pings the connection, or opens one.
    fn check(
        &self,
        server: &Server,
        expect: Expect,
        limit: Duration,
    ) -> impl Future<Output = RedisResult<Checked>> + use<> {
        let open = self.open.as_ref().map(|open| open.connection.clone());
        let (runtime, server) = (self.runtime.clone(), server.clone());
        let check = async move {
            match open {
                Some(mut connection) => ping(&mut connection).await.map(|()| Checked::Well),
                None => connect(&runtime, server, expect, limit).await,
            }
        };
        async move { timeout(limit, check).await.unwrap_or(Ok(Checked::Silent)) }
    }

    fn publish(&mut self, broken: &Arc<Notify>) {
        let Some(open) = &self.open else { return };
        if self.publish.borrow().is_ok() {
            return;
        }
        self.serial += 1;
        let live = Live {
            connection: open.connection.clone(),
            serial: self.serial,
            broken: Arc::clone(broken),
        };
        self.publish.send_modify(|state| *state = Ok(live));
    }

    fn withdraw(&mut self, why: &str) {
        self.open = None;
        self.publish
            .send_modify(|state| *state = Err(why.to_owned()));
    }
}

/// Connects on a runtime, which then drives the connection. Queries what the server is, and loads the scripts.
async fn connect(
    runtime: &Handle,
    server: Server,
    expect: Expect,
    limit: Duration,
) -> RedisResult<Checked> {
    let connecting = runtime.spawn(async move {
        let began = Instant::now();
        let connected = async {
            let mut connection = open(&server, limit).await?;
            let info: InfoDict = redis::cmd("INFO").query_async(&mut connection).await?;
            if let Some(other) = otherwise(expect, &info) {
                return Ok(Checked::Otherwise(other));
            }
            SCRIPTS.preload(&mut connection).await?;
            let run = info.get("run_id").unwrap_or_default();
            Ok(Checked::Opened(Open { connection, run }))
        };
        match connected.await {
            Err(error) => Err(refusal::explained(&server, began, limit, error).await),
            connected => connected,
        }
    });
    let connecting = AbortOnDropHandle::new(connecting).await;
    connecting.unwrap_or_else(|ended| Err(io::Error::other(ended).into()))
}

/// How a server differs from what is expected.
#[derive(Debug, Clone, Copy)]
enum Otherwise {
    Sentinel,
    InCluster,
    InNoCluster,
    Replica,
    /// The server is no primary although Sentinels have named it as one.
    NotPromoted,
}

impl Otherwise {
    fn describe(self, names: Names) -> String {
        let Names {
            urls, mode, master, ..
        } = names;
        match self {
            Self::Sentinel => format!(
                "is a Sentinel: give {mode}=failover, and in {master} the name of the primary that it watches"
            ),
            Self::InCluster => format!("belongs to a Redis Cluster: give {mode}=cluster"),
            Self::InNoCluster => format!(
                "does not belong to a Redis Cluster: give {mode}=single, or the cluster's members"
            ),
            Self::Replica => {
                format!("is a replica, which does not keep leases: give its primary in {urls}")
            }
            Self::NotPromoted => {
                "is a replica, although the Sentinels name it as the primary".to_owned()
            }
        }
    }
}

/// How the server differs from what is expected, if it does.
fn otherwise(expect: Expect, info: &InfoDict) -> Option<Otherwise> {
    let mode: String = info.get("redis_mode").unwrap_or_default();
    let role: String = info.get("role").unwrap_or_default();
    match (expect, mode.as_str(), role.as_str()) {
        (_, "sentinel", _) => Some(Otherwise::Sentinel),
        (Expect::Server | Expect::Primary, "cluster", _) => Some(Otherwise::InCluster),
        (Expect::Member, "standalone", _) => Some(Otherwise::InNoCluster),
        (Expect::Server, _, "slave") => Some(Otherwise::Replica),
        (Expect::Primary, _, "slave") => Some(Otherwise::NotPromoted),
        _ => None,
    }
}

/// Fails if the connection is lost.
async fn ping(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    match redis::cmd("PING").query_async::<()>(connection).await {
        Err(error) if lost(&error) => Err(error),
        // A server that replies with an error (loading, busy) is reachable.
        _ => Ok(()),
    }
}

/// Connects; `limit` bounds the attempt.
pub(super) async fn open(server: &Server, limit: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limit))
        // The caller bounds every call; a second timer here would only cost.
        .set_response_timeout(None)
        // The commands of many concurrent requests go out in few writes.
        .set_pipeline_buffer_size(PIPELINE.0)
        .set_write_backpressure_boundary(PIPELINE.1);
    server
        .client()
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Whether the connection, rather than the command, is at fault. A server that has become a replica is checked anew.
pub(super) fn lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

fn describe(name: &str, expect: Expect, names: Names, error: &RedisError) -> String {
    let advice = match error.kind() {
        _ if denied(error) => format!(": check the user and password in {}", names.urls),
        _ if is_full(error) => {
            ": its memory is full: raise its maxmemory, or have elections given up".to_owned()
        }
        ErrorKind::Server(ServerErrorKind::ReadOnly) if expect == Expect::Server => {
            format!(": it {}", Otherwise::Replica.describe(names))
        }
        _ => String::new(),
    };
    format!("{name}: {error}{advice}")
}

/// Whether the server's memory is full. The server refuses a script at its first write that may need more memory, never
/// later, so nothing was changed. Version 6.2 has the words in the text of a script error.
fn is_full(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    error.code() == Some("OOM") || detail.contains("-OOM command not allowed")
}

/// Whether the server requires other credentials.
pub(super) fn denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
