//! `--status-fd`: a line for each extension, and the end of the stream when the leadership is over.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, OFlags, fstat},
    net::{SendFlags, send},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use serde::Serialize;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct StatusStream(Stream);

#[derive(Debug)]
enum Stream {
    /// Never blocks.
    Own(File),
    /// Others may hold it, too, so it cannot be made non-blocking.
    Shared(File),
    Socket(OwnedFd),
}

/// A line.
#[derive(Debug, Serialize)]
pub(crate) struct Status<'a> {
    /// `elected`, `extended` or `over`.
    pub(crate) event: &'static str,
    pub(crate) kind: &'a str,
    pub(crate) election: &'a str,
    pub(crate) token: u64,
    /// When the term ends: CLOCK_BOOTTIME in ns.
    pub(crate) valid_until: u64,
}

impl StatusStream {
    /// Takes over an inherited descriptor: no other process, above all not the command, holds it any more, so that
    /// its reader gets the end of the stream.
    ///
    /// To be called before anything is opened: a number that was closed must not pass to another file.
    pub(crate) fn take(number: u16) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("--status-fd {number}: {why}: open it for writing, as in {number}>FILE")
        };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))
            .map_err(|_| wrong("not open"))?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
        let mode = OFlags::from_bits_retain(flags.unwrap_or_default()) & OFlags::RWMODE;
        if mode == OFlags::RDONLY {
            return Err(wrong("not open for writing"));
        }
        let stream = match duplicate(number) {
            Ok(inherited) => Stream::of(inherited, number),
            // A sandbox may forbid it. What cannot be opened by its path either is a socket.
            Err(_) => reopen(number).map(Stream::Own),
        };
        let stream =
            stream.map_err(|error| wrong(&format!("no pipe, socket or file ({error})")))?;
        // The standard streams are the command's.
        if number > 2 {
            let _ = nix::unistd::close(i32::from(number));
        }
        Ok(Self(stream))
    }

    /// Writes a line, unless its reader has gone or does not keep up.
    pub(crate) fn write(&self, status: &Status<'_>) {
        let Ok(mut line) = serde_json::to_vec(status) else {
            return;
        };
        line.push(b'\n');
        // A pipe takes a line as a whole or not at all, and so does a socket.
        let _: io::Result<usize> = self.0.write(&line);
    }
}

impl Stream {
    fn of(inherited: OwnedFd, number: u16) -> io::Result<Self> {
        match FileType::from_raw_mode(fstat(&inherited)?.st_mode) {
            // Shares the position with its other holders: lines of both follow each other.
            FileType::RegularFile => Ok(Self::Own(inherited.into())),
            FileType::Socket => Ok(Self::Socket(inherited)),
            // A pipe that another user has made may be written to, but not be opened.
            _ => Ok(reopen(number).map_or_else(|_| Self::Shared(inherited.into()), Self::Own)),
        }
    }

    fn write(&self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::Own(file) => (&*file).write(line),
            Self::Shared(file) => {
                let mut writable = [PollFd::new(file, PollFlags::OUT)];
                let at_once = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                match poll(&mut writable, Some(&at_once))? {
                    // A pipe that may be written to has room for a page.
                    1.. => (&*file).write(line),
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Self::Socket(socket) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(send(socket, line, flags)?)
            }
        }
    }
}

/// Another descriptor of the same stream.
fn duplicate(number: u16) -> io::Result<OwnedFd> {
    match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        2 => io::stderr().as_fd().try_clone_to_owned(),
        number => {
            let own = pidfd_open(getpid(), PidfdFlags::empty())?;
            Ok(pidfd_getfd(
                own,
                i32::from(number),
                PidfdGetfdFlags::empty(),
            )?)
        }
    }
}

/// Opens the stream anew, so that it can be non-blocking without affecting its other holders.
fn reopen(number: u16) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new()
        .append(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(format!("/proc/self/fd/{number}"))
}
