//! Malformed and out-of-range requests: each gets a clear error, and changes nothing. They are refused before any store
//! is called, so one kind suffices.

use election_proto::{
    CampaignRequest, ExtendElectedTermRequest, GetElectionRequest, GetLeaderRequest,
    HandoverRequest, ListKindsRequest, ListLeadersRequest, ResignRequest, VerifyTokenRequest,
};
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Status};

use crate::harness::{Agent, CAMPAIGN, Fixture, GRPC_WEB, Store, campaign, framed, handover};

/// The state that bad input must not change, and what it is.
async fn state(agent: &Agent) -> (Value, Value) {
    let mut leader = agent.get("/election/held").await.body;
    leader["remaining"] = Value::Null;
    let mut all = agent.get("/elections").await.body;
    all["leaders"][0]["remaining"] = Value::Null;
    assert_eq!(all["leaders"].as_array().map(Vec::len), Some(1));
    (leader, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_requests_out_of_range_are_refused() {
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    agent.campaign("held", "a", 60_000).await;
    let before = state(agent).await;
    let long = "x".repeat(257);
    let client = || agent.grpc();
    let refused = |answer: Result<(), Status>, told: &str| {
        let status = answer.expect_err(told);
        assert_eq!(status.code(), Code::InvalidArgument, "{told}");
        assert!(
            status.message().contains(told),
            "{told} is not in: {}",
            status.message()
        );
    };

    let good = || campaign("held", "b", 5_000);
    for (request, told) in [
        (
            CampaignRequest {
                election: String::new(),
                ..good()
            },
            "`election` is empty",
        ),
        (
            CampaignRequest {
                election: long.clone(),
                ..good()
            },
            "`election` is 257 bytes long",
        ),
        (
            CampaignRequest {
                election: "a/b".into(),
                ..good()
            },
            "`election` holds a \"/\"",
        ),
        (
            CampaignRequest {
                election: "a\u{0}b".into(),
                ..good()
            },
            "control character U+0000",
        ),
        (
            CampaignRequest {
                kind: long.clone(),
                ..good()
            },
            "`kind` is 257 bytes long",
        ),
        (
            CampaignRequest {
                kind: "a/b".into(),
                ..good()
            },
            "`kind` holds a \"/\"",
        ),
        (
            CampaignRequest {
                kind: "a\tb".into(),
                ..good()
            },
            "`kind` holds the control character",
        ),
        (
            CampaignRequest {
                candidate: String::new(),
                ..good()
            },
            "`candidate` is empty",
        ),
        (
            CampaignRequest {
                candidate: long.clone(),
                ..good()
            },
            "`candidate` is 257 bytes long",
        ),
        (
            CampaignRequest {
                candidate: "a\nb".into(),
                ..good()
            },
            "control character U+000A",
        ),
        (CampaignRequest { term: 0, ..good() }, "1000 to 60000"),
        (
            CampaignRequest {
                term: 999,
                ..good()
            },
            "1000 to 60000",
        ),
        (
            CampaignRequest {
                term: 60_001,
                ..good()
            },
            "1000 to 60000",
        ),
        (CampaignRequest { term: -1, ..good() }, "`term` is -1"),
        (
            CampaignRequest {
                value: "v".repeat(1025),
                ..good()
            },
            "`value` is 1025 bytes long",
        ),
        (
            CampaignRequest {
                request_id: long.clone(),
                ..good()
            },
            "`request_id` is 257 bytes long",
        ),
    ] {
        refused(client().campaign(request).await.map(drop), told);
    }
    let good = || ExtendElectedTermRequest {
        election: "held".into(),
        leader: "a".into(),
        term: 5_000,
        ..ExtendElectedTermRequest::default()
    };
    for (request, told) in [
        (
            ExtendElectedTermRequest {
                leader: String::new(),
                ..good()
            },
            "`leader` is empty",
        ),
        (
            ExtendElectedTermRequest { term: 1, ..good() },
            "1000 to 60000",
        ),
        (
            ExtendElectedTermRequest {
                retries: 11,
                ..good()
            },
            "`retries` is 11: give 0 to 10",
        ),
        (
            ExtendElectedTermRequest {
                retries: -1,
                ..good()
            },
            "`retries` is -1",
        ),
        (
            ExtendElectedTermRequest {
                retry_interval: 1001,
                ..good()
            },
            "0 to 1000 milliseconds",
        ),
        (
            ExtendElectedTermRequest {
                retry_interval: -1,
                ..good()
            },
            "`retry_interval` is -1",
        ),
        (
            ExtendElectedTermRequest {
                token: 1 << 53,
                ..good()
            },
            "`token` is 9007199254740992",
        ),
    ] {
        refused(client().extend_elected_term(request).await.map(drop), told);
    }
    let good = || ResignRequest {
        election: "held".into(),
        leader: "a".into(),
        ..ResignRequest::default()
    };
    for (request, told) in [
        (
            ResignRequest {
                election: String::new(),
                ..good()
            },
            "`election` is empty",
        ),
        (
            ResignRequest {
                leader: long.clone(),
                ..good()
            },
            "`leader` is 257 bytes long",
        ),
        (
            ResignRequest {
                token: u64::MAX,
                ..good()
            },
            "`token` is",
        ),
    ] {
        refused(client().resign(request).await.map(drop), told);
    }
    let good = || handover("held", ("a", 0), "b", 5_000);
    for (request, told) in [
        (
            HandoverRequest {
                leader: String::new(),
                ..good()
            },
            "`leader` is empty",
        ),
        (
            HandoverRequest {
                current_leader: long.clone(),
                ..good()
            },
            "`current_leader` is 257",
        ),
        (
            HandoverRequest {
                term: 70_000,
                ..good()
            },
            "1000 to 60000",
        ),
    ] {
        refused(client().handover(request).await.map(drop), told);
    }
    let election = |election: &str| GetElectionRequest {
        election: election.to_owned(),
        kind: String::new(),
    };
    for (request, told) in [
        (election(""), "`election` is empty"),
        (election("a/b"), "`election` holds a \"/\""),
    ] {
        refused(client().get_election(request).await.map(drop), told);
    }
    for (name, token, told) in [
        ("held", 0, "`token` is 0: give the token in question"),
        ("held", 1 << 53, "`token` is 9007199254740992"),
        ("", 1, "`election` is empty"),
    ] {
        let request = VerifyTokenRequest {
            election: name.to_owned(),
            kind: String::new(),
            token,
        };
        refused(client().verify_token(request).await.map(drop), told);
    }
    for (page_size, page_token, told) in [
        (-1, "", "`page_size` is -1"),
        (1001, "", "give 1 to 1000"),
        (0, "?", "`page_token`"),
    ] {
        let request = ListKindsRequest {
            page_size,
            page_token: page_token.to_owned(),
        };
        refused(client().list_kinds(request).await.map(drop), told);
    }
    let request = GetLeaderRequest::default();
    refused(
        client().get_leader(request).await.map(drop),
        "`election` is empty",
    );
    for (request, told) in [
        (
            ListLeadersRequest {
                page_size: -1,
                ..Default::default()
            },
            "`page_size` is -1",
        ),
        (
            ListLeadersRequest {
                page_size: 1001,
                ..Default::default()
            },
            "give 1 to 1000",
        ),
        (
            ListLeadersRequest {
                page_token: "?".into(),
                ..Default::default()
            },
            "`page_token`",
        ),
        (
            ListLeadersRequest {
                kind: "a/b".into(),
                ..Default::default()
            },
            "`kind` holds a \"/\"",
        ),
        (
            ListLeadersRequest {
                kind: "default".into(),
                all_kinds: true,
                ..Default::default()
            },
            "`kind` is given beside `all_kinds`",
        ),
    ] {
        refused(client().list_leaders(request).await.map(drop), told);
    }
    assert_eq!(state(agent).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_requests_out_of_range_are_refused() {
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    agent.campaign("held", "a", 60_000).await;
    let before = state(agent).await;
    let long = "x".repeat(257);
    let good = json!({"candidate": "b", "term": 5000});
    for (method, path, body, told) in [
        (
            Method::POST,
            format!("/election/{long}"),
            good.clone(),
            "`election` is 257 bytes long",
        ),
        (
            Method::POST,
            "/election/a%2Fb".into(),
            good.clone(),
            "`election` holds a \"/\"",
        ),
        (
            Method::POST,
            "/election/a%00b".into(),
            good.clone(),
            "control character U+0000",
        ),
        (
            Method::POST,
            "/election/a%FFb".into(),
            good.clone(),
            "percent-encode names as UTF-8",
        ),
        (
            Method::POST,
            "/election/a%2Fb/c".into(),
            good,
            "`kind` holds a \"/\"",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"term": 5000}),
            "`candidate`",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"candidate": "b"}),
            "`term`",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"candidate": "b", "term": 5000, "tern": 1}),
            "unknown field `tern`",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"candidate": "b", "term": "5000"}),
            "expected a whole number",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"candidate": "b", "term": 5000.5}),
            "expected a whole number",
        ),
        (
            Method::POST,
            "/election/held".into(),
            json!({"candidate": "b", "term": 99_999_999_999_i64}),
            "1000 to 60000",
        ),
        (
            Method::PATCH,
            "/election/held".into(),
            json!({"leader": "a", "term": 5000, "retries": 11}),
            "`retries` is 11",
        ),
        (
            Method::PATCH,
            "/election/held".into(),
            json!({"leader": "a", "term": 5000, "token": -1}),
            "expected a whole number",
        ),
        (
            Method::PUT,
            "/election/held".into(),
            json!({"leader": "b", "term": 5000, "token": 1_u64 << 53}),
            "`token` is 9007199254740992",
        ),
        (
            Method::DELETE,
            "/election/held".into(),
            json!({"leader": ""}),
            "`leader` is empty",
        ),
        (
            Method::DELETE,
            "/election/held".into(),
            json!({"name": "a"}),
            "unknown field `name`",
        ),
        (
            Method::DELETE,
            "/election/held?leader=a".into(),
            json!({"leader": "a"}),
            "not in both",
        ),
    ] {
        let refused = agent.rest(method.clone(), &path, Some(body.clone())).await;
        let message = refused.text("message");
        assert_eq!(
            (refused.status, refused.text("code")),
            (400, "InvalidArgument"),
            "{path} {body}"
        );
        assert!(
            message.contains(told),
            "{method} {path} {body}: {told} is not in: {message}"
        );
    }
    for (method, path, told) in [
        (Method::DELETE, "/election/held", "the leader is not named"),
        (
            Method::DELETE,
            "/election/held?leader=a&who=b",
            "unknown field `who`",
        ),
        (
            Method::DELETE,
            "/election/held?leader=a&token=x",
            "invalid digit",
        ),
        (Method::GET, "/elections?page_size=1001", "give 1 to 1000"),
        (
            Method::GET,
            "/election/held?kind=batch",
            "unknown field `kind`",
        ),
        (Method::GET, "/election//held", "`kind` is empty"),
        (Method::GET, "/election/%zz", "percent-encode names"),
        (Method::GET, "/election/held%", "percent-encode names"),
        (Method::GET, "/elections?kind=%FF", "percent-encode names"),
        (
            Method::DELETE,
            "/election/held?leader=%FF",
            "percent-encode names",
        ),
        (Method::GET, "/elections?page_size=x", "invalid digit"),
        (Method::GET, "/elections?kind=a%2Fb", "`kind` holds a \"/\""),
        (Method::GET, "/elections?page=2", "unknown field `page`"),
        (Method::GET, "/elections?page_token=e30", "`page_token`"),
        (
            Method::GET,
            "/elections?kind=a&all_kinds=true",
            "`kind` is given beside `all_kinds`",
        ),
        (
            Method::GET,
            "/elections?all_kinds=1",
            "provided string was not `true` or `false`",
        ),
        (Method::GET, "/kinds?kind=a", "unknown field `kind`"),
        (Method::GET, "/kinds?page_size=-1", "`page_size` is -1"),
        (Method::GET, "/kinds?page_token=e30", "`page_token`"),
        (
            Method::GET,
            "/election/default/held/state?x=1",
            "unknown field `x`",
        ),
        (Method::GET, "/election//held/state", "`kind` is empty"),
        (
            Method::GET,
            "/election/default/held/tokens/0",
            "`token` is 0",
        ),
        (
            Method::GET,
            "/election/default/held/tokens/9007199254740992",
            "`token` is 9007199254740992",
        ),
        (
            Method::GET,
            "/election/default/held/tokens/-1",
            "the path cannot be read",
        ),
        (
            Method::GET,
            "/election/default/held/tokens/x",
            "the path cannot be read",
        ),
    ] {
        let refused = agent.rest(method, path, None).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (400, "InvalidArgument"),
            "{path}"
        );
        let message = refused.text("message");
        assert!(
            message.contains(told),
            "{path}: {told} is not in: {message}"
        );
    }
    assert_eq!(state(agent).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_json_are_refused() {
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    let good = r#"{"candidate":"b","term":5000}"#;
    let many = format!(
        r#"{{"candidate":"b","term":5000,"value":"{}"}}"#,
        "v".repeat(65_536)
    );
    for (content_type, body, status, code) in [
        ("application/json", "{", 400, "InvalidArgument"),
        ("application/json", "", 400, "InvalidArgument"),
        ("application/json", "[]", 400, "InvalidArgument"),
        ("application/json", " [\"b\",5000]", 400, "InvalidArgument"),
        ("application/json", "null", 400, "InvalidArgument"),
        (
            "application/json",
            r#"{"candidate":"b","candidate":"c","term":5000}"#,
            400,
            "InvalidArgument",
        ),
        (
            "application/json",
            &format!("{good} {good}"),
            400,
            "InvalidArgument",
        ),
        ("text/plain", good, 415, "UnsupportedMediaType"),
        (
            "application/x-www-form-urlencoded",
            good,
            415,
            "UnsupportedMediaType",
        ),
        ("", good, 415, "UnsupportedMediaType"),
        ("application/json", &many, 413, "PayloadTooLarge"),
    ] {
        let mut request = agent
            .request(Method::POST, "/election/e")
            .body(body.to_owned());
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let refused = agent.send(request).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (status, code),
            "{content_type} {body:.50}"
        );
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    let not_utf8 = agent
        .request(Method::POST, "/election/e")
        .header("content-type", "application/json; charset=utf-8")
        .body(b"{\"candidate\":\"\xff\",\"term\":5000}".to_vec());
    assert_eq!(agent.send(not_utf8).await.status, 400);
    assert_eq!(
        agent.leader("e").await.expect_err("vacant").code(),
        Code::NotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_told_what_there_is() {
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    for path in [
        "/election",
        "/election/a/b/c",
        "/elections/x",
        "/metrics/",
        "/readyz/x",
    ] {
        let refused = agent.get(path).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (404, "NotFound"),
            "{path}"
        );
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }
    for (method, path, allowed) in [
        (
            Method::OPTIONS,
            "/election/e",
            "DELETE,GET,HEAD,PATCH,POST,PUT",
        ),
        (
            Method::TRACE,
            "/election/k/e",
            "DELETE,GET,HEAD,PATCH,POST,PUT",
        ),
        (Method::POST, "/elections", "GET,HEAD"),
        (Method::DELETE, "/livez", "GET,HEAD"),
        (Method::PUT, "/kube/n/d/pods", "GET,HEAD"),
    ] {
        let refused = agent.rest(method.clone(), path, None).await;
        assert_eq!(
            (refused.status, refused.text("code")),
            (405, "MethodNotAllowed"),
            "{path}"
        );
        let mut allow: Vec<_> = refused.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow.join(","), allowed, "{method} {path}");
    }
}

/// Sends bytes on a connection of their own, and gives the head and the body of the answer, which ends it.
async fn raw(agent: &Agent, request: &str) -> (String, String) {
    let mut stream = tokio::net::TcpStream::connect(agent.address())
        .await
        .expect("connects");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .expect("an answer, and the end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn http_1_0_is_for_probes_and_told_elsewhere_what_to_use() {
    let fixture = Fixture::on(Store::Memory).await;
    for path in ["/livez", "/readyz", "/metrics"] {
        for host in ["", "host: agent\r\n"] {
            let request = format!("GET {path} HTTP/1.0\r\n{host}\r\n");
            let (head, body) = raw(&fixture.agent, &request).await;
            assert!(head.starts_with("HTTP/1.0 200"), "{path}: {head}");
            assert!(!body.is_empty(), "{path}");
        }
    }
    // As HAProxy does unless a method is configured.
    let (head, _) = raw(&fixture.agent, "OPTIONS /readyz HTTP/1.0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    let (head, body) = raw(&fixture.agent, "GET /election/e HTTP/1.0\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.0 400") && head.contains("application/problem+json"),
        "{head}"
    );
    let problem: Value = serde_json::from_str(&body).expect("a problem");
    assert_eq!(problem["code"], "InvalidArgument");
    assert!(
        problem["message"]
            .as_str()
            .is_some_and(|text| text.contains("HTTP/1.1")),
        "{body}"
    );
}

#[tokio::test]
async fn a_request_over_http_1_1_has_one_host() {
    let fixture = Fixture::on(Store::Memory).await;
    for (hosts, status) in [
        ("", "400"),
        ("host: a\r\nhost: b\r\n", "400"),
        ("host: a\r\n", "200"),
        ("host:\r\n", "200"),
    ] {
        let request = format!("GET /livez HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let (head, body) = raw(&fixture.agent, &request).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}")),
            "{hosts:?}: {head}"
        );
        assert!(
            status == "200" || body.contains("Host"),
            "{hosts:?}: {body}"
        );
    }
}

