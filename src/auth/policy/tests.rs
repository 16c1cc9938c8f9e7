mod table;

use std::{fs, io, path::Path, time::Duration};

use election_core::{
    election::quota::Held,
    types::{Candidate, ElectionId, Kind},
};
use proptest::prelude::*;
use strum::VariantNames;
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    kept::{KEPT_BYTES, Kept, Key},
    *,
};
use crate::{
    auth::{Identity, Mode},
    reload::{Mistake, Source as _},
};

/// A question that owns its parts.
struct Asked {
    identity: Identity,
    action: PolicyAction,
    resource: Kept,
    candidate: Option<Candidate>,
    leader: Option<Candidate>,
}

impl Asked {
    /// The resource is `kind/name`, `kind K`, `deployment N/D`, `pod N/P` or `agent`; candidates may be empty.
    fn new(
        identity: Identity,
        action: &str,
        resource: &str,
        candidate: &str,
        leader: &str,
    ) -> Self {
        let pair = |text: &str| {
            let (namespace, name) = text.split_once('/').expect("two names");
            (namespace.into(), name.into())
        };
        let resource = match resource.split_once(' ') {
            Some(("kind", kind)) => Kept::Kind(Kind::new(kind).expect("a kind")),
            Some(("deployment", names)) => {
                let (namespace, name) = pair(names);
                Kept::Deployment(namespace, name)
            }
            Some(("pod", names)) => {
                let (namespace, name) = pair(names);
                Kept::Pod(namespace, name)
            }
            _ if resource == "agent" => Kept::Agent,
            _ => Kept::Election(ElectionId::from_path(resource).expect("an election")),
        };
        Self {
            identity,
            action: action.parse().expect("an action"),
            resource,
            candidate: Candidate::optional("candidate", candidate).expect("a candidate"),
            leader: Candidate::optional("leader", leader).expect("a candidate"),
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            identity: &self.identity,
            action: self.action,
            resource: self.resource.resource(),
            candidate: self.candidate.as_ref(),
            current_leader: self.leader.as_ref(),
            held: Held::default(),
        }
    }
}

fn named(name: &str) -> Identity {
    Identity::new(Mode::Token, name, vec!["some".to_owned()]).expect("a name")
}

/// Returns a question that the default policies allow.
fn own() -> Asked {
    Asked::new(named("ann"), "campaign", "default/e", "ann/1", "")
}

#[test]
fn candidates_are_below_what_they_begin_with_before_a_slash() {
    let above = |name| facts::above(name).collect::<Vec<_>>();
    assert_eq!(above("a"), [""; 0]);
    assert_eq!(above("a/b/c"), ["a", "a/b"]);
    assert_eq!(above("/a//b/"), ["/a", "/a/", "/a//b"]);
    assert_eq!(
        above("spiffe://td/x"),
        ["spiffe:", "spiffe:/", "spiffe://td"]
    );
}

/// Names with characters that resemble syntax, short enough for candidates.
const NAME: &str = "[a/*\"\\\\:é☃ ]{1,40}";

fn may_campaign(policies: &Policies, identity: &str, candidate: &str) -> bool {
    let asked = Asked::new(named(identity), "campaign", "default/e", candidate, "");
    let decision = policies.decide(&asked.question());
    assert!(decision.errors().is_empty(), "{decision:?}");
    decision.allowed()
}

