//! Writes the history down: at each client's connection, what it asked of servers and what it heard.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dormouse_bus::{
    Bus, BusEvent, Outgoing, PublishError, Reply, RequestError, SubscribeError, SubscribeOptions,
    Subscription, service_error,
};
use dormouse_checker::{
    Answer, Burst, Feed, FeedBegins, FeedKeys, FeedTells, FeedTold, Harm, HarmKind, Heard, History,
    Op as Asked, Outcome, Rules, TermFacts,
};
use dormouse_protocol::{
    ErrorReply, Event, Happened, LogId, Op, Position, Prefix, RoutePattern, ServerName, Subject, decode,
};
use dormouse_storage::manifest::Manifest;
use tokio::sync::broadcast;

use crate::network::Net;
use crate::trace::{Trace, brief};

/// How many of its changing requests a client may send again.
const REPEATABLE: usize = 64;

/// A changing request as it was sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Of what.
    pub subject: Subject,
    /// What.
    pub op: Op,
    /// The request.
    pub payload: Bytes,
}

/// The history of a run, as it is written. Cloning shares it.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    trace: Trace,
    net: Net,
    state: Mutex<History>,
    lives: Mutex<BTreeMap<ServerName, Life>>,
    /// The feeds that are being read, by subject and place in its history.
    feeds: Mutex<BTreeMap<(Subject, usize), Reading>>,
}

/// A log in use.
struct Life {
    log: LogId,
    /// The harm of its being sealed by somebody else, which its process does not know of yet.
    sealed: Option<usize>,
}

/// How it goes with a feed.
struct Reading {
    client: u32,
    came_to: Option<Position>,
    error: Option<String>,
}

impl Recorder {
    /// An empty history of what is said over `net`, that is to be judged by `rules`.
    #[must_use]
    pub fn new(trace: Trace, net: Net, rules: Rules) -> Self {
        let state = Mutex::new(History { rules, ..History::default() });
        let (lives, feeds) = Default::default();
        Self(Arc::new(Shared { trace, net, state, lives, feeds }))
    }

    /// What was written.
    #[must_use]
    pub fn history(&self) -> History {
        self.state().clone()
    }

    /// What befell a server. Returns its number, for [`Self::harm_over`].
    pub fn harm(&self, server: &ServerName, kind: HarmKind, since: Duration) -> usize {
        let now = self.0.trace.now();
        self.0.trace.line(format_args!("harm {server} {kind:?} since {since:?}"));
        let mut history = self.state();
        // Until it is said to be over, it is not.
        history.harms.push(Harm {
            server: server.clone(),
            kind,
            since: since.min(now),
            until: Duration::MAX,
        });
        history.harms.len() - 1
    }

    /// The harm of this number was over now. What was said before may be heard a little later.
    pub fn harm_over(&self, number: usize) {
        let until = self.0.trace.now() + self.0.net.delay();
        self.state().harms[number].until = until;
    }

    /// A server's process goes on with this log: it knows what became of an earlier one.
    pub fn begins(&self, log: &LogId) {
        self.ends(log.server());
        self.lives().insert(log.server().clone(), Life { log: log.clone(), sealed: None });
    }

    /// A server's process acknowledges nothing any more with the log that it had.
    pub fn ends(&self, server: &ServerName) {
        let life = self.lives().remove(server);
        if let Some(sealed) = life.and_then(|life| life.sealed) {
            self.harm_over(sealed);
        }
    }

    /// A log was sealed by somebody else. A process that uses it may acknowledge changes at the weaker levels until it
    /// knows.
    pub fn taken_over(&self, log: &LogId) {
        let number = self.harm(log.server(), HarmKind::TakenOver, self.0.trace.now());
        match self.lives().get_mut(log.server()) {
            Some(life) if life.log == *log => life.sealed = Some(number),
            _ => self.harm_over(number),
        }
    }

    fn lives(&self) -> MutexGuard<'_, BTreeMap<ServerName, Life>> {
        self.0.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A subject has a new newest manifest.
    pub fn owned(&self, manifest: &Manifest) {
        let facts =
            TermFacts { base: Some(manifest.term_base), server: Some(manifest.owner.server().clone()) };
        let mut history = self.state();
        let recorded = history.subjects.entry(manifest.subject.clone()).or_default();
        recorded.terms.insert(manifest.term, facts);
    }

    /// An event was heard.
    pub fn heard(&self, subject: Subject, event: Event) {
        let at = self.0.trace.now();
        self.state().subjects.entry(subject).or_default().events.push(Heard { at, event });
    }

    /// A client asked for sets without waiting, which were written here.
    fn burst(&self, subject: &Subject, client: u32, written: Vec<Option<Position>>) {
        let at = self.0.trace.now();
        self.0.trace.count("sets without waiting");
        self.0.trace.line(format_args!("burst client-{client} {subject} {written:?}"));
        let mut history = self.state();
        history.subjects.entry(subject.clone()).or_default().bursts.push(Burst { client, at, written });
    }

