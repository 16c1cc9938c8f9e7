//! What every RPC and every route means, on every kind of store.

use election_proto::{
    CampaignRequest, GetElectionRequest, GetLeaderRequest, GetPodsRequest, ListKindsRequest,
    ListLeadersRequest, ResignRequest, State, VerifyTokenRequest,
    state::{Cause, Phase},
};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Agent, Fixture, Store, campaign, handover, on_every_store};

on_every_store! {
    a_vacant_election_goes_to_the_candidate_that_campaigns,
    another_candidate_is_told_the_leader,
    the_leaders_own_campaign_gets_a_new_token_and_fences_the_old,
    a_retry_with_the_same_request_id_gets_the_same_token,
    only_the_leader_extends_and_only_while_its_term_lasts,
    resigning_makes_the_election_vacant_at_once,
    the_leader_hands_over_in_one_step,
    a_forced_handover_must_be_allowed,
    states_positions_and_tokens_follow_the_leader,
    kinds_keep_elections_apart,
    leaders_are_listed_page_by_page,
    all_kinds_are_listed_page_by_page,
    rest_campaigns_reads_extends_and_resigns,
    rest_refuses_with_the_status_of_the_table,
    rest_hands_over,
    rest_lists,
    rest_reads_names_percent_encoded,
    health_follows_readiness,
}

async fn a_vacant_election_goes_to_the_candidate_that_campaigns(store: Store) {
    let fixture = Fixture::on(store).await;
    let request = CampaignRequest {
        value: "10.0.0.7:9000\nzone b".to_owned(),
        ..campaign("e", "a/1", 10_000)
    };
    let result = fixture
        .agent
        .try_campaign(request)
        .await
        .expect("an answer");
    assert!(result.elected);
    assert_eq!(
        (result.leader.as_str(), result.kind.as_str()),
        ("a/1", "default")
    );
    assert_eq!(result.value, "10.0.0.7:9000\nzone b");
    assert!((1..1 << 53).contains(&result.token), "{}", result.token);
    // 1 % of the term and 2 ms for drift, and what the agent took, are off.
    assert!(
        (9_000..=9_898).contains(&result.valid_for),
        "{}",
        result.valid_for
    );
    assert_eq!(fixture.agent.leader("e").await.expect("held"), "a/1");
}

async fn another_candidate_is_told_the_leader(store: Store) {
    let fixture = Fixture::on(store).await;
    let request = CampaignRequest {
        value: "here".to_owned(),
        ..campaign("e", "a", 10_000)
    };
    let won = fixture
        .agent
        .try_campaign(request)
        .await
        .expect("an answer");
    let lost = fixture.agent.campaign("e", "b", 10_000).await;
    assert!(!lost.elected);
    assert_eq!((lost.leader.as_str(), lost.value.as_str()), ("a", "here"));
    assert_eq!((lost.token, lost.valid_for), (won.token, 0));
}

async fn the_leaders_own_campaign_gets_a_new_token_and_fences_the_old(store: Store) {
    let fixture = Fixture::on(store).await;
    let first = fixture.agent.campaign("e", "a", 60_000).await;
    let second = fixture.agent.campaign("e", "a", 1_000).await;
    assert!(second.elected && second.token > first.token);
    // The first process was promised a minute: its name must not lose the election sooner.
    let leader = fixture.agent.get("/election/e").await;
    assert!(
        leader.body["remaining"].as_u64() > Some(50_000),
        "{leader:?}"
    );
    assert_eq!(leader.body["token"], second.token);
    let refused = fixture.agent.extend("e", "a", 10_000, first.token).await;
    assert_eq!(
        (refused.value, refused.reason.as_str()),
        (false, "STALE_TOKEN")
    );
    assert!(
        fixture
            .agent
            .extend("e", "a", 10_000, second.token)
            .await
            .value
    );
}

