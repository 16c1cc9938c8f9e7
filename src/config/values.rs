//! Where values come from, before they are validated.

use std::{
    collections::BTreeMap, ffi::OsString, fmt, ops::RangeInclusive, path::PathBuf, str::FromStr,
    time::Duration,
};

use yaml_serde::Value;

use super::{Secret, Setting, redis::hide_credentials, settings};
use crate::reload;

/// What is wrong with a configuration: one line a mistake.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Where a value is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nobody gave one.
    Default,
    /// The YAML file.
    File,
    /// An environment variable.
    Environment,
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// The raw value of every setting that somebody gave.
#[derive(Default)]
pub struct Values {
    given: BTreeMap<&'static str, (String, Source)>,
    /// The variables that OpenTelemetry gives every SDK.
    otel: BTreeMap<String, String>,
    unknown: Vec<String>,
}

/// Without the values: some are secrets.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).finish()
    }
}

impl Values {
    /// Lays the flags over the environment over the file (named by the flag, else `EA_CONFIG_FILE`).
    ///
    /// # Errors
    /// A file that cannot be read or has unknown keys; a variable that is not UTF-8; a setting and its
    /// alias with different values.
    pub fn collect(
        flags: Vec<(&'static str, String)>,
        file: Option<String>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let (mut variables, mut otel) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in env {
            let read = |name: &&str| name.starts_with("EA_") || name.starts_with("OTEL_");
            let Some(name) = name.to_str().filter(read) else {
                continue;
            };
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) if name.starts_with("OTEL_") => {
                    otel.insert(name.to_owned(), value);
                }
                Ok(value) => {
                    variables.insert(name.to_owned(), value);
                }
                Err(_) => mistakes.push(format!("{name}: the value is not UTF-8")),
            }
        }

        let mut values = Self {
            otel,
            ..Self::default()
        };
        if let Some(path) = file.or_else(|| variables.remove("EA_CONFIG_FILE")) {
            match read_file(&path) {
                Ok(keys) => values.take_file(&path, keys, &mut mistakes),
                Err(error) => mistakes.push(format!("EA_CONFIG_FILE: cannot read {path}: {error}")),
            }
        }
        for setting in settings() {
            let own = variables.remove(setting.variable);
            let alias = setting.alias.and_then(|alias| variables.remove(alias));
            if let (Some(own), Some(other)) = (&own, &alias)
                && own != other
            {
                mistakes.push(format!(
                    "{}: it and its alias {} have different values: set one of them",
                    setting.variable,
                    setting.alias.unwrap_or_default()
                ));
            }
            if let Some(value) = own.or(alias) {
                values
                    .given
                    .insert(setting.variable, (value, Source::Environment));
            }
        }
        values.unknown = variables.into_keys().collect();
        for (variable, value) in flags {
            values.given.insert(variable, (value, Source::Flag));
        }
        if mistakes.is_empty() {
            Ok(values)
        } else {
            Err(Mistakes(mistakes))
        }
    }

    fn take_file(&mut self, path: &str, keys: Vec<(String, Value)>, mistakes: &mut Vec<String>) {
        for (key, value) in keys {
            let known = settings().find(|setting| {
                let alias = setting.alias.map(|alias| alias.trim_start_matches("EA_"));
                setting.key() == key || alias.is_some_and(|alias| alias.eq_ignore_ascii_case(&key))
            });
            match (known, scalar(&value)) {
                (None, _) => mistakes.push(match secret_above(&key) {
                    Some(setting) => not_scalar(setting, path),
                    None => format!(
                        "EA_CONFIG_FILE: {path} has the key \"{}\", which is no setting{}",
                        plain(&key),
                        nearest(&key)
                    ),
                }),
                (Some(setting), None) => mistakes.push(not_scalar(setting, path)),
                (Some(_), Some(value)) if value.is_empty() => {}
                (Some(setting), Some(value)) => {
                    let earlier = self.given.insert(setting.variable, (value, Source::File));
                    if earlier.is_some() {
                        mistakes.push(format!("{}: {path} sets it twice", setting.variable));
                    }
                }
            }
        }
    }

    /// The value in force and where it is from.
    #[must_use]
    pub fn get(&self, variable: &str) -> (&str, Source) {
        match self.given.get(variable) {
            Some((value, source)) => (value, *source),
            None => {
                let declared = settings().find(|setting| setting.variable == variable);
                (
                    declared.map_or("", |setting| setting.default),
                    Source::Default,
                )
            }
        }
    }

    /// Variables that look like settings but are none.
    #[must_use]
    pub fn unknown_variables(&self) -> &[String] {
        &self.unknown
    }
}

fn read_file(path: &str) -> Result<Vec<(String, Value)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let document: Value = yaml_serde::from_str(&text).map_err(|error| error.to_string())?;
    let mut keys = Vec::new();
    match document {
        Value::Null => {}
        Value::Mapping(_) => flatten(String::new(), document, &mut keys),
        _ => {
            return Err("it must be a mapping of settings, such as \"grpc_port: 8443\"".to_owned());
        }
    }
    Ok(keys)
}

