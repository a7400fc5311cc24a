//! Operators' calls to the coordinator. An ordinary application does not need the permission for them.

use std::sync::Arc;

use dormouse_protocol::admin::{
    Assigned, DrainReply, DrainRequest, MoveReply, MoveRequest, MovesReply, MovesRequest, RebalanceReply,
    RebalanceRequest, SubjectsReply, SubjectsRequest, TenantEntry, TenantLimitReply, TenantLimitRequest,
    TenantsReply, TenantsRequest,
};
use dormouse_protocol::fleet::{ServersReply, ServersRequest};
use dormouse_protocol::limits::MAX_PAGE_ITEMS;
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{ProtocolVersion, ServerName, Subject, TenantName};

use crate::call::{ClientShared, CoordinatorCall};
use crate::client::Client;
use crate::error::{Error, MalformedCause};
use crate::pages::{Page, PageSource, Pages};

impl Client {
    /// The servers that the coordinator knows. For operators, like all calls below.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the coordinator does not reply; [`Error::PermissionDenied`].
    pub async fn servers(&self) -> Result<ServersReply, Error> {
        let route = self.inner.prefix.admin_servers();
        self.inner.ask_coordinator(route, &ServersRequest::default(), CoordinatorCall::Query).await
    }

    /// Drains `server`: it gets no new subjects and hands over the ones that it owns, one by one. Returns
    /// when the order is stored, before it is completed: [`servers`](Self::servers) shows the progress. The
    /// order stands until [`undrain`](Self::undrain), also across restarts of the server's process.
    ///
    /// If the call is cancelled, the order may or may not be given; it can be given again.
    ///
    /// # Errors
    /// [`Error::Service`] if the coordinator knows no such server; [`Error::Deadline`] if the coordinator
    /// cannot be reached; [`Error::Indeterminate`] if it does not reply; [`Error::PermissionDenied`].
    pub async fn drain(&self, server: &ServerName) -> Result<DrainReply, Error> {
        let route = self.inner.prefix.admin_drain(server);
        self.inner.ask_coordinator(route, &DrainRequest::default(), CoordinatorCall::Order).await
    }

    /// Cancels a drain: `server` may get subjects again. Subjects that it has handed over stay on their
    /// servers.
    ///
    /// If the call is cancelled, the drain may or may not be cancelled; `undrain` can be called again.
    ///
    /// # Errors
    /// Those of [`drain`](Self::drain).
    pub async fn undrain(&self, server: &ServerName) -> Result<DrainReply, Error> {
        let route = self.inner.prefix.admin_undrain(server);
        self.inner.ask_coordinator(route, &DrainRequest::default(), CoordinatorCall::Order).await
    }

    /// The assignments of subjects to servers, in ascending order of the bytes of the subject. Lists the
    /// subjects that match `pattern` and, if `server` is set, are assigned to it; at most `limit` of them, if
    /// that is set. In the pattern, `*` matches any one token, and a final `>` matches one or more tokens.
    /// Each page shows the assignments at the time when it was read.
    ///
    /// # Errors
    /// The pages end with [`Error::Service`] if the pattern is invalid, with [`Error::Deadline`] if the
    /// coordinator does not reply, or with [`Error::PermissionDenied`].
    #[must_use]
    pub fn subjects(&self, pattern: &str, server: Option<ServerName>, limit: Option<u64>) -> Pages<Assigned> {
        let request = SubjectsRequest { pattern: pattern.to_owned(), server, ..SubjectsRequest::default() };
        let left = limit.unwrap_or(u64::MAX);
        Pages::read(&self.inner.tasks, AssignedPages { inner: Arc::clone(&self.inner), request, left })
    }

    /// Moves `subject` to the server `to`. Returns the progress of the move. A repeated call orders the move
    /// only once, and finally reports that it is done.
    ///
    /// If the call is cancelled, the move may or may not be ordered.
    ///
    /// # Errors
    /// [`Error::Service`] if the coordinator knows no such server, or the server takes no subjects; otherwise
    /// those of [`drain`](Self::drain).
    pub async fn move_subject(&self, subject: &Subject, to: &ServerName) -> Result<MoveReply, Error> {
        let request = MoveRequest { v: ProtocolVersion::default(), to: to.clone() };
        let route = self.inner.prefix.admin_move(subject);
        self.inner.ask_coordinator(route, &request, CoordinatorCall::Order).await
    }

