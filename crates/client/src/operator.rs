//! What operators ask of the coordinator. An ordinary application need not be permitted to.

use std::sync::Arc;

use dormouse_protocol::admin::{
    Assigned, DrainReply, DrainRequest, MoveReply, MoveRequest, MovesReply, MovesRequest, RebalanceReply,
    RebalanceRequest, SubjectsReply, SubjectsRequest,
};
use dormouse_protocol::fleet::{ServersReply, ServersRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::{ProtocolVersion, ServerName, Subject};

use crate::call::{Asking, Inner};
use crate::client::Client;
use crate::error::{Error, MalformedCause};
use crate::pages::{Page, Pages, Source};

impl Client {
    /// The servers that the coordinator knows. For operators, as everything below.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the coordinator does not answer; [`Error::PermissionDenied`].
    pub async fn servers(&self) -> Result<ServersReply, Error> {
        let route = self.inner.prefix.admin_servers();
        self.inner.ask_coordinator(route, &ServersRequest::default(), Asking::Question).await
    }

    /// Has `server` emptied: it is given nothing new and hands over what it has, subject by subject. Returns when the
    /// order is remembered, not when it has been carried out: [`servers`](Self::servers) tells how far it has come. The
    /// order stands until [`undrain`](Self::undrain), whatever becomes of the server's process.
    ///
    /// Cancelling the call leaves the order given or not; it can be given again.
    ///
    /// # Errors
    /// [`Error::Service`] when the coordinator knows no such server; [`Error::Deadline`] when it cannot be asked;
    /// [`Error::Indeterminate`] when it does not answer; [`Error::PermissionDenied`].
    pub async fn drain(&self, server: &ServerName) -> Result<DrainReply, Error> {
        let route = self.inner.prefix.admin_drain(server);
        self.inner.ask_coordinator(route, &DrainRequest::default(), Asking::Order).await
    }

    /// Lets `server` take subjects again. What it has handed over stays where it is.
    ///
    /// Cancelling the call leaves the order taken back or not; it can be taken back again.
    ///
    /// # Errors
    /// As [`drain`](Self::drain).
    pub async fn undrain(&self, server: &ServerName) -> Result<DrainReply, Error> {
        let route = self.inner.prefix.admin_undrain(server);
        self.inner.ask_coordinator(route, &DrainRequest::default(), Asking::Order).await
    }

    /// Which subjects are assigned to which servers, ascending by the bytes of the subject: those that match `pattern`,
    /// in which `*` stands for any one token and a final `>` for one or more, and that `server` has, if one is named; at
    /// most `limit`, if one is set. The pages show the assignments as they were when each was read.
    ///
    /// # Errors
    /// The pages end with [`Error::Service`] when the coordinator takes the pattern for none, with [`Error::Deadline`]
    /// when it does not answer, with [`Error::PermissionDenied`].
    #[must_use]
    pub fn subjects(&self, pattern: &str, server: Option<ServerName>, limit: Option<u64>) -> Pages<Assigned> {
        let request = SubjectsRequest { pattern: pattern.to_owned(), server, ..SubjectsRequest::default() };
        let left = limit.unwrap_or(u64::MAX);
        Pages::read(&self.inner.tasks, AssignedPages { inner: Arc::clone(&self.inner), request, left })
    }

    /// Has `subject` served by the server `to`. Returns how far that has come: called again it orders nothing twice, and
    /// says at last that it is done.
    ///
    /// Cancelling the call leaves the move ordered or not.
    ///
    /// # Errors
    /// [`Error::Service`] when the coordinator knows no such server, or it takes no subjects; otherwise as
    /// [`drain`](Self::drain).
    pub async fn move_subject(&self, subject: &Subject, to: &ServerName) -> Result<MoveReply, Error> {
        let request = MoveRequest { v: ProtocolVersion::default(), to: to.clone() };
        let route = self.inner.prefix.admin_move(subject);
        self.inner.ask_coordinator(route, &request, Asking::Order).await
    }

    /// Evens out what the servers have to do by at most `most_moves` moves, and returns the plan; unless it is a dry run
    /// the coordinator carries it out at its own pace: [`moves`](Self::moves) tells how far it has come.
    ///
    /// Cancelling the call leaves the plan under way or not.
    ///
    /// # Errors
    /// [`Error::Deadline`] when the coordinator cannot be asked; [`Error::Indeterminate`] when it does not answer: asked
    /// again it would make another plan; [`Error::Service`]; [`Error::PermissionDenied`].
    pub async fn rebalance(&self, dry_run: bool, most_moves: u64) -> Result<RebalanceReply, Error> {
        let request = RebalanceRequest { dry_run, most_moves, ..RebalanceRequest::default() };
        let asking = if dry_run { Asking::Question } else { Asking::OrderOnce };
        self.inner.ask_coordinator(self.inner.prefix.admin_rebalance(), &request, asking).await
    }

    /// How many moves are under way.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// As [`servers`](Self::servers).
    pub async fn moves(&self) -> Result<MovesReply, Error> {
        let route = self.inner.prefix.admin_moves();
        self.inner.ask_coordinator(route, &MovesRequest::default(), Asking::Question).await
    }
}

/// Reads assignments in the order of their subjects.
struct AssignedPages {
    inner: Arc<Inner>,
    request: SubjectsRequest,
    left: u64,
}

impl Source<Assigned> for AssignedPages {
    async fn next_page(&mut self) -> Result<Page<Assigned>, Error> {
        if self.left == 0 {
            return Ok(Page { items: Vec::new(), last: true, position: None });
        }
        self.request.limit = self.left.min(MAX_PAGE_ITEMS as u64);
        let route = self.inner.prefix.admin_subjects();
        let mut reply: SubjectsReply =
            self.inner.ask_coordinator(route, &self.request, Asking::Question).await?;
        // A page that is longer than asked for does not make the list so.
        reply.subjects.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= reply.subjects.len() as u64;
        if reply.cursor.is_some() && reply.cursor <= self.request.after {
            return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        let last = reply.cursor.is_none() || self.left == 0;
        self.request.after = reply.cursor;
        Ok(Page { items: reply.subjects, last, position: None })
    }
}
