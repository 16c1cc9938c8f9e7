//! What `run` was asked to do, checked.

use std::{ffi::OsString, path::Path, time::Duration};

use clap::ArgMatches;

use super::{
    cgroup::Cgroup,
    engine::MARGIN,
    program,
    supervisor::{Job, cgroup_failure},
};
use crate::{failure::Failure, leading::Candidacy};

/// What `run` does.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) candidacy: Candidacy,
    pub(crate) job: Job,
    pub(crate) again: bool,
}

/// The number that `--status-fd` names.
pub(crate) fn status_fd(given: &ArgMatches) -> Option<u16> {
    given.get_one("status_fd").copied()
}

impl Options {
    /// Checks all that can be checked without an agent.
    pub(crate) fn new(given: &ArgMatches) -> Result<Self, Failure> {
        let command: Vec<OsString> = given
            .get_many("command")
            .unwrap_or_default()
            .cloned()
            .collect();
        let name = command
            .first()
            .ok_or_else(|| Failure::own("no command is given"))?;
        let program = program::find(name)?;
        let again = given.get_flag("again");
        let candidacy = Candidacy::new(given, again)?;
        let grace = given.get_one("grace").copied().unwrap_or_default();
        check_grace(grace, candidacy.term)?;
        if !Path::new(super::OWN_BINARY).exists() {
            return Err(Failure::own(
                "/proc is not mounted: run starts its helpers from /proc/self/exe",
            ));
        }
        let cgroup = given.get_flag("cgroup");
        if cgroup {
            // One that is empty is removed again.
            Cgroup::new().map_err(|why| cgroup_failure(&why))?;
        }
        let job = Job {
            program,
            command,
            grace,
            cgroup,
        };
        Ok(Self {
            candidacy,
            job,
            again,
        })
    }
}

/// A term is extended every third of it: half of it must be left for a second try before the command is asked to end.
fn check_grace(grace: Duration, term: Duration) -> Result<(), Failure> {
    let need = grace.saturating_add(MARGIN);
    if need <= term / 2 {
        return Ok(());
    }
    let grace_at_most = (term / 2).saturating_sub(MARGIN);
    Err(Failure::own(format!(
        "--grace {} does not fit into --term {}: the grace and 0.5 s must be at most half of the term; use --term {} or \
         more, or --grace {} or less",
        humantime::format_duration(grace),
        humantime::format_duration(term),
        humantime::format_duration(need.saturating_mul(2)),
        humantime::format_duration(grace_at_most),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_and_half_a_second_fit_into_half_of_the_term() {
        let seconds = Duration::from_secs;
        assert!(check_grace(seconds(5), seconds(11)).is_ok());
        let refused = check_grace(seconds(5), Duration::from_millis(10_999)).expect_err("too long");
        assert_eq!(refused.code(), Failure::OWN);
        let told = refused.to_string();
        assert!(told.contains("--term 11s or more"), "{told}");
        assert!(told.contains("--grace 4s 999ms"), "{told}");
        assert!(check_grace(Duration::ZERO, seconds(1)).is_ok());
        assert!(check_grace(Duration::MAX, seconds(1)).is_err());
    }
}
