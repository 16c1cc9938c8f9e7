//! Hints: a node's reports of changes to its listeners.
//!
//! A hint is a reason to read an election. It is never a source of truth: it may be lost, late or repeated, and any
//! client that may write to the node can forge it. Only the time of the next read depends on hints.

use std::{fmt, str::FromStr};

use strum::{EnumString, IntoStaticStr, VariantArray};

use crate::types::{ElectionId, Token};

/// What a node did to an election. Hints name it by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Cause {
    /// It granted the election to a candidate.
    Campaign,
    /// It granted the election to the candidate of a handover.
    Handover,
    /// The leader gave it up.
    Resign,
    /// A grant was rolled back.
    #[strum(serialize = "rollback")]
    RolledBack,
    /// A lease that other nodes hold was written.
    #[strum(serialize = "repair")]
    Repaired,
}

/// A report that a node has changed an election.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// The election.
    pub election: ElectionId,
    /// What happened.
    pub cause: Cause,
    /// The token that was granted, given up, rolled back or written.
    pub token: Token,
}

/// `cause`, `token` and the election's path, one a line.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cause, path) = (<&str>::from(self.cause), self.election.path());
        write!(f, "{cause}\n{}\n{path}", self.token)
    }
}

/// The text is no hint that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHint;

impl FromStr for Hint {
    type Err = NoHint;

    fn from_str(text: &str) -> Result<Self, NoHint> {
        let mut lines = text.splitn(3, '\n');
        let mut line = || lines.next().ok_or(NoHint);
        let cause = line()?.parse().map_err(|_| NoHint)?;
        let token = line()?.parse().ok().and_then(Token::new).ok_or(NoHint)?;
        let election = ElectionId::from_path(line()?).map_err(|_| NoHint)?;
        Ok(Self {
            election,
            cause,
            token,
        })
    }
}

/// Receives the reports of a node.
pub trait Listener: Send + Sync {
    /// The node reports every change from now on. `listeners` is the number of agents that listen to it, 0 if unknown.
    /// Called again at least every few seconds while this holds.
    fn connected(&self, listeners: usize);

    /// The node has changed an election.
    fn hinted(&self, hint: Hint);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_read_back_as_it_was_written_and_nothing_else_is_one() {
        for &cause in Cause::VARIANTS {
            let hint = Hint {
                election: ElectionId::new("batch", "köln 1").expect("valid"),
                cause,
                token: Token::MAX,
            };
            assert_eq!(hint.to_string().parse(), Ok(hint));
        }
        let long = format!("resign\n1\nk/{}", "x".repeat(257));
        for text in [
            "",
            "resign",
            "resign\n1",
            "resign\n0\nk/e",
            "resign\n9007199254740992\nk/e",
            "resign\n-1\nk/e",
            "resign\n1\nno slash",
            "resign\n1\nk/e\nmore",
            "conquest\n1\nk/e",
            &long,
        ] {
            assert_eq!(text.parse::<Hint>(), Err(NoHint), "{text:?}");
        }
    }
}
