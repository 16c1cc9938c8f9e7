//! Collects raw values from all sources, before validation.

use std::{
    collections::BTreeMap, ffi::OsString, fmt, ops::RangeInclusive, path::PathBuf, str::FromStr,
    time::Duration,
};

use strum::VariantNames;
use yaml_serde::Value;

use super::{
    Secret, Setting,
    credentials::hide_credentials,
    names::{self, CONFIG_FILE, Variable},
    settings,
};
use crate::reload;

/// The mistakes in a configuration, one per line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// Returns whether there are no mistakes.
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

/// The source of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Source {
    /// The setting's default.
    Default,
    /// The YAML file.
    File,
    /// An environment variable.
    Environment,
    /// A command-line flag.
    Flag,
}

/// The raw values that were given, by variable.
#[derive(Default)]
pub struct Values {
    given: BTreeMap<&'static str, (String, Source)>,
    /// The standard variables of OpenTelemetry SDKs.
    otel: BTreeMap<String, String>,
    ignored: Vec<Ignored>,
}

/// A variable that looks like a setting but was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The variable's name.
    pub variable: String,
    /// The reason.
    pub why: &'static str,
}

/// Omits the values: some are secrets.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).finish()
    }
}

impl Values {
    /// Merges the sources: flags override the environment, which overrides the file. The file's path is that of the
    /// flag, else `EA_CONFIG_FILE`.
    ///
    /// # Errors
    /// The file is unreadable or has unknown keys; a variable is not UTF-8, or resembles a setting without being one; a
    /// setting and its alias have different values.
    pub fn collect(
        flags: Vec<(&'static str, String)>,
        file: Option<String>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let (mut variables, mut otel) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in env {
            let read = |name: &&str| names::is_near(name) || name.starts_with("OTEL_");
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
        values.leave_out_service_links(&mut variables);
        let named = variables.remove(CONFIG_FILE);
        if let Some(path) = file.or(named) {
            match read_file(&path) {
                Ok(keys) => values.take_file(&path, keys, &mut mistakes),
                Err(error) => mistakes.push(format!("{CONFIG_FILE}: cannot read {path}: {error}")),
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
        for (variable, value) in variables {
            match meant(&variable, &value) {
                Some(setting) => mistakes.push(format!(
                    "{}: there is no such setting: did you mean {setting}? What is not for the agent must have a name \
                     that does not resemble a setting",
                    plain(&variable)
                )),
                None if variable.starts_with("EA_") => values.ignored.push(Ignored {
                    variable,
                    why: "no such setting; election-agent help settings lists them all",
                }),
                None => {}
            }
        }
        for (variable, value) in flags {
            values.given.insert(variable, (value, Source::Flag));
        }
        values.trim();
        if mistakes.is_empty() {
            Ok(values)
        } else {
            Err(Mistakes(mistakes))
        }
    }

    /// Trims white space around values, which files and templates leave behind. Passwords may begin or end with white
    /// space and stay unchanged. A value of white space only also stays, so that it is a mistake rather than an unset
    /// value.
    fn trim(&mut self) {
        for setting in settings().filter(|setting| setting.secret != Secret::Hidden) {
            if let Some((value, _)) = self.given.get_mut(setting.variable)
                && !value.trim().is_empty()
            {
                *value = value.trim().to_owned();
            }
        }
    }

    /// Removes the variables that Kubernetes created for Services. Records those whose names equal a setting's
    /// variable.
    fn leave_out_service_links(&mut self, variables: &mut BTreeMap<String, String>) {
        let exists = |name: &str| variables.contains_key(name);
        let links = variables
            .iter()
            .filter(|(name, value)| names::is_service_link(name, value, exists));
        let links: Vec<_> = links.map(|(name, _)| name.clone()).collect();
        for variable in links {
            variables.remove(&variable);
            if settings().any(|setting| setting.variable == variable) {
                self.ignored.push(Ignored {
                    variable,
                    why: "Kubernetes made it of a Service, so it is not read; set it for the container, or \
                          enableServiceLinks to false",
                });
            }
        }
    }

    fn take_file(&mut self, path: &str, keys: Vec<(String, Value)>, mistakes: &mut Vec<String>) {
        for (key, value) in keys {
            let Some(setting) = by_key(&key) else {
                mistakes.push(no_setting(path, &key, &value));
                continue;
            };
            match text(setting, &value) {
                None => mistakes.push(wrong_shape(setting, path)),
                Some(value) if value.is_empty() => {}
                Some(value) => {
                    let earlier = self.given.insert(setting.variable, (value, Source::File));
                    if earlier.is_some() {
                        mistakes.push(format!("{}: {path} sets it twice", setting.variable));
                    }
                }
            }
        }
    }

    /// Returns the effective value and its source.
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

    /// Returns the variables that look like settings but were not read.
    #[must_use]
    pub fn ignored(&self) -> &[Ignored] {
        &self.ignored
    }
}

fn read_file(path: &str) -> Result<Vec<(String, Value)>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let document: Value = yaml_serde::from_str(&text).map_err(|error| error.to_string())?;
    match document {
        Value::Null => Ok(Vec::new()),
        Value::Mapping(mapping) => Ok(mapping
            .into_iter()
            .map(|(key, value)| (key_text(&key), value))
            .collect()),
        _ => Err("it must be a mapping of settings, such as \"grpc_port: 8443\"".to_owned()),
    }
}

fn key_text(key: &Value) -> String {
    scalar(key).unwrap_or_else(|| format!("{key:?}"))
}

/// Returns the setting with this key in the file.
fn by_key(key: &str) -> Option<&'static Setting> {
    settings().find(|setting| {
        setting.key() == key || setting.alias.is_some_and(|alias| super::key(alias) == key)
    })
}

/// Converts a YAML value to the form of a variable; [`None`] if it does not fit the setting.
fn text(setting: &Setting, value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Sequence(entries) if setting.is_list => {
            let entries: Option<Vec<_>> = entries.iter().map(scalar).collect();
            Some(entries?.join(","))
        }
        value => scalar(value),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

fn wrong_shape(setting: &Setting, path: &str) -> String {
    let shape = match setting.is_list {
        true => "a text, or a list of texts",
        false => "one text, number, true or false",
    };
    format!(
        "{}: in {path}, {} must be {shape}",
        setting.variable,
        setting.key()
    )
}

/// Returns the mistake for a key that is not a setting.
fn no_setting(path: &str, key: &str, value: &Value) -> String {
    let nested = nested(key, value);
    if !nested.is_empty() {
        return format!(
            "{CONFIG_FILE}: {path} has settings below the key \"{}\", but all stand on one level: write {}",
            plain(key),
            nested.join(", ")
        );
    }
    let hint = match names::meant_key(key) {
        Some(known) => format!("did you mean {known}?"),
        None => "election-agent help settings lists them all".to_owned(),
    };
    format!(
        "{CONFIG_FILE}: {path} has the key \"{}\", which is no setting: {hint}",
        plain(key)
    )
}

/// Returns the settings that nested keys were probably intended for: `grpc: {port: 1}`.
fn nested(key: &str, value: &Value) -> Vec<String> {
    let Value::Mapping(below) = value else {
        return Vec::new();
    };
    let below = below.iter().flat_map(|(name, value)| {
        let key = format!("{key}_{}", key_text(name));
        match by_key(&key) {
            Some(_) => vec![key],
            None => nested(&key, value),
        }
    });
    below.collect()
}

/// Returns the setting that a variable was probably intended for, by its name or because its value is the URL of a
/// server.
fn meant(variable: &str, value: &str) -> Option<&'static str> {
    let holds_url = ["redis://", "rediss://"]
        .iter()
        .any(|scheme| value.contains(scheme));
    let by_value =
        || (holds_url && variable.starts_with("EA_")).then_some(names::EA_REDIS_URLS.name());
    names::meant(variable).or_else(by_value)
}

/// Returns the part of the text that can be a key. A URL mistaken for a key may contain a password.
fn plain(key: &str) -> String {
    let in_keys = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ');
    match key.find(|c| !in_keys(c)) {
        Some(end) => format!("{}…", &key[..end]),
        None => key.to_owned(),
    }
}

/// Parses values and collects the mistakes.
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

    /// Returns the raw value; empty if the setting is off.
    pub(super) fn raw(&self, variable: Variable) -> &'a str {
        self.values.get(variable.name()).0
    }

