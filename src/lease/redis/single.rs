//! Connections to one Redis server that mend themselves.
//!
//! Every [worker](crate::workers) has a connection of its own, which it alone uses and drives, and what goes on
//! beside requests has one more. A supervisor task owns them: it opens them together, sees whether all lead to
//! one server that is what it must be, loads the scripts, publishes the connections, and pings them. When one
//! breaks (a request saw an I/O error, or a ping did) the server is gone or was replaced: all are withdrawn and
//! opened anew, at once and then with growing, jittered pauses. When some say nothing while others are answered,
//! their workers are stalled, or their packets are lost: those alone are replaced.
//!
//! Requests only ever take the published connection; while there is none they fail at once with the reason,
//! so that a quorum of other nodes can decide without waiting.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, InfoDict, RedisError, RedisResult,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    script::{Call, SCRIPTS},
    server::Server,
};
use crate::{
    lease::NodeError,
    workers::{self, Workers},
};

/// How often an idle connection is pinged.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The first pause after a failed attempt to connect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How many commands wait for a connection before requests wait for them, and how many bytes are written at once.
const PIPELINE: (usize, usize) = (1024, 128 * 1024);

/// What a server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// A server of its own, which takes writes.
    Server,
    /// The primary that Sentinels have named.
    Primary,
    /// A member of a Redis Cluster; one that is a replica redirects.
    Member,
}

/// Connections to one server, kept up by a task that ends with this value.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    expect: Expect,
    /// For each worker, and last for what is no worker's.
    states: Vec<watch::Receiver<State>>,
    supervisor: AbortHandle,
}

/// The connection, or why there is none.
type State = Result<Live, String>;

#[derive(Debug, Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// Tells the supervisor that a request found the connection broken.
    broken: Arc<Notify>,
}

/// Why a command gave no answer.
pub(super) enum Failed {
    /// There is no connection; the command was not sent.
    Absent(String),
    /// The connection broke, or the server answered with an error.
    Error(RedisError),
}

impl Link {
    /// Starts connecting; `limit` bounds every single attempt and ping.
    pub(super) fn start(
        server: &Server,
        expect: Expect,
        limit: Duration,
        workers: &Workers,
    ) -> Self {
        let name = server.name().to_owned();
        let slots = workers.askers().map(|runtime| Slot {
            runtime: runtime.clone(),
            open: None,
            publish: watch::channel(Err(format!("{name}: not connected yet"))).0,
        });
        let slots: Vec<_> = slots.collect();
        let states = slots.iter().map(|slot| slot.publish.subscribe()).collect();
        let supervisor = Supervisor {
            name: name.clone(),
            server: server.clone(),
            expect,
            limit,
            slots,
            broken: Arc::default(),
        };
        Self {
            name,
            expect,
            states,
            supervisor: workers.beside().spawn(supervisor.run()).abort_handle(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
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
            if lost(&error) {
                live.broken.notify_one();
            }
            Failed::Error(error)
        })
    }

    /// This worker's connection, or why there is none.
    fn state(&self) -> &watch::Receiver<State> {
        let last = self.states.len() - 1;
        &self.states[workers::number().map_or(last, |number| number.min(last))]
    }

    pub(super) fn explain(&self, failed: Failed) -> NodeError {
        match failed {
            Failed::Absent(reason) => NodeError::NotSent(reason),
            Failed::Error(error) => NodeError::Unknown(describe(&self.name, self.expect, &error)),
        }
    }

    /// Waits until the first attempt to connect has ended, well or not.
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
    slots: Vec<Slot>,
    /// Notified by requests that find a connection broken.
    broken: Arc<Notify>,
}

/// A worker's connection.
struct Slot {
    /// The worker's, which is to drive the connection.
    runtime: Handle,
    open: Option<Open>,
    publish: watch::Sender<State>,
}

struct Open {
    connection: MultiplexedConnection,
    /// The run id of the server that it leads to.
    run: String,
}

/// How a connection does.
enum Tended {
    /// It was open, and is.
    Well,
    /// It is new.
    Opened(MultiplexedConnection, InfoDict),
    /// Nothing was said in time.
    Silent,
}

