//! `eactl`: the command line of election agents, for images of applications.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    if let Some(code) = election_ctl::helper(env::args_os()) {
        return code;
    }
    match election_ctl::eactl().try_get_matches() {
        Ok(matches) => election_ctl::run(election_ctl::eactl(), &matches),
        Err(error) => election_ctl::usage(&error),
    }
}
