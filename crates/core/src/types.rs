//! Names and numbers of the domain, validated once where they enter.
//!
//! A value of these types is valid: the rest of the program never checks again.

use std::{cmp::Ordering, fmt, time::Duration};

/// The longest name of an election, kind, candidate or request id, in bytes.
pub const MAX_NAME: usize = 256;
/// The longest value that a leader may publish, in bytes.
pub const MAX_VALUE: usize = 1024;
/// The kind of an election whose request names none.
pub const DEFAULT_KIND: &str = "default";
/// The shortest term.
pub const MIN_TERM: Duration = Duration::from_millis(1000);

/// A request value out of range. The text names the field and says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// Names an election: `kind/name`, neither part empty, over [`MAX_NAME`] bytes, or holding a control
/// character or another slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElectionId {
    path: Box<str>,
    slash: usize,
}

impl ElectionId {
    /// Validates `kind` (empty means [`DEFAULT_KIND`]) and `name`.
    ///
    /// # Errors
    /// [`Invalid`] names the part and what is wrong with it.
    pub fn new(kind: &str, name: &str) -> Result<Self, Invalid> {
        let kind = Kind::new(kind)?;
        check_name("election", name)?;
        check_no_slash("election", name)?;
        Ok(kind.election(name))
    }

    /// Reads back what [`ElectionId::path`] wrote.
    ///
    /// # Errors
    /// [`Invalid`] when `path` is not `kind/name`.
    pub fn from_path(path: &str) -> Result<Self, Invalid> {
        let (kind, name) = path
            .split_once('/')
            .ok_or_else(|| Invalid(format!("`{path}` is not of the form kind/name")))?;
        Self::new(kind, name)
    }

    /// `kind/name`: unique, because neither part holds a slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The part before the slash.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.path[..self.slash]
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.path[self.slash + 1..]
    }
}

impl fmt::Debug for ElectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Display for ElectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// A group of elections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Kind(Box<str>);

impl Kind {
    /// Validates `kind`; empty means [`DEFAULT_KIND`].
    ///
    /// # Errors
    /// [`Invalid`] when it is too long or holds a control character or a slash.
    pub fn new(kind: &str) -> Result<Self, Invalid> {
        if kind.is_empty() {
            return Ok(Self(DEFAULT_KIND.into()));
        }
        check_name("kind", kind)?;
        check_no_slash("kind", kind)?;
        Ok(Self(kind.into()))
    }

    /// The kind as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text between the path of the last election of the kind and the first of the next kind.
    #[must_use]
    pub fn end(&self) -> String {
        // "0" follows "/".
        format!("{}0", self.0)
    }

    fn election(&self, name: &str) -> ElectionId {
        ElectionId {
            path: format!("{}/{name}", self.0).into(),
            slash: self.0.len(),
        }
    }
}

