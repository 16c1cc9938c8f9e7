//! Policies of operators, and the command that explains them.

use std::{fs, path::Path};

use election_agent::auth::{
    Identity, Mode,
    policy::{self, Policies, PolicyAction, Question, Resource},
};
use election_core::{
    election::quota::Held,
    types::{Candidate, ElectionId},
};
use tempfile::TempDir;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Agent, command_output, committed, new_token, owned};

/// The exit code, the output, and the errors of `authz` with these arguments.
fn authz(arguments: &[&str], directory: Option<&Path>) -> (i32, String, String) {
    let directory = directory.map(|path| path.display().to_string());
    let settings = directory
        .iter()
        .map(|path| ("EA_AUTH_POLICY_DIR", path.as_str()));
    let arguments = [&["authz"], arguments].concat();
    let output = command_output(&arguments, &settings.collect::<Vec<_>>());
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("it exits");
    (code, text(output.stdout), text(output.stderr))
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let made = TempDir::new().expect("a directory");
    for (name, text) in files {
        fs::write(made.path().join(name), text).expect("written");
    }
    made
}

const ALL_BUT_PAYMENTS: &str = "@id(\"all\")\npermit (principal, action, resource);\n\n\
    forbid (principal, action, resource in ElectionAgent::Kind::\"payments\");\n\
    @id(\"overflow\")\nforbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };\n";

#[test]
fn schema_and_default_are_printed_without_a_valid_configuration() {
    let nowhere = Some(Path::new("/no/such/directory"));
    let (code, printed, _) = authz(&["schema"], nowhere);
    assert_eq!((code, &*printed), (0, policy::SCHEMA));
    let (code, printed, _) = authz(&["default"], nowhere);
    assert_eq!((code, &*printed), (0, policy::DEFAULT));
}

#[test]
fn the_printed_default_is_a_directory_to_start_from() {
    let made = directory(&[("mine.cedar", policy::DEFAULT)]);
    let (code, printed, told) = authz(&["check"], Some(made.path()));
    assert_eq!((code, &*told), (0, ""));
    assert_eq!(
        printed,
        "valid: default-own-candidates, default-own-handover, default-read\n"
    );
}

#[test]
fn check_tells_all_mistakes_with_their_places() {
    let made = directory(&[
        ("a.cedar", "permit (principal, action, resource"),
        (
            "b.cedar",
            "\npermit (principal, action, resource) when { principal.age > 3 };",
        ),
        (
            "c.cedar",
            "@id(\"x\") permit (principal, action, resource);",
        ),
        (
            "d.cedar",
            "@id(\"x\") permit (principal == ?principal, action, resource);",
        ),
        (
            "e.cedar",
            "// some\n\n@id(\"x\") permit (principal, action, resource);",
        ),
    ]);
    for command in [
        &["check"][..],
        &["explain", "--action", "admin", "--identity", "ann"],
    ] {
        let (code, printed, told) = authz(command, Some(made.path()));
        assert_eq!((code, &*printed), (2, ""));
        let path = made.path().display();
        for (place, what) in [
            ("a.cedar:1:36: ", "unexpected end of input"),
            ("b.cedar:2:45: ", "attribute `age`"),
            ("d.cedar:1: ", "template"),
            ("e.cedar:3: ", "its id is \"x\""),
        ] {
            let place = format!("EA_AUTH_POLICY_DIR: {path}/{place}");
            let found = told
                .lines()
                .any(|line| line.starts_with(&place) && line.contains(what));
            assert!(found, "{place}{what} is not in: {told}");
        }
    }
}

#[test]
fn check_warns_of_what_never_holds() {
    let never = "permit (principal == ElectionAgent::Group::\"x\", action, resource);";
    let made = directory(&[("a.cedar", never)]);
    let (code, printed, told) = authz(&["check"], Some(made.path()));
    assert_eq!((code, &*printed), (0, "valid: a.cedar#1\n"));
    assert!(
        told.contains("a.cedar:1:1: ") && told.contains("impossible"),
        "{told}"
    );
}

