//! Maintains the membership of this process in the fleet: the [lease machine](crate::lease) and the
//! [liveness machine](crate::liveness) with a bus and a clock. All of it runs on the control side.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{AskError, Bus, ask};
use dormouse_protocol::fleet::{
    Acknowledged, BusySubject, HeartbeatRequest, JoinRequest, LeaseReply, LeaveRequest, ServerLoad,
};
use dormouse_protocol::tenant::BusyTenant;
use dormouse_protocol::{ErrorReply, LogId, Prefix, ProtocolVersion, Route};
use dormouse_runtime::{Env, Observable, Stop, Tasks};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;

use crate::authority::LeaseView;
use crate::lease::{CallFailure, DrainOrder, LeaseEffect, LeaseInput, LeaseMachine};
use crate::liveness::{LivenessEffect, LivenessMachine};
use crate::progress::DataProgress;
use crate::pulse::{RoundTrips, beat_interval};
use crate::server::{ProcessExit, ServerSide};
use crate::tenant_limits::{LimitsReader, LimitsSink};

/// Minimum time between two log lines about a coordinator that does not answer.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The data that a member reports about itself.
#[derive(Clone)]
pub struct MemberInfo {
    /// The log of this process.
    pub log: LogId,
    /// The log of the process that had the data directory before.
    pub predecessor: Option<LogId>,
    /// The server's share of the subjects relative to others.
    pub capacity: u32,
    /// Reads the load of the server.
    pub load: Arc<dyn Fn() -> ServerLoad + Send + Sync>,
    /// Reads the subjects with the most load, the busiest first.
    pub busiest: Arc<dyn Fn() -> Vec<BusySubject> + Send + Sync>,
    /// Reads the tenants with the most requests, the busiest first.
    pub tenants: Arc<dyn Fn() -> Vec<BusyTenant> + Send + Sync>,
    /// Takes the limits that an operator has set for tenants.
    pub limits: LimitsSink,
    /// The progress of the data side.
    pub progress: Arc<DataProgress>,
    /// Ends the process if the data side hangs.
    pub exit: ProcessExit,
}

/// State of the membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipState {
    /// The process has held a lease.
    pub leased: bool,
    /// The coordinator knows that this process is draining.
    pub draining_acknowledged: bool,
    /// The coordinator refuses this process.
    pub refused: Option<ErrorReply>,
    /// The current drain order.
    pub order: DrainOrder,
    /// This process holds no lease and requests none.
    pub leaving: bool,
    /// The membership task has ended, so this state is final.
    pub ended: bool,
}

/// The goal of the process for its membership. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MembershipGoal {
    Stay,
    Drain,
    Leave,
}

/// The running membership.
pub struct Membership {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    log: LogId,
    state: Arc<Observable<MembershipState>>,
    goal: Arc<Observable<MembershipGoal>>,
}

impl Membership {
    /// Joins the fleet and keeps the lease in `view` until the stop signal of `tasks` is given. Sends joins and
    /// heartbeats only while the data side advances.
    #[must_use]
    pub fn start(
        side: &ServerSide,
        tasks: &Tasks,
        prefix: &Prefix,
        member: MemberInfo,
        view: LeaseView,
    ) -> Self {
        let ServerSide { bus, env } = side;
        let state = Arc::new(Observable::new(MembershipState::default()));
        let goal = Arc::new(Observable::new(MembershipGoal::Stay));
        let log = member.log.clone();
        let task = MembershipTask {
            bus: Arc::clone(bus),
            env: env.clone(),
            stop: tasks.stop().clone(),
            prefix: prefix.clone(),
            machine: LeaseMachine::new(env.boot(), member.predecessor.is_some()),
            liveness: LivenessMachine::new(env.boot(), member.progress.ttl()),
            trips: RoundTrips::new(bus, env),
            beat_at: env.boot(),
            calls: FuturesUnordered::new(),
            limits: LimitsReader::new(Arc::clone(bus), prefix.clone(), Arc::clone(&member.limits)),
            member,
            view,
            state: Arc::clone(&state),
            goal: Arc::clone(&goal),
            current_goal: MembershipGoal::Stay,
            next_line_at: Duration::ZERO,
            expired: false,
        };
        tasks.spawn("membership", task.run());
        Self { bus: Arc::clone(bus), prefix: prefix.clone(), log, state, goal }
    }

    /// Waits for the first lease. Cancelling the wait changes nothing.
    ///
    /// # Errors
    /// The refusal of the coordinator.
    pub async fn first_lease(&self) -> Result<(), ErrorReply> {
        let state = self.wait_until(|state| state.leased || state.refused.is_some()).await;
        state.refused.map_or(Ok(()), Err)
    }

