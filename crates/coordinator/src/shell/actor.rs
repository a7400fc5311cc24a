//! One run of the coordinator.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, BusEvent, Outgoing, Responder};
use dormouse_metrics::StepKind;
use dormouse_protocol::admin::{RebalanceRequest, SubjectsReply};
use dormouse_protocol::fleet::{Acknowledged, GoneAnnouncement};
use dormouse_protocol::{
    ErrorReply, Incarnation, OverloadCause, Prefix, ProtocolVersion, Route, ServerName, Subject, encode,
};
use dormouse_runtime::{Env, Stop};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use tokio::sync::{broadcast, oneshot};
use tokio::time::MissedTickBehavior;

use super::errors::RunError;
use super::inbox::{EndpointFacts, HeartbeatBatch, RequestBatch, RequestInbox};
use super::locates::LOCATE_BATCH;
use super::lookup::AssignmentReader;
use super::requests::{AdminRequest, DecodedRequest, MachineRequest};
use super::status::StatusReporter;
use crate::locate_queue::MAX_QUEUED;
use crate::machine::{
    Candidates, CoordinatorInput, CoordinatorMachine, CoordinatorReply, Effects, GoneProcess, GoneReason,
    OperatorEvent,
};
use crate::store::{AssignmentWindow, Store, StoreChange, StoreError};

/// The maximum number of concurrent lookups for operators.
const LOOKUPS_AT_ONCE: usize = 4;

/// The limit for the bytes of a list in a reply to an operator; half of the largest payload if that is less.
const LIST_BYTES: usize = 512 * 1_024;

/// The owner of the machine and the store during a run.
pub(super) struct Actor {
    machine: CoordinatorMachine,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    env: Env,
    prefix: Prefix,
    inbox: RequestInbox,
    endpoints: Vec<EndpointFacts>,
    window: AssignmentWindow,
    events: broadcast::Receiver<BusEvent>,
    status: StatusReporter,
    lookups: FuturesUnordered<BoxFuture<'static, Result<LookupResult, StoreError>>>,
    /// Requests whose lookup is complete.
    ready: Vec<MachineRequest>,
    /// The position after which the next rebalancing scans for candidates.
    scan_cursor: Option<Subject>,
}

/// The result of a lookup, with the responder of its request.
enum LookupResult {
    Page(SubjectsReply, Responder),
    Candidates {
        request: RebalanceRequest,
        candidates: Candidates,
        scan_cursor: Option<Subject>,
        responder: Responder,
    },
}

/// Why a run ended.
pub(super) enum RunEnd {
    /// The stop signal was given.
    Stopped,
    /// An earlier run is also active.
    StoodDown(Incarnation),
}

impl Actor {
    #[expect(clippy::too_many_arguments)] // The parts are put together at one call site only.
    pub(super) fn new(
        machine: CoordinatorMachine,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        env: Env,
        prefix: Prefix,
        inbox: RequestInbox,
        window: AssignmentWindow,
        events: broadcast::Receiver<BusEvent>,
        watch: StatusReporter,
    ) -> Self {
        let endpoints = inbox.stats(&prefix);
        let (lookups, ready, scan_cursor) = (FuturesUnordered::new(), Vec::new(), None);
        Self {
            machine,
            store,
            bus,
            env,
            prefix,
            inbox,
            endpoints,
            window,
            events,
            status: watch,
            lookups,
            ready,
            scan_cursor,
        }
    }

    /// Runs until the stop signal, or until an earlier run announces itself.
    pub(super) async fn run(
        mut self,
        stop: &Stop,
        mut earlier: oneshot::Receiver<Incarnation>,
        tick: Duration,
    ) -> Result<RunEnd, RunError> {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut events_open = true;
        loop {
            let mut event = None;
            // The inbox is last: requests may arrive without a pause, and each batch empties it, regardless of its cause.
            tokio::select! {
                biased;
                // At once, without further replies: the other coordinator is active and answers the requests.
                Ok(other) = &mut earlier, if !earlier.is_terminated() => return Ok(RunEnd::StoodDown(other)),
                () = stop.requested() => {
                    // Requests that have arrived are still answered: their senders have already waited. Each batch takes
                    // more look-ups out of the queues than arrive meanwhile, or refuses them.
                    self.batch(None).await?;
                    for _ in 0..MAX_QUEUED / LOCATE_BATCH {
                        if !self.inbox.locates().has_queued() {
                            break;
                        }
                        self.batch(None).await?;
                    }
                    return Ok(RunEnd::Stopped);
                }
                bus_event = self.events.recv(), if events_open => {
                    events_open = !matches!(bus_event, Err(broadcast::error::RecvError::Closed));
                    event = self.connection_input(&bus_event);
                }
                _ = ticks.tick() => self.inbox.locates().forget_idle(self.env.boot()),
                Some(result) = self.lookups.next() => self.finish_lookup(result?),
                open = self.inbox.arrival() => if !open { return Err(RunError::Unreachable) },
            }
            self.batch(event).await?;
        }
    }

