//! The clients with agents that authenticate callers, by each mode.

use std::fs;

use election_agent::auth::Mode;
use jsonwebtoken::Algorithm;
use serde_json::json;
use strum::VariantArray;
use tempfile::TempDir;

use super::{CONNECT_WEB_CASES, GRPCIO_CASES, assert_all_passed, cases, connect_web_with, grpcio};
use crate::harness::{
    AUDIENCE, Agent, ApiServer, Authority, ISSUER, Key, SERVICE_ACCOUNT, jwt_settings, key_set,
    new_token, owned, token_now,
};

/// A caller that agents with these settings know, by one mode.
struct Caller {
    settings: Vec<(String, String)>,
    name: &'static str,
    shows: Shows,
    /// Vouches for the agent.
    authority: Authority,
    _directory: TempDir,
    _kubernetes: Option<ApiServer>,
}

/// The caller's credential.
enum Shows {
    Nothing,
    Token(String),
    Certificate,
}

impl Caller {
    async fn known_by(mode: Mode) -> Self {
        let authority = Authority::new();
        for name in ["localhost", "worker"] {
            authority.issue(name);
        }
        let directory = TempDir::new().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        let mut kubernetes = None;
        let mut settings = owned(&[("EA_AUTH_MODES", mode.name())]);
        let shows = match mode {
            Mode::None => Shows::Nothing,
            Mode::Token => {
                let (token, line) = new_token(&["worker"]);
                fs::write(at("tokens"), line).expect("written");
                settings.extend(owned(&[("EA_AUTH_TOKEN_FILE", &at("tokens"))]));
                Shows::Token(token)
            }
            Mode::Jwt => {
                let key = Key::new(Algorithm::ES256, "k");
                fs::write(at("keys"), key_set(&[&key])).expect("written");
                settings.extend(jwt_settings());
                settings.extend(owned(&[("EA_AUTH_JWT_JWKS_FILE", &at("keys"))]));
                // However long the clients take.
                let expires = token_now() + 3_600;
                Shows::Token(key.sign(&json!({
                    "iss": ISSUER, "aud": AUDIENCE, "sub": "worker", "exp": expires,
                })))
            }
            Mode::Mtls => {
                settings.extend(owned(&[
                    ("EA_TLS_CLIENT_CA_FILE", &*authority.path("ca.pem")),
                    // So that a caller without a certificate learns what is missing.
                    ("EA_TLS_CLIENT_AUTH", "optional"),
                ]));
                Shows::Certificate
            }
            Mode::Kubernetes => {
                let server = ApiServer::start().await;
                settings.extend(server.review_settings());
                settings.extend(owned(&[("EA_KUBE_ENABLE", "false")]));
                kubernetes = Some(server);
                Shows::Token("good".to_owned())
            }
        };
        Self {
            settings,
            name: match mode {
                Mode::Kubernetes => SERVICE_ACCOUNT,
                _ => "worker",
            },
            shows,
            authority,
            _directory: directory,
            _kubernetes: kubernetes,
        }
    }

    /// An agent that knows the caller, over TLS or not.
    async fn agent(&self, encrypted: bool) -> Agent {
        let mut settings = self.settings.clone();
        if encrypted {
            settings.extend(self.authority.settings());
        }
        Agent::start(&settings).await
    }

    /// The credential that grpcio sends.
    fn arguments(&self) -> Vec<String> {
        match &self.shows {
            Shows::Nothing => Vec::new(),
            Shows::Token(token) => vec!["--token".to_owned(), token.clone()],
            Shows::Certificate => vec![
                "--cert".to_owned(),
                self.authority.path("worker.crt"),
                "--key".to_owned(),
                self.authority.path("worker.key"),
            ],
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_makes_every_call_over_tls_in_every_mode() {
    for mode in Mode::VARIANTS.iter().copied() {
        println!("{}", mode.name());
        let caller = Caller::known_by(mode).await;
        let agent = caller.agent(true).await;
        let ca = caller.authority.path("ca.pem");
        let ask = |shown: &[String], arguments: &[&str]| {
            let shown = shown.iter().map(String::as_str);
            let arguments = ["--ca", &ca]
                .into_iter()
                .chain(shown)
                .chain(arguments.iter().copied());
            grpcio(&agent, &arguments.collect::<Vec<_>>())
        };
        let own = format!("{}/", caller.name);
        let known = caller.arguments();
        let answers = ask(&known, &["--candidate-prefix", &own]);
        assert_all_passed(answers, &GRPCIO_CASES);
        if mode == Mode::None {
            continue;
        }
        let (printed, _) = ask(&known, &["--candidate-prefix", "another/"]);
        let told = cases(&printed);
        let (_, error) = told
            .iter()
            .find(|(case, _)| case == "campaign")
            .expect(&printed);
        assert!(error.contains("StatusCode.PERMISSION_DENIED"), "{printed}");
        let refused = ["health_check", "every_rpc"];
        let answers = ask(&[], &["--expect-unauthenticated"]);
        assert_all_passed(answers, &refused);
        if mode != Mode::Mtls {
            let answers = ask(&[], &["--expect-unauthenticated", "--token", "wrong"]);
            assert_all_passed(answers, &refused);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_web_makes_every_call_with_a_bearer_token() {
    for mode in [Mode::Token, Mode::Jwt] {
        let caller = Caller::known_by(mode).await;
        let Shows::Token(token) = &caller.shows else {
            panic!("{} takes no tokens", mode.name());
        };
        for (scheme, encrypted) in [("http", false), ("https", true)] {
            println!("{} over {scheme}", mode.name());
            let agent = caller.agent(encrypted).await;
            let url = format!("{scheme}://{}", agent.address());
            let ask = |flags: &[&str], variables: &[(&str, &str)]| {
                connect_web_with(
                    &url,
                    encrypted.then_some(&caller.authority),
                    flags,
                    variables,
                )
            };
            let known = [("TOKEN", token.as_str()), ("CANDIDATE_PREFIX", "worker/")];
            assert_all_passed(ask(&[], &known), &CONNECT_WEB_CASES);
            for unknown in [&[][..], &[("TOKEN", "wrong")]] {
                let answers = ask(&["--expect-unauthenticated"], unknown);
                assert_all_passed(answers, &["health_check", "every_rpc", "rest"]);
            }
        }
    }
}