async fn a_retry_with_the_same_request_id_gets_the_same_token(store: Store) {
    let fixture = Fixture::on(store).await;
    let request = CampaignRequest {
        request_id: "attempt 1".to_owned(),
        value: "v".to_owned(),
        ..campaign("e", "a", 10_000)
    };
    let mut client = fixture.agent.grpc();
    let first = client
        .campaign(request.clone())
        .await
        .expect("an answer")
        .into_inner();
    let retry = client
        .campaign(request.clone())
        .await
        .expect("an answer")
        .into_inner();
    assert!(retry.elected);
    assert_eq!((retry.token, retry.value), (first.token, first.value));
    let other = CampaignRequest {
        request_id: "attempt 2".to_owned(),
        ..request.clone()
    };
    let other = client
        .campaign(other)
        .await
        .expect("an answer")
        .into_inner();
    assert!(other.token > first.token);
    // The grant of the first attempt is over, so that a late copy of its request does nothing.
    let late = client.campaign(request).await.expect_err("refused");
    assert_eq!(late.code(), Code::AlreadyExists, "{late}");
    assert!(late.message().contains("`request_id`"), "{late}");
    let extended = fixture.agent.extend("e", "a", 5_000, other.token).await;
    assert!(extended.value, "{extended:?}");
}

async fn only_the_leader_extends_and_only_while_its_term_lasts(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let reason = async |leader: &str, token| {
        let answer = agent.extend("e", leader, 5_000, token).await;
        assert_eq!((answer.value, answer.valid_for), (false, 0));
        answer.reason
    };
    assert_eq!(reason("a", 0).await, "NO_TERM");
    let won = agent.campaign("e", "a", 5_000).await;
    assert_eq!(reason("b", 0).await, "HELD_BY_OTHER");
    assert_eq!(reason("b", won.token).await, "HELD_BY_OTHER");
    assert_eq!(reason("a", won.token - 1).await, "STALE_TOKEN");
    assert_eq!(reason("a", won.token + 1).await, "STALE_TOKEN");
    for token in [0, won.token] {
        let extended = agent.extend("e", "a", 30_000, token).await;
        assert_eq!((extended.value, extended.reason.as_str()), (true, ""));
        // 1 % of the term and 2 ms for drift, and what the agent took, are off.
        assert!(
            (25_000..=29_698).contains(&extended.valid_for),
            "{extended:?}"
        );
    }
    let before = agent.get("/election/e").await;
    assert!(
        before.body["remaining"].as_u64() > Some(25_000),
        "{before:?}"
    );
    // An extension never shortens the term.
    assert!(agent.extend("e", "a", 1_000, won.token).await.value);
    let after = agent.get("/election/e").await;
    assert!(after.body["remaining"].as_u64() > Some(20_000), "{after:?}");
    assert_eq!(after.body["token"], won.token);
}

async fn resigning_makes_the_election_vacant_at_once(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    assert_eq!(agent.resign("e", "a", 0).await.reason, "NO_TERM");
    let won = agent.campaign("e", "a", 60_000).await;
    assert_eq!(agent.resign("e", "b", 0).await.reason, "HELD_BY_OTHER");
    assert_eq!(
        agent.resign("e", "a", won.token + 1).await.reason,
        "STALE_TOKEN"
    );
    assert_eq!(agent.leader("e").await.expect("still held"), "a");
    let resigned = agent.resign("e", "a", won.token).await;
    assert_eq!((resigned.value, resigned.valid_for), (true, 0));
    assert_eq!(
        agent.leader("e").await.expect_err("vacant").code(),
        Code::NotFound
    );
    let next = agent.campaign("e", "b", 60_000).await;
    assert!(next.elected && next.token > won.token);
}

