//! Validation of requested terms.

use std::time::Duration;

use election_core::types::{Invalid, Term};

/// Validates a term in milliseconds.
///
/// # Errors
/// Returns [`Invalid`] with both bounds, and the setting that defines the upper one.
pub(super) fn term(ms: i64, max: Duration) -> Result<Term, Invalid> {
    let named = |Invalid(wrong)| Invalid(format!("{wrong} (EA_MAX_TERM bounds it)"));
    Term::from_millis(ms, max).map_err(named)
}
