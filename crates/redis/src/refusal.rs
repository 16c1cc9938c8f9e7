//! The error that a server sends before it closes a connection.
//!
//! A server at its maximum of clients, or one in protected mode, replies to a new connection with an error and closes
//! it. Commands in flight then get a reset or an end of the stream. `redis` reports that, and the error, which says
//! what to do, is lost. Where a connection was closed before its first use, this module therefore opens one more
//! connection to the server, only for its reply.

use std::time::Duration;

use redis::{ConnectionAddr, RedisError, RedisResult, parse_redis_value};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::server::Server;

/// How long to listen to a server before sending anything: a command that reaches a closed socket resets it, and the
/// server's message may be lost with it.
const UNASKED: Duration = Duration::from_millis(100);

/// The most that is read.
const LENGTH: u64 = 4096;

/// The error itself, or the server's message where that closed a connection. `limit` bounds everything since `began`.
pub(super) async fn explained(
    server: &Server,
    began: Instant,
    limit: Duration,
    error: RedisError,
) -> RedisError {
    if !error.is_connection_dropped() || error.is_connection_refusal() {
        return error;
    }
    // The rest of the time remains for the caller of this function.
    let left = limit.saturating_sub(began.elapsed()) / 2;
    let refusal = timeout(left, refusal(server)).await;
    refusal.ok().flatten().unwrap_or(error)
}

/// The error that the server sends before it closes a connection; [`None`] if it does not close it, or sends nothing.
async fn refusal(server: &Server) -> Option<RedisError> {
    // Over TLS, servers send nothing before a handshake.
    let ConnectionAddr::Tcp(host, port) = server.info().addr() else {
        return None;
    };
    let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
    let mut said = Vec::new();
    let unasked = Instant::now() + UNASKED;
    let closed = timeout_at(unasked, until_closed(&mut stream, &mut said)).await;
    if closed.is_err() {
        let redis = server.info().redis_settings();
        let mut commands = Vec::new();
        if let Some(password) = redis.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(redis.username()).arg(password);
            commands = auth.get_packed_command();
        }
        commands.extend(redis::cmd("PING").get_packed_command());
        stream.write_all(&commands).await.ok()?;
        until_closed(&mut stream, &mut said).await;
    }
    first_error(&said)
}

/// Reads everything that arrives.
async fn until_closed(stream: &mut TcpStream, said: &mut Vec<u8>) {
    let mut limited = stream.take(LENGTH);
    // A reset is an end, too: everything before it has been read.
    while limited.read_buf(said).await.is_ok_and(|read| read > 0) {}
}

/// The first error among replies of one line.
fn first_error(replies: &[u8]) -> Option<RedisError> {
    let mut lines = replies.split_inclusive(|byte| *byte == b'\n');
    let line = lines.find(|line| line.starts_with(b"-"))?;
    let reply: RedisResult<_> = parse_redis_value(line).and_then(redis::Value::extract_error);
    // An incomplete line is no reply.
    reply.err().filter(|error| error.code().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_a_servers_last_words_counts() {
        for (replies, error) in [
            (
                &b"-ERR max number of clients reached\r\n"[..],
                Some("max number of clients reached"),
            ),
            (
                b"+OK\r\n-DENIED Redis is running in protected mode\r\n",
                Some("protected mode"),
            ),
            (b"-LOADING one\r\n-ERR two\r\n", Some("one")),
            (b"+PONG\r\n", None),
            (b"-ERR broken o", None),
            (b"", None),
        ] {
            let said = first_error(replies).map(|error| error.to_string());
            let matches = match (&said, error) {
                (Some(said), Some(error)) => said.contains(error),
                (said, error) => said.is_none() && error.is_none(),
            };
            assert!(matches, "{said:?} of {replies:?}");
        }
    }
}
