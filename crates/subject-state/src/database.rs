//! One subject in one SQLite file: the state that applied entries build, and all reads of it.
//!
//! A [`Database`] is the only connection to its file, in this process and on this machine (the data directory
//! is locked). It knows no bucket, no clock and no other subject. Writes are
//! [entries](dormouse_format::entry::LogEntry) inside a transaction. Counters that every request needs are kept in
//! memory and written back when the transaction commits.

mod apply;
mod blobs;
mod changes;
mod counts;
mod dedup;
mod details;
mod error;
mod expiry;
mod file_owner;
mod files;
mod floor;
mod outcome;
mod page;
mod plain;
mod range_count;
mod read;
mod schema;
mod setup;
mod slice;
mod tombstone;
mod transaction;
mod view;

pub use apply::ApplyProgress;
pub use blobs::BlobUses;
pub use error::DatabaseError;
pub use file_owner::{FileOwner, FileProvenance, InitialState};
pub use files::{put_in_place, remove_files, sidecar_path};
pub use page::{DIRECT_GET_ITEMS, PageRead};
pub use setup::sqlite_is_safe;
pub use slice::{SLICE_BYTES, SLICE_ROWS, Slice};
pub use transaction::ApplyTransaction;

use std::path::{Path, PathBuf};

use dormouse_format::keys::ManifestNumber;
use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{MessageId, Rev, Seq, Subject, Term, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use self::counts::MessageCounts;
use self::floor::Floor;
use self::range_count::RangeCount;
use crate::plan::SubjectState;

/// Page cache of one open file, in KiB. The operating system caches the rest.
const CACHE_KIB: u32 = 256;

/// Number of pages (8 MiB) that a transaction holds before it writes any: a page that is written before the
/// end is written twice. A replay or a `delete_all` may exceed the memory by far.
const SPILL_PAGES: u32 = 2_048;

/// Number of cached prepared statements; there are fewer different ones.
const STATEMENTS: usize = 64;

/// Free pages are released if they exceed this fraction of the file, and at most this many at once (32 MiB).
const FREE_PART: i64 = 4;
const MAX_VACUUM_PAGES: u32 = 8_192;

/// An open file. Dropping it closes the file and leaves all commits in it or in its `-wal` sidecar.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
    state: SubjectState,
    counts: MessageCounts,
    floor: Floor,
    provenance: FileProvenance,
    removal_records: u64,
    removal_floor: Rev,
    config_rev: Rev,
    /// No message expires before this accept time; `None` if none expires.
    next_expiry: Option<Timestamp>,
    /// No dedup record expires before this accept time.
    dedup_expires_at: Timestamp,
    changed: bool,
    /// Counts that were made ahead.
    counted: Option<RangeCount>,
}

impl Database {
    /// Creates the file of a subject that has none. There must be no file at `path`.
    ///
    /// # Errors
    /// [`DatabaseError::DiskFull`] or [`DatabaseError::NotStarted`].
    pub fn create(path: &Path, subject: &Subject, origin: &InitialState) -> Result<Self, DatabaseError> {
        Self::create_file(path, subject, origin).map_err(DatabaseError::not_started)
    }

