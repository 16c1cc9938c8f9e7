//! Output of commands.
//!
//! The print macros of the standard library panic if a write fails, for example when the reader has closed
//! the pipe or the disk is full. These functions do not.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write as _},
    process::ExitCode,
};

/// Writes the whole text to the standard output.
///
/// # Errors
/// Returns the error of a failed write.
pub fn write(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.to_string().as_bytes())?;
    out.flush()
}

/// Writes the text as [`write()`] does, and reports a failed write on the standard error.
pub fn print(text: impl Display, code: ExitCode) -> ExitCode {
    ended(write(text), code)
}

/// Returns the exit code of a command after its output was written.
///
/// A closed pipe is not a failure: the reader has stopped reading on purpose, so it is not reported.
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

/// Writes an error message to the standard error. Ignores a failed write: the exit status still reports the
/// failure.
pub fn complain(what: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
