//! Completes the replies of a connection.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::response::Response;
use futures_util::future::{BoxFuture, FutureExt as _};
use http::{HeaderValue, header};
use pin_project_lite::pin_project;

use super::requests::UnderWay;
use crate::body::{Holding, Rest};

pin_project! {
    /// A future of a reply. After the service has replied, it reads what is left of the request's body, adds whether
    /// the connection ends, and counts the request until its reply has been sent.
    ///
    /// It is no async block, because a block would have room for the service's future twice: where it captures it, and
    /// where it awaits it.
    pub(super) struct Completing<F> {
        #[pin]
        answer: F,
        rest: Option<Rest>,
        is_last: bool,
        under_way: Option<UnderWay>,
        // The reply, after the rest of the request's body.
        late: Option<BoxFuture<'static, Response>>,
    }
}

impl<F> Completing<F> {
    /// Completes the answer to the request with this unread body. `is_last`: the connection ends after it.
    pub(super) fn new(answer: F, rest: Option<Rest>, is_last: bool, under_way: UnderWay) -> Self {
        Self {
            answer,
            rest,
            is_last,
            under_way: Some(under_way),
            late: None,
        }
    }
}

impl<F> Future for Completing<F>
where
    F: Future<Output = Result<Response, Infallible>>,
{
    type Output = Result<Response<Holding<Option<UnderWay>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.late {
            Some(late) => ready!(late.poll_unpin(cx)),
            None => {
                let Ok(response) = ready!(this.answer.poll(cx));
                match this.rest.take().and_then(Rest::discard) {
                    Some(discarding) => {
                        let late = discarding.map(|()| response).boxed();
                        ready!(this.late.insert(late).poll_unpin(cx))
                    }
                    None => response,
                }
            }
        };
        let under_way = this.under_way.take();
        if *this.is_last || under_way.as_ref().is_some_and(UnderWay::ends_connection) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        Poll::Ready(Ok(response.map(|body| Holding::new(body, under_way))))
    }
}
