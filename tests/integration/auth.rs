//! Authentication by each mode, over every protocol, and what callers may do.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use election_proto::{GetLeaderRequest, election_client::ElectionClient};
use http::Response;
use jsonwebtoken::Algorithm;
use prost::Message as _;
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Request};

use crate::{
    harness::{
        AUDIENCE, Agent, ApiServer, Authority, CAMPAIGN, GRPC_WEB, HttpServer, ISSUER, Key,
        Reviews, SERVICE_ACCOUNT, campaign, command_output, eventually, eventually_within, framed,
        jwt_settings, key_set, new_token, owned as settings, token_now,
    },
    tls::channel,
};

/// A caller's reply over each protocol, as a gRPC status: gRPC, gRPC-Web and REST.
async fn told(agent: &Agent, token: Option<&str>, election: &str, candidate: &str) -> [Code; 3] {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut grpc = Request::new(campaign(election, candidate, 30_000));
    if let Some(bearer) = &bearer {
        let bearer = bearer.parse().expect("metadata");
        grpc.metadata_mut().insert("authorization", bearer);
    }
    let grpc = agent.try_campaign(grpc).await;
    let grpc = grpc.map_or_else(|status| status.code(), |_| Code::Ok);

    let message = campaign(election, candidate, 30_000).encode_to_vec();
    let mut web = agent
        .request(Method::POST, CAMPAIGN)
        .header("content-type", GRPC_WEB)
        .body(framed(&message));
    let body = json!({"candidate": candidate, "term": 30_000});
    let mut rest = agent
        .request(Method::POST, &format!("/election/{election}"))
        .json(&body);
    if let Some(bearer) = &bearer {
        web = web.header("Authorization", bearer);
        rest = rest.header("Authorization", bearer);
    }
    let web = web.send().await.expect("an answer");
    let web = match web.headers().get("grpc-status") {
        Some(status) => Code::from_bytes(status.as_bytes()),
        None => Code::Ok,
    };
    let rest = agent.send(rest).await;
    let rest = match rest.status {
        200 => Code::Ok,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        503 => Code::Unavailable,
        other => panic!("{other}: {rest:?}"),
    };
    [grpc, web, rest]
}

/// Asserts that a caller gets this status over every protocol.
async fn all_told(agent: &Agent, token: Option<&str>, election: &str, candidate: &str, code: Code) {
    let told = told(agent, token, election, candidate).await;
    assert_eq!(told, [code; 3], "{candidate}");
}

