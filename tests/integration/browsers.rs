//! Pages of other web origins, as a browser asks on their behalf.

use election_proto::CampaignRequest;
use prost::Message as _;
use reqwest::{Method, header};

use crate::harness::{Agent, Answer, CAMPAIGN, Fixture, GRPC_WEB, Store, campaign, framed};

const PAGE: &str = "https://dash.example";
async fn agent(origins: &str) -> Agent {
    let settings = [("EA_CORS_ORIGINS", origins)];
    let settings = if origins.is_empty() {
        &[][..]
    } else {
        &settings
    };
    Fixture::with(Store::Memory, settings).await.agent
}

/// The preflight request of a browser before it sends a page's request.
async fn preflight(agent: &Agent, path: &str, method: &str, origin: &str) -> Answer {
    let request = agent
        .request(Method::OPTIONS, path)
        .header(header::ORIGIN, origin)
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, method)
        .header(
            header::ACCESS_CONTROL_REQUEST_HEADERS,
            "content-type,x-grpc-web",
        );
    agent.send(request).await
}

fn exposes(answer: &Answer, name: &str) -> bool {
    let exposed = answer.header("access-control-expose-headers");
    exposed.split(',').any(|exposed| exposed.trim() == name)
}

/// A gRPC-Web call as a page makes it; the status is that of the trailers, or of the headers of a refusal.
async fn grpc_web(agent: &Agent, path: &str, message: &CampaignRequest) -> (Answer, String) {
    let request = agent
        .request(Method::POST, path)
        .header(header::ORIGIN, PAGE)
        .header(header::CONTENT_TYPE, GRPC_WEB)
        .body(framed(&message.encode_to_vec()));
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.bytes().await.expect("a body");
    let body = String::from_utf8_lossy(&body).into_owned();
    let grpc_status = match headers.get("grpc-status") {
        Some(status) => status.to_str().expect("text").to_owned(),
        None => {
            let (_, trailers) = body.split_once("grpc-status:").expect("trailers");
            trailers
                .trim()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect()
        }
    };
    let answer = Answer {
        status,
        headers,
        body: serde_json::Value::String(body),
    };
    (answer, grpc_status)
}

#[tokio::test]
async fn pages_of_configured_origins_ask_over_grpc_web_and_rest() {
    let agent = agent(&format!("http://localhost:3000, {PAGE}")).await;
    for (path, method) in [
        (CAMPAIGN, "POST"),
        ("/election/e", "PATCH"),
        ("/election/e", "DELETE"),
    ] {
        let allowed = preflight(&agent, path, method, PAGE).await;
        assert_eq!(allowed.status, 200, "{allowed:?}");
        assert_eq!(allowed.header("access-control-allow-origin"), PAGE);
        assert!(
            allowed
                .header("access-control-allow-methods")
                .contains(method)
        );
        assert_eq!(
            allowed.header("access-control-allow-headers"),
            "content-type,x-grpc-web"
        );
        assert_eq!(allowed.header("access-control-allow-credentials"), "");
    }
    let (elected, status) = grpc_web(&agent, CAMPAIGN, &campaign("e", "a", 10_000)).await;
    assert_eq!((elected.status, status.as_str()), (200, "0"), "{elected:?}");
    assert_eq!(elected.header("access-control-allow-origin"), PAGE);

    let rest = agent
        .request(Method::GET, "/election/e")
        .header(header::ORIGIN, PAGE);
    let rest = agent.send(rest).await;
    assert_eq!((rest.status, rest.text("leader")), (200, "a"));
    assert_eq!(rest.header("access-control-allow-origin"), PAGE);
}

#[tokio::test]
async fn pages_can_read_why_they_were_refused() {
    let agent = agent(PAGE).await;
    let (invalid, status) = grpc_web(&agent, CAMPAIGN, &campaign("e", "", 10_000)).await;
    assert_eq!(status, "3", "{invalid:?}");
    let unknown = "/grpc.election_agent.v1.Election/Abdicate";
    let (unknown, status) = grpc_web(&agent, unknown, &CampaignRequest::default()).await;
    assert_eq!(status, "12", "{unknown:?}");
    let missing = agent
        .request(Method::GET, "/nothing")
        .header(header::ORIGIN, PAGE);
    let missing = agent.send(missing).await;
    assert_eq!((missing.status, missing.text("code")), (404, "NotFound"));
    for refused in [invalid, unknown, missing] {
        assert_eq!(refused.header("access-control-allow-origin"), PAGE);
        for name in [
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "x-request-id",
        ] {
            assert!(exposes(&refused, name), "{name}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_given_nothing_that_a_browser_accepts() {
    for (origins, origin) in [
        (PAGE, "https://evil.example"),
        (PAGE, "http://dash.example"),
        (PAGE, "https://dash.example:8443"),
        (PAGE, "https://dash.example.evil.example"),
        ("", PAGE),
    ] {
        let agent = agent(origins).await;
        let refused = preflight(&agent, CAMPAIGN, "POST", origin).await;
        assert_eq!(
            refused.header("access-control-allow-origin"),
            "",
            "{origin}"
        );
        let asked = agent
            .request(Method::GET, "/livez")
            .header(header::ORIGIN, origin);
        let answer = agent.send(asked).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{origin}");
    }
    let open = agent("*").await;
    let anybody = preflight(&open, CAMPAIGN, "POST", "https://anybody.example").await;
    assert_eq!(anybody.header("access-control-allow-origin"), "*");
}
