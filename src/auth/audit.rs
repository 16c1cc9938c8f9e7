//! The audit trail: one log line per change of leadership, and lines for requests that policies deny.
//!
//! Each line names the [`Origin`] of the request. [`layers::origin`](crate::layers::origin) sets it as a task-local
//! variable around the rest of the stack. The elections report changes from the request's own task and so do not depend
//! on callers and transports.

use std::{
    fmt,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use election_core::election::ledger::{Cause, Change};
use governor::{
    Quota, RateLimiter,
    clock::MonotonicClock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use http::HeaderValue;

use super::{
    Identity,
    policy::{Question, Resource},
};
use crate::telemetry::log::AUDIT;

/// Maximum number of denied requests that the process logs per second; further ones are only counted.
const DENIALS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();

/// Maximum logged length of a request id, in bytes. Callers choose the id, up to the limit of a header.
const ID_LENGTH: usize = 128;

tokio::task_local! {
    static ORIGIN: Origin;
}

/// Where a request came from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The caller's identity; [`None`] for public paths.
    pub caller: Option<Identity>,
    /// The client's address, as rate limiting determines it: behind trusted proxies, the address that they report.
    pub address: Option<IpAddr>,
    /// The request id from the `x-request-id` header.
    pub request_id: Option<HeaderValue>,
}

impl Origin {
    /// Calls and polls within this origin.
    pub fn around<F: Future>(
        self,
        call: impl FnOnce() -> F,
    ) -> tokio::task::futures::TaskLocalFuture<Self, F> {
        let future = ORIGIN.sync_scope(self.clone(), call);
        ORIGIN.scope(self, future)
    }

    /// Returns the origin of the request that this task serves; empty outside of requests.
    #[must_use]
    pub fn current() -> Self {
        ORIGIN.try_with(Self::clone).unwrap_or_default()
    }

    fn name(&self) -> Option<&str> {
        self.caller.as_ref().map(Identity::name)
    }

    fn mode(&self) -> Option<&'static str> {
        self.caller.as_ref().map(|caller| caller.mode().name())
    }

    fn peer(&self) -> Option<tracing::field::DisplayValue<IpAddr>> {
        self.address.map(tracing::field::display)
    }

    /// Returns the request id, truncated to [`ID_LENGTH`].
    fn id(&self) -> Option<&str> {
        let id = self.request_id.as_ref()?.to_str().ok()?;
        // A header value that converts to a string is ASCII, so any byte is a boundary.
        Some(id.get(..ID_LENGTH).unwrap_or(id))
    }
}

/// Logs a change of leadership. Omits unknown fields.
pub(crate) fn changed(change: &Change<'_>, agent: &str) {
    let text = |value: Option<&dyn fmt::Display>| value.map(ToString::to_string);
    let old = text(change.old.map(|old| old as _));
    let new = text(change.new.map(|new| new as _));
    let origin = match change.cause {
        // An expiry has no originating request: the current request arrived after the term had expired.
        Cause::Expiry => Origin::default(),
        Cause::Campaign | Cause::Resign | Cause::Handover => Origin::current(),
    };
    tracing::info!(
        target: AUDIT,
        election = change.election.path(),
        old_leader = old,
        new_leader = new,
        token = change.token.map(|token| token.get()),
        cause = change.cause.name(),
        caller = origin.name(),
        mode = origin.mode(),
        peer = origin.peer(),
        request_id = origin.id(),
        agent,
        "leadership changed"
    );
}

type Throttle =
    RateLimiter<NotKeyed, InMemoryState, MonotonicClock, NoOpMiddleware<std::time::Instant>>;

/// Limits how much the process logs for denied requests.
struct Denials {
    throttle: Throttle,
    suppressed: AtomicU64,
}

impl Denials {
    fn new() -> Self {
        let quota = Quota::per_second(DENIALS_PER_SECOND);
        Self {
            throttle: RateLimiter::direct_with_clock(quota, MonotonicClock),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Returns [`None`] if the line must be suppressed, otherwise the number of lines suppressed since the last one.
    fn next(&self) -> Option<u64> {
        match self.throttle.check() {
            Ok(()) => Some(self.suppressed.swap(0, Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Relaxed);
                None
            }
        }
    }
}

static DENIALS: LazyLock<Denials> = LazyLock::new(Denials::new);

/// Logs a request that policies or the limit of this setting denied, unless too many were logged this second. The
/// metric of refused requests counts all of them.
pub(crate) fn denied(question: &Question<'_>, limit: Option<&'static str>) {
    let Some(suppressed) = DENIALS.next() else {
        return;
    };
    let origin = Origin::current();
    let (kind, resource) = match question.resource {
        Resource::Election(election) => ("election", election.path().to_string()),
        Resource::Kind(kind) => ("kind", kind.as_str().to_owned()),
        Resource::Deployment { namespace, name } => ("deployment", format!("{namespace}/{name}")),
        Resource::Pod { namespace, name } => ("pod", format!("{namespace}/{name}")),
        Resource::Agent => ("agent", "agent".to_owned()),
    };
    tracing::warn!(
        target: AUDIT,
        action = question.action.name(),
        resource_type = kind,
        resource,
        candidate = question.candidate.map(|candidate| candidate.as_str()),
        limit,
        caller = question.identity.name(),
        mode = question.identity.mode().name(),
        peer = origin.peer(),
        request_id = origin.id(),
        suppressed,
        "request denied"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_beyond_the_throttle_are_counted_and_the_next_line_has_the_count() {
        let denials = Denials::new();
        let logged = (0..1_000).filter(|_| denials.next().is_some()).count();
        // On a slow machine, the loop takes long enough for more lines.
        assert!((10..500).contains(&logged), "{logged}");
        std::thread::sleep(std::time::Duration::from_millis(200));
        let suppressed = denials.suppressed.load(Relaxed);
        assert!(suppressed >= 500, "{suppressed}");
        assert_eq!(denials.next(), Some(suppressed));
        assert_eq!(denials.next(), Some(0), "reported once");
    }

    #[tokio::test]
    async fn the_origin_holds_while_a_request_is_called_and_polled_and_is_bounded() {
        let origin = Origin {
            caller: Some(Identity::anonymous()),
            address: None,
            request_id: HeaderValue::from_str(&"x".repeat(300)).ok(),
        };
        let polled = origin.around(|| {
            assert_eq!(Origin::current().name(), Some("anonymous"), "called");
            async { Origin::current() }
        });
        assert!(Origin::current().caller.is_none(), "not beyond");
        let current = polled.await;
        assert_eq!(
            (current.name(), current.mode()),
            (Some("anonymous"), Some("none"))
        );
        assert_eq!(current.id().map(str::len), Some(ID_LENGTH));
    }
}
