//! One active coordinator at a time: presence checks before a run, replies and announcements during it, standing down.
//!
//! Two active coordinators lose no data, but a read under a lease may then return an old state, and both record their own
//! decisions. So a starting coordinator first checks for an active one. Two can still become active if they start at the
//! same moment or cannot reach each other. When they detect each other, the one with the newer run stands down.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{
    AskError, Bus, Outgoing, RequestError, Requests, ServeOptions, SubscribeError, SubscribeOptions,
    Subscription, ask, serve,
};
use dormouse_protocol::admin::{ActiveAnnouncement, PresenceReply, PresenceRequest};
use dormouse_protocol::{Incarnation, Prefix, ProtocolVersion, decode, decode_request, encode};
use dormouse_runtime::Stop;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::inbox::ListenContext;

/// The deadline of one presence check.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// After so many checks in a row without a reply, no coordinator is active. After a crash, the subscription of a
/// coordinator may still exist for a while.
const MAX_UNANSWERED_CHECKS: u32 = 3;

/// The interval of presence checks during standby.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The interval of the announcements of the active coordinator.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// The active coordinator, as far as a presence check finds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ActiveCoordinator {
    NoneActive,
    /// Another coordinator is active; its run, if the reply contains it.
    Active(Option<Incarnation>),
}

/// Checks whether another coordinator is active. While disconnected, it waits for the connection.
pub(super) async fn find_active(
    bus: &dyn Bus,
    prefix: &Prefix,
    incarnation: Incarnation,
) -> ActiveCoordinator {
    let request = PresenceRequest { v: ProtocolVersion::CURRENT, incarnation };
    let mut unanswered = 0;
    while unanswered < MAX_UNANSWERED_CHECKS {
        match ask::<_, PresenceReply>(bus, prefix.presence(), &request, ASK_DEADLINE).await {
            Ok(reply) => return ActiveCoordinator::Active(Some(reply.incarnation)),
            // There is an active coordinator, even if its reply is not understood.
            Err(AskError::Service(_) | AskError::Decode { .. }) => return ActiveCoordinator::Active(None),
            // If the connection was closed, the next subscription fails.
            Err(AskError::Request(RequestError::NoResponders(_) | RequestError::Closed { .. })) => {
                return ActiveCoordinator::NoneActive;
            }
            Err(AskError::Request(RequestError::Disconnected)) => {}
            Err(AskError::Request(RequestError::Deadline { .. })) => unanswered += 1,
            Err(error) => {
                tracing::warn!(%error, "presence check failed, assuming no coordinator");
                return ActiveCoordinator::NoneActive;
            }
        }
    }
    tracing::info!("presence check timed out, assuming no coordinator");
    ActiveCoordinator::NoneActive
}

/// Answers presence checks and announces that `incarnation` is active, until the stop signal of the tasks. The returned
/// receiver gets the incarnation of an earlier run if that run announces itself.
pub(super) async fn serve_presence(
    context: ListenContext<'_>,
    incarnation: Incarnation,
) -> Result<oneshot::Receiver<Incarnation>, SubscribeError> {
    let ListenContext { bus, env, tasks, prefix, inbox_prefixes, .. } = context;
    let options = ServeOptions { inbox_prefixes: inbox_prefixes.clone(), ..ServeOptions::default() };
    let checks = serve(bus, env, tasks, prefix.presence().into(), options).await?;
    let others = bus.subscribe(prefix.active().into(), SubscribeOptions::default()).await?;
    let (earlier, detected) = oneshot::channel();
    let stop = tasks.stop().clone();
    tasks.spawn("presence", async move {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            () = answer(checks, incarnation) => {}
        }
    });
    let announcer = PresenceAnnouncer { bus: Arc::clone(bus), prefix: prefix.clone(), incarnation };
    let stop = tasks.stop().clone();
    tasks.spawn("presence announcer", announcer.run(others, earlier, stop));
    Ok(detected)
}

async fn answer(mut checks: Requests, incarnation: Incarnation) {
    while let Some(check) = checks.next().await {
        match decode_request::<PresenceRequest>(&check.payload) {
            // A late check of this run itself.
            Ok(request) if request.incarnation == incarnation => {}
            Ok(_) => match encode(&PresenceReply { incarnation }) {
                Ok(payload) => check.responder.ok(payload),
                Err(error) => tracing::error!(%error, "presence reply not encoded"),
            },
            Err(error) => check.responder.error(&error),
        }
    }
}

struct PresenceAnnouncer {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    incarnation: Incarnation,
}

impl PresenceAnnouncer {
    async fn run(self, mut others: Subscription, earlier: oneshot::Sender<Incarnation>, stop: Stop) {
        let mut ticks = tokio::time::interval(ANNOUNCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listens = true;
        loop {
            let received = tokio::select! {
                biased;
                () = stop.requested() => return,
                _ = ticks.tick() => {
                    self.announce().await;
                    continue;
                }
                received = others.next(), if listens => received,
            };
            let Some(delivery) = received else {
                // The connection is closed, or the subscription was refused.
                listens = false;
                continue;
            };
            let Ok(other) = decode::<ActiveAnnouncement>(&delivery.payload) else { continue };
            if other.incarnation < self.incarnation {
                // If this fails, the run has already ended.
                let _ = earlier.send(other.incarnation);
                return;
            }
            if other.incarnation > self.incarnation {
                // The other run stands down as soon as it receives this.
                self.announce().await;
            }
        }
    }

    async fn announce(&self) {
        let announcement = ActiveAnnouncement { v: ProtocolVersion::CURRENT, incarnation: self.incarnation };
        let sent = match encode(&announcement) {
            Ok(payload) => self.bus.publish(Outgoing::new(self.prefix.active(), payload)).await,
            Err(error) => return tracing::error!(%error, "announcement not encoded"),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "announcement not sent");
        }
    }
}
