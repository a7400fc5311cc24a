//! One run of the coordinator.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, BusEvent, Outgoing, Responder};
use dormouse_protocol::admin::{RebalanceRequest, SubjectsReply};
use dormouse_protocol::fleet::{Acknowledged, GoneAnnouncement};
use dormouse_protocol::{
    ErrorReply, Incarnation, Prefix, ProtocolVersion, Route, ServerName, Subject, encode,
};
use dormouse_runtime::{Env, Stop};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use tokio::sync::{broadcast, oneshot};
use tokio::time::MissedTickBehavior;

use super::inbox::{Arrived, EndpointFacts, Heartbeats, Inbox};
use super::lookup::Reader;
use super::requests::Wish;
use super::watch::Watch;
use super::{Asked, Request, RunError};
use crate::machine::{Answer, Candidates, Effects, Gone, Input, Machine, News, Why};
use crate::store::{Change, Store, StoreError, Window};

/// How many operators are looked up something for at once.
const LOOKUPS_AT_ONCE: usize = 4;

/// When the others are told to try again, in milliseconds.
const RETRY_AFTER_MS: u64 = 200;

/// Most bytes of a list in an answer to an operator; half of the largest payload where that is less.
const LIST_BYTES: usize = 512 * 1_024;

/// The owner of the state.
pub(super) struct Actor {
    machine: Machine,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    env: Env,
    prefix: Prefix,
    inbox: Inbox,
    endpoints: Vec<EndpointFacts>,
    window: Window,
    events: broadcast::Receiver<BusEvent>,
    watch: Watch,
    lookups: FuturesUnordered<BoxFuture<'static, Result<LookedUp, StoreError>>>,
    /// What could be decided, now that everything for it is looked up.
    ready: Vec<Asked>,
    /// Where the next rebalancing begins to look for subjects that could move.
    look_on_after: Option<Subject>,
}

/// What was looked up, and for whom.
enum LookedUp {
    Page(SubjectsReply, Responder),
    Candidates {
        request: RebalanceRequest,
        candidates: Candidates,
        look_on_after: Option<Subject>,
        responder: Responder,
    },
}

/// Why a run ended.
pub(super) enum Ended {
    /// It was asked to.
    Stopped,
    /// An earlier run is at work, too.
    StoodDown(Incarnation),
}

