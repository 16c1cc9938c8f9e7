//! Limits the number of connections, in total and per peer.
//!
//! Both ports share one count. A connection over a limit is closed before any byte is read: no reply is understood by
//! clients of every protocol, and closing costs least. When all places are taken, a few [spare places](SPARE) remain,
//! which serve probes and metrics for a short time. Clients that take all places thus cannot cause a restart of the
//! agent.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::peer::{TrustedProxies, network};

/// Minimum interval between log lines about refused connections.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Number of connections accepted beyond the total limit, for probes and metrics only.
pub const SPARE: usize = 4;

/// Limits on connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number in total.
    pub connections: usize,
    /// Maximum number from one address (for IPv6, one /64 network), except trusted proxies; `None` for no separate
    /// limit.
    pub per_peer: Option<usize>,
    /// The name of what determines [`connections`](Self::connections), for the log.
    pub bound_by: &'static str,
}

/// Counts connections. Cheap to clone; clones share the counts.
#[derive(Debug, Clone)]
pub struct Admission {
    limits: Limits,
    proxies: TrustedProxies,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Connections in regular places.
    all: usize,
    spare: usize,
    /// By [`network`]. Contains only networks with open connections, and no proxies.
    by_peer: HashMap<IpAddr, usize>,
    logged: Option<Instant>,
    refused: u64,
}

impl Admission {
    /// Creates a counter with these limits. Connections of proxies carry many clients and count only towards the total.
    #[must_use]
    pub fn new(limits: Limits, proxies: TrustedProxies) -> Self {
        Self {
            limits,
            proxies,
            open: Arc::default(),
        }
    }

    /// Creates a counter that admits any number of connections.
    #[must_use]
    pub fn unlimited() -> Self {
        let limits = Limits {
            connections: usize::MAX,
            per_peer: None,
            bound_by: "",
        };
        Self::new(limits, TrustedProxies::default())
    }

    /// Reserves a place for a connection from this address, if there is one. Dropping the place frees it.
    #[must_use]
    pub fn admit(&self, peer: IpAddr) -> Option<Place> {
        // A proxy's connection must not count against the other addresses of its network.
        let counted = (!self.proxies.contains(peer)).then(|| network(peer));
        let mut open = self.lock();
        let from_peer = counted.and_then(|counted| open.by_peer.get(&counted).copied());
        let from_peer = from_peer.unwrap_or(0);
        let is_spare = open.all >= self.limits.connections;
        let over = match self.limits.per_peer {
            _ if is_spare && open.spare >= SPARE => Some(self.limits.bound_by),
            Some(most) if from_peer >= most => Some("EA_MAX_CONNECTIONS_PER_PEER"),
            _ => None,
        };
        if let Some(limit) = over {
            open.refused += 1;
            if open
                .logged
                .is_none_or(|logged| logged.elapsed() >= LOG_EVERY)
            {
                open.logged = Some(Instant::now());
                tracing::warn!(%peer, limit, "connections are refused: their number is at the limit");
            }
            return None;
        }
        match is_spare {
            true => open.spare += 1,
            false => open.all += 1,
        }
        if let Some(counted) = counted {
            open.by_peer.insert(counted, from_peer + 1);
        }
        drop(open);
        Some(Place {
            admission: self.clone(),
            counted,
            is_spare,
        })
    }

    /// Returns the maximum number of connections.
    #[must_use]
    pub fn most(&self) -> usize {
        self.limits.connections
    }

    /// Returns the number of open connections.
    #[must_use]
    pub fn open(&self) -> usize {
        let open = self.lock();
        open.all + open.spare
    }

    /// Returns the number of connections refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.lock().refused
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }
}

/// The place of an accepted connection.
#[derive(Debug)]
pub struct Place {
    admission: Admission,
    /// The network that the connection counts against besides the total.
    counted: Option<IpAddr>,
    is_spare: bool,
}

