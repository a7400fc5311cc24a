//! Reading the write-ahead log of an ended process.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dormouse_protocol::{LogId, Slot, Subject};
use dormouse_runtime::disk::{Disk, write_all};

use super::record::{NewerFormat, PartEnd, PartRecord, WAL_FORMAT, WalPart, decode};
use super::resolved::read_resolved;
use super::write::part_name;
use super::{Lsn, ShippedUpTo, WalAppend, WalError};

/// Suffix of a log's folder before its files are removed: no reader sees a part of it.
const REMOVED_SUFFIX: &str = ".removed";

/// Content of a write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalContents {
    /// Appends that are neither shipped, nor reported as failed, nor of a resolved subject, in order.
    pub appends: Vec<WalAppend>,
    /// Everything up to here is known to be shipped (or failed).
    pub shipped_through: Lsn,
    /// The last slot known to be in the bucket.
    pub last_slot: Option<Slot>,
    /// It ended in the middle of a write that was never synced.
    pub torn: bool,
    /// Synced bytes are unreadable. Records after them are not included.
    pub damaged: Option<WalDamage>,
}

/// Position of the damage in a write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalDamage {
    /// The damaged part.
    pub path: PathBuf,
    /// The first damaged byte in it.
    pub at: u64,
    /// The kind of damage.
    pub reason: &'static str,
    /// The names of this part and of the later ones, within the log's folder: the files to keep.
    pub files: Vec<String>,
}

/// The logs that have a write-ahead log in `dir`, oldest first. Completes interrupted removals of logs. Blocks.
///
/// # Errors
/// [`WalError::Access`].
pub fn list_logs(disk: &dyn Disk, dir: &Path) -> Result<Vec<LogId>, WalError> {
    let mut logs: Vec<LogId> = Vec::new();
    for name in disk.list(dir).map_err(WalError::access(dir))? {
        if name.ends_with(REMOVED_SUFFIX) {
            remove_folder(disk, &dir.join(name))?;
        } else if let Ok(log) = name.parse() {
            logs.push(log);
        }
    }
    logs.sort_unstable_by_key(LogId::ulid);
    Ok(logs)
}

/// Reads the write-ahead log of an ended process. Changes nothing. Blocks.
///
/// # Errors
/// [`WalError::Access`], [`WalError::NewerVersion`]. Damage is no error: it is part of the content.
pub fn read_wal(disk: &dyn Disk, dir: &Path, log: &LogId) -> Result<WalContents, WalError> {
    let folder = dir.join(log.to_string());
    let names = disk.list(&folder).map_err(WalError::access(&folder))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| part_number(name)).collect();
    numbers.sort_unstable();
    let mut reader = WalReader::default();
    for (index, &number) in numbers.iter().enumerate() {
        let path = folder.join(part_name(number));
        let bytes = disk.read(&path).map_err(WalError::access(&path))?;
        let part = decode(log, number, &bytes).map_err(|NewerFormat(found)| WalError::NewerVersion {
            path: path.clone(),
            found,
            supported: WAL_FORMAT,
        })?;
        let is_last = index + 1 == numbers.len();
        if let Err((at, what)) = reader.take(part, is_last) {
            let files = numbers[index..].iter().copied().map(part_name).collect();
            reader.contents.damaged = Some(WalDamage { path, at, reason: what, files });
            break;
        }
    }
    if reader.lacks_parts() {
        let files: Vec<String> = numbers.iter().copied().map(part_name).collect();
        let path = folder.join(&files[0]);
        reader.contents.appends.clear();
        reader.contents.damaged = Some(WalDamage {
            path,
            at: 0,
            reason: "parts before it that were not shipped are missing",
            files,
        });
    }
    let resolved = read_resolved(disk, &folder, log, &names)?;
    Ok(reader.finish(&resolved))
}

fn part_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".wal")?.parse().ok()?;
    (part_name(number) == name).then_some(number)
}