    /// The input of the machine for an event of the connection.
    fn connection_input(
        &mut self,
        bus_event: &Result<BusEvent, broadcast::error::RecvError>,
    ) -> Option<CoordinatorInput> {
        match bus_event {
            Ok(BusEvent::Connected) => Some(CoordinatorInput::Connected),
            Ok(BusEvent::Disconnected) => Some(CoordinatorInput::Disconnected),
            Ok(BusEvent::SlowConsumer(None)) => {
                self.inbox.locates().count_dropped(1, self.env.boot());
                None
            }
            Ok(_) | Err(broadcast::error::RecvError::Closed) => None,
            // Events were missed; the current state is sufficient.
            Err(broadcast::error::RecvError::Lagged(_)) if self.bus.is_connected() => {
                Some(CoordinatorInput::Connected)
            }
            Err(broadcast::error::RecvError::Lagged(_)) => Some(CoordinatorInput::Disconnected),
        }
    }

    /// Decides all arrived requests, stores the changes, then sends the replies, announcements and orders.
    async fn batch(&mut self, event: Option<CoordinatorInput>) -> Result<(), StoreError> {
        let now = self.env.boot();
        self.answer_heartbeats(now, &HashSet::new());
        let RequestBatch { mut asked, lookups } = self.inbox.take(&self.prefix, now);
        asked.append(&mut self.ready);
        for lookup in lookups {
            self.start_lookup(lookup);
        }
        self.read_ahead(&asked).await?;
        let now = self.env.boot();
        // There is a tick only if all arrived heartbeats are read, so no server with an unread heartbeat is declared
        // dead. Other unread requests do not delay the tick: clients may send any number of locates.
        let tick = self.answer_heartbeats(now, &HashSet::new()).then_some(CoordinatorInput::Tick);
        let mut changes = Vec::new();
        let (mut gone, mut orders, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let mut answers = Vec::with_capacity(asked.len());
        let mut apply = |input: CoordinatorInput, responder: Option<Responder>| {
            let effects = self.machine.apply(input, now, &self.window);
            effects.changes.iter().for_each(|change| self.window.note(change));
            let Effects { changes: new_changes, answer, gone: ended, orders: ordered, events: new } = effects;
            changes.extend(new_changes);
            gone.extend(ended);
            orders.extend(ordered);
            events.extend(new);
            answers.extend(responder.zip(answer));
        };
        if let Some(event) = event {
            apply(event, None);
        }
        for MachineRequest { input, responder } in asked {
            apply(input, Some(responder));
        }
        if let Some(tick) = tick {
            apply(tick, None);
        }
        let decided = self.env.boot();
        self.status.instruments().steps.observe(StepKind::Decide, decided.saturating_sub(now), decided);
        log_events(&changes, &gone, &events);
        if !changes.is_empty() {
            let unflushed = changes.iter().filter_map(server_of).cloned().collect();
            let flushed = commit(self.env.clone(), Arc::clone(&self.store), changes);
            self.while_connected(&unflushed, flushed).await?;
            self.status.instruments().commits.observe(self.env.boot().saturating_sub(decided));
        }
        for (responder, answer) in answers {
            send(responder, answer);
        }
        for GoneProcess { log, .. } in gone {
            let announcement = GoneAnnouncement { v: ProtocolVersion::CURRENT, log };
            publish(&*self.bus, self.prefix.gone(), &announcement).await;
        }
        for order in orders {
            publish(&*self.bus, self.prefix.order(order.log.server()), &order).await;
        }
        let locates = self.inbox.locate_counts();
        self.status.set_active(&self.machine, self.window.assigned(), locates, &self.endpoints);
        self.status.note_drops(self.inbox.other_drops(&*self.bus));
        Ok(())
    }

    /// Answers the heartbeats that have arrived, at `now`, except those of servers in `unflushed`. Returns false if more
    /// heartbeats may be waiting.
    fn answer_heartbeats(&mut self, now: Duration, unflushed: &HashSet<ServerName>) -> bool {
        let HeartbeatBatch { arrived, complete: all } = self.inbox.heartbeats(&self.prefix, unflushed);
        for MachineRequest { input, responder } in arrived {
            let Effects { changes, answer, gone, .. } = self.machine.apply(input, now, &self.window);
            debug_assert!(changes.is_empty() && gone.is_empty(), "a heartbeat must not change stored state");
            if let Some(answer) = answer {
                send(responder, answer);
            }
        }
        all
    }

    /// Waits for `work` of the store, and answers heartbeats meanwhile.
    async fn while_connected<T>(
        &mut self,
        unflushed: &HashSet<ServerName>,
        work: impl Future<Output = T> + Send,
    ) -> T {
        let mut work = std::pin::pin!(work);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                more = self.inbox.fleet_arrival(), if open => open = more,
            }
            self.answer_heartbeats(self.env.boot(), unflushed);
        }
    }

    /// Starts a lookup, which runs concurrently with the batches.
    fn start_lookup(&mut self, DecodedRequest { input, responder }: DecodedRequest<AdminRequest>) {
        if self.lookups.len() >= LOOKUPS_AT_ONCE {
            return responder.error(&OverloadCause::AdminLists.into());
        }
        let reader = AssignmentReader { env: self.env.clone(), store: Arc::clone(&self.store) };
        let most_bytes = LIST_BYTES.min(self.bus.max_payload() / 2);
        match input {
            AdminRequest::Decide(input) => self.ready.push(MachineRequest { input, responder }),
            AdminRequest::Page(request) => self.lookups.push(Box::pin(async move {
                let page = reader.page(request, most_bytes).await?;
                Ok(LookupResult::Page(page, responder))
            })),
            AdminRequest::Rebalance(request) => {
                let wanted = self.machine.wanted_candidates(&self.window);
                let busy = self.machine.busy_subjects();
                let after = self.scan_cursor.clone();
                let responder = if request.dry_run { responder } else { responder.changing() };
                self.lookups.push(Box::pin(async move {
                    let (mut subjects, scan_cursor) = reader.subjects_of(wanted, after).await?;
                    subjects.extend(busy);
                    let candidates = Candidates { subjects, reply_bytes: most_bytes };
                    Ok(LookupResult::Candidates { request, candidates, scan_cursor, responder })
                }));
            }
        }
    }

    fn finish_lookup(&mut self, result: LookupResult) {
        match result {
            LookupResult::Page(mut page, responder) => {
                page.subjects.retain(|assigned| !self.machine.is_known_empty(&assigned.server));
                respond(responder, encode_reply(&page));
            }
            LookupResult::Candidates { request, candidates, scan_cursor, responder } => {
                self.scan_cursor = scan_cursor;
                let input = CoordinatorInput::Rebalance(request, candidates);
                self.ready.push(MachineRequest { input, responder });
            }
        }
    }

    async fn read_ahead(&mut self, asked: &[MachineRequest]) -> Result<(), StoreError> {
        let watched = self.machine.subjects_to_read();
        let subjects: BTreeSet<&Subject> =
            asked.iter().flat_map(|asked| subjects_of(&asked.input)).chain(&watched).collect();
        if subjects.is_empty() {
            self.window.set_assignments(HashMap::new());
            return Ok(());
        }
        let subjects: Vec<Subject> = subjects.into_iter().cloned().collect();
        let (env, store) = (self.env.clone(), Arc::clone(&self.store));
        let read = env.blocking(move || -> Result<HashMap<Subject, Option<ServerName>>, StoreError> {
            let assignments = store.assignments(&subjects)?;
            Ok(subjects.into_iter().zip(assignments).collect())
        });
        // No change is unflushed here: each batch ends with its flush.
        let assignments = self.while_connected(&HashSet::new(), read).await?;
        self.window.set_assignments(assignments);
        Ok(())
    }
}

