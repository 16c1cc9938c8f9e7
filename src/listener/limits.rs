//! What a connection may take up in HTTP/1.1 and HTTP/2. All limits of both are here.

use std::time::Duration;

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};

use super::head::Heads;

/// The most that a request's head may take up, in bytes; more is answered 431. Over HTTP/1.1 it is what hyper
/// buffers (400 KiB unless it is told), over HTTP/2 what the headers are unpacked to, which also bounds the
/// CONTINUATION frames (five, by `h2`).
const MAX_HEAD: usize = 16 * 1024;

/// How many requests may be under way on one connection. A gRPC client sends all it has over one.
const MAX_STREAMS: u32 = 1_000;
/// How many requests may be cancelled before they are looked at, before the connection is closed: each costs
/// the agent more than the client ("rapid reset", CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// How many requests may break the protocol, so that the agent has to reset them, before the connection is
/// closed; the same attack by other means (CVE-2025-8671). `h2` would take 1,024.
const MAX_ERROR_RESETS: usize = 200;
/// What a client may send of one request's body before it is read. Bodies are up to 64 KiB, and read at once.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all requests of the connection. It also bounds small DATA frames that are not read yet: `h2`
/// counts what each has less than 256 bytes, and ends the connection when that comes to more than half of this
/// window. So it lets in [`MAX_STREAMS`] requests of two small frames each.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The largest frame: the least that the protocol allows, and more than most requests need.
const MAX_FRAME: u32 = 16 * 1024;
/// What is kept of an answer that the client does not take; hyper would keep 400 KiB.
const SEND_BUFFER: usize = 64 * 1024;

/// Has hyper set the timer that [`Heads`] is; how long it is does not matter.
const HEAD_AWAITED: Duration = Duration::from_secs(1);

/// How often an HTTP/2 peer is pinged, and how long it may take to answer: one that is gone without a word is
/// found out.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// A server for one connection, which tells `heads` when it awaits a request's head over HTTP/1.1.
pub(super) fn server(heads: Heads) -> Builder<TokioExecutor> {
    let mut server = Builder::new(TokioExecutor::new());
    // The number of headers stays hyper's hundred: setting it would cost an allocation for every request.
    server
        .http1()
        .timer(heads)
        .header_read_timeout(HEAD_AWAITED)
        .max_buf_size(MAX_HEAD);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED_WITHIN)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER);
    server
}