/// Kinds are in the order of their elections' paths.
impl Ord for Kind {
    fn cmp(&self, other: &Self) -> Ordering {
        let in_paths = |kind: &Self| kind.0.bytes().chain([b'/']).collect::<Vec<_>>();
        in_paths(self).cmp(&in_paths(other))
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A name that campaigns: 1 to [`MAX_NAME`] bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate(Box<str>);

impl Candidate {
    /// Validates a candidate's name; `field` is its name in the request.
    ///
    /// # Errors
    /// [`Invalid`] when it is empty, too long or holds a control character.
    pub fn new(field: &str, name: &str) -> Result<Self, Invalid> {
        check_name(field, name)?;
        Ok(Self(name.into()))
    }

    /// Like [`Candidate::new`]; empty means that the caller named none.
    ///
    /// # Errors
    /// [`Invalid`] when it is too long or holds a control character.
    pub fn optional(field: &str, name: &str) -> Result<Option<Self>, Invalid> {
        if name.is_empty() {
            return Ok(None);
        }
        Self::new(field, name).map(Some)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Public data of a leader: at most [`MAX_VALUE`] bytes of any text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Value(Box<str>);

impl Value {
    /// Validates the length.
    ///
    /// # Errors
    /// [`Invalid`] when it is longer than [`MAX_VALUE`] bytes.
    pub fn new(value: &str) -> Result<Self, Invalid> {
        if value.len() > MAX_VALUE {
            return Err(Invalid(format!(
                "`value` is {} bytes long: give at most {MAX_VALUE}",
                value.len()
            )));
        }
        Ok(Self(value.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies one campaign, so that a retry finds the grant of the first try.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Box<str>);

impl RequestId {
    /// Validates an id; empty means that the caller sent none.
    ///
    /// # Errors
    /// [`Invalid`] when it is longer than [`MAX_NAME`] bytes or holds a control character.
    pub fn new(id: &str) -> Result<Option<Self>, Invalid> {
        if id.is_empty() {
            return Ok(None);
        }
        check_name("request_id", id)?;
        Ok(Some(Self(id.into())))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How long a leadership lasts unless extended: [`MIN_TERM`] to the agent's maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(Duration);

impl Term {
    /// Validates a term in milliseconds.
    ///
    /// # Errors
    /// [`Invalid`] names both bounds.
    pub fn from_millis(ms: i64, max: Duration) -> Result<Self, Invalid> {
        let (least, most) = (MIN_TERM.as_millis(), max.as_millis());
        u64::try_from(ms)
            .map(Duration::from_millis)
            .ok()
            .filter(|term| (MIN_TERM..=max).contains(term))
            .map(Self)
            .ok_or_else(|| {
                Invalid(format!(
                    "`term` is {ms}: give {least} to {most} milliseconds"
                ))
            })
    }

    /// The term's length.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }

    /// The term, or this time if that is shorter, but at least [`MIN_TERM`].
    #[must_use]
    pub fn at_most(self, time: Duration) -> Self {
        Self(self.0.min(time.max(MIN_TERM)))
    }

    /// The term in whole milliseconds.
    #[must_use]
    pub fn millis(self) -> u64 {
        millis(self.0)
    }

    /// How far clocks may drift apart during the term: 1 % of it and 2 ms, as in the
    /// [Redlock description](https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).
    #[must_use]
    pub fn drift(self) -> Duration {
        drift(self.0)
    }

    /// [`drift`](Self::drift) for a leader whose clock also measures the time before the term.
    #[must_use]
    pub fn drift_after(self, before: Duration) -> Duration {
        drift(before + self.0)
    }
}

/// A fencing token: larger for every later grant of the same election; 1 to 2^53 − 1, so that it is
/// exact in JSON and in Lua.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// The largest token.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// A token from its number, if that is in range.
    #[must_use]
    pub fn new(token: u64) -> Option<Self> {
        (1..=Self::MAX.0).contains(&token).then_some(Self(token))
    }

    /// A token that a request may leave out by giving 0.
    ///
    /// # Errors
    /// [`Invalid`] when it is above [`Token::MAX`].
    pub fn optional(token: u64) -> Result<Option<Self>, Invalid> {
        match (token, Self::new(token)) {
            (0, _) => Ok(None),
            (_, Some(token)) => Ok(Some(token)),
            _ => Err(Invalid(format!(
                "`token` is {token}: give the token that the campaign returned (at most {}), or 0 to \
                 leave it out",
                Self::MAX.0
            ))),
        }
    }

    /// A token that a request must give.
    ///
    /// # Errors
    /// [`Invalid`] when it is 0 or over [`Token::MAX`].
    pub fn required(token: u64) -> Result<Self, Invalid> {
        Self::new(token).ok_or_else(|| {
            Invalid(format!(
                "`token` is {token}: give the token in question, 1 to {}",
                Self::MAX.0
            ))
        })
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far clocks may drift apart during this time: 1 % of it and 2 ms.
#[must_use]
pub fn drift(time: Duration) -> Duration {
    time / 100 + Duration::from_millis(2)
}

/// Whole milliseconds, saturating.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn check_name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid(format!(
            "`{field}` is empty: give 1 to {MAX_NAME} bytes"
        )));
    }
    if name.len() > MAX_NAME {
        return Err(Invalid(format!(
            "`{field}` is {} bytes long: give at most {MAX_NAME}",
            name.len()
        )));
    }
    if let Some(control) = name.chars().find(|c| c.is_control()) {
        return Err(Invalid(format!(
            "`{field}` holds the control character U+{:04X}: leave it out",
            u32::from(control)
        )));
    }
    Ok(())
}

fn check_no_slash(field: &str, name: &str) -> Result<(), Invalid> {
    if name.contains('/') {
        return Err(Invalid(format!(
            "`{field}` holds a \"/\": use another separator, such as \":\" or \".\""
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<impl Sized, Invalid>) -> String {
        result.err().map(|invalid| invalid.0).unwrap_or_default()
    }

    #[test]
    fn an_election_has_two_parts_and_an_empty_kind_is_the_default() {
        let id = ElectionId::new("", "köln").expect("valid");
        assert_eq!(
            (id.kind(), id.name(), id.path()),
            ("default", "köln", "default/köln")
        );
        assert_eq!(ElectionId::from_path(id.path()), Ok(id));
    }

    #[test]
    fn names_out_of_range_are_refused_with_what_to_change() {
        let long = "x".repeat(MAX_NAME + 1);
        assert!(ElectionId::new(&"x".repeat(MAX_NAME), &"y".repeat(MAX_NAME)).is_ok());
        assert_eq!(
            text(ElectionId::new("", "")),
            "`election` is empty: give 1 to 256 bytes"
        );
        assert_eq!(
            text(ElectionId::new(&long, "e")),
            "`kind` is 257 bytes long: give at most 256"
        );
        assert!(text(ElectionId::new("a/b", "e")).contains("`kind` holds a \"/\""));
        assert!(text(ElectionId::new("k", "a/b")).contains("`election` holds a \"/\""));
        assert!(text(ElectionId::new("k", "a\nb")).contains("U+000A"));
        assert!(text(Candidate::new("leader", "\u{7f}")).starts_with("`leader` holds"));
        assert!(Candidate::new("candidate", "team/a").is_ok());
        assert!(text(Value::new(&"v".repeat(MAX_VALUE + 1))).contains("at most 1024"));
    }

    #[test]
    fn a_term_out_of_range_is_told_both_bounds() {
        let max = Duration::from_secs(60);
        for ms in [i64::MIN, -1, 0, 999, 60_001, i64::MAX] {
            let error = text(Term::from_millis(ms, max));
            assert!(error.contains("1000 to 60000"), "{error}");
        }
        for ms in [1000, 60_000] {
            assert!(Term::from_millis(ms, max).is_ok());
        }
        let term = Term::from_millis(1000, max).expect("valid");
        assert_eq!(term.drift(), Duration::from_millis(12));
    }

    #[test]
    fn tokens_stay_below_two_to_the_fifty_third() {
        assert_eq!(Token::optional(0), Ok(None));
        assert!(Token::optional(1 << 53).is_err());
        assert_eq!(Token::optional((1 << 53) - 1), Ok(Some(Token::MAX)));
    }
}
