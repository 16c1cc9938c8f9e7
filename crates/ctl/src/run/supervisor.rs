//! Runs a command for as long as its election is led, and not longer.

use std::{ffi::OsString, io, path::PathBuf, time::Duration};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, waitid};
use tokio::select;

use super::{
    cgroup::Cgroup,
    clock::{Instant, Sleep},
    deadline::Deadline,
    deadman::Deadman,
    engine::{Action, Cause, Engine, Event},
    group::{self, Group},
    launch::Launch,
    signals::Signals,
    terminal::Terminal,
};
use crate::{failure::Failure, output::complain};

/// How often a group is checked whose leader has ended.
const LOOK: Duration = Duration::from_millis(5);

/// How often the terminal that the command waits for is checked.
const LOOK_AT_TERMINAL: Duration = Duration::from_millis(100);

/// The leadership under which a command runs.
pub(crate) trait Lease {
    /// When the term ends, unless it is extended.
    fn valid_until(&self) -> Instant;

    /// Waits for the next change. Loses none when it is dropped before.
    async fn changed(&mut self) -> Change;
}

/// What became of a leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The term was extended.
    Extended,
    /// The leadership is over, for this reason.
    Lost(String),
}

/// What is reported to others than the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The term is valid until this instant.
    Extended(Instant),
    /// The command is being ended.
    Over,
}

/// A command, and how it is run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) program: PathBuf,
    /// The name of the command, and its arguments.
    pub(crate) command: Vec<OsString>,
    pub(crate) grace: Duration,
    pub(crate) cgroup: bool,
}

/// How a command has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The command's exit code, or 128 and the number of the signal that has ended it.
    pub(crate) code: u8,
    /// Why the leadership ended before the command did.
    pub(crate) lost: Option<String>,
    /// Whether this process was asked to end meanwhile.
    pub(crate) asked: bool,
}

/// Runs the command until it ends, or until the leadership does. No process of the command's group is left when this
/// returns, also if it fails.
///
/// To be called on the process's main thread: the kernel kills the command when the thread that started it ends.
///
/// # Errors
/// The command could not be started.
pub(crate) async fn supervise(
    job: &Job,
    variables: Vec<(&'static str, String)>,
    lease: &mut impl Lease,
    signals: &mut Signals,
    mut report: impl FnMut(Report),
) -> Result<Outcome, Failure> {
    let not_started = |error: io::Error| {
        Failure::own(format!("the command's process cannot be started: {error}"))
    };
    let mut engine = Engine::new(job.grace, lease.valid_until());
    let cgroup = if job.cgroup {
        Some(Cgroup::new().map_err(|why| cgroup_failure(&why))?)
    } else {
        None
    };
    let terminal = Terminal::open();
    let launch = Launch::prepare(&job.program, &job.command, variables).map_err(not_started)?;
    let mut run = Run {
        group: Group::of(launch.id()),
        launch,
        deadline: Deadline::new(engine.deadline()),
        deadman: None,
        cgroup,
        terminal,
        reaped: false,
        wants_terminal: false,
    };
    run.start(&engine).map_err(not_started)?;

    let sleep = Sleep::new().map_err(Failure::own)?;
    let mut led = true;
    let mut asked = false;
    let mut status = None;
    loop {
        let wake = match (&status, engine.killed()) {
            (None, true) => None,
            (None, false) => Some(engine.wake()),
            (Some(_), _) => Some(engine.wake().min(Instant::now() + LOOK)),
        };
        let wake = match run.wants_terminal {
            true => wake.map(|wake| wake.min(Instant::now() + LOOK_AT_TERMINAL)),
            false => wake,
        };
        let event = select! {
            number = signals.next() => match number {
                Signal::CHILD => Event::Tick,
                Signal::CONT => {
                    run.resume();
                    continue;
                }
                Signal::TSTP => {
                    tell_not_suspended();
                    continue;
                }
                Signal::TERM => {
                    asked = true;
                    run.group.terminate();
                    Event::Terminate
                }
                number => {
                    asked |= number == Signal::INT;
                    run.group.signal(number);
                    continue;
                }
            },
            change = lease.changed(), if led => match change {
                Change::Extended => {
                    report(Report::Extended(lease.valid_until()));
                    Event::Extended(lease.valid_until())
                }
                Change::Lost(why) => {
                    led = false;
                    complain(format_args!("the leadership is lost: {why}"));
                    Event::Lost(why)
                }
            },
            woken = sleep.until(wake.unwrap_or(Instant::now())), if wake.is_some() => {
                // Without a timer nothing is known about the time that is left.
                if woken.is_err() { Event::Lost("no timer".to_owned()) } else { Event::Tick }
            }
        };
        let before = engine.cause().is_some();
        run.act(engine.on(event, Instant::now()));
        if !before && engine.cause().is_some() {
            report(Report::Over);
        }
        if run.wants_terminal {
            run.resume();
        }
        if status.is_none() {
            status = run.leader()?;
            if status.is_none() {
                run.keep_deadman(&engine);
                continue;
            }
        }
        if engine.killed() || run.is_alone() {
            break;
        }
        run.act(engine.on(Event::LeaderEnded, Instant::now()));
    }

    let ended_at = Instant::now();
    let status = status.ok_or_else(|| Failure::own("the command's end was not seen"))?;
    let killed = engine.killed() || status.terminating_signal().is_some();
    run.finish(lease.valid_until(), killed).await;
    if let Some(error) = run.launch.failure() {
        return Err(not_executed(job, &error));
    }
    let by_deadman =
        status.terminating_signal() == Some(Signal::KILL.as_raw()) && ended_at >= engine.deadline();
    let lost = match engine.cause() {
        Some(Cause::Lost(why)) => Some(why.clone()),
        Some(Cause::NotExtended) => Some("the term could not be extended in time".to_owned()),
        None if by_deadman => Some("the term ended while this process could not work".to_owned()),
        Some(Cause::Asked) | None => None,
    };
    Ok(Outcome {
        code: code(&status),
        lost,
        asked,
    })
}

/// The failure that names what `--cgroup` lacks.
pub(crate) fn cgroup_failure(why: &str) -> Failure {
    Failure::own(format!("--cgroup: {why}"))
}

fn not_executed(job: &Job, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Failure::NOT_FOUND,
        _ => Failure::NOT_EXECUTABLE,
    };
    let hint = match code {
        Failure::NOT_FOUND => ": it, its interpreter or its dynamic loader is not there",
        _ => "",
    };
    Failure::new(code, format!("{}: {error}{hint}", job.program.display()))
}

