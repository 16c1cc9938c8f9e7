//! What can go wrong.

use std::fmt;

/// Why a call, or leading, did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another candidate led until the time to wait was over.
    #[error("not elected: {} leads", leader.as_deref().unwrap_or("another candidate"))]
    #[non_exhaustive]
    NotElected {
        /// The leader, if the agent named it.
        leader: Option<String>,
    },
    /// The caller does not lead, or no longer.
    #[error("lost: {0}")]
    Lost(#[from] Lost),
    /// It is not known whether the request took effect: it may have, or may take effect later.
    #[error("the outcome is not known: {reason}")]
    #[non_exhaustive]
    NotKnown {
        /// What each endpoint answered last.
        reason: String,
    },
    /// The agent refused. Nothing was changed.
    #[error("refused ({code}): {message}")]
    #[non_exhaustive]
    Refused {
        /// What kind of refusal.
        code: Code,
        /// The agent's message.
        message: String,
    },
    /// No agent was reached: there was no connection, or, for a read, each ended without a reply. Nothing was
    /// changed.
    #[error("no agent was reached: {}", listed(endpoints))]
    #[non_exhaustive]
    Unreachable {
        /// Each endpoint that was tried, and why it was not reached.
        endpoints: Vec<(String, String)>,
    },
    /// A setting of the agent or of the call is wrong: an address, a file, a duration.
    #[error("configuration: {0}")]
    Config(String),
}

/// `a: why; b: why`.
pub(crate) fn listed(endpoints: &[(String, String)]) -> String {
    let each = endpoints
        .iter()
        .map(|(endpoint, why)| format!("{endpoint}: {why}"));
    each.collect::<Vec<_>>().join("; ")
}

/// Why leadership is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// The term was not extended in time: by the clock, it ends within the margin, or has ended.
    #[error("the term is over: it was not extended in time")]
    TermOver,
    /// Another candidate leads.
    #[error("another candidate leads")]
    HeldByOther,
    /// The candidate leads, but with a larger token: it campaigned again elsewhere.
    #[error(
        "the candidate leads with a larger token: another process campaigned under the same name"
    )]
    StaleToken,
    /// The election is vacant: the term has lapsed, or somebody resigned in the candidate's name.
    #[error("the election is vacant: the term has lapsed or was given up")]
    NoTerm,
    /// The clock was stopped or set, so that the time that has passed is not known. Not on Linux and macOS, whose
    /// clocks count what a suspended machine misses.
    #[error("the clock jumped: the time that has passed is not known")]
    ClockJumped,
}

impl Lost {
    /// The reason of a definite denial.
    pub(crate) fn of_reason(reason: &str) -> Option<Self> {
        match reason {
            "NO_TERM" => Some(Self::NoTerm),
            "HELD_BY_OTHER" => Some(Self::HeldByOther),
            "STALE_TOKEN" => Some(Self::StaleToken),
            _ => None,
        }
    }
}

/// What kind of refusal. All of them say that nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// A name, a term or another argument is out of range.
    InvalidArgument,
    /// What was asked about does not exist.
    NotFound,
    /// The request was granted before, and what it granted is over.
    AlreadyExists,
    /// The credential is missing or not valid.
    Unauthenticated,
    /// The caller may not do this.
    PermissionDenied,
    /// The agent, or a limit of the caller, has no room: a rate, a quota, a number of streams.
    ResourceExhausted,
    /// The agent does not offer this.
    Unimplemented,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unimplemented => "UNIMPLEMENTED",
        })
    }
}

impl Code {
    /// The code of a status that means that nothing was changed.
    pub(crate) fn of(code: tonic::Code) -> Option<Self> {
        Some(match code {
            tonic::Code::InvalidArgument => Self::InvalidArgument,
            tonic::Code::NotFound => Self::NotFound,
            tonic::Code::AlreadyExists => Self::AlreadyExists,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::PermissionDenied => Self::PermissionDenied,
            tonic::Code::ResourceExhausted => Self::ResourceExhausted,
            tonic::Code::Unimplemented => Self::Unimplemented,
            _ => return None,
        })
    }
}