impl Place {
    /// Returns whether this is a spare place, reserved for probes and metrics.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.is_spare
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.admission.lock();
        match self.is_spare {
            true => open.spare -= 1,
            false => open.all -= 1,
        }
        let Some(counted) = self.counted else {
            return;
        };
        let left = open.by_peer.get(&counted).map_or(0, |count| count - 1);
        match left {
            0 => open.by_peer.remove(&counted),
            left => open.by_peer.insert(counted, left),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn each_peer_has_its_share_and_all_have_the_whole() {
        let limits = Limits {
            connections: 3,
            per_peer: Some(2),
            bound_by: "EA_MAX_CONNECTIONS",
        };
        let admission = Admission::new(limits, TrustedProxies::default());
        let (greedy, other) = (ip("10.0.0.1"), ip("10.0.0.2"));
        let first = admission.admit(greedy).expect("a place");
        let _second = admission.admit(ip("::ffff:10.0.0.1")).expect("a place");
        assert!(admission.admit(greedy).is_none(), "two of two");
        let third = admission.admit(other).expect("a place");
        assert!(admission.admit(greedy).is_none(), "whatever is spare");
        let spare: Vec<_> = (0..SPARE)
            .map_while(|_| admission.admit(ip("10.0.0.4")))
            .collect();
        assert_eq!(spare.len(), 2, "it has a share of the spare places, too");
        assert!(spare.iter().all(Place::is_spare), "three of three");
        drop(spare);
        drop(first);
        let place = admission.admit(ip("10.0.0.3"));
        assert!(place.is_some_and(|place| !place.is_spare()), "free again");
        drop(third);
        let open = admission.lock();
        assert_eq!(open.all, 1);
        assert_eq!(open.by_peer.len(), 1, "peers that left are forgotten");
        assert_eq!(open.refused, 3);
        assert_eq!(open.spare, 0);
    }

    #[tokio::test]
    async fn of_ipv6_a_network_is_one_peer_and_the_proxies_in_it_are_not_of_it() {
        let limits = Limits {
            connections: 10,
            per_peer: Some(2),
            bound_by: "EA_MAX_CONNECTIONS",
        };
        let proxies = "2001:db8::ffff".parse().expect("valid");
        let admission = Admission::new(limits, proxies);
        let open = |addresses: &[&str]| {
            let places = addresses.iter().map(|address| admission.admit(ip(address)));
            places.collect::<Vec<_>>()
        };
        let proxied = open(&["2001:db8::ffff"; 3]);
        assert_eq!(proxied.iter().flatten().count(), 3);
        let greedy = open(&["2001:db8::1", "2001:db8::2:0:0:1", "2001:db8::3"]);
        assert_eq!(greedy.iter().flatten().count(), 2, "of one /64");
        assert!(admission.admit(ip("2001:db8:0:1::1")).is_some(), "another");
        drop((proxied, greedy));
        let left = admission.lock();
        assert!(left.all == 0 && left.by_peer.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn without_a_share_one_peer_may_have_all() {
        let limits = Limits {
            connections: 2,
            per_peer: None,
            bound_by: "EA_MAX_CONNECTIONS",
        };
        let admission = Admission::new(limits, TrustedProxies::default());
        let places: Vec<_> = (0..20).map_while(|_| admission.admit(ip("::1"))).collect();
        assert_eq!(places.len(), 2 + SPARE);
        let spare = places.iter().filter(|place| place.is_spare());
        assert_eq!(spare.count(), SPARE);
    }

    #[tokio::test]
    async fn a_trusted_proxy_may_have_all_but_no_more() {
        let limits = Limits {
            connections: 3,
            per_peer: Some(1),
            bound_by: "EA_MAX_CONNECTIONS",
        };
        let proxies = "10.0.0.0/24".parse().expect("valid");
        let admission = Admission::new(limits, proxies);
        let proxy = ip("::ffff:10.0.0.7");
        let places: Vec<_> = (0..2).map(|_| admission.admit(proxy)).collect();
        assert_eq!(places.iter().flatten().count(), 2);
        let client = admission.admit(ip("10.0.1.7"));
        assert!(client.is_some_and(|place| !place.is_spare()));
        let _client = admission.admit(ip("10.0.1.7"));
        assert!(admission.admit(proxy).is_some_and(|place| place.is_spare()));
    }
}
