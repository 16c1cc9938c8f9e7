//! Files that may change while the agent runs: certificates, tokens, keys, policies.
//!
//! The agent uses the last valid content. New content replaces it when it is valid and two consecutive reads
//! found it unchanged, so that a partly written file is not used. Invalid files (a key that does not match
//! yet) change nothing and are logged.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::spawn_blocking};

/// The interval between reads. A mounted secret changes when its directory is renamed, which a watch on a
/// file does not detect.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An error in the file or directory that a setting names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The setting.
    pub variable: &'static str,
    /// What is wrong, and what to change. Contains no content of secret files.
    pub what: String,
}

impl Mistake {
    pub(crate) fn new(variable: &'static str, what: impl Into<String>) -> Self {
        Self {
            variable,
            what: what.into(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.what)
    }
}

/// A set of files, and the value that is built from them.
pub trait Source: Send + 'static {
    /// The content of the files, compared to detect changes.
    type Content: Eq + Send + Sync + 'static;
    /// The value that is built from the content.
    type Made: Send + Sync + 'static;

    /// A name of the files for the log: "TLS files".
    const WHAT: &'static str;

    /// Reads the files.
    ///
    /// # Errors
    /// Returns a mistake for every file that cannot be read.
    fn read(&self) -> Result<Self::Content, Vec<Mistake>>;

    /// Builds the value from the content.
    ///
    /// # Errors
    /// Returns every mistake in the content.
    fn make(&self, content: &Self::Content) -> Result<Self::Made, Vec<Mistake>>;

    /// Returns the mistakes that the files contain now.
    fn mistakes(&self) -> Vec<Mistake> {
        let made = self.read().and_then(|content| self.make(&content));
        made.err().unwrap_or_default()
    }
}

/// The last value that was built from a source. Cheap to clone.
pub type Current<T> = watch::Receiver<Arc<T>>;

/// Reads the files, and checks them for changes until the last receiver is dropped.
///
/// # Errors
/// Returns the mistakes if the files are not valid at the start.
pub fn start<S: Source>(source: S) -> Result<Current<S::Made>, Vec<Mistake>> {
    let content = source.read()?;
    let (publish, current) = watch::channel(Arc::new(source.make(&content)?));
    tokio::spawn(follow(source, content, publish));
    Ok(current)
}

async fn follow<S: Source>(
    mut source: S,
    mut seen: S::Content,
    publish: watch::Sender<Arc<S::Made>>,
) {
    let mut logged: Option<Vec<Mistake>> = None;
    let mut new: Option<S::Content> = None;
    loop {
        tokio::select! {
            () = publish.closed() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // Runs on a blocking thread: a disk may be slow, and policies take long to validate.
        let looking = spawn_blocking(move || {
            let made = match source.read() {
                Ok(content) if content == seen => {
                    new = None;
                    Ok(None)
                }
                Ok(content) if new.as_ref() == Some(&content) => {
                    (seen, new) = (content, None);
                    source.make(&seen).map(Some)
                }
                Ok(content) => {
                    new = Some(content);
                    Ok(None)
                }
                Err(mistakes) => Err(mistakes),
            };
            (source, seen, new, made)
        });
        let made;
        (source, seen, new, made) = match looking.await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(%error, "{} are no longer followed; this is a bug", S::WHAT);
                return;
            }
        };
        match made {
            Ok(None) => logged = None,
            Ok(Some(made)) => {
                tracing::info!(
                    "{} have changed; the new ones are used from now on",
                    S::WHAT
                );
                logged = None;
                publish.send_replace(Arc::new(made));
            }
            Err(mistakes) if logged.as_ref() == Some(&mistakes) => {}
            Err(mistakes) => {
                for Mistake { variable, what } in &mistakes {
                    tracing::error!(
                        variable,
                        "{} have changed and cannot be used; the former ones still are: {what}",
                        S::WHAT
                    );
                }
                logged = Some(mistakes);
            }
        }
    }
}

/// Reads a file that a setting names.
///
/// # Errors
/// Returns a mistake if the file cannot be read.
pub(crate) fn read_file(variable: &'static str, path: &Path) -> Result<Vec<u8>, Mistake> {
    let wrong = |error| Mistake::new(variable, format!("cannot read {}: {error}", path.display()));
    fs::read(path).map_err(wrong)
}

/// Reads all files with this suffix in a directory that a setting names, sorted by name. Skips hidden files:
/// editors keep drafts in them, and Kubernetes the generations of a mounted volume.
///
/// # Errors
/// Returns a mistake if the directory or a file cannot be read.
pub(crate) fn read_directory(
    variable: &'static str,
    directory: &Path,
    extension: &str,
) -> Result<Vec<(PathBuf, Vec<u8>)>, Vec<Mistake>> {
    let wrong = |error| {
        let what = format!("cannot read {}: {error}", directory.display());
        vec![Mistake::new(variable, what)]
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let (name, path) = (entry.file_name(), entry.path());
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    let (mut files, mut mistakes) = (Vec::new(), Vec::new());
    for path in paths {
        match read_file(variable, &path) {
            Ok(content) => files.push((path, content)),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    match mistakes.is_empty() {
        true => Ok(files),
        false => Err(mistakes),
    }
}
