//! The database file: what it holds, and how it is opened and written.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    StorageError, TableDefinition, TableError, TableHandle as _, WriteTransaction,
    backends::FileBackend,
};
use serde::{Deserialize, Serialize};

use super::{
    clock::{Deadline, Reading},
    file::OpenFile,
    generation::Longest,
    log::{Pending, Record},
};

/// `kind/name` to a [`Record`] as JSON.
const ELECTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("elections");
/// Names to numbers: the format's version. In format 1, also the incarnation record's wait in ms.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// One [`Node`] as JSON.
const NODE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
/// The number of an opening to a [`Reading`] as JSON: when an agent opened the database.
const OPENINGS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("openings");

const FORMAT_KEY: &str = "format";
const NODE_KEY: &str = "node";
/// Format 1 has neither `node` nor `openings`. An agent that reads only format 1 would not notice that the database is
/// in quarantine, so the number makes it refuse.
const FORMAT: u64 = 2;
/// The incarnation record of format 1.
const RECORD_OF_FORMAT_1: &str = "marker_wait_ms";

type Failure = Box<dyn std::error::Error>;

/// The single record of the node in the database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    /// Names this succession of commits: random, and a new one wherever a database may not continue from where its
    /// predecessor ended.
    pub(super) lineage: String,
    /// Counts commits.
    pub(super) sequence: u64,
    /// Whether the node may grant, at the end of its quarantine if it has one.
    pub(super) marked: bool,
    pub(super) quarantine: Option<Deadline>,
    pub(super) longest: Longest,
    /// Whether `election-agent restore` put the file in place, and no agent has opened it since.
    #[serde(default)]
    pub(super) restored: bool,
}

impl Node {
    pub(super) fn new() -> Self {
        Self {
            lineage: new_lineage(),
            sequence: 0,
            marked: false,
            quarantine: None,
            longest: Longest::default(),
            restored: false,
        }
    }
}

pub(super) fn new_lineage() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// The whole content of a database.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// `None`: the database is new or of format 1.
    pub(super) node: Option<Node>,
    /// Whether the database was just created.
    pub(super) is_new: bool,
    /// Whether a database of format 1 has an incarnation record.
    marked: bool,
    pub(super) elections: Vec<(Box<str>, Record)>,
    pub(super) openings: BTreeMap<u64, Reading>,
}

impl Content {
    /// Whether the node may ever have granted.
    pub(super) fn is_used(&self) -> bool {
        let marked = self.node.as_ref().map_or(self.marked, |node| node.marked);
        marked || !self.elections.is_empty()
    }

    /// The longest term of a stored lease.
    pub(super) fn longest_term(&self) -> Duration {
        let leases = self
            .elections
            .iter()
            .filter_map(|(_, record)| record.lease.as_ref());
        Duration::from_millis(leases.map(|lease| lease.term_ms).max().unwrap_or_default())
    }
}

/// How a database's file is read and written: by the system, except in tests.
pub(super) type Backend = Box<dyn StorageBackend>;

/// A database that is open for this process alone.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) file: DatabaseFile,
}

/// The file of a database, open and locked.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    file: OpenFile,
    path: PathBuf,
    /// The file's own path, where `path` leads to it by symbolic links.
    pub(super) real: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

/// Opens the database at `path` for this process alone, creating it if there is none.
///
/// # Errors
/// Says why it cannot be opened.
pub(super) fn open(
    path: &Path,
    backend: impl FnOnce(FileBackend) -> Backend,
) -> Result<Opened, String> {
    let at = path.display();
    let cannot = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what} {at}: {error}");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(|error| cannot("open", &error))?;
    let opened = file.metadata().map_err(|error| cannot("open", &error))?;
    let file = FileBackend::new(file).map_err(|error| cannot("open", &error))?;
    let file = OpenFile::new(backend(file));
    let database = Database::builder()
        .create_with_backend(file.clone())
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => {
                format!("{at} is in use by another process: give each agent its own file")
            }
            error => cannot("open", &error),
        })?;
    let file = DatabaseFile {
        file,
        path: path.to_owned(),
        real: fs::canonicalize(path).map_err(|error| cannot("open", &error))?,
        id: (opened.dev(), opened.ino()),
    };
    // The file may have been replaced between opening and locking: the replacing process held the lock.
    if !file.is_there().map_err(|error| cannot("open", &error))? {
        return Err(format!(
            "{at} was replaced while it was opened: start the agent again"
        ));
    }
    Ok(Opened { database, file })
}

