//! The audit trail: one log line for every leadership that changes.

use std::fmt::Display;

use super::{log::AUDIT, trace};
use crate::election::ledger::Change;

/// Logs that a leadership has changed. Members that are not known are left out.
pub(super) fn log(change: &Change<'_>, agent: &str) {
    let text = |value: Option<&dyn Display>| value.map(ToString::to_string);
    let old = text(change.old.map(|old| old as _));
    let new = text(change.new.map(|new| new as _));
    tracing::info!(
        target: AUDIT,
        election = change.election.path(),
        old_leader = old,
        new_leader = new,
        token = change.token.map(|token| token.get()),
        cause = change.cause.name(),
        agent,
        trace_id = trace::current_trace_id(),
        "leadership changed"
    );
}
