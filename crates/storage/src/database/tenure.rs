//! Under whose claim a file is, and which terms led there.

use dormouse_protocol::limits::REMEMBERED_TERMS;
use dormouse_protocol::{LogId, Rev, Seq, Term};
use rusqlite::{OptionalExtension, params};

use super::{Database, DatabaseError, from_sql, to_sql};
use crate::keys::ManifestNumber;
use crate::manifest::{PastLife, TermBase};
use crate::mutations::{Mutation, is_there};

/// Where a subject without a snapshot begins: at zero, or where its destroyed predecessor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The rev it inherits.
    pub rev: Rev,
    /// The first seq it hands out.
    pub next_seq: Seq,
    /// What is remembered of that predecessor.
    pub past: Option<PastLife>,
}

impl Default for Origin {
    fn default() -> Self {
        Self { rev: Rev::new(0), next_seq: Seq::new(1), past: None }
    }
}

/// Under what claim a file is served, and how much of it is in the bucket's snapshot and deltas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenure {
    /// The log of the process that serves it.
    pub log: LogId,
    /// The term.
    pub term: Term,
    /// The last rev that the term inherited.
    pub term_base: Rev,
    /// The newest manifest.
    pub manifest: ManifestNumber,
    /// The rev up to which that manifest's snapshot and deltas lead.
    pub bucket_rev: Rev,
}

/// What a file says about itself beside the subject's state. A file that was copied from the bucket says what it said
/// when it was copied there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The log of the process that last served it; `None` in a file that has not been claimed.
    pub log: Option<LogId>,
    /// The newest manifest that process knew to be its own; 0 in a file that has not been claimed.
    pub manifest: ManifestNumber,
    /// The last rev that process knew to be in a snapshot or delta.
    pub bucket_rev: Rev,
}

impl Database {
    /// Takes a claim down before the first change under it. Survives the process when the call returns. Outside a
    /// transaction.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] when the term cannot follow from the state, otherwise what SQLite says; then the
    /// file is as before.
    pub fn take_over(&mut self, tenure: &Tenure) -> Result<(), DatabaseError> {
        self.in_transaction(|database| database.write_tenure(tenure))
    }

    fn write_tenure(&mut self, tenure: &Tenure) -> Result<(), DatabaseError> {
        if tenure.term < self.state.term || tenure.term_base > self.state.rev {
            return Err(DatabaseError::Diverged(format!(
                "{} that begins after {} where the state is {}",
                tenure.term,
                tenure.term_base,
                self.state.position()
            )));
        }
        if is_there(Mutation::SessionsForgotten) {
            self.connection
                .execute_batch("DELETE FROM results; DELETE FROM sessions; DELETE FROM msg_ids")?;
        }
        self.note_term(TermBase { term: tenure.term, term_base: tenure.term_base })?;
        self.forget_old_terms()?;
        self.connection.execute("UPDATE meta SET log = ?1", [tenure.log.to_string()])?;
        self.set_in_bucket(tenure.manifest, tenure.bucket_rev)?;
        self.state.term = tenure.term;
        self.state.term_base = tenure.term_base;
        self.provenance.log = Some(tenure.log.clone());
        self.changed = true;
        Ok(())
    }

    /// Takes note of terms that the file may not know of: a term under which nothing was written leaves no entry.
    /// Outside a transaction.
    ///
    /// # Errors
    /// [`DatabaseError::Diverged`] when the file knows one of them with another base; then the file is as before.
    pub fn inherit(&mut self, terms: &[TermBase]) -> Result<(), DatabaseError> {
        if terms.is_empty() {
            return Ok(());
        }
        self.in_transaction(|database| {
            terms.iter().try_for_each(|&term| database.note_term(term))?;
            database.forget_old_terms()
        })
    }

    /// The state goes on under a higher term, which begins here.
    pub(super) fn enter_term(&mut self, term: Term) -> Result<(), DatabaseError> {
        self.note_term(TermBase { term, term_base: self.state.rev })?;
        self.forget_old_terms()?;
        self.state.term = term;
        self.state.term_base = self.state.rev;
        Ok(())
    }

    fn note_term(&self, TermBase { term, term_base }: TermBase) -> Result<(), DatabaseError> {
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

    /// The last rev that `term` inherited, if the file knows that term.
    pub(super) fn base_of(&self, term: Term) -> Result<Option<Rev>, DatabaseError> {
        let base: Option<i64> = self
            .connection
            .prepare_cached("SELECT term_base FROM terms WHERE term = ?1")?
            .query_row([to_sql(term.get())], |row| row.get(0))
            .optional()?;
        Ok(base.map(|base| Rev::new(from_sql(base))))
    }

    fn forget_old_terms(&self) -> Result<(), DatabaseError> {
        self.connection
            .prepare_cached(
                "DELETE FROM terms WHERE term NOT IN (SELECT term FROM terms ORDER BY term DESC LIMIT ?1)",
            )?
            .execute([to_sql(REMEMBERED_TERMS as u64)])?;
        Ok(())
    }

    /// Takes note that everything up to `rev` is in the bucket, by `manifest`.
    ///
    /// # Errors
    /// [`DatabaseError`]; then the file says as before.
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
