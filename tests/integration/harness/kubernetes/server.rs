//! The answers of an API server.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    Gone, Reviews, SERVICE_ACCOUNT,
    faults::Faults,
    requests::{Asked, Unknown},
    rights::{self, Right},
    selector::Selector,
    status::{Failure, json_response},
    store::{Object, Resource, Store},
    watch::{Wanted, Watch, Watches, error_line},
};
use crate::harness::{
    AUDIENCE,
    http::{Body, Reset, whole},
};

/// How long a watch lasts that does not say how long it is to.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1_800);
/// How many objects of a list go out in one frame.
const FRAME: usize = 64;

/// What the server knows, and how it is to answer.
pub(crate) struct State {
    pub(crate) store: Mutex<Store>,
    /// The version of the latest change.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) watches: Watches,
    pub(crate) rights: Mutex<Vec<Right>>,
    /// The one token that is accepted.
    pub(crate) token: Mutex<String>,
    pub(crate) asked: Mutex<Vec<Asked>>,
    pub(crate) faults: Mutex<Faults>,
    /// Whether nothing is answered.
    pub(crate) held: watch::Sender<bool>,
    pub(crate) reviews: watch::Sender<Reviews>,
    /// Whether watches end at once.
    pub(crate) hasty: AtomicBool,
    /// Whether it reaches no verdict on rights that it does not know.
    pub(crate) undecided: AtomicBool,
}

impl State {
    pub(crate) fn new(token: &str) -> Self {
        let store = Store::new();
        Self {
            changed: watch::Sender::new(store.version()),
            store: Mutex::new(store),
            watches: Watches::default(),
            rights: Mutex::new(Right::watching()),
            token: Mutex::new(token.to_owned()),
            asked: Mutex::default(),
            faults: Mutex::default(),
            held: watch::Sender::new(false),
            reviews: watch::Sender::new(Reviews::AsEver),
            hasty: AtomicBool::default(),
            undecided: AtomicBool::default(),
        }
    }

