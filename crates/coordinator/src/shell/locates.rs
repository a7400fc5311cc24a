//! The look-ups of clients: from the subscription into the queue of their tenant.
//!
//! Taking a look-up in costs little: its route and its caller name the tenant, and a look-up above the share of the tenant
//! is refused before its body is decoded. So the subscription is emptied faster than look-ups are decided, and a flood of
//! one tenant does not fill it.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{EndpointStats, Incoming, Requests, SubscribeError};
use dormouse_protocol::{ErrorReply, OverloadCause, Prefix, TenantName, TenantRule};
use futures::FutureExt;

use super::inbox::{EndpointFacts, ListenContext, subscribe};
use super::requests::{self, MachineRequest};
use crate::locate_queue::{LocateCounts, LocateQueue, TenantRecord};

/// The maximum number of look-ups that are decided in a batch. The batch reads their assignments at once.
pub(super) const LOCATE_BATCH: usize = 256;

/// The maximum number of look-ups that a batch takes in.
pub(super) const LOCATE_INTAKE: usize = 2_048;

/// The endpoint for look-ups.
pub(super) struct LocateInbox {
    requests: Requests,
    arrived: Vec<Incoming>,
    queue: LocateQueue<MachineRequest>,
    rule: TenantRule,
    /// The drops of the subscription that are counted.
    counted_drops: u64,
}

impl LocateInbox {
    pub(super) async fn open(context: &ListenContext<'_>) -> Result<Self, SubscribeError> {
        let requests = subscribe(context, context.prefix.locate_all()).await?;
        let (queue, rule) = (LocateQueue::default(), context.tenant_rule);
        Ok(Self { requests, arrived: Vec::new(), queue, rule, counted_drops: 0 })
    }

    /// The look-ups that the subscription has dropped, as of the last batch. They are in the [counts](Self::counts), too.
    pub(super) const fn counted_drops(&self) -> u64 {
        self.counted_drops
    }

    pub(super) fn facts(&self, prefix: &Prefix) -> EndpointFacts {
        EndpointFacts {
            name: "locate",
            pattern: prefix.locate_all(),
            stats: Arc::<EndpointStats>::clone(self.requests.stats()),
        }
    }

    /// Waits until a look-up can be taken. False if none can arrive any more. Cancelling the wait loses no look-up.
    pub(super) async fn arrival(&mut self) -> bool {
        if self.has_queued() {
            return true;
        }
        self.requests.next_many(&mut self.arrived, LOCATE_INTAKE).await > 0
    }

    /// Whether look-ups wait for their turn.
    pub(super) fn has_queued(&self) -> bool {
        !self.arrived.is_empty() || !self.queue.is_empty()
    }

    /// Takes arrived look-ups in, without waiting, and returns the next ones in the order of their tenants' turns. Both
    /// numbers are bounded.
    pub(super) fn take(&mut self, prefix: &Prefix, now: Duration) -> Vec<MachineRequest> {
        let room = LOCATE_INTAKE.saturating_sub(self.arrived.len());
        if room > 0 {
            // Without `unconstrained`, tokio's budget could report "nothing there" although requests have arrived.
            let _ =
                tokio::task::unconstrained(self.requests.next_many(&mut self.arrived, room)).now_or_never();
        }
        for incoming in std::mem::take(&mut self.arrived) {
            self.take_in(prefix, incoming, now);
        }
        let dropped = self.requests.dropped();
        self.queue.count_dropped(dropped.saturating_sub(self.counted_drops), now);
        self.counted_drops = dropped;
        std::iter::from_fn(|| self.queue.pop()).take(LOCATE_BATCH).collect()
    }

    fn take_in(&mut self, prefix: &Prefix, incoming: Incoming, now: Duration) {
        let subject = match prefix.parse_locate(incoming.route.as_str()) {
            Ok(subject) => subject,
            Err(error) => {
                let record = self.queue.record(TenantName::SHARED);
                return self.refuse(record, incoming, &requests::refuse(&error), now);
            }
        };
        let record = self.queue.record(&self.rule.tenant_text(incoming.caller.account(), &subject));
        if !self.queue.has_room(record) {
            return self.refuse(record, incoming, &OverloadCause::Lookups.into(), now);
        }
        match requests::locate(subject, &incoming) {
            Ok(input) => self.queue.push(record, MachineRequest { input, responder: incoming.responder }),
            Err(error) => self.refuse(record, incoming, &error, now),
        }
    }

    /// Replies with an error, or drops the look-up: a flood gets a bounded number of replies.
    fn refuse(&mut self, record: TenantRecord, incoming: Incoming, error: &ErrorReply, now: Duration) {
        if self.queue.may_refuse(record, now) {
            incoming.responder.error(error);
        }
    }

    /// Counts messages that the NATS library dropped for lack of room: look-ups are by far the most.
    pub(super) fn count_dropped(&mut self, number: u64, now: Duration) {
        self.queue.count_dropped(number, now);
    }

    /// Forgets idle tenants.
    pub(super) fn forget_idle(&mut self, now: Duration) {
        self.queue.forget_idle(now);
    }

    pub(super) fn counts(&self) -> LocateCounts {
        self.queue.counts()
    }
}
