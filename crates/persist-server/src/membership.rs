//! Keeps this process a member of the fleet: the [lease machine](crate::lease) with a bus and a clock.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{AskError, Bus, ask};
use dormouse_protocol::fleet::{
    Acknowledged, BusySubject, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest, ServerLoad,
};
use dormouse_protocol::{ErrorReply, LogId, Prefix, ProtocolVersion, Route};
use dormouse_runtime::{Env, Stop, Tasks, Watched};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;

use crate::authority::LeaseView;
use crate::lease::{CallFailure, LeaseEffect, LeaseInput, LeaseMachine, Order};

/// Least time between two lines about a coordinator that does not answer.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// What a member says about itself.
#[derive(Clone)]
pub struct Member {
    /// The log of this process.
    pub log: LogId,
    /// The log of the process that had the data directory before.
    pub predecessor: Option<LogId>,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// How busy it is.
    pub load: Arc<dyn Fn() -> ServerLoad + Send + Sync>,
    /// With which subjects, the busiest first.
    pub busiest: Arc<dyn Fn() -> Vec<BusySubject> + Send + Sync>,
}

/// How the membership stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// There has been a lease.
    pub leased: bool,
    /// The coordinator knows that this process is draining.
    pub draining_known: bool,
    /// The coordinator will not have this process.
    pub refused: Option<ErrorReply>,
    /// What an operator wants of the server.
    pub order: Order,
    /// This process believes no lease and asks for none any more.
    pub leaving: bool,
    /// Nothing of this changes any more: the membership's task has ended.
    pub over: bool,
}

/// What the process wants of its membership. Only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Stay,
    Drain,
    Leave,
}

/// The running membership.
pub struct Membership {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    log: LogId,
    standing: Arc<Watched<Standing>>,
    wish: Arc<Watched<Wish>>,
}

impl Membership {
    /// Joins the fleet and keeps the lease in `view` until the stop signal of `tasks` is given.
    #[must_use]
    pub fn start(
        bus: &Arc<dyn Bus>,
        env: &Env,
        tasks: &Tasks,
        prefix: &Prefix,
        member: Member,
        view: LeaseView,
    ) -> Self {
        let standing = Arc::new(Watched::new(Standing::default()));
        let wish = Arc::new(Watched::new(Wish::Stay));
        let log = member.log.clone();
        let keeper = Keeper {
            bus: Arc::clone(bus),
            env: env.clone(),
            stop: tasks.stop().clone(),
            prefix: prefix.clone(),
            machine: LeaseMachine::new(env.boot(), member.predecessor.is_some()),
            calls: FuturesUnordered::new(),
            member,
            view,
            standing: Arc::clone(&standing),
            wish: Arc::clone(&wish),
            wished: Wish::Stay,
            quiet_until: Duration::ZERO,
            lapsed: false,
        };
        tasks.spawn("membership", keeper.run());
        Self { bus: Arc::clone(bus), prefix: prefix.clone(), log, standing, wish }
    }

    /// Waits for the first lease. Cancelling the wait changes nothing.
    ///
    /// # Errors
    /// The coordinator's refusal.
    pub async fn first_lease(&self) -> Result<(), ErrorReply> {
        let standing = self.until(|standing| standing.leased || standing.refused.is_some()).await;
        standing.refused.map_or(Ok(()), Err)
    }

    /// Waits until the coordinator refuses this process. Cancelling the wait changes nothing.
    pub async fn refused(&self) -> ErrorReply {
        match self.until(|standing| standing.refused.is_some()).await.refused {
            Some(error) => error,
            // The membership ended without a refusal: there will be none.
            None => std::future::pending().await,
        }
    }

    /// How the membership stands, from now on.
    #[must_use]
    pub fn standing(&self) -> Arc<Watched<Standing>> {
        Arc::clone(&self.standing)
    }

    /// Says with every heartbeat from now on that this process is draining, and waits until the coordinator has heard
    /// it. Cancelling the wait leaves it being said.
    pub async fn drain(&self) {
        self.wish.set(Wish::Drain);
        self.until(|standing| standing.draining_known).await;
    }

    /// Gives the lease up for good, and then tells the coordinator that this process goes, waiting at most `deadline`
    /// for its answer. From here on nothing is believed that others may already have.
    ///
    /// Cancelling the call leaves the coordinator told or not.
    ///
    /// # Errors
    /// [`AskError`]; then the coordinator notices by itself, later.
    pub async fn leave(&self, deadline: Duration) -> Result<(), AskError> {
        self.wish.set(Wish::Leave);
        self.until(|standing| standing.leaving).await;
        let request = LeaveRequest { v: ProtocolVersion::CURRENT, log: self.log.clone() };
        let _: Acknowledged = ask(&*self.bus, self.prefix.leave(), &request, deadline).await?;
        Ok(())
    }

    async fn until(&self, reached: impl Fn(&Standing) -> bool + Send) -> Standing {
        // Once the task has ended, what it said last is what there is.
        self.standing.wait_for(move |standing| standing.over || reached(standing)).await
    }
}

