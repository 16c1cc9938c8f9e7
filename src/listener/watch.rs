//! Watches the bytes of a connection, and ends it when the client is too slow or pings too much.
//!
//! It stands between hyper and the stream, and so knows what hyper does not tell: which bytes have come, and
//! where frames end. No timer runs unless something has begun that is not whole.
//!
//! - **Slow clients.** The first byte has [`Conduct::first_byte`]; from the first byte of a request, its head
//!   has [`Conduct::head`]. Over HTTP/2 that is for the preface and for every frame but DATA, a header block
//!   being one with its CONTINUATIONs. Between requests and frames there is no limit here: gRPC channels
//!   connect long before they ask. Half a request that came together with the one before it counts from its
//!   next byte.
//! - **Pings.** As in [gRPC's keepalive][keepalive]: a PING that comes sooner than
//!   [`Conduct::min_ping_interval`] after the one before is a strike. Answers wipe them all out, so that
//!   those never count which a client sends to measure the bandwidth of what it is sent.
//!
//! What it lets pass is unchanged, but for authorities that list addresses ([`AddressLists`]).
//!
//! [keepalive]: https://github.com/grpc/grpc/blob/master/doc/keepalive.md

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    addresses::AddressLists,
    frames::{Frames, PREFACE, calm_down},
    head::Heads,
};

/// One strike more, and the client has to go.
const MAX_STRIKES: u32 = 2;

/// What a client is told whose request does not come to its end.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What is asked of clients.
#[derive(Debug, Clone, Copy)]
pub struct Conduct {
    /// How long the first byte may take, after the TLS handshake if there is one.
    pub first_byte: Duration,
    /// How long a request's head may take from its first byte.
    pub head: Duration,
    /// How long to wait between HTTP/2 PINGs; zero for no limit.
    pub min_ping_interval: Duration,
}

/// A stream that is watched.
pub(super) struct Watched<S> {
    stream: S,
    conduct: Conduct,
    heads: Heads,
    protocol: Protocol,
    /// Runs only while something is awaited.
    timer: Option<(Awaited, Pin<Box<Sleep>>)>,
    /// Whether the peer takes no more at present.
    blocked: bool,
    /// Whether the peer was told to go.
    ended: bool,
}

enum Protocol {
    /// So many bytes have come, all as HTTP/2 begins.
    Unknown(usize),
    /// The last head of which bytes have come, as [`Heads`] counts.
    Http1(u64),
    Http2(Http2),
}

#[derive(Default)]
struct Http2 {
    /// Until it is known that the client sends none.
    addresses: Option<Box<AddressLists>>,
    incoming: Frames,
    outgoing: Frames,
    last_ping: Option<Instant>,
    strikes: u32,
}

/// What the client owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    FirstByte,
    /// The rest of what has begun, by its number.
    Rest(u64),
}

/// The preface and the first head are the first that begins.
const OPENING: u64 = 1;

