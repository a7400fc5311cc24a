//! Reading what a dead process left.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};

use super::record::{NewerFormat, Part, PartEnd, PartRecord, WAL_FORMAT, decode};
use super::settled::read_settled;
use super::write::part_name;
use super::{Lsn, Shipped, WalAppend, WalError, WalStorage};

/// What the folder of a log becomes before its files go: nobody reads half of it.
const REMOVED_SUFFIX: &str = ".removed";

/// What a write-ahead log says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalContents {
    /// What is neither known as shipped nor answered as failed nor settled, in order.
    pub appends: Vec<WalAppend>,
    /// Everything up to here is known to be shipped (or failed).
    pub shipped_through: Lsn,
    /// The last slot known to be in the bucket.
    pub last_slot: Option<Slot>,
    /// It ended in the middle of a write that was never synced.
    pub torn: bool,
    /// Something that had been synced cannot be read. What was behind it is not in here.
    pub damaged: Option<WalDamage>,
}

/// Where a write-ahead log stops making sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalDamage {
    /// The damaged part.
    pub path: PathBuf,
    /// Where in it the damage begins, in bytes.
    pub at: u64,
    /// What is wrong.
    pub what: &'static str,
    /// The names of this part and of those after it, within the log's folder: what is worth keeping.
    pub files: Vec<String>,
}

/// The logs that have a write-ahead log in `dir`, oldest first; what an interrupted [`remove_wal`] left goes. Blocks.
///
/// # Errors
/// [`WalError::Access`].
pub fn list_logs(storage: &dyn WalStorage, dir: &Path) -> Result<Vec<LogId>, WalError> {
    let mut logs: Vec<LogId> = Vec::new();
    for name in storage.list(dir).map_err(WalError::access(dir))? {
        if name.ends_with(REMOVED_SUFFIX) {
            remove_folder(storage, &dir.join(name))?;
        } else if let Ok(log) = name.parse() {
            logs.push(log);
        }
    }
    logs.sort_unstable_by_key(LogId::ulid);
    Ok(logs)
}

/// Reads the write-ahead log of a dead process. Changes nothing. Blocks.
///
/// # Errors
/// [`WalError::Access`], [`WalError::NewerVersion`]. Damage is no error: it is part of what is found.
pub fn read_wal(storage: &dyn WalStorage, dir: &Path, log: &LogId) -> Result<WalContents, WalError> {
    let folder = dir.join(log.to_string());
    let names = storage.list(&folder).map_err(WalError::access(&folder))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| part_number(name)).collect();
    numbers.sort_unstable();
    let mut reader = Reader::default();
    for (index, &number) in numbers.iter().enumerate() {
        let path = folder.join(part_name(number));
        let bytes = storage.read(&path).map_err(WalError::access(&path))?;
        let part = decode(log, number, &bytes).map_err(|NewerFormat(found)| WalError::NewerVersion {
            path: path.clone(),
            found,
            supported: WAL_FORMAT,
        })?;
        let is_last = index + 1 == numbers.len();
        if let Err((at, what)) = reader.take(part, is_last) {
            let files = numbers[index..].iter().copied().map(part_name).collect();
            reader.contents.damaged = Some(WalDamage { path, at, what, files });
            break;
        }
    }
    if reader.lacks_parts() {
        let files: Vec<String> = numbers.iter().copied().map(part_name).collect();
        let path = folder.join(&files[0]);
        reader.contents.appends.clear();
        reader.contents.damaged =
            Some(WalDamage { path, at: 0, what: "parts before it that were not shipped are missing", files });
    }
    let settled = read_settled(storage, &folder, log, &names)?;
    Ok(reader.finish(&settled))
}

fn part_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".wal")?.parse().ok()?;
    (part_name(number) == name).then_some(number)
}

#[derive(Default)]
struct Reader {
    contents: WalContents,
    failed: Vec<(Lsn, Lsn)>,
    /// The part before and the highest append in it and those before.
    previous: Option<(u64, Lsn)>,
    /// The first part is not the log's first: the append up to which the missing ones reach.
    missing: Option<Lsn>,
}

