//! Many candidates at once.

use std::collections::HashMap;

use crate::harness::{Fixture, Store, on_every_store};

on_every_store! {
    of_many_candidates_exactly_one_is_elected,
    tokens_rise_over_re_elections,
}

async fn of_many_candidates_exactly_one_is_elected(store: Store) {
    const ELECTIONS: usize = 10;
    const CANDIDATES: usize = 200;
    // How long two thousand campaigns take at once is a question of the machine.
    let patient = [
        ("EA_REQUEST_TIMEOUT", "5m"),
        ("EA_REDIS_OPERATION_TIMEOUT", "1m"),
    ];
    let fixture = Fixture::with(store, &patient).await;
    let agent = &fixture.agent;
    let campaigns = (0..CANDIDATES * ELECTIONS).map(|n| {
        let (election, candidate) = (n % ELECTIONS, n / ELECTIONS);
        async move {
            let name = format!("c{candidate}");
            (
                election,
                agent.campaign(&format!("e{election}"), &name, 60_000).await,
                name,
            )
        }
    });
    let mut leaders: HashMap<usize, Vec<(String, u64)>> = HashMap::new();
    let results = futures_util::future::join_all(campaigns).await;
    for (election, result, name) in &results {
        if result.elected {
            assert_eq!(&result.leader, name);
            leaders
                .entry(*election)
                .or_default()
                .push((name.clone(), result.token));
        }
    }
    assert_eq!(leaders.len(), ELECTIONS, "every election is won");
    assert!(
        leaders.values().all(|leaders| leaders.len() == 1),
        "by one: {leaders:?}"
    );
    for (election, result, _) in &results {
        let (leader, token) = &leaders[election][0];
        assert_eq!(
            (&result.leader, result.token),
            (leader, *token),
            "all get the same reply"
        );
    }
}

async fn tokens_rise_over_re_elections(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let mut last = 0;
    for round in 0..20 {
        let names: Vec<_> = (0..10).map(|n| format!("r{round}c{n}")).collect();
        let campaigns = names.iter().map(|name| agent.campaign("e", name, 60_000));
        let results = futures_util::future::join_all(campaigns).await;
        let elected: Vec<_> = results.iter().filter(|result| result.elected).collect();
        assert_eq!(elected.len(), 1, "round {round}");
        assert!(
            elected[0].token > last,
            "round {round}: {} after {last}",
            elected[0].token
        );
        last = elected[0].token;
        assert!(agent.resign("e", &elected[0].leader, last).await.value);
    }
}
