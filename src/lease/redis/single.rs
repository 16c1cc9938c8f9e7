//! A connection to one Redis server that mends itself.
//!
//! A supervisor task owns the connecting: it connects, sees whether the server is what it must be, loads
//! the scripts, publishes the connection, and watches it. When it breaks (a request saw an I/O error, or
//! a periodic ping got no answer) the supervisor withdraws it and connects anew, at once and then with
//! growing, jittered pauses. Requests only ever take the published connection; while there is none they
//! fail at once with the reason, so that a quorum of other nodes can decide without waiting.
//!
//! Every [worker](crate::workers) has a connection of its own, which it alone uses and drives: they are opened
//! together, and when one breaks, all are replaced.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, InfoDict, RedisError, RedisResult,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{
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

/// A connection to one server, kept up by a task that ends with this value.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    expect: Expect,
    /// For each worker.
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
        let not_yet = || watch::channel(Err(format!("{name}: not connected yet")));
        let (publish, states) = workers.runtimes().map(|_| not_yet()).unzip();
        let supervisor = Supervisor {
            name: name.clone(),
            server: server.clone(),
            expect,
            limit,
            workers: workers.clone(),
            publish,
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

    /// This worker's connection, or why there is none. What is no worker uses the first one's.
    fn state(&self) -> &watch::Receiver<State> {
        let own = self.states.get(workers::number());
        own.unwrap_or(&self.states[0])
    }

    pub(super) fn explain(&self, failed: Failed) -> NodeError {
        match failed {
            Failed::Absent(reason) => NodeError::NotSent(reason),
            Failed::Error(error) => NodeError::Unknown(describe(&self.name, self.expect, &error)),
        }
    }

    /// Waits until the first attempt to connect has ended, well or not.
    pub(super) async fn attempted(&self) {
        let mut state = self.states[0].clone();
        // An error means that the supervisor is gone, so nothing is left to wait for.
        let _ = state.changed().await;
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
    workers: Workers,
    /// For each worker.
    publish: Vec<watch::Sender<State>>,
}

impl Supervisor {
    async fn run(self) {
        let mut pause = Duration::ZERO;
        let mut told = None;
        loop {
            tokio::time::sleep(jittered(pause)).await;
            match self.connect().await {
                Ok(connections) => {
                    tracing::info!(node = self.name, "connected to Redis");
                    (pause, told) = (Duration::ZERO, None);
                    let broken = Arc::new(Notify::new());
                    // The first one last: whoever waits for it may use all.
                    for (publish, connection) in self.publish.iter().zip(&connections).rev() {
                        publish.send_modify(|state| {
                            *state = Ok(Live {
                                connection: connection.clone(),
                                broken: Arc::clone(&broken),
                            });
                        });
                    }
                    let error = self.watch(connections, &broken).await;
                    tracing::warn!(node = self.name, %error, "lost the connection to Redis");
                    self.publish_none(&error);
                }
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(node = self.name, %error, "cannot connect to Redis; trying again");
                        told = Some(error.clone());
                    }
                    self.publish_none(&error);
                    pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
                }
            }
        }
    }

    fn publish_none(&self, why: &str) {
        for publish in &self.publish {
            publish.send_modify(|state| *state = Err(why.to_owned()));
        }
    }

    /// Connects for each worker, on its own runtime, which then drives the connection.
    async fn connect(&self) -> Result<Vec<MultiplexedConnection>, String> {
        let connecting = async {
            let opening = self.workers.runtimes().map(|runtime| {
                let (server, limit) = (self.server.clone(), self.limit);
                let opening = runtime.spawn(async move {
                    let mut connection = open(&server, limit).await?;
                    let info = redis::cmd("INFO").query_async(&mut connection).await?;
                    Ok::<(_, InfoDict), RedisError>((connection, info))
                });
                let opening = AbortOnDropHandle::new(opening);
                async {
                    opening
                        .await
                        .unwrap_or_else(|ended| Err(io::Error::other(ended).into()))
                }
            });
            let opened = try_join_all(opening).await?;
            let (mut connections, mut runs) = (Vec::new(), BTreeSet::new());
            // A name may have more than one address, and a proxy more than one server behind it.
            for (connection, info) in opened {
                if let Some(other) = self.otherwise(&info) {
                    return Ok(Err(other));
                }
                runs.insert(info.get::<String>("run_id"));
                connections.push(connection);
            }
            if runs.len() > 1 {
                return Ok(Err(format!("{} {MORE_THAN_ONE}", self.name)));
            }
            SCRIPTS.preload(&mut connections[0]).await?;
            Ok(Ok(connections))
        };
        match timeout(self.limit, connecting).await {
            Ok(connected) => {
                connected.map_err(|error| describe(&self.name, self.expect, &error))?
            }
            Err(_) => Err(self.silent("connecting")),
        }
    }

    /// Why the server is not what it must be, if so.
    fn otherwise(&self, info: &InfoDict) -> Option<String> {
        let mode: String = info.get("redis_mode").unwrap_or_default();
        let role: String = info.get("role").unwrap_or_default();
        let is = match (self.expect, mode.as_str(), role.as_str()) {
            (_, "sentinel", _) => {
                "is a Sentinel: give EA_REDIS_MODE=failover, and in EA_REDIS_MASTER the name of the \
                 primary that it watches"
            }
            (Expect::Server | Expect::Primary, "cluster", _) => {
                "belongs to a Redis Cluster: give EA_REDIS_MODE=cluster"
            }
            (Expect::Member, "standalone", _) => {
                "does not belong to a Redis Cluster: give EA_REDIS_MODE=single, or the cluster's members"
            }
            (Expect::Server, _, "slave") => REPLICA,
            (Expect::Primary, _, "slave") => PROMOTED_NOT_YET,
            _ => return None,
        };
        Some(format!("{}: it {is}", self.name))
    }

    /// Returns when a connection is no longer of use, with the reason.
    async fn watch(&self, mut connections: Vec<MultiplexedConnection>, broken: &Notify) -> String {
        loop {
            let reported = timeout(PING_EVERY, broken.notified()).await.is_ok();
            let pings = connections.iter_mut().map(ping);
            match timeout(self.limit, try_join_all(pings)).await {
                Ok(Ok(_)) if reported => {
                    return format!("{}: a request found it broken", self.name);
                }
                Ok(Err(error)) => return describe(&self.name, self.expect, &error),
                Ok(Ok(_)) => {}
                Err(_) => return self.silent("PING"),
            }
        }
    }

    fn silent(&self, what: &str) -> String {
        format!("{}: no answer to {what} within {:?}", self.name, self.limit)
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
