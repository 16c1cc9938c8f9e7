//! Puts a copy of the lease database in its place (`election-agent restore`).
//!
//! Every step leaves either the previous database or the copy whole under the database's name:
//!
//! 1. The present database is locked, so that no agent uses it, or begins to.
//! 2. The copy is copied once more, to a file beside the database, checked there, and marked as restored: the agent
//!    that opens it first is in quarantine, whatever its side file shows.
//! 3. The present database gets a second name.
//! 4. The new file takes the first name, which is one step of the file system.
//!
//! The side file stays as it is.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::{Database, DatabaseError, ReadOnlyDatabase};

use super::{
    Names,
    clock::{Clock, Reading},
    generation::{self, Found, Longest, sync_directory},
    store::{self, Content, Node},
};
use crate::types::millis;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The copy.
    pub from: PathBuf,
    /// The database, which has the copy's content now.
    pub database: PathBuf,
    /// The new path of the previous database, if there was one.
    pub replaced: Option<PathBuf>,
    /// The number of elections with leaders in the copy.
    pub leases: usize,
    /// How long the agent is in quarantine after its next start; `None`: its restart guard is off.
    pub wait: Option<Duration>,
    /// The names of the settings.
    pub names: Names,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (database, from) = (self.database.display(), self.from.display());
        let leases = self.leases;
        writeln!(
            f,
            "{database} has the content of {from} now: {leases} leases"
        )?;
        if let Some(replaced) = &self.replaced {
            writeln!(f, "the previous database is {} now", replaced.display())?;
        }
        match self.wait {
            Some(wait) => writeln!(
                f,
                "the agent will be in quarantine for {} after its next start, as leaders that the copy \
                 does not know of may have time left; leaders that it knows can extend meanwhile",
                humantime::format_duration(Duration::from_millis(millis(wait)))
            ),
            None => writeln!(
                f,
                "{}=off: the agent will grant at once, and two leaders may have time left; before you \
                 start it, wait until all terms have ended, at most {}",
                self.names.restart_guard, self.names.max_term
            ),
        }
    }
}

/// Puts the content of the file `from`, a copy of a lease database, in the place of `database`, for an agent whose
/// nodes are in quarantine for `guard` after they may have lost memory. Keeps the replaced database beside it, as
/// `<database>.replaced-<Unix time>`, with its owner and permissions.
///
/// # Errors
/// Says what is wrong and what to change. The database is unchanged.
pub fn restore(
    from: &Path,
    database: &Path,
    guard: Option<Duration>,
    names: Names,
) -> Result<Restored, String> {
    let place = Place::new(database, names)?;
    let copied = fs::metadata(from).map_err(|error| wrong(from, &error))?;
    if !copied.is_file() {
        return Err(wrong(
            from,
            &"it is no file: give a copy of the database file",
        ));
    }
    if place
        .file
        .as_ref()
        .is_some_and(|file| is_same(file, &copied))
    {
        return Err(wrong(from, &"it is the database itself: give a copy of it"));
    }
    let present = place.lock()?;
    let side_path = generation::path_for(&place.path);
    let found = generation::read(&side_path).map_err(|error| names.wrong(error))?;

    let new = New::copy(from, with_suffix(&place.path, ".restoring"))?;
    let content = new.check().map_err(|error| wrong(from, &error))?;
    let now = Clock::system().now();
    let present_content = present
        .as_ref()
        .and_then(|present| store::load(present).ok());
    let longest = longest(&content, present_content.as_ref(), &found, &now);
    let wait = guard.map(|guard| guard.max(longest));
    new.mark(content.node.as_ref(), longest, &content)?;
    place.give_to(&new.path)?;
    let replaced = place.keep()?;
    place.replace_by(new)?;
    // Held until here, so that no agent has started with the replaced database.
    drop(present);
    let elections = content.elections.iter();
    Ok(Restored {
        from: from.to_owned(),
        database: place.path,
        replaced,
        leases: elections
            .filter(|(_, record)| record.lease.is_some())
            .count(),
        wait,
        names,
    })
}

fn wrong(from: &Path, what: &dyn fmt::Display) -> String {
    format!("--from: {}: {what}", from.display())
}