#[tokio::test]
async fn a_grpc_call_has_one_message() {
    let fixture = Fixture::on(Store::Memory).await;
    let http = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let message = framed(&campaign("e", "a", 60_000).encode_to_vec());
    for (messages, status) in [(1, "0"), (2, "3")] {
        let url = format!(
            "http://{}/grpc.election_agent.v1.Election/Campaign",
            fixture.agent.address()
        );
        let answer = http
            .post(url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(message.repeat(messages))
            .send()
            .await
            .expect("an answer");
        // A refusal has no message, and its status stands in the head.
        let in_head = answer.headers().get("grpc-status").cloned();
        let told = in_head.map_or("0".to_owned(), |status| {
            status.to_str().expect("text").to_owned()
        });
        assert_eq!(told, status, "{messages} messages");
    }
}

/// Clients that send the whole body before they read the reply get it, whatever the refusal and however large the body,
/// and go on with the same connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_arrives_although_the_body_is_large() {
    let fixture = Fixture::on(Store::Memory).await;
    let port = fixture.agent.address().port().to_string();
    let python = r#"
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
json = {"content-type": "application/json"}
for size in (5, 20):
    body = b"x" * (size << 20)
    for path, headers, status in [
        ("/election/e", json, 413),
        ("/election/e", {**json, "content-encoding": "gzip"}, 415),
    ]:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == status, (size, path, headers, answer.status, text)
        assert answer.getheader("accept-encoding") == (None if status == 413 else "identity")
"#;
    let node = r#"
const url = `http://127.0.0.1:${process.argv[1]}`;
for (const size of [5, 20]) {
  for (const [path, headers, status] of [
    ["/election/e", {}, 413],
    ["/election/e", {"content-encoding": "gzip"}, 415],
  ]) {
    const answer = await fetch(url + path, {
      method: "POST",
      headers: {"content-type": "application/json", ...headers},
      body: "x".repeat(size << 20),
    });
    await answer.text();
    if (answer.status !== status) throw new Error(`${size} ${path}: ${answer.status}`);
    if (status === 415 && answer.headers.get("accept-encoding") !== "identity") throw new Error("accept-encoding");
  }
}
"#;
    for (program, arguments) in [
        ("python3", vec!["-c", python, &port]),
        ("node", vec!["--input-type=module", "-e", node, &port]),
    ] {
        let output = tokio::process::Command::new(program)
            .args(arguments)
            .output()
            .await
            .expect("runs");
        assert!(output.status.success(), "{program}: {output:?}");
    }
}

