//! `election-agent authz`: reports the vocabulary of policies, whether the operator's policies are valid, and what they
//! decide and why.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use election_core::{
    election::quota::Held,
    types::{Candidate, ElectionId, Invalid, Kind},
};
use strum::VariantNames;

use crate::{
    auth::{
        Identity, Mode,
        policy::{DEFAULT, Decision, Policies, PolicyAction, Question, Resource, SCHEMA},
    },
    config::Auth,
    output,
    reload::{Mistake, Source as _},
};

/// Exit code for an invalid command line or invalid policies.
const UNUSABLE: u8 = 2;

/// The subcommand.
#[derive(Debug)]
pub enum Command {
    /// Print the schema.
    Schema,
    /// Print the default policies.
    Default,
    /// Report whether the policies are valid.
    Check,
    /// Report the decision of the policies and the reason.
    Explain(Box<Asked>),
}

/// The arguments of `explain`, named like its options.
#[derive(Debug, Default)]
pub struct Asked {
    identity: Option<String>,
    group: Vec<String>,
    mode: Option<String>,
    action: Option<String>,
    kind: Option<String>,
    election: Option<String>,
    candidate: Option<String>,
    current_leader: Option<String>,
    held_by_identity: Option<usize>,
    held_of_kind: Option<usize>,
    namespace: Option<String>,
    deployment: Option<String>,
    pod: Option<String>,
    agent: bool,
}

/// Defines the subcommand for the command line.
pub(super) fn definition() -> clap::Command {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let explain = clap::Command::new("explain")
        .about("Reports whether the policies allow a request, and which of them decide")
        .after_help(
            "Exits with 0 if the request is allowed, 1 if it is denied, 2 if it or the policies are invalid.",
        )
        .args([
            text("identity", "NAME", "The name of the identity"),
            text(
                "group",
                "GROUP",
                "A group of the identity; may be given several times",
            )
            .action(ArgAction::Append),
            text("mode", "MODE", "How the identity is proved [default: token]"),
            text("action", "ACTION", "The action of the request"),
            text("kind", "KIND", "The election's kind [default: default]"),
            text("election", "NAME", "The election's name"),
            text(
                "candidate",
                "NAME",
                "The candidate that campaigns, extends, resigns, or is to lead",
            ),
            text("current-leader", "NAME", "The leader that hands over"),
            text(
                "held-by-identity",
                "NUMBER",
                "How many other elections the identity holds [default: 0]",
            )
            .value_parser(value_parser!(usize)),
            text(
                "held-of-kind",
                "NUMBER",
                "How many other elections of the kind are held [default: 0]",
            )
            .value_parser(value_parser!(usize)),
            text("namespace", "NAME", "The pods' namespace"),
            text("deployment", "NAME", "The pods' deployment"),
            text("pod", "NAME", "The pod whose siblings are requested"),
            Arg::new("agent")
                .long("agent")
                .action(ArgAction::SetTrue)
                .help("Read the agent's metrics and documents rather than an election"),
        ]);
    clap::Command::new("authz")
        .about("Shows, validates and explains policies")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            clap::Command::new("schema").about("Prints the words of policies, as a Cedar schema"),
            clap::Command::new("default").about("Prints the default policies"),
            clap::Command::new("check").about("Reports whether the policies are valid"),
            explain,
        ])
}

impl Command {
    /// Reads the matches of [`definition`].
    pub(crate) fn from_matches(mut matches: ArgMatches) -> Self {
        let Some((name, mut given)) = matches.remove_subcommand() else {
            return Self::Check;
        };
        match name.as_str() {
            "schema" => Self::Schema,
            "default" => Self::Default,
            "explain" => {
                let group = given.remove_many("group").map(Iterator::collect);
                let agent = given.get_flag("agent");
                let held_by_identity = given.remove_one("held-by-identity");
                let held_of_kind = given.remove_one("held-of-kind");
                let mut text = |name| given.remove_one::<String>(name);
                Self::Explain(Box::new(Asked {
                    identity: text("identity"),
                    group: group.unwrap_or_default(),
                    mode: text("mode"),
                    action: text("action"),
                    kind: text("kind"),
                    election: text("election"),
                    candidate: text("candidate"),
                    current_leader: text("current-leader"),
                    held_by_identity,
                    held_of_kind,
                    namespace: text("namespace"),
                    deployment: text("deployment"),
                    pod: text("pod"),
                    agent,
                }))
            }
            _ => Self::Check,
        }
    }