/// `grpc: {port: 1}` means `grpc_port: 1`.
fn flatten(prefix: String, value: Value, keys: &mut Vec<(String, Value)>) {
    let Value::Mapping(mapping) = value else {
        keys.push((prefix, value));
        return;
    };
    for (key, value) in mapping {
        let key = scalar(&key).unwrap_or_else(|| format!("{key:?}"));
        let path = match prefix.as_str() {
            "" => key,
            prefix => format!("{prefix}_{key}"),
        };
        flatten(path, value, keys);
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Sequence(values) => {
            let values: Option<Vec<_>> = values.iter().map(scalar).collect();
            Some(values?.join(","))
        }
        Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

fn not_scalar(setting: &Setting, path: &str) -> String {
    format!(
        "{}: in {path}, {} must be a text, a number, true, false or a list of them",
        setting.variable,
        setting.key()
    )
}

/// The setting with credentials whose value was taken for a key, as in `redis_urls: {redis://u:p@host: }`.
fn secret_above(key: &str) -> Option<&'static Setting> {
    settings()
        .filter(|setting| setting.secret != Secret::No)
        .find(|setting| key.starts_with(&format!("{}_", setting.key())))
}

/// The key as far as keys go: a URL that was taken for one may hold a password.
fn plain(key: &str) -> String {
    let in_keys = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    match key.find(|c| !in_keys(c)) {
        Some(end) => format!("{}…", &key[..end]),
        None => key.to_owned(),
    }
}

/// A hint at the setting that was perhaps meant: one that has the same words.
fn nearest(key: &str) -> String {
    let plain = key.to_ascii_lowercase().replace('-', "_");
    let plain = plain.trim_start_matches("ea_");
    let letters = |text: &str| {
        let mut letters: Vec<_> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    settings()
        .map(Setting::key)
        .find(|known| letters(known) == letters(plain))
        .map(|known| format!(": did you mean {known}?"))
        .unwrap_or_else(|| ": election-agent --help lists them all".to_owned())
}

/// Reads typed values and collects what is wrong with them.
pub(super) struct Reader<'a> {
    values: &'a Values,
    mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(values: &'a Values) -> Self {
        Self {
            values,
            mistakes: Vec::new(),
        }
    }

    /// The raw value; empty when the setting is off.
    pub(super) fn raw(&self, variable: &str) -> &'a str {
        self.values.get(variable).0
    }

    /// A variable of OpenTelemetry's, if it is set.
    pub(super) fn otel(&self, variable: &str) -> Option<&'a str> {
        self.values.otel.get(variable).map(String::as_str)
    }

    /// Whether somebody gave the value.
    pub(super) fn is_given(&self, variable: &str) -> bool {
        self.values.get(variable).1 != Source::Default
    }

    /// The path that a setting names, if it names one.
    pub(super) fn path(&self, variable: &str) -> Option<PathBuf> {
        let raw = self.raw(variable);
        (!raw.is_empty()).then(|| PathBuf::from(raw))
    }

    /// The entries of a list that is comma separated; none if nobody gave one.
    pub(super) fn list(&mut self, variable: &str) -> Vec<String> {
        let raw = self.raw(variable);
        let entries = raw.split(',').map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty());
        let entries: Vec<_> = entries.map(str::to_owned).collect();
        if entries.is_empty() && !raw.is_empty() {
            self.mistake(variable, "it holds no entry: give one, or leave it out");
        }
        entries
    }

    /// Notes a mistake; the text says what to change.
    pub(super) fn mistake(&mut self, variable: &str, what: impl fmt::Display) {
        self.mistakes.push(format!("{variable}: {what}"));
    }

    /// Notes what is wrong with files that settings name, so that it is told with all other mistakes.
    pub(super) fn files(&mut self, files: &impl reload::Source) {
        for reload::Mistake { variable, what } in files.mistakes() {
            self.mistake(variable, what);
        }
    }

    /// A value in the form that `parse` reads.
    pub(super) fn with<T>(
        &mut self,
        variable: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let raw = self.raw(variable);
        parse(raw)
            .map_err(|what| {
                // A URL that was meant for another setting may hold a password.
                let shown = match raw.contains("://") {
                    true => hide_credentials(raw),
                    false => raw.to_owned(),
                };
                self.mistake(variable, format!("\"{shown}\" is not valid: {what}"));
            })
            .ok()
    }

    pub(super) fn parsed<T: FromStr<Err = String>>(&mut self, variable: &str) -> Option<T> {
        self.with(variable, str::parse)
    }

    pub(super) fn bool(&mut self, variable: &str) -> Option<bool> {
        self.with(variable, |raw| match raw {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("give true or false".to_owned()),
        })
    }

    pub(super) fn port(&mut self, variable: &str) -> Option<u16> {
        self.with(variable, |raw| {
            raw.parse()
                .map_err(|_| "give a port: 1 to 65535, or 0 for any free one".to_owned())
        })
    }

    /// A whole number in a range.
    pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(
        &mut self,
        variable: &str,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        self.with(variable, |raw| {
            let number = raw.parse().ok();
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
        })
    }

    /// A duration from `least` to `most`.
    pub(super) fn duration(
        &mut self,
        variable: &str,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        self.with(variable, |raw| {
            let range = format!(
                "give {} to {}, such as 500ms, 10s or 5m",
                humantime::format_duration(least),
                humantime::format_duration(most)
            );
            humantime::parse_duration(raw)
                .map_err(|error| format!("{error}: {range}"))
                .and_then(|duration| {
                    if (least..=most).contains(&duration) {
                        Ok(duration)
                    } else {
                        Err(range)
                    }
                })
        })
    }

    pub(super) fn mistakes(self) -> Mistakes {
        Mistakes(self.mistakes)
    }
}
