//! The plain calls.

use std::time::Duration;

use election_agent_client::{
    Agent, Campaign, Code, Deadline, Error, Handover, Lost, NotCurrent, OfKind, PodsOf,
};
use tempfile::TempDir;
use test_agent::Agent as Server;

use crate::support::{SECOND, client, soon};

#[tokio::test]
async fn an_election_by_hand() {
    let server = Server::start();
    let agent = client(server.address());
    let campaign = Campaign::new("nightly", "a", 10 * SECOND)
        .kind("batch")
        .value("here")
        .request_id("one");
    let before = Deadline::now();
    let won = agent.campaign(campaign.clone()).await.expect("an answer");
    assert!(won.elected && !won.provisional);
    assert_eq!((won.leader.as_str(), won.value.as_str()), ("a", "here"));
    let valid_until = won.valid_until.expect("elected");
    assert!(
        valid_until > before.plus(9 * SECOND) && valid_until < Deadline::now().plus(10 * SECOND)
    );
    // The same attempt, the same grant.
    assert_eq!(
        agent.campaign(campaign).await.expect("an answer").token,
        won.token
    );

    let lost = agent
        .campaign(Campaign::new("nightly", "b", 10 * SECOND).kind("batch"))
        .await
        .expect("an answer");
    assert!(!lost.elected && lost.valid_until.is_none());
    assert_eq!((lost.leader.as_str(), lost.token), ("a", won.token));

    let extended = agent
        .extend("nightly", "batch", "a", won.token, 20 * SECOND)
        .await
        .expect("leads");
    assert!(extended > valid_until);
    let stale = agent
        .extend("nightly", "batch", "a", won.token - 1, 20 * SECOND)
        .await;
    assert_eq!(stale, Err(Error::Lost(Lost::StaleToken)));
    let other = agent
        .extend("nightly", "batch", "b", won.token, 20 * SECOND)
        .await;
    assert_eq!(other, Err(Error::Lost(Lost::HeldByOther)));

    let handover = Handover::new("nightly", "c", 10 * SECOND).kind("batch");
    let unasked = agent.handover(handover.clone()).await;
    assert!(matches!(unasked, Err(Error::Lost(_))), "{unasked:?}");
    let until = agent
        .handover(handover.from("a").token(won.token))
        .await
        .expect("leads");
    assert!(!until.has_passed());
    let state = agent.state("nightly", "batch").await.expect("a state");
    let leader = state.leader.expect("held");
    assert_eq!((leader.name.as_str(), leader.token), ("c", state.token));
    assert_eq!(
        agent.resign("nightly", "batch", "a", won.token).await,
        Err(Error::Lost(Lost::HeldByOther))
    );
    assert_eq!(
        agent.resign("nightly", "batch", "c", state.token).await,
        Ok(())
    );
    assert_eq!(
        agent.resign("nightly", "batch", "c", state.token).await,
        Err(Error::Lost(Lost::NoTerm))
    );
}

#[tokio::test]
async fn tokens_are_verified() {
    let server = Server::start();
    let agent = client(server.address());
    let leadership = agent.lead("nightly").start().await.expect("elected");
    let token = leadership.term().token();
    let current = agent
        .verify("nightly", "default", token)
        .await
        .expect("an answer");
    assert!(current.current && current.reason.is_none());
    assert!(current.valid_until.expect("current") > Deadline::now().plus(5 * SECOND));
    assert_eq!(current.state.expect("a state").token, token);
    for (token, reason) in [
        (token - 1, NotCurrent::StaleToken),
        (token + 1, NotCurrent::NotGranted),
    ] {
        let verified = agent
            .verify("nightly", "default", token)
            .await
            .expect("an answer");
        assert_eq!(
            (verified.current, verified.reason, verified.valid_until),
            (false, Some(reason), None)
        );
    }
    leadership.resign().await.expect("resigned");
    let former = agent
        .verify("nightly", "default", token)
        .await
        .expect("an answer");
    assert_eq!(former.reason, Some(NotCurrent::NoTerm));
    let none = agent
        .verify("nightly", "default", 0)
        .await
        .expect_err("no token");
    assert!(
        matches!(
            none,
            Error::Refused {
                code: Code::InvalidArgument,
                ..
            }
        ),
        "{none:?}"
    );
}

#[tokio::test]
async fn leaders_and_kinds_are_listed() {
    let server = Server::start();
    let agent = client(server.address());
    let mut held = Vec::new();
    for (kind, election) in [("batch", "a"), ("batch", "b"), ("web", "c")] {
        held.push(
            agent
                .lead(election)
                .kind(kind)
                .candidate("me")
                .start()
                .await
                .expect("elected"),
        );
    }
    let names = async |of: OfKind| {
        let listed = agent.leaders(of).await.expect("an answer");
        assert!(!listed.incomplete && listed.leaders.iter().all(|leader| leader.name == "me"));
        listed
            .leaders
            .into_iter()
            .map(|leader| leader.election)
            .collect::<Vec<_>>()
    };
    assert_eq!(names("batch".into()).await, ["a", "b"]);
    let mut all = names(OfKind::All).await;
    all.sort();
    assert_eq!(all, ["a", "b", "c"]);
    assert_eq!(
        agent.kinds().await.expect("an answer").kinds,
        ["batch", "web"]
    );
    let off = agent
        .pods("shop", PodsOf::Deployment("web".into()))
        .await
        .expect_err("off");
    assert!(
        matches!(
            off,
            Error::Refused {
                code: Code::Unimplemented,
                ..
            }
        ),
        "{off:?}"
    );
}

