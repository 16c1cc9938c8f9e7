//! A Kubernetes API server that reviews tokens, and nothing else.

use std::{
    fs,
    sync::{Arc, Condvar, Mutex},
};

use http::Response;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{AUDIENCE, HttpServer, owned};

/// Whose token `good` is.
pub(crate) const SERVICE_ACCOUNT: &str = "system:serviceaccount:batch:worker";

/// The server, and a kubeconfig for it; stops when dropped.
pub(crate) struct ApiServer {
    server: Option<HttpServer>,
    mode: Arc<(Mutex<Reviews>, Condvar)>,
    directory: TempDir,
}

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reviews {
    /// `good` is the service account's.
    AsEver,
    /// The agent may not ask.
    Forbidden,
    /// `good` is meant for others.
    OfOthers,
    /// Not until it is told to answer otherwise.
    Held,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let mode = Arc::new((Mutex::new(Reviews::AsEver), Condvar::new()));
        let reviewing = Arc::clone(&mode);
        let server = HttpServer::start(move |request| {
            let answer = |status: u16, body: Value| {
                Response::builder()
                    .status(status)
                    .header("content-type", "application/json")
                    .body(body.to_string())
                    .expect("a response")
            };
            assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
            assert_eq!(request.headers()["authorization"], "Bearer the-agents-own");
            let (mode, changed) = &*reviewing;
            let mode = mode.lock().expect("unlocked");
            let held = |mode: &mut Reviews| *mode == Reviews::Held;
            let mode = *changed.wait_while(mode, held).expect("unlocked");
            if mode == Reviews::Forbidden {
                return answer(403, json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "tokenreviews.authentication.k8s.io is forbidden", "reason": "Forbidden", "code": 403,
                }));
            }
            let mut review: Value = serde_json::from_slice(request.body()).expect("JSON");
            assert_eq!(review["spec"]["audiences"], json!([AUDIENCE]));
            review["status"] = match review["spec"]["token"].as_str() {
                Some("good") => json!({
                    "authenticated": true,
                    "user": {
                        "username": SERVICE_ACCOUNT,
                        "uid": "7f3c", "groups": ["system:serviceaccounts", "system:authenticated"],
                    },
                    "audiences": match mode { Reviews::OfOthers => json!(["vault"]), _ => json!([AUDIENCE]) },
                }),
                _ => json!({"authenticated": false, "error": "[invalid bearer token]"}),
            };
            answer(201, review)
        })
        .await;
        let directory = TempDir::new().expect("a directory");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server.url("")}}],
            "users": [{"name": "agent", "user": {"token": "the-agents-own"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "agent"}}],
        });
        fs::write(directory.path().join("kubeconfig"), config.to_string()).expect("written");
        Self {
            server: Some(server),
            mode,
            directory,
        }
    }

    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let kubeconfig = self
            .directory
            .path()
            .join("kubeconfig")
            .display()
            .to_string();
        owned(&[
            ("EA_AUTH_MODES", "kubernetes"),
            ("EA_AUTH_KUBERNETES_AUDIENCES", AUDIENCE),
            ("EA_AUTH_KUBERNETES_CACHE_TTL", "1s"),
            ("EA_KUBE_IN_CLUSTER", "false"),
            ("KUBECONFIG", &kubeconfig),
        ])
    }

    pub(crate) fn reviews(&self, mode: Reviews) {
        *self.mode.0.lock().expect("unlocked") = mode;
        self.mode.1.notify_all();
    }

    /// How many reviews it has answered.
    pub(crate) fn answered(&self) -> usize {
        self.server.as_ref().map_or(0, HttpServer::answered)
    }

    pub(crate) fn stop(&mut self) {
        self.server = None;
    }
}
