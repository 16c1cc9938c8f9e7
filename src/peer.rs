//! The peer of a connection, and the client address that a trusted proxy forwards.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use http::HeaderMap;
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::tls::Chain;

/// The header in which proxies name the client: each proxy appends the address that it received the request
/// from.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The peer of a connection, stored in the extensions of every request. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    /// The peer's address. An IPv4 address stays one even on an IPv6 socket.
    pub address: IpAddr,
    /// The peer's certificate chain; `None` without TLS or without a certificate.
    pub certificates: Option<Arc<Chain>>,
    /// Cancelled when the connection is to end. Streams and requests that wait end then, so that the client opens
    /// another connection in time.
    pub ending: CancellationToken,
    /// Cancelled when the agent shuts down.
    pub shutdown: CancellationToken,
}

impl Peer {
    /// Creates a peer with this address and these certificates.
    #[must_use]
    pub fn new(address: IpAddr, certificates: Option<&[CertificateDer<'_>]>) -> Self {
        Self {
            address: address.to_canonical(),
            certificates: certificates.map(|chain| Arc::new(Chain::new(chain))),
            ending: CancellationToken::new(),
            shutdown: CancellationToken::new(),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = self.certificates.as_ref();
        f.debug_struct("Peer")
            .field("address", &self.address)
            .field(
                "certificates",
                &chain.map(|chain| chain.certificates().len()),
            )
            .finish()
    }
}

/// The network that counts as one peer: an IPv4 address, or the /64 network of an IPv6 address. A host can
/// use any number of addresses of its /64 network.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
    }
}

/// The proxies that are trusted to name client addresses (`EA_TRUSTED_PROXIES`). Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl FromStr for TrustedProxies {
    type Err = String;

    /// Parses addresses and networks, separated by commas. An empty text contains none.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(|entry| parse(entry.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn parse(entry: &str) -> Result<IpNet, String> {
    let parsed = match entry.split_once('/') {
        Some(_) => entry.parse::<IpNet>().ok(),
        None => entry.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let network = parsed.ok_or_else(|| {
        format!(
            "\"{entry}\" is neither an IP address nor a network: give addresses such as 10.0.0.1 or ::1, and \
             networks such as 10.0.0.0/8 or fd00::/8, separated by commas"
        )
    })?;
    let network = canonical(network);
    if network.addr() != network.network() {
        return Err(format!(
            "\"{entry}\" has an address with bits beyond its prefix: give {} for the network, or the address \
             alone",
            network.trunc()
        ));
    }
    Ok(network)
}

/// Converts an IPv4 network that is written as an IPv6 network to the IPv4 network.
fn canonical(network: IpNet) -> IpNet {
    if let IpNet::V6(six) = network
        && let Some(address) = six.addr().to_ipv4_mapped()
        && let Some(prefix) = six.prefix_len().checked_sub(96)
        && let Ok(four) = IpNet::new(address.into(), prefix)
    {
        return four;
    }
    network
}

impl TrustedProxies {
    /// Returns whether this is the address of a trusted proxy.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns whether all addresses of an address family are trusted.
    #[must_use]
    pub fn are_everybody(&self) -> bool {
        self.0.iter().any(|network| network.prefix_len() == 0)
    }

    /// Returns the client address of a request that came from `direct`.
    ///
    /// Each proxy appends the address that it received the request from to `x-forwarded-for`. This method
    /// reads the header from its end and continues while the address is trusted. The first address that is
    /// not trusted is the client. Entries that clients wrote themselves stand before that address and are not
    /// read. If the header ends or an entry is not an address, the last trusted address is the client.
    #[must_use]
    pub fn client_address(&self, direct: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = direct.to_canonical();
        if !self.contains(client) {
            return client;
        }
        for line in headers.get_all(FORWARDED_FOR).iter().rev() {
            // Splits bytes instead of text: bytes from the client must not make the entries of proxies
            // unreadable.
            for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
                let entry = str::from_utf8(entry).ok();
                let Some(address) = entry.and_then(|entry| forwarded(entry.trim())) else {
                    return client;
                };
                client = address;
                if !self.contains(client) {
                    return client;
                }
            }
        }
        client
    }
}

