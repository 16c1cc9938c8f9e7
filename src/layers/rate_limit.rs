//! Refuses requests over a caller's rate limit (`EA_RATE_LIMIT_PER_SECOND`, `EA_RATE_LIMIT_BURST`).
//!
//! Requests are counted by identity or, without a proved identity, by address. IPv6 addresses are counted by /64
//! network, because a host has as many addresses as it likes. Behind a trusted proxy (`EA_TRUSTED_PROXIES`), the
//! address is that of the proxy's client. All connections and ports share the counts. Probes and metrics are exempt.
//!
//! Memory use does not depend on the number of callers: two hashes with keys of this process map a caller to two of
//! [`CELLS`] counters. The caller's count is the lower of the two. A permitted request adds to that count and raises
//! both counters to the sum. A caller therefore never exceeds its rate, and gets less only if busy callers share both
//! its counters. This is the sketch of Cormode and Muthukrishnan (*An Improved Data Stream Summary: The Count-Min
//! Sketch and its Applications*, 2005) with the conservative update of Estan and Varghese (*New Directions in Traffic
//! Measurement and Accounting*, 2002), over the arrival times of the
//! [GCRA](https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm).
//!
//! Refusals: RateLimited (RESOURCE_EXHAUSTED, 429), with the time of the next attempt; Internal (INTERNAL, 500) if the
//! request carries no caller or no peer, whether there is a limit or not.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::body::Body;
use governor::{Quota, clock::Clock, nanos::Nanos, state::StateStore};
use http::Request;
use tokio::time::Instant;

use super::check::{CheckLayer, check};
use crate::{
    auth::{Caller, Mode},
    endpoint::{Action, Counted},
    peer::{Peer, TrustedProxies, network},
    status::{Code, Problem},
    transport::request::{Allowance, caller, endpoint, peer},
};

/// Number of counters: 8 MiB, half for each hash. With 10,000 busy callers, about one in 2,700 shares both its counters
/// with others.
const CELLS: usize = 1 << 20;

/// The rate of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests per second in the long run.
    pub per_second: NonZeroU32,
    /// Requests at once after a pause.
    pub burst: NonZeroU32,
}

/// Limits the rate of requests per caller. Cheap to clone; clones share the counts.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    callers: governor::RateLimiter<[usize; 2], Cells, TokioClock>,
    hashes: [RandomState; 2],
    proxies: TrustedProxies,
    burst: NonZeroU32,
}

/// A fixed number of counters. Each is the theoretical arrival time of the GCRA in nanoseconds: when a caller at
/// exactly its rate would have received what it has requested.
struct Cells(Box<[AtomicU64]>);

impl StateStore for Cells {
    /// The two counters of a caller.
    type Key = [usize; 2];

    /// Two requests of one caller counted by two threads at the same instant may count as one.
    fn measure_and_replace<T, F, E>(&self, key: &[usize; 2], measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let pair = key.map(|cell| &self.0[cell]);
        loop {
            let seen = pair.map(|cell| cell.load(Ordering::Acquire));
            let (least, other) = if seen[0] <= seen[1] { (0, 1) } else { (1, 0) };
            let had = NonZeroU64::new(seen[least]).map(|time| Nanos::from(time.get()));
            let (answer, will_have_had) = measure(had)?;
            let raised = u64::from(will_have_had);
            let won = pair[least].compare_exchange_weak(
                seen[least],
                raised,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if won.is_ok() {
                pair[other].fetch_max(raised, Ordering::AcqRel);
                return Ok(answer);
            }
        }
    }
}

/// Tokio's clock, which tests can pause.
struct TokioClock;

impl Clock for TokioClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

/// The key by which requests are counted.
#[derive(Hash)]
enum Key<'a> {
    Identity(Mode, &'a str),
    Address(IpAddr),
}

impl RateLimiter {
    /// Creates a limiter with this rate per caller. The addresses that these proxies report are trusted.
    #[must_use]
    pub fn new(rate: Rate, proxies: TrustedProxies) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let cells = std::iter::repeat_with(AtomicU64::default).take(CELLS);
        Self(Arc::new(Inner {
            callers: governor::RateLimiter::new(quota, Cells(cells.collect()), TokioClock),
            hashes: [RandomState::new(), RandomState::new()],
            proxies,
            burst: rate.burst,
        }))
    }

    /// Counts a request of its caller. A stream whose messages count, too, gets an [`Allowance`].
    fn check(&self, request: &mut Request<Body>) -> Result<(), Problem> {
        let endpoint = endpoint(request.extensions())?;
        let (caller, peer) = origin(request)?;
        if endpoint.counted == Counted::Never {
            return Ok(());
        }
        let cells = match caller {
            Caller::Known(identity) if identity.mode() != Mode::None => {
                self.cells(&Key::Identity(identity.mode(), identity.name()))
            }
            Caller::Known(_) | Caller::Public => self.cells_of_address(peer, request),
        };
        if endpoint.action == Action::Lead {
            let limiter = self.clone();
            let allowance = Allowance::new(move |messages| limiter.count(cells, messages));
            request.extensions_mut().insert(allowance);
        }
        self.count(cells, NonZeroU32::MIN)
    }