#[tokio::test]
async fn tokens_that_the_file_lists_let_in_over_every_protocol_until_they_are_taken_off() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tokens");
    let (token, line) = new_token(&["worker", "--group", "batch"]);
    let (other, other_line) = new_token(&["other"]);
    fs::write(&file, format!("{line}\n{other_line}\n")).expect("written");
    let path = file.display().to_string();
    let agent = Agent::start(&settings(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &path),
        ("EA_LOG_LEVEL", "debug"),
    ]))
    .await;

    all_told(&agent, Some(&token), "e", "worker", Code::Ok).await;
    all_told(&agent, Some(&token), "e", "worker/1", Code::Ok).await;
    all_told(&agent, Some(&other), "e", "worker", Code::PermissionDenied).await;
    all_told(&agent, None, "e", "worker", Code::Unauthenticated).await;
    all_told(
        &agent,
        Some("ea_wrong"),
        "e",
        "worker",
        Code::Unauthenticated,
    )
    .await;
    // Every known caller may read.
    let mut read = Request::new(GetLeaderRequest {
        election: "e".to_owned(),
        kind: String::new(),
    });
    let bearer = format!("bearer {other}").parse().expect("metadata");
    read.metadata_mut().insert("authorization", bearer);
    let leader = agent.grpc().get_leader(read).await.expect("an answer");
    assert_eq!(leader.into_inner().value, "worker");

    let refused = agent.rest(Method::GET, "/election/e", None).await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Bearer")
    );
    for malformed in [
        vec!["Basic dXNlcjpwYXNz"],
        vec!["Bearer"],
        vec!["Bearer "],
        vec!["x"],
        vec!["Bearer a", "Bearer b"],
    ] {
        let mut request = agent.request(Method::GET, "/election/e");
        for header in &malformed {
            request = request.header("authorization", *header);
        }
        let refused = agent.send(request).await;
        assert_eq!(refused.status, 401, "{malformed:?}");
        assert!(
            refused.text("detail").contains("authorization header"),
            "{refused:?}"
        );
    }
    // Outside of authentication, unless configured otherwise.
    for path in [
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/swagger-ui/",
    ] {
        assert_eq!(agent.get(path).await.status, 200, "{path}");
    }
    assert_eq!(
        agent.get("/nothing").await.status,
        401,
        "strangers learn nothing"
    );

    fs::write(&file, format!("{other_line}\n")).expect("written");
    eventually("the token lets nobody in", async || {
        let told = told(&agent, Some(&token), "e", "worker").await;
        (told == [Code::Unauthenticated; 3]).then_some(())
    })
    .await;
    all_told(&agent, Some(&other), "f", "other", Code::Ok).await;
    // A file that cannot be used changes nothing.
    fs::write(&file, "worker s3cret\n").expect("written");
    let mut log = agent.logs("the former ones still are").await;
    all_told(&agent, Some(&other), "f", "other", Code::Ok).await;
    log.extend(agent.log());
    let log = log.join("\n");
    for secret in [&token, &other, "ea_wrong", "s3cret", "dXNlcjpwYXNz"] {
        assert!(!log.contains(secret), "{secret} is in the log: {log}");
    }
}

#[tokio::test]
async fn what_is_public_can_be_chosen() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tokens");
    let (token, line) = new_token(&["prometheus"]);
    fs::write(&file, line).expect("written");
    let path = file.display().to_string();
    for (public, open, closed) in [
        (
            "probes",
            &["/livez"][..],
            &["/metrics", "/openapi.json", "/swagger-ui/"][..],
        ),
        (
            "docs, metrics",
            &["/metrics", "/openapi_v3.yaml"],
            &["/livez", "/readyz"],
        ),
        ("nothing", &[], &["/livez", "/metrics", "/openapi.json"]),
    ] {
        let agent = Agent::start(&settings(&[
            ("EA_AUTH_MODES", "token"),
            ("EA_AUTH_TOKEN_FILE", &path),
            ("EA_AUTH_PUBLIC", public),
        ]))
        .await;
        for path in open {
            assert_eq!(agent.get(path).await.status, 200, "{public}: {path}");
        }
        for path in closed {
            assert_eq!(agent.get(path).await.status, 401, "{public}: {path}");
            let known = agent.request(Method::GET, path).bearer_auth(&token);
            assert_eq!(agent.send(known).await.status, 200, "{public}: {path}");
        }
    }
}

#[tokio::test]
async fn several_modes_let_in_whom_any_of_them_knows() {
    let directory = TempDir::new().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (token, line) = new_token(&["worker"]);
    let key = Key::new(Algorithm::EdDSA, "k");
    fs::write(at("tokens"), line).expect("written");
    fs::write(at("keys"), key_set(&[&key])).expect("written");
    let mut both = jwt_settings();
    both.extend(settings(&[
        ("EA_AUTH_MODES", "none, token, jwt"),
        ("EA_AUTH_TOKEN_FILE", &at("tokens")),
        ("EA_AUTH_JWT_JWKS_FILE", &at("keys")),
    ]));
    let agent = Agent::start(&both).await;
    all_told(&agent, Some(&token), "e", "worker", Code::Ok).await;
    all_told(
        &agent,
        Some(&key.token("worker", &[])),
        "e",
        "worker",
        Code::Ok,
    )
    .await;
    // A caller without a credential is anonymous, and may read; one with a wrong credential is not anonymous.
    assert_eq!(agent.get("/election/e").await.status, 200);
    all_told(&agent, None, "e", "anonymous", Code::PermissionDenied).await;
    all_told(&agent, Some("wrong"), "e", "worker", Code::Unauthenticated).await;
    let wrong = agent
        .request(Method::GET, "/election/e")
        .bearer_auth("wrong");
    assert_eq!(agent.send(wrong).await.status, 401);
}

