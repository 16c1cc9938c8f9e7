//! Who asks, and what they may do.
//!
//! [`Identity`] is what authentication found out, whatever proved it, and [`Caller`] whether anybody was asked;
//! [`policy`] says what an identity may do. Neither knows a transport: `crate::layers::authenticate` reads credentials from requests, and
//! `crate::status` says how a refusal is told.

pub mod audit;
pub mod authenticator;
mod certificates;
pub mod gate;
pub mod jwt;
pub mod policy;
pub mod reviews;
pub mod tokens;

use std::{fmt, str::FromStr, sync::Arc};

/// The longest name of an identity or group, in bytes.
const MAX_NAME: usize = 256;
/// How many groups an identity may belong to.
const MAX_GROUPS: usize = 1000;

/// The name of those who prove none.
pub const ANONYMOUS: &str = "anonymous";

/// How an identity was proved (`EA_AUTH_MODES`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Not at all: whoever shows no credential is [`ANONYMOUS`].
    None,
    /// By a bearer token that a file lists.
    Token,
    /// By a JSON Web Token that an issuer has signed.
    Jwt,
    /// By a client certificate.
    Mtls,
    /// By a token that a Kubernetes API server has reviewed.
    Kubernetes,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Token,
        Self::Jwt,
        Self::Mtls,
        Self::Kubernetes,
    ];

    /// The mode as configurations and policies write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token => "token",
            Self::Jwt => "jwt",
            Self::Mtls => "mtls",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = Self::ALL.into_iter().find(|mode| mode.name() == text);
        mode.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is no mode: give one or more of {names}, comma separated")
        })
    }
}

/// Why somebody who shows a credential is not let in. Texts do not repeat the credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential is not accepted, or there is none.
    #[error("{0}")]
    Unauthenticated(String),
    /// It cannot be told now whether the credential is good.
    #[error("{0}")]
    Unavailable(String),
}

/// Who asks. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity(Arc<Inner>);

#[derive(PartialEq, Eq, Hash)]
struct Inner {
    name: String,
    groups: Vec<String>,
    mode: Mode,
}

/// On whose behalf a request goes on, as authentication has found out; in the extensions of every request that it
/// passes on. One without it is refused: nobody knows who asks. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Anybody: what is asked for is public (`EA_AUTH_PUBLIC`), and nobody is asked who they are.
    Public,
    /// This identity, [`ANONYMOUS`] among them where that is allowed.
    Known(Identity),
}

impl Caller {
    /// Who asks, if that was found out.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Public => None,
            Self::Known(identity) => Some(identity),
        }
    }
}

impl Identity {
    /// An identity of this name that belongs to these groups, proved by this mode.
    ///
    /// # Errors
    /// A name or group that is empty, over 256 bytes or holds a control character, or more than 1000 groups; the text does not repeat them.
    pub fn new(
        mode: Mode,
        name: impl Into<String>,
        mut groups: Vec<String>,
    ) -> Result<Self, String> {
        let name = name.into();
        check("name", &name)?;
        for group in &groups {
            check("group", group)?;
        }
        if groups.len() > MAX_GROUPS {
            return Err(format!("there are more than {MAX_GROUPS} groups"));
        }
        // In one order, so that equal identities are equal.
        groups.sort_unstable();
        groups.dedup();
        Ok(Self(Arc::new(Inner { name, groups, mode })))
    }

    /// Somebody who showed no credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(Arc::new(Inner {
            name: ANONYMOUS.to_owned(),
            groups: Vec::new(),
            mode: Mode::None,
        }))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The groups, sorted.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }

    /// How it was proved.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.0.mode
    }
}

fn check(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(format!("a {what} must have 1 to {MAX_NAME} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("a {what} must not hold control characters"));
    }
    Ok(())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} of {:?}", self.groups())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.mode().name())
    }
}
