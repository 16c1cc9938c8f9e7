//! The side file `<database>.generation`: records what the database held last, so that the agent notices an older copy
//! of the database in its place.
//!
//! After each commit, and before a reply is built on it, the agent writes the commit's sequence number to this file. A
//! database with a smaller number than its side file is older than what was promised. The file is not synced with each
//! commit. What the kernel has survives the process; after a power failure the file may be behind, which is no
//! mismatch. It is synced within [`SYNC_WITHIN`], so that only the last moment before a power failure is without this
//! protection.
//!
//! An older pair of database and side file is consistent with itself. It is detected by the time of the side file's
//! last change of any kind, which the kernel sets and no copying tool can set: it is later than the time at which the
//! agent wrote the file's content.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Deserialize, Serialize};

use super::clock::{Deadline, Reading};

/// The file is synced after this time at the latest.
pub(super) const SYNC_WITHIN: Duration = Duration::from_secs(1);

/// One sector, so that a power failure leaves the old content or the new.
const LENGTH: usize = 512;
/// The checksum in hexadecimal, and the end of the line.
const TRAILER: usize = 9;
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const FORMAT: u64 = 1;

/// How much later than its content says the file may have been changed: time in which the agent may not have run
/// between reading the clock and writing.
const TOLERANCE: Duration = Duration::from_millis(20);
/// How often the agent repeats a write when it did not run between reading the clock and writing.
const TRIES: usize = 3;

/// What the side file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Generation {
    format: u64,
    /// The database's lineage.
    pub(super) lineage: String,
    /// The number of the database's last commit.
    pub(super) sequence: u64,
    /// The longest wait that leaders may need.
    pub(super) longest: Longest,
    /// When this was written, in µs since the Unix epoch.
    written_us: u64,
    /// Whether the file system's times agree with this host's clock.
    timed: bool,
}

impl Generation {
    pub(super) fn new(lineage: &str, sequence: u64, longest: &Longest) -> Self {
        Self {
            format: FORMAT,
            lineage: lineage.to_owned(),
            sequence,
            longest: longest.clone(),
            written_us: 0,
            timed: true,
        }
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        let room = LENGTH - TRAILER;
        if bytes.len() > room {
            return Err(io::Error::other("the generation does not fit its file"));
        }
        bytes.resize(room, b' ');
        let checksum = CHECKSUM.checksum(&bytes);
        writeln!(bytes, "{checksum:08x}")?;
        Ok(bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != LENGTH {
            return Err(format!("it has {} bytes instead of {LENGTH}", bytes.len()));
        }
        let (content, trailer) = bytes.split_at(LENGTH - TRAILER);
        if trailer != format!("{:08x}\n", CHECKSUM.checksum(content)).as_bytes() {
            return Err("its checksum is wrong".to_owned());
        }
        let generation: Self = serde_json::from_slice(content)
            .map_err(|error| format!("it does not parse: {error}"))?;
        match generation.format {
            FORMAT => Ok(generation),
            other => Err(format!(
                "its format is {other}, this version reads {FORMAT}"
            )),
        }
    }
}

/// The longest guard that agents on this database have used, or term if they had none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Longest {
    pub(super) wait_ms: u64,
    /// The guard or term of the agent that opened the database last.
    pub(super) last_ms: u64,
    /// Runs since terms for the longest wait are no longer granted: when it ends, they have ended.
    pub(super) lowered: Option<Deadline>,
}

impl Longest {
    /// How long a node that may have forgotten leaders has to wait.
    pub(super) fn wait(&self, now: &Reading) -> Duration {
        let counts = match &self.lowered {
            Some(lowered) if lowered.left(now).is_zero() => self.last_ms,
            _ => self.wait_ms.max(self.last_ms),
        };
        Duration::from_millis(counts)
    }
}

/// The state of the side file.
#[derive(Debug)]
pub(super) enum Found {
    Missing,
    /// The reason.
    Unusable(String),
    Generation {
        generation: Generation,
        /// Whether something other than the agent changed the file, or it is a copy.
        touched: bool,
    },
}

/// The path of the side file for this database path.
pub(super) fn path_for(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".generation");
    path.into()
}

/// Reads the side file.
///
/// # Errors
/// The file exists and cannot be read, so it could not be written either.
pub(super) fn read(path: &Path) -> Result<Found, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        // A file that is longer than it should be is unusable, and need not be read whole.
        let most = u64::try_from(LENGTH + 1).unwrap_or(u64::MAX);
        let metadata = file.metadata()?;
        file.take(most).read_to_end(&mut bytes)?;
        Ok(metadata)
    });
    let metadata = match read {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(unusable(path, "read", &error)),
    };
    Ok(match Generation::from_bytes(&bytes) {
        Ok(generation) => {
            let touched = generation.timed
                && changed_us(&metadata) > generation.written_us + micros(2 * TOLERANCE);
            Found::Generation {
                generation,
                touched,
            }
        }
        Err(why) => Found::Unusable(why),
    })
}

