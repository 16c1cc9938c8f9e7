//! Receives the changes that the scripts announce.
//!
//! It uses separate connections, one for each server while there is a listener. They use RESP3, so that a subscribed
//! connection also serves the ping that shows whether messages still arrive. Channels are sharded where the server has
//! such channels, from version 7, because that is where the scripts publish.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use election_core::lease::{Hint, Listener, NodeError};
use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind,
    Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Redis, server::Server};

/// How often the connections are pinged.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How many messages wait for the listener. When there are more, some are missed, and listening starts anew.
const MESSAGES: usize = 4096;

/// What a connection received.
enum Received {
    Hint(Hint),
    /// Messages may have been missed: the subscription or the connection has ended.
    Ended(&'static str),
}

/// A connection that is subscribed to the channels of some partitions.
struct Subscription {
    name: String,
    connection: MultiplexedConnection,
    /// The command that counts the subscribers of a channel, and the first channel.
    count: (&'static str, String),
}

/// See [`LeaseNode::listen`](election_core::lease::LeaseNode::listen).
pub(super) async fn listen(redis: &Redis, listener: &dyn Listener) -> NodeError {
    match try_listen(redis, listener).await {
        Ok(never) => match never {},
        Err(error) => NodeError::unknown(error),
    }
}

async fn try_listen(
    redis: &Redis,
    listener: &dyn Listener,
) -> Result<std::convert::Infallible, String> {
    let serving = redis.connections.serving()?;
    let (send, mut receive) = mpsc::channel(MESSAGES);
    // Set when the queue was full.
    let missed = Arc::new(AtomicBool::new(false));
    let subscribing = serving.iter().map(|(server, partitions)| {
        let channels = partitions.iter().map(|partition| {
            let keys = &redis.keys[usize::from(*partition)];
            keys.changes.clone()
        });
        subscribe(
            redis,
            server,
            channels.collect(),
            send.clone(),
            Arc::clone(&missed),
        )
    });
    let mut subscriptions = try_join_all(subscribing).await?;
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if missed.load(Ordering::Relaxed) {
            return Err(format!(
                "{}: more changes arrived than could be processed",
                redis.name
            ));
        }
        tokio::select! {
            received = receive.recv() => match received {
                Some(Received::Hint(hint)) => listener.hinted(hint),
                Some(Received::Ended(why)) => return Err(format!("{}: {why}", redis.name)),
                None => return Err(format!("{}: no subscription is left", redis.name)),
            },
            _ = ping.tick() => {
                // A fail-over or a slot that has moved leaves a subscription at the wrong server.
                if !same(&redis.connections.serving()?, &serving) {
                    return Err(format!("{}: other servers serve it now", redis.name));
                }
                let pings = subscriptions.iter_mut().map(|one| one.listeners(redis.limit));
                let listeners = try_join_all(pings).await?;
                listener.connected(listeners.into_iter().max().unwrap_or_default());
            }
        }
    }
}

fn same(one: &[(Server, Vec<u16>)], other: &[(Server, Vec<u16>)]) -> bool {
    let places = |serving: &[(Server, Vec<u16>)]| {
        let places = serving.iter();
        let places =
            places.map(|(server, partitions)| (server.address().clone(), partitions.len()));
        places.collect::<Vec<_>>()
    };
    places(one) == places(other)
}

/// Subscribes to the channels of a server, and checks that messages may be published there.
async fn subscribe(
    redis: &Redis,
    server: &Server,
    channels: Vec<String>,
    send: mpsc::Sender<Received>,
    missed: Arc<AtomicBool>,
) -> Result<Subscription, String> {
    let subscribing = async {
        let receiver = move |pushed: PushInfo| match received(&pushed) {
            Some(received) => send.try_send(received).inspect_err(|_| {
                missed.store(true, Ordering::Relaxed);
            }),
            None => Ok(()),
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(redis.limit))
            .set_response_timeout(None)
            .set_push_sender(receiver);
        let client = server.pushed_client()?;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let sharded = try_subscribe(&mut connection, "SSUBSCRIBE", &channels).await;
        let (publish, count) = match sharded {
            Err(error) if is_unknown(&error) => {
                try_subscribe(&mut connection, "SUBSCRIBE", &channels).await?;
                ("PUBLISH", "NUMSUB")
            }
            subscribed => {
                subscribed?;
                ("SPUBLISH", "SHARDNUMSUB")
            }
        };
        let first = channels.into_iter().next().unwrap_or_default();
        // An empty message is no hint. Scripts ignore a missing right to publish; this reports it.
        let mut test = redis::cmd(publish);
        test.arg(&first).arg("");
        test.query_async::<Value>(&mut connection).await?;
        Ok(Subscription {
            name: server.name().to_owned(),
            connection,
            count: (count, first),
        })
    };
    let name = server.name();
    match timeout(redis.limit, subscribing).await {
        Ok(Ok(subscription)) => Ok(subscription),
        Ok(Err(error)) => Err(explain(name, &redis.usage.prefix, &error)),
        Err(_) => Err(format!(
            "{name}: no answer to a subscription within {:?}",
            redis.limit
        )),
    }
}

/// Subscribes to each channel by a command of its own: the channels of several slots must not share one.
async fn try_subscribe(
    connection: &mut MultiplexedConnection,
    command: &str,
    channels: &[String],
) -> RedisResult<()> {
    for channel in channels {
        let mut subscribe = redis::cmd(command);
        subscribe.arg(channel);
        subscribe.query_async::<Value>(connection).await?;
    }
    Ok(())
}

impl Subscription {
    /// Pings the server, and returns how many connections listen to its first channel; 0 if that is unknown.
    async fn listeners(&mut self, limit: Duration) -> Result<usize, String> {
        let (count, channel) = &self.count;
        let mut ping = redis::cmd("PUBSUB");
        ping.arg(count).arg(channel);
        let answer = timeout(limit, ping.query_async::<Value>(&mut self.connection)).await;
        match answer {
            Ok(Ok(counts)) => Ok(counted(counts).unwrap_or_default()),
            // Without the right to count, the error is a reply, too.
            Ok(Err(error)) if !super::single::lost(&error) => Ok(0),
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            Err(_) => Err(format!(
                "{}: no answer of the subscription within {limit:?}",
                self.name
            )),
        }
    }
}

/// The count in the reply of `PUBSUB NUMSUB channel`, which is the channel and the count.
fn counted(counts: Value) -> Option<usize> {
    let (_, count): (String, usize) = redis::from_redis_value(counts).ok()?;
    Some(count)
}

/// The event in a pushed message, if there is one.
fn received(pushed: &PushInfo) -> Option<Received> {
    match pushed.kind {
        PushKind::Message | PushKind::SMessage => {
            let Some(Value::BulkString(message)) = pushed.data.get(1) else {
                return None;
            };
            // Any client may publish any message.
            let hint = str::from_utf8(message).ok()?.parse().ok()?;
            Some(Received::Hint(hint))
        }
        PushKind::Disconnection => Some(Received::Ended("the subscription's connection is lost")),
        PushKind::Unsubscribe | PushKind::SUnsubscribe => {
            Some(Received::Ended("a channel has moved to another server"))
        }
        _ => None,
    }
}

/// Whether the server does not know the command.
fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ResponseError)
        && error
            .detail()
            .is_some_and(|detail| detail.contains("unknown command"))
}

fn explain(name: &str, prefix: &str, error: &RedisError) -> String {
    let advice = match error.code() {
        Some("NOPERM") => format!(
            ": the agent receives no changes of leaders, and polls elections that have waiters or observers: \
             give the user +subscribe +ssubscribe +publish +spublish +pubsub &{prefix}:*"
        ),
        _ => String::new(),
    };
    format!("{name}: {error}{advice}")
}