#[test]
fn an_agent_refuses_to_start_with_policies_it_cannot_use() {
    for (files, what) in [
        (&[][..], "holds no *.cedar file"),
        (&[("a.cedar", "")], "hold no policy"),
        (&[("a.cedar", "permit (principal, action);")], "a.cedar:1:"),
        (
            &[("a.cedar", ALL_BUT_PAYMENTS), ("b.cedar", ALL_BUT_PAYMENTS)],
            "\"all\"",
        ),
    ] {
        let made = directory(files);
        let path = made.path().display().to_string();
        let output = command_output(&[], &[("EA_AUTH_POLICY_DIR", &path), ("EA_MAX_TERM", "x")]);
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains("EA_AUTH_POLICY_DIR: ") && told.contains(what),
            "{what}: {told}"
        );
        assert!(
            told.contains("EA_MAX_TERM"),
            "with all other mistakes: {told}"
        );
    }
}

#[test]
fn explain_names_the_policies_that_decide() {
    let made = directory(&[("a.cedar", ALL_BUT_PAYMENTS)]);
    let explain = |kind: &str, action: &str| {
        let asked = [
            "explain",
            "--identity",
            "ann",
            "--kind",
            kind,
            "--action",
            action,
        ];
        authz(&asked, Some(made.path()))
    };
    let path = made.path().join("a.cedar").display().to_string();
    let (code, printed, _) = explain("batch", "list");
    assert_eq!(code, 0, "{printed}");
    assert!(
        printed.starts_with("allow: ann (token) list the kind batch\n"),
        "{printed}"
    );
    let by = format!(
        "Permitted by all, {path}:1:\n    @id(\"all\")\n    permit (principal, action, resource);\n"
    );
    assert!(printed.contains(&by), "{by} is not in: {printed}");
    let error = "Error: the policy overflow fails and is skipped: integer overflow";
    assert!(printed.contains(error), "{printed}");

    let (code, printed, _) = explain("payments", "list");
    // A kind is in itself.
    assert_eq!(code, 1, "{printed}");
    assert!(printed.starts_with("deny: "), "{printed}");
    let by = format!("Forbidden by a.cedar#2, {path}:4:\n    forbid (");
    assert!(printed.contains(&by), "{by} is not in: {printed}");
    assert!(!printed.contains("Permitted"), "{printed}");
}

#[test]
fn explain_takes_all_that_policies_may_look_at() {
    let rule = |action: &str, resource: &str, when: &str| {
        format!(
            "permit (principal == ElectionAgent::Identity::\"ann\", action == \
             ElectionAgent::Action::\"{action}\", resource == ElectionAgent::{resource}) when {{ {when} }};"
        )
    };
    for (rule, arguments) in [
        (
            rule(
                "campaign",
                "Election::\"batch/e\"",
                "context.candidateName == \"a b\"",
            ),
            "--action campaign --kind batch --election e --candidate a_b",
        ),
        (
            rule(
                "forceHandover",
                "Election::\"default/e\"",
                "context has currentLeaderName && context.currentLeaderName == \"c\"",
            ),
            "--action forceHandover --election e --candidate b --current-leader c",
        ),
        (
            rule("read", "Agent::\"agent\"", "principal.mode == \"mtls\""),
            "--action read --agent --mode mtls",
        ),
        (
            rule(
                "admin",
                "Agent::\"agent\"",
                "principal in ElectionAgent::Group::\"g\" && principal in ElectionAgent::Group::\"h\"",
            ),
            "--action admin --group g --group h",
        ),
        (
            rule("pods", "Deployment::\"n/d\"", "resource.name == \"d\""),
            "--action pods --namespace n --deployment d",
        ),
        (
            rule(
                "pods",
                "Pod::\"n/p\"",
                "resource in ElectionAgent::Namespace::\"n\"",
            ),
            "--action pods --namespace n --pod p",
        ),
    ] {
        let made = directory(&[("a.cedar", &rule)]);
        let given: Vec<_> = arguments
            .split(' ')
            .map(|word| word.replace('_', " "))
            .collect();
        let mut asked = vec!["explain", "--identity", "ann"];
        asked.extend(given.iter().map(String::as_str));
        let (code, printed, told) = authz(&asked, Some(made.path()));
        assert_eq!(code, 0, "{arguments}: {printed}{told}");
        asked[2] = "bob";
        let (code, printed, told) = authz(&asked, Some(made.path()));
        assert_eq!(code, 1, "{arguments}: {printed}{told}");
    }
}

