//! `--status-fd`: a line for each extension, and the end of the stream when the leadership is over.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use rustix::fs::OFlags;
use serde::Serialize;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct StatusStream(File);

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
    /// Takes over a descriptor that was inherited: nobody else, above all not the command, holds it any more, so that
    /// its reader meets the end of the stream.
    ///
    /// To be called before anything is opened: a number that was closed must not pass to another file. The stream is
    /// opened anew, so that it can be non-blocking without being so for others who hold the same one.
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
        let stream = OpenOptions::new()
            .append(true)
            .custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default())
            .open(format!("/proc/self/fd/{number}"))
            .map_err(|error| wrong(&format!("neither a pipe nor a file ({error})")))?;
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
        // A pipe takes a line as a whole or not at all.
        let _: io::Result<usize> = (&self.0).write(&line);
    }
}