async fn publish(bus: &dyn Bus, route: Route, message: &(impl Serialize + Sync)) {
    let sent = match encode(message) {
        Ok(payload) => bus.publish(Outgoing::new(route, payload)).await,
        Err(error) => return tracing::error!(%error, "message not encoded"),
    };
    if let Err(error) = sent {
        // No retry: announcements are an optimization, and orders are repeated.
        tracing::debug!(%error, "message not sent");
    }
}

/// The subjects whose assignments the decision of an input may read.
fn subjects_of(input: &CoordinatorInput) -> impl Iterator<Item = &Subject> {
    let (one, many): (_, &[(Subject, ServerName)]) = match input {
        CoordinatorInput::Locate(subject)
        | CoordinatorInput::Claim(subject, _)
        | CoordinatorInput::Release(subject, _)
        | CoordinatorInput::Move(subject, _) => (Some(subject), &[]),
        CoordinatorInput::Rebalance(_, candidates) => (None, &candidates.subjects),
        CoordinatorInput::Join(_)
        | CoordinatorInput::Heartbeat(_)
        | CoordinatorInput::Leave(_)
        | CoordinatorInput::Limits(_)
        | CoordinatorInput::Servers
        | CoordinatorInput::Drain(_)
        | CoordinatorInput::Undrain(_)
        | CoordinatorInput::Moves
        | CoordinatorInput::Tenants(_)
        | CoordinatorInput::LimitTenant(_)
        | CoordinatorInput::Tick
        | CoordinatorInput::Disconnected
        | CoordinatorInput::Connected => (None, &[]),
    };
    one.into_iter().chain(many.iter().map(|(subject, _)| subject))
}