#[test]
fn explain_says_what_to_give() {
    for (arguments, told) in [
        ("", "--identity: give the name"),
        ("", "--action: give the action: one of campaign, extend"),
        (
            "--action vote",
            "--action: \"vote\" is no action: give one of campaign, extend",
        ),
        (
            "--action admin --mode x",
            "--mode: \"x\" is no mode: give one of none, token",
        ),
        (
            "--action admin --mode none --identity a",
            "--mode none is a caller without a credential",
        ),
        (
            "--identity a --action campaign",
            "--election: campaign needs the name of an election",
        ),
        (
            "--identity a --action extend --election e",
            "--candidate: extend needs the name",
        ),
        (
            "--identity a --action read",
            "--election: read needs the name of an election, or --agent",
        ),
        (
            "--identity a --action read --election e --agent",
            "--agent: give it or an election",
        ),
        (
            "--identity a --action list --candidate c",
            "--candidate: list has none: leave it out",
        ),
        (
            "--identity a --action resign --current-leader c",
            "--current-leader: resign has none",
        ),
        (
            "--identity a --action pods",
            "--namespace: pods needs the pods' namespace",
        ),
        (
            "--identity a --action pods --namespace n",
            "--deployment, --pod: pods needs one of them",
        ),
        (
            "--identity a --action campaign --election e/f --candidate c",
            "`election` holds a \"/\"",
        ),
        (
            "--identity a --action campaign --election e --candidate=",
            "`candidate` is empty",
        ),
        (
            "--identity a --action list --kind a/b",
            "`kind` holds a \"/\"",
        ),
    ] {
        let mut asked = vec!["explain"];
        asked.extend(arguments.split_whitespace());
        let (code, printed, errors) = authz(&asked, None);
        assert_eq!((code, &*printed), (2, ""), "{arguments}: {errors}");
        assert!(
            errors.contains(told),
            "{arguments}: {told} is not in: {errors}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_all_kinds_a_caller_sees_those_that_it_may_list() {
    let made = directory(&[(
        "a.cedar",
        "permit (principal, action, resource);\n\
         forbid (principal, action == ElectionAgent::Action::\"list\", resource == ElectionAgent::Kind::\"b\");\n\
         forbid (principal == ElectionAgent::Identity::\"bob\", action in [ElectionAgent::Action::\"listKinds\", \
         ElectionAgent::Action::\"observe\", ElectionAgent::Action::\"verify\"], resource);",
    )]);
    let ((ann, of_ann), (bob, of_bob)) = (new_token(&["ann"]), new_token(&["bob"]));
    fs::write(made.path().join("tokens"), format!("{of_ann}\n{of_bob}\n")).expect("written");
    let path = made.path().display().to_string();
    let agent = Agent::start(&owned(&[
        ("EA_AUTH_MODES", "token"),
        ("EA_AUTH_TOKEN_FILE", &format!("{path}/tokens")),
        ("EA_AUTH_POLICY_DIR", &path),
    ]))
    .await;
    for election in ["a/1", "b/1", "b/2", "c/1"] {
        let request = agent.request(Method::POST, &format!("/election/{election}"));
        let body = json!({"candidate": "ann", "term": 60_000});
        let won = agent.send(request.bearer_auth(&ann).json(&body)).await;
        assert_eq!(won.body["elected"], true, "{won:?}");
    }
    let ask = async |token: &str, path: &str| {
        let request = agent.request(Method::GET, path).bearer_auth(token);
        agent.send(request).await
    };
    let listed = ask(&ann, "/elections?all_kinds=true").await;
    let leaders = listed.body["leaders"].as_array().expect("a list");
    let kinds: Vec<_> = leaders.iter().map(|leader| &leader["kind"]).collect();
    assert_eq!(kinds, ["a", "c"], "{listed:?}");
    let listed = ask(&ann, "/kinds").await;
    assert_eq!(listed.body["kinds"], json!(["a", "c"]), "{listed:?}");
    let position = ask(&ann, "/election/a/1").await.header("etag").to_owned();
    let waits = &format!(
        "/election/a/1?wait=1ms&after={}",
        position.trim_matches('"')
    );
    for (path, what) in [
        ("/elections?all_kinds=true", "listKinds the agent"),
        ("/kinds", "listKinds the agent"),
        ("/election/a/1/tokens/7", "verify the election a/1"),
        ("/election/a/1/events", "observe the election a/1"),
        ("/elections/events?kind=a&prefix=1", "observe the kind a"),
        ("/elections/events?all_kinds=true", "observe the agent"),
        (waits, "observe the election a/1"),
    ] {
        let refused = ask(&bob, path).await;
        assert_eq!(refused.status, 403, "{path}");
        let told = refused.text("message");
        assert!(told.contains(what), "{path}: {told}");
        let request = agent.request(Method::GET, path).bearer_auth(&ann);
        // Of a stream, the beginning is enough.
        let permitted = request.send().await.expect("an answer").status();
        let expected = if path == waits { 304 } else { 200 };
        assert_eq!(permitted.as_u16(), expected, "{path}");
    }
    agent.logs(r#""action":"observe""#).await;
    for path in ["/elections?kind=a", "/election/a/1", "/election/a/1/state"] {
        assert_eq!(ask(&bob, path).await.status, 200, "{path}");
    }
}

#[test]
fn the_documented_policies_are_valid_and_do_what_is_said() {
    let documentation = committed("docs/AUTHORIZATION.md");
    let examples = documentation.split("```cedar\n").skip(1);
    let examples: Vec<_> = examples
        .filter_map(|block| block.split("```").next())
        .collect();
    assert_eq!(examples.len(), 4);
    let all = examples.join("\n");
    let names = ["1.cedar", "2.cedar", "3.cedar", "4.cedar"];
    let policies = Policies::new(names.into_iter().zip(examples)).expect("valid");
    assert!(policies.counts_held() && !Policies::default().counts_held());
    assert!(policies.warnings().is_empty(), "{:?}", policies.warnings());
    let decided = |mode, group: &str, action, election: &str, candidate: &str| {
        let identity = Identity::new(mode, "ann", vec![group.to_owned()]).expect("names");
        let election = ElectionId::from_path(election).expect("an election");
        let candidate = Candidate::new("candidate", candidate).expect("a candidate");
        let decision = policies.decide(&Question {
            identity: &identity,
            action,
            resource: Resource::Election(&election),
            candidate: Some(&candidate),
            current_leader: None,
            held: Held::default(),
        });
        (decision.allowed(), decision.policies().join(" "))
    };
    let batch = "system:serviceaccounts:batch";
    let (allowed, forbidden) = (
        |by: &str| (true, by.to_owned()),
        |by: &str| (false, by.to_owned()),
    );
    for (got, expected) in [
        (
            decided(
                Mode::Kubernetes,
                batch,
                PolicyAction::Campaign,
                "batch/e",
                "worker-1",
            ),
            allowed("workers-of-the-batch"),
        ),
        (
            decided(
                Mode::Kubernetes,
                batch,
                PolicyAction::Campaign,
                "batch/e",
                "boss",
            ),
            forbidden(""),
        ),
        (
            decided(
                Mode::Kubernetes,
                batch,
                PolicyAction::Campaign,
                "legacy/e",
                "worker-1",
            ),
            forbidden("frozen"),
        ),
        (
            decided(
                Mode::Mtls,
                "break-glass",
                PolicyAction::ForceHandover,
                "batch/e",
                "boss",
            ),
            allowed("break-glass"),
        ),
        (
            decided(
                Mode::Jwt,
                "break-glass",
                PolicyAction::ForceHandover,
                "batch/e",
                "boss",
            ),
            forbidden(""),
        ),
    ] {
        assert_eq!(got, expected);
    }
    let group = ["--group", "tenant-a", "--group", batch];
    let asked = "explain --mode kubernetes --identity ann --kind batch --election e --candidate worker-1 \
                 --action campaign --held-by-identity";
    let directory = directory(&[("documented.cedar", &all)]);
    for (held, code) in [("99", 0), ("100", 1)] {
        let asked = asked.split_whitespace().chain([held]);
        let asked: Vec<_> = asked.chain(group).collect();
        let (exits, told, _) = authz(&asked, Some(directory.path()));
        assert_eq!(exits, code, "{told}");
        let forbidden = told.contains("Forbidden by a-hundred-elections");
        assert_eq!(forbidden, code == 1, "{told}");
    }
}

#[test]
fn the_documented_explanations_are_what_is_printed() {
    let documentation = committed("docs/AUTHORIZATION.md");
    let console = documentation.split("```console\n").nth(1);
    let console = console
        .and_then(|block| block.split("```").next())
        .expect("a block");
    let mut commands = 0;
    for step in console.split("$ election-agent authz ").skip(1) {
        let (arguments, printed) = step.split_once('\n').expect("a command and its output");
        let arguments: Vec<_> = arguments.split(' ').collect();
        let (code, output, told) = authz(&arguments, None);
        assert_eq!(output, printed, "{arguments:?}: {told}");
        assert_eq!(code == 0, printed.starts_with("allow"), "{arguments:?}");
        commands += 1;
    }
    assert_eq!(commands, 2);
}
