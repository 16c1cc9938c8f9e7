//! Measures one call on loopback, through every layer: the latency that a client observes.

#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot go on should say where"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use election_agent::{
    app::App,
    config::{Config, Values},
    shutdown::Stop,
};
use election_proto::{
    CampaignRequest, ExtendElectedTermRequest, GetLeaderRequest, election_client::ElectionClient,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Starts an agent in this process that keeps leases in memory, and connects to it.
fn agent(runtime: &Runtime) -> Channel {
    let settings = [
        ("EA_BIND_ADDRESS", "127.0.0.1"),
        ("EA_GRPC_PORT", "0"),
        ("EA_HTTP_PORT", "0"),
        ("EA_STORE", "memory"),
        ("EA_GRPC_MAX_CONNECTION_AGE", "0s"),
    ];
    let settings = settings.map(|(name, value)| (name.into(), value.into()));
    let values = Values::collect(Vec::new(), None, settings).expect("settings");
    let config = Config::new(values).expect("a configuration");
    runtime.block_on(async {
        let app = App::start(&config, None, Stop::default()).await;
        let app = app.expect("starts");
        let address = app.addresses()[0];
        tokio::spawn(app.run());
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URL");
        endpoint
            .tcp_nodelay(true)
            .connect()
            .await
            .expect("connects")
    })
}

fn calls(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let channel = agent(&runtime);
    let campaign = |candidate: &str| CampaignRequest {
        election: "e".to_owned(),
        candidate: candidate.to_owned(),
        term: 60_000,
        ..CampaignRequest::default()
    };
    let client = ElectionClient::new(channel.clone());
    let won = runtime
        .block_on(client.clone().campaign(campaign("a")))
        .expect("an answer");
    assert!(won.into_inner().elected);
    let extend = ExtendElectedTermRequest {
        election: "e".to_owned(),
        leader: "a".to_owned(),
        term: 60_000,
        ..ExtendElectedTermRequest::default()
    };
    let leader = GetLeaderRequest {
        election: "e".to_owned(),
        kind: String::new(),
    };

    let mut group = criterion.benchmark_group("one call on loopback");
    group.bench_function("health check", |bencher| {
        let health = HealthClient::new(channel.clone());
        bencher.to_async(&runtime).iter(|| async {
            health
                .clone()
                .check(HealthCheckRequest::default())
                .await
                .expect("an answer")
        });
    });
    group.bench_function("extend", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            client
                .clone()
                .extend_elected_term(extend.clone())
                .await
                .expect("an answer")
        });
    });
    group.bench_function("losing campaign", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            client
                .clone()
                .campaign(campaign("b"))
                .await
                .expect("an answer")
        });
    });
    group.bench_function("leader", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            client
                .clone()
                .get_leader(leader.clone())
                .await
                .expect("an answer")
        });
    });
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
