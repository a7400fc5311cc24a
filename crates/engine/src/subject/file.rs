//! The local file of an open subject: work on it runs on the engine's pool, in slices, and only one piece at a time.

use std::sync::Arc;

use dormouse_metrics::StepKind;
use dormouse_protocol::ErrorReply;
use dormouse_runtime::pool::{JobKind, PoolEntry};
use dormouse_subject_state::database::{ApplyTransaction, Database, DatabaseError, SLICE_BYTES, Slice};

use super::pipeline::APPLY_RETRY_DELAY;
use super::serve::OpenSubject;
use crate::api::SubjectRequest;

/// The database, absent while a job of the pool uses it.
pub(super) struct DatabaseCell(Option<Database>);

impl DatabaseCell {
    pub(super) const fn new(database: Database) -> Self {
        Self(Some(database))
    }

    pub(super) fn get(&mut self) -> &mut Database {
        // `lend` puts it back before it returns. A task that panicked in between is not polled again, and no future that
        // lends it is cancelled.
        self.0.as_mut().expect("the database is present outside lend")
    }

    /// Takes the database out permanently.
    pub(super) const fn take(&mut self) -> Option<Database> {
        self.0.take()
    }

    /// Lends the database to one job. Must not be cancelled.
    async fn lend<T: Send + 'static>(
        &mut self,
        entry: PoolEntry,
        kind: JobKind,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        let mut database = self.0.take().expect("the database is present outside lend");
        let job = entry.run(kind, move || {
            let done = work(&mut database);
            (database, done)
        });
        let (database, done) = job.await;
        self.0 = Some(database);
        done
    }
}

impl OpenSubject<'_> {
    /// Runs one call on the file that cannot be divided. Must not be cancelled.
    pub(super) async fn run_indivisible<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        let entry = self.shared.pool.reserve_internal(self.tenant.get()).await;
        self.file.lend(entry, JobKind::Indivisible, work).await
    }

    /// Runs one slice of a request, for which `entry` is reserved. Must not be cancelled.
    pub(super) async fn run_slice<T: Send + 'static>(
        &mut self,
        entry: PoolEntry,
        work: impl FnOnce(&mut Database) -> T + Send + 'static,
    ) -> T {
        self.file.lend(entry, JobKind::Slice, work).await
    }

    /// Acknowledges the changes that have reached their level, and applies them to the file. Must not be cancelled.
    pub(super) async fn advance(&mut self) -> Result<(), DatabaseError> {
        while self.acknowledge() {
            tokio::task::yield_now().await;
        }
        self.apply().await
    }

    /// Applies the backlog to the file, as far as the file can be written. The page that is being read is completed
    /// first: it reflects one state. Must not be cancelled.
    pub(super) async fn apply(&mut self) -> Result<(), DatabaseError> {
        self.finish_page().await;
        let now = self.shared.env.boot();
        while let Some(transaction) = self.pipeline.begin_apply(now) {
            let (transaction, result) = self.apply_transaction(transaction).await;
            let (subject, database) = (self.subject, self.file.get());
            let applied = self.pipeline.end_apply(subject, database, transaction, result, now);
            self.count_backlog();
            self.written_bytes += applied?;
        }
        Ok(())
    }

    /// Applies one transaction. What fits one slice is applied in place: a switch of threads costs more.
    async fn apply_transaction(
        &mut self,
        mut transaction: ApplyTransaction,
    ) -> (ApplyTransaction, Result<(), DatabaseError>) {
        let mut in_place = transaction.fits_slice();
        loop {
            let result;
            (transaction, result) = if in_place {
                let _step = self.shared.step(StepKind::Apply);
                let result = transaction.apply_slice(self.file.get(), &mut Slice::new());
                (transaction, result)
            } else {
                let entry = self.shared.pool.reserve_internal(self.tenant.get()).await;
                let shared = Arc::clone(self.shared);
                let work = move |database: &mut Database| {
                    let _step = shared.step(StepKind::Apply);
                    let result = transaction.apply_slice(database, &mut Slice::new());
                    (transaction, result)
                };
                self.file.lend(entry, JobKind::Slice, work).await
            };
            match result {
                Ok(true) => return (transaction, Ok(())),
                Ok(false) => in_place = false,
                Err(error) => return (transaction, Err(error)),
            }
        }
    }

    /// Deletes one slice of the rows of removed messages, if any are left and no attempt has just failed. The caller serves
    /// other requests before the next slice. Must not be cancelled.
    ///
    /// # Errors
    /// The file is unusable.
    pub(super) async fn delete_hidden_rows(&mut self) -> Result<(), DatabaseError> {
        let now = self.shared.env.boot();
        if !self.file.get().has_hidden_rows() || self.deletion_retry_at > now {
            return Ok(());
        }
        match self.delete_hidden_slice().await {
            Ok(_) => Ok(()),
            Err(error) if error.is_unfit_file() => Err(error),
            Err(error) => {
                tracing::warn!(subject = %self.subject, %error, "removed rows not deleted, retrying");
                self.deletion_retry_at = now + APPLY_RETRY_DELAY;
                Ok(())
            }
        }
    }

    /// Deletes all rows of removed messages, in slices: a snapshot has none. Must not be cancelled.
    pub(super) async fn delete_all_hidden_rows(&mut self) -> Result<(), DatabaseError> {
        while self.file.get().has_hidden_rows() {
            self.delete_hidden_slice().await?;
        }
        Ok(())
    }

    async fn delete_hidden_slice(&mut self) -> Result<bool, DatabaseError> {
        let entry = self.shared.pool.reserve_internal(self.tenant.get()).await;
        self.written_bytes += SLICE_BYTES;
        let shared = Arc::clone(self.shared);
        let work = move |database: &mut Database| {
            let _step = shared.step(StepKind::Delete);
            database.delete_hidden_rows()
        };
        self.file.lend(entry, JobKind::Slice, work).await
    }

    /// Counts what the first queued request, a `delete_all`, needs. If the file cannot be read, the request fails. Must not
    /// be cancelled.
    pub(super) async fn count_ahead(&mut self) {
        let Some(SubjectRequest::DeleteAll(request)) = self.writes.front().map(|front| &front.request) else {
            return;
        };
        let request = request.clone();
        let counted = self.run_indivisible(move |database| database.count_ahead(&request)).await;
        if let Err(reply) = counted
            && let Some(submission) = self.writes.pop_front()
        {
            (submission.respond)(Err(reply));
        }
    }

    /// The reply to a read whose file lacks acknowledged changes.
    pub(super) fn stalled_reply(&self) -> ErrorReply {
        let cannot = || ErrorReply::unavailable("the local file cannot be written");
        self.pipeline.stalled.clone().unwrap_or_else(cannot)
    }
}