proptest! {
    #[test]
    fn by_default_candidates_are_an_identitys_own(
        name in NAME,
        tail in "(/?[a/*\"\\\\é]{0,12})",
        other in NAME,
    ) {
        let policies = Policies::default();
        for candidate in [name.clone() + &tail, format!("{name}/{other}"), other] {
            let own = candidate == name || candidate.starts_with(&format!("{name}/"));
            prop_assert_eq!(may_campaign(&policies, &name, &candidate), own, "{} {}", name, candidate);
        }
    }

    #[test]
    fn the_facts_are_as_the_schema_says(
        name in NAME,
        candidate in NAME,
        leader in "[a/]{0,3}",
        group in NAME,
    ) {
        let identity = Identity::new(Mode::Jwt, name, vec![group]).expect("names");
        for (action, resource) in [
            ("campaign", "k*/\"e\\"),
            ("extend", "k/e"),
            ("resign", "k/e"),
            ("handover", "k/e"),
            ("forceHandover", "k/e"),
            ("read", "k/e"),
            ("read", "agent"),
            ("list", "kind k"),
            ("listKinds", "agent"),
            ("verify", "k/e"),
            ("observe", "k/e"),
            ("observe", "kind k"),
            ("observe", "agent"),
            ("pods", "deployment n/d"),
            ("pods", "pod n/p"),
            ("admin", "agent"),
        ] {
            let acts = resource.contains("/") && !["read", "verify", "observe", "pods"].contains(&action);
            let (candidate, leader) = if acts { (&*candidate, &*leader) } else { ("", "") };
            let asked = Asked::new(identity.clone(), action, resource, candidate, leader);
            let checked = facts::Facts::new(&asked.question(), Some(&PARSED_SCHEMA));
            prop_assert!(checked.is_ok(), "{}: {:?}", asked.question(), checked.err());
        }
    }
}

#[test]
fn questions_that_make_no_sense_are_denied() {
    let mut asked = own();
    asked.candidate = None;
    let decision = Policies::default().decide(&asked.question());
    assert!(!decision.allowed());
    assert!(
        decision.errors()[0].contains("default-own-candidates"),
        "{decision:?}"
    );
}

#[test]
fn a_decision_is_made_once_for_each_question() {
    let policies = Policies::default();
    let first = policies.decide(&own().question());
    let again = policies.decide(&own().question());
    assert!(first.allowed() && Arc::ptr_eq(&first.0, &again.0));
    assert_eq!(policies.decisions.len(), 1);
    let questions = [
        Asked::new(named("bob"), "campaign", "default/e", "ann/1", ""),
        Asked::new(named("ann"), "extend", "default/e", "ann/1", ""),
        Asked::new(named("ann"), "campaign", "default/f", "ann/1", ""),
        Asked::new(named("ann"), "campaign", "default/e", "ann/2", ""),
        Asked::new(named("ann"), "handover", "default/e", "ann/1", "bob"),
        Asked::new(named("ann"), "handover", "default/e", "bob", "ann/1"),
        Asked::new(named("ann"), "pods", "deployment n/x", "", ""),
        Asked::new(named("ann"), "pods", "pod n/x", "", ""),
        Asked::new(
            Identity::new(Mode::Jwt, "ann", Vec::new()).expect("a name"),
            "pods",
            "pod n/x",
            "",
            "",
        ),
    ];
    for asked in &questions {
        let decision = policies.decide(&asked.question());
        assert_eq!(
            decision,
            policies.evaluate(&asked.question()),
            "{}",
            asked.question()
        );
    }
    assert_eq!(policies.decisions.len(), 1 + questions.len());
}

#[test]
fn the_decisions_that_are_kept_are_bounded() {
    let policies = Policies::default();
    let decision = policies.decide(&own().question());
    let mut most = 0;
    for number in 0..60_000 {
        let election = format!("default/{number}");
        // Every second question comes from a token with many groups.
        let groups = (number % 2) * 20;
        let groups = (0..groups).map(|group| format!("group-{group}")).collect();
        let identity = Identity::new(Mode::Jwt, "ann", groups).expect("names");
        let asked = Asked::new(identity, "read", &election, "", "");
        let key = Key::new(&asked.question());
        policies.decisions.insert(key, decision.clone());
        most = most.max(policies.decisions.weight());
    }
    assert!((KEPT_BYTES / 2..=KEPT_BYTES).contains(&most), "{most}");
    assert!(policies.decisions.len() < 60_000 / 2);
}

fn ids(files: &[(&str, &str)]) -> Vec<String> {
    let policies = Policies::new(files.iter().copied()).expect("valid");
    policies.ids().map(str::to_owned).collect()
}

