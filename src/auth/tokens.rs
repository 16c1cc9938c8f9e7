//! Bearer tokens that a file lists by their hashes (`EA_AUTH_TOKEN_FILE`).
//!
//! The file has one token per line: a name, `sha256:` followed by the token's hash in hex, and optionally a
//! comma-separated list of groups. A line that begins with `#` is a comment.
//!
//! ```text
//! # report workers
//! worker-1 sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 workers,batch
//! ```
//!
//! A token is 256 random bits. It cannot be guessed, so a plain hash protects it as well as a slow one. A name may have
//! several tokens, which allows rotation.

use std::{collections::HashMap, fmt::Write as _, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Identity, Mode};
use crate::reload::{Mistake, Source, read_file};

/// The setting that names the file.
const VARIABLE: &str = "EA_AUTH_TOKEN_FILE";
/// Prefix of tokens, by which scanners for leaked secrets recognize them.
const TOKEN_PREFIX: &str = "ea_";
/// Prefix of a hash in the file.
const HASH_PREFIX: &str = "sha256:";
/// Length of a token without its prefix, in bytes.
const SECRET_LENGTH: usize = 32;

/// The SHA-256 of a credential.
pub type Hash = [u8; 32];

/// Returns the hash of a credential, the key of all look-ups.
pub(super) fn hash(credential: &str) -> Hash {
    Sha256::digest(credential.as_bytes()).into()
}

/// A new token for a client, and the line for the token file.
pub struct New {
    /// The token. It is not stored.
    pub token: String,
    /// The line for the file.
    pub line: String,
}

impl New {
    /// Returns the token as a shell assignment, with instructions.
    #[must_use]
    pub fn usage(&self) -> String {
        format!(
            "# The token, which is shown only once. For a shell:\n\
             export TOKEN={}\n\
             # Its line is on the standard output, for the file that {VARIABLE} names, with EA_AUTH_MODES=token.\n\
             # Callers send the token: curl -H \"authorization: Bearer $TOKEN\" http://localhost:8080/elections",
            self.token
        )
    }

    /// Creates a token for this name and these groups.
    ///
    /// # Errors
    /// The file format cannot represent the name or a group, or the system provides no randomness.
    pub fn make(name: &str, groups: &[String]) -> Result<Self, String> {
        let apart = |c: char| c.is_whitespace() || c == ',';
        if name.starts_with('#') || groups.iter().any(String::is_empty) {
            return Err(
                "a name must not begin with #, as comments do, and a group not be empty".to_owned(),
            );
        }
        if name.contains(apart) || groups.iter().any(|group| group.contains(apart)) {
            return Err("names and groups must not hold spaces or commas".to_owned());
        }
        let mut secret = [0; SECRET_LENGTH];
        getrandom::fill(&mut secret)
            .map_err(|error| format!("the system gives no random bytes: {error}"))?;
        let token = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(secret));
        let mut line = format!("{name} {HASH_PREFIX}");
        for byte in hash(&token) {
            let _ = write!(line, "{byte:02x}");
        }
        if !groups.is_empty() {
            let _ = write!(line, " {}", groups.join(","));
        }
        // The reader of the file applies the same checks.
        Identity::new(Mode::Token, name, groups.to_vec())?;
        Ok(Self { token, line })
    }
}

/// The file of tokens.
#[derive(Debug, Clone)]
pub struct File(pub PathBuf);

/// The tokens that the file lists.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Keyed by the first eight bytes of the hash. The timing of a look-up reveals only whether these bytes match. That
    /// discloses nothing about a token: an attacker who can choose the hash of a guess could find the token offline.
    by_prefix: HashMap<[u8; 8], Vec<(Hash, Identity)>>,
}

impl Tokens {
    /// Returns the identity of a token. The comparison of hashes takes constant time.
    #[must_use]
    pub(super) fn find(&self, hash: &Hash) -> Option<&Identity> {
        let listed = self.by_prefix.get(&prefix(hash))?;
        let found = listed.iter().find(|(known, _)| known.ct_eq(hash).into());
        found.map(|(_, identity)| identity)
    }
}

fn prefix(hash: &Hash) -> [u8; 8] {
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&hash[..8]);
    prefix
}

impl Source for File {
    type Content = Vec<u8>;
    type Made = Tokens;

    const WHAT: &'static str = "bearer tokens";