async fn the_leader_hands_over_in_one_step(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let handover = async |leader: &str, current_leader: &str, token| {
        let request = handover("e", (current_leader, token), leader, 10_000);
        let answer = agent.try_handover(request).await.expect("an answer");
        let valid_for = match answer.value {
            true => 9_000..=9_898,
            false => 0..=0,
        };
        assert!(valid_for.contains(&answer.valid_for), "{answer:?}");
        (answer.value, answer.reason)
    };
    let refused = |reason: &str| (false, reason.to_owned());
    let done = (true, String::new());
    // Vacant: granted, unless the request names a leader.
    assert_eq!(handover("a", "nobody", 0).await, refused("NO_TERM"));
    assert_eq!(handover("a", "", 7).await, refused("NO_TERM"));
    assert_eq!(handover("a", "", 0).await, done);
    let token = agent.get("/election/e").await.body["token"]
        .as_u64()
        .expect("a token");
    assert_eq!(handover("b", "", 0).await, refused("HELD_BY_OTHER"));
    assert_eq!(handover("a", "", 0).await, refused("HELD_BY_OTHER"));
    assert_eq!(handover("b", "b", 0).await, refused("HELD_BY_OTHER"));
    assert_eq!(handover("b", "a", token - 1).await, refused("STALE_TOKEN"));
    assert_eq!(handover("b", "a", token + 1).await, refused("STALE_TOKEN"));
    assert_eq!(agent.leader("e").await.expect("held"), "a");
    assert_eq!(handover("b", "a", token).await, done);
    let after = agent.get("/election/e").await;
    assert_eq!(after.body["leader"], "b");
    assert!(after.body["token"].as_u64() > Some(token));
    assert_eq!(
        agent.extend("e", "a", 5_000, token).await.reason,
        "HELD_BY_OTHER"
    );
    assert_eq!(handover("c", "b", 0).await, done);
}

async fn a_forced_handover_must_be_allowed(store: Store) {
    let fixture = Fixture::with(store, &[("EA_ALLOW_FORCED_HANDOVER", "true")]).await;
    let won = fixture.agent.campaign("e", "a", 60_000).await;
    let request = handover("e", ("", 0), "b", 10_000);
    let answer = fixture
        .agent
        .try_handover(request)
        .await
        .expect("an answer");
    assert!(answer.value);
    let after = fixture.agent.get("/election/e").await;
    assert_eq!(after.body["leader"], "b");
    assert!(after.body["token"].as_u64() > Some(won.token));
}

async fn state(agent: &Agent, kind: &str, election: &str) -> State {
    let request = GetElectionRequest {
        election: election.to_owned(),
        kind: kind.to_owned(),
    };
    let answer = agent.grpc().get_election(request).await;
    answer.expect("an answer").into_inner()
}

async fn states_positions_and_tokens_follow_the_leader(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    tokio::join!(
        the_state_of_an_election_is_told_held_or_vacant(agent),
        the_position_of_a_state_is_its_entity_tag(agent),
        a_token_is_current_while_its_leader_leads(agent),
    );
}

async fn the_state_of_an_election_is_told_held_or_vacant(agent: &Agent) {
    let vacant = |token: u64, position: String| State {
        kind: "default".to_owned(),
        election: "state".to_owned(),
        phase: Phase::Vacant.into(),
        leader: None,
        token,
        cause: Cause::Present.into(),
        position,
        missed: false,
    };
    let never = state(agent, "", "state").await;
    assert!(!never.position.is_empty());
    assert_eq!(never, vacant(0, never.position.clone()));

    let request = CampaignRequest {
        value: "v".to_owned(),
        ..campaign("state", "a", 30_000)
    };
    let won = agent.grpc().campaign(request).await;
    let token = won.expect("an answer").into_inner().token;
    let held = state(agent, "default", "state").await;
    let leader = held.leader.clone().expect("held");
    assert_eq!(
        (leader.name.as_str(), leader.value.as_str(), leader.token),
        ("a", "v", token)
    );
    assert!((1..=30_000).contains(&leader.remaining), "{leader:?}");
    let expected = State {
        phase: Phase::Held.into(),
        leader: Some(leader),
        ..vacant(token, held.position.clone())
    };
    assert_eq!(held, expected);
    assert!(agent.extend("state", "a", 60_000, token).await.value);
    assert_eq!(state(agent, "", "state").await.position, held.position);

    // Over REST, with a document for the leader like that of the election itself.
    let leader = agent.get("/election/state").await.body;
    let mut told = agent.get("/election/default/state/state").await;
    told.body["leader"]["remaining"] = leader["remaining"].clone();
    assert_eq!(
        (told.status, told.body),
        (
            200,
            json!({"kind": "default", "election": "state", "phase": "HELD", "leader": leader, "token": token,
                "cause": "PRESENT", "position": held.position, "missed": false})
        )
    );

    assert!(agent.resign("state", "a", token).await.value);
    let after = state(agent, "", "state").await;
    assert_eq!(after, vacant(token, after.position.clone()));
    let told = agent.get("/election/default/state/state").await;
    assert_eq!(
        (told.status, told.body),
        (
            200,
            json!({"kind": "default", "election": "state", "phase": "VACANT", "token": token, "cause": "PRESENT",
                "position": after.position, "missed": false})
        )
    );
    let again = agent.campaign("state", "a", 30_000).await.token;
    let positions = [
        never.position,
        held.position,
        after.position,
        state(agent, "", "state").await.position,
    ];
    assert!(again > token);
    let distinct: std::collections::BTreeSet<_> = positions.iter().collect();
    assert_eq!(distinct.len(), 4, "{positions:?}");
}