#[test]
fn policies_are_called_by_their_annotation_or_their_place() {
    let (plain, called) = (
        "permit (principal, action, resource);\n",
        "@id(\"mine\") permit (principal, action, resource);\n",
    );
    let twice = plain.repeat(2) + called + plain;
    assert_eq!(
        ids(&[("/d/a.cedar", &twice), ("/d/b.cedar", plain)]),
        ["a.cedar#1", "a.cedar#2", "a.cedar#4", "b.cedar#1", "mine"]
    );
    let policies = Policies::new([("/d/a.cedar", &*twice)]).expect("valid");
    let origin = policies.origin("mine").expect("it is there");
    assert_eq!(
        (&*origin.path, origin.line, &*origin.text),
        ("/d/a.cedar", 3, called.trim())
    );
    assert_eq!(
        policies.origin("a.cedar#4").map(|origin| origin.line),
        Some(4)
    );
}

#[test]
fn mistakes_are_told_all_at_once_each_in_a_line_with_its_place() {
    let files = [
        ("/d/a.cedar", "permit (principal, action, resource"),
        (
            "/d/b.cedar",
            "@id(\"twice\") permit (principal, action, resource);\n\
             // permit (principal == ?principal, action, resource);\n\
             permit (principal == ?principal, action, resource);\n\
             @id(\"twice\") permit (principal, action, resource);\n",
        ),
        (
            "/d/c.cedar",
            "permit (\n  principal,\n  action == ElectionAgent::Action::\"reed\",\n  resource\n)\n\
             when { principal.nam == \"é\" && principal.mode == 1 };\n\
             permit (principal, action in [ElectionAgent::Action::\"handover\"], resource)\n\
             when { context.currentLeaderName like \"a*\" };\n\
             permit (principal in ElectionAgent::Team::\"x\", action, resource);",
        ),
        (
            "/d/d.cedar",
            "permit (principal, act, resource);\nallow (principal, action, resource);",
        ),
        (
            "/d/e.cedar",
            "permit (principal, action, resource)\nwhen { principal.nam == \"é\" };",
        ),
    ];
    let messages = Policies::new(files).map(|_| ()).expect_err("refused");
    for (place, what) in [
        ("/d/a.cedar:1:36: ", "unexpected end of input"),
        ("/d/b.cedar:3: ", "it is a template"),
        (
            "/d/b.cedar:4: ",
            "its id is \"twice\", as is that of the policy at /d/b.cedar:1",
        ),
        ("/d/c.cedar:3:13: ", "unrecognized action"),
        ("/d/c.cedar:8:", "`context has currentLeaderName"),
        (
            "/d/c.cedar:9:22: ",
            "unrecognized entity type `ElectionAgent::Team`",
        ),
        ("/d/d.cedar:1:20: ", "act"),
        (
            "/d/d.cedar:2:1: ",
            "effect must be either `permit` or `forbid`",
        ),
        ("/d/e.cedar:2:8: ", "did you mean `name`?"),
    ] {
        let found = messages
            .iter()
            .any(|messages| messages.starts_with(place) && messages.contains(what));
        assert!(found, "{place} {what} is not in {messages:#?}");
    }
    for messages in messages {
        assert!(!messages.contains(['\n', '\u{1b}']), "{messages:?}");
    }
}

#[test]
fn policies_that_never_hold_are_warned_of() {
    let text = "permit (principal == ElectionAgent::Group::\"x\", action, resource);";
    let policies = Policies::new([("a.cedar", text)]).expect("valid");
    let messages = policies.warnings().join("\n");
    assert!(
        messages.contains("a.cedar:1:1: ") && messages.contains("impossible"),
        "{messages}"
    );
}

/// Returns the log lines written during the call.
fn logged(what: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, what);
    let bytes = lines.0.lock().clone();
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_policy_that_fails_is_skipped_and_told_once() {
    let text = "@id(\"all\") permit (principal, action, resource);\n\
                @id(\"over\") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };";
    let policies = Policies::new([("a.cedar", text)]).expect("valid");
    let log = logged(|| {
        for name in ["ann", "bob", "ann"] {
            let asked = Asked::new(named(name), "admin", "agent", "", "");
            let decision = policies.decide(&asked.question());
            assert!(decision.allowed());
            assert_eq!(decision.policies(), ["all"]);
            assert!(
                decision.errors()[0].contains("the policy over fails"),
                "{decision:?}"
            );
        }
    });
    assert_eq!(
        log.matches("a policy fails and is skipped").count(),
        1,
        "{log}"
    );
    assert!(log.contains("WARN") && log.contains("policy=over"), "{log}");
}

