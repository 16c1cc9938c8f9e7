//! Maps errors of the domain to rows of the error table.

use std::time::Duration;

use election_core::{
    election::{self, Denial, state::Standing},
    types::Invalid,
};

use crate::{
    auth::gate,
    kube,
    status::{Code, Problem},
};

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::new(Code::InvalidArgument, invalid.0)
    }
}

impl From<election::Error> for Problem {
    fn from(error: election::Error) -> Self {
        match error {
            election::Error::Denied(denial) => denial.into(),
            election::Error::DeadlineExceeded => {
                Self::new(Code::DeadlineExceeded, error.to_string())
            }
            election::Error::StoreFull => Self::new(Code::StoreFull, error.to_string()),
            election::Error::Internal(reason) => {
                tracing::error!(reason, "a request failed, and retries cannot succeed");
                Self::new(Code::Internal, reason)
            }
            election::Error::Unavailable {
                reason,
                retry_after,
            } => Self {
                retry_after,
                ..Self::new(Code::Unavailable, reason)
            },
        }
    }
}

impl From<gate::Error> for Problem {
    fn from(error: gate::Error) -> Self {
        match error {
            gate::Error::Denied(what) => Self::new(Code::PermissionDenied, what),
            gate::Error::OverQuota {
                message,
                setting,
                limit,
            } => Self::new(Code::OverQuota, message)
                .with("setting", setting)
                .with("limit", limit),
            gate::Error::Election(error) => error.into(),
            gate::Error::Pods(error) => error.into(),
        }
    }
}

impl Problem {
    /// The problem of a campaign whose request id was used for a term that has ended.
    #[must_use]
    pub fn request_id_used() -> Self {
        Self::new(
            Code::Conflict,
            "`request_id` belongs to an earlier grant whose term has ended: give every campaign an id of its own",
        )
    }
}

impl From<kube::Error> for Problem {
    fn from(error: kube::Error) -> Self {
        let code = match error {
            kube::Error::Disabled(_) => Code::Disabled,
            kube::Error::NotFound(_) => Code::NotFound,
            kube::Error::Unavailable(_) => Code::Unavailable,
            kube::Error::DeadlineExceeded => Code::DeadlineExceeded,
        };
        Self::new(code, error.to_string())
    }
}

/// The problem of a request for the leader of an election that has none.
pub(super) fn vacant() -> Problem {
    Problem::new(Code::NotFound, "the election is vacant")
}

/// The name of a denial in both transports: `reason` of BoolValue and of the problem document.
#[must_use]
pub fn reason(denial: Denial) -> &'static str {
    match denial {
        Denial::NoTerm => "NO_TERM",
        Denial::HeldByOther => "HELD_BY_OTHER",
        Denial::StaleToken => "STALE_TOKEN",
    }
}

/// Converts the standing of a token for both transports: how long it is valid, or the reason why it is not current.
pub(super) fn verified(standing: Standing) -> (Duration, &'static str) {
    match standing {
        Standing::Current(valid_for) => (valid_for, ""),
        Standing::NoTerm => (Duration::ZERO, reason(Denial::NoTerm)),
        Standing::Stale => (Duration::ZERO, reason(Denial::StaleToken)),
        Standing::NotGranted => (Duration::ZERO, "NOT_GRANTED"),
    }
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        let code = match denial {
            Denial::NoTerm => Code::NotFound,
            Denial::HeldByOther | Denial::StaleToken => Code::Conflict,
        };
        Self::new(code, denial.to_string()).with("reason", reason(denial))
    }
}
