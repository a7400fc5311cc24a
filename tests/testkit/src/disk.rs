//! A faulty disk for tests: it can be full, write fewer bytes than given, fail to sync, and lose unsynced bytes at a
//! loss of power. The same seed gives the same faults.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;
use dormouse_runtime::disk::{Disk, DiskFile, write_all};
use dormouse_runtime::{Entropy, Lock, SeededEntropy};

/// Unit that reaches a disk completely or not at all.
const SECTOR_BYTES: usize = 512;

/// A [`Disk`] over another one, with faults. Clones share everything.
#[derive(Debug, Clone)]
pub struct FaultyDisk(Arc<DiskParts>);

#[derive(Debug)]
struct DiskParts {
    inner: Arc<dyn Disk>,
    entropy: SeededEntropy,
    state: Lock<FaultyDiskState>,
}

#[derive(Debug, Default)]
struct FaultyDiskState {
    files: BTreeMap<PathBuf, Lengths>,
    /// Number of losses of power: files opened before one do nothing after it.
    power: u64,
    room: Option<u64>,
    short_writes: u64,
    failing_writes: u32,
    failing_syncs: u32,
    panicking_syncs: bool,
}

/// Length of a file, and how much of it survives a loss of power.
#[derive(Debug, Default, Clone, Copy)]
struct Lengths {
    live: u64,
    synced: u64,
}

impl FaultyDisk {
    /// A disk over `inner`, without faults so far.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, seed: u64) -> Self {
        Self(Arc::new(DiskParts { inner, entropy: SeededEntropy::new(seed), state: Lock::default() }))
    }

    /// Limits the bytes that can still be written; `None` removes the limit. Truncated and removed bytes become free.
    pub fn limit_free_space(&self, bytes: Option<u64>) {
        self.0.state().room = bytes;
    }

    /// One write in `one_in` writes only some of its bytes; 0 turns this off.
    pub fn short_writes(&self, one_in: u64) {
        self.0.state().short_writes = one_in;
    }

    /// Makes the next `count` writes fail.
    pub fn fail_writes(&self, count: u32) {
        self.0.state().failing_writes = count;
    }

    /// Makes the next `count` syncs fail; later syncs do not make their bytes durable either.
    pub fn fail_syncs(&self, count: u32) {
        self.0.state().failing_syncs = count;
    }

    /// Makes every sync panic, as a defect would.
    pub fn panic_in_syncs(&self) {
        self.0.state().panicking_syncs = true;
    }

    /// Simulates a loss of power. Each file keeps a random prefix of its unsynced bytes, with random sectors of it
    /// zeroed. Open files can no longer be used.
    ///
    /// # Errors
    /// The error of the inner disk.
    pub fn power_loss(&self) -> io::Result<()> {
        let mut state = self.0.state();
        state.power += 1;
        for (path, lengths) in &mut state.files {
            let mut bytes = Vec::from(self.0.inner.read(path)?);
            let synced = usize::try_from(lengths.synced).unwrap_or(usize::MAX).min(bytes.len());
            let unsynced = (bytes.len() - synced) as u64;
            bytes.truncate(synced + usize::try_from(self.0.below(unsynced + 1)).unwrap_or(0));
            for sector in bytes[synced..].chunks_mut(SECTOR_BYTES) {
                if self.0.below(4) == 0 {
                    sector.fill(0);
                }
            }
            self.0.inner.remove(path)?;
            let mut file = self.0.inner.create(path)?;
            write_all(file.as_mut(), &bytes)?;
            lengths.live = bytes.len() as u64;
            lengths.synced = lengths.live;
        }
        Ok(())
    }

    /// How many bytes of a file survive a loss of power.
    #[must_use]
    pub fn synced(&self, path: &Path) -> u64 {
        self.0.state().files.get(path).map_or(0, |lengths| lengths.synced)
    }
}

impl DiskParts {
    fn state(&self) -> MutexGuard<'_, FaultyDiskState> {
        self.state.lock()
    }

    /// A random number below `limit`, which is not 0.
    fn below(&self, limit: u64) -> u64 {
        self.entropy.next_u64() % limit
    }
}

impl Disk for FaultyDisk {
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.inner.create_folder(folder)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.0.inner.create(path)?;
        let mut state = self.0.state();
        state.files.insert(path.to_owned(), Lengths::default());
        Ok(Box::new(FaultyFile { disk: self.0.clone(), path: path.to_owned(), power: state.power, file }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.0.inner.list(folder)
    }

    fn read(&self, path: &Path) -> io::Result<Bytes> {
        self.0.inner.read(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.inner.remove(path)?;
        let mut state = self.0.state();
        if let Some(lengths) = state.files.remove(path) {
            state.free(lengths.live);
        }
        Ok(())
    }

    fn rename_folder(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.inner.rename_folder(from, to)?;
        let mut state = self.0.state();
        let moved = std::mem::take(&mut state.files).into_iter().map(|(path, lengths)| {
            let path = path.strip_prefix(from).map(|name| to.join(name)).unwrap_or(path);
            (path, lengths)
        });
        state.files = moved.collect();
        Ok(())
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.inner.remove_folder(folder)
    }
}

impl FaultyDiskState {
    fn free(&mut self, bytes: u64) {
        self.room = self.room.map(|room| room + bytes);
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: Arc<DiskParts>,
    path: PathBuf,
    power: u64,
    file: Box<dyn DiskFile>,
}

impl FaultyFile {
    fn check_power(&self, state: &FaultyDiskState) -> io::Result<()> {
        if state.power == self.power { Ok(()) } else { Err(io::Error::other("power lost")) }
    }
}

impl DiskFile for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        self.check_power(&state)?;
        if state.failing_writes > 0 {
            state.failing_writes -= 1;
            return Err(io::Error::other("injected write failure"));
        }
        let mut taken = bytes.len();
        if state.short_writes > 0 && taken > 1 && self.disk.below(state.short_writes) == 0 {
            taken = 1 + usize::try_from(self.disk.below(taken as u64 - 1)).unwrap_or(0);
        }
        if let Some(room) = state.room {
            taken = taken.min(usize::try_from(room).unwrap_or(usize::MAX));
        }
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.file.write(&bytes[..taken])?;
        state.room = state.room.map(|room| room - written as u64);
        state.files.entry(self.path.clone()).or_default().live += written as u64;
        Ok(written)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        self.check_power(&state)?;
        assert!(!state.panicking_syncs, "injected panic in a sync");
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::other("injected sync failure"));
        }
        self.file.sync_data()?;
        let lengths = state.files.entry(self.path.clone()).or_default();
        lengths.synced = lengths.live;
        Ok(())
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        self.check_power(&state)?;
        self.file.set_len(bytes)?;
        let lengths = state.files.entry(self.path.clone()).or_default();
        let freed = lengths.live.saturating_sub(bytes);
        lengths.live = bytes;
        lengths.synced = lengths.synced.min(bytes);
        state.free(freed);
        Ok(())
    }
}