    /// Balances the load of the servers with at most `most_moves` moves, and returns the plan. Unless
    /// `dry_run` is set, the coordinator then executes the plan at its own pace; [`moves`](Self::moves) shows
    /// the progress.
    ///
    /// If the call is cancelled, the plan may or may not be in progress.
    ///
    /// # Errors
    /// [`Error::Deadline`] if the coordinator cannot be reached; [`Error::Indeterminate`] if it does not
    /// reply, since a repeat would make another plan; [`Error::Service`]; [`Error::PermissionDenied`].
    pub async fn rebalance(&self, dry_run: bool, most_moves: u64) -> Result<RebalanceReply, Error> {
        let request = RebalanceRequest { dry_run, most_moves, ..RebalanceRequest::default() };
        let kind = if dry_run { CoordinatorCall::Query } else { CoordinatorCall::NonIdempotentOrder };
        self.inner.ask_coordinator(self.inner.prefix.admin_rebalance(), &request, kind).await
    }

    /// How many moves are in progress.
    ///
    /// Cancelling the call has no side effects.
    ///
    /// # Errors
    /// Those of [`servers`](Self::servers).
    pub async fn moves(&self) -> Result<MovesReply, Error> {
        let route = self.inner.prefix.admin_moves();
        self.inner.ask_coordinator(route, &MovesRequest::default(), CoordinatorCall::Query).await
    }

    /// The tenants with limits and the busiest tenants of each server, in ascending order of their bytes, with
    /// limits and use.
    ///
    /// # Errors
    /// The pages end with [`Error::Deadline`] if the coordinator does not reply, or with
    /// [`Error::PermissionDenied`].
    #[must_use]
    pub fn tenants(&self) -> Pages<TenantEntry> {
        let request = TenantsRequest::default();
        Pages::read(&self.inner.tasks, TenantPages { inner: Arc::clone(&self.inner), request })
    }

    /// Sets limits of `tenant`, and returns all its limits. With `clear`, the tenant then has only `limits`;
    /// otherwise the others stay. The servers apply them with their next lease.
    ///
    /// If the call is cancelled, the limits may or may not be set; it can be repeated.
    ///
    /// # Errors
    /// [`Error::Service`] for the shared tenant, and if too many tenants have limits; otherwise those of
    /// [`drain`](Self::drain).
    pub async fn limit_tenant(
        &self,
        tenant: &TenantName,
        clear: bool,
        limits: TenantLimits,
    ) -> Result<TenantLimits, Error> {
        let request =
            TenantLimitRequest { v: ProtocolVersion::default(), tenant: tenant.clone(), clear, limits };
        let route = self.inner.prefix.admin_tenant_limit();
        let reply: TenantLimitReply =
            self.inner.ask_coordinator(route, &request, CoordinatorCall::Order).await?;
        Ok(reply.limits)
    }
}

/// Reads assignments in the order of their subjects.
struct AssignedPages {
    inner: Arc<ClientShared>,
    request: SubjectsRequest,
    left: u64,
}

impl PageSource<Assigned> for AssignedPages {
    async fn next_page(&mut self) -> Result<Page<Assigned>, Error> {
        if self.left == 0 {
            return Ok(Page { items: Vec::new(), last: true, position: None });
        }
        self.request.limit = self.left.min(MAX_PAGE_ITEMS as u64);
        let route = self.inner.prefix.admin_subjects();
        let mut reply: SubjectsReply =
            self.inner.ask_coordinator(route, &self.request, CoordinatorCall::Query).await?;
        // A page over the requested limit does not extend the list.
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

/// Reads tenants in the order of their names.
struct TenantPages {
    inner: Arc<ClientShared>,
    request: TenantsRequest,
}

impl PageSource<TenantEntry> for TenantPages {
    async fn next_page(&mut self) -> Result<Page<TenantEntry>, Error> {
        let route = self.inner.prefix.admin_tenants();
        let reply: TenantsReply =
            self.inner.ask_coordinator(route, &self.request, CoordinatorCall::Query).await?;
        if reply.cursor.is_some() && reply.cursor <= self.request.after {
            return Err(Error::Malformed { cause: MalformedCause::StuckCursor });
        }
        let last = reply.cursor.is_none();
        self.request.after = reply.cursor;
        Ok(Page { items: reply.tenants, last, position: None })
    }
}