    /// Counts a request by its address, regardless of its identity.
    ///
    /// # Errors
    /// RateLimited; Internal if the request carries no address.
    pub(super) fn check_address(&self, request: &Request<Body>) -> Result<(), Problem> {
        let peer = peer(request.extensions())?;
        self.count(self.cells_of_address(peer, request), NonZeroU32::MIN)
    }

    fn cells_of_address(&self, peer: &Peer, request: &Request<Body>) -> [usize; 2] {
        let address = self
            .0
            .proxies
            .client_address(peer.address, request.headers());
        self.cells(&Key::Address(network(address)))
    }

    fn cells(&self, caller: &Key<'_>) -> [usize; 2] {
        let half = CELLS / 2;
        [0, 1].map(|which| {
            let hash = self.0.hashes[which].hash_one(caller);
            which * half + (hash as usize) % half
        })
    }

    /// Counts requests, or the operations of one. More than a burst counts as one burst: otherwise it would never be
    /// permitted.
    fn count(&self, cells: [usize; 2], requests: NonZeroU32) -> Result<(), Problem> {
        let callers = &self.0.callers;
        let counted = callers.check_key_n(&cells, requests.min(self.0.burst));
        let Ok(Err(refused)) = counted else {
            return Ok(());
        };
        Err(Problem {
            retry_after: Some(refused.wait_time_from(callers.clock().now())),
            ..Problem::new(
                Code::RateLimited,
                "the caller exceeds its rate limit (EA_RATE_LIMIT_PER_SECOND, EA_RATE_LIMIT_BURST): wait \
                 before the next request",
            )
        })
    }
}

/// Refuses requests over the rate of this limiter, if there is one, and all requests without a caller or a peer.
///
/// Not by `tower`'s optional layer: it would double the types, and the names, of all layers around.
pub fn rate_limit(
    limiter: Option<RateLimiter>,
) -> CheckLayer<impl Fn(&mut Request<Body>) -> Result<(), Problem> + Clone> {
    check(move |request| match &limiter {
        Some(limiter) => limiter.check(request),
        None => origin(request).map(drop),
    })
}

