//! Authentication and authorization.
//!
//! [`Identity`] is the result of authentication in every mode, and [`Caller`] also covers public requests without one;
//! [`policy`] decides what an identity may do. Neither depends on a transport: `crate::layers::authenticate` reads
//! credentials from requests, and `crate::status` maps a refusal to the transport's error.

pub mod audit;
pub mod authenticator;
mod certificates;
pub mod gate;
pub mod jwt;
pub mod policy;
mod recheck;
pub mod reviews;
pub mod tokens;

pub use recheck::Recheck;

use std::{fmt, sync::Arc};

use strum::{EnumString, IntoStaticStr, VariantArray, VariantNames};

/// Maximum length of the name of an identity or group, in bytes.
const MAX_NAME: usize = 256;
/// Maximum number of groups of an identity.
const MAX_GROUPS: usize = 1000;

/// The name of an unauthenticated identity.
pub const ANONYMOUS: &str = "anonymous";

/// How an identity was proved (`EA_AUTH_MODES`).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    EnumString,
    IntoStaticStr,
    VariantArray,
    VariantNames,
)]
#[strum(serialize_all = "lowercase")]
pub enum Mode {
    /// No proof: a caller without a credential is [`ANONYMOUS`].
    None,
    /// A bearer token that a file lists.
    Token,
    /// A JSON Web Token that an issuer has signed.
    Jwt,
    /// A client certificate.
    Mtls,
    /// A token that a Kubernetes API server has reviewed.
    Kubernetes,
}

impl Mode {
    /// Returns the mode's name in configurations and policies.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Why a credential is rejected. Texts do not repeat the credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential is invalid or missing.
    #[error("{0}")]
    Unauthenticated(String),
    /// The credential cannot be verified at present.
    #[error("{0}")]
    Unavailable(String),
}

/// An authenticated or anonymous identity. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity(Arc<Inner>);

#[derive(PartialEq, Eq, Hash)]
struct Inner {
    name: String,
    groups: Vec<String>,
    mode: Mode,
}

/// The caller of a request, as authentication determined it. Authentication puts it into the extensions of every
/// request that it passes on. Code below refuses a request without one. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// An unauthenticated caller of a public path (`EA_AUTH_PUBLIC`). Public paths carry no identity.
    Public,
    /// This identity, which may be [`ANONYMOUS`] if that is allowed.
    Known(Identity),
}

impl Caller {
    /// Returns the caller's identity, if it is known.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Public => None,
            Self::Known(identity) => Some(identity),
        }
    }
}

impl Identity {
    /// Creates an identity with this name and these groups, proved by this mode.
    ///
    /// # Errors
    /// A name or group is empty, longer than 256 bytes or contains a control character, or there are more than 1000
    /// groups. The text does not repeat the names.
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
        // Sorted, so that equal sets of groups compare equal.
        groups.sort_unstable();
        groups.dedup();
        Ok(Self(Arc::new(Inner { name, groups, mode })))
    }

    /// Returns the identity of a caller without a credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(Arc::new(Inner {
            name: ANONYMOUS.to_owned(),
            groups: Vec::new(),
            mode: Mode::None,
        }))
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the groups, sorted.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }

    /// Returns how the identity was proved.
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
