//! Makes a file self-contained: its large values are in it, and it has no sidecars.

use bytes::Bytes;
use dormouse_format::record::BlobRef;
use dormouse_protocol::Seq;
use rusqlite::params;

use super::blobs::blob_of;
use super::counts::MessageCounts;
use super::{Database, DatabaseError, from_sql, to_sql};

/// A sidecar of this size is checkpointed.
const CHECKPOINT_BYTES: u64 = 64 * 1_024 * 1_024;

impl Database {
    /// At most `limit` messages after `after` whose values are blobs, in order of seq.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn blobs_after(&self, after: Seq, limit: usize) -> Result<Vec<(Seq, BlobRef)>, DatabaseError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT blob, size, blob_crc64, seq FROM messages WHERE seq > ?1 AND blob IS NOT NULL
             ORDER BY seq LIMIT ?2",
        )?;
        let after = after.max(self.floor.seq);
        let mut rows = statement.query(params![to_sql(after.get()), to_sql(limit as u64)])?;
        let mut blobs = Vec::new();
        while let Some(row) = rows.next()? {
            let seq = Seq::new(from_sql(row.get(3)?));
            blobs.push((seq, blob_of(seq, row)?));
        }
        Ok(blobs)
    }

    /// Writes the values of blobs into the file. Outside a transaction. Such a file is for reading only: it
    /// no longer follows from its log.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn embed(&mut self, values: &[(Seq, Bytes)]) -> Result<(), DatabaseError> {
        self.in_transaction(|database| {
            let mut embed = database.connection.prepare_cached(
                "UPDATE messages SET value = ?2, blob = NULL, blob_crc64 = NULL WHERE seq = ?1 AND blob IS NOT NULL",
            )?;
            for (seq, value) in values {
                if embed.execute(params![to_sql(seq.get()), value.as_ref()])? > 0 {
                    database.counts.take(MessageCounts::of(false, Some(value.len() as u64)));
                }
            }
            database.changed = true;
            Ok(())
        })?;
        if self.wal_bytes() > CHECKPOINT_BYTES { self.checkpoint() } else { Ok(()) }
    }

    /// Closes the file so that it opens anywhere, also read-only, and refers to no other file or object.
    ///
    /// # Errors
    /// [`DatabaseError`]; then the file may need its sidecars.
    pub fn make_plain(mut self) -> Result<(), DatabaseError> {
        while self.delete_hidden_rows()? {}
        self.connection.execute("DELETE FROM dead_blobs", [])?;
        self.checkpoint()?;
        let mode: String =
            self.connection.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))?;
        if mode != "delete" {
            return Err(DatabaseError::Damaged(format!("its journal mode is {mode}, not delete")));
        }
        self.close()
    }
}