/// Why a client has to go.
#[derive(Debug, Clone, Copy)]
enum Offence {
    Slow,
    Pings,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, conduct: Conduct, heads: Heads) -> Self {
        Self {
            stream,
            conduct,
            heads,
            protocol: Protocol::Unknown(0),
            timer: None,
            blocked: false,
            ended: false,
        }
    }

    /// Goes over what has come, and changes what could not be served ([`AddressLists`]).
    fn received(&mut self, bytes: &mut [u8]) -> Result<(), Offence> {
        match &mut self.protocol {
            // The end of the stream.
            _ if bytes.is_empty() => Ok(()),
            Protocol::Unknown(seen) => {
                let expected = &PREFACE[*seen..];
                let compared = expected.len().min(bytes.len());
                if bytes[..compared] != expected[..compared] {
                    self.protocol = Protocol::Http1(OPENING);
                } else if compared < expected.len() {
                    *seen += compared;
                } else {
                    self.protocol = Protocol::Http2(Http2 {
                        addresses: Some(Box::default()),
                        ..Http2::default()
                    });
                    return self.received(&mut bytes[compared..]);
                }
                Ok(())
            }
            Protocol::Http1(begun) => {
                let awaited = self.heads.count();
                if awaited % 2 == 1 {
                    *begun = awaited;
                }
                Ok(())
            }
            Protocol::Http2(http2) => {
                if let Some(addresses) = &mut http2.addresses
                    && !addresses.change(bytes)
                {
                    http2.addresses = None;
                }
                let mut pings = 0;
                let count = |frame: super::frames::Frame| pings += u32::from(frame.is_ping());
                http2.incoming.follow(bytes, count);
                match pings > 0 && http2.are_too_many(pings, self.conduct.min_ping_interval) {
                    true => Err(Offence::Pings),
                    false => Ok(()),
                }
            }
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        if let Protocol::Http2(http2) = &mut self.protocol {
            let mut content = false;
            http2
                .outgoing
                .follow(bytes, |frame| content |= frame.is_content());
            if content {
                (http2.last_ping, http2.strikes) = (None, 0);
            }
        }
    }

    fn awaited(&self) -> Option<Awaited> {
        match &self.protocol {
            Protocol::Unknown(0) => Some(Awaited::FirstByte),
            Protocol::Unknown(_) => Some(Awaited::Rest(OPENING)),
            Protocol::Http1(begun) => {
                (self.heads.count() <= *begun).then_some(Awaited::Rest(*begun))
            }
            Protocol::Http2(http2) => {
                let unfinished = http2.incoming.unfinished();
                unfinished.map(|number| Awaited::Rest(OPENING + number))
            }
        }
    }

    /// Whether what the client owes is overdue; if it is not yet, the task is woken when it is.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(awaited) = self.awaited() else {
            self.timer = None;
            return false;
        };
        let timer = match &mut self.timer {
            Some((since, timer)) if *since == awaited => timer,
            timer => {
                let limit = match awaited {
                    Awaited::FirstByte => self.conduct.first_byte,
                    Awaited::Rest(_) => self.conduct.head,
                };
                &mut timer.insert((awaited, Box::pin(sleep(limit)))).1
            }
        };
        timer.as_mut().poll(cx).is_ready()
    }

    /// What can be told to the client now; nothing in the middle of something else.
    fn farewell(&self, offence: Offence) -> Vec<u8> {
        match (&self.protocol, offence) {
            _ if self.blocked => Vec::new(),
            (Protocol::Unknown(_), _) => Vec::new(),
            (Protocol::Http1(_), _) => REQUEST_TIMEOUT.to_vec(),
            (Protocol::Http2(http2), _) if !http2.outgoing.at_boundary() => Vec::new(),
            (Protocol::Http2(_), Offence::Slow) => calm_down("slow_headers"),
            // The words by which gRPC's clients know that they should ping less.
            (Protocol::Http2(_), Offence::Pings) => calm_down("too_many_pings"),
        }
    }
}

impl Http2 {
    /// Counts pings that have come at once.
    fn are_too_many(&mut self, pings: u32, min_interval: Duration) -> bool {
        if min_interval.is_zero() {
            return false;
        }
        let now = Instant::now();
        let soon = self.last_ping.is_some_and(|last| now - last < min_interval);
        self.last_ping = Some(now);
        self.strikes += pings - u32::from(!soon);
        self.strikes > MAX_STRIKES
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Tells the client to go, as far as that can be done without waiting, and fails the connection.
    fn end(&mut self, cx: &mut Context<'_>, offence: Offence) -> io::Error {
        // The client's affair, and anybody can cause as many as they like.
        tracing::debug!(?offence, "a connection is cut");
        self.ended = true;
        let farewell = self.farewell(offence);
        let mut rest = &farewell[..];
        let mut stream = Pin::new(&mut self.stream);
        while !rest.is_empty() {
            match stream.as_mut().poll_write(cx, rest) {
                Poll::Ready(Ok(written)) if written > 0 => rest = &rest[written..],
                _ => break,
            }
        }
        if rest.is_empty() && stream.as_mut().poll_flush(cx).is_ready() {
            let _ = stream.poll_shutdown(cx);
        }
        io::ErrorKind::TimedOut.into()
    }

    /// Notes whether the peer takes what is sent, and does not wait for one that owes something itself.
    fn unless_stuck<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.blocked = polled.is_pending();
        if self.blocked && self.poll_overdue(cx) {
            return Poll::Ready(Err(self.end(cx, Offence::Slow)));
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(
                this.received(&mut buffer.filled_mut()[before..])
                    .map_err(|offence| this.end(cx, offence)),
            ),
            Poll::Pending if this.poll_overdue(cx) => Poll::Ready(Err(this.end(cx, Offence::Slow))),
            polled => polled,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            this.sent(&bytes[..written]);
        }
        this.unless_stuck(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(mut written)) = polled {
            for slice in slices {
                let part = written.min(slice.len());
                this.sent(&slice[..part]);
                written -= part;
            }
        }
        this.unless_stuck(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.unless_stuck(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
