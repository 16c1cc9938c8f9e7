//! The operator's policies: a directory of `*.cedar` files.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::Policies;
use crate::reload::{self, Current, Mistake, Source, read_directory};

const VARIABLE: &str = "EA_AUTH_POLICY_DIR";

/// Maximum number of reads of a directory that changes meanwhile.
const READS: usize = 5;

/// A directory of policies (`EA_AUTH_POLICY_DIR`): its files that end in `.cedar`, except hidden ones. Subdirectories
/// are ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(pub PathBuf);

impl Source for Directory {
    type Content = Vec<(PathBuf, Vec<u8>)>;
    type Made = Policies;

    const WHAT: &'static str = "policies";

    fn read(&self) -> Result<Self::Content, Vec<Mistake>> {
        // A mix of old and new files may permit what neither set permits. A read counts only if a second read returns
        // the same files.
        let mut read = read_directory(VARIABLE, &self.0, "cedar")?;
        for _ in 1..READS {
            let again = read_directory(VARIABLE, &self.0, "cedar")?;
            if again == read {
                return Ok(read);
            }
            read = again;
        }
        let what = format!("{} changes while it is read", self.0.display());
        Err(vec![Mistake::new(VARIABLE, what)])
    }

    fn make(&self, content: &Self::Content) -> Result<Policies, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut files = Vec::new();
        for (path, bytes) in content {
            let path = path.display().to_string();
            match std::str::from_utf8(bytes) {
                Ok(text) => files.push((path, text)),
                Err(error) => mistakes.push(format!("{path}: it is not UTF-8: {error}")),
            }
        }
        let made = Policies::new(files.iter().map(|(path, text)| (path.as_str(), *text)));
        let made = made.map_err(|mut more| mistakes.append(&mut more)).ok();
        // An empty set denies everything to all callers. More likely, files are missing.
        let directory = self.0.display();
        if content.is_empty() {
            mistakes.push(format!(
                "{directory} holds no *.cedar file: put policies there (election-agent authz default \
                 prints some), or leave this out"
            ));
        } else if mistakes.is_empty() && made.as_ref().is_some_and(Policies::is_empty) {
            mistakes.push(format!(
                "the *.cedar files in {directory} hold no policy, so that nobody could do anything: write \
                 one (election-agent authz default prints some)"
            ));
        }
        match made {
            Some(made) if mistakes.is_empty() => {
                for warning in made.warnings() {
                    tracing::warn!(
                        variable = VARIABLE,
                        "a policy is valid but suspicious: {warning}"
                    );
                }
                Ok(made)
            }
            _ => {
                let mistakes = mistakes.into_iter();
                Err(mistakes.map(|what| Mistake::new(VARIABLE, what)).collect())
            }
        }
    }
}

/// Returns the policies of a directory, followed until the last receiver is dropped; without a directory, the default
/// ones.
///
/// # Errors
/// All mistakes in the directory.
pub fn start(directory: Option<Directory>) -> Result<Current<Policies>, Vec<Mistake>> {
    match directory {
        Some(directory) => reload::start(directory),
        None => Ok(watch::channel(Arc::new(Policies::default())).1),
    }
}