async fn the_position_of_a_state_is_its_entity_tag(agent: &Agent) {
    let ask = async |path: &str, known: &str| {
        let request = agent.request(Method::GET, path);
        let answer = agent.send(request.header("if-none-match", known)).await;
        assert_eq!(answer.body == json!(""), answer.status == 304, "{answer:?}");
        (answer.status, answer.header("etag").to_owned())
    };
    for (status, held) in [(404, false), (200, true)] {
        if held {
            agent.campaign("tag", "a", 30_000).await;
        }
        let tag = format!("\"{}\"", state(agent, "", "tag").await.position);
        for (path, status) in [
            ("/election/tag", status),
            ("/election/default/tag", status),
            ("/election/default/tag/state", 200),
        ] {
            assert_eq!(agent.get(path).await.header("etag"), tag, "{path}");
            for (known, status) in [
                (tag.clone(), 304),
                (format!("W/{tag}"), 304),
                (format!("\"x\", {tag}"), 304),
                ("\"x\"".to_owned(), status),
                ("\"h1\"".to_owned(), status),
                (tag.trim_matches('"').to_owned(), status),
                (String::new(), status),
            ] {
                let expected = (status, tag.clone());
                assert_eq!(ask(path, &known).await, expected, "{path} {known}");
            }
        }
    }
}

async fn a_token_is_current_while_its_leader_leads(agent: &Agent) {
    let verify = async |token: u64| {
        let request = VerifyTokenRequest {
            election: "token".to_owned(),
            kind: String::new(),
            token,
        };
        let answer = agent.grpc().verify_token(request).await;
        let mut answer = answer.expect("an answer").into_inner();
        let found = answer.state.as_mut().expect("a state");
        // What differs from one reading of the clock to the next.
        if let Some(leader) = &mut found.leader {
            leader.remaining = 0;
        }
        let over_rest = agent
            .get(&format!("/election/default/token/tokens/{token}"))
            .await;
        assert_eq!(over_rest.status, 200, "{over_rest:?}");
        let body = &over_rest.body;
        assert_eq!(body["current"], answer.current, "{body}");
        assert_eq!(body["reason"], answer.reason, "{body}");
        assert_eq!(body["state"]["position"], found.position, "{body}");
        let valid_for = body["valid_for"].as_i64().expect("ms");
        for valid_for in [i64::from(answer.valid_for), valid_for] {
            let expected = match answer.current {
                // 1 % of what is left and 2 ms for drift, and what the agent took, are off.
                true => 1..=29_698,
                false => 0..=0,
            };
            assert!(expected.contains(&valid_for), "{valid_for}");
        }
        let mut expected = state(agent, "", "token").await;
        if let Some(leader) = &mut expected.leader {
            leader.remaining = 0;
        }
        assert_eq!(answer.state, Some(expected));
        answer.reason
    };
    assert_eq!(verify(1).await, "NOT_GRANTED");
    let first = agent.campaign("token", "a", 30_000).await.token;
    assert_eq!(verify(first).await, "");
    assert_eq!(verify(first - 1).await, "STALE_TOKEN");
    assert_eq!(verify(first + 1).await, "NOT_GRANTED");
    let second = agent.campaign("token", "a", 30_000).await.token;
    assert_eq!(verify(first).await, "STALE_TOKEN");
    assert_eq!(verify(second).await, "");
    assert!(agent.resign("token", "a", second).await.value);
    for (token, reason) in [
        (first, "NO_TERM"),
        (second, "NO_TERM"),
        (second + 1, "NOT_GRANTED"),
    ] {
        assert_eq!(verify(token).await, reason);
    }
}

