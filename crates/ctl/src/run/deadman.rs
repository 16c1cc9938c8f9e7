//! The deadman: a second process that kills the group when the supervisor cannot.
//!
//! The supervisor may be stopped (SIGSTOP, a debugger, no processor time) or killed while the command works on. The
//! deadman sleeps until the deadline, which the supervisor moves with every extension, and kills the group at it; and
//! at once if the supervisor ends. It is a program of its own, in a session of its own, without threads, an
//! asynchronous runtime or a terminal. Its standard streams are the supervisor's socket (0), the deadline (1) and
//! `/dev/null` (2); it closes all others that it inherits. The supervisor ends it with SIGKILL, which also ends one
//! that was stopped.

use std::{
    fs,
    io::{self, Write as _},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, setsid, waitid},
};

use super::{
    cgroup,
    clock::{Alarm, Instant},
    deadline::Deadline,
    group::Group,
};

/// The hidden command that starts a deadman.
pub(crate) const NAME: &str = "__deadman";

/// How long the supervisor waits for a deadman that starts.
const START: Duration = Duration::from_secs(5);

/// What a deadman says when it watches.
const WATCHING: u8 = b'w';

/// The longest sleep. The deadline's alarm is enough, unless it fails.
const LONGEST_SLEEP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A running deadman, of the supervisor.
#[derive(Debug)]
pub(crate) struct Deadman {
    id: Pid,
    /// The deadman sees its end when the supervisor ends.
    _socket: UnixStream,
}

impl Deadman {
    /// Starts a deadman for this group, and waits until it watches, but not beyond the deadline: the supervisor can do
    /// nothing else meanwhile.
    pub(crate) fn start(
        group: Pid,
        deadline: &Deadline,
        cgroup: Option<&Path>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let left = deadline.get().map_or(START, Instant::remaining);
        // A time-out of zero would be none.
        ours.set_read_timeout(Some(left.clamp(Duration::from_millis(1), START)))?;
        let mut command = Command::new(super::OWN_BINARY);
        command
            .arg(NAME)
            .arg(group.as_raw_nonzero().to_string())
            .args(cgroup)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::from(deadline.share()?))
            .stderr(Stdio::null());
        let child = command.spawn()?;
        let deadman = Self {
            id: Pid::from_child(&child),
            _socket: ours,
        };
        // The command holds the deadman's descriptors, and with them the socket.
        drop(command);
        let mut said = [0];
        match io::Read::read_exact(&mut &deadman._socket, &mut said) {
            Ok(()) if said == [WATCHING] => Ok(deadman),
            Ok(()) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(error),
        }
    }

    /// Whether it has ended; it is reaped then.
    pub(crate) fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(self.id), options), Ok(None))
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }
}

impl Drop for Deadman {
    fn drop(&mut self) {
        if !self.has_ended() {
            // It is this process's child and not reaped: the number is its own.
            let _ = kill_process(self.id, Signal::KILL);
            let _ = waitid(WaitId::Pid(self.id), WaitIdOptions::EXITED);
        }
    }
}

/// Runs a deadman: `GROUP [CGROUP]`.
pub(crate) fn main(mut args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let group = args
        .next()
        .and_then(|id| id.to_str()?.parse().ok())
        .and_then(Pid::from_raw);
    let Some(group) = group else {
        return ExitCode::from(super::OWN_ERROR);
    };
    let cgroup = args.next().map(PathBuf::from);
    // Before anything is opened.
    if close_inherited().is_err() {
        return ExitCode::from(super::OWN_ERROR);
    }
    match watch(&Group::of(group), cgroup.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(super::OWN_ERROR),
    }
}

fn watch(group: &Group, cgroup: Option<&Path>) -> io::Result<()> {
    // `pkill NAME` means the supervisor, which asks the group to end and resigns.
    let _ = SigSet::all().thread_block();
    setsid()?;
    let supervisor = io::stdin();
    let deadline = Deadline::shared(io::stdout());
    let alarm = Alarm::new()?;
    let mut until = deadline.get().ok_or(io::ErrorKind::InvalidData)?;
    UnixStream::from(supervisor.as_fd().try_clone_to_owned()?).write_all(&[WATCHING])?;
    loop {
        alarm.set(until)?;
        let mut descriptors = [
            PollFd::new(&supervisor, PollFlags::IN),
            PollFd::new(&alarm, PollFlags::IN),
        ];
        // An error is as good as the end of a sleep: the deadline is checked either way.
        let _ = poll(&mut descriptors, Some(&LONGEST_SLEEP));
        // The supervisor never writes: its socket is readable when it has ended.
        let alone = !descriptors[0].revents().is_empty();
        until = deadline.get().unwrap_or(until);
        if alone || Instant::now() >= until {
            kill(group, cgroup);
            if alone && let Some(cgroup) = cgroup {
                cgroup::remove(cgroup);
            }
            return Ok(());
        }
    }
}

fn kill(group: &Group, cgroup: Option<&Path>) {
    if let Some(cgroup) = cgroup {
        // The group is killed in any case.
        let _ = cgroup::kill(cgroup);
    }
    group.kill_from_outside();
}

/// Closes what the supervisor itself has inherited from its parent: pipes whose readers wait for their end.
fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .map_while(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // One of them was the directory's own.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
