//! The coordinator at work: one task that owns the machine and the store.
//!
//! ```text
//! coord.locate.>  ┐
//! fleet.>         ├─> everything that has arrived ─> read ahead ─> machine ─> one write, one flush ─> all answers
//! admin.servers   ┘                                                                            └──> announcements
//! fleet.heartbeat ──> machine ─> answer, also while the store is at work
//! ```
//!
//! An answer leaves only after every change of its batch is flushed, so nobody ever acts on a decision that a crash
//! could undo. Grouping makes that cheap: the busier, the larger the groups. Heartbeats change nothing that is stored,
//! and a lease must not run out because of what others ask: they wait neither for a flush nor for other requests.

mod inbox;
mod requests;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, BusEvent, InboxPrefixes, Outgoing, Responder, SubscribeError};
use dormouse_protocol::fleet::{Acknowledged, GoneAnnouncement};
use dormouse_protocol::{ErrorReply, Incarnation, Prefix, ProtocolVersion, ServerName, Subject, encode};
use dormouse_runtime::{Env, Stop, Tasks};
use serde::Serialize;
use tokio::sync::{broadcast, oneshot};
use tokio::time::MissedTickBehavior;

use self::inbox::{Heartbeats, Inbox};
use self::watch::Watch;
use crate::machine::{Answer, Effects, Gone, Input, Machine, Why};
use crate::store::{Change, Store, StoreError, Window};

/// What a coordinator is told.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// The first tokens of every route.
    pub prefix: Prefix,
    /// Time to live of the leases it grants.
    pub lease_ttl: Duration,
    /// Reply addresses must begin with one of these; see
    /// [`ServeOptions::inbox_prefixes`](dormouse_bus::ServeOptions::inbox_prefixes).
    pub inbox_prefixes: InboxPrefixes,
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What is remembered cannot be read, or not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The messaging system does not let it listen.
    #[error(transparent)]
    Subscribe(#[from] SubscribeError),
}

/// Why a coordinator stopped though nobody had asked it to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The store failed. What the coordinator decided is no longer certain to be remembered, so it must not go on.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It can no longer be asked: the connection was closed, or a subscription refused.
    #[error("the coordinator can no longer be reached: its connection or a subscription ended")]
    Unreachable,
    /// A defect; the log has the place.
    #[error("the coordinator's task panicked")]
    Panicked,
}

/// A running coordinator. It runs until the stop signal of its tasks; dropping the handle does not stop it.
#[derive(Debug)]
pub struct Coordinator {
    incarnation: Incarnation,
    ended: oneshot::Receiver<Result<(), RunError>>,
}

impl Coordinator {
    /// Starts a coordinator in `tasks`. When the call returns, it can be asked.
    ///
    /// Cancelling the call leaves no coordinator; some routes may be answered until the stop signal of `tasks`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(
        options: CoordinatorOptions,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        env: Env,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let CoordinatorOptions { prefix, lease_ttl, inbox_prefixes } = options;
        let incarnation = Incarnation::new(env.ulid());
        let remembered = {
            let store = Arc::clone(&store);
            env.blocking(move || store.remembered()).await?
        };
        let (mut machine, changes) = Machine::begin(incarnation, lease_ttl, remembered, env.boot());
        commit(env.clone(), Arc::clone(&store), changes).await?;
        let window = Window::new(store.counts());
        let events = bus.events();
        if !bus.is_connected() {
            machine.apply(Input::Disconnected, env.boot(), &window);
        }
        let inbox = Inbox::open(&bus, &env, tasks, &prefix, &inbox_prefixes).await?;
        let watch = Watch::new(incarnation, &env, inbox.stats());
        watch.note(&machine, window.assigned());
        watch.answer(&bus, tasks, &prefix, &inbox_prefixes).await?;
        let (report, ended) = oneshot::channel();
        let actor = Actor { machine, store, bus, env, prefix, inbox, window, events, watch };
        let stop = tasks.stop().clone();
        tasks.spawn("coordinator", async move {
            // Whoever dropped the handle does not want to know.
            let _ = report.send(actor.run(&stop, lease_ttl / 6).await);
        });
        Ok(Self { incarnation, ended })
    }

    /// The id of this run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Waits until the coordinator has ended. Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// [`RunError`] when it did not end because of the stop signal.
    ///
    /// # Panics
    /// When waited for again after it has returned.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        (&mut self.ended).await.unwrap_or(Err(RunError::Panicked))
    }
}

/// The owner of the state.
struct Actor {
    machine: Machine,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    env: Env,
    prefix: Prefix,
    inbox: Inbox,
    window: Window,
    events: broadcast::Receiver<BusEvent>,
    watch: Watch,
}

/// A request that was understood.
struct Asked {
    input: Input,
    responder: Responder,
}

