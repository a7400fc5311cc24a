//! One coordinator at a time: asking before it begins, answering while it is at work, and standing down.
//!
//! Two at once lose no data, but readers under a lease may then see the past, and both record what they think. So
//! whoever starts asks first; and of two that hear each other, which happens when they started in the same moment or
//! could not reach each other, the one whose run began later stands down.

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

use super::inbox::Listening;

/// How long an answer is waited for.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// After so many questions in a row without an answer nobody is there: who died without a word may seem to be
/// listening for a while.
const SILENT_QUESTIONS: u32 = 3;

/// How often who stands by asks again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How often who coordinates says so.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// Who coordinates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nobody,
    /// Another run, where it says which.
    Another(Option<Incarnation>),
}

/// Asks whether anybody coordinates. While there is no connection it waits for one.
pub(super) async fn who_coordinates(bus: &dyn Bus, prefix: &Prefix, incarnation: Incarnation) -> Found {
    let request = PresenceRequest { v: ProtocolVersion::CURRENT, incarnation };
    let mut silent = 0;
    while silent < SILENT_QUESTIONS {
        match ask::<_, PresenceReply>(bus, prefix.presence(), &request, ASK_DEADLINE).await {
            Ok(reply) => return Found::Another(Some(reply.incarnation)),
            // Somebody is there, even if the two do not understand each other.
            Err(AskError::Service(_) | AskError::Decode { .. }) => return Found::Another(None),
            // Where it was closed, listening fails next.
            Err(AskError::Request(RequestError::NoResponders(_) | RequestError::Closed { .. })) => {
                return Found::Nobody;
            }
            Err(AskError::Request(RequestError::Disconnected)) => {}
            Err(AskError::Request(RequestError::Deadline { .. })) => silent += 1,
            Err(error) => {
                tracing::warn!(%error, "cannot find out whether another coordinator is at work");
                return Found::Nobody;
            }
        }
    }
    tracing::info!("a coordinator seems to listen and does not answer: taken for dead");
    Found::Nobody
}

/// Answers and announces that `incarnation` coordinates, until the stop signal of the tasks. What comes back yields the
/// earlier run, once one is heard of.
pub(super) async fn be_present(
    on: Listening<'_>,
    incarnation: Incarnation,
) -> Result<oneshot::Receiver<Incarnation>, SubscribeError> {
    let options = ServeOptions { inbox_prefixes: on.inbox_prefixes.clone(), ..ServeOptions::default() };
    let questions = serve(on.bus, on.env, on.tasks, on.prefix.presence().into(), options).await?;
    let others = on.bus.subscribe(on.prefix.active().into(), SubscribeOptions::default()).await?;
    let (earlier, heard) = oneshot::channel();
    let stop = on.tasks.stop().clone();
    on.tasks.spawn("presence", async move {
        tokio::select! {
            biased;
            () = stop.given() => {}
            () = answer(questions, incarnation) => {}
        }
    });
    let herald = Herald { bus: Arc::clone(on.bus), prefix: on.prefix.clone(), incarnation };
    let stop = on.tasks.stop().clone();
    on.tasks.spawn("herald", herald.run(others, earlier, stop));
    Ok(heard)
}

async fn answer(mut questions: Requests, incarnation: Incarnation) {
    while let Some(question) = questions.next().await {
        match decode_request::<PresenceRequest>(&question.payload) {
            // Its own question, come late.
            Ok(request) if request.incarnation == incarnation => {}
            Ok(_) => match encode(&PresenceReply { incarnation }) {
                Ok(payload) => question.responder.ok(payload),
                Err(error) => tracing::error!(%error, "an answer cannot be written"),
            },
            Err(error) => question.responder.error(&error),
        }
    }
}

struct Herald {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    incarnation: Incarnation,
}

impl Herald {
    async fn run(self, mut others: Subscription, earlier: oneshot::Sender<Incarnation>, stop: Stop) {
        let mut ticks = tokio::time::interval(ANNOUNCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listens = true;
        loop {
            let heard = tokio::select! {
                biased;
                () = stop.given() => return,
                _ = ticks.tick() => {
                    self.announce().await;
                    continue;
                }
                heard = others.next(), if listens => heard,
            };
            let Some(delivery) = heard else {
                // The connection is closed, or listening is forbidden.
                listens = false;
                continue;
            };
            let Ok(other) = decode::<ActiveAnnouncement>(&delivery.payload) else { continue };
            if other.incarnation < self.incarnation {
                // Whoever would have been told has ended already if this fails.
                let _ = earlier.send(other.incarnation);
                return;
            }
            if other.incarnation > self.incarnation {
                // The sooner it hears this the better.
                self.announce().await;
            }
        }
    }

    async fn announce(&self) {
        let announcement = ActiveAnnouncement { v: ProtocolVersion::CURRENT, incarnation: self.incarnation };
        let sent = match encode(&announcement) {
            Ok(payload) => self.bus.publish(Outgoing::new(self.prefix.active(), payload)).await,
            Err(error) => return tracing::error!(%error, "an announcement cannot be written"),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an announcement was not sent");
        }
    }
}