/// Parses an address of `x-forwarded-for`: `1.2.3.4`, `1.2.3.4:5`, `::1`, `[::1]` or `[::1]:5`.
fn forwarded(entry: &str) -> Option<IpAddr> {
    let address = entry.parse().ok();
    let address = address.or_else(|| {
        let entry = entry.parse::<std::net::SocketAddr>().ok()?;
        Some(entry.ip())
    });
    let address = address.or_else(|| {
        let inside = entry.strip_prefix('[')?.strip_suffix(']')?;
        Some(IpAddr::V6(inside.parse().ok()?))
    });
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn trusted(text: &str) -> TrustedProxies {
        text.parse().expect("valid")
    }

    #[test]
    fn addresses_and_networks_of_both_families_are_read() {
        let proxies = trusted("10.0.0.1, 192.168.0.0/16,fd00::/8 ,::1,::ffff:172.16.0.0/108");
        for inside in [
            "10.0.0.1",
            "::ffff:10.0.0.1",
            "192.168.7.8",
            "::ffff:192.168.255.255",
            "fd12::1",
            "::1",
            "172.16.0.1",
            "172.31.255.255",
        ] {
            assert!(proxies.contains(ip(inside)), "{inside}");
        }
        for outside in ["10.0.0.2", "192.169.0.1", "fe80::1", "::2", "172.32.0.1"] {
            assert!(!proxies.contains(ip(outside)), "{outside}");
        }
        assert!(!trusted("").contains(ip("127.0.0.1")));
        assert!(trusted("0.0.0.0/0").contains(ip("8.8.8.8")));
        assert!(trusted("10.0.0.1,::/0").are_everybody());
        assert!(!trusted("10.0.0.0/8,::1").are_everybody());
    }

    #[test]
    fn what_is_no_network_is_told() {
        for (text, expected) in [
            ("10.0.0.1,proxy.example", "\"proxy.example\""),
            ("10.0.0.1,", "\"\""),
            (" ", "\"\""),
            ("10.0.0.0/33", "\"10.0.0.0/33\""),
            ("10.0.0.0/", "\"10.0.0.0/\""),
            ("10.0.0.1:80", "\"10.0.0.1:80\""),
            ("[::1]", "\"[::1]\""),
            ("10.1.2.3/8", "give 10.0.0.0/8 for the network"),
            ("fd00::1/8", "give fd00::/8 for the network"),
        ] {
            let mistake = text.parse::<TrustedProxies>().expect_err(text);
            assert!(mistake.contains(expected), "{text}: {mistake}");
        }
    }

    /// Returns the client address when `direct` sends these header lines.
    fn client(direct: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            let line = HeaderValue::from_bytes(line.as_bytes()).expect("a value");
            headers.append(FORWARDED_FOR, line);
        }
        let proxies = trusted("10.0.0.0/8,fd00::/8");
        proxies.client_address(ip(direct), &headers).to_string()
    }

    #[test]
    fn only_proxies_are_asked_whose_request_it_is() {
        assert_eq!(client("1.1.1.1", &["2.2.2.2"]), "1.1.1.1");
        assert_eq!(client("::ffff:1.1.1.1", &["2.2.2.2"]), "1.1.1.1");
        assert_eq!(client("10.0.0.1", &["2.2.2.2"]), "2.2.2.2");
        assert_eq!(client("::ffff:10.0.0.1", &["2.2.2.2"]), "2.2.2.2");
        assert_eq!(client("fd00::1", &["2001:db8::1"]), "2001:db8::1");
    }

    #[test]
    fn the_first_address_from_the_end_that_is_not_trusted_is_the_client() {
        for (lines, expected) in [
            // Entries that the client wrote itself are ignored.
            (&["9.9.9.9, 2.2.2.2"][..], "2.2.2.2"),
            (&["10.9.9.9,2.2.2.2,10.0.0.2"], "2.2.2.2"),
            (&["9.9.9.9", "2.2.2.2, 10.0.0.3", "10.0.0.2"], "2.2.2.2"),
            (&["junk, 2.2.2.2"], "2.2.2.2"),
            (&["2.2.2.2, ::ffff:10.0.0.2"], "2.2.2.2"),
            (&["::ffff:2.2.2.2"], "2.2.2.2"),
            // All addresses are trusted: the outermost one is the client.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_search_with_the_last_trusted_one() {
        for line in [
            "",
            " ",
            "unknown",
            "_hidden",
            "2.2.2.2,",
            "2.2.2",
            "2.2.2.2:x",
            "[2.2.2.2]",
            "[::1",
            "::1]:5",
            "ä",
            "2.2.2.2:99999",
            "\"2.2.2.2\"",
            "2.2.2.2 3.3.3.3",
        ] {
            assert_eq!(client("10.0.0.1", &[line]), "10.0.0.1", "{line}");
            let behind = format!("{line}, 10.0.0.2");
            assert_eq!(client("10.0.0.1", &[&behind]), "10.0.0.2", "{behind}");
        }
    }

    #[test]
    fn entries_may_have_ports_and_brackets() {
        for (entry, address) in [
            ("2.2.2.2:5", "2.2.2.2"),
            ("[2001:db8::1]:5", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[::ffff:2.2.2.2]:5", "2.2.2.2"),
            (" 2.2.2.2\t", "2.2.2.2"),
        ] {
            assert_eq!(client("10.0.0.1", &[entry]), address, "{entry}");
        }
    }

    #[test]
    fn certificates_are_shared_and_not_printed() {
        let chain = [CertificateDer::from(vec![1, 2, 3])];
        let peer = Peer::new(ip("::ffff:1.2.3.4"), Some(&chain));
        assert_eq!(peer.address, ip("1.2.3.4"));
        let kept = peer.certificates.as_ref().map(|kept| kept.certificates());
        assert_eq!(kept, Some(&chain[..]));
        let printed = format!("{peer:?}");
        assert_eq!(printed, "Peer { address: 1.2.3.4, certificates: Some(1) }");
    }
}
