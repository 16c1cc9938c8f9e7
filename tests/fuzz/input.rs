//! What inputs are made of.

use std::{convert::Infallible, future::pending, io};

use arbitrary::Arbitrary;
use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};
use http_body::Frame;
use http_body_util::StreamBody;

/// The largest body, in bytes: beyond every limit of the agent's on a body that is read.
const LARGEST: usize = 160 * 1024;
/// The most pieces that a body comes in.
const PIECES: usize = 64;

/// A name that is seen again, or any other.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) enum Name {
    Usual(u8),
    Text(String),
    Long(u16),
}

impl Name {
    pub(crate) fn text(&self) -> String {
        let usual = ["a", "b", "nightly-report", "köln/1"];
        match self {
            Self::Usual(nth) => usual[usize::from(nth % 4)].to_owned(),
            Self::Text(text) => text.clone(),
            Self::Long(length) => "x".repeat(usize::from(length % 1100)),
        }
    }
}

/// A number that is mostly in range.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Term {
    Valid(u16),
    Any(i64),
}

impl Term {
    pub(crate) fn millis(self) -> i64 {
        match self {
            Self::Valid(more) => 1000 + i64::from(more % 59_000),
            Self::Any(term) => term,
        }
    }
}

/// A fencing token: none, the last that was granted, or any.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Token {
    None,
    Last,
    Any(u64),
}

impl Token {
    pub(crate) fn number(self, last: u64) -> u64 {
        match self {
            Self::None => 0,
            Self::Last => last,
            Self::Any(token) => token,
        }
    }
}

/// How a body arrives.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) struct Delivery {
    /// Bytes in each piece; 0: all in one.
    piece: u8,
    end: End,
}

#[derive(Debug, Clone, Arbitrary)]
enum End {
    Whole,
    Breaks,
    Stalls,
    Trailers(Vec<(String, Vec<u8>)>),
}

impl Delivery {
    /// Whether the body never ends.
    pub(crate) fn stalls(&self) -> bool {
        matches!(self.end, End::Stalls)
    }

    pub(crate) fn body(&self, mut bytes: Vec<u8>) -> Body {
        bytes.truncate(LARGEST);
        if self.piece == 0 && matches!(self.end, End::Whole) {
            return Body::from(bytes);
        }
        let least = (bytes.len() / PIECES).max(1);
        let size = match self.piece {
            0 => bytes.len().max(1),
            piece => usize::from(piece).max(least),
        };
        let mut frames: Vec<_> = bytes
            .chunks(size)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        match &self.end {
            End::Whole | End::Stalls => {}
            End::Breaks => frames.push(Err(io::Error::from(io::ErrorKind::ConnectionReset))),
            End::Trailers(trailers) => {
                let mut map = HeaderMap::new();
                for (name, value) in trailers {
                    append(&mut map, name, value);
                }
                frames.push(Ok(Frame::trailers(map)));
            }
        }
        let stalls = self.stalls();
        let after = stream::once(async move {
            if stalls {
                pending::<Infallible>().await;
            }
        });
        let after = after.filter_map(async |()| None);
        Body::new(StreamBody::new(stream::iter(frames).chain(after.boxed())))
    }
}

/// Adds a header, if it is one.
pub(crate) fn append(headers: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value)) {
        headers.append(name, value);
    }
}

/// A request, if hyper would pass it on.
pub(crate) fn request(method: &str, target: &str, version: Version) -> Option<Request<()>> {
    Request::builder()
        .method(method.as_bytes())
        .uri(Uri::try_from(target).ok()?)
        .version(version)
        .body(())
        .ok()
}

/// A request as text: `METHOD target [HTTP/1.1]`, a line for each header, an empty line, and the body as it is.
/// The line `!breaks` among the headers has the body break off, and `!stalls` has it never end, which is told.
pub(crate) fn raw_request(text: &[u8]) -> Option<(Request<Body>, bool)> {
    let (first, mut rest) = line(text);
    let mut words = std::str::from_utf8(first).ok()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let version = match words.next() {
        Some("HTTP/1.0") => Version::HTTP_10,
        Some("HTTP/1.1") => Version::HTTP_11,
        _ => Version::HTTP_2,
    };
    let mut request = request(method, target, version)?;
    let mut delivery = Delivery {
        piece: 0,
        end: End::Whole,
    };
    loop {
        let (next, after) = line(rest);
        rest = after;
        match next {
            b"" => break,
            b"!breaks" => delivery.end = End::Breaks,
            b"!stalls" => delivery.end = End::Stalls,
            header => {
                let colon = header.iter().position(|byte| *byte == b':')?;
                let name = std::str::from_utf8(&header[..colon]).ok()?;
                let value = header[colon + 1..].trim_ascii();
                append(request.headers_mut(), name, value);
            }
        }
    }
    let body = delivery.body(rest.to_vec());
    Some((request.map(|()| body), delivery.stalls()))
}

fn line(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, &[]),
    }
}