/// When the file or its metadata were last changed, in µs since the Unix epoch.
fn changed_us(metadata: &fs::Metadata) -> u64 {
    let micros = metadata.ctime() * 1_000_000 + metadata.ctime_nsec() / 1_000;
    u64::try_from(micros).unwrap_or_default()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn unusable(path: &Path, what: &str, error: &io::Error) -> String {
    let at = path.display();
    format!(
        "cannot {what} {at}, which the agent keeps beside the database: {error}: let the agent's user write in \
         this directory and to this file"
    )
}

/// The side file, open for writing.
#[derive(Debug)]
pub(super) struct Side {
    file: File,
    path: PathBuf,
    timed: bool,
}

impl Side {
    /// Opens the file, or creates it, and writes it and its name to disk.
    pub(super) fn create(path: &Path, generation: &Generation) -> Result<Self, String> {
        let create = || {
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            file.set_len(u64::try_from(LENGTH).unwrap_or_default())?;
            let mut side = Self {
                file,
                path: path.to_owned(),
                timed: true,
            };
            side.put(generation)?;
            side.file.sync_all()?;
            sync_directory(path)?;
            Ok(side)
        };
        create().map_err(|error| unusable(path, "write", &error))
    }

    /// Replaces the content.
    pub(super) fn write(&mut self, generation: &Generation) -> Result<(), String> {
        self.put(generation)
            .map_err(|error| unusable(&self.path, "write", &error))
    }

    fn put(&mut self, generation: &Generation) -> io::Result<()> {
        let mut generation = generation.clone();
        for _ in 0..TRIES {
            generation.timed = self.timed;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            generation.written_us = micros(now.unwrap_or_default());
            self.file.write_all_at(&generation.to_bytes()?, 0)?;
            if !self.timed {
                return Ok(());
            }
            let changed = changed_us(&self.file.metadata()?);
            if changed <= generation.written_us + micros(TOLERANCE) {
                return Ok(());
            }
        }
        // Another host sets the file's times, or this host's clock is being set.
        self.timed = false;
        self.put(&generation)
    }

    /// Syncs the content to disk.
    pub(super) fn sync(&self) -> Result<(), String> {
        let synced = self.file.sync_data();
        synced.map_err(|error| unusable(&self.path, "write", &error))
    }
}

/// Syncs the names in the directory of this file.
pub(super) fn sync_directory(of: &Path) -> io::Result<()> {
    let parent = of.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(super) mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::lease::embedded::clock::tests::reading;

    fn generation(sequence: u64) -> Generation {
        let since = Reading {
            boot: "0".repeat(64),
            since_boot_ms: i64::MIN,
            unix_ms: i64::MIN,
        };
        let longest = Longest {
            wait_ms: u64::MAX,
            last_ms: u64::MAX,
            lowered: Some(Deadline::new(since, Duration::from_millis(u64::MAX))),
        };
        Generation::new(&"f".repeat(16), sequence, &longest)
    }

    pub(in crate::lease::embedded) fn parse(bytes: &[u8]) -> Generation {
        Generation::from_bytes(bytes).expect("whole")
    }

    fn found(path: &Path) -> (Generation, bool) {
        match read(path).expect("readable") {
            Found::Generation {
                generation,
                touched,
            } => (generation, touched),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_largest_generation_fits_and_is_read_as_it_was_written() {
        let directory = TempDir::new().expect("a directory");
        let path = path_for(&directory.path().join("db"));
        assert!(matches!(read(&path), Ok(Found::Missing)));
        let mut side = Side::create(&path, &generation(1)).expect("made");
        side.write(&generation(u64::MAX)).expect("written");
        side.sync().expect("synced");
        let (read, touched) = found(&path);
        assert_eq!((read.sequence, touched), (u64::MAX, false));
        assert_eq!(read.longest, generation(1).longest);
        assert_eq!(fs::read(&path).expect("readable").len(), LENGTH);
    }

    #[test]
    fn a_copy_of_the_file_is_told_from_the_file() {
        let directory = TempDir::new().expect("a directory");
        let path = path_for(&directory.path().join("db"));
        drop(Side::create(&path, &generation(1)).expect("made"));
        assert!(!found(&path).1);
        let content = fs::read(&path).expect("readable");
        let times = fs::metadata(&path)
            .expect("there")
            .modified()
            .expect("known");
        std::thread::sleep(3 * TOLERANCE);
        fs::write(&path, &content).expect("written");
        assert!(found(&path).1, "its content is not new");
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_modified(times).expect("set");
        assert!(found(&path).1, "a time that was set does not hide it");
        drop(Side::create(&path, &generation(2)).expect("made"));
        assert!(!found(&path).1, "the agent has taken it over");
    }

    #[test]
    fn what_was_not_written_whole_is_unusable() {
        let directory = TempDir::new().expect("a directory");
        let path = path_for(&directory.path().join("db"));
        let whole = generation(7).to_bytes().expect("fits");
        let mut flipped = whole.clone();
        flipped[20] ^= 1;
        let mut newer = generation(7);
        newer.format = 2;
        let newer = newer.to_bytes().expect("fits");
        for (content, why) in [
            (&whole[..100], "100 bytes"),
            (&[], "0 bytes"),
            (&flipped, "checksum"),
            (&[&whole[..], b"x"].concat(), "513 bytes"),
            (&newer, "format is 2"),
        ] {
            fs::write(&path, content).expect("written");
            match read(&path).expect("readable") {
                Found::Unusable(error) => assert!(error.contains(why), "{why}: {error}"),
                other => panic!("{why}: {other:?}"),
            }
        }
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory");
        let error = read(&path).expect_err("no file");
        assert!(error.contains("beside the database"), "{error}");
    }

    #[test]
    fn longer_terms_of_the_past_count_until_the_last_of_them_is_over() {
        let mut longest = Longest {
            wait_ms: 60_000,
            last_ms: 5_000,
            lowered: None,
        };
        let since = reading("a", 100, 5_000);
        assert_eq!(longest.wait(&reading("a", 999, 9_999)).as_secs(), 60);
        longest.lowered = Some(Deadline::new(since, Duration::from_secs(60)));
        assert_eq!(longest.wait(&reading("a", 159, 5_059)).as_secs(), 60);
        assert_eq!(longest.wait(&reading("a", 161, 5_061)).as_secs(), 5);
    }
}
