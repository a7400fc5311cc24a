//! The causes of [`ErrorCode::Overloaded`], each with its text and its retry delay: one policy for all servers and the
//! coordinator.

use std::time::Duration;

use crate::error::{ErrorCode, ErrorReply};

/// Shortest and longest retry delay if unshipped writes fill the log.
const UNSHIPPED_WAIT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// Why a server or the coordinator rejects a request as `overloaded`.
///
/// The retry delay follows the time after which the cause usually has gone: tens of milliseconds for a queue that one
/// task empties, seconds for work that waits for the bucket or for other servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OverloadCause {
    /// The unanswered requests of a server use up its budget. Requests are short.
    RequestsInFlight,
    /// The unanswered requests of one tenant, or of one of its subjects, use up its share.
    TenantShare,
    /// The open subjects of a tenant store as many bytes as an operator allows.
    TenantStoredBytes,
    /// The queued replies of an endpoint use up their bytes: its NATS connection is slow.
    ReplyQueueBytes,
    /// The queue of one subject is full. Its task empties the queue in bursts.
    SubjectQueue,
    /// The task of the subject has ended, but its file is still in use. The file is released within milliseconds.
    SubjectClosing,
    /// The server has its maximum number of open subjects. It asks idle subjects to close, which is quick.
    OpenSubjects,
    /// Too many subjects are being opened. An open reads from the bucket.
    SubjectOpens,
    /// Too many subjects publish a manifest. A publication writes to the bucket, and more than once.
    SubjectPublications,
    /// Too many changes of one subject are queued before they are planned.
    QueuedChanges,
    /// The pool that reads the files of subjects has no room. A job in it is short.
    FilePool,
    /// Too many changes of one subject are planned and wait for their level.
    ChangesBelowLevel,
    /// Too many reads of one subject wait for a read barrier.
    PendingReads,
    /// The unshipped writes of the log use up their bytes. The next segment makes room.
    UnshippedBytes {
        /// The interval at which the log ships segments.
        ship_interval: Duration,
    },
    /// Too many bytes of large values are in transfer between the server and the bucket.
    ValueBytesInTransfer,
    /// The server, or the subject's share of it, has no room for a further upload. An upload lasts seconds.
    Uploads,
    /// The server, or the subject's share of it, has no room for the bytes of the upload.
    UploadBytes,
    /// The chunks that wait for earlier chunks use up their bytes.
    HeldChunkBytes,
    /// Too many chunks of one upload wait for earlier chunks.
    HeldChunks,
    /// Too many copies of one chunk wait for earlier chunks.
    ChunkCopies,
    /// Too many look-ups of one tenant wait at the coordinator. It decides them within a tenth of a second.
    Lookups,
    /// The coordinator already reads its maximum number of lists for operators.
    AdminLists,
    /// The maximum number of moves is under way. A move lasts about a second.
    MovesUnderWay,
    /// The table of pending moves is full. The coordinator starts 50 of them per second.
    PendingMoves,
}

impl OverloadCause {
    /// All causes, for figures per cause.
    pub const ALL: [Self; 24] = [
        Self::RequestsInFlight,
        Self::TenantShare,
        Self::TenantStoredBytes,
        Self::ReplyQueueBytes,
        Self::SubjectQueue,
        Self::SubjectClosing,
        Self::OpenSubjects,
        Self::SubjectOpens,
        Self::SubjectPublications,
        Self::QueuedChanges,
        Self::FilePool,
        Self::ChangesBelowLevel,
        Self::PendingReads,
        Self::UnshippedBytes { ship_interval: Duration::ZERO },
        Self::ValueBytesInTransfer,
        Self::Uploads,
        Self::UploadBytes,
        Self::HeldChunkBytes,
        Self::HeldChunks,
        Self::ChunkCopies,
        Self::Lookups,
        Self::AdminLists,
        Self::MovesUnderWay,
        Self::PendingMoves,
    ];