    /// A client begins a feed. Its place, for all that is said of it.
    pub fn feed_begins(&self, subject: &Subject, client: u32, begins: FeedBegins, keys: FeedKeys) -> usize {
        let at = self.0.trace.now();
        self.0.trace.count("feed");
        self.0.trace.line(format_args!("feed client-{client} {subject} {begins:?} {keys:?}"));
        let place = {
            let mut history = self.state();
            let feeds = &mut history.subjects.entry(subject.clone()).or_default().feeds;
            feeds.push(Feed { client, at, begins, keys, told: Vec::new() });
            feeds.len() - 1
        };
        let reading = Reading { client, came_to: None, error: None };
        self.feeds().insert((subject.clone(), place), reading);
        place
    }

    /// A feed told something, and is there now.
    pub fn feed_told(&self, subject: &Subject, place: usize, what: FeedTells, position: Option<Position>) {
        let at = self.0.trace.now();
        let name = match &what {
            FeedTells::Set { .. } => "feed told: set",
            FeedTells::Removed { .. } => "feed told: removed",
            FeedTells::Cleared { .. } => "feed told: cleared",
            FeedTells::Configured => "feed told: configured",
            FeedTells::CaughtUp(_) => "feed told: caught up",
            FeedTells::Reset => "feed told: reset",
        };
        self.0.trace.count(name);
        self.0.trace.line(format_args!("{name}, {subject} {place} at {position:?}"));
        self.feed_came_to(subject, place, position);
        if let Some(feed) =
            self.state().subjects.get_mut(subject).and_then(|recorded| recorded.feeds.get_mut(place))
        {
            feed.told.push(FeedTold { at, what, position });
        }
    }

    /// How far a feed has come.
    pub fn feed_came_to(&self, subject: &Subject, place: usize, position: Option<Position>) {
        if let Some(reading) = self.feeds().get_mut(&(subject.clone(), place)) {
            reading.came_to = position.max(reading.came_to);
        }
    }

    /// A feed has reported an error.
    pub fn feed_failed(&self, subject: &Subject, place: usize, error: &dormouse_client::Error) {
        self.0.trace.line(format_args!("feed failed, {subject} {place}: {error}"));
        if let Some(reading) = self.feeds().get_mut(&(subject.clone(), place)) {
            reading.error = Some(error.to_string());
        }
    }

    /// Nobody reads the feed any more. One that has failed is remembered.
    pub fn feed_ends(&self, subject: &Subject, place: usize) {
        let key = (subject.clone(), place);
        let mut feeds = self.feeds();
        if feeds.get(&key).is_some_and(|reading| reading.error.is_none()) {
            feeds.remove(&key);
        }
    }

    /// A client reads no feeds any more.
    pub fn feeds_end(&self, client: u32) {
        self.feeds().retain(|_, reading| reading.client != client || reading.error.is_some());
    }

    /// What is wrong with the feeds that are read, once every subject is where `goals` say: those that have not come so
    /// far, and those that have failed.
    #[must_use]
    pub fn feeds_behind(&self, goals: &BTreeMap<Subject, Position>) -> Vec<String> {
        let mut wrong = Vec::new();
        for ((subject, place), reading) in &*self.feeds() {
            if let Some(error) = &reading.error {
                wrong.push(format!("feed {place} of {subject} has failed: {error}"));
            } else if let Some(goal) = goals.get(subject)
                && reading.came_to < Some(*goal)
            {
                let came_to = reading.came_to;
                wrong.push(format!("feed {place} of {subject} is at {came_to:?}, and the subject at {goal}"));
            }
        }
        wrong
    }

    fn feeds(&self) -> MutexGuard<'_, BTreeMap<(Subject, usize), Reading>> {
        self.0.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn invoked(
        &self,
        client: u32,
        server: ServerName,
        op: Op,
        subject: &Subject,
        payload: &[u8],
    ) -> Option<usize> {
        let asked = Asked::from_wire(op, payload).ok()??;
        let now = self.0.trace.now();
        self.0.trace.count(match op {
            Op::Set => "call: set",
            Op::Delete => "call: delete",
            Op::DeleteAll => "call: delete_all",
            Op::Configure => "call: configure",
            Op::Get => "call: get",
            Op::GetAll => "call: get_all",
            Op::Keys => "call: keys",
            Op::Changes => "call: changes",
            Op::Info => "call: info",
            Op::Flush => "call: flush",
            Op::Destroy => "call: destroy",
            // None of them is taken down.
            Op::UploadBegin
            | Op::UploadChunk
            | Op::UploadFinish
            | Op::UploadCommit
            | Op::UploadCancel
            | Op::GetChunk => return None,
        });
        let mut history = self.state();
        let recorded = history.subjects.entry(subject.clone()).or_default();
        Some(recorded.invoked(client, Some(server), asked, now))
    }