impl Supervisor {
    async fn run(mut self) {
        let mut pause = Duration::ZERO;
        let mut told = None;
        loop {
            let all = self.slots.iter().all(|slot| slot.open.is_some());
            let wait = if all { PING_EVERY } else { jittered(pause) };
            let reported = timeout(wait, self.broken.notified()).await.is_ok();
            pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);

            let was_connected = self.is_connected();
            let lacking = match self.tend().await {
                Ok(_) if reported && was_connected => {
                    Err(format!("{}: a request found it broken", self.name))
                }
                tended => tended,
            };
            match lacking {
                Ok(lacking) => {
                    if !was_connected {
                        tracing::info!(node = self.name, "connected to Redis");
                    }
                    if !was_connected || lacking.is_none() {
                        pause = Duration::ZERO;
                    }
                    if lacking.is_some() && told != lacking {
                        tracing::warn!(
                            node = self.name,
                            error = lacking,
                            "some threads have no connection to Redis; trying again"
                        );
                    }
                    told = lacking;
                }
                Err(error) if was_connected => {
                    tracing::warn!(node = self.name, %error, "lost the connection to Redis");
                    self.withdraw(&error);
                    (pause, told) = (Duration::ZERO, None);
                }
                Err(error) => {
                    self.withdraw(&error);
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(node = self.name, %error, "cannot connect to Redis; trying again");
                        told = Some(error);
                    }
                }
            }
        }
    }

    fn is_connected(&self) -> bool {
        self.slots.iter().any(|slot| slot.open.is_some())
    }

    /// Gives up all connections.
    fn withdraw(&mut self, why: &str) {
        // What was found broken until now is among them.
        self.broken = Arc::default();
        for slot in &mut self.slots {
            slot.open = None;
            slot.publish
                .send_modify(|state| *state = Err(why.to_owned()));
        }
    }

    /// Pings the connections that are open and opens the others; publishes what is new. Gives why some
    /// are not open, if so.
    ///
    /// # Errors
    /// Why all connections are to be given up.
    async fn tend(&mut self) -> Result<Option<String>, String> {
        let was_connected = self.is_connected();
        let (server, limit) = (&self.server, self.limit);
        let tending = self.slots.iter_mut().map(|slot| slot.tend(server, limit));
        let tended = join_all(tending).await;

        let mut lacking = None;
        let mut fresh = Vec::new();
        for (number, tended) in tended.into_iter().enumerate() {
            let slot = &mut self.slots[number];
            match tended {
                Ok(Tended::Well) => {}
                Ok(Tended::Opened(connection, info)) => {
                    if let Some(other) = otherwise(self.expect, &info) {
                        return Err(format!("{}: it {other}", self.name));
                    }
                    let run = info.get("run_id").unwrap_or_default();
                    slot.open = Some(Open { connection, run });
                    fresh.push(number);
                }
                Ok(Tended::Silent) => {
                    let what = if slot.open.is_some() {
                        "PING"
                    } else {
                        "connecting"
                    };
                    let silent = format!("{}: no answer to {what} within {limit:?}", self.name);
                    slot.open = None;
                    slot.publish
                        .send_modify(|state| *state = Err(silent.clone()));
                    lacking = Some(silent);
                }
                Err(error) => {
                    let error = describe(&self.name, self.expect, &error);
                    // One more connection may not be had; those that there are serve.
                    if slot.open.is_some() || !was_connected {
                        return Err(error);
                    }
                    slot.publish
                        .send_modify(|state| *state = Err(error.clone()));
                    lacking = Some(error);
                }
            }
        }
        let open = self.slots.iter().filter_map(|slot| slot.open.as_ref());
        let runs: BTreeSet<_> = open.map(|open| &open.run).collect();
        match (runs.len(), lacking) {
            (1, lacking) => {
                self.publish(&fresh).await?;
                Ok(lacking)
            }
            (0, Some(silent)) => Err(silent),
            // A name may have more than one address, and a proxy more than one server behind it.
            _ => Err(format!("{} {MORE_THAN_ONE}", self.name)),
        }
    }

    /// Lets the workers have their new connections, when the server has the scripts.
    async fn publish(&mut self, fresh: &[usize]) -> Result<(), String> {
        let fresh = fresh.iter().map(|number| &self.slots[*number]);
        let fresh: Vec<_> = fresh
            .filter_map(|slot| Some((&slot.publish, slot.open.as_ref()?.connection.clone())))
            .collect();
        let Some((_, connection)) = fresh.first() else {
            return Ok(());
        };
        match timeout(self.limit, SCRIPTS.preload(&mut connection.clone())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(describe(&self.name, self.expect, &error)),
            Err(_) => {
                return Err(format!(
                    "{}: no answer to SCRIPT LOAD within {:?}",
                    self.name, self.limit
                ));
            }
        }
        for (publish, connection) in fresh {
            let broken = Arc::clone(&self.broken);
            publish.send_modify(|state| *state = Ok(Live { connection, broken }));
        }
        Ok(())
    }
}

