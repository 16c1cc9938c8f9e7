//! Who asks, and what they may do.
//!
//! [`Identity`] is what authentication found out, whatever proved it; [`policy`] says what an identity may
//! do. Neither knows a transport: `crate::layers::authenticate` reads credentials from requests, and
//! `crate::transport::status` says how a refusal is told.

pub mod command;
pub mod policy;

use std::{fmt, str::FromStr, sync::Arc};

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

/// Who asks. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity(Arc<Inner>);

#[derive(PartialEq, Eq, Hash)]
struct Inner {
    name: String,
    groups: Vec<String>,
    mode: Mode,
}

impl Identity {
    /// An identity of this name that belongs to these groups, proved by this mode.
    #[must_use]
    pub fn new(mode: Mode, name: impl Into<String>, mut groups: Vec<String>) -> Self {
        // In one order, so that equal identities are equal.
        groups.sort_unstable();
        groups.dedup();
        Self(Arc::new(Inner {
            name: name.into(),
            groups,
            mode,
        }))
    }

    /// Somebody who showed no credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Mode::None, ANONYMOUS, Vec::new())
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
