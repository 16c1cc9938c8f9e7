//! The database's file, which stays open and locked when redb closes the database.
//!
//! After an input or output error, redb refuses all further work until the database is reopened. The lock must last
//! until then: another process could use the file in between.

use std::{
    io,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{BackendError, StorageBackend};

/// The size of a read or write of the whole file.
const CHUNK: usize = 64 * 1024;

/// An open file; clones share it. Its locks end with the last clone.
#[derive(Debug, Clone)]
pub(super) struct OpenFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Box<dyn StorageBackend>,
    /// Whether a sync failed, so that it is unknown how much of the file is on disk.
    unsynced: AtomicBool,
}

impl OpenFile {
    pub(super) fn new(backend: Box<dyn StorageBackend>) -> Self {
        Self(Arc::new(Inner {
            backend,
            unsynced: AtomicBool::new(false),
        }))
    }

    /// Ensures that everything read from the file is on disk, before a database is reopened in it.
    ///
    /// The kernel may treat pages whose sync failed as written, and no later sync writes them. So the whole file is
    /// written again. Blocks of zeros are left out: they may be holes that need no space, and no page of the database
    /// consists of zeros.
    pub(super) fn settle(&self) -> io::Result<()> {
        if !self.0.unsynced.load(Ordering::Acquire) {
            return Ok(());
        }
        let backend = &self.0.backend;
        let length = backend.len()?;
        let mut chunk = vec![0; CHUNK];
        for offset in (0..length).step_by(CHUNK) {
            let left = usize::try_from(length - offset).unwrap_or(CHUNK);
            let chunk = &mut chunk[..left.min(CHUNK)];
            backend.read(offset, chunk)?;
            if chunk.iter().any(|byte| *byte != 0) {
                backend.write(offset, chunk)?;
            }
        }
        backend.sync_data()?;
        self.0.unsynced.store(false, Ordering::Release);
        Ok(())
    }
}

impl StorageBackend for OpenFile {
    fn len(&self) -> io::Result<u64> {
        self.0.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.0.backend.sync_data();
        if synced.is_err() {
            self.0.unsynced.store(true, Ordering::Release);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.backend.write(offset, data)
    }

    /// Keeps the locks: they end with the file.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    // The system grants again a lock that this file already has.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.backend.query_lock_range(start, end)
    }
}
