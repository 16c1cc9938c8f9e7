//! `run`: a command that runs only while its election is led.
//!
//! ```text
//! supervisor (the process that was started; extends the term, resigns)
//!   ├── the command, leader of a process group of its own (launch, until it becomes the command)
//!   └── deadman, in a session of its own: kills the group at the deadline, or when the supervisor ends
//! ```
//!
//! Why no process of the group acts after the term:
//!
//! 1. The command does not start before the deadman watches: it waits for the supervisor ([`launch`]).
//! 2. The deadline is `valid_until` − 0.5 s by CLOCK_BOOTTIME, in memory that both share ([`deadline`]). Only the
//!    supervisor writes it, after an extension that the agent has confirmed.
//! 3. At the deadline the supervisor kills the group, and so does the deadman, whatever the other does ([`engine`],
//!    [`deadman`]).
//! 4. When the supervisor ends, the kernel kills the command (PDEATHSIG), and the deadman the group.
//! 5. The leader of the group stays a zombie until the group was killed and the deadman has ended, so that the group's
//!    number cannot pass to another process ([`group`]).
//! 6. The supervisor resigns when the group is over, and never before.
//!
//! What stays: a machine on which neither process runs in time, supervisor and deadman killed at the same instant (the
//! command ends by PDEATHSIG, what it has started does not), a group that changes its user so that signals do not reach
//! it, and processes that leave the group without `--cgroup`. The fencing token fences what these write.

mod cgroup;
pub mod clock;
mod deadline;
mod deadman;
mod engine;
mod group;
mod launch;
pub(crate) mod options;
mod program;
pub(crate) mod signals;
pub(crate) mod status;
pub(crate) mod supervisor;
mod terminal;

use std::{ffi::OsString, process::ExitCode, time::Duration};

use rustix::process::Signal;
use tokio::select;

use crate::{
    failure::Failure,
    leading::{Held, instant},
    output::complain,
};
use clock::{Instant, Sleep};
use options::Options;
use signals::Signals;
use status::{Status, StatusStream};
use supervisor::{Outcome, Report, supervise};

/// This program.
pub(crate) const OWN_BINARY: &str = "/proc/self/exe";

/// The exit code of a helper that could not do its work.
const OWN_ERROR: u8 = Failure::OWN;

/// The shortest time between two starts of a command with `--again`.
const BETWEEN_STARTS: Duration = Duration::from_secs(1);

/// Runs the helper that the arguments ask for, if they do.
pub(crate) fn helper(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    match args.next()?.to_str()? {
        launch::NAME => Some(launch::main(args)),
        deadman::NAME => Some(deadman::main(args)),
        _ => None,
    }
}

/// Leads and runs the command; returns its exit code, or that of what happened to it.
pub(crate) async fn run(options: Options, mut status: Option<StatusStream>) -> Result<u8, Failure> {
    let mut signals = Signals::new().map_err(Failure::own)?;
    let mut last = None;
    let ended_by = |number: Signal| u8::try_from(128 + number.as_raw()).unwrap_or(Failure::OWN);
    select! {
        number = signals.end() => return Ok(ended_by(number)),
        reached = options.candidacy.reach() => reached?,
    }
    loop {
        let held = select! {
            number = signals.end() => return Ok(last.unwrap_or(ended_by(number))),
            held = options.candidacy.campaign() => held?,
        };
        let started = Instant::now();
        let outcome = under(&held, &options, &mut signals, &mut status).await;
        let lost = outcome.as_ref().is_ok_and(|outcome| outcome.lost.is_some());
        held.resign(lost).await;
        let outcome = outcome?;
        if let Some(why) = &outcome.lost {
            complain(format_args!("the command was ended: {why}"));
        }
        let code = outcome.lost.map_or(outcome.code, |_| Failure::LOST);
        if !options.again || outcome.asked {
            return Ok(code);
        }
        last = Some(code);
        let pause = Sleep::new().map_err(Failure::own)?;
        select! {
            _ = signals.end() => return Ok(code),
            slept = pause.until(started + BETWEEN_STARTS) => slept.map_err(Failure::own)?,
        }
    }
}

/// Runs the command under a leadership.
async fn under(
    held: &Held,
    options: &Options,
    signals: &mut Signals,
    status: &mut Option<StatusStream>,
) -> Result<Outcome, Failure> {
    let term = held.term().clone();
    let line = |event, until: Instant| Status {
        event,
        kind: term.kind(),
        election: term.election(),
        token: term.token(),
        valid_until: until.nanos(),
    };
    let until = || instant(term.valid_until());
    if let Some(status) = status {
        status.write(&line("elected", until()));
    }
    let variables = vec![
        ("ELECTION_AGENT_TOKEN", term.token().to_string()),
        ("ELECTION_AGENT_ELECTION", term.election().to_owned()),
        ("ELECTION_AGENT_KIND", term.kind().to_owned()),
        ("ELECTION_AGENT_CANDIDATE", term.candidate().to_owned()),
    ];
    let mut over = false;
    let outcome = supervise(
        &options.job,
        variables,
        &mut held.lease(),
        signals,
        |report| match report {
            Report::Extended(until) => {
                if let Some(status) = status.as_ref().filter(|_| !over) {
                    status.write(&line("extended", until));
                }
            }
            Report::Over => {
                over = true;
                end(status, &line("over", until()), options.again);
            }
        },
    )
    .await;
    if !over {
        end(status, &line("over", until()), options.again);
    }
    outcome
}

/// Reports to the reader that the leadership is over: by a line, and by the end of the stream if there is not to be
/// another.
fn end(status: &mut Option<StatusStream>, line: &Status<'_>, again: bool) {
    if let Some(stream) = status {
        stream.write(line);
    }
    if !again {
        *status = None;
    }
}
