//! Authorization by policies in the [Cedar](https://docs.cedarpolicy.com) language.
//!
//! [`Policies`] answer a [`Question`] (which identity requests which action on which resource) with a [`Decision`].
//! Cedar's rule applies: a request is denied unless a `permit` applies and no `forbid` does. A policy whose evaluation
//! fails is skipped and logged.
//!
//! [`SCHEMA`] declares the vocabulary of policies, [`facts`] supplies its values for a [`question`], [`load`] parses
//! policies, and [`directory`] reads those of the operator. Decisions are [cached](kept).

mod directory;
mod facts;
mod kept;
mod load;
mod question;

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{Arc, LazyLock},
};

use cedar_policy::{Authorizer, PolicyId, PolicySet, Schema};
use parking_lot::Mutex;

pub use directory::{Directory, start};
pub use load::Origin;
pub use question::{PolicyAction, Question, Resource};

/// The vocabulary of policies, as a Cedar schema.
pub const SCHEMA: &str = include_str!("policy/schema.cedarschema");

/// The policies that apply if the operator provides none.
pub const DEFAULT: &str = include_str!("policy/default.cedar");

/// The attributes of the schema that state how many elections are held.
const HELD: [&str; 2] = ["heldByIdentity", "heldOfKind"];

static PARSED_SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "it is a constant that tests read, too")]
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a schema");
    schema
});

/// The decision on a [`Question`]. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision(Arc<Verdict>);

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    allowed: bool,
    policies: Vec<String>,
    errors: Vec<String>,
}

impl Decision {
    /// Returns whether the request is allowed.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.0.allowed
    }

    /// Returns the sorted ids of the policies that determined the decision: those that permit it, or those that forbid
    /// it. Empty if the request is denied because no policy permits it.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        &self.0.policies
    }

    /// Returns the evaluation errors of policies that were skipped.
    #[must_use]
    pub fn errors(&self) -> &[String] {
        &self.0.errors
    }
}

/// A set of policies that are valid by the schema, with a cache of their decisions.
///
/// The cache belongs to the set and is dropped with it, so a decision never comes from earlier policies.
pub struct Policies {
    authorizer: Authorizer,
    set: PolicySet,
    origins: BTreeMap<String, Origin>,
    warnings: Vec<String>,
    decisions: kept::Decisions,
    counts_held: bool,
    /// The policies whose evaluation has failed and been logged.
    failed: Mutex<HashSet<PolicyId>>,
}

impl Policies {
    /// Parses policies from files, given as paths and contents.
    ///
    /// # Errors
    /// All mistakes, each with its file and line.
    pub fn new<'a>(
        files: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<String>> {
        let loaded = load::load(files)?;
        let counts = |origin: &Origin| HELD.iter().any(|name| origin.text.contains(name));
        let counts_held = loaded.origins.values().any(counts);
        Ok(Self {
            authorizer: Authorizer::new(),
            set: loaded.set,
            origins: loaded.origins,
            warnings: loaded.warnings,
            decisions: kept::decisions(),
            counts_held,
            failed: Mutex::default(),
        })
    }

    /// Decides whether the request is allowed.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        if let Some(decision) = self.decisions.get(question) {
            return decision;
        }
        let decision = self.evaluate(question);
        self.decisions
            .insert(kept::Key::new(question), decision.clone());
        decision
    }

    fn evaluate(&self, question: &Question<'_>) -> Decision {
        let facts = match facts::Facts::new(question, None) {
            Ok(facts) => facts,
            Err(error) => {
                tracing::error!(%error, "denied {question}: policies cannot be evaluated");
                return Decision(Arc::new(Verdict {
                    allowed: false,
                    policies: Vec::new(),
                    errors: vec![error],
                }));
            }
        };
        let response = self
            .authorizer
            .is_authorized(&facts.request, &self.set, &facts.entities);
        let diagnostics = response.diagnostics();
        let mut policies: Vec<_> = diagnostics.reason().map(ToString::to_string).collect();
        let mut errors = Vec::new();
        for cedar_policy::AuthorizationError::PolicyEvaluationError(error) in diagnostics.errors() {
            let (id, inner) = (error.policy_id(), error.inner());
            let failed = || self.failed.lock();
            if failed().insert(id.clone()) {
                tracing::warn!(
                    policy = %id,
                    error = %inner,
                    "a policy fails and is skipped, the first time for: {question}"
                );
            }
            errors.push(format!("the policy {id} fails and is skipped: {inner}"));
        }
        policies.sort_unstable();
        errors.sort_unstable();
        Decision(Arc::new(Verdict {
            allowed: response.decision() == cedar_policy::Decision::Allow,
            policies,
            errors,
        }))
    }

    /// Returns whether decisions may depend on [how many elections are held](Question::held). If not, the cache needs
    /// no separate entry for every number.
    #[must_use]
    pub fn counts_held(&self) -> bool {
        self.counts_held
    }

    /// Returns the file and line of the policy with this id.
    #[must_use]
    pub fn origin(&self, id: &str) -> Option<&Origin> {
        self.origins.get(id)
    }

    /// Returns the ids of all policies, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.origins.keys().map(String::as_str)
    }

    /// Returns whether the set has no policies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Returns warnings about valid but suspicious policies, such as one that never applies; each with its file and
    /// line.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// [`DEFAULT`].
impl Default for Policies {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "it is a constant that tests read, too")]
        Self::new([("default.cedar", DEFAULT)]).expect("valid policies")
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.origins.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