#[tokio::test]
async fn json_may_begin_with_a_mark_and_members_that_may_be_left_out_may_be_null() {
    let fixture = Fixture::on(Store::Memory).await;
    let campaign =
        "\u{feff}{\"candidate\": \"a\", \"term\": 60000, \"value\": null, \"request_id\": null}";
    let extend = "{\"leader\": \"a\", \"term\": 60000, \"retries\": null, \"retry_interval\": null, \"token\": null}";
    let handover =
        "{\"leader\": \"b\", \"term\": 60000, \"current_leader\": \"a\", \"token\": null}";
    let resign = "{\"leader\": \"b\", \"token\": null}";
    for (method, body, status) in [
        (Method::POST, campaign, 200),
        (Method::PATCH, extend, 200),
        (Method::PUT, handover, 200),
        (Method::DELETE, resign, 200),
        // One that is needed.
        (Method::POST, "{\"candidate\": null, \"term\": 60000}", 400),
    ] {
        let request = fixture.agent.request(method.clone(), "/election/e");
        let request = request
            .header("content-type", "application/json")
            .body(body);
        let answer = fixture.agent.send(request).await;
        assert_eq!(answer.status, status, "{method} {body}: {answer:?}");
    }
}

#[tokio::test]
async fn the_root_leads_browsers_and_programs_on() {
    let fixture = Fixture::on(Store::Memory).await;
    let links = fixture.agent.get("/").await;
    assert_eq!(links.status, 200);
    let links = links.body.as_object().expect("links").clone();
    assert!(links.len() > 4, "{links:?}");
    for (name, path) in links {
        let path = path.as_str().expect("a path");
        assert_eq!(fixture.agent.get(path).await.status, 200, "{name}");
    }
    let browser = fixture.agent.request(Method::GET, "/");
    let browser = browser.header("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
    let page = fixture.agent.send(browser).await;
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type").starts_with("text/html"),
        "{page:?}"
    );
}

