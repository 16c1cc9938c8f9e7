//! Rate limits over the wire: which requests count together, and the replies to callers over the limit.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::HeaderMap;
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::harness::{Agent, Ask, Protocol, eventually, new_token};

/// How many requests pass at once.
const BURST: usize = 8;

/// An agent that lets each caller send one request a second, after as many as these.
async fn agent(burst: usize, settings: &[(&str, &str)]) -> Agent {
    let burst = burst.to_string();
    let limits = [
        ("EA_RATE_LIMIT_PER_SECOND", "1"),
        ("EA_RATE_LIMIT_BURST", &*burst),
    ];
    Agent::start(&[&limits, settings].concat()).await
}

/// How many of these pass when they are sent at once, and how many can of one caller's: meanwhile more become due.
async fn passed(agent: &Agent, asks: Vec<Ask>) -> (usize, usize) {
    let asked = Instant::now();
    let told = join_all(asks.into_iter().map(|ask| ask.told(agent.address()))).await;
    let seconds = usize::try_from(asked.elapsed().as_secs()).expect("not long");
    let limited = told
        .iter()
        .filter(|(code, _)| *code == Code::ResourceExhausted);
    let limited = limited.count();
    (told.len() - limited, BURST + seconds + 1)
}

/// More often than one caller may, in each protocol, each over its own connection.
fn often(ask: impl Fn(Protocol) -> Ask) -> Vec<Ask> {
    let protocols = Protocol::ALL.iter().cycle().take(6 * BURST);
    protocols.map(|protocol| ask(*protocol)).collect()
}

/// As many as may pass at once.
fn a_burst(ask: impl Fn(Protocol) -> Ask) -> Vec<Ask> {
    let protocols = Protocol::ALL.iter().cycle().take(BURST);
    protocols.map(|protocol| ask(*protocol)).collect()
}

/// Asserts that one caller's requests share a count, and the other's have one of their own.
async fn apart(agent: &Agent, one: impl Fn(Protocol) -> Ask, other: impl Fn(Protocol) -> Ask) {
    let (passing, most) = passed(agent, often(one)).await;
    assert!((BURST..=most).contains(&passing), "{passing} of {most}");
    let (passing, _) = passed(agent, a_burst(other)).await;
    assert_eq!(passing, BURST, "of the other's");
}

#[tokio::test(flavor = "multi_thread")]
async fn identities_are_counted_over_all_connections_and_protocols_and_apart() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tokens");
    let [(one, one_line), (other, other_line)] = ["one", "other"].map(|name| new_token(&[name]));
    fs::write(&file, format!("{one_line}\n{other_line}\n")).expect("written");
    let settings = [
        ("EA_AUTH_MODES", "none,token"),
        ("EA_AUTH_TOKEN_FILE", &*file.display().to_string()),
    ];
    let agent = agent(BURST, &settings).await;
    let by = |token: &str| {
        let bearer = format!("Bearer {token}");
        move |protocol| Ask::new(protocol).with("authorization", &bearer)
    };
    apart(&agent, by(&one), by(&other)).await;
    // Nor do they count for anonymous callers.
    let (passing, _) = passed(&agent, a_burst(Ask::new)).await;
    assert_eq!(passing, BURST);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_prove_nothing_are_counted_by_their_addresses() {
    let agent = agent(BURST, &[]).await;
    let from = |address: &str| {
        let address: IpAddr = address.parse().expect("an address");
        move |protocol| Ask::new(protocol).from(address)
    };
    apart(&agent, from("127.0.0.2"), from("127.0.0.3")).await;
}

/// The client that a proxy names.
fn on_behalf_of(client: &str) -> impl Fn(Protocol) -> Ask {
    move |protocol| Ask::new(protocol).with("x-forwarded-for", client)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_trusted_proxy_are_counted_apart() {
    let agent = agent(BURST, &[("EA_TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let [one, other] = ["203.0.113.1", "203.0.113.2"].map(on_behalf_of);
    apart(&agent, one, other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_peer_cannot_send_requests_in_others_names() {
    let agent = agent(BURST, &[("EA_TRUSTED_PROXIES", "127.0.0.2")]).await;
    let clients = (0..6 * BURST).map(|n| format!("203.0.113.{n}"));
    let asks = clients.map(|client| on_behalf_of(&client)(Protocol::Rest));
    let (passing, most) = passed(&agent, asks.collect()).await;
    assert!((BURST..=most).contains(&passing), "{passing} of {most}");
}

/// Sends requests until one is refused: the refusal, and since when its time counts.
async fn refused(agent: &Agent, protocol: Protocol) -> (HeaderMap, Instant) {
    let headers = eventually("refused", async || {
        // One by one: the refusal is the agent's last reply.
        let (code, headers) = Ask::new(protocol).told(agent.address()).await;
        (code == Code::ResourceExhausted).then_some(headers)
    })
    .await;
    (headers, Instant::now())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_its_limit_learns_when_to_retry_and_passes_then() {
    let agent = agent(1, &[]).await;
    for protocol in Protocol::ALL {
        let (headers, told) = refused(&agent, protocol).await;
        let (header, unit) = match protocol {
            Protocol::Rest => ("retry-after", Duration::from_secs(1)),
            Protocol::Grpc | Protocol::GrpcWeb => {
                ("grpc-retry-pushback-ms", Duration::from_millis(1))
            }
        };
        let wait = headers[header].to_str().expect("text").parse();
        let wait = unit * wait.expect("a number");
        assert!(
            (Duration::from_millis(1)..=Duration::from_secs(1)).contains(&wait),
            "{header}: {wait:?}"
        );
        eventually("a request passes", async || {
            let waited = told.elapsed() >= wait;
            let (code, headers) = Ask::new(protocol).told(agent.address()).await;
            assert!(!waited || code == Code::Ok, "after {wait:?}: {headers:?}");
            (code == Code::Ok).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_pass_a_caller_over_its_limit() {
    let agent = agent(1, &[]).await;
    refused(&agent, Protocol::Rest).await;
    for _ in 0..20 {
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(agent.get(path).await.status, 200, "{path}");
        }
        let health = HealthClient::new(agent.channel())
            .check(HealthCheckRequest::default())
            .await;
        health.expect("healthy");
    }
    // They did not count either, nor is the limit gone.
    refused(&agent, Protocol::Rest).await;
    let metrics = agent.get("/metrics").await;
    let metrics = metrics.body.as_str().expect("text");
    for counted in [
        "action=\"campaign\",status=\"resource_exhausted\"",
        "election_agent_requests_refused_total{reason=\"overloaded\"} 0",
    ] {
        assert!(metrics.contains(counted), "{counted}: {metrics}");
    }
    let limited = "election_agent_requests_refused_total{reason=\"rate_limited\"} 0";
    assert!(!metrics.contains(limited), "{metrics}");
}
