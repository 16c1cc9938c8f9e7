//! A Kubernetes API server: pods, ReplicaSets and Deployments to list and watch, reviews of tokens and of
//! rights, and what goes wrong with one.

mod bulk;
mod faults;
pub(crate) mod fixtures;
mod requests;
mod rights;
pub(crate) mod rollout;
mod selector;
mod server;
mod status;
mod store;
mod watch;

pub(crate) use faults::{Fault, Gone};
use requests::Asked;
pub(crate) use rights::Right;

use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, MutexGuard, atomic::Ordering::Relaxed},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use self::{
    server::State,
    store::{Resource, Store},
    watch::Command,
};
use super::{AUDIENCE, HttpServer, eventually, owned};

/// The owner of the token `good`.
pub(crate) const SERVICE_ACCOUNT: &str = "system:serviceaccount:batch:worker";
/// The agent's identity at the API server.
pub(crate) const USER: &str = "system:serviceaccount:election:agent";
/// The kubeconfig's context that leads to this server, and the one that leads nowhere.
pub(crate) const CONTEXT: &str = "here";
pub(crate) const WRONG_CONTEXT: &str = "elsewhere";

/// The server, and kubeconfigs for it; stops when dropped.
pub(crate) struct ApiServer {
    server: Option<HttpServer>,
    address: SocketAddr,
    state: Arc<State>,
    directory: TempDir,
}

/// How it reviews tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reviews {
    /// `good` is the service account's.
    AsEver,
    /// The agent lacks the right.
    Forbidden,
    /// `good` has another audience.
    OfOthers,
    /// Not until another answer is set.
    Held,
}

impl ApiServer {
    /// Starts one that keeps nothing yet; the agent may list and watch all.
    pub(crate) async fn start() -> Self {
        let state = Arc::new(State::new("the-agents-own"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut started = Self {
            server: None,
            address,
            state,
            directory: TempDir::new().expect("a directory"),
        };
        started.serve(listener);
        fs::write(started.path("token"), "the-agents-own").expect("written");
        for (file, context) in [
            ("kubeconfig", CONTEXT),
            ("kubeconfig-elsewhere", WRONG_CONTEXT),
        ] {
            let config = started.kubeconfig(context).to_string();
            fs::write(started.path(file), config).expect("written");
        }
        started
    }

    fn serve(&mut self, listener: TcpListener) {
        let state = Arc::clone(&self.state);
        let answer = move |request| Arc::clone(&state).answer(request);
        self.server = Some(HttpServer::start_streaming(listener, answer));
    }

    /// Where it listens, also while it is stopped.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn path(&self, file: &str) -> String {
        self.directory.path().join(file).display().to_string()
    }

    fn kubeconfig(&self, context: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": context,
            "clusters": [
                {"name": "test", "cluster": {"server": self.url()}},
                // Nothing listens there.
                {"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
            "users": [{"name": "agent", "user": {"tokenFile": self.path("token")}}],
            "contexts": [
                {"name": CONTEXT, "context": {"cluster": "test", "user": "agent"}},
                {"name": WRONG_CONTEXT, "context": {"cluster": "gone", "user": "agent"}},
            ],
        })
    }

    /// An agent's, to reach this server.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        owned(&[
            ("EA_KUBE_IN_CLUSTER", "false"),
            ("KUBECONFIG", &self.path("kubeconfig")),
        ])
    }

    /// The same by a kubeconfig whose current context leads nowhere; [`CONTEXT`] leads here.
    pub(crate) fn settings_with_wrong_context(&self) -> Vec<(String, String)> {
        owned(&[
            ("EA_KUBE_IN_CLUSTER", "false"),
            ("KUBECONFIG", &self.path("kubeconfig-elsewhere")),
        ])
    }

    /// An agent's, to have this server review tokens.
    pub(crate) fn review_settings(&self) -> Vec<(String, String)> {
        let mut settings = self.settings();
        settings.extend(owned(&[
            ("EA_AUTH_MODES", "kubernetes"),
            ("EA_AUTH_KUBERNETES_AUDIENCES", AUDIENCE),
            ("EA_AUTH_KUBERNETES_CACHE_TTL", "1s"),
        ]));
        settings
    }

    pub(crate) fn reviews(&self, mode: Reviews) {
        self.state.reviews.send_replace(mode);
    }

    /// How many token reviews it has received.
    pub(crate) fn answered(&self) -> usize {
        self.count("create", "tokenreviews")
    }

    /// From now on the agent may do this and nothing else; watches that run go on.
    pub(crate) fn set_rights(&self, rights: Vec<Right>) {
        *self.state.rights.lock().expect("unlocked") = rights;
    }

    /// From now on only this token is accepted, which is in the token file; watches that run go on.
    pub(crate) fn rotate_token(&self, new: &str) {
        // As the kubelet does: the file is never half written.
        fs::write(self.path("token-new"), new).expect("written");
        fs::rename(self.path("token-new"), self.path("token")).expect("renamed");
        new.clone_into(&mut self.state.token.lock().expect("unlocked"));
    }

    /// The requests until now, whatever the replies.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.state.asked.lock().expect("unlocked").clone()
    }

    /// How many requests had this verb (`get`, `list`, `watch`, `create`).
    pub(crate) fn count(&self, verb: &str, resource: &str) -> usize {
        let asked = self.state.asked.lock().expect("unlocked");
        let asked = asked
            .iter()
            .filter(|asked| asked.verb == verb && asked.resource == resource);
        asked.count()
    }

    /// How many watches of the resource run.
    pub(crate) fn watching(&self, resource: &str) -> usize {
        self.state.watches.count(resource)
    }
}

