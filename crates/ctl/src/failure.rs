//! What is reported when a command fails, and its exit code.

use std::fmt;

/// Why a command has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The agent's answer is no.
    pub(crate) const NO: u8 = 1;
    /// The answer is not known.
    pub(crate) const NOT_KNOWN: u8 = 3;
    /// The leadership was lost.
    pub(crate) const LOST: u8 = 123;
    /// Not elected in time.
    pub(crate) const NOT_ELECTED: u8 = 124;
    /// This command was used wrongly, or cannot do its work.
    pub(crate) const OWN: u8 = 125;
    /// The command to run may not be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command to run.
    pub(crate) const NOT_FOUND: u8 = 127;

    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// A failure of this command itself.
    pub(crate) fn own(message: impl fmt::Display) -> Self {
        Self::new(Self::OWN, message.to_string())
    }

    /// The end of a command whose output nobody reads any more.
    pub(crate) fn silent() -> Self {
        Self::new(0, "")
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}