    /// Waits while nothing is to be answered.
    pub(crate) async fn released(&self) {
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held)
            .await
            .expect("the state is there");
    }

    /// Answers a request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Bytes>) -> Response<Body> {
        let asked = Asked::read(request.method(), request.uri());
        if let Ok(asked) = &asked {
            self.asked.lock().expect("unlocked").push(asked.clone());
        }
        self.released().await;
        let answer = match self.admit(&request, asked) {
            Err(failure) => Err(failure),
            Ok(asked) if asked.verb == "create" => self.create(&asked, request.body()).await,
            Ok(asked) => {
                let reset = request.extensions().get::<Reset>().expect("set").clone();
                self.read(&asked, reset)
            }
        };
        answer.unwrap_or_else(|failure| failure.response())
    }

    /// Checks before a request is handled: faults, authentication, and rights.
    fn admit(
        &self,
        request: &Request<Bytes>,
        asked: Result<Asked, Unknown>,
    ) -> Result<Asked, Failure> {
        if let Ok(asked) = &asked
            && let Some(fault) = self.faults.lock().expect("unlocked").strike(asked)
        {
            return Err(fault);
        }
        let expected = format!("Bearer {}", self.token.lock().expect("unlocked"));
        let shown = request.headers().get(header::AUTHORIZATION);
        if shown.is_none_or(|shown| shown.as_bytes() != expected.as_bytes()) {
            return Err(Failure::unauthorized());
        }
        let asked = asked.map_err(|unknown| match unknown {
            Unknown::Path => Failure::no_resource(),
            Unknown::Method => Failure::method_not_allowed(),
        })?;
        if !rights::permit(&self.rights.lock().expect("unlocked"), &asked) {
            return Err(Failure::forbidden(&asked));
        }
        let accept = request.headers().get(header::ACCEPT);
        if accept.is_some_and(|accept| accept.to_str().unwrap_or_default().contains("as=")) {
            let message = "this server answers with whole objects only";
            return Err(Failure::new(406, "NotAcceptable", message));
        }
        Ok(asked)
    }

    async fn create(&self, asked: &Asked, body: &Bytes) -> Result<Response<Body>, Failure> {
        let review: Value = serde_json::from_slice(body)
            .map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))?;
        let answer = match &*asked.resource {
            "tokenreviews" => self.review_token(asked, review).await?,
            _ => {
                let undecided = self.undecided.load(Relaxed);
                rights::review(&self.rights.lock().expect("unlocked"), &review, undecided)
            }
        };
        Ok(json_response(201, whole(answer.to_string())))
    }

    async fn review_token(&self, asked: &Asked, mut review: Value) -> Result<Value, Failure> {
        let mut reviews = self.reviews.subscribe();
        let mode = reviews.wait_for(|mode| *mode != Reviews::Held).await;
        let mode = *mode.expect("the state is there");
        if mode == Reviews::Forbidden {
            return Err(Failure::forbidden(asked));
        }
        let audiences = review["spec"]["audiences"].as_array();
        let meant = audiences.is_some_and(|audiences| audiences.contains(&AUDIENCE.into()));
        review["status"] = match review["spec"]["token"].as_str() {
            Some("good") if meant => json!({
                "authenticated": true,
                "user": {
                    "username": SERVICE_ACCOUNT,
                    "uid": "7f3c", "groups": ["system:serviceaccounts", "system:authenticated"],
                },
                "audiences": match mode { Reviews::OfOthers => json!(["vault"]), _ => json!([AUDIENCE]) },
            }),
            _ => json!({"authenticated": false, "error": "[invalid bearer token]"}),
        };
        Ok(review)
    }

    fn read(self: &Arc<Self>, asked: &Asked, reset: Reset) -> Result<Response<Body>, Failure> {
        let resource = asked.kept().ok_or_else(Failure::no_resource)?;
        if let Some(name) = &asked.name {
            let key = format!("{}/{name}", asked.namespace.as_deref().unwrap_or_default());
            let store = self.store.lock().expect("unlocked");
            let object = store
                .get(resource, &key)
                .ok_or_else(|| Failure::not_found(asked))?;
            let text = [resource.opening().as_bytes(), &object.text].concat();
            return Ok(json_response(200, whole(text)));
        }
        let selector = asked.parameter("labelSelector").unwrap_or_default();
        let selector = Selector::parse(selector).ok_or_else(|| {
            Failure::bad_request(format!("unable to parse requirement: {selector}"))
        })?;
        if let Some(fields) = asked.parameter("fieldSelector") {
            let message = format!("this server has no field selectors: {fields}");
            return Err(Failure::bad_request(message));
        }
        match asked.verb {
            "watch" => self.watch(asked, resource, selector, reset),
            _ => self.list(asked, resource, &selector),
        }
    }

    fn list(
        &self,
        asked: &Asked,
        resource: Resource,
        selector: &Selector,
    ) -> Result<Response<Body>, Failure> {
        let limit = asked.parameter("limit").unwrap_or("0").parse();
        let mut limit: usize = limit.map_err(|_| Failure::bad_request("limit is not a number"))?;
        let store = self.store.lock().expect("unlocked");
        let (current, oldest) = (store.version(), store.compacted());
        let (mut version, mut after) = (current, String::new());
        let at = number(asked, "resourceVersion")?;
        match (asked.parameter("continue"), at) {
            (Some(token), _) => {
                let page = Page::read(token)
                    .ok_or_else(|| Failure::bad_request("continue key is not valid"))?;
                match page.version {
                    Some(begun) if begun < oldest => {
                        let again = Page {
                            version: None,
                            ..page
                        };
                        return Err(Failure::continue_too_old(&again.token()));
                    }
                    begun => version = begun.unwrap_or(current),
                }
                after = page.after;
            }
            (None, Some(at)) if at > current => {
                return Err(Failure::version_too_large(at, current));
            }
            // Whatever the cache has, and all of it.
            (None, Some(0)) => limit = 0,
            (None, Some(at)) => {
                let matching = asked.parameter("resourceVersionMatch");
                let exact = matching == Some("Exact") || matching.is_none() && limit > 0;
                if exact && at < oldest {
                    return Err(Failure::version_too_old(at));
                }
                if exact {
                    version = at;
                }
            }
            (None, None) => {}
        }
        let mut all = store
            .at(version, resource, asked.namespace.as_deref(), &after)
            .filter(|(_, object)| selector.selects(&object.labels));
        let (mut objects, mut last) = (VecDeque::new(), None);
        while objects.len() < limit || limit == 0 {
            let Some((key, object)) = all.next() else {
                break;
            };
            objects.push_back(Arc::clone(object));
            last = Some(key);
        }
        let mut metadata = json!({"resourceVersion": version.to_string()});
        let remaining = if limit == 0 { 0 } else { all.count() };
        if remaining > 0 {
            let page = Page {
                version: Some(version),
                after: last.cloned().unwrap_or_default(),
            };
            metadata["continue"] = page.token().into();
            if selector.is_empty() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        let opening = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            resource.kind(),
            resource.api_version(),
        );
        Ok(json_response(200, list_body(opening, objects)))
    }

    fn watch(
        self: &Arc<Self>,
        asked: &Asked,
        resource: Resource,
        selector: Selector,
        reset: Reset,
    ) -> Result<Response<Body>, Failure> {
        if asked.is_set("sendInitialEvents") {
            return Err(Failure::streaming_lists_are_off());
        }
        let timeout = number(asked, "timeoutSeconds")?.filter(|seconds| *seconds > 0);
        let timeout = timeout.map_or(WATCH_TIMEOUT, Duration::from_secs);
        let wanted = Wanted {
            resource,
            namespace: asked.namespace.clone(),
            selector,
            bookmarks: asked.is_set("allowWatchBookmarks"),
            timeout: match self.hasty.load(Relaxed) {
                true => Duration::ZERO,
                false => timeout,
            },
        };
        let store = self.store.lock().expect("unlocked");
        let (version, initial) = match number(asked, "resourceVersion")? {
            Some(0) | None => {
                let (version, namespace) = (store.version(), wanted.namespace.as_deref());
                let all = store.at(version, resource, namespace, "");
                let all = all.filter(|(_, object)| wanted.selector.selects(&object.labels));
                (version, all.map(|(_, object)| Arc::clone(object)).collect())
            }
            Some(version) if version < store.compacted() => {
                let failure = Failure::too_old(version, store.compacted());
                return match self.faults.lock().expect("unlocked").gone {
                    Gone::Status => Err(failure),
                    Gone::Event => Ok(json_response(200, whole(error_line(&failure)))),
                };
            }
            Some(version) => (version, VecDeque::new()),
        };
        drop(store);
        Ok(json_response(
            200,
            Watch::body(self, wanted, version, initial, reset),
        ))
    }
}