    /// The name of the cause in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RequestsInFlight => "requests_in_flight",
            Self::TenantShare => "tenant_share",
            Self::TenantStoredBytes => "tenant_stored_bytes",
            Self::ReplyQueueBytes => "reply_queue_bytes",
            Self::SubjectQueue => "subject_queue",
            Self::SubjectClosing => "subject_closing",
            Self::OpenSubjects => "open_subjects",
            Self::SubjectOpens => "subject_opens",
            Self::SubjectPublications => "subject_publications",
            Self::QueuedChanges => "queued_changes",
            Self::FilePool => "file_pool",
            Self::ChangesBelowLevel => "changes_below_level",
            Self::PendingReads => "pending_reads",
            Self::UnshippedBytes { .. } => "unshipped_bytes",
            Self::ValueBytesInTransfer => "value_bytes_in_transfer",
            Self::Uploads => "uploads",
            Self::UploadBytes => "upload_bytes",
            Self::HeldChunkBytes => "held_chunk_bytes",
            Self::HeldChunks => "held_chunks",
            Self::ChunkCopies => "chunk_copies",
            Self::Lookups => "lookups",
            Self::AdminLists => "admin_lists",
            Self::MovesUnderWay => "moves_under_way",
            Self::PendingMoves => "pending_moves",
        }
    }

    /// The position in [`OverloadCause::ALL`] of the cause of a reply, for the figures of the process that made it; `None`
    /// for any other reply. The text of each cause is distinct, and an error reply has no room for another field.
    #[must_use]
    pub fn index_of(reply: &ErrorReply) -> Option<usize> {
        if reply.code != ErrorCode::Overloaded {
            return None;
        }
        Self::ALL.iter().position(|cause| cause.policy().0 == reply.message)
    }

    /// The position of the cause in [`OverloadCause::ALL`]; `None` if it is not listed there.
    #[must_use]
    pub fn index(self) -> Option<usize> {
        Self::ALL.iter().position(|cause| cause.name() == self.name())
    }

    /// The text of the reply, and the retry delay.
    fn policy(self) -> (&'static str, Duration) {
        let (text, retry_after_ms) = match self {
            Self::RequestsInFlight => ("too many requests in flight", 100),
            Self::TenantShare => ("the tenant or the subject has its share of requests in flight", 100),
            Self::TenantStoredBytes => ("the tenant stores as many bytes as it may", 5_000),
            Self::ReplyQueueBytes => ("the reply queue is full", 100),
            Self::SubjectQueue => ("the subject's queue is full", 50),
            Self::SubjectClosing => ("the subject is still being closed", 50),
            Self::OpenSubjects => ("too many subjects are open", 50),
            Self::SubjectOpens => ("too many subjects are being opened", 500),
            Self::SubjectPublications => ("too many subjects are being published", 1_000),
            Self::QueuedChanges => ("too many changes of the subject wait", 100),
            Self::FilePool => ("too many reads of local files", 50),
            Self::ChangesBelowLevel => ("too many changes of the subject wait for their durability", 50),
            Self::PendingReads => ("too many reads wait for the bucket", 100),
            Self::UnshippedBytes { ship_interval } => {
                let [shortest, longest] = UNSHIPPED_WAIT;
                return ("unshipped write limit reached", ship_interval.clamp(shortest, longest));
            }
            Self::ValueBytesInTransfer => ("too many bytes of large values in transfer", 200),
            Self::Uploads => ("too many uploads in progress", 1_000),
            Self::UploadBytes => ("too many bytes of uploads in progress", 1_000),
            Self::HeldChunkBytes => ("too many bytes of chunks wait for earlier chunks", 1_000),
            Self::HeldChunks => ("too many chunks wait", 1_000),
            Self::ChunkCopies => ("the chunk waits for earlier chunks", 1_000),
            Self::Lookups => ("too many look-ups of the tenant wait", 200),
            Self::AdminLists => ("too many lists are being read", 200),
            Self::MovesUnderWay => ("too many moves are under way", 1_000),
            Self::PendingMoves => ("too many moves are pending", 5_000),
        };
        (text, Duration::from_millis(retry_after_ms))
    }

    /// The retry delay in milliseconds.
    #[must_use]
    pub fn retry_after_ms(self) -> u64 {
        let (_, delay) = self.policy();
        u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
    }
}

impl From<OverloadCause> for ErrorReply {
    /// [`ErrorCode::Overloaded`] with the text and the retry delay of the cause.
    fn from(cause: OverloadCause) -> Self {
        let (text, _) = cause.policy();
        Self { retry_after_ms: Some(cause.retry_after_ms()), ..Self::new(ErrorCode::Overloaded, text) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each cause has a name of its own, and its reply leads back to it.
    #[test]
    fn overload_causes_have_distinct_names() {
        let names: BTreeSet<_> = OverloadCause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(names.len(), OverloadCause::ALL.len());
        for (position, cause) in OverloadCause::ALL.into_iter().enumerate() {
            assert_eq!(cause.index(), Some(position));
            assert_eq!(OverloadCause::index_of(&cause.into()), Some(position), "{}", cause.name());
        }
        assert_eq!(OverloadCause::index_of(&ErrorReply::unavailable("too many subjects are open")), None);
    }

    /// The reply to an overload has the code, the text and the delay of its cause.
    #[test]
    fn overload_reply_has_text_and_delay_of_cause() {
        let reply = ErrorReply::from(OverloadCause::PendingMoves);
        assert_eq!(reply, ErrorReply::overloaded("too many moves are pending", 5_000));
    }

    /// The retry delay of a full log is the ship interval, from 50 ms to 5 s.
    #[test]
    fn overload_delay_of_full_log_follows_ship_interval() {
        for (interval_ms, delay_ms) in [(1, 50), (200, 200), (60_000, 5_000)] {
            let ship_interval = Duration::from_millis(interval_ms);
            assert_eq!(OverloadCause::UnshippedBytes { ship_interval }.retry_after_ms(), delay_ms);
        }
    }
}