impl Slot {
    async fn tend(&mut self, server: &Server, limit: Duration) -> RedisResult<Tended> {
        let tending = async {
            match &mut self.open {
                Some(open) => ping(&mut open.connection).await.map(|()| Tended::Well),
                None => {
                    let (connection, info) = connect(&self.runtime, server, limit).await?;
                    Ok(Tended::Opened(connection, info))
                }
            }
        };
        timeout(limit, tending).await.unwrap_or(Ok(Tended::Silent))
    }
}

/// Connects on a runtime, which then drives the connection, and asks what the server is.
async fn connect(
    runtime: &Handle,
    server: &Server,
    limit: Duration,
) -> RedisResult<(MultiplexedConnection, InfoDict)> {
    let server = server.clone();
    let connecting = runtime.spawn(async move {
        let mut connection = open(&server, limit).await?;
        let info = redis::cmd("INFO").query_async(&mut connection).await?;
        Ok((connection, info))
    });
    let connecting = AbortOnDropHandle::new(connecting).await;
    connecting.unwrap_or_else(|ended| Err(io::Error::other(ended).into()))
}

/// What else the server is than what it must be, if so.
fn otherwise(expect: Expect, info: &InfoDict) -> Option<&'static str> {
    let mode: String = info.get("redis_mode").unwrap_or_default();
    let role: String = info.get("role").unwrap_or_default();
    match (expect, mode.as_str(), role.as_str()) {
        (_, "sentinel", _) => Some(
            "is a Sentinel: give EA_REDIS_MODE=failover, and in EA_REDIS_MASTER the name of the \
             primary that it watches",
        ),
        (Expect::Server | Expect::Primary, "cluster", _) => {
            Some("belongs to a Redis Cluster: give EA_REDIS_MODE=cluster")
        }
        (Expect::Member, "standalone", _) => Some(
            "does not belong to a Redis Cluster: give EA_REDIS_MODE=single, or the cluster's members",
        ),
        (Expect::Server, _, "slave") => Some(REPLICA),
        (Expect::Primary, _, "slave") => Some(PROMOTED_NOT_YET),
        _ => None,
    }
}

const REPLICA: &str = "is a replica, which does not keep leases: give its primary in EA_REDIS_URLS";
const MORE_THAN_ONE: &str = "leads to more than one server, which would vote as one although none knows what \
                             the others granted: give the address of one of them in EA_REDIS_URLS";
const PROMOTED_NOT_YET: &str = "is a replica, although the Sentinels name it as the primary";

/// Fails if the connection is lost.
async fn ping(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    match redis::cmd("PING").query_async::<()>(connection).await {
        Err(error) if lost(&error) => Err(error),
        // A server that answers with an error (loading, busy) is reached.
        _ => Ok(()),
    }
}

/// Connects; `limit` bounds the attempt.
pub(super) async fn open(server: &Server, limit: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limit))
        // Whoever asks bounds every call; a second timer here would only cost.
        .set_response_timeout(None)
        // What many requests ask in one moment is to go out in few writes.
        .set_pipeline_buffer_size(PIPELINE.0)
        .set_write_backpressure_boundary(PIPELINE.1);
    server
        .client()
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Whether the connection, rather than the command, is at fault; a server that has become a replica is
/// looked at anew.
fn lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

fn describe(name: &str, expect: Expect, error: &RedisError) -> String {
    let advice = match error.kind() {
        _ if denied(error) => ": check the user and password in EA_REDIS_URLS",
        ErrorKind::Server(ServerErrorKind::ReadOnly) if expect == Expect::Server => {
            return format!("{name}: {error}: it {REPLICA}");
        }
        _ => "",
    };
    format!("{name}: {error}{advice}")
}

/// Whether the server wants other credentials.
pub(super) fn denied(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