    fn create_file(path: &Path, subject: &Subject, origin: &InitialState) -> Result<Self, DatabaseError> {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        // Only an empty file accepts it, and a file in WAL mode is not empty. See `release_free_pages`.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        set_pragmas(&connection)?;
        connection.execute_batch("BEGIN")?;
        connection.execute_batch(schema::CREATE)?;
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
        let past = origin.tombstone.as_ref();
        connection.pragma_update(None, "user_version", schema::SCHEMA_VERSION)?;
        connection.execute(
            "INSERT INTO meta(id, subject, term, log, applied_rev, next_seq, accept_time, count, bytes,
                              tombstone_floor, config, config_rev, manifest, bucket_rev)
             VALUES (1, ?1, 0, '', ?2, ?3, ?5, 0, 0, ?2, ?4, ?2, 0, ?2)",
            params![
                subject.as_str(),
                to_sql(origin.rev.get()),
                to_sql(origin.next_seq.get()),
                encode_config(&SubjectConfig::default())?,
                past.map_or(0, |past| to_sql(past.accept_time.as_micros())),
            ],
        )?;
        past.map_or(Ok(()), |past| tombstone::write(&connection, past))?;
        connection.execute_batch("COMMIT")?;
        Self::load(connection, path)
    }

    /// Opens the file of `subject`.
    ///
    /// # Errors
    /// [`DatabaseError`]; an unusable file is not changed.
    pub fn open(path: &Path, subject: &Subject) -> Result<Self, DatabaseError> {
        Self::open_file(path, subject).map_err(DatabaseError::not_started)
    }

    fn open_file(path: &Path, subject: &Subject) -> Result<Self, DatabaseError> {
        let connection = connect(path, OpenFlags::empty())?;
        let version = check_identity(&connection)?;
        let stored_subject: String = connection
            .query_row("SELECT subject FROM meta", [], |row| row.get(0))
            .optional()?
            .ok_or_else(|| DatabaseError::Damaged("its description is missing".to_owned()))?;
        if stored_subject != subject.as_str() {
            return Err(DatabaseError::OtherSubject(stored_subject));
        }
        set_pragmas(&connection)?;
        if version < schema::SCHEMA_VERSION {
            let from_1 = if version < 2 { schema::FROM_1 } else { "" };
            let from_2 = if version < 3 { schema::FROM_2 } else { "" };
            let (from_4, version) = (schema::FROM_4, schema::SCHEMA_VERSION);
            let up =
                format!("BEGIN IMMEDIATE;{from_1}{from_2}{from_4}PRAGMA user_version = {version};COMMIT;");
            connection.execute_batch(&up)?;
        }
        Self::load(connection, path)
    }

    fn load(connection: Connection, path: &Path) -> Result<Self, DatabaseError> {
        let mut database = Self {
            connection,
            path: path.to_owned(),
            state: SubjectState::default(),
            counts: MessageCounts::default(),
            floor: Floor::default(),
            provenance: FileProvenance {
                log: None,
                manifest: ManifestNumber::new(0),
                bucket_rev: Rev::new(0),
            },
            removal_records: 0,
            removal_floor: Rev::new(0),
            config_rev: Rev::new(0),
            next_expiry: None,
            dedup_expires_at: Timestamp::default(),
            changed: false,
            counted: None,
        };
        database.reload()?;
        Ok(database)
    }

    /// Reads the state from the file again.
    fn reload(&mut self) -> Result<(), DatabaseError> {
        let connection = &self.connection;
        let tombstones: i64 =
            connection.query_row("SELECT COUNT(*) FROM tombstones", [], |row| row.get(0))?;
        let mut statement = connection.prepare_cached(
            "SELECT term, applied_rev, next_seq, last_seq, last_term, accept_time, count, bytes, config, log,
                    bucket_rev, tombstone_floor, manifest, config_rev,
                    coalesce((SELECT term_base FROM terms WHERE terms.term = meta.term), applied_rev)
             FROM meta",
        )?;
        let mut rows = statement.query([])?;
        let row =
            rows.next()?.ok_or_else(|| DatabaseError::Damaged("its description is missing".to_owned()))?;
        let number = |column: usize| row.get::<_, i64>(column).map(from_sql);
        let last_seq: Option<i64> = row.get(3)?;
        let last_term: Option<i64> = row.get(4)?;
        let config: Vec<u8> = row.get(8)?;
        let log: String = row.get(9)?;
        self.state = SubjectState {
            term: Term::new(number(0)?),
            term_base: Rev::new(number(14)?),
            rev: Rev::new(number(1)?),
            next_seq: Seq::new(number(2)?),
            last: last_seq.zip(last_term).map(|(seq, term)| MessageId {
                term: Term::new(from_sql(term)),
                seq: Seq::new(from_sql(seq)),
            }),
            accept_time: Timestamp::from_micros(number(5)?),
            count: number(6)?,
            bytes: number(7)?,
            config: dormouse_protocol::decode(&config)
                .map_err(|error| DatabaseError::Damaged(format!("its configuration: {error}")))?,
        };
        self.provenance = FileProvenance {
            log: match log.as_str() {
                "" => None,
                log => Some(log.parse().map_err(|_| DatabaseError::Damaged(format!("its log {log:?}")))?),
            },
            manifest: ManifestNumber::new(number(12)?),
            bucket_rev: Rev::new(number(10)?),
        };
        self.counts = MessageCounts::read(connection)?;
        self.floor = Floor::read(connection)?;
        self.removal_records = from_sql(tombstones);
        self.removal_floor = Rev::new(number(11)?);
        self.config_rev = Rev::new(number(13)?);
        // Read again when the next entry is applied.
        self.dedup_expires_at = Timestamp::default();
        self.changed = false;
        drop(rows);
        drop(statement);
        self.update_next_expiry()
    }

    /// The subject's state, with everything applied so far.
    #[must_use]
    pub const fn state(&self) -> &SubjectState {
        &self.state
    }

    /// The origin of the file, as stored in it.
    #[must_use]
    pub const fn provenance(&self) -> &FileProvenance {
        &self.provenance
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`DatabaseError`] when SQLite fails; then nothing has changed.
    pub fn begin(&mut self) -> Result<(), DatabaseError> {
        let started =
            self.connection.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
        started.map(drop).map_err(|error| DatabaseError::from(error).not_started())
    }

    /// Commits the transaction: the applied entries survive the process, but not a power loss.
    ///
    /// # Errors
    /// [`DatabaseError`]; then nothing is committed, and the caller must call [`Database::rollback`].
    pub fn commit(&mut self) -> Result<(), DatabaseError> {
        if self.changed {
            let (state, counts, floor) = (&self.state, &self.counts, &self.floor);
            self.connection
                .prepare_cached(
                    "UPDATE meta SET term = ?1, applied_rev = ?2, next_seq = ?3, last_seq = ?4, last_term = ?5,
                            accept_time = ?6, count = ?7, bytes = ?8, tombstone_floor = ?9,
                            config_rev = ?10, expiring = ?11, large_values = ?12, large_value_bytes = ?13,
                            row_floor = ?14, row_floor_rev = ?15, cleared_rev = ?16",
                )?
                .execute(params![
                    to_sql(state.term.get()),
                    to_sql(state.rev.get()),
                    to_sql(state.next_seq.get()),
                    state.last.map(|last| to_sql(last.seq.get())),
                    state.last.map(|last| to_sql(last.term.get())),
                    to_sql(state.accept_time.as_micros()),
                    to_sql(state.count),
                    to_sql(state.bytes),
                    to_sql(self.removal_floor.get()),
                    to_sql(self.config_rev.get()),
                    to_sql(counts.expiring),
                    to_sql(counts.large_values),
                    to_sql(counts.large_value_bytes),
                    to_sql(floor.seq.get()),
                    to_sql(floor.rev.get()),
                    to_sql(floor.cleared_rev.get()),
                ])?;
            self.update_next_expiry()?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.changed = false;
        Ok(())
    }

    /// Reverts everything since [`Database::begin`], in the file and in memory.
    ///
    /// # Errors
    /// [`DatabaseError`] when the state cannot be read back; then the file must be closed.
    pub fn rollback(&mut self) -> Result<(), DatabaseError> {
        // SQLite rolls back automatically on some errors; then there is nothing left to do.
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.reload()
    }

    /// Bytes in the `-wal` sidecar that are not in the file itself yet.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(sidecar_path(&self.path, "-wal")).map_or(0, |metadata| metadata.len())
    }

    /// Bytes of the file and its sidecar.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len()) + self.wal_bytes()
    }

    /// Moves everything from the sidecar into the file and empties the sidecar. Afterwards the file alone is
    /// the whole state, and does not change until the next checkpoint. If much of the file is free, it
    /// shrinks.
    ///
    /// # Errors
    /// [`DatabaseError`]; the state is still complete, in both files.
    pub fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        if let Err(error) = self.release_free_pages() {
            tracing::debug!(path = %self.path.display(), %error, "free pages not released");
        }
        let busy: i64 = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy == 0 { Ok(()) } else { Err(DatabaseError::Damaged("another process is using it".to_owned())) }
    }

    /// A deleted message leaves its pages in the file, for reuse. Every snapshot would upload these pages.
    /// Takes bounded time: the next call releases the rest.
    fn release_free_pages(&mut self) -> Result<(), DatabaseError> {
        let pages = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        if pages("freelist_count")? <= pages("page_count")? / FREE_PART {
            return Ok(());
        }
        let mut vacuum =
            self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({MAX_VACUUM_PAGES})"))?;
        // One step per page.
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        Ok(())
    }

    /// Reads the whole file and checks its consistency. SQLite detects a damaged page only when it reads it,
    /// possibly long after the page was copied to other places.
    ///
    /// # Errors
    /// [`DatabaseError::Damaged`], or SQLite's error if it cannot read.
    pub fn check_integrity(&self) -> Result<(), DatabaseError> {
        let found: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found == "ok" { Ok(()) } else { Err(DatabaseError::Damaged(found)) }
    }

    /// Closes the file and leaves it complete, without sidecars. No snapshot may be reading it.
    ///
    /// # Errors
    /// [`DatabaseError`]; the state is still complete.
    pub fn close(self) -> Result<(), DatabaseError> {
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

fn connect(path: &Path, extra: OpenFlags) -> Result<Connection, DatabaseError> {
    setup::configure_memory_once();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // A snapshot may be reading the file while it is closed: closing must not write to it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // A cached statement stays prepared for every parameter: otherwise SQLite plans some statements again for
    // each value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    Ok(connection)
}

/// The schema version.
fn check_identity(connection: &Connection) -> Result<i32, DatabaseError> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application == 0 && version == 0 && tables == 0 {
        return Err(DatabaseError::Empty);
    }
    if application != schema::APPLICATION_ID {
        return Err(DatabaseError::ForeignFile(application));
    }
    if version > schema::SCHEMA_VERSION {
        return Err(DatabaseError::NewerSchema { found: version, understood: schema::SCHEMA_VERSION });
    }
    Ok(version)
}

fn set_pragmas(connection: &Connection) -> Result<(), DatabaseError> {
    // The log survives a power loss. A file from before the power loss is never used again: see
    // `DataDir::set_aside_unsynced`. This pragma comes first: otherwise the mode change of a new file
    // would be synced three times.
    connection.pragma_update(None, "synchronous", "OFF")?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(DatabaseError::Damaged(format!("its journal mode is {mode}, not wal")));
    }
    // Checkpoints are explicit: the file must not change while a snapshot reads it.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
    connection.pragma_update(None, "cache_spill", SPILL_PAGES)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(())
}

fn encode_config(config: &SubjectConfig) -> Result<Vec<u8>, DatabaseError> {
    dormouse_protocol::encode(config)
        .map(Vec::from)
        .map_err(|error| DatabaseError::Damaged(format!("a configuration that cannot be stored: {error}")))
}

/// SQLite's integers are signed: the same bits are stored.
const fn to_sql(number: u64) -> i64 {
    number.cast_signed()
}

const fn from_sql(number: i64) -> u64 {
    number.cast_unsigned()
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
