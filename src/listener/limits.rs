//! Resource limits of a connection for HTTP/1.1 and HTTP/2. All limits of both are defined here.

use std::time::Duration;

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::conn::auto::Builder,
};

use super::head::Heads;

/// Maximum size of a request's head, in bytes; a larger one is answered with 431. Over HTTP/1.1 this bounds hyper's
/// buffer (400 KiB by default). Over HTTP/2 it bounds the size of the decompressed headers, from which `h2` derives the
/// maximum number of CONTINUATION frames (five).
const MAX_HEAD: usize = 16 * 1024;

/// Maximum number of concurrent requests per connection. A gRPC client sends all its requests over one connection.
const MAX_STREAMS: u32 = 1_000;
/// Maximum number of requests that are cancelled before they are processed; one more closes the connection. Each costs
/// the agent more than the client ("rapid reset", CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Maximum number of requests that the agent resets for protocol errors; one more closes the connection. This limits
/// the same attack by other means (CVE-2025-8671). The default of `h2` is 1,024.
const MAX_ERROR_RESETS: usize = 200;
/// Maximum number of unread body bytes of one request. Bodies are up to 64 KiB and read at once.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same limit for all requests of the connection. It also bounds unread small DATA frames: `h2` adds up by how much
/// each falls short of 256 bytes, and closes the connection when the sum exceeds half of this window. The value admits
/// [`MAX_STREAMS`] requests with two small frames each.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Maximum frame size: the minimum that the protocol allows, and larger than most requests.
const MAX_FRAME: u32 = 16 * 1024;
/// Maximum number of buffered reply bytes that the client has not accepted; hyper's default is 400 KiB.
const SEND_BUFFER: usize = 64 * 1024;

/// Makes hyper start the timer [`Heads`]. The duration has no effect.
const HEAD_AWAITED: Duration = Duration::from_secs(1);

/// Interval of pings to HTTP/2 peers, and the timeout for their answers. They detect peers that disappeared without
/// closing the connection.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Creates a server for one connection. It reports to `heads` when it waits for a request's head over HTTP/1.1.
pub(super) fn server(heads: Heads) -> Builder<TokioExecutor> {
    let mut server = Builder::new(TokioExecutor::new());
    // The maximum number of headers stays hyper's default of 100: setting it causes an allocation per request.
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
