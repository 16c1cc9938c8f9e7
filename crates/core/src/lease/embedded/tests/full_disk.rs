//! The durable node whose file cannot be written for a while.

use std::{
    fs::File,
    io,
    ops::Bound,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use redb::{BackendError, StorageBackend};
use tokio::sync::watch;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Write,
    Sync,
    /// Writes fail, and so does every try to reopen the database, before any of it is read.
    Open,
}

/// The storage below the file: fails on command, and tracks what would outlast a power failure.
#[derive(Debug, Clone)]
struct Disk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<Content>,
    /// Counts what failed.
    failures: watch::Sender<u32>,
}

#[derive(Debug, Default)]
struct Content {
    fault: Option<Fault>,
    /// Written and not synced.
    unsynced: Vec<(u64, Vec<u8>)>,
    synced: Vec<u8>,
}

#[derive(Debug)]
struct OnDisk {
    file: FileBackend,
    disk: Disk,
}

impl Disk {
    fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            failures: watch::Sender::new(0),
        }))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.state.lock().expect("whole")
    }

    fn set(&self, fault: Option<Fault>) {
        self.content().fault = fault;
    }

    fn fails(&self, at: &[Fault]) -> io::Result<()> {
        if !self
            .content()
            .fault
            .is_some_and(|fault| at.contains(&fault))
        {
            return Ok(());
        }
        self.0.failures.send_modify(|failures| *failures += 1);
        Err(io::ErrorKind::StorageFull.into())
    }

    async fn failed(&self, times: u32) {
        let mut failures = self.0.failures.subscribe();
        let failed = failures.wait_for(|failures| *failures >= times).await;
        failed.expect("the disk is there");
    }
}

