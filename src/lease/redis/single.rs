//! A connection to one Redis server that mends itself.
//!
//! A supervisor task owns the connecting: it connects, loads the scripts, publishes the connection, and
//! watches it. When it breaks (a request saw an I/O error, or a periodic ping got no answer) the
//! supervisor withdraws it and connects anew, at once and then with growing, jittered pauses. Requests
//! only ever take the published connection; while there is none they fail at once with the reason, so
//! that a quorum of other nodes can decide without waiting.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, ServerErrorKind,
    aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::timeout,
};

use super::script::SCRIPTS;
use crate::lease::NodeError;

/// How often an idle connection is pinged.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The first pause after a failed attempt to connect, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A connection to one server, kept up by a task that ends with this value.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    state: watch::Receiver<State>,
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

impl Link {
    /// Starts connecting; `limit` bounds every single attempt and ping.
    pub(super) fn start(name: String, client: Client, limit: Duration) -> Self {
        let (publish, state) = watch::channel(Err(format!("{name}: not connected yet")));
        let supervisor = Supervisor {
            name: name.clone(),
            client,
            limit,
            publish,
        };
        Self {
            name,
            state,
            supervisor: tokio::spawn(supervisor.run()).abort_handle(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command on the connection.
    ///
    /// # Errors
    /// Why there is no connection, or why the command failed, with the server's name.
    pub(super) async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, NodeError> {
        let mut live = self.state.borrow().clone().map_err(NodeError::NotSent)?;
        command(&mut live.connection).await.map_err(|error| {
            if lost(&error) {
                live.broken.notify_one();
            }
            NodeError::Unknown(describe(&self.name, &error))
        })
    }

    /// Waits until the first attempt to connect has ended, well or not.
    pub(super) async fn attempted(&self) {
        let mut state = self.state.clone();
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
    client: Client,
    limit: Duration,
    publish: watch::Sender<State>,
}

impl Supervisor {
    async fn run(self) {
        let mut pause = Duration::ZERO;
        let mut told = None;
        loop {
            tokio::time::sleep(jittered(pause)).await;
            match self.connect().await {
                Ok(connection) => {
                    tracing::info!(node = self.name, "connected to Redis");
                    (pause, told) = (Duration::ZERO, None);
                    let broken = Arc::new(Notify::new());
                    self.publish(Ok(Live {
                        connection: connection.clone(),
                        broken: Arc::clone(&broken),
                    }));
                    let error = self.watch(connection, &broken).await;
                    tracing::warn!(node = self.name, %error, "lost the connection to Redis");
                    self.publish(Err(error));
                }
                Err(error) => {
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(node = self.name, %error, "cannot connect to Redis; trying again");
                        told = Some(error.clone());
                    }
                    self.publish(Err(error));
                    pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
                }
            }
        }
    }

    fn publish(&self, state: State) {
        self.publish.send_modify(|published| *published = state);
    }

    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.limit))
            // The quorum bounds every call; a second timer here would only cost.
            .set_response_timeout(None);
        let connecting = async {
            let mut connection = self
                .client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            SCRIPTS.preload(&mut connection).await?;
            Ok(connection)
        };
        match timeout(self.limit, connecting).await {
            Ok(connected) => connected.map_err(|error| describe(&self.name, &error)),
            Err(_) => Err(self.silent("connecting")),
        }
    }

    /// Returns when the connection is no longer of use, with the reason.
    async fn watch(&self, mut connection: MultiplexedConnection, broken: &Notify) -> String {
        loop {
            let reported = timeout(PING_EVERY, broken.notified()).await.is_ok();
            let ping = redis::cmd("PING");
            match timeout(self.limit, ping.query_async::<()>(&mut connection)).await {
                Ok(Ok(())) if reported => {
                    return format!("{}: a request found it broken", self.name);
                }
                Ok(Err(error)) if lost(&error) => return describe(&self.name, &error),
                // A server that answers with an error (loading, busy) is reached.
                Ok(_) => {}
                Err(_) => return self.silent("PING"),
            }
        }
    }

    fn silent(&self, what: &str) -> String {
        format!("{}: no answer to {what} within {:?}", self.name, self.limit)
    }
}

/// Whether the connection, rather than the command, is at fault.
fn lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error()
}

fn describe(name: &str, error: &RedisError) -> String {
    let advice = match error.kind() {
        ErrorKind::AuthenticationFailed => ": check the user and password in EA_REDIS_URLS",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => {
            ": it is a replica, which does not keep leases: give its primary in EA_REDIS_URLS"
        }
        _ => "",
    };
    format!("{name}: {error}{advice}")
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
