//! The dashboard in a browser, served by an agent on real servers. The scenarios are ui/browser/scenarios.mjs; what has
//! to happen to servers and agents meanwhile happens here.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use reqwest::Method;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::harness::{
    Agent, ApiServer, Redis, Right, fixtures, free_port, new_token, owned, repository,
};

/// Where screenshots are kept.
fn screenshots() -> PathBuf {
    repository("target/dashboard")
}

/// A browser that plays scenarios on an agent's dashboard.
struct Browser {
    command: Command,
}

impl Browser {
    fn at(agent: &Agent) -> Self {
        let mut command = Command::new("node");
        command
            .arg(repository("ui/browser/run.mjs"))
            .env("UI_URL", format!("http://{}/ui/", agent.address()))
            .env("UI_SCREENSHOTS", screenshots())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        Self { command }
    }

    fn with(mut self, variable: &str, value: impl AsRef<str>) -> Self {
        self.command.env(variable, value.as_ref());
        self
    }

    async fn plays(self, scenarios: &[&str]) {
        self.plays_with(scenarios, async |fault| {
            panic!("no fault was expected: {fault}")
        })
        .await;
    }

    /// Plays these scenarios, and causes the faults that they request.
    async fn plays_with(mut self, scenarios: &[&str], mut fault: impl AsyncFnMut(&str)) {
        assert!(
            repository("ui/dist/index.html").exists(),
            "the dashboard is not built: run `make test`, which builds it"
        );
        let mut child = self.command.args(scenarios).spawn().expect("node runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut stdin = child.stdin.take().expect("piped");
        let (sender, mut lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut printed = Vec::new();
        while let Some(line) = lines.recv().await {
            if let Some(name) = line.strip_prefix("READY ") {
                fault(name).await;
                writeln!(stdin, "done").expect("written");
            }
            printed.push(line);
        }
        let ended = child.wait().expect("ends");
        let printed = printed.join("\n");
        assert!(ended.success(), "{printed}");
        let passed = printed.lines().filter(|line| line.starts_with("ok "));
        assert_eq!(passed.count(), scenarios.len(), "{printed}");
    }
}

/// An agent on a Redis server.
async fn on_redis(settings: &[(&str, &str)]) -> (Redis, Agent) {
    let server = Redis::start().await;
    let agent = Agent::on(std::slice::from_ref(&server), settings).await;
    agent.readiness(200, &["\"guard\":0"]).await;
    (server, agent)
}

#[tokio::test]
async fn every_page_shows_what_there_is_and_changes_at_once() {
    let (_server, agent) = on_redis(&[]).await;
    Browser::at(&agent)
        .plays(&["pages", "agent", "live", "terms"])
        .await;
}

#[tokio::test]
async fn pages_are_for_everybody() {
    let (_server, agent) = on_redis(&[]).await;
    Browser::at(&agent)
        .plays(&["axe", "keyboard", "rtl", "plain", "hostile"])
        .await;
}

#[tokio::test]
async fn ten_thousand_elections_are_shown() {
    let (_server, agent) = on_redis(&[("EA_MAX_TERM", "10m")]).await;
    Browser::at(&agent)
        .with("UI_TERM", "600000")
        .plays(&["many"])
        .await;
}

#[tokio::test]
async fn proxies_sleep_and_other_origins_are_survived() {
    let port = free_port().to_string();
    let origin = format!("http://127.0.0.1:{port}");
    let (_server, agent) = on_redis(&[("EA_CORS_ORIGINS", &origin)]).await;
    Browser::at(&agent)
        .with("UI_CROSS_PORT", &port)
        .plays(&["cross", "proxy", "sleep"])
        .await;
}

#[tokio::test]
async fn nodes_that_fail_are_shown_and_no_vacancy_is_guessed() {
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(Redis::start().await);
    }
    let agent = Agent::on(&servers[..], &[("EA_REDIS_OPERATION_TIMEOUT", "200ms")]).await;
    agent.readiness(200, &["\"guard\":0"]).await;
    Browser::at(&agent)
        .plays_with(&["nodes"], async |fault| match fault {
            "node-down" => servers[0].signal("STOP"),
            "quorum-lost" => servers[1].signal("STOP"),
            "nodes-up" => servers[..2].iter().for_each(|server| server.signal("CONT")),
            other => panic!("{other}"),
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_starts_again_is_found_again() {
    let server = Redis::start().await;
    let port = free_port().to_string();
    let start = async || {
        let settings = [("EA_HTTP_PORT", port.as_str()), ("EA_GRPC_PORT", &port)];
        let agent = Agent::on(std::slice::from_ref(&server), &settings).await;
        agent.readiness(200, &["\"guard\":0"]).await;
        agent
    };
    let mut agent = Some(start().await);
    let browser = Browser::at(agent.as_ref().expect("an agent"));
    browser
        .plays_with(&["restart"], async |fault| match fault {
            "agent-down" => drop(agent.take()),
            "agent-up" => agent = Some(start().await),
            other => panic!("{other}"),
        })
        .await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_refusals_are_explained() {
    let directory = TempDir::new().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let ((boss, line), (reader, other)) = (new_token(&["boss"]), new_token(&["reader"]));
    fs::write(at("tokens"), format!("{line}\n{other}\n")).expect("written");
    fs::create_dir(at("policies")).expect("created");
    let policy = r#"
        permit (principal, action, resource) when { principal.name == "boss" };
        permit (principal, action in [
            ElectionAgent::Action::"read", ElectionAgent::Action::"list", ElectionAgent::Action::"listKinds",
            ElectionAgent::Action::"observe"
        ], resource);
    "#;
    fs::write(at("policies/test.cedar"), policy).expect("written");
    let (_server, agent) = on_redis(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &at("tokens")),
        ("EA_AUTH_POLICY_DIR", &at("policies")),
    ])
    .await;
    Browser::at(&agent)
        .with("UI_TOKEN", &boss)
        .with("UI_WEAK_TOKEN", &reader)
        .plays(&["login"])
        .await;
}

#[tokio::test]
async fn the_pods_of_a_deployment_are_shown_by_revision() {
    let api = ApiServer::start().await;
    for object in fixtures::web_rollout() {
        api.apply(object);
    }
    api.set_rights(Right::watching());
    let mut settings = api.settings();
    settings.extend(owned(&[("EA_KUBE_ENABLE", "true")]));
    let agent = Agent::start(&settings).await;
    Browser::at(&agent)
        .with("UI_NAMESPACE", "shop")
        .with("UI_DEPLOYMENT", "web")
        .plays(&["pods"])
        .await;
}

/// The page names its files relatively, so that it works wherever a proxy serves it; they are cached for ever, and it
/// is not.
#[tokio::test]
async fn the_page_is_not_cached_and_its_files_are_for_ever() {
    let agent = Agent::start(&owned(&[("EA_UI_BASE_PATH", "/some/prefix/")])).await;
    let browser = agent
        .request(Method::GET, "/")
        .header("accept", "text/html");
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let client = client.build().expect("a client");
    let to = client.execute(browser.build().expect("a request")).await;
    let to = to.expect("an answer");
    assert_eq!(to.status(), 307);
    assert_eq!(to.headers()["location"], "/some/prefix/ui/");

    let page = agent.get("/ui/").await;
    assert_eq!(
        (page.status, page.header("cache-control")),
        (200, "no-store")
    );
    let policy = page.header("content-security-policy");
    assert!(
        policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let html = page.body.as_str().expect("text").to_owned();
    let names = html.split('"').filter(|part| part.starts_with("./assets/"));
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 2, "{html}");
    for name in names {
        let path = format!("/ui/{}", name.trim_start_matches("./"));
        let file = agent.get(&path).await;
        assert_eq!(file.status, 200, "{path}");
        assert_eq!(
            file.header("cache-control"),
            "public, max-age=31536000, immutable"
        );
        assert_eq!(file.header("x-content-type-options"), "nosniff");
    }
    let missing = agent.get("/ui/assets/index-0.js").await;
    assert_eq!((missing.status, missing.text("code")), (404, "NotFound"));
}

#[tokio::test]
async fn an_agent_without_a_dashboard_leads_browsers_to_the_documentation() {
    for (setting, why) in [
        ("EA_UI_ENABLE", "EA_UI_ENABLE=false"),
        ("EA_GRPC_ENABLE", "EA_GRPC_ENABLE=false"),
    ] {
        let agent = Agent::start(&owned(&[(setting, "false")])).await;
        let refused = agent.get("/ui/").await;
        assert_eq!((refused.status, refused.text("code")), (501, "Disabled"));
        assert!(refused.text("message").contains(why), "{refused:?}");
        let browser = agent
            .request(Method::GET, "/")
            .header("accept", "text/html");
        let page = agent.send(browser).await;
        assert!(
            page.header("content-type").starts_with("text/html"),
            "{page:?}"
        );
    }
}