#[tokio::test]
async fn json_web_tokens_of_each_algorithm_let_in() {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("keys.json");
    let keys = [
        (Algorithm::RS256, "rsa"),
        (Algorithm::ES256, "ec"),
        (Algorithm::EdDSA, "ed"),
    ]
    .map(|(algorithm, name)| Key::new(algorithm, name));
    fs::write(&file, key_set(&[&keys[0], &keys[1], &keys[2]])).expect("written");
    let mut configured = jwt_settings();
    configured.push((
        "EA_AUTH_JWT_JWKS_FILE".to_owned(),
        file.display().to_string(),
    ));
    let agent = Agent::start(&configured).await;
    for (n, key) in keys.iter().enumerate() {
        let (token, election) = (key.token("worker", &[]), format!("e{n}"));
        // Twice: the second time it is cached.
        for _ in 0..2 {
            all_told(&agent, Some(&token), &election, "worker", Code::Ok).await;
        }
        let expired = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "worker",
            "exp": token_now() - 60,
        });
        all_told(
            &agent,
            Some(&key.sign(&expired)),
            &election,
            "worker",
            Code::Unauthenticated,
        )
        .await;
    }
    all_told(&agent, None, "e", "worker", Code::Unauthenticated).await;

    // A key that was removed verifies nothing any more, not even what it has verified.
    fs::write(&file, key_set(&[&keys[1]])).expect("written");
    let token = keys[0].token("worker", &[]);
    eventually("the key is gone", async || {
        let told = told(&agent, Some(&token), "e0", "worker").await;
        (told == [Code::Unauthenticated; 3]).then_some(())
    })
    .await;
    all_told(
        &agent,
        Some(&keys[1].token("worker", &[])),
        "e1",
        "worker",
        Code::Ok,
    )
    .await;
}

#[tokio::test]
async fn keys_come_from_a_url_and_are_asked_for_again_when_a_token_names_another() {
    let (first, second) = (
        Key::new(Algorithm::ES256, "one"),
        Key::new(Algorithm::ES256, "two"),
    );
    let served = Arc::new(Mutex::new((503, String::new())));
    let serving = Arc::clone(&served);
    let server = HttpServer::start(move |_| {
        let (status, body) = serving.lock().expect("unlocked").clone();
        Response::builder()
            .status(status)
            .body(body)
            .expect("a response")
    })
    .await;
    let mut configured = jwt_settings();
    configured.push(("EA_AUTH_JWT_JWKS_URL".to_owned(), server.url("/keys")));
    configured.push(("EA_AUTH_JWT_REFRESH".to_owned(), "1h".to_owned()));
    let agent = Agent::start(&configured).await;

    // Whether the token is good is not known.
    let token = first.token("worker", &[]);
    all_told(&agent, Some(&token), "e", "worker", Code::Unavailable).await;
    *served.lock().expect("unlocked") = (200, key_set(&[&first]));
    eventually("the keys are known", async || {
        let told = told(&agent, Some(&token), "e", "worker").await;
        (told == [Code::Ok; 3]).then_some(())
    })
    .await;

    *served.lock().expect("unlocked") = (200, key_set(&[&first, &second]));
    let rotated = second.token("worker", &[]);
    let within = Duration::from_secs(30);
    eventually_within(within, "the second key is known", async || {
        let told = told(&agent, Some(&rotated), "e", "worker").await;
        (told == [Code::Ok; 3]).then_some(())
    })
    .await;
    all_told(&agent, Some(&token), "e", "worker", Code::Ok).await;

    // Keys stay when newer ones cannot be fetched, and made-up key names do not cause requests without end.
    *served.lock().expect("unlocked") = (500, String::new());
    let asked = server.answered();
    let stranger = Key::new(Algorithm::ES256, "three");
    for _ in 0..3 {
        // The issuer may have such a key now.
        all_told(
            &agent,
            Some(&stranger.token("worker", &[])),
            "e",
            "worker",
            Code::Unavailable,
        )
        .await;
    }
    assert!(
        server.answered() <= asked + 2,
        "{} then {}",
        asked,
        server.answered()
    );
    all_told(&agent, Some(&token), "e", "worker", Code::Ok).await;
}