    /// Runs the command and prints its result to standard output, errors to standard error.
    ///
    /// # Errors
    /// Those of `auth`, which is called only if the command needs the policies.
    pub fn run<E>(&self, auth: impl FnOnce() -> Result<Auth, E>) -> Result<ExitCode, E> {
        let then: &dyn Fn(&Policies) -> ExitCode = match self {
            Self::Schema => {
                return Ok(output::print(SCHEMA, ExitCode::SUCCESS));
            }
            Self::Default => {
                return Ok(output::print(DEFAULT, ExitCode::SUCCESS));
            }
            Self::Check => &check,
            Self::Explain(asked) => &|policies| asked.explain(policies),
        };
        let policies = match auth()?.policies {
            Some(directory) => directory
                .read()
                .and_then(|content| directory.make(&content)),
            None => Ok(Policies::default()),
        };
        Ok(match policies {
            Ok(policies) => then(&policies),
            Err(mistakes) => refuse(mistakes.iter().map(Mistake::to_string)),
        })
    }
}

fn refuse(mistakes: impl IntoIterator<Item = String>) -> ExitCode {
    for mistake in mistakes {
        output::complain(mistake);
    }
    ExitCode::from(UNUSABLE)
}

fn check(policies: &Policies) -> ExitCode {
    for warning in policies.warnings() {
        output::complain(format_args!("valid but suspicious: {warning}"));
    }
    let ids: Vec<_> = policies.ids().collect();
    output::print(
        format_args!("valid: {}\n", ids.join(", ")),
        ExitCode::SUCCESS,
    )
}

impl Asked {
    fn explain(&self, policies: &Policies) -> ExitCode {
        let (identity, action, subject) = match self.check() {
            Ok(checked) => checked,
            Err(wrong) => return refuse(wrong),
        };
        let question = Question {
            identity: &identity,
            action,
            resource: subject.resource(),
            candidate: subject.candidate.as_ref(),
            current_leader: subject.current_leader.as_ref(),
            held: Held {
                by_holder: self.held_by_identity.unwrap_or_default(),
                of_kind: self.held_of_kind.unwrap_or_default(),
            },
        };
        let decision = policies.decide(&question);
        let code = ExitCode::from(u8::from(!decision.allowed()));
        output::print(explanation(policies, &question, &decision), code)
    }

    /// Returns the identity, action and subject of the request, or all mistakes in the arguments.
    fn check(&self) -> Result<(Identity, PolicyAction, Subject), Vec<String>> {
        let mut wrong = Vec::new();
        let identity = self.identity(&mut wrong);
        let action: Option<PolicyAction> = match &self.action {
            Some(action) => action
                .parse()
                .map_err(|_| {
                    let names = PolicyAction::VARIANTS.join(", ");
                    wrong.push(format!(
                        "--action: {action:?} is no action: give one of {names}"
                    ));
                })
                .ok(),
            None => {
                let names = PolicyAction::VARIANTS.join(", ");
                wrong.push(format!("--action: give the action: one of {names}"));
                None
            }
        };
        let subject = action.and_then(|action| self.subject(action, &mut wrong));
        match (identity, action, subject) {
            (Some(identity), Some(action), Some(subject)) if wrong.is_empty() => {
                Ok((identity, action, subject))
            }
            _ => Err(wrong),
        }
    }

    fn identity(&self, wrong: &mut Vec<String>) -> Option<Identity> {
        let mode = self.mode.as_deref().unwrap_or(Mode::Token.name());
        let Ok(mode) = mode.parse() else {
            let names = Mode::VARIANTS.join(", ");
            wrong.push(format!("--mode: {mode:?} is no mode: give one of {names}"));
            return None;
        };
        match (mode, self.identity.as_deref()) {
            (Mode::None, None) if self.group.is_empty() => Some(Identity::anonymous()),
            (Mode::None, _) => {
                wrong.push(
                    "--mode none is a caller without a credential: leave --identity and --group out"
                        .into(),
                );
                None
            }
            (_, Some(name)) if !name.is_empty() => Identity::new(mode, name, self.group.clone())
                .map_err(|what| wrong.push(format!("--identity, --group: {what}")))
                .ok(),
            (_, _) => {
                wrong.push(
                    "--identity: give the name of the caller, or --mode none for one without a credential".into(),
                );
                None
            }
        }
    }

