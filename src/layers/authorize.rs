//! Authorizes access to the agent itself by policy: metrics, documents and probes, where they are not public
//! (`EA_AUTH_PUBLIC`). The action is `read` on the agent. `crate::auth::gate` authorizes requests for elections,
//! because their details are known only there.
//!
//! Refusals: PermissionDenied (PERMISSION_DENIED, 403); Internal (INTERNAL, 500) if the request has not passed
//! authentication.

use axum::body::Body;
use http::Request;

use super::check::{CheckLayer, check};
use crate::{
    auth::{
        gate::{denied, permits},
        policy::{Policies, PolicyAction, Question, Resource},
    },
    endpoint::Area,
    reload::Current,
    status::Problem,
    transport::request::{caller, endpoint},
};

/// Admits callers that these policies permit to read the agent; without policies, all callers.
pub fn authorize(
    policies: Option<Current<Policies>>,
) -> CheckLayer<impl Fn(&mut Request<Body>) -> Result<(), Problem> + Clone> {
    check(move |request| permitted(policies.as_ref(), request))
}

fn permitted(policies: Option<&Current<Policies>>, request: &Request<Body>) -> Result<(), Problem> {
    let caller = caller(request.extensions())?;
    let area = endpoint(request.extensions())?.area;
    // Public paths carry no identity.
    let Some(identity) = caller.identity().filter(|_| area != Area::Api) else {
        return Ok(());
    };
    let question = Question::new(identity, PolicyAction::Read, Resource::Agent);
    match permits(policies, &question) {
        true => Ok(()),
        false => Err(denied(&question).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::*;
    use crate::{
        auth::{Caller, Identity, Mode},
        endpoint::classified,
        status::Code,
    };

    fn named(name: &str) -> Caller {
        Caller::Known(Identity::new(Mode::Token, name, Vec::new()).expect("a name"))
    }

    /// Returns the result of a request for a path.
    async fn ask(policies: Option<&str>, caller: Option<Caller>, path: &str) -> Result<(), Code> {
        let policies = policies.map(|text| {
            let policies = Policies::new([("test.cedar", text)]).expect("valid");
            watch::channel(Arc::new(policies)).1
        });
        let mut request = classified(Request::get(path).body(Body::empty()).expect("a request"));
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let answers = service_fn(|_: Request<Body>| async { Ok::<_, Problem>(()) });
        let answer = authorize(policies).layer(answers).oneshot(request);
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
        // The gate authorizes requests for elections.
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
