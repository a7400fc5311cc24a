//! Blobs: which message refers to which object, and which objects are no longer referenced.

use std::collections::{BTreeMap, HashSet};

use dormouse_format::keys::BlobName;
use dormouse_format::manifest::Manifest;
use dormouse_format::record::BlobRef;
use dormouse_protocol::limits::MAX_SEQ;
use dormouse_protocol::{ErrorReply, Rev, Seq};
use rusqlite::{OptionalExtension, Row, params};

use super::{Database, DatabaseError, from_sql, to_sql};

/// The uses of some blobs in a state, see [`Database::blob_uses`].
#[derive(Debug, Default)]
pub struct BlobUses {
    /// The dead blobs, each with the rev that removed the reference.
    pub removed: BTreeMap<BlobName, Rev>,
    /// The blobs of earlier terms that a message refers to.
    pub referenced: HashSet<BlobName>,
}

impl Database {
    /// The blob of the message at `seq`; `None` if there is no such message, or its value is in the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn blob_at(&self, seq: Seq) -> Result<Option<BlobRef>, ErrorReply> {
        self.read_blob(seq).map_err(|error| self.unreadable(&error))
    }

    fn read_blob(&self, seq: Seq) -> Result<Option<BlobRef>, DatabaseError> {
        if self.floor.hides(seq) {
            return Ok(None);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT blob, size, blob_crc64 FROM messages WHERE seq = ?1 AND blob IS NOT NULL",
        )?;
        let mut rows = statement.query([to_sql(seq.get().min(MAX_SEQ + 1))])?;
        rows.next()?.map(|row| blob_of(seq, row)).transpose()
    }

    /// Whether a message refers to the object. A removed message whose row still exists counts, so its object stays.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn refers_to(&self, name: BlobName) -> Result<bool, DatabaseError> {
        let found = self
            .connection
            .prepare_cached("SELECT 1 FROM messages WHERE blob = ?1")?
            .query_row([name.to_string()], |_| Ok(()))
            .optional()?;
        Ok(found.is_some())
    }

    /// The blobs that are no longer referenced, oldest first, each with the rev that removed the reference.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn dead_blobs(&self) -> Result<Vec<(BlobName, Rev)>, DatabaseError> {
        let mut statement =
            self.connection.prepare_cached("SELECT name, rev FROM dead_blobs ORDER BY rev, name")?;
        let mut rows = statement.query([])?;
        let mut dead = Vec::new();
        while let Some(row) = rows.next()? {
            dead.push((name_of(&row.get::<_, String>(0)?)?, Rev::new(from_sql(row.get(1)?))));
        }
        Ok(dead)
    }

    /// Removes the records of dead blobs once they are deleted. Outside a transaction. A rebuilt file has
    /// these records again.
    ///
    /// # Errors
    /// [`DatabaseError`]; then the file is unchanged.
    pub(crate) fn remove_dead_blob_records(&mut self, names: &[BlobName]) -> Result<(), DatabaseError> {
        self.in_transaction(|database| {
            let mut forget = database.connection.prepare_cached("DELETE FROM dead_blobs WHERE name = ?1")?;
            for name in names {
                forget.execute([name.to_string()])?;
            }
            Ok(())
        })
    }

    /// The uses of the listed blobs. The same listing shows that `manifest` is the newest. Removes the
    /// records of dead blobs that are no longer listed: their deletion is complete.
    ///
    /// # Errors
    /// The file cannot be read or written; then no blob may be deleted.
    pub fn blob_uses(&mut self, manifest: &Manifest, listed: &[BlobName]) -> Result<BlobUses, DatabaseError> {
        let listed_names: HashSet<BlobName> = listed.iter().copied().collect();
        let (removed, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.dead_blobs()?.into_iter().partition(|(name, _)| listed_names.contains(name));
        let mut referenced = HashSet::new();
        for name in listed.iter().filter(|name| name.term < manifest.term && !removed.contains_key(name)) {
            if self.refers_to(*name)? {
                referenced.insert(*name);
            }
        }
        let below = |(name, rev)| (rev <= manifest.base_rev).then_some(name);
        let gone: Vec<BlobName> = gone.into_iter().filter_map(below).collect();
        if !gone.is_empty() {
            self.remove_dead_blob_records(&gone)?;
        }
        Ok(BlobUses { removed, referenced })
    }

    /// Records a dead blob: the change with `rev` removes the message that refers to it.
    pub(super) fn add_dead_blob(&self, name: &str, rev: Rev) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO dead_blobs(name, rev) VALUES (?1, ?2)")?
            .execute(params![name, to_sql(rev.get())])?;
        Ok(())
    }
}

pub(super) fn blob_of(seq: Seq, row: &Row<'_>) -> Result<BlobRef, DatabaseError> {
    let crc64: String = row.get(2)?;
    Ok(BlobRef {
        name: name_of(&row.get::<_, String>(0)?)?,
        size_bytes: from_sql(row.get(1)?),
        crc64: crc64
            .parse()
            .map_err(|_| DatabaseError::Damaged(format!("the checksum of the value of {seq}")))?,
    })
}

fn name_of(text: &str) -> Result<BlobName, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Damaged(format!("{text:?} is not the name of a large value")))
}