#[derive(Default)]
struct WalReader {
    contents: WalContents,
    failed: Vec<(Lsn, Lsn)>,
    /// The previous part's number and the highest append so far.
    previous: Option<(u64, Lsn)>,
    /// Set if the first part is not the log's first: the last append of the missing parts.
    missing: Option<Lsn>,
}

impl WalReader {
    /// The error has the kind and the position of damage that ends the read at this part.
    fn take(&mut self, part: WalPart, is_last: bool) -> Result<(), (u64, &'static str)> {
        let header_missing = matches!(part.end, PartEnd::Torn { at: 0 } | PartEnd::Damaged { at: 0 });
        match self.previous {
            _ if header_missing => {}
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
                PartRecord::Shipped(ShippedUpTo { through, slot }) => {
                    self.contents.shipped_through = self.contents.shipped_through.max(through);
                    self.contents.last_slot = self.contents.last_slot.max(Some(slot));
                }
                PartRecord::Failed(ranges) => self.failed.extend(ranges),
                PartRecord::Resolved(_) => {}
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
            // A part is synced as a whole before the next one is created.
            PartEnd::Torn { at } | PartEnd::Damaged { at } => Err((at, "synced bytes are unreadable")),
        }
    }

    /// Drops shipped appends, and copies the frames of the others to free the part's bytes.
    fn drop_shipped(&mut self) {
        let through = self.contents.shipped_through;
        self.contents.appends.retain(|append| append.lsn > through);
        for append in &mut self.contents.appends {
            append.frames = Bytes::copy_from_slice(&append.frames);
        }
    }

    /// A later part records that the deleted parts were shipped; without such a record, the missing parts are lost.
    fn lacks_parts(&self) -> bool {
        self.missing.is_some_and(|through| through > self.contents.shipped_through)
    }

    fn finish(mut self, resolved: &HashSet<Subject>) -> WalContents {
        let failed = Ranges::new(self.failed);
        self.contents
            .appends
            .retain(|append| !failed.contain(append.lsn) && !resolved.contains(&append.subject));
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

/// Copies the damaged part and the later ones into the folder `kept`. May be repeated. Blocks.
///
/// # Errors
/// [`WalError::Access`].
pub fn keep_damaged(
    disk: &dyn Disk,
    dir: &Path,
    log: &LogId,
    damage: &WalDamage,
    kept: &Path,
) -> Result<(), WalError> {
    disk.create_folder(kept).map_err(WalError::access(kept))?;
    for name in &damage.files {
        let (from, to) = (dir.join(log.to_string()).join(name), kept.join(name));
        let bytes = disk.read(&from).map_err(WalError::access(&from))?;
        let write = || {
            disk.remove(&to)?;
            let mut file = disk.create(&to)?;
            write_all(file.as_mut(), &bytes)?;
            file.sync_data()
        };
        write().map_err(WalError::access(&to))?;
    }
    Ok(())
}

/// Removes the write-ahead log of `log`: after the first step, readers find none. Blocks.
///
/// # Errors
/// [`WalError::Access`]. [`list_logs`] removes the rest.
pub fn remove_wal(disk: &dyn Disk, dir: &Path, log: &LogId) -> Result<(), WalError> {
    let (folder, removed) = (dir.join(log.to_string()), dir.join(format!("{log}{REMOVED_SUFFIX}")));
    match disk.rename_folder(&folder, &removed) {
        // An earlier attempt has renamed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        renamed => renamed.map_err(WalError::access(&folder))?,
    }
    remove_folder(disk, &removed)
}

fn remove_folder(disk: &dyn Disk, folder: &Path) -> Result<(), WalError> {
    for name in disk.list(folder).map_err(WalError::access(folder))? {
        let path = folder.join(name);
        disk.remove(&path).map_err(WalError::access(&path))?;
    }
    disk.remove_folder(folder).map_err(WalError::access(folder))
}
