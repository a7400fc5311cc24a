//! What has changed since a position.

use dormouse_protocol::data::{ChangesReply, ChangesRequest};
use dormouse_protocol::{Change, Op, Position};

use crate::error::Error;
use crate::subject::Handle;

/// What has changed since a position, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Changes {
    /// The way from the position asked about to `position`.
    Since {
        /// What to apply, in order: a set takes the place of whatever is at its seq and under its key. Compacted: of what
        /// was changed several times only the last state is told.
        changes: Vec<Change>,
        /// Where the subject is after them.
        position: Position,
        /// There are more changes: ask again with `position`.
        more: bool,
    },
    /// There is no way from there to here: the position never was on this subject's path, or lies too far back. Read
    /// everything, and go on from the position of the first page.
    Resync {
        /// Where the subject is now.
        position: Position,
    },
}

impl Handle {
    pub(crate) async fn changes(&self, after: Position) -> Result<Changes, Error> {
        let request = ChangesRequest { after, ..ChangesRequest::default() };
        let reply: ChangesReply = self.call(Op::Changes, &request).await?;
        let position = reply.position;
        if reply.resync {
            return Ok(Changes::Resync { position });
        }
        let mut changes = Vec::with_capacity(reply.changes.len());
        for change in reply.changes {
            changes.push(self.with_value(change).await?);
        }
        Ok(Changes::Since { changes, position, more: reply.more })
    }

    /// Fetches a value that was left out. Where the message has gone since, it stays away, and a later change tells.
    async fn with_value(&self, change: Change) -> Result<Change, Error> {
        let Change::Set(mut set) = change else { return Ok(change) };
        if set.message.value_omitted
            && let Some(whole) = self.complete(set.message.clone()).await?
        {
            set.message = whole;
        }
        Ok(Change::Set(set))
    }
}
