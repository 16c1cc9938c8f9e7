//! Where pods may connect to, and how their metrics are scraped.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{items, name, of_kind, renders, settings};

/// Networks that are not on the internet: private (RFC 1918, RFC 4193) and link-local.
const PRIVATE: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
    "169.254.0.0/16",
];

/// The networks that a rule lets pods send to.
fn networks(rule: &Value) -> impl Iterator<Item = IpNet> {
    items(&rule["to"]).filter_map(|peer| {
        let network = peer["ipBlock"]["cidr"].as_str()?;
        Some(network.parse().expect("a network"))
    })
}

#[test]
fn no_policy_lets_pods_send_to_the_internet() {
    let private = PRIVATE.map(|network| network.parse::<IpNet>().expect("a network"));
    for (what, objects) in renders() {
        for policy in of_kind(objects, "NetworkPolicy") {
            for rule in items(&policy["spec"]["egress"]) {
                let what = format!("{what}: {}", name(policy));
                assert!(
                    items(&rule["to"]).next().is_some(),
                    "{what}: a rule without peers lets through to all"
                );
                assert!(items(&rule["ports"]).next().is_some(), "{what}: all ports");
                for network in networks(rule) {
                    let inside = private.iter().any(|private| private.contains(&network));
                    assert!(inside, "{what}: {network}");
                }
            }
        }
    }
}

#[test]
fn agents_that_ask_the_api_server_may_reach_it_in_private_networks() {
    for (what, objects) in renders() {
        let deployment = of_kind(objects, "Deployment").next().expect("one");
        let asks = &deployment["spec"]["template"]["spec"]["automountServiceAccountToken"];
        let rules = of_kind(objects, "NetworkPolicy")
            .flat_map(|policy| items(&policy["spec"]["egress"]))
            .filter(|rule| {
                ["10.96.0.1", "172.18.0.2", "192.168.49.2", "fd00:10:96::1"]
                    .iter()
                    .all(|server| {
                        let server = server.parse::<std::net::IpAddr>().expect("an address");
                        networks(rule).any(|network| network.contains(&server))
                    })
            });
        let ports: Vec<_> = rules
            .flat_map(|rule| items(&rule["ports"]))
            .map(|port| &port["port"])
            .collect();
        let reaches = [443, 6443].iter().all(|port| ports.contains(&&json!(port)));
        assert_eq!(*asks, reaches, "{what}: {ports:?}");
    }
}

#[test]
fn metrics_are_scraped_by_the_protocol_that_the_agent_speaks() {
    let mut seen = Vec::new();
    for (what, objects) in renders() {
        for monitor in of_kind(objects, "ServiceMonitor") {
            let tls = settings::given(objects).contains_key("EA_TLS_CERT_FILE");
            let endpoint = &monitor["spec"]["endpoints"][0];
            let (scheme, config) = (endpoint["scheme"].as_str(), &endpoint["tlsConfig"]);
            if tls {
                assert_eq!(scheme, Some("https"), "{what}");
                let volumes = of_kind(objects, "Deployment")
                    .flat_map(|own| items(&own["spec"]["template"]["spec"]["volumes"]));
                let mut secrets = volumes.map(|volume| &volume["secret"]["secretName"]);
                let authority = &config["ca"]["secret"]["name"];
                assert!(secrets.any(|secret| secret == authority), "{what}");
                let service = of_kind(objects, "Service").find(|own| name(own) == "election-agent");
                let service = service.expect("one");
                let namespace = service["metadata"]["namespace"].as_str().expect("a name");
                let expected = format!("{}.{namespace}.svc", name(service));
                assert_eq!(config["serverName"], expected, "{what}");
            } else {
                // The Operator refuses a monitor whose Secret does not exist.
                assert!(matches!(scheme, None | Some("http")), "{what}: {scheme:?}");
                assert!(config.is_null(), "{what}: {config}");
            }
            seen.push(tls);
        }
    }
    assert!(seen.contains(&true) && seen.contains(&false));
}