/// Where a list goes on.
struct Page {
    /// As of when; none: as of now.
    version: Option<u64>,
    /// The key of the last object that was listed.
    after: String,
}

impl Page {
    fn read(token: &str) -> Option<Self> {
        let token = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let token: Value = serde_json::from_slice(&token).ok()?;
        Some(Self {
            version: u64::try_from(token["rv"].as_i64()?).ok(),
            after: token["start"].as_str()?.strip_suffix('\0')?.to_owned(),
        })
    }

    fn token(&self) -> String {
        let version = self.version.map_or(json!(-1), |version| json!(version));
        let start = format!("{}\0", self.after);
        let token = json!({"v": "meta.k8s.io/v1", "rv": version, "start": start});
        BASE64_URL_SAFE_NO_PAD.encode(token.to_string())
    }
}

fn number(asked: &Asked, name: &str) -> Result<Option<u64>, Failure> {
    let number = asked.parameter(name).map(str::parse).transpose();
    number.map_err(|error| Failure::bad_request(format!("{name}: {error}")))
}

/// The texts are put together as the client takes them.
fn list_body(opening: String, objects: VecDeque<Arc<Object>>) -> Body {
    let begin = Some((opening, objects));
    let frames = stream::unfold(begin, async |rest| {
        let (opening, mut objects) = rest?;
        let mut frame = BytesMut::from(opening.as_bytes());
        let mut separator = opening.ends_with('[');
        for object in objects.drain(..objects.len().min(FRAME)) {
            frame.extend_from_slice(if separator { b"{" } else { b",{" });
            frame.extend_from_slice(&object.text);
            separator = false;
        }
        let rest = (!objects.is_empty()).then_some((String::new(), objects));
        if rest.is_none() {
            frame.extend_from_slice(b"]}\n");
        }
        Some((Ok::<_, io::Error>(Frame::data(frame.freeze())), rest))
    });
    StreamBody::new(frames).boxed_unsync()
}