impl Reader {
    /// What is wrong, and where, when the reading must end with this part.
    fn take(&mut self, part: Part, is_last: bool) -> Result<(), (u64, &'static str)> {
        let headless = matches!(part.end, PartEnd::Torn { at: 0 } | PartEnd::Damaged { at: 0 });
        match self.previous {
            _ if headless => {}
            None if part.number > 1 => self.missing = Some(part.before),
            Some((number, _)) if part.number != number + 1 => return Err((0, "the part before is missing")),
            Some((_, last)) if part.before != last => return Err((0, "the part before is incomplete")),
            _ => {}
        }
        let mut last = part.before;
        for record in part.records {
            match record {
                PartRecord::Append(append) => {
                    if append.lsn <= last {
                        return Err((0, "its appends are not in order"));
                    }
                    last = append.lsn;
                    self.contents.appends.push(append);
                }
                PartRecord::Shipped(Shipped { through, slot }) => {
                    self.contents.shipped_through = self.contents.shipped_through.max(through);
                    self.contents.last_slot = self.contents.last_slot.max(Some(slot));
                }
                PartRecord::Failed(ranges) => self.failed.extend(ranges),
                PartRecord::Settled(_) => {}
            }
        }
        self.previous = Some((part.number, last));
        self.drop_shipped();
        match part.end {
            PartEnd::Whole => Ok(()),
            PartEnd::Torn { .. } if is_last => {
                self.contents.torn = true;
                Ok(())
            }
            // A part was synced as a whole before the next one was begun.
            PartEnd::Torn { at } | PartEnd::Damaged { at } => {
                Err((at, "what had been synced cannot be read"))
            }
        }
    }

    /// Lets go of the bytes of the part that was read; what stays is what is not shipped.
    fn drop_shipped(&mut self) {
        let through = self.contents.shipped_through;
        self.contents.appends.retain(|append| append.lsn > through);
        for append in &mut self.contents.appends {
            append.frames = Bytes::copy_from_slice(&append.frames);
        }
    }

    /// Parts go once they are shipped, and a later part says so: without that, they were lost.
    fn lacks_parts(&self) -> bool {
        self.missing.is_some_and(|through| through > self.contents.shipped_through)
    }

    fn finish(mut self, settled: &HashSet<Subject>) -> WalContents {
        let failed = Ranges::new(self.failed);
        self.contents
            .appends
            .retain(|append| !failed.contain(append.lsn) && !settled.contains(&append.subject));
        self.contents
    }
}

/// Disjoint ranges, ascending.
struct Ranges(Vec<(Lsn, Lsn)>);

impl Ranges {
    fn new(mut ranges: Vec<(Lsn, Lsn)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(Lsn, Lsn)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn contain(&self, lsn: Lsn) -> bool {
        let above = self.0.partition_point(|(first, _)| *first <= lsn);
        above.checked_sub(1).is_some_and(|index| self.0[index].1 >= lsn)
    }
}

/// Copies what is damaged, and what comes after it, into the folder `kept`. May be repeated. Blocks.
///
/// # Errors
/// [`WalError::Access`].
pub fn keep_damaged(
    storage: &dyn WalStorage,
    dir: &Path,
    log: &LogId,
    damage: &WalDamage,
    kept: &Path,
) -> Result<(), WalError> {
    storage.create_folder(kept).map_err(WalError::access(kept))?;
    for name in &damage.files {
        let (from, to) = (dir.join(log.to_string()).join(name), kept.join(name));
        let bytes = storage.read(&from).map_err(WalError::access(&from))?;
        let write = || {
            storage.remove(&to)?;
            let mut file = storage.create(&to)?;
            super::write::write_all(file.as_mut(), &bytes)?;
            file.sync_data()
        };
        write().map_err(WalError::access(&to))?;
    }
    Ok(())
}

/// Removes the write-ahead log of `log`: from the first step on it is as if there were none. Blocks.
///
/// # Errors
/// [`WalError::Access`]. [`list_logs`] removes what is left.
pub fn remove_wal(storage: &dyn WalStorage, dir: &Path, log: &LogId) -> Result<(), WalError> {
    let (folder, removed) = (dir.join(log.to_string()), dir.join(format!("{log}{REMOVED_SUFFIX}")));
    match storage.rename_folder(&folder, &removed) {
        // An earlier attempt came so far.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(WalError::access(&folder))?,
    }
    remove_folder(storage, &removed)
}

fn remove_folder(storage: &dyn WalStorage, folder: &Path) -> Result<(), WalError> {
    for name in storage.list(folder).map_err(WalError::access(folder))? {
        let path = folder.join(name);
        storage.remove(&path).map_err(WalError::access(&path))?;
    }
    storage.remove_folder(folder).map_err(WalError::access(folder))
}
