//! Bodies that hold a value until they have been sent, and bodies that return their unread rest.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::timeout;

/// Limits on discarding an unwanted body: maximum size in bytes, maximum time, and maximum pause between parts.
const MAX_DISCARDED: usize = 32 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(10);
const DISCARD_PAUSE: Duration = Duration::from_secs(1);

/// The unread rest of a request's body after its reader has finished.
#[derive(Debug, Default)]
pub(crate) struct Rest(Arc<Mutex<Option<Incoming>>>);

impl Rest {
    /// Wraps a body so that its unread rest is returned when the wrapper is dropped.
    ///
    /// Many HTTP/1.1 clients send the whole body before they read the reply. If the connection is closed meanwhile,
    /// they see a reset and never the reason of the refusal. Returns [`None`] as the rest if the client waits for
    /// permission to send the body, or if there is no body.
    pub(crate) fn lend(headers: &HeaderMap, body: Incoming) -> (Body, Option<Self>) {
        if body.is_end_stream() || headers.contains_key(header::EXPECT) {
            return (Body::new(body), None);
        }
        let rest = Self::default();
        let lent = Lent {
            body: Some(body),
            rest: Arc::clone(&rest.0),
        };
        (Body::new(lent), Some(rest))
    }

    /// Reads and discards the rest, within the limits; [`None`] if there is none.
    pub(crate) fn discard(self) -> Option<BoxFuture<'static, ()>> {
        let mut body = self.0.lock().take()?;
        let reading = async move {
            let mut seen = 0;
            while seen < MAX_DISCARDED
                && let Ok(Some(Ok(frame))) = timeout(DISCARD_PAUSE, body.frame()).await
            {
                seen += frame.data_ref().map_or(0, Bytes::remaining);
            }
        };
        // The reply is the same whether discarding succeeds or not.
        Some(timeout(DISCARD_TIME, reading).map(drop).boxed())
    }
}

/// A body that is returned when dropped before its end.
struct Lent {
    body: Option<Incoming>,
    rest: Arc<Mutex<Option<Incoming>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = self.body.take().filter(|body| !body.is_end_stream());
        *self.rest.lock() = body;
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(HttpBody::size_hint);
        hint.unwrap_or_default()
    }
}

pin_project! {
    /// A body and a value that is dropped with it: when the body has been sent, or its reader is gone.
    pub(crate) struct Holding<T> {
        #[pin]
        body: Body,
        _held: T,
    }
}

impl<T> Holding<T> {
    pub(crate) fn new(body: Body, held: T) -> Self {
        Self { body, _held: held }
    }
}

impl<T> HttpBody for Holding<T> {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
