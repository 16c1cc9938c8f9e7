//! The load test reports the delays and errors of servers for which these are known.

#![expect(
    clippy::expect_used,
    reason = "a test that cannot go on should say where"
)]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::Parser as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use loadtest::{
    caller::Protocol,
    floor,
    options::{Command, Load, Options},
    report::{Report, compare},
    run::run,
};
use tokio::{net::TcpListener, time::sleep};

/// What the server closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closes {
    Nothing,
    /// Each connection after its first reply.
    AfterEach,
    /// As above, and the server accepts only the first connection.
    Listener,
}

/// Starts a server that replies to every campaign after `delay`, but to one in `one_in` with 503 at once.
async fn server(delay: Duration, one_in: u64) -> SocketAddr {
    serve(delay, one_in, Closes::Nothing).await
}

async fn serve(delay: Duration, one_in: u64, closes: Closes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            let service = service_fn(move |request: Request<Incoming>| {
                let number = count.fetch_add(1, Ordering::Relaxed);
                async move {
                    request.into_body().collect().await.expect("a body");
                    let fails = number % one_in == one_in - 1;
                    if !fails {
                        sleep(delay).await;
                    }
                    let status = if fails { 503 } else { 200 };
                    let body = match fails {
                        true => "{\"detail\":\"come back later\"}",
                        false => "{\"elected\":true}",
                    };
                    let body = Full::new(Bytes::from_static(body.as_bytes()));
                    let answer = Response::builder().status(status).body(body);
                    Ok::<_, Infallible>(answer.expect("an answer"))
                }
            });
            let mut connection = hyper::server::conn::http1::Builder::new();
            connection.keep_alive(closes == Closes::Nothing);
            let serving = connection.serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { drop(serving.await) });
            if closes == Closes::Listener {
                return;
            }
        }
    });
    address
}