    /// Waits until the coordinator refuses this process. Cancelling the wait changes nothing.
    pub async fn refused(&self) -> ErrorReply {
        match self.wait_until(|state| state.refused.is_some()).await.refused {
            Some(error) => error,
            // The membership task ended without a refusal, so none will come.
            None => std::future::pending().await,
        }
    }

    /// The observable state of the membership.
    #[must_use]
    pub fn state(&self) -> Arc<Observable<MembershipState>> {
        Arc::clone(&self.state)
    }

    /// Reports with every heartbeat from now on that this process is draining, and waits until the coordinator answers
    /// such a heartbeat. If the wait is cancelled, the heartbeats still report it.
    pub async fn drain(&self) {
        self.goal.set(MembershipGoal::Drain);
        self.wait_until(|state| state.draining_acknowledged).await;
    }

    /// Drops the lease for good, and then sends a leave to the coordinator and waits at most `deadline` for the reply.
    /// From the call on this process holds no lease, because other servers may already own its subjects.
    ///
    /// If the call is cancelled, the coordinator may have got the leave or not.
    ///
    /// # Errors
    /// [`AskError`]; then the coordinator detects the end of the process later, by the expired lease.
    pub async fn leave(&self, deadline: Duration) -> Result<(), AskError> {
        self.goal.set(MembershipGoal::Leave);
        self.wait_until(|state| state.leaving).await;
        let request = LeaveRequest { v: ProtocolVersion::CURRENT, log: self.log.clone() };
        let _: Acknowledged = ask(&*self.bus, self.prefix.leave(), &request, deadline).await?;
        Ok(())
    }

    async fn wait_until(&self, reached: impl Fn(&MembershipState) -> bool + Send) -> MembershipState {
        // If the task has ended, its last state is final.
        self.state.wait_for(move |state| state.ended || reached(state)).await
    }
}

/// The task that maintains the membership.
struct MembershipTask {
    bus: Arc<dyn Bus>,
    env: Env,
    stop: Stop,
    prefix: Prefix,
    machine: LeaseMachine,
    liveness: LivenessMachine,
    /// Round trips of the control connection.
    trips: RoundTrips,
    /// When the next round trip is due.
    beat_at: Duration,
    calls: FuturesUnordered<BoxFuture<'static, CallResult>>,
    limits: LimitsReader,
    member: MemberInfo,
    view: LeaseView,
    state: Arc<Observable<MembershipState>>,
    goal: Arc<Observable<MembershipGoal>>,
    /// The last seen goal.
    current_goal: MembershipGoal,
    next_line_at: Duration,
    /// The lease has expired, and there is no newer one.
    expired: bool,
}

/// The result of a call to the coordinator.
struct CallResult {
    call: MembershipCall,
    sent_at: Duration,
    outcome: Result<LeaseReply, AskError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MembershipCall {
    Join,
    Heartbeat { draining: bool },
}

impl MembershipTask {
    async fn run(mut self) {
        loop {
            let due = self.wake_at().saturating_sub(self.env.boot());
            let input = tokio::select! {
                biased;
                () = self.stop.requested() => return,
                // Before a leave, because replies after it have no effect. The number of replies is bounded by the
                // calls.
                Some(result) = self.calls.next() => self.on_call_result(result),
                goal = self.goal.wait_for(|goal| *goal != self.current_goal) => self.on_goal_change(goal),
                sent_at = self.trips.next() => {
                    self.member.progress.control_round_trip(sent_at);
                    LeaseInput::Tick
                }
                () = tokio::time::sleep(due) => LeaseInput::Tick,
                () = self.limits.finish_reading() => continue,
            };
            let leaves = input == LeaseInput::Leave;
            self.check_liveness();
            for effect in self.machine.apply(input, self.env.boot()) {
                self.perform(effect);
            }
            self.use_ttl();
            if leaves {
                // Only now: from here on, replies in flight have no effect.
                self.calls.clear();
                self.state.change(|state| !std::mem::replace(&mut state.leaving, true));
            }
        }
    }

    /// When the task has something to do at the latest.
    fn wake_at(&self) -> Duration {
        let due = self.liveness.check_at().min(self.beat_at);
        self.machine.wake_at().map_or(due, |lease| lease.min(due))
    }

    /// Starts a due round trip, checks the data side, and lets the lease machine send only if it advances.
    fn check_liveness(&mut self) {
        let (now, progress) = (self.env.boot(), &self.member.progress);
        let ttl = progress.ttl();
        if self.beat_at <= now {
            self.trips.start(ttl);
            self.beat_at = now + beat_interval(ttl);
        }
        let sample = progress.sample();
        self.machine.allow(sample.stall(ttl, now).is_none());
        match self.liveness.check(&sample, now) {
            None => {}
            Some(LivenessEffect::Warn(cause)) => {
                let cause = cause.as_str();
                tracing::warn!(cause, impact = "the lease is not renewed", "data side stalled");
            }
            Some(LivenessEffect::Recovered) => tracing::info!("data side advances again"),
            Some(LivenessEffect::Exit(cause)) => {
                let log = &self.member.log;
                tracing::error!(%log, cause = cause.as_str(), "data side stalled, ending process");
                self.member.exit.end();
            }
        }
    }