/// Changes.
impl ApiServer {
    /// Creates the object or replaces it. Says its version.
    pub(crate) fn apply(&self, object: Value) -> u64 {
        self.change(|store| store.apply(object))
    }

    /// Deletes the object at once.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = format!("{namespace}/{name}");
        let deleted = self.change(|store| store.delete(Resource::of_kind(kind), &key));
        assert!(deleted, "{kind} {key} is not there");
    }

    /// Changes the object. Says its version.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn update(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> u64 {
        let (resource, key) = (Resource::of_kind(kind), format!("{namespace}/{name}"));
        self.change(|store| {
            let object = store.value(resource, &key);
            let mut object = object.unwrap_or_else(|| panic!("{kind} {key} is not there"));
            change(&mut object);
            object["kind"] = kind.into();
            store.apply(object)
        })
    }

    /// The object as it is.
    pub(crate) fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.store()
            .value(Resource::of_kind(kind), &format!("{namespace}/{name}"))
    }

    /// The version of the latest change.
    pub(crate) fn version(&self) -> u64 {
        self.store().version()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.state.store.lock().expect("unlocked")
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = change(&mut store);
        self.state.changed.send_replace(store.version());
        done
    }
}

/// What goes wrong.
impl ApiServer {
    /// Answers some of the next requests with an error; faults that were added before come first.
    pub(crate) fn fail(&self, fault: Fault) {
        self.state.faults.lock().expect("unlocked").add(fault);
    }

    /// Takes the faults away that are only for these requests.
    pub(crate) fn mend(&self, verb: &str, resource: &str) {
        let mut faults = self.state.faults.lock().expect("unlocked");
        faults.mend(verb, resource);
    }

    /// Whether watches that begin from now on end at once.
    pub(crate) fn end_watches_at_once(&self, at_once: bool) {
        self.state.hasty.store(at_once, Relaxed);
    }

    /// Whether from now on it reaches no verdict on a right that the agent lacks.
    pub(crate) fn lose_authorizer(&self, lost: bool) {
        self.state.undecided.store(lost, Relaxed);
    }

    /// From now on no token is accepted, until it is [rotated](Self::rotate_token).
    pub(crate) fn refuse_tokens(&self) {
        "nobody's".clone_into(&mut self.state.token.lock().expect("unlocked"));
    }

    /// Forgets what happened until now: a watch from an earlier version, or the rest of a list, is gone.
    pub(crate) fn compact(&self, gone: Gone) {
        self.state.faults.lock().expect("unlocked").gone = gone;
        self.store().compact();
    }

    /// Sends all watches that want any a bookmark.
    pub(crate) fn bookmarks(&self) {
        self.state.watches.tell(&Command::Bookmark);
    }

    /// Ends all watches as their timeout would, but without a bookmark.
    pub(crate) fn end_watches(&self) {
        self.state.watches.tell(&Command::End);
    }

    /// Reports to all watches that they are too far behind, which ends them.
    pub(crate) fn expire_watches(&self) {
        let version = self.version();
        let failure = status::Failure::too_old(version, version + 1);
        self.state.watches.tell(&Command::Fail(failure));
    }

    /// Resets the connections of all watches in the middle of a line.
    pub(crate) fn reset_watches(&self) {
        self.state.watches.tell(&Command::Reset);
    }

    /// Resets the connection of each watch that now runs in the middle of its next event.
    pub(crate) fn reset_watches_in_next_event(&self) {
        self.state.watches.tell(&Command::ResetInNextEvent);
    }

    /// Answers nothing and sends watches nothing, until it is released.
    pub(crate) fn hold(&self) {
        self.state.held.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.state.held.send_replace(false);
    }

    /// Closes the port and all connections; what it keeps stays.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    /// Starts again, at the same port.
    pub(crate) async fn start_again(&mut self) {
        self.stop();
        let address = self.address;
        // The former listener is closed as the runtime gets round to it.
        let listener = eventually("the port is free", async || {
            TcpListener::bind(address).await.ok()
        });
        let listener = listener.await;
        self.serve(listener);
    }
}
