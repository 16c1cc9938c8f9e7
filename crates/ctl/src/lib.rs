//! The command line of election agents: runs a command for as long as an election is led, observes, lists, resigns and
//! hands over.
//!
//! `eactl` is this library and nothing else; `election-agent` offers the same commands. A program that embeds it
//! calls [`helper`] first of all, adds [`commands`] to its own, and gives what was parsed to [`run()`].
//!
//! ```text
//! main ── helper     the two processes that `run` starts: run::launch becomes the command, run::deadman watches it
//!   └──── run ────── commands: run, elect (http), observe, queries, documents
//! ```
//!
//! Supervision ([`run`](mod@run)) is in three layers: `engine` decides, without I/O; `supervisor` does it, in
//! processes; the lease comes from `election-agent-client`.

mod cli;
mod connection;
mod documents;
mod elect;
mod failure;
mod http;
mod leading;
mod observe;
mod output;
mod queries;
pub mod run;

use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::ArgMatches;

pub use cli::{commands, eactl};
use failure::Failure;
use run::status::StatusStream;

/// Runs one of the processes that `run` starts from its own binary, if that is what the arguments (with the program's
/// name as the first) ask for.
///
/// Call it at the beginning of `main`: these processes are to be small.
pub fn helper(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    run::helper(args.into_iter().skip(1))
}

/// Runs the command that was given, one of [`commands`], and returns the program's exit code.
///
/// `line` is the program's whole command line, for completions and the man page. To be called on the main thread,
/// outside of any asynchronous runtime, and before files are opened: `run --status-fd` takes a descriptor over by its
/// number.
#[must_use]
pub fn run(line: clap::Command, matches: &ArgMatches) -> ExitCode {
    let Some((name, given)) = matches.subcommand() else {
        return ExitCode::from(Failure::OWN);
    };
    // Documents take no `--json`, and are none.
    if given.try_get_one("json").ok().flatten() == Some(&true) {
        output::complain_in_json();
    }
    let done = match name {
        "completions" => documents::completions(line, given),
        "man" => documents::man(line),
        "install" => documents::install(given),
        _ => command(name, given),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if failure != Failure::silent() {
                output::report(&failure);
            }
            ExitCode::from(failure.code())
        }
    }
}

/// Prints what is wrong with a malformed command line and returns its exit code; success for `--help` and
/// `--version`.
#[must_use]
pub fn usage(error: &clap::Error) -> ExitCode {
    // A failed write cannot be reported.
    let _ = error.print();
    match error.use_stderr() {
        true => ExitCode::from(Failure::OWN),
        false => ExitCode::SUCCESS,
    }
}

fn command(name: &str, given: &ArgMatches) -> Result<u8, Failure> {
    if name == "run" {
        // Everything that can be known to be wrong is, before the agent is asked; and the descriptor is taken before
        // its number can be another file's.
        let status = run::options::status_fd(given)
            .map(StatusStream::take)
            .transpose();
        let status = status.map_err(Failure::own)?;
        let options = run::options::Options::new(given)?;
        return block_on(run::run(options, status));
    }
    match name {
        "elect" => block_on(elect::elect(given)),
        "observe" => block_on(observe::observe(given)),
        "leaders" => block_on(queries::leaders(given)),
        "kinds" => block_on(queries::kinds(given)),
        "resign" => block_on(queries::resign(given)),
        "handover" => block_on(queries::handover(given)),
        "verify" => block_on(queries::verify(given)),
        "pods" => block_on(queries::pods(given)),
        other => Err(Failure::own(format!("no such command: {other}"))),
    }
}

/// One thread, this one: the command that `run` starts is killed by the kernel when the thread ends that started it.
fn block_on(future: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(Failure::own)?;
    let done = runtime.block_on(future);
    // A name lookup may be under way on another thread: nothing waits for it.
    runtime.shutdown_background();
    done
}