/// The caller and the peer, which no request may lack.
fn origin(request: &Request<Body>) -> Result<(&Caller, &Peer), Problem> {
    let extensions = request.extensions();
    Ok((caller(extensions)?, peer(extensions)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::*;
    use crate::{auth::Identity, endpoint::classified};

    fn limiter(per_second: u32, burst: u32, proxies: &str) -> RateLimiter {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        let rate = Rate {
            per_second: number(per_second),
            burst: number(burst),
        };
        RateLimiter::new(rate, proxies.parse().expect("networks"))
    }

    fn from(address: &str) -> Request<Body> {
        let mut request = classified(Request::new(Body::empty()));
        let address = address.parse().expect("an address");
        request.extensions_mut().insert(Peer::new(address, None));
        request.extensions_mut().insert(Caller::Public);
        request
    }

    fn by(mode: Mode, name: &str) -> Request<Body> {
        let mut request = from("10.0.0.1");
        let identity = Identity::new(mode, name, Vec::new()).expect("a name");
        request.extensions_mut().insert(Caller::Known(identity));
        request
    }

    /// Returns how many of `of` requests pass.
    fn passed(limiter: &RateLimiter, request: impl Fn() -> Request<Body>, of: usize) -> usize {
        (0..of)
            .filter(|_| limiter.check(&mut request()).is_ok())
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_may_ask_a_burst_at_once_and_then_so_often_a_second() {
        let limiter = limiter(10, 5, "");
        assert_eq!(passed(&limiter, || from("10.0.0.1"), 20), 5);
        advance(Duration::from_millis(250)).await;
        assert_eq!(passed(&limiter, || from("10.0.0.1"), 20), 2);
        let refused = limiter.check(&mut from("10.0.0.1")).expect_err("too often");
        assert_eq!(refused.code, Code::RateLimited);
        assert_eq!(refused.retry_after, Some(Duration::from_millis(50)));
        advance(Duration::from_secs(60)).await;
        assert_eq!(passed(&limiter, || from("10.0.0.1"), 20), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_told_apart_by_identity_and_else_by_address() {
        let limiter = limiter(1, 2, "");
        let different: [fn() -> Request<Body>; 6] = [
            || by(Mode::Token, "a"),
            || by(Mode::Token, "b"),
            // The same name proved by another mode is another identity.
            || by(Mode::Jwt, "a"),
            || from("10.0.0.2"),
            || from("2001:db8:0:1::1"),
            || from("2001:db8:0:2::1"),
        ];
        for request in different {
            assert_eq!(passed(&limiter, request, 5), 2);
        }
        let the_same_as_above: [fn() -> Request<Body>; 2] = [
            || from("::ffff:10.0.0.2"),
            || from("2001:db8:0:1:ffff:ffff:ffff:ffff"),
        ];
        for request in the_same_as_above {
            assert_eq!(passed(&limiter, request, 5), 0);
        }
        // A caller without an identity counts by address. The requests above came from the same address, but counted by
        // identity.
        assert_eq!(passed(&limiter, || by(Mode::None, "x"), 5), 2);
        assert_eq!(passed(&limiter, || by(Mode::None, "y"), 5), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_a_caller_or_a_peer_is_refused_whatever_the_limit() {
        let answers = service_fn(|_: Request<Body>| async { Ok::<_, Problem>(()) });
        for limiter in [None, Some(limiter(10, 5, ""))] {
            let service = rate_limit(limiter).layer(answers);
            for path in ["/election/e", "/livez"] {
                let request = || {
                    let mut request = Request::new(Body::empty());
                    *request.uri_mut() = path.parse().expect("a path");
                    let peer = Peer::new("10.0.0.1".parse().expect("an address"), None);
                    request.extensions_mut().insert(peer);
                    let caller = Caller::Known(Identity::anonymous());
                    request.extensions_mut().insert(caller);
                    classified(request)
                };
                let ask = |request| service.clone().oneshot(request);
                assert_eq!(ask(request()).await, Ok(()), "{path}");
                let (mut nobody, mut nowhere) = (request(), request());
                nobody.extensions_mut().remove::<Caller>();
                nowhere.extensions_mut().remove::<Peer>();
                for request in [nobody, nowhere] {
                    let refused = ask(request).await.expect_err("refused");
                    assert_eq!(refused.code, Code::Internal, "{path}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trusted_proxy_is_not_its_clients() {
        let limiter = limiter(1, 2, "10.0.0.0/8");
        let for_client = |client: &str| {
            let mut request = from("10.0.0.1");
            let client = client.parse().expect("a header");
            request.headers_mut().insert("x-forwarded-for", client);
            request
        };
        assert_eq!(passed(&limiter, || for_client("192.0.2.1"), 5), 2);
        assert_eq!(passed(&limiter, || for_client("192.0.2.2"), 5), 2);
        assert_eq!(
            passed(&limiter, || for_client("192.0.2.9, 192.0.2.1"), 5),
            0
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_one_counter_has_its_own_rate_and_no_more() {
        let limiter = limiter(10, 10, "");
        let mine = [1, CELLS / 2 + 1];
        let neighbours = [[1, CELLS / 2 + 2], [2, CELLS / 2 + 1]];
        let ask = |cells: &[usize; 2]| limiter.0.callers.check_key(cells).is_ok();
        // Each neighbour shares one counter with `me`, out of phase.
        for neighbour in neighbours {
            assert!(ask(&neighbour));
            advance(Duration::from_millis(50)).await;
            let mut passed = 0;
            for _ in 0..10_000 {
                passed += usize::from(ask(&mine));
                // The neighbour sends at its maximum rate.
                ask(&neighbour);
                advance(Duration::from_millis(10)).await;
            }
            // A hundred seconds at ten requests per second, plus a burst.
            assert!((1_000..=1_010).contains(&passed), "{passed}");
            advance(Duration::from_secs(60)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_million_callers_slow_nobody_else_down() {
        let limiter = limiter(10, 10, "");
        for caller in 0..1_000_000_u32 {
            let address = IpAddr::from(caller.to_be_bytes());
            let _ = limiter.count(limiter.cells(&Key::Address(address)), NonZeroU32::MIN);
        }
        // Each caller used one of ten requests, so newcomers find capacity in their counters.
        let newcomers = (0..1_000_u32)
            .filter(|n| {
                let request = || by(Mode::Token, &format!("newcomer-{n}"));
                passed(&limiter, request, 1) == 1
            })
            .count();
        assert_eq!(newcomers, 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_refusal_is_told_and_probes_pass() {
        let answers = service_fn(|_: Request<Body>| async { Ok::<_, Problem>(()) });
        let service = rate_limit(Some(limiter(1, 1, ""))).layer(answers);
        let ask = |path: &str| {
            let mut request = from("10.0.0.1");
            *request.uri_mut() = path.parse().expect("a path");
            service.clone().oneshot(classified(request))
        };
        assert_eq!(ask("/election/e").await, Ok(()));
        let refused = ask("/election/e").await.expect_err("too often");
        assert_eq!(refused.code, Code::RateLimited);
        for path in ["/livez", "/metrics", "/grpc.health.v1.Health/Check"] {
            assert_eq!(ask(path).await, Ok(()), "{path}");
        }
    }
}
