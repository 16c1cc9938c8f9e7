//! What commands print.
//!
//! The macros of the standard library panic when they cannot write: a reader may have had enough, or a disk be full.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

/// Writes all of the text to the standard output.
///
/// # Errors
/// What keeps it from being written.
pub fn write(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.to_string().as_bytes())?;
    out.flush()
}

/// As [`write()`], and says so on the standard error if that fails.
pub fn print(text: impl Display, code: ExitCode) -> ExitCode {
    ended(write(text), code)
}

/// How a command ends whose output was written so.
///
/// A reader that closes its end has had enough: that is no failure, and nobody is left who should hear of it.
pub fn ended(written: io::Result<()>, code: ExitCode) -> ExitCode {
    match written {
        Ok(()) => code,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => code,
        Err(error) => {
            complain(format_args!("cannot write to the standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says on the standard error what is wrong. If nobody can hear it, the exit status has to do.
pub fn complain(what: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