/// A raw gRPC call; its client has no opinion of what it sends.
fn post(agent: &Agent, path: &str, content_type: &str) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    client
        .post(format!("http://{}{path}", agent.address()))
        .header("content-type", content_type)
        .header("te", "trailers")
}

/// The HTTP status, gRPC status and gRPC message; trailers-only answers have them in the headers.
async fn answer(request: reqwest::RequestBuilder) -> (u16, String, String) {
    let response = request.send().await.expect("an answer");
    let header = |name: &str| {
        let value = response.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    (
        response.status().as_u16(),
        header("grpc-status"),
        header("grpc-message"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_grpc_is_refused_in_its_own_protocol() {
    const PATH: &str = CAMPAIGN;
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    let fixture = Fixture::on(Store::Memory).await;
    let agent = &fixture.agent;
    // Field 1, of type string, with a byte that is not UTF-8.
    let not_utf8 = framed(&[0x0a, 1, 0xff]);
    let truncated = framed(&[0x0a, 9, b'x']);
    let good = framed(&campaign("e", "a", 5_000).encode_to_vec());
    let too_large = framed(&vec![0; 65_537]);
    let (ok, invalid, exhausted, unimplemented) = ("0", "3", "8", "12");
    for (path, content_type, body, grpc_status, told) in [
        (PATH, "application/grpc", not_utf8, invalid, "UTF-8"),
        (
            PATH,
            "application/grpc",
            vec![],
            invalid,
            "not%20a%20gRPC%20message",
        ),
        (
            PATH,
            "application/grpc",
            vec![9, 0, 0, 0, 1, 0],
            invalid,
            "not%20a%20gRPC%20message",
        ),
        (
            PATH,
            "application/grpc",
            vec![0, 0, 0, 0, 9, 0],
            invalid,
            "",
        ),
        (
            PATH,
            "application/grpc+json",
            vec![],
            invalid,
            "must%20be%20protobuf",
        ),
        (
            PATH,
            "application/grpc-web+json",
            vec![],
            invalid,
            "must%20be%20protobuf",
        ),
        (
            HEALTH,
            "application/grpc",
            framed(&[0x0a, 1, 0xff]),
            invalid,
            "UTF-8",
        ),
        (
            PATH,
            "application/grpc",
            truncated,
            invalid,
            "does%20not%20decode",
        ),
        (
            PATH,
            "application/grpc",
            too_large,
            exhausted,
            "65536%20bytes",
        ),
        (
            "/grpc.election_agent.v1.Election/Nope",
            "application/grpc",
            vec![],
            unimplemented,
            "",
        ),
        (
            "/nope.Nope/Nope",
            "application/grpc",
            vec![],
            unimplemented,
            "no%20such",
        ),
        (
            "/election/e",
            "application/grpc",
            vec![],
            unimplemented,
            "no%20such",
        ),
        (PATH, GRPC_WEB, framed(&[0x0a, 1, 0xff]), invalid, "UTF-8"),
    ] {
        let (status, code, message) = answer(post(agent, path, content_type).body(body)).await;
        assert_eq!(
            (status, code.as_str()),
            (200, grpc_status),
            "{path} {told}: {message}"
        );
        assert!(message.contains(told), "{told} is not in: {message}");
    }
    assert_eq!(
        agent.leader("e").await.expect_err("vacant").code(),
        Code::NotFound
    );
    // The same path and the same way of asking work with a good message.
    let (status, code, _) = answer(post(agent, PATH, "application/grpc").body(good)).await;
    assert_eq!(status, 200);
    assert!(code.is_empty() || code == ok, "{code}");
    assert_eq!(agent.leader("e").await.expect("held"), "a");
}

#[tokio::test]
async fn a_malformed_or_expired_grpc_timeout_is_refused() {
    const PATH: &str = "/grpc.election_agent.v1.Election/GetLeader";
    let fixture = Fixture::on(Store::Memory).await;
    for (timeout, grpc_status) in [("soon", "3"), ("0n", "4")] {
        let request =
            post(&fixture.agent, PATH, "application/grpc").header("grpc-timeout", timeout);
        let (status, code, message) = answer(request.body(framed(&[0x0a, 1, b'e']))).await;
        assert_eq!(
            (status, code.as_str()),
            (200, grpc_status),
            "{timeout}: {message}"
        );
    }
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_before_it_comes() {
    let fixture = Fixture::on(Store::Memory).await;
    let mut stream = tokio::net::TcpStream::connect(fixture.agent.address())
        .await
        .expect("connects");
    let head = "POST /election/e HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 1000000\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = [0; 1024];
    let reading = stream.read(&mut answer);
    let length = tokio::time::timeout(std::time::Duration::from_secs(5), reading)
        .await
        .expect("without waiting for the rest")
        .expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}