async fn kinds_keep_elections_apart(store: Store) {
    let fixture = Fixture::on(store).await;
    let mut client = fixture.agent.grpc();
    for (kind, candidate) in [("", "a"), ("k", "b"), ("K", "c")] {
        let request = CampaignRequest {
            kind: kind.to_owned(),
            ..campaign("e", candidate, 10_000)
        };
        let result = client
            .campaign(request)
            .await
            .expect("an answer")
            .into_inner();
        assert!(result.elected, "{kind}");
    }
    for (kind, leader) in [("", "a"), ("default", "a"), ("k", "b"), ("K", "c")] {
        let request = GetLeaderRequest {
            election: "e".to_owned(),
            kind: kind.to_owned(),
        };
        let answer = client.get_leader(request).await.expect("held").into_inner();
        assert_eq!(answer.value, leader, "{kind}");
    }
}

async fn leaders_are_listed_page_by_page(store: Store) {
    let fixture = Fixture::on(store).await;
    let mut client = fixture.agent.grpc();
    let names: Vec<_> = (0..25).map(|n| format!("e{n:02}")).collect();
    for (kind, name) in names
        .iter()
        .map(|name| ("jobs", name))
        .chain([("job", &names[0])])
    {
        let request = CampaignRequest {
            kind: kind.to_owned(),
            value: format!("value of {name}"),
            ..campaign(name, "a", 30_000)
        };
        assert!(
            client
                .campaign(request)
                .await
                .expect("an answer")
                .into_inner()
                .elected
        );
    }
    let gone = ResignRequest {
        election: names[3].clone(),
        leader: "a".to_owned(),
        kind: "jobs".to_owned(),
        token: 0,
    };
    assert!(
        client
            .resign(gone)
            .await
            .expect("an answer")
            .into_inner()
            .value
    );

    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListLeadersRequest {
            kind: "jobs".to_owned(),
            page_size: 10,
            page_token,
            ..ListLeadersRequest::default()
        };
        let page = client
            .list_leaders(request)
            .await
            .expect("a page")
            .into_inner();
        assert!(page.leaders.len() <= 10);
        listed.extend(page.leaders);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let held: Vec<_> = names.iter().filter(|name| **name != names[3]).collect();
    assert_eq!(
        listed
            .iter()
            .map(|leader| &leader.election)
            .collect::<Vec<_>>(),
        held
    );
    for leader in listed {
        assert_eq!((leader.name.as_str(), leader.kind.as_str()), ("a", "jobs"));
        assert_eq!(leader.value, format!("value of {}", leader.election));
        assert!((1..=30_000).contains(&leader.remaining), "{leader:?}");
        assert!(
            leader.token > 0 && leader.elected_at > 1_577_836_800_000,
            "{leader:?}"
        );
    }
    let none = ListLeadersRequest {
        kind: "none".to_owned(),
        ..ListLeadersRequest::default()
    };
    assert_eq!(
        client
            .list_leaders(none)
            .await
            .expect("a page")
            .into_inner()
            .leaders,
        []
    );
}

/// Kinds whose order is not that of their names: "a!/" comes before "a/".
const KINDS: [&str; 5] = ["a!", "a", "a0", "b", "zz"];