fn load(address: SocketAddr, arguments: &str) -> Load {
    let line = format!("loadtest rest --quiet --host http://{address} {arguments}");
    match Options::parse_from(line.split_whitespace()).command {
        Command::Rest(load) => load,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn delays_and_errors_are_what_the_server_makes_them() {
    let delay = Duration::from_millis(20);
    let address = server(delay, 10).await;
    let load = load(address, "--scenario campaign --clients 4 --iterations 50");
    let report = run(Protocol::Rest, &load).await.expect("a report");
    assert_eq!(report.requests, 200);
    assert_eq!(report.errors["503"], 20);
    assert_eq!(report.errors.len(), 1);
    // Never less than the delay; more only if this machine is slow.
    assert_eq!(report.messages["503"], "come back later");
    let latency = report.latency.expect("answers");
    assert!(latency.p50 >= 20_000, "{report}");
    assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
    let least = 50.0 * 0.9 * delay.as_secs_f64();
    assert!(report.seconds >= least, "{report}");
    assert!(report.requests_per_second <= 200.0 / least, "{report}");
}

#[tokio::test]
async fn in_an_open_loop_a_slow_answer_is_charged_for_those_that_had_to_wait() {
    // One connection, 50 ms a reply, a request every 10 ms: each waits 40 ms longer than the one before.
    let address = server(Duration::from_millis(50), u64::MAX).await;
    let arguments = "--scenario campaign --clients 1 --iterations 20 --rate 100";
    let open = run(Protocol::Rest, &load(address, arguments))
        .await
        .expect("a report");
    let max = |report: &Report| report.latency.expect("answers").max;
    assert!(max(&open) >= 50_000 + 19 * 40_000, "{open}");
    let arguments = "--scenario campaign --clients 1 --iterations 20";
    let closed = run(Protocol::Rest, &load(address, arguments))
        .await
        .expect("a report");
    let p50 = |report: &Report| report.latency.expect("answers").p50;
    assert!(p50(&closed) < p50(&open), "{closed}\n{open}");

    // The client sends everything due in half a second, although the server takes twice as long.
    let address = server(Duration::from_millis(20), u64::MAX).await;
    let arguments = "--scenario campaign --clients 1 --duration 500ms --rate 100";
    let open = run(Protocol::Rest, &load(address, arguments))
        .await
        .expect("a report");
    assert_eq!(open.requests, 50, "{open}");
    assert!(max(&open) >= 20_000 + 49 * 10_000, "{open}");
    // It sends nothing that is due later.
    let arguments = "--scenario campaign --clients 4 --duration 1s --rate 1";
    let open = run(Protocol::Rest, &load(address, arguments))
        .await
        .expect("a report");
    assert_eq!(open.requests, 1, "{open}");
}

#[tokio::test]
async fn connections_that_the_server_closes_are_opened_anew() {
    for arguments in ["", "--connections 1"] {
        let address = serve(Duration::ZERO, u64::MAX, Closes::AfterEach).await;
        let arguments = format!("--scenario campaign --clients 3 --iterations 20 {arguments}");
        let report = run(Protocol::Rest, &load(address, &arguments))
            .await
            .expect("a report");
        assert_eq!((report.requests, report.errors.len()), (60, 0), "{report}");
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_not_asked_as_fast_as_that_can_be_said() {
    let address = serve(Duration::ZERO, u64::MAX, Closes::Listener).await;
    let load = load(address, "--scenario campaign --clients 1 --duration 1s");
    let report = run(Protocol::Rest, &load).await.expect("a report");
    assert!(report.latency.is_some(), "{report}");
    // Each but the first comes 100 ms after the one before.
    assert!(
        (1..=11).contains(&report.errors["cannot connect"]),
        "{report}"
    );
    assert!(
        report.messages["cannot connect"].contains(&address.to_string()),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_gets_errors_alone_fails() {
    let address = server(Duration::ZERO, 1).await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args([
            "rest",
            "--quiet",
            "-c",
            "1",
            "-i",
            "3",
            "--scenario",
            "campaign",
            "--host",
        ])
        .arg(format!("http://{address}"))
        .output()
        .await
        .expect("it runs");
    let (found, why) = (output.stdout, output.stderr);
    let found = String::from_utf8(found).expect("text");
    assert!(
        found.contains("3 × 503, such as: come back later"),
        "{found}"
    );
    assert!(!found.contains("p50"), "{found}");
    assert_eq!(output.status.code(), Some(1));
    let why = String::from_utf8(why).expect("text");
    assert!(why.contains("nothing was measured"), "{why}");
}

#[tokio::test]
async fn answers_that_are_wrong_are_errors() {
    // The server elects every candidate, also a leader's rival.
    let address = server(Duration::ZERO, u64::MAX).await;
    let load = load(address, "--scenario mixed --clients 2 --iterations 10");
    let report = run(Protocol::Rest, &load).await.expect("a report");
    assert_eq!(report.errors["wrong: two leaders"], 10, "{report}");

    // If the load itself lets terms lapse, a rival may lead.
    let load = self::load(
        address,
        "--scenario mixed --clients 1 --iterations 4 --term 2ms",
    );
    let report = run(Protocol::Rest, &load).await.expect("a report");
    assert_eq!(
        report.errors["a term was over before it was extended"], 2,
        "{report}"
    );
}

#[tokio::test]
async fn options_that_contradict_each_other_are_told() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    for (arguments, says) in [
        ("--scenario failover --rate 5", "give it no --rate"),
        (
            "--scenario failover --duration 5s",
            "a --term of 5s or less",
        ),
    ] {
        let found = run(Protocol::Rest, &load(address, arguments)).await;
        let found = found.expect_err("no report");
        assert!(found.contains(says), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_floor_answers_campaigns_and_processes_are_looked_at() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    tokio::spawn(floor::serve(address));
    let arguments = format!(
        "--scenario campaign --clients 8 --connections 2 --iterations 100 --agent-pid {0} --redis-pid {0}",
        std::process::id()
    );
    let load = load(address, &arguments);
    let report = loop {
        // Until it listens.
        match run(Protocol::Grpc, &load).await {
            Ok(report) => break report,
            Err(what) => assert!(what.contains("cannot connect"), "{what}"),
        }
    };
    assert_eq!((report.requests, report.errors.len()), (800, 0), "{report}");
    assert_eq!((report.clients, report.connections), (8, 2));
    let agent = report.agent.expect("looked at");
    assert!(
        agent.peak_memory > 1_000_000 && agent.cpu_seconds > 0.0,
        "{report}"
    );
    assert_eq!(report.redis.len(), 1);

    let directory = tempfile::TempDir::new().expect("a directory");
    let file = directory.path().join("a.json");
    report.write(&file).expect("written");
    let mut other = Report::read(&file).expect("read");
    assert_eq!(other, report);
    other.requests_per_second *= 2.0;
    let table = compare(&report, &other);
    let line = table
        .lines()
        .find(|line| line.starts_with("requests a second"));
    assert!(line.is_some_and(|line| line.ends_with("2.000")), "{table}");
    std::fs::write(&file, "{}").expect("written");
    assert!(Report::read(&file).is_err_and(|what| what.contains("no result of --json")));
}

#[tokio::test]
async fn what_cannot_be_measured_is_told() {
    let address = server(Duration::ZERO, u64::MAX).await;
    let gone = load(
        address,
        "--scenario campaign --iterations 1 --agent-pid 4194304",
    );
    let found = run(Protocol::Rest, &gone).await.expect_err("no process");
    assert!(found.contains("is 4194304 a process here?"), "{found}");
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let found = run(Protocol::Rest, &load(nobody, "-i 1"))
        .await
        .expect_err("nobody listens");
    assert!(found.contains("cannot connect"), "{found}");
}