fn failed(what: &str, path: &Path, error: &dyn fmt::Display) -> String {
    format!(
        "cannot {what} {}: {error}: nothing was restored; run this as the agent's user, or as root, and check \
         that the directory has room",
        path.display()
    )
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// The longest wait for leaders that the copy, the present database or its side file know of.
fn longest(content: &Content, present: Option<&Content>, found: &Found, now: &Reading) -> Duration {
    let of = |content: &Content| {
        let node = content.node.as_ref();
        let stored = node.map_or(Duration::ZERO, |node| node.longest.wait(now));
        stored.max(content.longest_term())
    };
    let aside = match found {
        Found::Generation { generation, .. } => generation.longest.wait(now),
        Found::Missing | Found::Unusable(_) => Duration::ZERO,
    };
    of(content)
        .max(present.map_or(Duration::ZERO, of))
        .max(aside)
}

/// The path of the database, present or future.
struct Place {
    path: PathBuf,
    /// The metadata of the present database.
    file: Option<Metadata>,
    names: Names,
}

impl Place {
    fn new(database: &Path, names: Names) -> Result<Self, String> {
        let wrong = |what: &dyn fmt::Display| {
            Err(names.wrong(format_args!("{}: {what}", database.display())))
        };
        match fs::canonicalize(database) {
            Ok(path) => match fs::metadata(&path) {
                Ok(file) if file.is_file() => Ok(Self {
                    path,
                    file: Some(file),
                    names,
                }),
                Ok(_) => wrong(&"it is no file: name the database file"),
                Err(error) => wrong(&error),
            },
            Err(error) if error.kind() != io::ErrorKind::NotFound => wrong(&error),
            Err(_) if fs::symlink_metadata(database).is_ok() => wrong(
                &"it is a symbolic link that leads nowhere: remove it, or name the file itself",
            ),
            Err(_) => {
                let parent = database
                    .parent()
                    .filter(|parent| !parent.as_os_str().is_empty());
                let directory = fs::canonicalize(parent.unwrap_or(Path::new(".")));
                match (directory, database.file_name()) {
                    (Ok(directory), Some(name)) => Ok(Self {
                        path: directory.join(name),
                        file: None,
                        names,
                    }),
                    (Err(error), _) => wrong(&format!("its directory cannot be used: {error}")),
                    (_, None) => wrong(&"it is no file: name the database file"),
                }
            }
        }
    }

    /// Locks the present database. One that is damaged cannot be locked, and no agent can begin with it.
    fn lock(&self) -> Result<Option<Database>, String> {
        if self.file.is_none() {
            return Ok(None);
        }
        let file = File::options().read(true).write(true).open(&self.path);
        let file = file.map_err(|error| failed("open", &self.path, &error))?;
        match store::lock(file) {
            Ok(database) => Ok(Some(database)),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(self.names.wrong(format_args!(
                "{} is in use by another process: stop the agent first",
                self.path.display()
            ))),
            Err(_) => Ok(None),
        }
    }

    /// Gives the new file the owner and the permissions of the present one, or the owner of the directory.
    fn give_to(&self, new: &Path) -> Result<(), String> {
        let give = || {
            let owner = match &self.file {
                Some(file) => {
                    fs::set_permissions(new, file.permissions())?;
                    file.clone()
                }
                None => fs::metadata(self.path.parent().unwrap_or(Path::new(".")))?,
            };
            let has = fs::metadata(new)?;
            if (has.uid(), has.gid()) != (owner.uid(), owner.gid()) {
                chown(new, Some(owner.uid()), Some(owner.gid()))?;
            }
            File::open(new)?.sync_all()
        };
        give().map_err(|error: io::Error| failed("change the owner of", new, &error))
    }

    /// Gives the present database a second name, or copies it where a file can have one only.
    fn keep(&self) -> Result<Option<PathBuf>, String> {
        if self.file.is_none() {
            return Ok(None);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        for number in now.. {
            let kept = with_suffix(&self.path, &format!(".replaced-{number}"));
            if kept.exists() {
                continue;
            }
            let linked = match fs::hard_link(&self.path, &kept) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(_) => fs::copy(&self.path, &kept).and_then(|_| File::open(&kept)?.sync_all()),
                Ok(()) => Ok(()),
            };
            return match linked.and_then(|()| sync_directory(&kept)) {
                Ok(()) => Ok(Some(kept)),
                Err(error) => Err(failed("keep the present database as", &kept, &error)),
            };
        }
        Ok(None)
    }

    fn replace_by(&self, mut new: New) -> Result<(), String> {
        fs::rename(&new.path, &self.path).map_err(|error| failed("replace", &self.path, &error))?;
        new.is_in_place = true;
        sync_directory(&self.path).map_err(|error| {
            format!(
                "{} is restored, but whether that outlasts a power failure is not known: {error}",
                self.path.display()
            )
        })
    }
}

/// The file that is to become the database; removed when it does not.
struct New {
    path: PathBuf,
    is_in_place: bool,
}

impl New {
    fn copy(from: &Path, path: PathBuf) -> Result<Self, String> {
        // A copy of a database during a write would be incomplete. A database that was not closed cannot be opened for
        // reading only, but nothing writes it.
        let unused = ReadOnlyDatabase::open(from);
        if matches!(unused, Err(DatabaseError::DatabaseAlreadyOpen)) {
            return Err(wrong(from, &"an agent has it open: give a copy of it"));
        }
        let mut source = File::open(from).map_err(|error| wrong(from, &error))?;
        // Left behind by an earlier try.
        let _ = fs::remove_file(&path);
        let target = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| failed("write", &path, &error))?;
        let new = Self {
            path,
            is_in_place: false,
        };
        let mut target = target;
        io::copy(&mut source, &mut target).map_err(|error| failed("write", &new.path, &error))?;
        Ok(new)
    }

    fn open(&self) -> Result<Database, DatabaseError> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        store::lock(file)
    }

    /// Reads the whole database, as the agent will.
    fn check(&self) -> Result<Content, Box<dyn std::error::Error>> {
        if fs::metadata(&self.path)?.len() == 0 {
            return Err("it is empty: give a copy of the database file".into());
        }
        let content = store::load(&self.open()?)?;
        if content.is_new {
            return Err("it is no database of leases".into());
        }
        for (_, record) in &content.elections {
            record.check()?;
        }
        Ok(content)
    }

    /// Records that the content was restored, and the longest wait that leaders may need.
    fn mark(
        &self,
        node: Option<&Node>,
        longest: Duration,
        content: &Content,
    ) -> Result<(), String> {
        let wait_ms = millis(longest);
        let node = Node {
            restored: true,
            marked: true,
            longest: Longest {
                wait_ms,
                last_ms: wait_ms,
                lowered: None,
            },
            ..node.cloned().unwrap_or_else(Node::new)
        };
        let database = self
            .open()
            .map_err(|error| failed("write", &self.path, &error))?;
        store::write_node(&database, &node, &content.openings)
            .map_err(|error| failed("write", &self.path, &error))
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.is_in_place {
            // If it cannot be removed, the next try replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