#[tokio::test]
async fn keys_are_taken_from_none_but_whom_the_authority_vouches_for() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let key = Key::new(Algorithm::ES256, "k");
    let keys = key_set(&[&key]);
    let server = HttpServer::start_tls(&authority, move |_| Response::new(keys.clone())).await;
    let asking = async |ca: Option<&Authority>| {
        let mut configured = jwt_settings();
        configured.push(("EA_AUTH_JWT_JWKS_URL".to_owned(), server.url("/keys")));
        if let Some(ca) = ca {
            configured.push(("EA_AUTH_JWT_CA_FILE".to_owned(), ca.path("ca.pem")));
        }
        Agent::start(&configured).await
    };
    let token = key.token("worker", &[]);
    // The system's authorities do not know the server either.
    for ca in [Some(&stranger), None] {
        let agent = asking(ca).await;
        let log = agent.logs("cannot fetch the issuer's keys").await;
        let log = log.join("\n");
        assert!(log.contains("certificate"), "{log}");
        all_told(&agent, Some(&token), "e", "worker", Code::Unavailable).await;
    }
    assert_eq!(server.answered(), 0, "strangers are not asked");
    let agent = asking(Some(&authority)).await;
    eventually("the keys are known", async || {
        let told = told(&agent, Some(&token), "e", "worker").await;
        (told == [Code::Ok; 3]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn kubernetes_reviews_a_token_once_for_many_requests() {
    let kubernetes = ApiServer::start().await;
    let mut configured = kubernetes.review_settings();
    configured.push(("EA_AUTH_KUBERNETES_CACHE_TTL".to_owned(), "1h".to_owned()));
    let agent = Agent::start(&configured).await;
    let asking = (0..50).map(|_| {
        let request = agent.request(Method::GET, "/elections").bearer_auth("good");
        agent.send(request)
    });
    let answers = futures_util::future::join_all(asking).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(kubernetes.answered(), 1, "one review for all");
    all_told(&agent, Some("good"), "e", SERVICE_ACCOUNT, Code::Ok).await;
    let own = format!("{SERVICE_ACCOUNT}/worker-7d4b9");
    all_told(&agent, Some("good"), "f", &own, Code::Ok).await;
    all_told(&agent, Some("good"), "g", "another", Code::PermissionDenied).await;
    all_told(&agent, None, "g", SERVICE_ACCOUNT, Code::Unauthenticated).await;
    assert_eq!(kubernetes.answered(), 1);
    all_told(
        &agent,
        Some("wrong"),
        "g",
        SERVICE_ACCOUNT,
        Code::Unauthenticated,
    )
    .await;
    assert_eq!(kubernetes.answered(), 2, "a wrong one is remembered, too");
}

#[tokio::test]
async fn an_api_server_that_gives_no_verdict_is_no_reason_to_refuse_or_let_in() {
    let mut kubernetes = ApiServer::start().await;
    let agent = Agent::start(&kubernetes.review_settings()).await;
    kubernetes.reviews(Reviews::Forbidden);
    all_told(
        &agent,
        Some("good"),
        "e",
        SERVICE_ACCOUNT,
        Code::Unavailable,
    )
    .await;
    agent
        .logs("tokenreviews.authentication.k8s.io is forbidden")
        .await;
    kubernetes.reviews(Reviews::AsEver);
    all_told(&agent, Some("good"), "e", SERVICE_ACCOUNT, Code::Ok).await;
    // The verdict counts for a second.
    kubernetes.reviews(Reviews::OfOthers);
    eventually("a token for others is refused", async || {
        let told = told(&agent, Some("good"), "e", SERVICE_ACCOUNT).await;
        (told == [Code::Unauthenticated; 3]).then_some(())
    })
    .await;
    kubernetes.stop();
    let told = told(&agent, Some("another"), "e", SERVICE_ACCOUNT).await;
    assert_eq!(told, [Code::Unavailable; 3]);
}

#[tokio::test]
async fn a_review_goes_on_when_its_caller_does_not() {
    let kubernetes = ApiServer::start().await;
    let mut configured = kubernetes.review_settings();
    configured.push(("EA_AUTH_KUBERNETES_CACHE_TTL".to_owned(), "1h".to_owned()));
    let agent = Agent::start(&configured).await;
    kubernetes.reviews(Reviews::Held);
    for _ in 0..3 {
        let hasty = agent
            .request(Method::GET, "/election/e")
            .bearer_auth("good")
            .header("grpc-timeout", "100m");
        assert_eq!(agent.send(hasty).await.status, 504);
    }
    kubernetes.reviews(Reviews::AsEver);
    eventually("the verdict is known", async || {
        let hasty = agent
            .request(Method::GET, "/elections")
            .bearer_auth("good")
            .header("grpc-timeout", "100m");
        (agent.send(hasty).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(kubernetes.answered(), 1);
}

#[tokio::test]
async fn made_up_tokens_are_reviewed_no_more_often_than_their_address_may_ask() {
    let kubernetes = ApiServer::start().await;
    let mut configured = kubernetes.review_settings();
    configured.push(("EA_RATE_LIMIT_PER_SECOND".to_owned(), "1".to_owned()));
    let agent = Agent::start(&configured).await;
    let mut told = [0, 0];
    for n in 0..30 {
        let stranger = agent.request(Method::GET, "/election/e");
        let stranger = agent
            .send(stranger.bearer_auth(format!("made-up-{n}")))
            .await;
        match stranger.status {
            401 => told[0] += 1,
            429 => told[1] += 1,
            _ => panic!("{stranger:?}"),
        }
    }
    let [reviewed, refused] = told;
    assert!(refused > 10, "{told:?}");
    assert_eq!(kubernetes.answered(), reviewed, "{told:?}");
    // So are malformed credentials.
    let malformed = || {
        agent
            .request(Method::GET, "/election/e")
            .header("authorization", "x")
    };
    eventually("malformed ones are counted, too", async || {
        (agent.send(malformed()).await.status == 429).then_some(())
    })
    .await;
}

#[tokio::test]
async fn certificates_identify_the_caller() {
    let authority = Authority::new();
    for name in ["localhost", "worker"] {
        authority.issue(name);
    }
    let mut configured = authority.settings();
    configured.extend(settings(&[
        ("EA_AUTH_MODES", "mtls"),
        ("EA_TLS_CLIENT_CA_FILE", &authority.path("ca.pem")),
        ("EA_TLS_CLIENT_AUTH", "optional"),
    ]));
    let agent = Agent::start(&configured).await;
    let ask = async |tls, candidate: &str| {
        let channel = channel(&agent, tls).await.expect("connects");
        let answer = ElectionClient::new(channel)
            .campaign(campaign("e", candidate, 30_000))
            .await;
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    let known = || authority.client().identity(authority.identity("worker"));
    assert_eq!(ask(known(), "worker").await, Code::Ok);
    assert_eq!(ask(known(), "worker/2").await, Code::Ok);
    assert_eq!(ask(known(), "localhost").await, Code::PermissionDenied);
    assert_eq!(
        ask(authority.client(), "worker").await,
        Code::Unauthenticated
    );
}

#[test]
fn settings_that_do_not_fit_together_are_told_before_the_agent_starts() {
    for (given, told) in [
        (vec![("EA_AUTH_MODES", "password")], "EA_AUTH_MODES: "),
        (vec![("EA_AUTH_MODES", "token")], "EA_AUTH_TOKEN_FILE: "),
        (
            vec![
                ("EA_AUTH_MODES", "token"),
                ("EA_AUTH_TOKEN_FILE", "/no/such/file"),
            ],
            "EA_AUTH_TOKEN_FILE: cannot read /no/such/file",
        ),
        (
            vec![("EA_AUTH_TOKEN_FILE", "/no/such/file")],
            "EA_AUTH_TOKEN_FILE: it is not used: add token to EA_AUTH_MODES",
        ),
        (vec![("EA_AUTH_MODES", "jwt")], "EA_AUTH_JWT_ISSUER: "),
        (vec![("EA_AUTH_MODES", "jwt")], "EA_AUTH_JWT_AUDIENCE: "),
        (vec![("EA_AUTH_MODES", "jwt")], "EA_AUTH_JWT_JWKS_FILE: "),
        (
            vec![
                ("EA_AUTH_MODES", "jwt"),
                ("EA_AUTH_JWT_JWKS_URL", "http://issuer.example/keys"),
            ],
            "EA_AUTH_JWT_JWKS_URL: ",
        ),
        (
            vec![
                ("EA_AUTH_MODES", "jwt"),
                ("EA_AUTH_JWT_JWKS_URL", "https://h/"),
                ("EA_AUTH_JWT_CA_FILE", "/no/such/file"),
            ],
            "EA_AUTH_JWT_CA_FILE: cannot read",
        ),
        (vec![("EA_AUTH_JWT_LEEWAY", "1h")], "EA_AUTH_JWT_LEEWAY: "),
        (vec![("EA_AUTH_MODES", "mtls")], "set EA_TLS_CLIENT_CA_FILE"),
        (
            vec![
                ("EA_AUTH_MODES", "kubernetes"),
                ("EA_AUTH_KUBERNETES_CACHE_TTL", "1ms"),
            ],
            "EA_AUTH_KUBERNETES_CACHE_TTL: ",
        ),
        (
            vec![
                ("EA_AUTH_MODES", "kubernetes"),
                ("EA_AUTH_KUBERNETES_AUDIENCES", ","),
            ],
            "EA_AUTH_KUBERNETES_AUDIENCES: it holds no entry",
        ),
        (
            vec![
                ("EA_AUTH_MODES", "jwt"),
                ("EA_AUTH_JWT_JWKS_FILE", "/no/such/file"),
                ("EA_AUTH_JWT_CA_FILE", "/no/such/file"),
            ],
            "EA_AUTH_JWT_CA_FILE: it is for EA_AUTH_JWT_JWKS_URL",
        ),
        (vec![("EA_AUTH_PUBLIC", "everything")], "EA_AUTH_PUBLIC: "),
        (vec![("EA_RATE_LIMIT_BURST", "5")], "EA_RATE_LIMIT_BURST: "),
        (
            vec![("EA_RATE_LIMIT_PER_SECOND", "-1")],
            "EA_RATE_LIMIT_PER_SECOND: ",
        ),
    ] {
        let output = command_output(&[], &given);
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{given:?}: {printed}");
        assert!(printed.contains(told), "{told}: {printed}");
    }
    // Noticed when it is used.
    let output = command_output(&[], &[("EA_AUTH_MODES", "kubernetes"), ("EA_ENV", "test")]);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("EA_KUBE_IN_CLUSTER=false"), "{printed}");
}

#[tokio::test]
async fn an_agent_that_listens_beyond_its_host_without_authentication_warns() {
    let warned = async |given: &[(&str, &str)]| {
        let agent = Agent::start(&settings(given)).await;
        agent.early_log().join("\n").contains("set EA_AUTH_MODES")
    };
    assert!(!warned(&[]).await);
    assert!(warned(&[("EA_BIND_ADDRESS", "0.0.0.0")]).await);
}
