//! Between the supervisor and the command: the process that becomes the command.
//!
//! It asks the kernel to be killed when the supervisor ends, waits until the deadman watches, and replaces itself with
//! the command. Its standard input is a socket to the supervisor until then; the real one arrives over it, as the
//! permission to go on. If the socket ends first, the supervisor has ended, and the command is never started.

use std::{
    ffi::{CString, NulError, OsStr, OsString},
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
};

use nix::sys::signal::{SigSet, Signal as Masked};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Pid, Signal, getpgrp, getpid, getppid, set_parent_process_death_signal},
    stdio::dup2_stdin,
    termios::tcsetpgrp,
};

/// The hidden command that becomes another.
pub(crate) const NAME: &str = "__exec";

/// The command may start.
const START: u8 = b's';

/// The command may start, and its group gets the terminal's foreground.
const START_IN_FOREGROUND: u8 = b'f';

/// A process that waits to become the command.
#[derive(Debug)]
pub(crate) struct Launch {
    id: Pid,
    socket: UnixStream,
}

impl Launch {
    /// Starts the process, as the leader of a process group of its own. Not yet the command.
    ///
    /// The kernel kills the process when the thread that started it ends: this must be the main thread.
    pub(crate) fn prepare(
        program: &Path,
        command: &[OsString],
        variables: impl IntoIterator<Item = (&'static str, String)>,
    ) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(super::OWN_BINARY)
            .arg(NAME)
            .arg(getpid().as_raw_nonzero().to_string())
            .arg(program)
            .args(command)
            .envs(variables)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()?;
        Ok(Self {
            id: Pid::from_child(&child),
            socket,
        })
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// Lets the process become the command.
    pub(crate) fn start(&self, foreground: bool) -> io::Result<()> {
        let stdin = io::stdin();
        let descriptors = [stdin.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&descriptors));
        let byte = [if foreground {
            START_IN_FOREGROUND
        } else {
            START
        }];
        sendmsg(
            &self.socket,
            &[IoSlice::new(&byte)],
            &mut message,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Why the process could not become the command. For when it has ended: `None` if it was the command that ended.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        // Other processes that inherited the socket must not block this.
        self.socket.set_nonblocking(true).ok()?;
        let mut code = [0; 4];
        (&self.socket).read_exact(&mut code).ok()?;
        Some(io::Error::from_raw_os_error(i32::from_ne_bytes(code)))
    }
}

/// Becomes the command: `SUPERVISOR PROGRAM NAME [ARGUMENT…]`.
pub(crate) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let own_error = ExitCode::from(super::OWN_ERROR);
    let supervisor = args
        .next()
        .and_then(|id| id.to_str()?.parse().ok())
        .and_then(Pid::from_raw);
    let (Some(supervisor), Some(program), Some(name)) = (supervisor, args.next(), args.next())
    else {
        return own_error;
    };
    let killed_with_it = set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    // The supervisor may have ended before this call.
    if !killed_with_it || getppid() != Some(supervisor) {
        return own_error;
    }
    let Ok(mut socket) = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(UnixStream::from)
    else {
        return own_error;
    };
    if wait(&socket).is_err() {
        return own_error;
    }
    let error = become_command(&program, name, args);
    // The supervisor reports what was wrong.
    let _ = socket.write_all(&error.raw_os_error().unwrap_or_default().to_ne_bytes());
    own_error
}

/// Waits for the standard input that the command is to have.
fn wait(socket: &UnixStream) -> io::Result<()> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(
        socket,
        &mut buffers,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes != 1 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for descriptor in descriptors {
                dup2_stdin(descriptor)?;
            }
        }
    }
    if byte == [START_IN_FOREGROUND] {
        // The command works in the background, too, until it reads from the terminal.
        let _ = take_foreground(getpgrp());
    }
    Ok(())
}

/// Returns only if that fails.
///
/// Not by the standard library, whose `exec` lets the C library pass to a shell what the kernel does not know, such as
/// a program for another processor.
fn become_command(
    program: &OsStr,
    name: OsString,
    args: impl Iterator<Item = OsString>,
) -> io::Error {
    // Ignored since this process has started, which the command would inherit. A handler it does not.
    let flag = Arc::default();
    if let Err(error) = signal_hook::flag::register(Signal::PIPE.as_raw(), flag) {
        return error;
    }
    let program = CString::new(program.as_bytes());
    let line: Result<Vec<_>, NulError> = std::iter::once(name)
        .chain(args)
        .map(|argument| CString::new(argument.into_vec()))
        .collect();
    match program.and_then(|program| Ok((program, line?))) {
        Ok((program, line)) => {
            let Err(error) = nix::unistd::execv(&program, &line);
            error.into()
        }
        Err(error) => error.into(),
    }
}

/// Makes the group the one that reads from the terminal and gets its signals.
pub(crate) fn take_foreground(group: Pid) -> io::Result<()> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    // A process in the background is stopped with SIGTTOU when it does this, unless it blocks the signal.
    let mut stop = SigSet::empty();
    stop.add(Masked::SIGTTOU);
    let before = stop.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let done = tcsetpgrp(&terminal, group);
    before.thread_set_mask()?;
    Ok(done?)
}
