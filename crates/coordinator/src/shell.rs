//! The coordinator at work: one task that owns the machine and the store.
//!
//! ```text
//! coord.locate.>  ┐
//! fleet.>         ├─> everything that has arrived ─> read ahead ─> machine ─> one write, one flush ─> all answers
//! admin.>         ┘                                                            └──> announcements, orders to servers
//! fleet.heartbeat ──> machine ─> answer, also while the store is at work
//! admin.subjects, admin.rebalance ──> look through the store, beside the batches
//! ```
//!
//! An answer leaves only after every change of its batch is flushed, so nobody ever acts on a decision that a crash
//! could undo. Grouping makes that cheap: the busier, the larger the groups. Heartbeats change nothing that is stored,
//! and a lease must not run out because of what others ask: they wait neither for a flush nor for other requests.
//!
//! All this is one *run*, which begins once nobody else coordinates and has an incarnation of its own. When another one
//! does, the process stands by: it says so, answers nothing but health, and begins a new run when it is alone.

mod actor;
mod inbox;
mod lookup;
mod presence;
mod requests;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{Bus, Callers, InboxPrefixes, Responder, SubscribeError};
use dormouse_protocol::{Incarnation, Prefix};
use dormouse_runtime::{Env, Stop, Tasks};
use tokio::sync::oneshot;

use self::actor::{Actor, Ended};
use self::inbox::{Inbox, Listening};
use self::presence::{Found, be_present, who_coordinates};
use self::watch::Watch;
use crate::machine::{Input, Machine};
use crate::store::{Store, StoreError, Window};

/// How long a run may take to send its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How often the log says that another coordinator is at work, for as long as it is.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

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
    /// Whose subjects may be located.
    pub callers: Callers,
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
    /// After another coordinator had been at work it could not begin again.
    #[error("the coordinator could not begin again")]
    Resume(#[source] StartError),
    /// A defect; the log has the place.
    #[error("the coordinator's task panicked")]
    Panicked,
}

/// A running coordinator. It runs until the stop signal of its tasks; dropping the handle does not stop it.
pub struct Coordinator {
    watch: Watch,
    ended: oneshot::Receiver<Result<(), RunError>>,
}

impl Coordinator {
    /// Starts a coordinator in `tasks`. When the call returns, it can be asked; or another one coordinates, and this one
    /// stands by until it does not any more.
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
        let incarnation = Incarnation::new(env.ulid());
        let watch = Watch::new(&env, incarnation);
        let life = Life { options, store, bus, env, watch: watch.clone() };
        life.watch.answer_health(life.listening(tasks)).await?;
        let next = match who_coordinates(&*life.bus, &life.options.prefix, incarnation).await {
            Found::Nobody => Next::Run(Box::new(life.begin(incarnation, Before::Ourselves).await?)),
            Found::Another(other) => Next::StandBy(other),
        };
        if let Next::StandBy(other) = &next {
            life.watch.note_other(*other);
        }
        let (report, ended) = oneshot::channel();
        let stop = tasks.stop().clone();
        tasks.spawn("coordinator", async move {
            // Whoever dropped the handle does not want to know.
            let _ = report.send(life.live(next, &stop).await);
        });
        Ok(Self { watch, ended })
    }

    /// The id of the newest run.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.watch.incarnation()
    }

    /// Whether it coordinates, and does not stand by.
    #[must_use]
    pub fn coordinates(&self) -> bool {
        self.watch.coordinates()
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

/// A request that was understood.
struct Request<T> {
    input: T,
    responder: Responder,
}

/// A request that the machine answers.
type Asked = Request<Input>;

/// The process, from run to run.
struct Life {
    options: CoordinatorOptions,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    env: Env,
    watch: Watch,
}

/// One run that has begun.
struct Run {
    actor: Actor,
    earlier: oneshot::Receiver<Incarnation>,
    tasks: Tasks,
}

enum Next {
    Run(Box<Run>),
    StandBy(Option<Incarnation>),
}

/// Who was at work before a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nobody that the store does not know of.
    Ourselves,
    /// Another coordinator, with a store of its own.
    Another,
}