/// The task that keeps the membership.
struct Keeper {
    bus: Arc<dyn Bus>,
    env: Env,
    stop: Stop,
    prefix: Prefix,
    machine: LeaseMachine,
    calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    member: Member,
    view: LeaseView,
    standing: Arc<Watched<Standing>>,
    wish: Arc<Watched<Wish>>,
    /// The wish that was heard last.
    wished: Wish,
    quiet_until: Duration,
    /// The lease ran out and there is none since.
    lapsed: bool,
}

/// What came of a call to the coordinator.
struct Answer {
    call: Call,
    sent_at: Duration,
    outcome: Result<LeaseReply, AskError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Join,
    Heartbeat { draining: bool },
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let due = self.machine.wake_at().map(|due| due.saturating_sub(self.env.boot()));
            let input = tokio::select! {
                biased;
                () = self.stop.given() => return,
                // Before the wish to leave, after which no answer counts. There are only as many as calls were made.
                Some(answer) = self.calls.next() => self.heard(answer),
                wish = self.wish.wait_for(|wish| *wish != self.wished) => self.wish_changed(wish),
                () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => LeaseInput::Tick,
            };
            let leaves = input == LeaseInput::Leave;
            for effect in self.machine.apply(input, self.env.boot()) {
                self.perform(effect);
            }
            if leaves {
                // Only now: no answer under way changes anything any more.
                self.calls.clear();
                self.standing.change(|standing| !std::mem::replace(&mut standing.leaving, true));
            }
        }
    }

    /// What a change of the wish means to the machine.
    fn wish_changed(&mut self, wish: Wish) -> LeaseInput {
        self.wished = wish;
        match wish {
            Wish::Stay | Wish::Drain => LeaseInput::Hurry,
            Wish::Leave => LeaseInput::Leave,
        }
    }

    /// Notes what a call brought for the log, and says it in the machine's words.
    fn heard(&mut self, answer: Answer) -> LeaseInput {
        let Answer { call, sent_at, outcome } = answer;
        match (call, outcome) {
            (Call::Join, Ok(lease)) => {
                tracing::info!(log = %self.member.log, ttl_ms = lease.ttl_ms, "joined the fleet");
                self.quiet_until = Duration::ZERO;
                LeaseInput::Joined { sent_at, lease }
            }
            (Call::Heartbeat { draining }, Ok(lease)) => {
                if draining {
                    self.standing.change(|standing| !std::mem::replace(&mut standing.draining_known, true));
                }
                LeaseInput::Renewed { sent_at, lease }
            }
            (Call::Join, Err(error)) => {
                let now = self.env.boot();
                if now >= self.quiet_until {
                    self.quiet_until = now + BETWEEN_LINES;
                    let route = self.prefix.join();
                    tracing::info!(%route, %error, "waiting for the coordinator to let this process join");
                }
                LeaseInput::JoinFailed(failure(error))
            }
            (Call::Heartbeat { .. }, Err(error)) => {
                tracing::debug!(%error, "a heartbeat was not granted");
                LeaseInput::HeartbeatFailed { sent_at, failure: failure(error) }
            }
        }
    }

    fn perform(&mut self, effect: LeaseEffect) {
        match effect {
            LeaseEffect::SendJoin { deadline } => {
                let request = JoinRequest {
                    v: ProtocolVersion::CURRENT,
                    log: self.member.log.clone(),
                    predecessor: self.member.predecessor.clone(),
                    capacity: self.member.capacity,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                };
                self.call(Call::Join, self.prefix.join(), request, deadline);
            }
            LeaseEffect::SendHeartbeat { deadline } => {
                let draining = self.wish.get() != Wish::Stay;
                let request = HeartbeatRequest {
                    v: ProtocolVersion::CURRENT,
                    log: self.member.log.clone(),
                    load: (self.member.load)(),
                    draining,
                    busiest: (self.member.busiest)(),
                };
                self.call(Call::Heartbeat { draining }, self.prefix.heartbeat(), request, deadline);
            }
            LeaseEffect::Trust(lease) => {
                self.view.set(lease);
                if let Some(lease) = lease {
                    if std::mem::take(&mut self.lapsed) {
                        let generation = lease.generation.0;
                        tracing::info!(generation, "there is a lease again: serving goes on");
                    }
                    self.standing.change(|standing| !std::mem::replace(&mut standing.leased, true));
                }
            }
            LeaseEffect::Lapsed => {
                self.lapsed = true;
                tracing::warn!("the lease ran out: nothing is served until the coordinator grants another");
            }
            LeaseEffect::Ordered(order) => {
                self.standing.change(|standing| std::mem::replace(&mut standing.order, order) != order);
            }
            LeaseEffect::Exit(error) => {
                self.standing.change(|standing| standing.refused.replace(error).is_none());
            }
        }
    }

    fn call<Req>(&self, call: Call, route: Route, request: Req, deadline: Duration)
    where
        Req: Serialize + Send + Sync + 'static,
    {
        let bus = Arc::clone(&self.bus);
        // Before anything is sent: a lease counts from here.
        let sent_at = self.env.boot();
        self.calls.push(Box::pin(async move {
            let outcome = ask(&*bus, route, &request, deadline).await;
            Answer { call, sent_at, outcome }
        }));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.standing.change(|standing| !std::mem::replace(&mut standing.over, true));
    }
}

fn failure(error: AskError) -> CallFailure {
    match error {
        AskError::Service(error) => CallFailure::Refused(error),
        _ => CallFailure::Unanswered,
    }
}
