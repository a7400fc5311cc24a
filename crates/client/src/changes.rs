//! The changes after a position.

use dormouse_protocol::data::{ChangesReply, ChangesRequest};
use dormouse_protocol::{Change, Op, Position};

use crate::error::Error;
use crate::subject::Handle;

/// The changes after a position, if the server still has them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Changes {
    /// The changes from the requested position to `position`.
    Since {
        /// The changes, to be applied in order: a set replaces the message at its seq and the message under
        /// its key. The changes are compacted: if something changed several times, only its last state is
        /// included.
        changes: Vec<Change>,
        /// The position of the subject after these changes.
        position: Position,
        /// There are more changes: call again with `position`.
        more: bool,
    },
    /// The server cannot list the changes: the position was never on this subject's history, or is too old.
    /// Read everything, and continue from the position of the first page.
    Resync {
        /// The current position of the subject.
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

    /// Fetches a value that was omitted. If the message was removed since, the value stays omitted, and a
    /// later change reports the removal.
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