const ALL: &str = "permit (principal, action, resource);";
const NOTHING: &str = "forbid (principal, action, resource);";

fn messages(directory: &Path) -> Vec<String> {
    let mistakes = Directory(directory.to_owned()).mistakes();
    mistakes.iter().map(Mistake::to_string).collect()
}

#[test]
fn directories_without_policies_are_refused() {
    let made = TempDir::new().expect("a directory");
    let directory = made.path();
    let one = |messages: Vec<String>, what: &str| {
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(
            messages[0].starts_with("EA_AUTH_POLICY_DIR: ") && messages[0].contains(what),
            "{what} is not in {messages:?}"
        );
    };
    one(messages(&directory.join("none")), "cannot read");
    one(messages(directory), "holds no *.cedar file");
    fs::write(directory.join("readme.txt"), ALL).expect("written");
    fs::write(directory.join(".draft.cedar"), "permit (").expect("written");
    one(messages(directory), "holds no *.cedar file");
    fs::write(directory.join("a.cedar"), "// soon").expect("written");
    one(messages(directory), "hold no policy");
    fs::write(directory.join("b.cedar"), b"permit\xff").expect("written");
    one(messages(directory), "b.cedar: it is not UTF-8");
    fs::write(directory.join("b.cedar"), ALL).expect("written");
    assert_eq!(messages(directory), [""; 0]);
    fs::create_dir(directory.join("c.cedar")).expect("made");
    one(messages(directory), "c.cedar");
}

/// Mounts policies like a Kubernetes volume: through a symbolic link that is replaced.
#[cfg(unix)]
fn mount(directory: &Path, generation: &str, text: &str) {
    use std::os::unix::fs::symlink;
    fs::create_dir(directory.join(generation)).expect("made");
    fs::write(directory.join(generation).join("team.cedar"), text).expect("written");
    symlink(generation, directory.join("..new")).expect("linked");
    fs::rename(directory.join("..new"), directory.join("..data")).expect("renamed");
    let link = directory.join("team.cedar");
    if !link.is_symlink() {
        symlink("..data/team.cedar", link).expect("linked");
    }
}

#[tokio::test(start_paused = true)]
async fn policies_are_replaced_with_their_decisions_by_valid_ones_only() {
    let made = TempDir::new().expect("a directory");
    let directory = made.path();
    mount(directory, "..1", ALL);
    let mut current = start(Some(Directory(directory.to_owned()))).expect("valid");
    let decide = |policies: &Policies| policies.decide(&own().question());
    let first = Arc::clone(&current.borrow_and_update());
    assert!(decide(&first).allowed());

    mount(directory, "..2", "permit (principal");
    sleep(Duration::from_secs(5)).await;
    assert!(!current.has_changed().expect("followed"));
    assert!(Arc::ptr_eq(&first, &current.borrow()));

    mount(directory, "..3", NOTHING);
    current.changed().await.expect("followed");
    let second = Arc::clone(&current.borrow_and_update());
    assert_eq!(second.decisions.len(), 0);
    let decision = decide(&second);
    assert_eq!(
        (decision.allowed(), decision.policies()),
        (false, &["team.cedar#1".to_owned()][..])
    );
    // Holders of the previous set get its own decisions, not those of the new set.
    assert!(decide(&first).allowed() && !decide(&second).allowed());
}

#[tokio::test]
async fn without_a_directory_the_default_policies_hold() {
    let current = start(None).expect("valid");
    assert!(current.borrow().ids().eq(Policies::default().ids()));
    assert!(current.borrow().decide(&own().question()).allowed());
    assert!(Policies::default().warnings().is_empty());
}

#[test]
fn actions_are_called_as_in_the_schema() {
    let declared: HashSet<_> = PARSED_SCHEMA
        .actions()
        .map(|action| action.id().unescaped())
        .collect();
    assert_eq!(declared, PolicyAction::VARIANTS.iter().copied().collect());
}
