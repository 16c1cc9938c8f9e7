//! Server-sent events ([specification](https://html.spec.whatwg.org/multipage/server-sent-events.html)): the twins of
//! Observe.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{Extensions, HeaderMap, header},
    response::{IntoResponse, Sse, sse},
};
use election_core::types::millis;
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{
    dto::{self, Certainty, ElectionPath, EventsQuery, Goodbye},
    extract::{Search, Target},
};
use crate::{
    auth::gate::Gate,
    endpoint::{ALL_EVENTS, EVENTS},
    status::{Code, Problem},
    transport::observe::{self, Observing, Said, Wanted, What},
};

/// After how many ms without an event a comment is sent: proxies close connections on which nothing happens.
const COMMENT_AFTER: i64 = 15_000;
/// The random delay after which a browser reopens a stream that has ended, in ms.
const RETRY: std::ops::Range<u64> = 500..1_500;
/// The same after a problem that lasts.
const RETRY_LATER: Duration = Duration::from_secs(60);

/// Returns what the query requests.
fn wanted(query: &EventsQuery) -> Result<Wanted, Problem> {
    let what = match (query.all_kinds, query.prefix.as_str()) {
        (true, "") => What::All,
        (true, _) => {
            return Err(Problem::new(
                Code::InvalidArgument,
                "`prefix` is given with all_kinds: leave one of them out",
            ));
        }
        (false, "") => What::Kind,
        (false, prefix) => What::Prefix(prefix),
    };
    Ok(Wanted::new(&query.kind, what, COMMENT_AFTER, "")?)
}

/// Streams the state of the election as server-sent events: the present state first, then every change.
///
/// Events: `state` (its id is the position), `synced` once the present state has been sent, `certainty`, `goodbye`.
#[utoipa::path(
    get, path = EVENTS, tag = "elections", params(ElectionPath,
        ("last-event-id" = Option<String>, Header, description = "The position that the caller has: this state is not sent again")),
    responses((status = 200, description = "Events without end. The data of `state` is a State, of `certainty` a Certainty, of `goodbye` a Goodbye",
        body = String, content_type = "text/event-stream", example = "event: state\nid: h1795449600000000\ndata: {\"phase\":\"HELD\"}\n\n"))
)]
pub(super) async fn events(
    State(gate): State<Gate>,
    Target(election): Target,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<impl IntoResponse, Problem> {
    let after = headers.get("last-event-id");
    let after = after.and_then(|after| after.to_str().ok());
    let what = What::Election(election.name());
    let after = after.unwrap_or_default();
    let wanted = Wanted::new(election.kind(), what, COMMENT_AFTER, after)?;
    sent(&gate, wanted, &headers, &extensions)
}

/// Streams the states of elections as server-sent events: the present ones first, then every change.
///
/// If an election changes while the caller does not read, the agent sends only its last state. A new stream begins with
/// the present states.
#[utoipa::path(
    get, path = ALL_EVENTS, tag = "elections", params(EventsQuery),
    responses((status = 200, description = "Events without end, like those of one election. If there are more than 10000 elections, the last event is `problem`, and its data is a Problem",
        body = String, content_type = "text/event-stream", example = "event: synced\ndata: {}\n\n"))
)]
pub(super) async fn all_events(
    State(gate): State<Gate>,
    Search(query): Search<EventsQuery>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<impl IntoResponse, Problem> {
    sent(&gate, wanted(&query)?, &headers, &extensions)
}

/// Refuses callers that do not accept events.
fn check_accepted(headers: &HeaderMap) -> Result<(), Problem> {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    let anything = accepted.peek().is_none();
    let takes_events = |accepted: &str| {
        let accepted = accepted.to_ascii_lowercase();
        let mut ranges = accepted
            .split(',')
            .filter_map(|range| range.split(';').next());
        ranges.any(|range| ["text/event-stream", "text/*", "*/*"].contains(&range.trim()))
    };
    match anything || accepted.any(|value| value.to_str().is_ok_and(takes_events)) {
        true => Ok(()),
        false => Err(Problem::new(
            Code::InvalidArgument,
            "this path sends text/event-stream: accept that, or request /election/{kind}/{name}?wait=30s",
        )),
    }
}

fn sent(
    gate: &Gate,
    wanted: Wanted,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<impl IntoResponse + use<>, Problem> {
    check_accepted(headers)?;
    let observing = Observing::begin(gate, wanted, extensions)?;
    let retry = Duration::from_millis(fastrand::u64(RETRY));
    let first = sse::Event::default().retry(retry);
    let events = observing.stream().map(event);
    let events = stream::iter([Ok(first)]).chain(events);
    let events = events.map(|event| Ok::<_, Infallible>(event.unwrap_or_default()));
    Ok((
        [("x-accel-buffering", "no"), ("cache-control", "no-store")],
        Sse::new(events),
    ))
}

/// Converts a message to an event. An error is that of serialization.
fn event(said: Result<Said, Problem>) -> Result<sse::Event, axum::Error> {
    let event = |name| sse::Event::default().event(name);
    match said {
        Ok(Said::State {
            seen,
            cause,
            missed,
        }) => {
            let state = seen.state(Instant::now());
            let state = dto::State::with_cause(&seen.election, &state, cause, missed);
            let position = seen.position().to_string();
            event("state").id(position).json_data(state)
        }
        Ok(Said::Synced) => Ok(event("synced").data("{}")),
        Ok(Said::Certainty(doubt)) => {
            let (unconfirmed_for, reason) = doubt.as_ref().map(observe::doubt).unwrap_or_default();
            event("certainty").json_data(Certainty {
                certain: doubt.is_none(),
                unconfirmed_for: millis(unconfirmed_for),
                reason,
            })
        }
        Ok(Said::Heartbeat) => Ok(sse::Event::default().comment("")),
        Ok(Said::Goodbye(goodbye)) => event("goodbye").json_data(Goodbye {
            reason: goodbye.reason.into(),
            reconnect_after: goodbye.reconnect_after,
        }),
        // A browser reopens a stream that ends, but not one that fails as a whole.
        Err(problem) => event("problem")
            .retry(RETRY_LATER)
            .json_data(problem.document()),
    }
}
