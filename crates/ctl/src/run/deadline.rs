//! The deadline that supervisor and deadman share: memory of a file without a name.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{pread, pwrite},
};

use super::clock::Instant;

/// The instant, and the same with every bit turned: a reader that meets a writer notices.
const LENGTH: usize = 16;

/// How often a reader looks again before it keeps what it knew.
const LOOKS: u32 = 100;

/// The instant at which the group is killed.
#[derive(Debug)]
pub(crate) struct Deadline<F = OwnedFd>(F);

impl Deadline {
    pub(crate) fn new(at: Instant) -> io::Result<Self> {
        let deadline = Self(memfd_create("election-deadline", MemfdFlags::CLOEXEC)?);
        deadline.set(at)?;
        Ok(deadline)
    }

    /// Another descriptor of the same memory.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl<F: AsFd> Deadline<F> {
    pub(crate) fn shared(memory: F) -> Self {
        Self(memory)
    }

    pub(crate) fn set(&self, at: Instant) -> io::Result<()> {
        let value = at.nanos();
        let mut bytes = [0; LENGTH];
        let (plain, turned) = bytes.split_at_mut(LENGTH / 2);
        plain.copy_from_slice(&value.to_ne_bytes());
        turned.copy_from_slice(&(!value).to_ne_bytes());
        match pwrite(self.fd(), &bytes, 0)? {
            LENGTH => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The deadline; `None` if it cannot be read, or if a writer is at it all the time.
    pub(crate) fn get(&self) -> Option<Instant> {
        for _ in 0..LOOKS {
            let mut bytes = [0; LENGTH];
            if pread(self.fd(), &mut bytes[..], 0) != Ok(LENGTH) {
                return None;
            }
            let half = |half: Option<&[u8; 8]>| half.copied().map(u64::from_ne_bytes);
            let value = half(bytes.first_chunk())?;
            let turned = half(bytes.last_chunk())?;
            if value == !turned {
                return Some(Instant::from_nanos(value));
            }
        }
        None
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_was_written_last_and_never_a_mixture() {
        let deadline = Deadline::new(Instant::from_nanos(1)).expect("memory");
        let shared = Deadline::shared(deadline.share().expect("shared"));
        assert_eq!(shared.get(), Some(Instant::from_nanos(1)));
        let both = [u64::MAX, 0x5555_5555_5555_5555].map(Instant::from_nanos);
        let writer = std::thread::spawn(move || {
            for turn in 0..20_000 {
                deadline.set(both[turn % 2]).expect("written");
            }
        });
        while !writer.is_finished() {
            let read = shared.get();
            assert!(
                read.is_none_or(|read| both.contains(&read) || read.nanos() == 1),
                "{read:?}"
            );
        }
        writer.join().expect("wrote");
        assert_eq!(shared.get(), Some(both[1]));
    }
}
