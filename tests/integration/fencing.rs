//! The recipes of docs/FENCING.md do what the page says. They are taken from the page.

#[expect(unreachable_pub, reason = "the page shows a module of a service")]
mod middleware;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use axum::{Router, middleware::from_fn_with_state, routing::post};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use redis::Script;
use tempfile::TempDir;
use tokio::sync::Barrier;
use tower::ServiceExt as _;

use crate::{
    clients::tool,
    harness::{HttpServer, Redis},
};
use middleware::{Fence, fence};

/// The code blocks of the page in this language.
fn blocks(language: &str) -> Vec<String> {
    let path = format!("{}/docs/FENCING.md", env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(path).expect("text");
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1);
    let blocks: Vec<_> = blocks
        .filter_map(|block| Some(block.split_once("\n```")?.0.to_owned()))
        .collect();
    assert!(!blocks.is_empty(), "no {language}");
    blocks
}

/// Has `work.py` do this beside the page's modules, which begin with the names of their files.
async fn works(directory: &Path, arguments: &[&str]) {
    for module in blocks("python") {
        let name = module
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# "));
        fs::write(directory.join(name.expect("a name")), &module).expect("written");
    }
    let work = include_str!("fencing/work.py");
    fs::write(directory.join("work.py"), work).expect("written");
    let mut python = Command::new(tool("python/bin/python"));
    python.arg(directory.join("work.py")).args(arguments);
    let output = tokio::task::spawn_blocking(move || python.output());
    let output = output.await.expect("ran").expect("Python");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn sqlite_keeps_fence_and_work_in_one_transaction() {
    let directory = TempDir::new().expect("a directory");
    let database = directory.path().join("database").display().to_string();
    works(directory.path(), &["sqlite", &database]).await;
}

#[tokio::test]
async fn postgresqls_statements_refuse_a_smaller_token() {
    let directory = TempDir::new().expect("a directory");
    let path = |name| directory.path().join(name).display().to_string();
    let [statements] = &blocks("sql")[..] else {
        panic!("one block of SQL");
    };
    fs::write(path("statements"), statements).expect("written");
    let arguments = ["postgresql", &path("database"), &path("statements")];
    works(directory.path(), &arguments).await;
}

#[tokio::test]
async fn a_wsgi_middleware_lets_no_former_leader_in() {
    let directory = TempDir::new().expect("a directory");
    let database = directory.path().join("database").display().to_string();
    works(directory.path(), &["http", &database]).await;
}

/// An object: its version, its token, and what it holds.
#[derive(Debug, Default)]
struct Object {
    version: u32,
    token: String,
    body: Bytes,
    /// How many conditional writes found another version.
    refused: usize,
}

impl Object {
    /// Answers as S3 does.
    fn answer(&mut self, request: &Request<Bytes>) -> Response<String> {
        let header = |name| {
            let value = request.headers().get(name);
            value.map(|value: &http::HeaderValue| value.to_str().expect("ASCII").to_owned())
        };
        let tag = format!("\"{}\"", self.version);
        let answer = Response::builder();
        let answer = match *request.method() {
            Method::HEAD if self.version == 0 => answer.status(StatusCode::NOT_FOUND),
            Method::HEAD => answer
                .header(header::ETAG, &tag)
                .header("x-amz-meta-token", &self.token),
            Method::PUT => {
                let holds = match (header("if-match"), header("if-none-match")) {
                    (Some(known), None) => known == tag,
                    (None, Some(any)) => any == "*" && self.version == 0,
                    conditions => panic!("{conditions:?}"),
                };
                match holds {
                    true => {
                        self.version += 1;
                        self.token = header("x-amz-meta-token").expect("a token");
                        self.body = request.body().clone();
                        answer
                    }
                    false => {
                        self.refused += 1;
                        answer.status(StatusCode::PRECONDITION_FAILED)
                    }
                }
            }
            ref method => panic!("{method}"),
        };
        answer.body(String::new()).expect("a response")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_only_over_what_was_compared() {
    let directory = TempDir::new().expect("a directory");
    let object = Arc::new(Mutex::new(Object::default()));
    let served = Arc::clone(&object);
    let server = HttpServer::start(move |request| {
        let mut object = served.lock().expect("whole");
        let first = request.method() == Method::PUT && object.refused == 0;
        if first {
            // Another writer comes between the comparison and the write.
            object.version += 1;
            object.token = "1".to_owned();
        }
        object.answer(&request)
    });
    let server = server.await;
    works(directory.path(), &["objects", &server.url("/report")]).await;
    let object = object.lock().expect("whole");
    let is = (
        object.version,
        &*object.token,
        &*object.body,
        object.refused,
    );
    assert_eq!(is, (4, "34", &b"c"[..], 1));
}

#[tokio::test]
async fn a_redis_script_refuses_a_smaller_token() {
    let redis = Redis::start().await;
    let mut connection = redis.connect().await;
    let [script] = &blocks("lua")[..] else {
        panic!("one block of Lua");
    };
    let script = Script::new(script);
    for (token, value, written) in [
        (33, "a", true),
        (33, "b", true),
        (100, "c", true),
        (99, "late", false),
        (33, "late", false),
        (9_007_199_254_740_990_u64, "d", true),
        (9_007_199_254_740_991, "e", true),
        (9_007_199_254_740_990, "late", false),
    ] {
        let mut call = script.key("{nightly}:fence");
        let call = call.key("{nightly}:report").arg(token).arg(value);
        let answer: bool = call.invoke_async(&mut connection).await.expect("an answer");
        assert_eq!(answer, written, "{token}");
        let stored: String = redis
            .ask(redis::cmd("GET").arg("{nightly}:report"))
            .await
            .expect("an answer");
        assert_eq!(stored == value, written, "{token}");
    }
}

#[test]
fn the_pages_rust_is_what_the_test_compiles() {
    let [rust] = &blocks("rust")[..] else {
        panic!("one block of Rust");
    };
    assert_eq!(include_str!("fencing/middleware.rs").trim_end(), rust);
}

#[tokio::test]
async fn an_axum_middleware_lets_no_former_leader_in() {
    let (inside, go) = (Arc::new(Barrier::new(3)), Arc::new(Barrier::new(3)));
    let done = Arc::new(Mutex::new(Vec::new()));
    let worked = Arc::clone(&done);
    let (at_work, released) = (Arc::clone(&inside), Arc::clone(&go));
    let work = move |body: String| async move {
        if body == "wait" {
            at_work.wait().await;
            released.wait().await;
        }
        worked.lock().expect("whole").push(body);
    };
    let app = Router::new()
        .route("/", post(work))
        .layer(from_fn_with_state(Fence::new(32), fence));
    let ask = async |token: Option<&str>, body: &'static str| {
        let mut request = Request::post("/");
        if let Some(token) = token {
            request = request.header("x-fencing-token", token);
        }
        let request = request.body(axum::body::Body::from(body)).expect("valid");
        let Ok(answer) = app.clone().oneshot(request).await;
        answer.status().as_u16()
    };
    for token in [
        None,
        Some(""),
        Some("x"),
        Some("0"),
        Some("9007199254740992"),
    ] {
        assert_eq!(ask(token, "").await, 400, "{token:?}");
    }
    assert_eq!(
        ask(Some("31"), "").await,
        409,
        "below the fence that was stored"
    );
    // Two requests of a leader are at work at once. Its successor's waits for both.
    let lasting = async || {
        inside.wait().await;
        let successor = std::pin::pin!(ask(Some("34"), "34"));
        let waits = futures_util::future::select(successor, std::future::ready(()));
        let futures_util::future::Either::Right(((), successor)) = waits.await else {
            panic!("it did not wait");
        };
        go.wait().await;
        successor.await
    };
    let all = tokio::join!(ask(Some("33"), "wait"), ask(Some("33"), "wait"), lasting());
    assert_eq!(all, (200, 200, 200));
    assert_eq!(*done.lock().expect("whole"), ["wait", "wait", "34"]);
    assert_eq!(ask(Some("33"), "late").await, 409);
    assert_eq!(ask(Some("34"), "34").await, 200);
    assert_eq!(*done.lock().expect("whole"), ["wait", "wait", "34", "34"]);
}