#[tokio::test]
async fn endpoints_that_are_none_are_configuration_errors() {
    for wrong in [
        "",
        " , ",
        "ftp://a:1",
        "http://",
        "http://a/path",
        "http://me@a",
        "a b",
    ] {
        let error = Agent::new(wrong).expect_err(wrong);
        assert!(matches!(error, Error::Config(_)), "{wrong}: {error:?}");
    }
    for right in [
        "a",
        "a:1",
        "http://a:1, http://b:2",
        "https://[::1]:8443",
        "127.0.0.1:1,",
    ] {
        Agent::new(right).expect(right);
    }
    let missing = Agent::builder("https://a").ca_file("/nowhere/ca.pem");
    assert!(matches!(missing, Err(Error::Config(_))), "{missing:?}");
}

#[tokio::test]
async fn who_is_not_reached_is_named_with_the_reason() {
    let agent = Agent::builder("127.0.0.1:1,nowhere.invalid:2")
        .timeout(SECOND)
        .build()
        .expect("endpoints");
    let Err(Error::Unreachable { endpoints, .. }) = soon("an answer", agent.kinds()).await else {
        panic!("reached");
    };
    let labels: Vec<_> = endpoints.iter().map(|(label, _)| label.as_str()).collect();
    assert!(
        labels.contains(&"127.0.0.1:1") && labels.contains(&"nowhere.invalid:2"),
        "{endpoints:?}"
    );
}

#[tokio::test]
async fn a_name_with_several_addresses_is_several_endpoints() {
    // `localhost` is ::1 and 127.0.0.1, or one of them; the agent listens at the second only.
    let server = Server::start();
    let port = server.address().rsplit(':').next().expect("a port");
    let agent = client(&format!("localhost:{port}"));
    agent
        .kinds()
        .await
        .expect("the address that answers is found");
}

#[test]
fn an_agent_goes_from_one_runtime_to_the_next() {
    let server = Server::start();
    let agent = client(server.address());
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async { agent.kinds().await.expect("an answer") });
    }
}

#[tokio::test]
async fn a_bearer_token_is_shown_and_a_file_is_read_again() {
    // The agent knows tokens by their digests.
    let directory = TempDir::new().expect("a directory");
    let (known, mine) = (
        directory.path().join("known"),
        directory.path().join("mine"),
    );
    let new = |name: &str| {
        let output = std::process::Command::new(test_agent::binary())
            .args(["token", "new", name])
            .env_clear()
            .output()
            .expect("runs");
        let told = String::from_utf8(output.stderr).expect("text");
        let token = told
            .lines()
            .find_map(|line| line.strip_prefix("export TOKEN="))
            .map(str::to_owned);
        (
            token.unwrap_or_else(|| panic!("{told}")),
            String::from_utf8(output.stdout).expect("text"),
        )
    };
    let ((good, line), (bad, _)) = (new("me"), new("other"));
    std::fs::write(&known, line).expect("written");
    let known = known.to_str().expect("text");
    let server = Server::with(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", known),
        ("EA_AUTH_INSECURE", "true"),
    ]);

    let unauthenticated = |result: Result<_, Error>| {
        let error = result.expect_err("no good credential");
        assert!(
            matches!(
                error,
                Error::Refused {
                    code: Code::Unauthenticated,
                    ..
                }
            ),
            "{error:?}"
        );
    };
    unauthenticated(client(server.address()).kinds().await);
    unauthenticated(
        Agent::builder(server.address())
            .token(&bad)
            .build()
            .expect("valid")
            .kinds()
            .await,
    );
    Agent::builder(server.address())
        .token(&good)
        .build()
        .expect("valid")
        .kinds()
        .await
        .expect("known");

    std::fs::write(&mine, format!("{bad}\n")).expect("written");
    let agent = Agent::builder(server.address())
        .token_file(&mine)
        .build()
        .expect("valid");
    unauthenticated(agent.kinds().await);
    std::fs::write(&mine, format!("{good}\n")).expect("written");
    agent.kinds().await.expect("the present token");
    std::fs::remove_file(&mine).expect("removed");
    agent
        .kinds()
        .await
        .expect("the last token, while there is no file");

    let function = {
        let good = good.clone();
        move || {
            let good = good.clone();
            async move { Ok::<_, std::io::Error>(good) }
        }
    };
    let agent = Agent::builder(server.address())
        .token_from(function)
        .build()
        .expect("valid");
    agent.kinds().await.expect("known");
    let debug = format!("{agent:?} {:?}", Agent::builder("a").token(&good));
    assert!(!debug.contains(&good), "{debug}");
    let fails = || async { Err::<String, _>("no token today") };
    let agent = Agent::builder(server.address())
        .token_from(fails)
        .timeout(Duration::from_millis(100))
        .build();
    let error = agent.expect("valid").kinds().await.expect_err("no token");
    assert!(error.to_string().contains("no token today"), "{error}");
}
