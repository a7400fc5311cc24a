//! One subject in one SQLite file: the state that entries build, and everything that is read from it.
//!
//! A [`Database`] is the only connection to its file, in this process and on this machine (the data directory is
//! locked). It knows no bucket, no clock and no other subject. Writes come as [entries](crate::entry::Entry) inside a
//! transaction;
//! figures that every request needs are kept in memory and written back when the transaction commits.

mod apply;
mod blobs;
mod changes;
mod counts;
mod details;
mod error;
mod expiry;
mod files;
mod outcome;
mod past;
mod plain;
mod read;
mod remember;
mod schema;
mod setup;
mod tenure;
mod view;

pub use error::DatabaseError;
pub use files::{companion, put_in_place, remove_files, sync_folder};
pub use setup::sqlite_is_safe;
pub use tenure::{Origin, Provenance, Tenure};

use std::path::{Path, PathBuf};

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{MessageId, Rev, Seq, Subject, Term, Timestamp};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use self::counts::Counts;
use crate::keys::ManifestNumber;
use crate::plan::SubjectState;

/// Page cache of one open file, in KiB. The operating system caches the rest.
const CACHE_KIB: u32 = 256;

/// So many pages (8 MiB) a transaction holds before it writes any: one that is written before the end is written twice. What
/// is replayed, or goes with a `delete_all`, may be far more than there is memory for.
const SPILL_PAGES: u32 = 2_048;

/// Prepared statements kept; there are fewer different ones.
const STATEMENTS: usize = 64;

/// Free pages are given back when they are more than this part of the file, and at most so many at once (32 MiB).
const FREE_PART: i64 = 4;
const MAX_VACUUM_PAGES: u32 = 8_192;

/// An open file. Dropping it closes the file and leaves everything committed in it or in its `-wal` companion.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
    state: SubjectState,
    counts: Counts,
    provenance: Provenance,
    tombstones: u64,
    tombstone_floor: Rev,
    config_rev: Rev,
    /// Nothing expires before this accept time; `None`: nothing expires.
    next_expiry: Option<Timestamp>,
    /// Nothing that is remembered for repeats is due to be forgotten before.
    forget_after: Timestamp,
    changed: bool,
}

impl Database {
    /// Makes the file of a subject that has none. There must be no file at `path`.
    ///
    /// # Errors
    /// [`DatabaseError::DiskFull`] or [`DatabaseError::NotBegun`].
    pub fn create(path: &Path, subject: &Subject, origin: &Origin) -> Result<Self, DatabaseError> {
        Self::create_file(path, subject, origin).map_err(DatabaseError::not_begun)
    }

    fn create_file(path: &Path, subject: &Subject, origin: &Origin) -> Result<Self, DatabaseError> {
        let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        // Only an empty file takes it, and one that is in WAL mode is not empty. See `give_back_free_pages`.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        set_pragmas(&connection)?;
        connection.execute_batch("BEGIN")?;
        connection.execute_batch(schema::CREATE)?;
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
        let past = origin.past.as_ref();
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
        past.map_or(Ok(()), |past| past::write(&connection, past))?;
        connection.execute_batch("COMMIT")?;
        Self::load(connection, path)
    }

    /// Opens the file of `subject`.
    ///
    /// # Errors
    /// [`DatabaseError`]; a file that is not what it should be is not touched.
    pub fn open(path: &Path, subject: &Subject) -> Result<Self, DatabaseError> {
        Self::open_file(path, subject).map_err(DatabaseError::not_begun)
    }

    fn open_file(path: &Path, subject: &Subject) -> Result<Self, DatabaseError> {
        let connection = connect(path, OpenFlags::empty())?;
        let version = check_identity(&connection)?;
        let held: String = connection
            .query_row("SELECT subject FROM meta", [], |row| row.get(0))
            .optional()?
            .ok_or_else(|| DatabaseError::Damaged("its description is missing".to_owned()))?;
        if held != subject.as_str() {
            return Err(DatabaseError::OtherSubject(held));
        }
        set_pragmas(&connection)?;
        if version < schema::BROUGHT_UP_TO {
            let from_1 = if version < 2 { schema::FROM_1 } else { "" };
            let (from_2, version) = (schema::FROM_2, schema::BROUGHT_UP_TO);
            let up = format!("BEGIN IMMEDIATE;{from_1}{from_2}PRAGMA user_version = {version};COMMIT;");
            connection.execute_batch(&up)?;
        }
        Self::load(connection, path)
    }

    fn load(connection: Connection, path: &Path) -> Result<Self, DatabaseError> {
        let mut database = Self {
            connection,
            path: path.to_owned(),
            state: SubjectState::default(),
            counts: Counts::default(),
            provenance: Provenance { log: None, manifest: ManifestNumber::new(0), bucket_rev: Rev::new(0) },
            tombstones: 0,
            tombstone_floor: Rev::new(0),
            config_rev: Rev::new(0),
            next_expiry: None,
            forget_after: Timestamp::default(),
            changed: false,
        };
        database.reload()?;
        Ok(database)
    }

