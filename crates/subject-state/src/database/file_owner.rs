//! The claim of a file, and its history of terms.

use dormouse_format::keys::ManifestNumber;
use dormouse_format::manifest::{TermBase, TombstoneState};
use dormouse_protocol::limits::TERM_HISTORY;
use dormouse_protocol::{LogId, Rev, Seq, Term};
use dormouse_runtime::injected_bug;
use rusqlite::{OptionalExtension, params};

use super::{Database, DatabaseError, from_sql, to_sql};

/// The initial state of a subject without a snapshot: zero, or the end of its destroyed predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialState {
    /// The inherited rev.
    pub rev: Rev,
    /// The first seq that it assigns.
    pub next_seq: Seq,
    /// The dedup state of that predecessor.
    pub tombstone: Option<TombstoneState>,
}

impl Default for InitialState {
    fn default() -> Self {
        Self { rev: Rev::new(0), next_seq: Seq::new(1), tombstone: None }
    }
}

/// The claim under which a file is served, and the rev up to which the bucket's snapshot and deltas contain
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOwner {
    /// The log of the process that serves it.
    pub log: LogId,
    /// The term.
    pub term: Term,
    /// The last rev that the term inherited.
    pub term_base: Rev,
    /// The newest manifest.
    pub manifest: ManifestNumber,
    /// The rev that the manifest's snapshot and deltas reach.
    pub bucket_rev: Rev,
}

/// The origin of a file, as stored in it beside the subject's state. A file that was copied from the bucket
/// contains the values of the time when it was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProvenance {
    /// The log of the process that last served it; `None` in a file that has not been claimed.
    pub log: Option<LogId>,
    /// The newest manifest that process knew to be its own; 0 in a file that has not been claimed.
    pub manifest: ManifestNumber,
    /// The last rev that process knew to be in a snapshot or delta.
    pub bucket_rev: Rev,
}

impl Database {
    /// Stores a claim before the first change under it. The claim survives the process once the call returns.
    /// Outside a transaction.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] if the term cannot follow from the state, otherwise SQLite's error; then
    /// the file is unchanged.
    pub fn take_over(&mut self, owner: &FileOwner) -> Result<(), DatabaseError> {
        self.in_transaction(|database| database.write_owner(owner))
    }

    fn write_owner(&mut self, owner: &FileOwner) -> Result<(), DatabaseError> {
        if owner.term < self.state.term || owner.term_base > self.state.rev {
            return Err(DatabaseError::Diverged(format!(
                "{} that begins after {} where the state is {}",
                owner.term,
                owner.term_base,
                self.state.position()
            )));
        }
        if injected_bug!(DedupLostOnClaim) {
            self.connection
                .execute_batch("DELETE FROM results; DELETE FROM sessions; DELETE FROM msg_ids")?;
        }
        self.record_term(TermBase { term: owner.term, term_base: owner.term_base })?;
        self.prune_terms()?;
        self.connection.execute("UPDATE meta SET log = ?1", [owner.log.to_string()])?;
        self.set_in_bucket(owner.manifest, owner.bucket_rev)?;
        self.state.term = owner.term;
        self.state.term_base = owner.term_base;
        self.provenance.log = Some(owner.log.clone());
        self.changed = true;
        Ok(())
    }

    /// Stores terms that the file may lack: a term without writes leaves no entry. Outside a transaction.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] if the file has one of them with another base; then the file is unchanged.
    pub fn inherit(&mut self, terms: &[TermBase]) -> Result<(), DatabaseError> {
        if terms.is_empty() {
            return Ok(());
        }
        self.in_transaction(|database| {
            terms.iter().try_for_each(|&term| database.record_term(term))?;
            database.prune_terms()
        })
    }

    /// The state continues under a higher term, which begins here.
    pub(super) fn enter_term(&mut self, term: Term) -> Result<(), DatabaseError> {
        self.record_term(TermBase { term, term_base: self.state.rev })?;
        self.prune_terms()?;
        self.state.term = term;
        self.state.term_base = self.state.rev;
        Ok(())
    }

    fn record_term(&self, TermBase { term, term_base }: TermBase) -> Result<(), DatabaseError> {
        match self.base_of(term)? {
            Some(known) if known != term_base => {
                Err(DatabaseError::Diverged(format!("{term} begins after {known}, not after {term_base}")))
            }
            Some(_) => Ok(()),
            None => {
                self.connection
                    .prepare_cached("INSERT INTO terms(term, term_base) VALUES (?1, ?2)")?
                    .execute(params![to_sql(term.get()), to_sql(term_base.get())])?;
                Ok(())
            }
        }
    }

    /// The last rev that `term` inherited, if the file has that term.
    pub(super) fn base_of(&self, term: Term) -> Result<Option<Rev>, DatabaseError> {
        let base: Option<i64> = self
            .connection
            .prepare_cached("SELECT term_base FROM terms WHERE term = ?1")?
            .query_row([to_sql(term.get())], |row| row.get(0))
            .optional()?;
        Ok(base.map(|base| Rev::new(from_sql(base))))
    }

    fn prune_terms(&self) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached(
                "DELETE FROM terms WHERE term NOT IN (SELECT term FROM terms ORDER BY term DESC LIMIT ?1)",
            )?
            .execute([to_sql(TERM_HISTORY as u64)])?;
        Ok(())
    }

    /// Stores that everything up to `rev` is in the bucket, under `manifest`.
    ///
    /// # Errors
    /// [`DatabaseError`]; then the file is unchanged.
    pub fn set_in_bucket(&mut self, manifest: ManifestNumber, rev: Rev) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached("UPDATE meta SET manifest = ?1, bucket_rev = ?2")?
            .execute([to_sql(manifest.get()), to_sql(rev.get())])?;
        self.provenance.manifest = manifest;
        self.provenance.bucket_rev = rev;
        Ok(())
    }

    pub(super) fn in_transaction(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), DatabaseError>,
    ) -> Result<(), DatabaseError> {
        self.begin()?;
        let done = work(self).and_then(|()| self.commit());
        if done.is_err() {
            self.rollback()?;
        }
        done
    }
}