    /// Returns the object of the action.
    fn subject(&self, action: PolicyAction, wrong: &mut Vec<String>) -> Option<Subject> {
        let name = action.name();
        let takes: &[&str] = match action {
            PolicyAction::Extend | PolicyAction::Resign => &["kind", "election", "candidate"],
            PolicyAction::Campaign => &[
                "kind",
                "election",
                "candidate",
                "held-by-identity",
                "held-of-kind",
            ],
            PolicyAction::Handover | PolicyAction::ForceHandover => &[
                "kind",
                "election",
                "candidate",
                "current-leader",
                "held-by-identity",
                "held-of-kind",
            ],
            PolicyAction::Read | PolicyAction::Observe => &["kind", "election", "agent"],
            PolicyAction::Verify => &["kind", "election"],
            PolicyAction::List => &["kind"],
            PolicyAction::Pods => &["namespace", "deployment", "pod"],
            PolicyAction::Admin | PolicyAction::ListKinds => &["agent"],
        };
        for (option, given) in [
            ("kind", self.kind.is_some()),
            ("election", self.election.is_some()),
            ("candidate", self.candidate.is_some()),
            ("current-leader", self.current_leader.is_some()),
            ("held-by-identity", self.held_by_identity.is_some()),
            ("held-of-kind", self.held_of_kind.is_some()),
            ("namespace", self.namespace.is_some()),
            ("deployment", self.deployment.is_some()),
            ("pod", self.pod.is_some()),
            ("agent", self.agent),
        ] {
            if given && !takes.contains(&option) {
                wrong.push(format!("--{option}: {name} has none: leave it out"));
            }
        }
        let kind = self.kind.as_deref().unwrap_or_default();
        let object = match action {
            PolicyAction::Admin | PolicyAction::ListKinds => Some(Object::Agent),
            PolicyAction::List => valid(Kind::new(kind).map(Object::Kind), wrong),
            PolicyAction::Pods => self.pods(wrong),
            PolicyAction::Read | PolicyAction::Observe
                if self.agent && self.election.is_none() && self.kind.is_none() =>
            {
                Some(Object::Agent)
            }
            PolicyAction::Read | PolicyAction::Observe if self.agent => {
                wrong.push("--agent: give it or an election, not both".into());
                None
            }
            PolicyAction::Observe if self.election.is_none() && self.kind.is_some() => {
                valid(Kind::new(kind).map(Object::Kind), wrong)
            }
            _ => match &self.election {
                Some(election) => {
                    valid(ElectionId::new(kind, election).map(Object::Election), wrong)
                }
                None => {
                    let or = match action {
                        PolicyAction::Read => ", or --agent",
                        PolicyAction::Observe => ", or --kind alone, or --agent",
                        _ => "",
                    };
                    wrong.push(format!(
                        "--election: {name} needs the name of an election{or}"
                    ));
                    None
                }
            },
        };
        let candidate = self.candidate.as_deref();
        if takes.contains(&"candidate") && candidate.is_none() {
            wrong.push(format!("--candidate: {name} needs the name of a candidate"));
        }
        let mut named = |field, name: Option<&str>| {
            name.and_then(|name| valid(Candidate::new(field, name), wrong))
        };
        let (candidate, current_leader) = (
            named("candidate", candidate),
            named("current-leader", self.current_leader.as_deref()),
        );
        Some(Subject {
            object: object?,
            candidate,
            current_leader,
        })
    }

    fn pods(&self, wrong: &mut Vec<String>) -> Option<Object> {
        if self.namespace.is_none() {
            wrong.push("--namespace: pods needs the pods' namespace".into());
        }
        let namespace = self.namespace.clone().unwrap_or_default();
        match (self.deployment.clone(), self.pod.clone()) {
            (Some(name), None) => Some(Object::Deployment { namespace, name }),
            (None, Some(name)) => Some(Object::Pod { namespace, name }),
            _ => {
                wrong.push("--deployment, --pod: pods needs one of them".into());
                None
            }
        }
    }
}

fn valid<T>(result: Result<T, Invalid>, wrong: &mut Vec<String>) -> Option<T> {
    result.map_err(|Invalid(what)| wrong.push(what)).ok()
}

struct Subject {
    object: Object,
    candidate: Option<Candidate>,
    current_leader: Option<Candidate>,
}

enum Object {
    Election(ElectionId),
    Kind(Kind),
    Deployment { namespace: String, name: String },
    Pod { namespace: String, name: String },
    Agent,
}

impl Subject {
    fn resource(&self) -> Resource<'_> {
        match &self.object {
            Object::Election(election) => Resource::Election(election),
            Object::Kind(kind) => Resource::Kind(kind),
            Object::Deployment { namespace, name } => Resource::Deployment { namespace, name },
            Object::Pod { namespace, name } => Resource::Pod { namespace, name },
            Object::Agent => Resource::Agent,
        }
    }
}

fn explanation(policies: &Policies, question: &Question<'_>, decision: &Decision) -> String {
    let verdict = if decision.allowed() { "allow" } else { "deny" };
    let mut text = format!("{verdict}: {question}\n");
    if decision.policies().is_empty() {
        text += "No policy permits it.\n";
    }
    for id in decision.policies() {
        let does = if decision.allowed() {
            "Permitted"
        } else {
            "Forbidden"
        };
        text += &format!("{does} by {id}");
        if let Some(origin) = policies.origin(id) {
            text += &format!(", {}:{}:\n", origin.path, origin.line);
            for line in origin.text.lines() {
                text += &format!("    {line}\n");
            }
        }
    }
    for error in decision.errors() {
        text += &format!("Error: {error}\n");
    }
    text
}