impl Life {
    fn listening<'a>(&'a self, tasks: &'a Tasks) -> Listening<'a> {
        let CoordinatorOptions { prefix, inbox_prefixes, callers, .. } = &self.options;
        Listening { bus: &self.bus, env: &self.env, tasks, prefix, inbox_prefixes, callers: *callers }
    }

    async fn live(self, mut next: Next, stop: &Stop) -> Result<(), RunError> {
        loop {
            next = match next {
                Next::StandBy(other) => match self.stand_by(other, stop).await? {
                    Some(run) => Next::Run(Box::new(run)),
                    None => return Ok(()),
                },
                Next::Run(run) => {
                    let Run { actor, earlier, tasks } = *run;
                    let ended = actor.run(stop, earlier, self.options.lease_ttl / 6).await;
                    if let Err(unfinished) = tasks.finish(LAST_ANSWERS).await {
                        tracing::warn!(%unfinished, "not every answer could be sent");
                    }
                    match ended? {
                        Ended::Stopped => return Ok(()),
                        Ended::StoodDown(other) => Next::StandBy(Some(other)),
                    }
                }
            };
        }
    }

    /// Begins a run.
    async fn begin(&self, incarnation: Incarnation, before: Before) -> Result<Run, StartError> {
        let Self { store, env, bus, watch, .. } = self;
        let tasks = self.env.tasks();
        let mut remembered = {
            let store = Arc::clone(store);
            env.blocking(move || store.remembered()).await?
        };
        let mut changes = match before {
            Before::Ourselves => Vec::new(),
            Before::Another => remembered.doubt(),
        };
        let (mut machine, waits) =
            Machine::begin(incarnation, self.options.lease_ttl, remembered, env.boot());
        changes.extend(waits);
        actor::commit(env.clone(), Arc::clone(store), changes).await?;
        let window = Window::new(store.counts());
        let events = bus.events();
        if !bus.is_connected() {
            machine.apply(Input::Disconnected, env.boot(), &window);
        }
        let on = self.listening(&tasks);
        let earlier = be_present(on, incarnation).await?;
        let inbox = Inbox::open(on).await?;
        let endpoints = inbox.stats();
        watch::announce_service(on, incarnation, &endpoints).await?;
        watch.note(&machine, window.assigned(), &endpoints);
        let (env, bus, watch) = (env.clone(), Arc::clone(bus), watch.clone());
        let prefix = self.options.prefix.clone();
        tracing::info!(%incarnation, %prefix, "coordinating");
        let actor = Actor::new(machine, Arc::clone(store), bus, env, prefix, inbox, window, events, watch);
        Ok(Run { actor, earlier, tasks })
    }

    /// Waits until no other coordinator is at work, and begins a run. `None` once the stop signal is given.
    async fn stand_by(&self, other: Option<Incarnation>, stop: &Stop) -> Result<Option<Run>, RunError> {
        let mut other = other;
        let mut quiet_until = Duration::ZERO;
        loop {
            self.watch.note_other(other);
            if self.env.boot() >= quiet_until {
                quiet_until = self.env.boot() + SAID_AGAIN_AFTER;
                let run = other.map_or_else(|| "unknown".to_owned(), |other| other.to_string());
                tracing::error!(
                    other = %run,
                    "another coordinator coordinates this fleet: this one assigns nothing for as long as that is so"
                );
            }
            // Late answers to questions of a run before must not be taken for its own.
            let incarnation = Incarnation::new(self.env.ulid());
            let asked = async {
                tokio::time::sleep(presence::ASK_AGAIN).await;
                who_coordinates(&*self.bus, &self.options.prefix, incarnation).await
            };
            let found = tokio::select! {
                biased;
                () = stop.given() => return Ok(None),
                found = asked => found,
            };
            match found {
                Found::Another(another) => other = another,
                Found::Nobody => {
                    let run = self.begin(incarnation, Before::Another).await.map_err(RunError::Resume)?;
                    return Ok(Some(run));
                }
            }
        }
    }
}
