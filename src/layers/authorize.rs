//! Asks policies who may see the agent itself: metrics, documents and probes, where they are not public
//! (`EA_AUTH_PUBLIC`). It is the action `read` on the agent. What is done with elections is asked at their door
//! (`crate::auth::gate`), where it is known.
//!
//! Refusal: PermissionDenied (PERMISSION_DENIED, 403); Internal (INTERNAL, 500) of a request that has not passed
//! authentication.

use std::task::{Context, Poll};

use axum::body::Body;
use election_core::election::quota::Held;
use futures_util::future::{Either, Ready, ready};
use http::Request;
use tower::{Layer, Service};

use crate::{
    auth::{
        gate::{denied, permits},
        policy::{Action, Policies, Question, Resource},
    },
    reload::Current,
    transport::{Area, caller, status::Problem},
};

/// Applies [`Authorize`].
#[derive(Debug, Clone)]
pub struct AuthorizeLayer {
    policies: Option<Current<Policies>>,
}

impl AuthorizeLayer {
    /// Asks these policies; without any, everybody may.
    #[must_use]
    pub fn new(policies: Option<Current<Policies>>) -> Self {
        Self { policies }
    }
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            inner,
            policies: self.policies.clone(),
        }
    }
}

/// Lets those see the agent who may.
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    policies: Option<Current<Policies>>,
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Error = Problem>,
{
    type Response = S::Response;
    type Error = Problem;
    type Future = Either<S::Future, Ready<Result<S::Response, Problem>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = match caller(request.extensions()) {
            Ok(caller) => caller,
            Err(problem) => return Either::Right(ready(Err(problem))),
        };
        // Who asks for what is public has not been asked for a name.
        if let Some(identity) = caller.identity()
            && Area::of(request.uri().path()) != Area::Api
        {
            let question = Question {
                identity,
                action: Action::Read,
                resource: Resource::Agent,
                candidate: None,
                current_leader: None,
                held: Held::default(),
            };
            if !permits(self.policies.as_ref(), &question) {
                return Either::Right(ready(Err(denied(&question).into())));
            }
        }
        Either::Left(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::{
        auth::{Caller, Identity, Mode},
        transport::status::Code,
    };

    fn named(name: &str) -> Caller {
        Caller::Known(Identity::new(Mode::Token, name, Vec::new()).expect("a name"))
    }

    /// What somebody is told who asks for a path.
    async fn ask(policies: Option<&str>, caller: Option<Caller>, path: &str) -> Result<(), Code> {
        let policies = policies.map(|text| {
            let policies = Policies::new([("test.cedar", text)]).expect("valid");
            watch::channel(Arc::new(policies)).1
        });
        let mut request = Request::get(path).body(Body::empty()).expect("a request");
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let answers = service_fn(|_: Request<Body>| async { Ok::<_, Problem>(()) });
        let answer = AuthorizeLayer::new(policies)
            .layer(answers)
            .oneshot(request);
        answer.await.map_err(|problem| problem.code)
    }

    #[tokio::test]
    async fn policies_say_who_sees_the_agent_where_it_is_not_public() {
        let operators = r#"permit (
            principal == ElectionAgent::Identity::"prometheus",
            action == ElectionAgent::Action::"read",
            resource == ElectionAgent::Agent::"agent"
        );"#;
        for path in ["/metrics", "/openapi.json", "/livez"] {
            let ask = |policies, caller| ask(policies, Some(caller), path);
            assert_eq!(ask(Some(operators), named("prometheus")).await, Ok(()));
            let denied = ask(Some(operators), named("worker")).await;
            assert_eq!(denied, Err(Code::PermissionDenied), "{path}");
            assert_eq!(ask(Some(operators), Caller::Public).await, Ok(()));
            assert_eq!(ask(None, named("worker")).await, Ok(()));
        }
        // The elections' own door asks about them.
        let passed = ask(Some(operators), Some(named("worker")), "/election/e").await;
        assert_eq!(passed, Ok(()));
    }

    #[tokio::test]
    async fn who_was_not_asked_for_a_name_is_refused_everywhere() {
        for policies in [None, Some("permit (principal, action, resource);")] {
            for path in ["/metrics", "/livez", "/election/e"] {
                assert_eq!(
                    ask(policies, None, path).await,
                    Err(Code::Internal),
                    "{path}"
                );
            }
        }
    }
}