impl StorageBackend for OnDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        let len = usize::try_from(len).expect("in range");
        self.disk.content().synced.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Err(error) = self.disk.fails(&[Fault::Sync]) {
            // As on Linux: data that could not be written counts as written.
            self.disk.content().unsynced.clear();
            return Err(error);
        }
        let mut content = self.disk.content();
        for (offset, data) in std::mem::take(&mut content.unsynced) {
            let offset = usize::try_from(offset).expect("in range");
            content.synced[offset..offset + data.len()].copy_from_slice(&data);
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.fails(&[Fault::Write, Fault::Open])?;
        self.file.write(offset, data)?;
        self.disk.content().unsynced.push((offset, data.to_vec()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.disk.fails(&[Fault::Open])?;
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

async fn ready_on(host: &Host, disk: &Disk) -> Embedded {
    let on_disk = disk.clone();
    let node = host.open_on(Some(MINUTE), move |file| {
        Box::new(OnDisk {
            file,
            disk: on_disk,
        })
    });
    make_ready(&node).await;
    node
}

fn grant_of(election: &str, candidate: &str, token: u64) -> Grant {
    Grant {
        election: ElectionId::new("", election).expect("valid"),
        ..grant(candidate, token, 60)
    }
}

/// The names of other elections, before and after `f`.
fn neighbour(n: usize) -> String {
    format!("{}{n}", if n.is_multiple_of(2) { "d" } else { "h" })
}

/// Three of this size fill a page of the database.
fn large(election: &str, candidate: &str, token: u64) -> Grant {
    Grant {
        value: Value::new(&"v".repeat(1_000)).expect("valid"),
        ..grant_of(election, candidate, token)
    }
}

async fn leader(node: &Embedded, election: &str) -> Result<Option<String>, NodeError> {
    let election = ElectionId::new("", election).expect("valid");
    Ok(match node.read(&election).await? {
        Reading::Held(lease) => Some(lease.leader.as_str().to_owned()),
        _ => None,
    })
}

/// A node with a leader of `e` and of this many other elections, and of `f` one that could not be written.
async fn failing(host: &Host, disk: &Disk, fault: Fault, neighbours: usize) -> Embedded {
    let node = ready_on(host, disk).await;
    granted(&node, "a", 1, 60).await;
    extended(&node, "a", 60).await;
    for n in 0..neighbours {
        let neighbour = large(&neighbour(n), "n", 1);
        let granted = node.grant(&neighbour).await;
        assert!(matches!(granted, Ok(GrantReply::Granted(_))), "{granted:?}");
    }
    disk.set(Some(fault));
    let unwritten = node.grant(&large("f", "a", 2)).await;
    assert!(
        matches!(&unwritten, Err(NodeError::Unknown(why)) if why.contains("free space")),
        "{unwritten:?}"
    );
    node
}

#[tokio::test]
async fn what_could_not_be_written_is_on_disk_when_writing_works_again() {
    // With some of these numbers, the commit that fails divides a page, and the next commit rewrites only one part.
    for (fault, neighbours) in [
        (Fault::Write, 0),
        (Fault::Sync, 0),
        (Fault::Sync, 9),
        (Fault::Sync, 10),
        (Fault::Sync, 11),
    ] {
        let (host, disk) = (Host::new(), Disk::new());
        let node = failing(&host, &disk, fault, neighbours).await;

        extended(&node, "a", 60).await;
        assert_eq!(leader(&node, "e").await, Ok(Some("a".to_owned())));
        assert!(matches!(
            leader(&node, "f").await,
            Err(NodeError::Unknown(_))
        ));
        let refused = node.grant(&grant_of("g", "b", 3)).await;
        assert!(matches!(refused, Err(NodeError::NotSent(_))), "{refused:?}");
        let lost = node.grant(&grant_of("e", "b", 4)).await;
        assert!(matches!(lost, Ok(GrantReply::Held(_))), "{lost:?}");
        assert!(node.probe(PROBE).await.is_err(), "not ready");
        disk.failed(3).await;

        disk.set(None);
        assert!(node.log.as_ref().expect("durable").writable_again().await);
        node.probe(PROBE).await.expect("ready");
        assert_eq!(leader(&node, "g").await, Ok(None), "it was refused");
        let granted = node.grant(&grant_of("g", "b", 5)).await;
        assert!(matches!(granted, Ok(GrantReply::Granted(_))), "{granted:?}");

        // A power failure: only what was synced is left.
        let left = Host::new();
        std::fs::write(left.path(), &disk.content().synced).expect("written");
        let node = left.open(Some(MINUTE));
        let neighbours = (0..neighbours).map(|n| (neighbour(n), "n"));
        let others = [("e", "a"), ("f", "a"), ("g", "b")].map(|(e, led_by)| (e.to_owned(), led_by));
        for (election, led_by) in neighbours.chain(others) {
            let known = leader(&node, &election).await;
            assert_eq!(known, Ok(Some(led_by.to_owned())), "{fault:?}: {election}");
        }
    }
}

#[tokio::test]
async fn a_node_that_failed_to_write_for_a_while_restarts_without_doubt() {
    let (host, disk) = (Host::new(), Disk::new());
    let node = failing(&host, &disk, Fault::Write, 0).await;
    disk.set(None);
    assert!(node.log.as_ref().expect("durable").writable_again().await);
    drop(node);
    let node = host.open(Some(MINUTE));
    assert_eq!(guard(&node).await, 0);
    assert_eq!(leader(&node, "f").await, Ok(Some("a".to_owned())));
}

#[tokio::test]
async fn no_other_process_takes_a_file_that_cannot_be_written() {
    let (host, disk) = (Host::new(), Disk::new());
    let node = failing(&host, &disk, Fault::Write, 0).await;
    for failures in 2..5 {
        disk.failed(failures).await;
        let taken = Embedded::open(&host.path(), node.settings, NAMES).map(|_| "taken");
        assert!(
            matches!(&taken, Err(NodeError::Unknown(why)) if why.contains("in use")),
            "{taken:?}"
        );
    }
}

/// A change to the file by a person who has an older copy of it.
type Alteration = fn(&Path, &[u8], &Disk);

#[tokio::test]
async fn a_file_that_is_not_what_was_written_is_left_alone_for_good() {
    let cases: [(Alteration, &str); 3] = [
        (
            |path, older, disk| {
                let file = File::options().write(true).open(path).expect("opened");
                file.write_all_at(older, 0).expect("written");
                disk.set(None);
            },
            "what the agent wrote last",
        ),
        (
            |path, _, _| drop(File::create(path).expect("emptied")),
            "emptied",
        ),
        (
            |path, older, _| {
                std::fs::remove_file(path).expect("removed");
                std::fs::write(path, older).expect("written");
            },
            "replaced",
        ),
    ];
    for (change, what) in cases {
        let (host, disk) = (Host::new(), Disk::new());
        drop(ready_on(&host, &disk).await);
        let older = std::fs::read(host.path()).expect("readable");
        let node = failing(&host, &disk, Fault::Open, 0).await;
        change(&host.path(), &older, &disk);
        assert!(!node.log.as_ref().expect("durable").writable_again().await);
        // Nothing that this process reports would outlast it, not even what was on disk.
        let read = leader(&node, "e").await.expect_err("no reply").to_string();
        assert!(read.contains(what) && read.contains("restart"), "{read}");
        assert!(node.probe(PROBE).await.is_err());
    }
}