    fn returned(&self, subject: &Subject, place: usize, outcome: Outcome) {
        let now = self.0.trace.now();
        self.0.trace.count(match &outcome {
            Outcome::Answered(_) => "answered",
            Outcome::Refused(error) if error.happened() == Happened::No => "refused",
            Outcome::Refused(_) | Outcome::Unknown => "outcome unknown",
        });
        if let Some(recorded) = self.state().subjects.get_mut(subject) {
            recorded.returned(place, now, outcome);
        }
    }

    fn state(&self) -> MutexGuard<'_, History> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's connection, watched.
pub struct Line {
    inner: Arc<dyn Bus>,
    recorder: Recorder,
    client: u32,
    prefix: Prefix,
    sent: Mutex<VecDeque<Sent>>,
}

impl Line {
    /// Watches `inner`, the connection of a client.
    #[must_use]
    pub fn new(inner: Arc<dyn Bus>, recorder: Recorder, client: u32) -> Self {
        Self { inner, recorder, client, prefix: Prefix::default(), sent: Mutex::default() }
    }

    /// The changing requests that were sent last, the newest last.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.remembered().iter().cloned().collect()
    }

    /// The client asked for sets without waiting, which were written here, in the order of the calls.
    pub fn burst(&self, subject: &Subject, written: Vec<Option<Position>>) {
        self.recorder.burst(subject, self.client, written);
    }

    fn remembered(&self) -> MutexGuard<'_, VecDeque<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn understand(&self, message: &Outgoing) -> Option<(ServerName, Op, Subject)> {
        let rest = message.route.as_str().strip_prefix(self.prefix.as_str())?.strip_prefix(".server.")?;
        let server = ServerName::new(rest.split('.').next()?).ok()?;
        let route = self.prefix.parse_server(&server, message.route.as_str()).ok()?;
        Some((server, route.op, route.subject))
    }

    fn remember(&self, op: Op, subject: &Subject, payload: &Bytes) {
        if !op.changes() {
            return;
        }
        let mut sent = self.remembered();
        if sent.iter().any(|known| known.payload == payload) {
            return;
        }
        if sent.len() >= REPEATABLE {
            sent.pop_front();
        }
        sent.push_back(Sent { subject: subject.clone(), op, payload: payload.clone() });
    }
}

/// What an end of a request says.
fn outcome(op: Op, answer: &Result<Reply, RequestError>) -> Outcome {
    match answer {
        Ok(reply) => match service_error(reply) {
            Some(error) => Outcome::Refused(error),
            None => match Answer::from_wire(op, &reply.payload) {
                Ok(Some(answer)) => Outcome::Answered(answer),
                Ok(None) | Err(_) => Outcome::Unknown,
            },
        },
        Err(error) if error.happened() == Happened::No => {
            Outcome::Refused(ErrorReply::unavailable(error.to_string()))
        }
        Err(_) => Outcome::Unknown,
    }
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Answered(answer) => match answer.position() {
            Some(position) => format!("answered at {position}"),
            None => "answered".to_owned(),
        },
        Outcome::Refused(error) => format!("refused, {}", error.code),
        Outcome::Unknown => "unknown".to_owned(),
    }
}

#[async_trait]
impl Bus for Line {
    async fn request(&self, message: Outgoing, deadline: Duration) -> Result<Reply, RequestError> {
        let Some((server, op, subject)) = self.understand(&message) else {
            return self.inner.request(message, deadline).await;
        };
        let (client, trace) = (self.client, &self.recorder.0.trace);
        let digest = brief(&message.payload);
        trace.line(format_args!("call client-{client} {server} {op} {subject} {digest:016x}"));
        self.remember(op, &subject, &message.payload);
        let place = self.recorder.invoked(client, server, op, &subject, &message.payload);
        let answer = self.inner.request(message, deadline).await;
        let mut outcome = outcome(op, &answer);
        if matches!(outcome, Outcome::Refused(_)) && self.recorder.0.net.has_repeated(digest) {
            // The refusal speaks of one copy only.
            outcome = Outcome::Unknown;
        }
        trace.line(format_args!("done client-{client} {op} {subject} {digest:016x}: {}", words(&outcome)));
        if let Some(place) = place {
            self.recorder.returned(&subject, place, outcome);
        }
        answer
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        self.inner.publish(message).await
    }

    async fn subscribe(
        &self,
        pattern: RoutePattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        self.inner.subscribe(pattern, options).await
    }

    fn events(&self) -> broadcast::Receiver<BusEvent> {
        self.inner.events()
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }

    fn max_payload(&self) -> usize {
        self.inner.max_payload()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// Writes down the events that `subscription` brings, until it ends.
pub async fn listen(recorder: Recorder, mut subscription: Subscription) {
    let prefix = Prefix::default();
    while let Some(delivery) = subscription.next().await {
        let subject = prefix.parse_events(delivery.route.as_str());
        if let (Ok(subject), Ok(event)) = (subject, decode::<Event>(&delivery.payload)) {
            recorder.heard(subject, event);
        }
    }
}