/// Two elections of each of [`KINDS`], of which the last kind's are given up.
async fn of_several_kinds(agent: &Agent) {
    for kind in KINDS {
        for name in ["x", "y"] {
            let request = CampaignRequest {
                kind: kind.to_owned(),
                ..campaign(name, "a", 60_000)
            };
            let won = agent.grpc().campaign(request).await.expect("an answer");
            let token = won.into_inner().token;
            if kind == "zz" {
                let request = ResignRequest {
                    election: name.to_owned(),
                    leader: "a".to_owned(),
                    kind: kind.to_owned(),
                    token,
                };
                let gone = agent.grpc().resign(request).await.expect("an answer");
                assert!(gone.into_inner().value);
            }
        }
    }
}

/// All items of a listing over REST, and the tokens of its pages.
async fn pages(agent: &Agent, path: &str, items: &str) -> (Vec<Value>, Vec<String>) {
    let (mut all, mut tokens, mut token) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = agent.get(&format!("{path}&page_token={token}")).await;
        assert_eq!(
            (page.status, &page.body["incomplete"]),
            (200, &json!(false))
        );
        all.extend(page.body[items].as_array().expect("a list").clone());
        token = page.text("next_page_token").to_owned();
        if token.is_empty() {
            return (all, tokens);
        }
        tokens.push(token.clone());
        assert!(tokens.len() < 20, "a listing does not end: {all:?}");
    }
}

async fn all_kinds_are_listed_page_by_page(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let none = agent.get("/kinds").await;
    assert_eq!(
        (none.status, none.body),
        (
            200,
            json!({"kinds": [], "next_page_token": "", "incomplete": false})
        )
    );
    of_several_kinds(agent).await;
    tokio::join!(
        elections_of_all_kinds_are_listed(agent),
        kinds_are_listed(agent)
    );
}

async fn elections_of_all_kinds_are_listed(agent: &Agent) {
    let (listed, tokens) = pages(agent, "/elections?all_kinds=true&page_size=3", "leaders").await;
    let listed: Vec<_> = listed
        .iter()
        .map(|leader| (leader["kind"].as_str(), leader["election"].as_str()))
        .collect();
    let held = KINDS[..4]
        .iter()
        .flat_map(|kind| [(*kind, "x"), (*kind, "y")]);
    let held: Vec<_> = held.map(|(kind, name)| (Some(kind), Some(name))).collect();
    assert_eq!(listed, held);

    let request = ListLeadersRequest {
        all_kinds: true,
        ..ListLeadersRequest::default()
    };
    let page = agent.grpc().list_leaders(request).await.expect("a page");
    let page = page.into_inner();
    let kinds: Vec<_> = page
        .leaders
        .iter()
        .map(|leader| leader.kind.as_str())
        .collect();
    assert_eq!(kinds, ["a!", "a!", "a", "a", "a0", "a0", "b", "b"]);

    // A token of one listing is none of another.
    let of_a_kind = agent.get("/elections?kind=a&page_size=1").await;
    let of_a_kind = of_a_kind.text("next_page_token");
    let of_kinds = agent.get("/kinds?page_size=1").await;
    let of_kinds = of_kinds.text("next_page_token");
    for (path, token) in [
        ("/elections?all_kinds=true", of_a_kind),
        ("/elections?all_kinds=true", of_kinds),
        ("/elections?kind=a", &*tokens[0]),
        ("/elections?kind=b", of_a_kind),
        ("/elections?kind=a", of_kinds),
        ("/kinds?page_size=1", of_a_kind),
        ("/kinds?page_size=1", &*tokens[0]),
    ] {
        assert!(!token.is_empty());
        let refused = agent.get(&format!("{path}&page_token={token}")).await;
        assert_eq!(refused.status, 400, "{path}: {refused:?}");
        let told = refused.text("message");
        assert!(told.contains("`page_token`"), "{path}: {told}");
    }
}

async fn kinds_are_listed(agent: &Agent) {
    for size in 1..=5 {
        let path = format!("/kinds?page_size={size}");
        let (listed, tokens) = pages(agent, &path, "kinds").await;
        assert_eq!(listed, KINDS[..4], "{size}");
        assert_eq!(tokens.len(), 4 / size, "{size}: {tokens:?}");
    }
    let page = agent.grpc().list_kinds(ListKindsRequest::default()).await;
    let page = page.expect("a page").into_inner();
    assert_eq!(
        (page.kinds, page.incomplete),
        (
            KINDS[..4].iter().map(|kind| (*kind).to_owned()).collect(),
            false
        )
    );
}

