//! Parses policies and reports all mistakes at once, each in one line that begins with the file and the line.

use std::collections::{BTreeMap, btree_map::Entry};

use cedar_policy::{
    ParseErrors, Policy, PolicyId, PolicySet, Template, ValidationMode, ValidationResult, Validator,
};
use miette::Diagnostic;

use super::PARSED_SCHEMA;

/// The origin of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: String,
    /// The first line of the policy, counted from 1.
    pub line: usize,
    /// The policy's text in the file.
    pub text: String,
}

pub(super) struct Loaded {
    pub(super) set: PolicySet,
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) warnings: Vec<String>,
}

/// Parses and validates the policies of some files, given as paths and contents.
///
/// A policy's id is its `@id`, or else the file's name with the policy's number: `team.cedar#1`.
///
/// # Errors
/// All mistakes.
pub(super) fn load<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Loaded, Vec<String>> {
    let mut loading = Loading::default();
    for (path, text) in files {
        loading.file(File { path, text });
    }
    let validated =
        Validator::new(PARSED_SCHEMA.clone()).validate(&loading.set, ValidationMode::Strict);
    loading.validated(&validated);
    match loading.mistakes.is_empty() {
        true => Ok(Loaded {
            set: loading.set,
            origins: loading.origins,
            warnings: loading.warnings,
        }),
        false => Err(loading.mistakes),
    }
}

#[derive(Clone, Copy)]
struct File<'a> {
    path: &'a str,
    text: &'a str,
}

impl File<'_> {
    /// Returns the line and column of a byte, counted from 1.
    fn position(self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }

    /// Formats a mistake with its position.
    fn describe(self, wrong: &dyn Diagnostic) -> String {
        let label = wrong.labels().and_then(|mut labels| labels.next());
        let mut text = self.path.to_owned();
        if let Some(label) = &label {
            let (line, column) = self.position(label.offset());
            text += &format!(":{line}:{column}");
        }
        text += &format!(": {wrong}");
        if let Some(label) = label.as_ref().and_then(|label| label.label()) {
            text += &format!(": {label}");
        }
        if let Some(help) = wrong.help() {
            text += &format!(" ({help})");
        }
        // Cedar's messages may contain several lines.
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Returns the text without leading comments and white space.
fn without_comments(text: &str) -> &str {
    let mut left = text.trim_start();
    while left.starts_with("//") {
        left = left
            .split_once('\n')
            .map_or("", |(_, rest)| rest)
            .trim_start();
    }
    left
}

#[derive(Default)]
struct Loading<'a> {
    set: PolicySet,
    origins: BTreeMap<String, Origin>,
    files: BTreeMap<String, File<'a>>,
    warnings: Vec<String>,
    mistakes: Vec<String>,
}

impl<'a> Loading<'a> {
    fn file(&mut self, file: File<'a>) {
        let parsed: PolicySet = match file.text.parse() {
            Ok(parsed) => parsed,
            Err(errors) => {
                let errors: ParseErrors = errors;
                self.mistakes
                    .extend(errors.iter().map(|error| file.describe(error)));
                return;
            }
        };
        // Cedar numbers the policies of a text from 0 and does not report their positions.
        let mut end = 0;
        for number in 0..parsed.num_of_policies() + parsed.num_of_templates() {
            let id = PolicyId::new(format!("policy{number}"));
            let policy = parsed.policy(&id);
            let template = parsed.template(&id);
            let text = policy.and_then(Policy::to_cedar);
            let Some(text) = text.or_else(|| template.map(Template::to_cedar)) else {
                continue;
            };
            let rest = file.text.get(end..).unwrap_or_default();
            let start = end + rest.len() - without_comments(rest).len();
            end = start + text.len();
            let (line, _) = file.position(start);
            match policy {
                Some(policy) => {
                    let name = file.path.rsplit('/').next().unwrap_or(file.path);
                    let id = policy.annotation("id").filter(|id| !id.is_empty());
                    let id = id.map_or_else(|| format!("{name}#{}", number + 1), str::to_owned);
                    let path = file.path.to_owned();
                    self.add(file, id, policy, Origin { path, line, text });
                }
                None => self.mistakes.push(format!(
                    "{}:{line}: it is a template, which nothing fills in: name who or what it is for \
                     instead of ?principal or ?resource",
                    file.path
                )),
            }
        }
    }

    fn add(&mut self, file: File<'a>, id: String, policy: &Policy, origin: Origin) {
        let Origin { path, line, .. } = &origin;
        match self.origins.entry(id.clone()) {
            Entry::Occupied(former) => {
                let Origin {
                    path: other,
                    line: there,
                    ..
                } = former.get();
                self.mistakes.push(format!(
                    "{path}:{line}: its id is {id:?}, as is that of the policy at {other}:{there}: give \
                     each an @id of its own"
                ));
            }
            Entry::Vacant(vacant) => {
                if let Err(error) = self.set.add(policy.new_id(PolicyId::new(&id))) {
                    self.mistakes.push(format!("{path}:{line}: {error}"));
                }
                vacant.insert(origin);
                self.files.insert(id, file);
            }
        }
    }

    fn validated(&mut self, result: &ValidationResult) {
        let describe = |id: &PolicyId, wrong: &dyn Diagnostic| {
            let id: &str = id.as_ref();
            match self.files.get(id) {
                Some(file) => file.describe(wrong),
                None => wrong.to_string(),
            }
        };
        let errors = result.validation_errors();
        let mut mistakes: Vec<_> = errors
            .map(|error| describe(error.policy_id(), error))
            .collect();
        let warnings = result.validation_warnings();
        let mut warnings: Vec<_> = warnings
            .map(|warning| describe(warning.policy_id(), warning))
            .collect();
        // Cedar reports warnings in any order, and may repeat one for several types of requests.
        for texts in [&mut mistakes, &mut warnings] {
            texts.sort_unstable();
            texts.dedup();
        }
        self.mistakes.append(&mut mistakes);
        self.warnings = warnings;
    }
}