impl DatabaseFile {
    /// Whether the path leads to this file.
    fn is_there(&self) -> io::Result<bool> {
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == self.id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reopens the database after redb has closed it because of an error. No other process could use it meanwhile, as
    /// the file was open and locked all the time. Its last commit has to be one of these commits of the node.
    pub(super) fn reopen(
        &self,
        node: &Node,
        commits: RangeInclusive<u64>,
    ) -> Result<Database, Unopened> {
        let other = |what: &str| Err(Unopened::Other(what.to_owned()));
        if !self.is_there()? {
            return other("it was replaced or removed meanwhile");
        }
        if self.file.len()? == 0 {
            return other("it was emptied meanwhile");
        }
        self.file.settle()?;
        let database = Database::builder().create_with_backend(self.file.clone())?;
        let found = load_node(&database).map_err(|error| Unopened::Failed(error.to_string()))?;
        match found {
            Some(found) if found.lineage != node.lineage => other("it is another database now"),
            Some(found) if commits.contains(&found.sequence) => Ok(database),
            _ => other("it does not hold what the agent wrote last"),
        }
    }
}

/// Why a database was not reopened.
#[derive(Debug)]
pub(super) enum Unopened {
    /// The system reported an error; a later try may succeed.
    Failed(String),
    /// The file does not have what the agent wrote.
    Other(String),
}

impl From<io::Error> for Unopened {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DatabaseError> for Unopened {
    fn from(error: DatabaseError) -> Self {
        let text = error.to_string();
        match error {
            DatabaseError::Storage(StorageError::Io(error))
                if !matches!(
                    error.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Failed(text)
            }
            _ => Self::Other(text),
        }
    }
}

/// Locks the file and opens the database in it; an empty file becomes one.
pub(super) fn lock(file: File) -> Result<Database, DatabaseError> {
    Database::builder().create_with_backend(FileBackend::new(file)?)
}

/// Reads the whole database.
pub(super) fn load(database: &Database) -> Result<Content, Failure> {
    let transaction = database.begin_read()?;
    let names: Vec<_> = transaction
        .list_tables()?
        .map(|table| table.name().to_owned())
        .collect();
    let has = |name: &str| names.iter().any(|table| table == name);
    if names.is_empty() {
        return Ok(Content {
            is_new: true,
            ..Content::default()
        });
    }
    if !has(META.name()) || !has(ELECTIONS.name()) {
        return Err("it is no database of leases".into());
    }
    let meta = transaction.open_table(META)?;
    let format = meta.get(FORMAT_KEY)?.map(|format| format.value());
    let mut content = Content {
        marked: meta.get(RECORD_OF_FORMAT_1)?.is_some(),
        ..Content::default()
    };
    match format {
        Some(1) => {}
        Some(FORMAT) => {
            let node = transaction.open_table(NODE)?.get(NODE_KEY)?;
            let node = node.ok_or("it lacks its node record")?;
            content.node = Some(serde_json::from_slice(node.value())?);
            for entry in transaction.open_table(OPENINGS)?.iter()? {
                let (opening, reading) = entry?;
                let reading = serde_json::from_slice(reading.value())?;
                content.openings.insert(opening.value(), reading);
            }
        }
        Some(other) => {
            return Err(format!(
                "its format is {other}, this version reads formats up to {FORMAT}: use the version that \
                 wrote it, or a later one"
            )
            .into());
        }
        None => return Err("it is no database of leases: it has no format".into()),
    }
    for entry in transaction.open_table(ELECTIONS)?.iter()? {
        let (election, record) = entry?;
        let record = serde_json::from_slice(record.value())?;
        content.elections.push((election.value().into(), record));
    }
    Ok(content)
}

/// Reads the node; `None`: the database has none.
fn load_node(database: &Database) -> Result<Option<Node>, Failure> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(NODE) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let node = table.get(NODE_KEY)?;
    Ok(node
        .map(|node| serde_json::from_slice(node.value()))
        .transpose()?)
}

/// Writes the node, and exactly these openings.
pub(super) fn write_node(
    database: &Database,
    node: &Node,
    openings: &BTreeMap<u64, Reading>,
) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT_KEY, FORMAT)?;
        meta.remove(RECORD_OF_FORMAT_1)?;
        transaction.open_table(ELECTIONS)?;
        let mut table = transaction.open_table(OPENINGS)?;
        table.retain(|opening, _| openings.contains_key(&opening))?;
        for (opening, reading) in openings {
            table.insert(opening, serde_json::to_vec(reading)?.as_slice())?;
        }
        put_node(&transaction, node)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Writes the changes and the node in one commit, synced to disk.