#[tokio::test]
async fn pods_are_disabled() {
    let fixture = Fixture::on(Store::Memory).await;
    let refused = fixture
        .agent
        .grpc()
        .get_pods(GetPodsRequest::default())
        .await;
    assert_eq!(refused.expect_err("disabled").code(), Code::Unimplemented);
    for path in [
        "/kube/default/web/pods",
        "/kube/default/pods/web-1/siblings",
    ] {
        let refused = fixture.agent.get(path).await;
        assert_eq!((refused.status, refused.text("code")), (501, "Disabled"));
    }
}

async fn rest_campaigns_reads_extends_and_resigns(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    for path in ["/election/e", "/election/k/e"] {
        let kind = if path == "/election/e" {
            "default"
        } else {
            "k"
        };
        let won = agent
            .rest(
                Method::POST,
                path,
                Some(json!({"candidate": "a", "term": 10_000, "value": "v", "request_id": "r"})),
            )
            .await;
        assert_eq!(
            (won.status, won.header("content-type")),
            (200, "application/json")
        );
        assert!((9_000..=9_898).contains(&won.body["valid_for"].as_u64().expect("ms")));
        let token = won.body["token"].clone();
        let lost = agent.campaign_over_rest(path, "b", 10_000).await;
        assert_eq!(
            lost.body,
            json!({"elected": false, "leader": "a", "kind": kind, "token": token, "valid_for": 0,
                "value": "v"})
        );

        let leader = agent.get(path).await;
        assert_eq!(leader.status, 200);
        let mut body = leader.body;
        assert!(body["remaining"].as_u64() <= Some(10_000));
        assert!(body["elected_at"].as_u64() > Some(1_577_836_800_000));
        body["remaining"] = Value::Null;
        body["elected_at"] = Value::Null;
        assert_eq!(
            body,
            json!({"leader": "a", "kind": kind, "election": "e", "token": token,
                "remaining": null, "value": "v", "elected_at": null})
        );

        let extend = json!({"leader": "a", "term": 20_000, "retries": 2, "retry_interval": 10,
            "token": token});
        let mut extended = agent.rest(Method::PATCH, path, Some(extend)).await;
        let valid_for = extended.body["valid_for"].take().as_u64().expect("ms");
        assert!((15_000..=19_798).contains(&valid_for), "{valid_for}");
        assert_eq!(
            (extended.status, extended.body),
            (200, json!({"value": true, "valid_for": null}))
        );
        let resigned = agent
            .rest(Method::DELETE, path, Some(json!({"leader": "a"})))
            .await;
        assert_eq!(
            (resigned.status, resigned.body),
            (200, json!({"value": true, "valid_for": 0}))
        );
        let vacant = agent.get(path).await;
        assert_eq!((vacant.status, vacant.text("code")), (404, "NotFound"));

        agent.campaign_over_rest(path, "a", 10_000).await;
        let token = agent.get(path).await.body["token"].clone();
        let by_query = format!("{path}?leader=a&token={token}");
        assert_eq!(
            agent.rest(Method::DELETE, &by_query, None).await.status,
            200
        );
    }
}