    /// Judges the data side by the TTL of the newest grant.
    fn use_ttl(&mut self) {
        let ttl = self.machine.ttl();
        if ttl != self.member.progress.ttl() {
            self.member.progress.set_ttl(ttl);
            self.liveness.set_ttl(ttl, self.env.boot());
        }
    }

    /// The machine input for a change of the goal.
    fn on_goal_change(&mut self, goal: MembershipGoal) -> LeaseInput {
        self.current_goal = goal;
        match goal {
            MembershipGoal::Stay | MembershipGoal::Drain => LeaseInput::HeartbeatNow,
            MembershipGoal::Leave => LeaseInput::Leave,
        }
    }

    /// Logs the result of a call, and returns it as a machine input.
    fn on_call_result(&mut self, result: CallResult) -> LeaseInput {
        let CallResult { call, sent_at, outcome } = result;
        if let Ok(lease) = &outcome {
            self.limits.announced(lease.limits);
        }
        match (call, outcome) {
            (MembershipCall::Join, Ok(lease)) => {
                tracing::info!(log = %self.member.log, ttl_ms = lease.ttl_ms, "fleet joined");
                self.next_line_at = Duration::ZERO;
                LeaseInput::Joined { sent_at, lease }
            }
            (MembershipCall::Heartbeat { draining }, Ok(lease)) => {
                if draining {
                    self.state.change(|state| !std::mem::replace(&mut state.draining_acknowledged, true));
                }
                LeaseInput::Renewed { sent_at, lease }
            }
            (MembershipCall::Join, Err(error)) => {
                let now = self.env.boot();
                if now >= self.next_line_at {
                    self.next_line_at = now + LOG_INTERVAL;
                    let route = self.prefix.join();
                    tracing::info!(%route, %error, "join not granted, retrying");
                }
                LeaseInput::JoinFailed(failure(error))
            }
            (MembershipCall::Heartbeat { .. }, Err(error)) => {
                tracing::debug!(%error, "heartbeat failed");
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
                self.call(MembershipCall::Join, self.prefix.join(), request, deadline);
            }
            LeaseEffect::SendHeartbeat { deadline } => {
                let draining = self.goal.get() != MembershipGoal::Stay;
                let request = HeartbeatRequest {
                    v: ProtocolVersion::CURRENT,
                    log: self.member.log.clone(),
                    load: (self.member.load)(),
                    draining,
                    busiest: (self.member.busiest)(),
                    tenants: (self.member.tenants)(),
                };
                self.call(MembershipCall::Heartbeat { draining }, self.prefix.heartbeat(), request, deadline);
            }
            LeaseEffect::SetLease(lease) => {
                self.view.set(lease);
                if let Some(lease) = lease {
                    if std::mem::take(&mut self.expired) {
                        let generation = lease.generation.0;
                        tracing::info!(generation, "lease renewed");
                    }
                    self.state.change(|state| !std::mem::replace(&mut state.leased, true));
                }
            }
            LeaseEffect::Expired => {
                self.expired = true;
                tracing::warn!(
                    impact = "replies wait for the bucket until the coordinator grants a lease",
                    "lease expired"
                );
            }
            LeaseEffect::DrainOrderChanged(order) => {
                self.state.change(|state| std::mem::replace(&mut state.order, order) != order);
            }
            LeaseEffect::Exit(error) => {
                self.state.change(|state| state.refused.replace(error).is_none());
            }
        }
    }

    fn call<Req>(&self, call: MembershipCall, route: Route, request: Req, deadline: Duration)
    where
        Req: Serialize + Send + Sync + 'static,
    {
        let bus = Arc::clone(&self.bus);
        // Before the request is sent: the lease starts here.
        let sent_at = self.env.boot();
        self.calls.push(Box::pin(async move {
            let outcome = ask(&*bus, route, &request, deadline).await;
            CallResult { call, sent_at, outcome }
        }));
    }
}

impl Drop for MembershipTask {
    fn drop(&mut self) {
        self.state.change(|state| !std::mem::replace(&mut state.ended, true));
    }
}

fn failure(error: AskError) -> CallFailure {
    match error {
        AskError::Service(error) => CallFailure::Refused(error),
        _ => CallFailure::Unanswered,
    }
}