fn code(status: &WaitIdStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => Failure::OWN.into(),
    };
    u8::try_from(code).unwrap_or(Failure::OWN)
}

/// The processes of a command that is being run.
struct Run {
    group: Group,
    launch: Launch,
    deadline: io::Result<Deadline>,
    deadman: Option<Deadman>,
    cgroup: Option<Cgroup>,
    terminal: Option<Terminal>,
    reaped: bool,
    /// The command was stopped because it used the terminal from the background.
    wants_terminal: bool,
}

impl Run {
    /// Has the group watched, and lets the command start.
    fn start(&mut self, engine: &Engine) -> io::Result<()> {
        if let Some(cgroup) = &self.cgroup {
            cgroup.add(self.launch.id())?;
        }
        self.deadman = Some(self.start_deadman()?);
        if Instant::now() >= engine.wake() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the term is nearly over",
            ));
        }
        self.launch
            .start(self.terminal.as_ref().is_some_and(Terminal::is_ours))
    }

    fn start_deadman(&self) -> io::Result<Deadman> {
        let deadline = match &self.deadline {
            Ok(deadline) => deadline,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        let cgroup = self.cgroup.as_ref().map(Cgroup::path);
        let started = Deadman::start(self.group.id(), deadline, cgroup);
        started.map_err(|error| io::Error::new(error.kind(), format!("no deadman: {error}")))
    }

    /// Replaces a deadman that was killed.
    fn keep_deadman(&mut self, engine: &Engine) {
        let over = engine.killed() || Instant::now() >= engine.deadline();
        if over || !self.deadman.as_ref().is_some_and(Deadman::has_ended) {
            return;
        }
        self.deadman = None;
        match self.start_deadman() {
            Ok(deadman) => self.deadman = Some(deadman),
            // The supervisor itself kills the group at the deadline, unless it is stopped.
            Err(error) => complain(format_args!(
                "the deadman was killed, and another cannot be started: {error}"
            )),
        }
    }

    fn act(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Publish(at) => {
                    let published = self
                        .deadline
                        .as_ref()
                        .is_ok_and(|deadline| deadline.set(at).is_ok());
                    if !published {
                        // The deadman keeps the deadline before, which is earlier or as good as this one.
                        complain(format_args!("the deadline cannot be written"));
                    }
                }
                Action::Terminate => self.group.terminate(),
                Action::Kill => self.kill(),
            }
        }
    }

    fn kill(&self) {
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.kill()
        {
            complain(format_args!("{}: {error}", cgroup.path().display()));
        }
        self.group.signal(Signal::KILL);
    }

    /// How the command has ended, if it has: it stays unreaped. Reaps others, and continues what the terminal's keys
    /// have stopped.
    fn leader(&mut self) -> Result<Option<WaitIdStatus>, Failure> {
        let leader = self.group.id();
        if getpid().is_init() {
            reap_orphans(leader, self.deadman.as_ref().map(Deadman::id));
        }
        let wait = |options| waitid(WaitId::Pid(leader), options | WaitIdOptions::NOHANG);
        if let Ok(Some(stop)) = wait(WaitIdOptions::STOPPED) {
            let by = |signal: Signal| stop.stopping_signal() == Some(signal.as_raw());
            if by(Signal::TSTP) {
                tell_not_suspended();
                self.group.signal(Signal::CONT);
            }
            self.wants_terminal |= by(Signal::TTIN) || by(Signal::TTOU);
        }
        let ended = wait(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        ended.map_err(|error| Failure::own(format!("the command cannot be waited for: {error}")))
    }

    /// Whether nothing of the command is left but its leader, which has ended.
    fn is_alone(&self) -> bool {
        let members = group::living(self.group.id());
        let escaped = self.cgroup.as_ref().is_some_and(Cgroup::is_populated);
        members.is_some_and(|members| members.is_empty()) && !escaped
    }

    /// Lends the terminal if this process has come to its foreground, as by a shell's `fg`, which does not notify a
    /// process that was not stopped.
    fn resume(&mut self) {
        if let Some(terminal) = &self.terminal
            && terminal.is_ours()
        {
            terminal.lend(self.group.id());
            self.group.signal(Signal::CONT);
            self.wants_terminal = false;
        }
    }

    /// Makes sure that the group is over whose leader has ended, and gives its number back.
    async fn finish(&mut self, valid_until: Instant, killed: bool) {
        // Nobody is left, or all are being killed: after this no member can be born.
        self.kill();
        self.release();
        let over = || {
            let escaped = self.cgroup.as_ref().is_some_and(Cgroup::is_populated);
            group::is_over(self.group.id()) && !escaped
        };
        while !over() && Instant::now() < valid_until {
            tokio::time::sleep(LOOK).await;
        }
        if !over() {
            complain(format_args!(
                "processes of group {} were killed and have not ended: the kernel is at work for them",
                self.group.id().as_raw_nonzero()
            ));
        }
        if let Some(terminal) = &self.terminal {
            terminal.take_back(self.group.id(), killed);
        }
        if getpid().is_init() {
            reap_orphans(self.group.id(), None);
        }
    }

    /// Ends the deadman, which would use the group's number, and then reaps the leader, which keeps the number. All
    /// members must have been killed.
    fn release(&mut self) {
        self.deadman = None;
        if !self.reaped {
            self.reaped = true;
            let _ = waitid(WaitId::Pid(self.group.id()), WaitIdOptions::EXITED);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.release();
        }
    }
}

fn tell_not_suspended() {
    complain(format_args!(
        "it leads, and cannot be suspended: it goes on; Ctrl-C ends it"
    ));
}

/// Reaps what has ended and is not this process's own child: the first process of a container inherits all others.
fn reap_orphans(leader: Pid, deadman: Option<Pid>) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    while let Ok(status) = waitid(Id::All, look | WaitPidFlag::WNOWAIT) {
        let Some(ended) = status.pid() else {
            return;
        };
        let own = [Some(leader), deadman].into_iter().flatten();
        if own
            .map(|pid| pid.as_raw_nonzero().get())
            .any(|pid| pid == ended.as_raw())
        {
            return;
        }
        let _ = waitid(Id::Pid(ended), look);
    }
}