impl Actor {
    async fn run(mut self, stop: &Stop, tick: Duration) -> Result<(), RunError> {
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news_come = true;
        loop {
            let mut event = None;
            // The inbox last: it may be full without a pause, and every batch empties it, whatever it was begun for.
            tokio::select! {
                biased;
                () = stop.given() => {
                    // What has arrived is still answered: it cost its senders a wait.
                    self.batch(None).await?;
                    return Ok(());
                }
                news = self.events.recv(), if news_come => {
                    news_come = !matches!(news, Err(broadcast::error::RecvError::Closed));
                    event = self.connection(&news);
                }
                _ = ticks.tick() => {}
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
        let asked = self.inbox.take(&self.prefix);
        self.read_ahead(&asked).await?;
        let now = self.env.boot();
        // Nobody is declared dead whose heartbeat may still be waiting to be read. What else is waiting does not
        // matter: anybody may ask for subjects, as often as they like.
        let tick = self.heartbeats(now, &HashSet::new()).then_some(Input::Tick);
        let mut changes = Vec::new();
        let mut gone = Vec::new();
        let mut answers = Vec::with_capacity(asked.len());
        let mut apply = |input: Input, responder: Option<Responder>| {
            let effects = self.machine.apply(input, now, &self.window);
            effects.changes.iter().for_each(|change| self.window.note(change));
            let Effects { changes: made, answer, gone: ended } = effects;
            changes.extend(made);
            gone.extend(ended);
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
        report(&changes, &gone);
        if !changes.is_empty() {
            let unflushed = changes.iter().filter_map(server_of).cloned().collect();
            let flushed = commit(self.env.clone(), Arc::clone(&self.store), changes);
            self.while_hearing(&unflushed, flushed).await?;
        }
        for (responder, answer) in answers {
            send(responder, answer);
        }
        for Gone { log, .. } in gone {
            self.announce(&GoneAnnouncement { v: ProtocolVersion::CURRENT, log }).await;
        }
        self.watch.note(&self.machine, self.window.assigned());
        Ok(())
    }

    /// Answers the heartbeats that have arrived, at `now`, except those of servers in `unflushed`. False when there
    /// may be more of them.
    fn heartbeats(&mut self, now: Duration, unflushed: &HashSet<ServerName>) -> bool {
        let Heartbeats { arrived, all } = self.inbox.heartbeats(&self.prefix, unflushed);
        for Asked { input, responder } in arrived {
            let Effects { changes, answer, gone } = self.machine.apply(input, now, &self.window);
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

    async fn read_ahead(&mut self, asked: &[Asked]) -> Result<(), StoreError> {
        let subjects: BTreeSet<&Subject> =
            asked.iter().filter_map(|asked| subject_of(&asked.input)).collect();
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

    async fn announce(&self, announcement: &GoneAnnouncement) {
        let sent = match encode(announcement) {
            Ok(payload) => self.bus.publish(Outgoing::new(self.prefix.gone(), payload)).await,
            Err(error) => return tracing::error!(%error, "an announcement cannot be written"),
        };
        if let Err(error) = sent {
            // It only speeds things up: who is gone does not answer, and that is noticed too.
            tracing::debug!(%error, "an announcement was not sent");
        }
    }
}

fn subject_of(input: &Input) -> Option<&Subject> {
    match input {
        Input::Locate(subject) | Input::Claim(subject, _) | Input::Release(subject, _) => Some(subject),
        Input::Join(_)
        | Input::Heartbeat(_)
        | Input::Leave(_)
        | Input::Servers
        | Input::Tick
        | Input::Disconnected
        | Input::Connected => None,
    }
}

/// The server whose membership a change is about.
fn server_of(change: &Change) -> Option<&ServerName> {
    match change {
        Change::Member(record) => Some(record.log.server()),
        Change::Assign { .. } | Change::Unassign { .. } | Change::Waits(_) => None,
    }
}

/// Makes the changes and returns when they are flushed.
async fn commit(env: Env, store: Arc<dyn Store>, changes: Vec<Change>) -> Result<(), StoreError> {
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
    });
    match answer {
        Ok(payload) => responder.ok(payload),
        Err(error) => responder.error(&error),
    }
}

fn written<T: Serialize>(reply: &T) -> Result<Bytes, ErrorReply> {
    encode(reply).map_err(ErrorReply::internal)
}

/// Tells the log who came and who went.
fn report(changes: &[Change], gone: &[Gone]) {
    for change in changes {
        match change {
            Change::Member(record) if !record.dead => {
                tracing::info!(log = %record.log, capacity = record.capacity, "a server joined");
            }
            Change::Waits(_) => {
                tracing::info!("every lease of an earlier coordinator has run out");
            }
            Change::Member(_) | Change::Assign { .. } | Change::Unassign { .. } => {}
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
