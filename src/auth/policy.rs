//! What an identity may do: policies in the [Cedar](https://docs.cedarpolicy.com) language.
//!
//! A [`Question`] (who wants to do what with what) is put to [`Policies`], which answer with a
//! [`Decision`]. It is Cedar's: denied unless a `permit` holds and no `forbid` does. A policy whose
//! evaluation fails is skipped, and told in the log.
//!
//! [`SCHEMA`] declares the words of policies, [`facts`] fills them in for a [`question`], [`load`] reads
//! policies, [`directory`] those that an operator has written. Decisions are [`kept`].

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
pub use question::{Action, Question, Resource};

/// The words of policies, as a Cedar schema.
pub const SCHEMA: &str = include_str!("policy/schema.cedarschema");

/// The policies that hold without an operator's.
pub const DEFAULT: &str = include_str!("policy/default.cedar");

/// The words of the schema that say how many elections are held.
const HELD: [&str; 2] = ["heldByIdentity", "heldOfKind"];

static PARSED_SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    #[expect(clippy::expect_used, reason = "it is a constant that tests read, too")]
    let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a schema");
    schema
});

/// The answer to a [`Question`]. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision(Arc<Answer>);

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    policies: Vec<String>,
    errors: Vec<String>,
}

impl Decision {
    /// Whether it may be done.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.0.allowed
    }

    /// The ids of the policies that decided, sorted: those that permit it, or those that forbid it. None
    /// when it is denied because none permits it.
    #[must_use]
    pub fn policies(&self) -> &[String] {
        &self.0.policies
    }

    /// What went wrong with policies that were skipped.
    #[must_use]
    pub fn errors(&self) -> &[String] {
        &self.0.errors
    }
}

/// A set of policies that are valid by the schema, and what they decided lately.
///
/// The decisions are the set's own: they go with it when other policies take its place, so that none is
/// ever taken from former ones.
pub struct Policies {
    authorizer: Authorizer,
    set: PolicySet,
    origins: BTreeMap<String, Origin>,
    warnings: Vec<String>,
    decisions: kept::Decisions,
    counts_held: bool,
    /// Those whose evaluation has failed and that the log knows of.
    failed: Mutex<HashSet<PolicyId>>,
}

impl Policies {
    /// Policies from files: their paths, and what they hold.
    ///
    /// # Errors
    /// Everything that is wrong with them, each with its file and line.
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

    /// Decides.
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
                tracing::error!(%error, "denied {question}: policies cannot be asked");
                return Decision(Arc::new(Answer {
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
        Decision(Arc::new(Answer {
            allowed: response.decision() == cedar_policy::Decision::Allow,
            policies,
            errors,
        }))
    }

    /// Whether decisions may depend on [how many elections are held](Question::held). Where they do not, none has to be
    /// kept for every number.
    #[must_use]
    pub fn counts_held(&self) -> bool {
        self.counts_held
    }

    /// Where the policy of this id is from.
    #[must_use]
    pub fn origin(&self, id: &str) -> Option<&Origin> {
        self.origins.get(id)
    }

    /// The ids of all policies, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.origins.keys().map(String::as_str)
    }

    /// Whether there is no policy at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// What is valid but perhaps not meant, such as a policy that never holds; each with its file and line.
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