async fn rest_refuses_with_the_status_of_the_table(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let check = async |method: Method, body: Value, status: u16, code: &str, reason: &str| {
        let told = format!("{method} {body}");
        let refused = agent.rest(method, "/election/e", Some(body)).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (status, code),
            "{told}"
        );
        assert_eq!(refused.text("reason"), reason, "{told}");
        assert_eq!(
            refused.header("content-type"),
            "application/problem+json",
            "{told}"
        );
        assert_eq!(refused.text("message"), refused.text("detail"), "{told}");
        assert_eq!(refused.body["status"], status, "{told}");
    };
    let extend = |leader: &str, token: u64| json!({"leader": leader, "term": 5000, "token": token});
    let resign = |leader: &str, token: u64| json!({"leader": leader, "token": token});
    check(Method::PATCH, extend("a", 0), 404, "NotFound", "NO_TERM").await;
    check(Method::DELETE, resign("a", 0), 404, "NotFound", "NO_TERM").await;
    let token = agent.campaign("e", "a", 30_000).await.token;
    check(
        Method::PATCH,
        extend("b", 0),
        409,
        "Conflict",
        "HELD_BY_OTHER",
    )
    .await;
    check(
        Method::PATCH,
        extend("a", token + 1),
        409,
        "Conflict",
        "STALE_TOKEN",
    )
    .await;
    check(
        Method::DELETE,
        resign("b", 0),
        409,
        "Conflict",
        "HELD_BY_OTHER",
    )
    .await;
    check(
        Method::DELETE,
        resign("a", token + 1),
        409,
        "Conflict",
        "STALE_TOKEN",
    )
    .await;
    let handover = json!({"leader": "b", "term": 5000});
    check(Method::PUT, handover, 409, "Conflict", "HELD_BY_OTHER").await;
    let handover = json!({"leader": "b", "term": 5000, "current_leader": "a", "token": token + 1});
    check(Method::PUT, handover, 409, "Conflict", "STALE_TOKEN").await;
    assert_eq!(agent.leader("e").await.expect("held"), "a");
}

async fn rest_hands_over(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let token = agent.campaign("e", "a", 30_000).await.token;
    let handover = json!({"leader": "b", "term": 5000, "current_leader": "a", "token": token});
    let mut done = agent.rest(Method::PUT, "/election/e", Some(handover)).await;
    let valid_for = done.body["valid_for"].take().as_u64().expect("ms");
    assert!((4_000..=4_948).contains(&valid_for), "{valid_for}");
    assert_eq!(
        (done.status, done.body),
        (200, json!({"value": true, "valid_for": null}))
    );
    assert_eq!(agent.leader("e").await.expect("held"), "b");
}

async fn rest_lists(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    for name in ["x", "y", "z"] {
        agent.campaign(name, "a", 30_000).await;
    }
    let first = agent.get("/elections?page_size=2").await;
    let elections = |answer: &Value| -> Vec<String> {
        let leaders = answer["leaders"].as_array().expect("a list");
        leaders
            .iter()
            .map(|leader| leader["election"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(elections(&first.body), ["x", "y"]);
    assert_eq!(first.body["leaders"][0]["leader"], "a");
    let next = first.text("next_page_token");
    let second = agent
        .get(&format!("/elections?kind=default&page_token={next}"))
        .await;
    assert_eq!(elections(&second.body), ["z"]);
    assert_eq!(second.text("next_page_token"), "");
}

async fn rest_reads_names_percent_encoded(store: Store) {
    let fixture = Fixture::on(store).await;
    let agent = &fixture.agent;
    let body = json!({"candidate": "ä b", "term": 5000});
    let path = "/election/k%C3%B6ln%20%25/caf%C3%A9%3F%7B0%7D";
    assert_eq!(agent.rest(Method::POST, path, Some(body)).await.status, 200);
    let request = GetLeaderRequest {
        election: "café?{0}".to_owned(),
        kind: "köln %".to_owned(),
    };
    let leader = agent
        .grpc()
        .get_leader(request)
        .await
        .expect("held")
        .into_inner();
    assert_eq!(leader.value, "ä b");
    let query = format!("{path}?leader=%C3%A4+b");
    assert_eq!(agent.rest(Method::DELETE, &query, None).await.status, 200);
}

async fn health_follows_readiness(store: Store) {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let fixture = Fixture::on(store).await;
    let mut health = HealthClient::new(fixture.agent.channel());
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in [
        "",
        "liveness",
        "readiness",
        "grpc.election_agent.v1.Election",
        "grpc.election_agent.v1.Leadership",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        let answer = health
            .check(check(service))
            .await
            .expect(service)
            .into_inner();
        assert_eq!(answer.status().as_str_name(), "SERVING", "{service}");
    }
    let unknown = health.check(check("nope")).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(fixture.agent.get("/livez").await.status, 200);
    let ready = fixture.agent.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["ready"]), (200, &json!(true)));
}