pub(super) fn commit(database: &Database, node: &Node, changes: &Pending) -> Result<(), Failure> {
    let transaction = database.begin_write()?;
    {
        let mut elections = transaction.open_table(ELECTIONS)?;
        for (election, record) in changes {
            match record {
                Some(record) => {
                    elections.insert(&**election, serde_json::to_vec(record)?.as_slice())?;
                }
                None => {
                    elections.remove(&**election)?;
                }
            }
        }
        put_node(&transaction, node)?;
    }
    transaction.commit()?;
    Ok(())
}

fn put_node(transaction: &WriteTransaction, node: &Node) -> Result<(), Failure> {
    let mut table = transaction.open_table(NODE)?;
    table.insert(NODE_KEY, serde_json::to_vec(node)?.as_slice())?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes a database as versions of format 1 did.
    pub(in crate::lease::embedded) fn format_1(
        path: &Path,
        wait_ms: Option<u64>,
        elections: &[(&str, &str)],
    ) {
        let database = Database::create(path).expect("made");
        let transaction = database.begin_write().expect("begun");
        {
            let mut meta = transaction.open_table(META).expect("a table");
            meta.insert(FORMAT_KEY, 1).expect("inserted");
            if let Some(wait) = wait_ms {
                meta.insert(RECORD_OF_FORMAT_1, wait).expect("inserted");
            }
            let mut table = transaction.open_table(ELECTIONS).expect("a table");
            for (election, record) in elections {
                table.insert(election, record.as_bytes()).expect("inserted");
            }
        }
        transaction.commit().expect("committed");
    }

    #[test]
    fn databases_of_others_and_of_later_versions_are_refused_and_left_alone() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let path = directory.path().join("db");
        {
            let database = Database::create(&path).expect("made");
            let transaction = database.begin_write().expect("begun");
            let table = TableDefinition::<'_, u64, u64>::new("theirs");
            drop(transaction.open_table(table).expect("a table"));
            transaction.commit().expect("committed");
        }
        let Opened { database, .. } = open(&path, |file| Box::new(file)).expect("opened");
        let text = load(&database).expect_err("not ours").to_string();
        assert!(text.contains("no database of leases"), "{text}");
        drop(database);

        let path = directory.path().join("later");
        format_1(&path, None, &[]);
        let Opened { database, .. } = open(&path, |file| Box::new(file)).expect("opened");
        let transaction = database.begin_write().expect("begun");
        let later = FORMAT + 1;
        transaction
            .open_table(META)
            .and_then(|mut meta| Ok(meta.insert(FORMAT_KEY, later).map(|_| ())?))
            .expect("inserted");
        transaction.commit().expect("committed");
        let text = load(&database).expect_err("later").to_string();
        assert!(text.contains("formats up to"), "{text}");
    }
}