    fn read(&self) -> Result<Vec<u8>, Vec<Mistake>> {
        read_file(VARIABLE, &self.0).map_err(|mistake| vec![mistake])
    }

    fn make(&self, content: &Vec<u8>) -> Result<Tokens, Vec<Mistake>> {
        let path = self.0.display();
        let text = std::str::from_utf8(content)
            .map_err(|_| vec![Mistake::new(VARIABLE, format!("{path} is not UTF-8"))])?;
        // Some editors write a byte order mark at the start of a file.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (mut tokens, mut mistakes) = (Tokens::default(), Vec::new());
        for (number, line) in (1..).zip(text.lines()) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what| Mistake::new(VARIABLE, format!("{path}, line {number}: {what}"));
            match parse_line(line) {
                Ok((hash, _)) if tokens.find(&hash).is_some() => {
                    mistakes.push(wrong("this token is listed above".to_owned()));
                }
                Ok((hash, identity)) => {
                    let listed = tokens.by_prefix.entry(prefix(&hash)).or_default();
                    listed.push((hash, identity));
                }
                Err(what) => mistakes.push(wrong(what)),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        if tokens.by_prefix.is_empty() {
            // An empty list is valid, so that the removal of the last token takes effect.
            tracing::warn!(
                variable = VARIABLE,
                "{path} lists no token, so it authenticates no caller"
            );
        }
        Ok(tokens)
    }
}

/// Parses a line. The error does not repeat the line, which may hold a token in place of a hash.
fn parse_line(line: &str) -> Result<(Hash, Identity), String> {
    let mut words = line.split_whitespace();
    let (name, hash, groups, more) = (words.next(), words.next(), words.next(), words.next());
    let (Some(name), Some(hash), None) = (name, hash, more) else {
        return Err(
            "write a name, sha256:…, and groups if there are any, with spaces between; \
             `election-agent token new` makes such lines"
                .to_owned(),
        );
    };
    let hash = hash
        .strip_prefix(HASH_PREFIX)
        .and_then(parse_hex)
        .ok_or("after the name must come sha256: and 64 hex digits, not the token itself")?;
    let groups = groups.map(|groups| groups.split(',').map(str::to_owned).collect());
    let identity = Identity::new(Mode::Token, name, groups.unwrap_or_default())?;
    Ok((hash, identity))
}

fn parse_hex(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Tokens, Vec<String>> {
        let made = File("tokens".into()).make(&text.as_bytes().to_vec());
        made.map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_new_token_is_known_by_its_line() {
        let groups = ["b".to_owned(), "a".to_owned()];
        let first = New::make("worker-1", &groups).expect("made");
        let second = New::make("worker-1", &[]).expect("made");
        assert_ne!(first.token, second.token);
        assert!(!first.line.contains(&first.token[TOKEN_PREFIX.len()..]));
        let file = format!("\u{feff}# ours\n\n{}\r\n  {}\n", first.line, second.line);
        let tokens = tokens(&file).expect("valid");
        let found = tokens.find(&hash(&first.token)).expect("known");
        assert_eq!(
            (found.name(), found.groups()),
            ("worker-1", &["a".to_owned(), "b".to_owned()][..])
        );
        assert_eq!(found.mode(), Mode::Token);
        assert!(tokens.find(&hash(&second.token)).is_some());
        assert!(tokens.find(&hash("ea_other")).is_none());
    }

    #[test]
    fn names_that_a_line_cannot_hold_are_refused() {
        for (name, groups) in [
            ("a b", vec![]),
            ("", vec![]),
            ("a", vec!["x,y".to_owned()]),
            ("a", vec![String::new()]),
        ] {
            assert!(New::make(name, &groups).is_err(), "{name:?} {groups:?}");
        }
        assert!(New::make("#a", &[]).is_err(), "a comment");
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_without_what_may_be_a_token() {
        let made = New::make("a", &[]).expect("made");
        let file = format!(
            "{0}\n{0}\nworker s3cret\ns3cret\nw sha256:12\nw {1} g h s3cret\n",
            made.line,
            &made.line[2..]
        );
        let found = tokens(&file).expect_err("mistakes");
        assert_eq!(found.len(), 5, "{found:?}");
        for (mistake, line) in found.iter().zip(2..) {
            assert!(
                mistake.starts_with(&format!("EA_AUTH_TOKEN_FILE: tokens, line {line}: ")),
                "{mistake}"
            );
            assert!(!mistake.contains("s3cret"), "{mistake}");
        }
    }
}
