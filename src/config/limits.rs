//! Limits on requests.

use std::{num::NonZeroU32, time::Duration};

use election_core::{election::quota, types::MIN_TERM};

use super::names::{
    EA_ALLOW_FORCED_HANDOVER, EA_MAX_CONNECTIONS, EA_MAX_CONNECTIONS_PER_PEER,
    EA_MAX_HELD_PER_IDENTITY, EA_MAX_HELD_PER_KIND, EA_MAX_IN_FLIGHT, EA_MAX_STREAMS, EA_MAX_TERM,
    EA_MAX_WAIT, EA_PROVISIONAL_TERM, EA_RATE_LIMIT_BURST, EA_RATE_LIMIT_PER_SECOND,
    EA_REQUEST_TIMEOUT, EA_TRUSTED_PROXIES,
};
use super::{Setting, list_setting, setting, values::Reader};
use crate::{layers::rate_limit::Rate, listener::admission, peer::TrustedProxies};

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        EA_MAX_TERM,
        "60s",
        "longest term a request may ask for (1s to 24h); also how long a restarted lease node is in quarantine",
    ),
    setting(
        EA_REQUEST_TIMEOUT,
        "15s",
        "longest time until a reply (10ms to 1h); a shorter `grpc-timeout` counts instead",
    ),
    setting(
        EA_MAX_IN_FLIGHT,
        "10000",
        "how many requests may be under way at once, on all connections, streams such as gRPC health's Watch until they end; more are refused (429, RESOURCE_EXHAUSTED), but for probes and metrics (1 to 1000000)",
    ),
    setting(
        EA_MAX_STREAMS,
        "20000",
        "how many streams of elections and waiting requests may be open at once, on all connections; they do not count as requests under way. More are refused (429, RESOURCE_EXHAUSTED) (1 to 1000000)",
    ),
    setting(
        EA_MAX_WAIT,
        "60s",
        "longest time that a request may wait for an election to change (0s to 1h); EA_REQUEST_TIMEOUT does not count it",
    ),
    setting(
        EA_PROVISIONAL_TERM,
        "3s",
        "how long a lease granted after a wait is stored until the leader extends it for the first time, in case the leader has gone; 1 % of the wait is added (1s to 60s)",
    ),
    setting(
        EA_MAX_CONNECTIONS,
        "10000",
        "how many connections are taken at once, on both ports, if the limit of open files has room for them; more are closed, but for a few in which probes and metrics are answered (1 to 1000000)",
    ),
    setting(
        EA_MAX_CONNECTIONS_PER_PEER,
        "0",
        "how many of them may come from one address (of IPv6: one /64 network) that is not in EA_TRUSTED_PROXIES; 0: no limit of its own",
    ),
    list_setting(
        EA_TRUSTED_PROXIES,
        "",
        "proxies whose `x-forwarded-for` is trusted, comma separated, each an IP address or a network such as `10.0.0.0/8`; none: the header is not read",
    ),
    setting(
        EA_RATE_LIMIT_PER_SECOND,
        "0",
        "how many requests a second one caller may make: an identity, or the address of unauthenticated callers; 0: no limit",
    ),
    setting(
        EA_RATE_LIMIT_BURST,
        "0",
        "how many of them at once, after a pause; 0: as many as in one second",
    ),
    setting(
        EA_MAX_HELD_PER_IDENTITY,
        "0",
        "how many elections one identity may hold at once through this agent; campaigns for more are refused (429, RESOURCE_EXHAUSTED), extensions never. All callers without a proven name count as one. 0: no limit",
    ),
    setting(
        EA_MAX_HELD_PER_KIND,
        "0",
        "how many elections of one kind may be held at once through this agent by all identities; 0: no limit",
    ),
    setting(
        EA_ALLOW_FORCED_HANDOVER,
        "false",
        "let a handover replace a leader that did not ask for it; only fencing tokens then protect against the old leader",
    ),
];

/// Limits on requests.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The maximum term.
    pub max_term: Duration,
    /// The maximum time to a reply.
    pub request_timeout: Duration,
    /// Maximum number of requests in progress at once.
    pub max_in_flight: usize,
    /// Maximum number of streams and waiting requests at once.
    pub max_streams: usize,
    /// The maximum time that a request waits for a change.
    pub max_wait: Duration,
    /// How long a lease granted after a wait is stored until its first extension.
    pub provisional_term: Duration,
    /// Limits on connections.
    pub connections: admission::Limits,
    /// Rate limit per caller; `None` for no limit.
    pub rate: Option<Rate>,
    /// The proxies whose reported client addresses are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Limits on the number of elections held at once.
    pub held: quota::Limits,
    /// Whether a handover may replace a leader that did not request it.
    pub allow_forced_handover: bool,
}

impl Limits {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let day = Duration::from_secs(24 * 3600);
        let max_term = reader.duration(EA_MAX_TERM, MIN_TERM, day);
        let request_timeout = reader.duration(
            EA_REQUEST_TIMEOUT,
            Duration::from_millis(10),
            Duration::from_secs(3600),
        );
        let max_in_flight = reader.number(EA_MAX_IN_FLIGHT, 1..=1_000_000);
        let max_streams = reader.number(EA_MAX_STREAMS, 1..=1_000_000);
        let hour = Duration::from_secs(3600);
        let max_wait = reader.duration(EA_MAX_WAIT, Duration::ZERO, hour);
        let minute = Duration::from_secs(60);
        let provisional_term = reader.duration(EA_PROVISIONAL_TERM, MIN_TERM, minute);
        let connections = reader.number(EA_MAX_CONNECTIONS, 1..=1_000_000);
        let per_peer = reader.with(EA_MAX_CONNECTIONS_PER_PEER, |raw| {
            raw.parse::<usize>()
                .map(|most| (most > 0).then_some(most))
                .map_err(|_| "give a number, 0 for no limit".to_owned())
        });
        let per_second = reader.number(EA_RATE_LIMIT_PER_SECOND, 0..=1_000_000);
        let burst = reader.number(EA_RATE_LIMIT_BURST, 0..=10_000_000);
        if burst.is_some_and(|burst| burst > 0) && per_second == Some(0) {
            reader.mistake(
                EA_RATE_LIMIT_BURST,
                "there is no rate to burst over: set EA_RATE_LIMIT_PER_SECOND, too",
            );
        }
        let rate = |per_second| Rate {
            per_second,
            burst: burst.and_then(NonZeroU32::new).unwrap_or(per_second),
        };
        let trusted_proxies = reader.parsed(EA_TRUSTED_PROXIES);
        let per_holder = reader.number(EA_MAX_HELD_PER_IDENTITY, 0..=100_000_000);
        let per_kind = reader.number(EA_MAX_HELD_PER_KIND, 0..=100_000_000);
        let allow_forced_handover = reader.bool(EA_ALLOW_FORCED_HANDOVER);
        Some(Self {
            max_term: max_term?,
            request_timeout: request_timeout?,
            max_in_flight: max_in_flight?,
            max_streams: max_streams?,
            max_wait: max_wait?,
            provisional_term: provisional_term?,
            connections: admission::Limits {
                connections: connections?,
                per_peer: per_peer?,
                bound_by: EA_MAX_CONNECTIONS.name(),
            },
            rate: NonZeroU32::new(per_second?).map(rate),
            trusted_proxies: trusted_proxies?,
            held: quota::Limits {
                per_holder: per_holder?,
                per_kind: per_kind?,
            },
            allow_forced_handover: allow_forced_handover?,
        })
    }
}