    /// Returns a variable of OpenTelemetry, if it is set.
    pub(super) fn otel(&self, variable: &str) -> Option<&'a str> {
        self.values.otel.get(variable).map(String::as_str)
    }

    /// Returns whether the value was given, rather than the default.
    pub(super) fn is_given(&self, variable: Variable) -> bool {
        self.values.get(variable.name()).1 != Source::Default
    }

    /// Returns the path in a setting, if it is not empty.
    pub(super) fn path(&self, variable: Variable) -> Option<PathBuf> {
        let raw = self.raw(variable);
        (!raw.is_empty()).then(|| PathBuf::from(raw))
    }

    /// Returns the entries of a comma-separated list; empty if the setting is empty.
    pub(super) fn list(&mut self, variable: Variable) -> Vec<String> {
        let raw = self.raw(variable);
        let entries = raw.split(',').map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty());
        let entries: Vec<_> = entries.map(str::to_owned).collect();
        if entries.is_empty() && !raw.is_empty() {
            self.mistake(variable, "it holds no entry: give one, or leave it out");
        }
        entries
    }

    /// Records a mistake. The text states what to change.
    pub(super) fn mistake(&mut self, variable: impl fmt::Display, what: impl fmt::Display) {
        self.mistakes.push(format!("{variable}: {what}"));
    }

    /// Records the mistakes in files that settings name, so that they are reported with all others.
    pub(super) fn files(&mut self, files: &impl reload::Source) {
        for reload::Mistake { variable, what } in files.mistakes() {
            self.mistake(variable, what);
        }
    }

    /// Parses a value with `parse`.
    pub(super) fn with<T>(
        &mut self,
        variable: Variable,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let raw = self.raw(variable);
        parse(raw)
            .map_err(|what| {
                // A URL intended for another setting may contain a password.
                let shown = match raw.contains("://") {
                    true => hide_credentials(raw),
                    false => raw.to_owned(),
                };
                self.mistake(variable, format!("\"{shown}\" is not valid: {what}"));
            })
            .ok()
    }

    pub(super) fn parsed<T: FromStr<Err = String>>(&mut self, variable: Variable) -> Option<T> {
        self.with(variable, str::parse)
    }

    /// Parses one of the words that stand for the variants of `T`.
    pub(super) fn one_of<T: FromStr + VariantNames>(&mut self, variable: Variable) -> Option<T> {
        self.with(variable, |raw| {
            raw.parse().map_err(|_| match T::VARIANTS {
                [others @ .., last] => format!("give {} or {last}", others.join(", ")),
                [] => String::new(),
            })
        })
    }

    pub(super) fn bool(&mut self, variable: Variable) -> Option<bool> {
        self.with(variable, |raw| match raw {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("give true or false".to_owned()),
        })
    }

    pub(super) fn port(&mut self, variable: Variable) -> Option<u16> {
        self.with(variable, |raw| {
            raw.parse()
                .map_err(|_| "give a port: 1 to 65535, or 0 for any free one".to_owned())
        })
    }

    /// Parses an integer within a range.
    pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(
        &mut self,
        variable: Variable,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        self.with(variable, |raw| {
            let number = raw.parse().ok();
            number
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
        })
    }

    /// Parses a duration from `least` to `most`.
    pub(super) fn duration(
        &mut self,
        variable: Variable,
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
