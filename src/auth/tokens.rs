//! Bearer tokens that a file lists by their hashes (`EA_AUTH_TOKEN_FILE`).
//!
//! The file has one token a line: a name, `sha256:` with the token's hash in hex, and, if it has any, the
//! groups, comma separated. What follows a `#` at a line's beginning is a comment.
//!
//! ```text
//! # report workers
//! worker-1 sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 workers,batch
//! ```
//!
//! Tokens are 256 random bits, so that a plain hash keeps them as secret as a slow one would: there is
//! nothing to guess. A name may have several tokens, which is how they are replaced.

use std::{collections::HashMap, fmt::Write as _, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{Identity, Mode};
use crate::reload::{Mistake, Source, read_file};

/// The setting that names the file.
const VARIABLE: &str = "EA_AUTH_TOKEN_FILE";
/// What tokens begin with, so that scanners for leaked secrets can tell them.
const TOKEN_PREFIX: &str = "ea_";
/// What a hash in the file begins with.
const HASH_PREFIX: &str = "sha256:";
/// The length of a token without its prefix, in bytes.
const SECRET_LENGTH: usize = 32;

/// The SHA-256 of a credential.
pub type Hash = [u8; 32];

/// The hash of a credential, by which it is looked up.
pub(super) fn hash(credential: &str) -> Hash {
    Sha256::digest(credential.as_bytes()).into()
}

/// A token for a client, and the line of the file that knows it.
pub struct New {
    /// The token, which is kept nowhere.
    pub token: String,
    /// The line for the file.
    pub line: String,
}

impl New {
    /// The token, as a shell takes it, and how it is used.
    #[must_use]
    pub fn usage(&self) -> String {
        format!(
            "# The token, which is shown this once. For a shell:\n\
             export TOKEN={}\n\
             # Its line is on the standard output, for the file that {VARIABLE} names, with EA_AUTH_MODES=token.\n\
             # Whoever asks shows the token: curl -H \"authorization: Bearer $TOKEN\" http://localhost:8080/elections",
            self.token
        )
    }

    /// Makes a token for this name and these groups.
    ///
    /// # Errors
    /// A name or group that the file cannot hold, or a system without randomness.
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
        // As the file's reader will.
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
    /// By the first eight bytes of the hash. That a look-up takes longer when these are right tells nobody
    /// anything of a token: who could choose the hash of a guess could find the token without us.
    by_prefix: HashMap<[u8; 8], Vec<(Hash, Identity)>>,
}

impl Tokens {
    /// Whose token this is. What is compared is compared in constant time.
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
        // As some editors begin a file.
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
            // Taking the last one off must take effect.
            tracing::warn!(
                variable = VARIABLE,
                "{path} lists no token, so none lets anybody in"
            );
        }
        Ok(tokens)
    }
}

/// What a line says; a mistake does not repeat it, as it may hold a token where a hash should be.
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
        let told = tokens(&file).expect_err("mistakes");
        assert_eq!(told.len(), 5, "{told:?}");
        for (mistake, line) in told.iter().zip(2..) {
            assert!(
                mistake.starts_with(&format!("EA_AUTH_TOKEN_FILE: tokens, line {line}: ")),
                "{mistake}"
            );
            assert!(!mistake.contains("s3cret"), "{mistake}");
        }
    }
}