/// The server whose membership a change affects.
fn server_of(change: &StoreChange) -> Option<&ServerName> {
    match change {
        StoreChange::Member(record) => Some(record.log.server()),
        StoreChange::Assign { .. }
        | StoreChange::Unassign { .. }
        | StoreChange::TenantLimits { .. }
        | StoreChange::StartupGrace(_) => None,
    }
}

/// Writes the changes and returns when they are flushed.
pub(super) async fn commit(
    env: Env,
    store: Arc<dyn Store>,
    changes: Vec<StoreChange>,
) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    env.blocking(move || {
        store.write(&changes)?;
        store.flush()
    })
    .await
}

fn send(responder: Responder, answer: Result<CoordinatorReply, ErrorReply>) {
    let answer = answer.and_then(|answer| match answer {
        CoordinatorReply::Located(reply) => encode_reply(&reply),
        CoordinatorReply::Lease(reply) => encode_reply(&reply),
        CoordinatorReply::Claimed(reply) => encode_reply(&reply),
        CoordinatorReply::Acknowledged => encode_reply(&Acknowledged::default()),
        CoordinatorReply::Servers(reply) => encode_reply(&reply),
        CoordinatorReply::Drain(reply) => encode_reply(&reply),
        CoordinatorReply::Move(reply) => encode_reply(&reply),
        CoordinatorReply::Moves(reply) => encode_reply(&reply),
        CoordinatorReply::Rebalance(reply) => encode_reply(&reply),
        CoordinatorReply::Limits(reply) => encode_reply(&reply),
        CoordinatorReply::Tenants(reply) => encode_reply(&reply),
        CoordinatorReply::TenantLimit(reply) => encode_reply(&reply),
    });
    respond(responder, answer);
}

fn respond(responder: Responder, answer: Result<Bytes, ErrorReply>) {
    match answer {
        Ok(payload) => responder.ok(payload),
        Err(error) => responder.error(&error),
    }
}

fn encode_reply<T: Serialize>(reply: &T) -> Result<Bytes, ErrorReply> {
    encode(reply).map_err(ErrorReply::internal)
}

/// Logs joined and gone servers, and the effects of operators' orders.
fn log_events(changes: &[StoreChange], gone: &[GoneProcess], events: &[OperatorEvent]) {
    if changes.iter().any(|change| matches!(change, StoreChange::StartupGrace(_))) {
        tracing::info!("leases of earlier coordinators expired");
    }
    for event in events {
        match event {
            OperatorEvent::Joined { log, capacity } => tracing::info!(%log, capacity, "server joined"),
            OperatorEvent::DrainOrdered(server) => tracing::info!(%server, "drain ordered"),
            OperatorEvent::DrainCancelled(server) => tracing::info!(%server, "drain cancelled"),
            OperatorEvent::TenantLimited { tenant, limits } => {
                tracing::info!(%tenant, ?limits, "tenant limits set");
            }
            OperatorEvent::MoveFailed { subject, to, why } => {
                tracing::info!(%subject, %to, why, "move failed");
            }
        }
    }
    for GoneProcess { log, reason: why } in gone {
        match why {
            GoneReason::LeaseExpired => {
                tracing::warn!(%log, "lease expired, server declared dead");
            }
            GoneReason::Left => tracing::info!(%log, "server left"),
            GoneReason::Replaced => {
                tracing::info!(%log, "server process replaced");
            }
        }
    }
}
