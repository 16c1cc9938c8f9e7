//! Inspects the bytes of a connection and closes it when the client is too slow or pings too often.
//!
//! This stream wraps the socket below hyper and so observes what hyper does not report: when bytes arrive, and where
//! frames end. A timer runs only while a request or frame is incomplete.
//!
//! - **Slow clients.** The first byte must arrive within [`Conduct::first_byte`], and the head of a request within
//!   [`Conduct::head`] of its first byte. Over HTTP/2 the latter applies to the preface and to every frame except DATA;
//!   a header block counts as one frame with its CONTINUATIONs. Between requests and frames there is no limit here,
//!   because gRPC channels connect long before the first request. If a partial request arrives together with the
//!   previous one, its time counts from its next byte.
//! - **Pings.** As in [gRPC's keepalive][keepalive], a PING that arrives sooner than nine tenths of
//!   [`Conduct::min_ping_interval`] after the previous one is a strike. Sending a reply clears all strikes, so pings by
//!   which a client measures the bandwidth of a reply never count.
//!
//! All bytes pass unchanged, except authorities that list addresses ([`AddressLists`]).
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

/// Maximum number of strikes; the next one closes the connection.
const MAX_STRIKES: u32 = 2;

/// The share of the minimum interval after which a PING is no strike. Clients that ping exactly at the interval are
/// sometimes early, as their timers and the network vary.
const PUNCTUAL: f64 = 0.9;

/// Reply to a client whose request stays incomplete.
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// The limits that clients must keep.
#[derive(Debug, Clone, Copy)]
pub struct Conduct {
    /// How long the first byte may take, after the TLS handshake if there is one.
    pub first_byte: Duration,
    /// How long a request's head may take from its first byte.
    pub head: Duration,
    /// Minimum interval between HTTP/2 PINGs; zero for no limit.
    pub min_ping_interval: Duration,
}

/// A stream under inspection.
pub(super) struct Watched<S> {
    stream: S,
    conduct: Conduct,
    heads: Heads,
    protocol: Protocol,
    /// Present only while bytes are awaited.
    timer: Option<(Awaited, Pin<Box<Sleep>>)>,
    /// Whether the peer currently accepts no more bytes.
    blocked: bool,
    /// Whether the end of the connection was announced to the peer.
    ended: bool,
}

enum Protocol {
    /// Number of bytes received so far, all of which match the HTTP/2 preface.
    Unknown(usize),
    /// The number of the latest head with received bytes, as [`Heads`] counts.
    Http1(u64),
    Http2(Http2),
}

#[derive(Default)]
struct Http2 {
    /// `None` once the client is known to send no lists.
    addresses: Option<Box<AddressLists>>,
    incoming: Frames,
    outgoing: Frames,
    last_ping: Option<Instant>,
    strikes: u32,
}

/// What the client must send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    FirstByte,
    /// The rest of the head or frame with this number.
    Rest(u64),
}

/// The number of the preface or the first head.
const OPENING: u64 = 1;

/// Why a connection is closed.
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

    /// Inspects received bytes and changes authorities that the HTTP implementation would reject ([`AddressLists`]).
    fn received(&mut self, bytes: &mut [u8]) -> Result<(), Offence> {
        match &mut self.protocol {
            // End of the stream.
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

    /// Returns whether the client is overdue. If it is not yet, schedules a wake-up for the time when it will be.
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

    /// Returns the bytes that announce the end to the client; empty if they would interrupt another message.
    fn farewell(&self, offence: Offence) -> Vec<u8> {
        match (&self.protocol, offence) {
            _ if self.blocked => Vec::new(),
            (Protocol::Unknown(_), _) => Vec::new(),
            (Protocol::Http1(_), _) => REQUEST_TIMEOUT.to_vec(),
            (Protocol::Http2(http2), _) if !http2.outgoing.at_boundary() => Vec::new(),
            (Protocol::Http2(_), Offence::Slow) => calm_down("slow_headers"),
            // gRPC clients recognize this text and ping less often.
            (Protocol::Http2(_), Offence::Pings) => calm_down("too_many_pings"),
        }
    }
}

impl Http2 {
    /// Counts pings that arrived together. Returns whether there are too many strikes.
    fn are_too_many(&mut self, pings: u32, min_interval: Duration) -> bool {
        if min_interval.is_zero() {
            return false;
        }
        let now = Instant::now();
        let min_interval = min_interval.mul_f64(PUNCTUAL);
        let soon = self.last_ping.is_some_and(|last| now - last < min_interval);
        self.last_ping = Some(now);
        self.strikes += pings - u32::from(!soon);
        self.strikes > MAX_STRIKES
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Announces the end to the client as far as possible without waiting, and returns the connection's error.
    fn end(&mut self, cx: &mut Context<'_>, offence: Offence) -> io::Error {
        // A client error, which any client can cause any number of times.
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

    /// Records whether the peer accepts bytes. Fails instead of waiting for a peer that is itself overdue.
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