impl Actor {
    #[expect(clippy::too_many_arguments)] // Its parts, put together in one place only.
    pub(super) fn new(
        machine: Machine,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        env: Env,
        prefix: Prefix,
        inbox: Inbox,
        window: Window,
        events: broadcast::Receiver<BusEvent>,
        watch: Watch,
    ) -> Self {
        let endpoints = inbox.stats();
        let (lookups, ready, look_on_after) = (FuturesUnordered::new(), Vec::new(), None);
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
            watch,
            lookups,
            ready,
            look_on_after,
        }
    }

    /// Runs until the stop signal, or until an earlier run is heard of.
    pub(super) async fn run(
        mut self,
        stop: &Stop,
        mut earlier: oneshot::Receiver<Incarnation>,
        tick: Duration,
    ) -> Result<Ended, RunError> {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news_come = true;
        loop {
            let mut event = None;
            // The inbox last: it may be full without a pause, and every batch empties it, whatever it was begun for.
            tokio::select! {
                biased;
                // Not a word more: what it would say is no better than what the other one says.
                Ok(other) = &mut earlier, if !earlier.is_terminated() => return Ok(Ended::StoodDown(other)),
                () = stop.given() => {
                    // What has arrived is still answered: it cost its senders a wait.
                    self.batch(None).await?;
                    return Ok(Ended::Stopped);
                }
                news = self.events.recv(), if news_come => {
                    news_come = !matches!(news, Err(broadcast::error::RecvError::Closed));
                    event = self.connection(&news);
                }
                _ = ticks.tick() => {}
                Some(found) = self.lookups.next() => self.looked_up(found?),
                open = self.inbox.arrival() => if !open { return Err(RunError::Unreachable) },
            }
            self.batch(event).await?;
        }
    }

    /// What news about the connection mean to the machine.
    fn connection(&self, news: &Result<BusEvent, broadcast::error::RecvError>) -> Option<Input> {
        match news {
            Ok(BusEvent::Connected) => Some(Input::Connected),
            Ok(BusEvent::Disconnected) => Some(Input::Disconnected),
            Ok(_) | Err(broadcast::error::RecvError::Closed) => None,
            // Some were missed; how it stands now is enough.
            Err(broadcast::error::RecvError::Lagged(_)) if self.bus.is_connected() => Some(Input::Connected),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Input::Disconnected),
        }
    }

    /// Decides about everything that has arrived, remembers it, then lets it be known.
    async fn batch(&mut self, event: Option<Input>) -> Result<(), StoreError> {
        self.heartbeats(self.env.boot(), &HashSet::new());
        let Arrived { mut asked, lookups } = self.inbox.take(&self.prefix);
        asked.append(&mut self.ready);
        for lookup in lookups {
            self.look_up(lookup);
        }
        self.read_ahead(&asked).await?;
        let now = self.env.boot();
        // Nobody is declared dead whose heartbeat may still be waiting to be read. What else is waiting does not
        // matter: anybody may ask for subjects, as often as they like.
        let tick = self.heartbeats(now, &HashSet::new()).then_some(Input::Tick);
        let mut changes = Vec::new();
        let (mut gone, mut orders, mut news) = (Vec::new(), Vec::new(), Vec::new());
        let mut answers = Vec::with_capacity(asked.len());
        let mut apply = |input: Input, responder: Option<Responder>| {
            let effects = self.machine.apply(input, now, &self.window);
            effects.changes.iter().for_each(|change| self.window.note(change));
            let Effects { changes: made, answer, gone: ended, orders: ordered, news: new } = effects;
            changes.extend(made);
            gone.extend(ended);
            orders.extend(ordered);
            news.extend(new);
            answers.extend(responder.zip(answer));
        };
        if let Some(event) = event {
            apply(event, None);
        }
        for Asked { input, responder } in asked {
            apply(input, Some(responder));
        }
        if let Some(tick) = tick {
            apply(tick, None);
        }
        report(&changes, &gone, &news);
        if !changes.is_empty() {
            let unflushed = changes.iter().filter_map(server_of).cloned().collect();
            let flushed = commit(self.env.clone(), Arc::clone(&self.store), changes);
            self.while_hearing(&unflushed, flushed).await?;
        }
        for (responder, answer) in answers {
            send(responder, answer);
        }
        for Gone { log, .. } in gone {
            let announcement = GoneAnnouncement { v: ProtocolVersion::CURRENT, log };
            publish(&*self.bus, self.prefix.gone(), &announcement).await;
        }
        for order in orders {
            publish(&*self.bus, self.prefix.order(order.log.server()), &order).await;
        }
        self.watch.note(&self.machine, self.window.assigned(), &self.endpoints);
        Ok(())
    }

    /// Answers the heartbeats that have arrived, at `now`, except those of servers in `unflushed`. False when there
    /// may be more of them.
    fn heartbeats(&mut self, now: Duration, unflushed: &HashSet<ServerName>) -> bool {
        let Heartbeats { arrived, all } = self.inbox.heartbeats(&self.prefix, unflushed);
        for Asked { input, responder } in arrived {
            let Effects { changes, answer, gone, .. } = self.machine.apply(input, now, &self.window);
            debug_assert!(
                changes.is_empty() && gone.is_empty(),
                "a heartbeat changes nothing that is stored"
            );
            if let Some(answer) = answer {
                send(responder, answer);
            }
        }
        all
    }

    /// Waits for `work`, which the store does, and answers heartbeats meanwhile.
    async fn while_hearing<T>(
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
            self.heartbeats(self.env.boot(), unflushed);
        }
    }

    /// Begins to look something up, beside the batches.
    fn look_up(&mut self, Request { input, responder }: Request<Wish>) {
        if self.lookups.len() >= LOOKUPS_AT_ONCE {
            let text = "as many operators ask for lists as are served at once";
            return responder.error(&ErrorReply::overloaded(text, RETRY_AFTER_MS));
        }
        let reader = Reader { env: self.env.clone(), store: Arc::clone(&self.store) };
        let most_bytes = LIST_BYTES.min(self.bus.max_payload() / 2);
        match input {
            Wish::Decide(input) => self.ready.push(Asked { input, responder }),
            Wish::Page(request) => self.lookups.push(Box::pin(async move {
                let page = reader.page(request, most_bytes).await?;
                Ok(LookedUp::Page(page, responder))
            })),
            Wish::Rebalance(request) => {
                let wanted = self.machine.wanted_candidates(&self.window);
                let busy = self.machine.busy_subjects();
                let after = self.look_on_after.clone();
                let responder = if request.dry_run { responder } else { responder.changing() };
                self.lookups.push(Box::pin(async move {
                    let (mut subjects, look_on_after) = reader.subjects_of(wanted, after).await?;
                    subjects.extend(busy);
                    let candidates = Candidates { subjects, reply_bytes: most_bytes };
                    Ok(LookedUp::Candidates { request, candidates, look_on_after, responder })
                }));
            }
        }
    }

    fn looked_up(&mut self, found: LookedUp) {
        match found {
            LookedUp::Page(mut page, responder) => {
                page.subjects.retain(|assigned| !self.machine.was_emptied(&assigned.server));
                respond(responder, written(&page));
            }
            LookedUp::Candidates { request, candidates, look_on_after, responder } => {
                self.look_on_after = look_on_after;
                let input = Input::Rebalance(request, candidates);
                self.ready.push(Asked { input, responder });
            }
        }
    }

    async fn read_ahead(&mut self, asked: &[Asked]) -> Result<(), StoreError> {
        let watched = self.machine.watched();
        let subjects: BTreeSet<&Subject> =
            asked.iter().flat_map(|asked| subjects_of(&asked.input)).chain(&watched).collect();
        if subjects.is_empty() {
            self.window.show(HashMap::new());
            return Ok(());
        }
        let subjects: Vec<Subject> = subjects.into_iter().cloned().collect();
        let (env, store) = (self.env.clone(), Arc::clone(&self.store));
        let read = env.blocking(move || -> Result<HashMap<Subject, Option<ServerName>>, StoreError> {
            let assignments = store.assignments(&subjects)?;
            Ok(subjects.into_iter().zip(assignments).collect())
        });
        // Nothing is unflushed: a batch ends with its flush.
        let assignments = self.while_hearing(&HashSet::new(), read).await?;
        self.window.show(assignments);
        Ok(())
    }
}