    /// Reads the figures anew.
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
        self.provenance = Provenance {
            log: match log.as_str() {
                "" => None,
                log => Some(log.parse().map_err(|_| DatabaseError::Damaged(format!("its log {log:?}")))?),
            },
            manifest: ManifestNumber::new(number(12)?),
            bucket_rev: Rev::new(number(10)?),
        };
        self.counts = Counts::read(connection)?;
        self.tombstones = from_sql(tombstones);
        self.tombstone_floor = Rev::new(number(11)?);
        self.config_rev = Rev::new(number(13)?);
        // Looked up when the next entry comes.
        self.forget_after = Timestamp::default();
        self.changed = false;
        drop(rows);
        drop(statement);
        self.look_for_expiry()
    }

    /// The subject's figures, with everything applied so far.
    #[must_use]
    pub const fn state(&self) -> &SubjectState {
        &self.state
    }

    /// What the file says about itself.
    #[must_use]
    pub const fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`DatabaseError`] when SQLite fails; then nothing has happened.
    pub fn begin(&mut self) -> Result<(), DatabaseError> {
        let begun = self.connection.prepare_cached("BEGIN IMMEDIATE").and_then(|mut begin| begin.execute([]));
        begun.map(drop).map_err(|error| DatabaseError::from(error).not_begun())
    }

    /// Commits the transaction: now what was applied survives the process, though not the machine.
    ///
    /// # Errors
    /// [`DatabaseError`]; then nothing is committed, and [`Database::rollback`] is to be called.
    pub fn commit(&mut self) -> Result<(), DatabaseError> {
        if self.changed {
            let (state, counts) = (&self.state, &self.counts);
            self.connection
                .prepare_cached(
                    "UPDATE meta SET term = ?1, applied_rev = ?2, next_seq = ?3, last_seq = ?4, last_term = ?5,
                            accept_time = ?6, count = ?7, bytes = ?8, tombstone_floor = ?9,
                            config_rev = ?10, expiring = ?11, large_values = ?12, large_value_bytes = ?13",
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
                    to_sql(self.tombstone_floor.get()),
                    to_sql(self.config_rev.get()),
                    to_sql(counts.expiring),
                    to_sql(counts.large_values),
                    to_sql(counts.large_value_bytes),
                ])?;
            self.look_for_expiry()?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.changed = false;
        Ok(())
    }

    /// Takes back everything since [`Database::begin`], in the file and in memory.
    ///
    /// # Errors
    /// [`DatabaseError`] when the state cannot be read back; then the file must be closed.
    pub fn rollback(&mut self) -> Result<(), DatabaseError> {
        // SQLite rolls back by itself on some errors; then there is nothing left to do.
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.reload()
    }

    /// Bytes in the `-wal` companion that are not in the file itself yet.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        std::fs::metadata(companion(&self.path, "-wal")).map_or(0, |metadata| metadata.len())
    }

    /// Bytes of the file and its companion.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len()) + self.wal_bytes()
    }

    /// Brings everything from the companion into the file and empties the companion. Afterwards the file alone is
    /// the whole state, and stays as it is until the next checkpoint. Where much of it is empty, it shrinks.
    ///
    /// # Errors
    /// [`DatabaseError`]; the state is whole all the same, in both files.
    pub fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        if let Err(error) = self.give_back_free_pages() {
            tracing::debug!(path = %self.path.display(), %error, "a local file could not be made smaller");
        }
        let busy: i64 = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy == 0 { Ok(()) } else { Err(DatabaseError::Damaged("somebody else is using it".to_owned())) }
    }

    /// A deleted message leaves its pages in the file, to be used again. A file that is mostly such pages would be
    /// uploaded with all of them in every snapshot. Takes bounded time: what is left is given back next time.
    fn give_back_free_pages(&mut self) -> Result<(), DatabaseError> {
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

    /// Reads the whole file and looks whether it hangs together: SQLite notices a damaged page when it comes to it, which
    /// may be long after it was copied elsewhere.
    ///
    /// # Errors
    /// [`DatabaseError::Damaged`], or what SQLite says when it cannot read.
    pub fn check_whole(&self) -> Result<(), DatabaseError> {
        let found: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found == "ok" { Ok(()) } else { Err(DatabaseError::Damaged(found)) }
    }

    /// Closes the file and leaves it in one piece, without companions. No snapshot may be reading it.
    ///
    /// # Errors
    /// [`DatabaseError`]; the state is whole all the same.
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
    // A statement that is kept stays prepared whatever it is given: else SQLite plans some anew for each value.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    Ok(connection)
}

/// The version of the tables.
fn check_identity(connection: &Connection) -> Result<i32, DatabaseError> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application == 0 && version == 0 && tables == 0 {
        return Err(DatabaseError::Empty);
    }
    if application != schema::APPLICATION_ID {
        return Err(DatabaseError::Foreign(application));
    }
    if version > schema::SCHEMA_VERSION {
        return Err(DatabaseError::Newer { found: version, understood: schema::SCHEMA_VERSION });
    }
    Ok(version)
}

fn set_pragmas(connection: &Connection) -> Result<(), DatabaseError> {
    // The log is what survives a loss of power. A file from before it is never looked at again: see
    // `DataDir::set_aside_unsynced`. It comes first: a new file's change of mode would be synced three times.
    connection.pragma_update(None, "synchronous", "OFF")?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(DatabaseError::Damaged(format!("its journal mode is {mode}, not wal")));
    }
    // Checkpoints are ours: the file must not change while a snapshot is taken of it.
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
mod changes_tests;
#[cfg(test)]
mod expiry_tests;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod remember_tests;
#[cfg(test)]
mod replay_tests;
#[cfg(test)]
mod tests;
