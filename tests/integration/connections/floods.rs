//! Clients that send too much: pings, requests that they cancel, headers.

use std::time::Duration;

use super::{
    agent,
    http2::{
        CONTINUATION, Client, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING,
        RST_STREAM, frame, headers,
    },
};

#[tokio::test]
async fn pings_that_come_too_soon_end_the_connection() {
    let agent = agent(&[]).await;
    let ping = frame(PING, 0, 0, &[0; 8]);
    let mut at_once = Client::connect(&agent).await;
    at_once.send(&ping.repeat(4)).await;
    let told = at_once.goaway().await;
    let expected = Some((ENHANCE_YOUR_CALM, "too_many_pings".to_owned()));
    assert_eq!(told, expected);
    at_once.closed().await;

    let mut one_by_one = Client::connect(&agent).await;
    for _ in 0..3 {
        one_by_one.ping().await;
    }
    one_by_one.send(&ping).await;
    assert_eq!(one_by_one.goaway().await, expected);
    one_by_one.closed().await;
    assert_eq!(agent.get("/livez").await.status, 200);
}

#[tokio::test]
async fn pings_after_answers_slow_pings_and_all_pings_without_a_limit_are_fine() {
    let strict = agent(&[]).await;
    let mut busy = Client::connect(&strict).await;
    for stream in (1..40).step_by(2) {
        for _ in 0..3 {
            busy.ping().await;
        }
        busy.ask(stream, "/livez").await;
    }
    let lenient = agent(&[("EA_GRPC_MIN_PING_INTERVAL", "100ms")]).await;
    let mut slow = Client::connect(&lenient).await;
    for _ in 0..8 {
        slow.ping().await;
        tokio::time::sleep(Duration::from_millis(110)).await;
    }
    let without = agent(&[("EA_GRPC_MIN_PING_INTERVAL", "0s")]).await;
    let mut pinging = Client::connect(&without).await;
    for _ in 0..50 {
        pinging.ping().await;
    }
}

#[tokio::test]
async fn floods_end_their_connection_and_no_other() {
    let agent = agent(&[]).await;
    let mut other = Client::connect(&agent).await;
    other.ask(1, "/livez").await;

    // Requests that are cancelled at once.
    let mut resets = Client::connect(&agent).await;
    let request = headers("GET", "/election/e");
    let cancelled = (0..2_000).map(|n| {
        let stream = 2 * n + 1;
        [
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &request),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    });
    let flood = cancelled.collect::<Vec<_>>().concat();
    resets.flood(&flood).await;
    if let Some((code, words)) = resets.goaway().await {
        assert_eq!(
            (code, words.as_str()),
            (ENHANCE_YOUR_CALM, "too_many_resets")
        );
    }
    resets.closed().await;

    // Headers without end, in many frames.
    let mut continued = Client::connect(&agent).await;
    let begun = frame(HEADERS, END_STREAM, 1, &request);
    let more = frame(CONTINUATION, 0, 1, &[]).repeat(1_000);
    continued.flood(&[begun, more].concat()).await;
    if let Some((code, words)) = continued.goaway().await {
        assert_eq!(
            (code, words.as_str()),
            (ENHANCE_YOUR_CALM, "too_many_continuations")
        );
    }
    continued.closed().await;

    other.ask(3, "/livez").await;
    assert_eq!(agent.get("/livez").await.status, 200);
}

#[tokio::test]
async fn headers_over_the_limit_are_refused_in_both_protocols() {
    let agent = agent(&[]).await;
    let h2c = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client");
    let url = format!("http://{}/livez", agent.address());
    for client in [reqwest::Client::new(), h2c] {
        for (length, status) in [(15_000, 200), (17_000, 431)] {
            let request = client.get(&url).header("x-long", "x".repeat(length));
            let answer = request.send().await.expect("an answer");
            assert_eq!(answer.status(), status, "{length}: {:?}", answer.version());
        }
    }
}