async fn publish(bus: &dyn Bus, route: Route, message: &(impl Serialize + Sync)) {
    let sent = match encode(message) {
        Ok(payload) => bus.publish(Outgoing::new(route, payload)).await,
        Err(error) => return tracing::error!(%error, "a message cannot be written"),
    };
    if let Err(error) = sent {
        // Announcements only speed things up, and orders are given again.
        tracing::debug!(%error, "a message was not sent");
    }
}

/// The subjects whose assignments an input may be decided by.
fn subjects_of(input: &Input) -> impl Iterator<Item = &Subject> {
    let (one, many): (_, &[(Subject, ServerName)]) = match input {
        Input::Locate(subject)
        | Input::Claim(subject, _)
        | Input::Release(subject, _)
        | Input::Move(subject, _) => (Some(subject), &[]),
        Input::Rebalance(_, candidates) => (None, &candidates.subjects),
        Input::Join(_)
        | Input::Heartbeat(_)
        | Input::Leave(_)
        | Input::Servers
        | Input::Drain(_)
        | Input::Undrain(_)
        | Input::Moves
        | Input::Tick
        | Input::Disconnected
        | Input::Connected => (None, &[]),
    };
    one.into_iter().chain(many.iter().map(|(subject, _)| subject))
}

/// The server whose membership a change is about.
fn server_of(change: &Change) -> Option<&ServerName> {
    match change {
        Change::Member(record) => Some(record.log.server()),
        Change::Assign { .. } | Change::Unassign { .. } | Change::Waits(_) => None,
    }
}

/// Makes the changes and returns when they are flushed.
pub(super) async fn commit(env: Env, store: Arc<dyn Store>, changes: Vec<Change>) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    env.blocking(move || {
        store.write(&changes)?;
        store.flush()
    })
    .await
}

fn send(responder: Responder, answer: Result<Answer, ErrorReply>) {
    let answer = answer.and_then(|answer| match answer {
        Answer::Located(reply) => written(&reply),
        Answer::Lease(reply) => written(&reply),
        Answer::Claimed(reply) => written(&reply),
        Answer::Acknowledged => written(&Acknowledged::default()),
        Answer::Servers(reply) => written(&reply),
        Answer::Drain(reply) => written(&reply),
        Answer::Move(reply) => written(&reply),
        Answer::Moves(reply) => written(&reply),
        Answer::Rebalance(reply) => written(&reply),
    });
    respond(responder, answer);
}

fn respond(responder: Responder, answer: Result<Bytes, ErrorReply>) {
    match answer {
        Ok(payload) => responder.ok(payload),
        Err(error) => responder.error(&error),
    }
}

fn written<T: Serialize>(reply: &T) -> Result<Bytes, ErrorReply> {
    encode(reply).map_err(ErrorReply::internal)
}

/// Tells the log who came and who went, and what operators wanted.
fn report(changes: &[Change], gone: &[Gone], news: &[News]) {
    if changes.iter().any(|change| matches!(change, Change::Waits(_))) {
        tracing::info!("every lease of an earlier coordinator has run out");
    }
    for news in news {
        match news {
            News::Joined { log, capacity } => tracing::info!(%log, capacity, "a server joined"),
            News::DrainOrdered(server) => tracing::info!(%server, "a server is to be emptied"),
            News::DrainTakenBack(server) => tracing::info!(%server, "a server takes subjects again"),
            News::MoveGivenUp { subject, to, why } => {
                tracing::info!(%subject, %to, why, "a subject was not moved");
            }
        }
    }
    for Gone { log, why } in gone {
        match why {
            Why::Silent => {
                tracing::warn!(%log, "a server was not heard of for longer than its lease: declared dead");
            }
            Why::Left => tracing::info!(%log, "a server left"),
            Why::Replaced => {
                tracing::info!(%log, "a server process was followed by another in its data directory");
            }
        }
    }
}
