//! Records the history: at each client's connection, its requests to servers and the replies and events that it
//! receives.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dormouse_bus::{Bus, Subscription};
use dormouse_checker::{
    Burst, CallOutcome, Feed, FeedBegins, FeedKeys, FeedOutput, FeedOutputKind, History, Rules, ServerFault,
    ServerFaultKind, TermFacts,
};
use dormouse_format::manifest::Manifest;
use dormouse_protocol::{Executed, LogId, Op, Position, ServerName, Subject};
use dormouse_runtime::{Env, Lock};
use dormouse_testkit::recorder::{self, CallObserver, RecordedBus, RecordedRequest};

use crate::network::FaultyNetwork;
use crate::trace::{Trace, brief};

/// The number of its changing requests that a client can send again.
const REPEATABLE: usize = 64;

/// A changing request, as sent.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The subject.
    pub subject: Subject,
    /// The operation.
    pub op: Op,
    /// The request.
    pub payload: Bytes,
}

/// The history of a run while it is recorded. Cloning shares it.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    trace: Trace,
    net: FaultyNetwork,
    calls: recorder::Recorder,
    lifetimes: Lock<BTreeMap<ServerName, LogLifetime>>,
    /// The active feeds, by subject and index in its history.
    feeds: Lock<BTreeMap<(Subject, usize), FeedRecord>>,
    /// What clients saw that no server may do.
    violations: Lock<Vec<String>>,
}

/// A log in use.
struct LogLifetime {
    log: LogId,
    /// The index of the fault of a foreign seal that the process has not noticed yet.
    sealed: Option<usize>,
}

/// The progress of a feed.
struct FeedRecord {
    client: u32,
    reached: Option<Position>,
    error: Option<String>,
}

impl Recorder {
    /// Creates an empty history of the messages over `net`, which is judged by `rules`.
    #[must_use]
    pub fn new(world: Env, trace: Trace, net: FaultyNetwork, rules: Rules) -> Self {
        let calls = recorder::Recorder::new(world, rules);
        let (lifetimes, feeds, violations) = Default::default();
        Self(Arc::new(Shared { trace, net, calls, lifetimes, feeds, violations }))
    }

    /// Records `bus`, the connection of a client.
    #[must_use]
    pub fn connect(&self, bus: Arc<dyn Bus>, client: u32) -> (Arc<dyn Bus>, Arc<ClientRecord>) {
        let record = Arc::new(ClientRecord { recorder: self.clone(), client, sent: Lock::default() });
        let recorded = RecordedBus::new(bus, client, self.0.calls.clone());
        (Arc::new(recorded.observed_by(Arc::<ClientRecord>::clone(&record))), record)
    }

    /// Returns what clients saw that no server may do.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.0.violations.lock().clone()
    }

    /// Records the events of `subscription` until it ends.
    pub async fn listen(self, subscription: Subscription) {
        self.0.calls.clone().listen(subscription).await;
    }

    /// Returns the recorded history.
    #[must_use]
    pub fn history(&self) -> History {
        self.state().clone()
    }

    /// Records a fault of a server. Returns its index, for [`Self::end_fault`].
    pub fn record_fault(&self, server: &ServerName, kind: ServerFaultKind, since: Duration) -> usize {
        let now = self.0.trace.now();
        self.0.trace.line(format_args!("server-fault {server} {kind:?} since {since:?}"));
        let mut history = self.state();
        // The fault lasts until it is reported as ended.
        history.faults.push(ServerFault {
            server: server.clone(),
            kind,
            since: since.min(now),
            until: Duration::MAX,
        });
        history.faults.len() - 1
    }

    /// Records the end of the fault. Messages from before may arrive a little later.
    pub fn end_fault(&self, number: usize) {
        let until = self.0.trace.now() + self.0.net.delay();
        self.state().faults[number].until = until;
    }

    /// Records that a server's process starts to use this log. It has finished the recovery of earlier logs.
    pub fn begins(&self, log: &LogId) {
        self.ends(log.server());
        self.lifetimes().insert(log.server().clone(), LogLifetime { log: log.clone(), sealed: None });
    }

    /// Records that a server's process acknowledges nothing more with its log.
    pub fn ends(&self, server: &ServerName) {
        let lifetime = self.lifetimes().remove(server);
        if let Some(sealed) = lifetime.and_then(|lifetime| lifetime.sealed) {
            self.end_fault(sealed);
        }
    }

    /// Records that another process sealed a log. A process that uses the log may acknowledge changes at weaker levels
    /// until it notices the seal.
    pub fn taken_over(&self, log: &LogId) {
        let number = self.record_fault(log.server(), ServerFaultKind::TakenOver, self.0.trace.now());
        match self.lifetimes().get_mut(log.server()) {
            Some(lifetime) if lifetime.log == *log => lifetime.sealed = Some(number),
            _ => self.end_fault(number),
        }
    }

    fn lifetimes(&self) -> MutexGuard<'_, BTreeMap<ServerName, LogLifetime>> {
        self.0.lifetimes.lock()
    }

    /// Records the new newest manifest of a subject.
    pub fn owned(&self, manifest: &Manifest) {
        let facts =
            TermFacts { base: Some(manifest.term_base), server: Some(manifest.owner.server().clone()) };
        let mut history = self.state();
        let recorded = history.subjects.entry(manifest.subject.clone()).or_default();
        recorded.terms.insert(manifest.term, facts);
    }

    /// Records sets that a client sent without waiting, with their positions.
    fn burst(&self, subject: &Subject, client: u32, written: Vec<Option<Position>>) {
        let at = self.0.trace.now();
        self.0.trace.count("bursts of sets");
        self.0.trace.line(format_args!("burst client-{client} {subject} {written:?}"));
        let mut history = self.state();
        history.subjects.entry(subject.clone()).or_default().bursts.push(Burst { client, at, written });
    }

    /// Records the start of a feed. Returns its index, for further reports.
    pub fn feed_begins(&self, subject: &Subject, client: u32, begins: FeedBegins, keys: FeedKeys) -> usize {
        let at = self.0.trace.now();
        self.0.trace.count("feed");
        self.0.trace.line(format_args!("feed client-{client} {subject} {begins:?} {keys:?}"));
        let index = {
            let mut history = self.state();
            let feeds = &mut history.subjects.entry(subject.clone()).or_default().feeds;
            feeds.push(Feed { client, at, begins, keys, outputs: Vec::new() });
            feeds.len() - 1
        };
        let reading = FeedRecord { client, reached: None, error: None };
        self.feeds().insert((subject.clone(), index), reading);
        index
    }

    /// Records an output of a feed, and the position after it.
    pub fn feed_output(
        &self,
        subject: &Subject,
        index: usize,
        kind: FeedOutputKind,
        position: Option<Position>,
    ) {
        let at = self.0.trace.now();
        let name = match &kind {
            FeedOutputKind::Set { .. } => "feed output: set",
            FeedOutputKind::Removed { .. } => "feed output: removed",
            FeedOutputKind::Cleared { .. } => "feed output: cleared",
            FeedOutputKind::Configured => "feed output: configured",
            FeedOutputKind::CaughtUp(_) => "feed output: caught up",
            FeedOutputKind::Reset => "feed output: reset",
        };
        self.0.trace.count(name);
        self.0.trace.line(format_args!("{name}, {subject} {index} at {position:?}"));
        self.feed_reached(subject, index, position);
        if let Some(feed) =
            self.state().subjects.get_mut(subject).and_then(|recorded| recorded.feeds.get_mut(index))
        {
            feed.outputs.push(FeedOutput { at, kind, position });
        }
    }

    /// Records the position of a feed.
    pub fn feed_reached(&self, subject: &Subject, index: usize, position: Option<Position>) {
        if let Some(reading) = self.feeds().get_mut(&(subject.clone(), index)) {
            reading.reached = position.max(reading.reached);
        }
    }

    /// Records an error of a feed.
    pub fn feed_failed(&self, subject: &Subject, index: usize, error: &dormouse_client::Error) {
        self.0.trace.line(format_args!("feed failed, {subject} {index}: {error}"));
        if let Some(reading) = self.feeds().get_mut(&(subject.clone(), index)) {
            reading.error = Some(error.to_string());
        }
    }

    /// Records that a client stopped reading a feed. A failed feed stays recorded.
    pub fn feed_ends(&self, subject: &Subject, index: usize) {
        let key = (subject.clone(), index);
        let mut feeds = self.feeds();
        if feeds.get(&key).is_some_and(|reading| reading.error.is_none()) {
            feeds.remove(&key);
        }
    }

    /// Records that a client reads no feeds any more.
    pub fn feeds_end(&self, client: u32) {
        self.feeds().retain(|_, reading| reading.client != client || reading.error.is_some());
    }

    /// Returns the feeds that have failed, or are not at the positions in `goals`, once every subject is there.
    #[must_use]
    pub fn feeds_behind(&self, goals: &BTreeMap<Subject, Position>) -> Vec<String> {
        let mut problems = Vec::new();
        for ((subject, index), reading) in &*self.feeds() {
            if let Some(error) = &reading.error {
                problems.push(format!("feed {index} of {subject} failed: {error}"));
            } else if let Some(goal) = goals.get(subject)
                && reading.reached < Some(*goal)
            {
                let reached = reading.reached;
                problems.push(format!(
                    "feed {index} of {subject} is at {reached:?}, but the subject is at {goal}"
                ));
            }
        }
        problems
    }

    fn feeds(&self) -> MutexGuard<'_, BTreeMap<(Subject, usize), FeedRecord>> {
        self.0.feeds.lock()
    }

    fn state(&self) -> MutexGuard<'_, History> {
        self.0.calls.history()
    }
}

/// The requests of a client, for the trace and for repeats.
pub struct ClientRecord {
    recorder: Recorder,
    client: u32,
    sent: Lock<VecDeque<Sent>>,
}

impl ClientRecord {
    /// Returns the last changing requests, the newest last.
    #[must_use]
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().iter().cloned().collect()
    }

    /// Records sets that the client sent without waiting, with their positions in the order of the calls.
    pub fn burst(&self, subject: &Subject, written: Vec<Option<Position>>) {
        self.recorder.burst(subject, self.client, written);
    }

    /// Records something that the client saw and that no server may do.
    pub fn violation(&self, what: String) {
        self.recorder.0.trace.line(format_args!("violation: {what}"));
        self.recorder.0.violations.lock().push(what);
    }

    fn remember(&self, request: &RecordedRequest) {
        if !request.op.changes() {
            return;
        }
        let mut sent = self.sent.lock();
        if sent.iter().any(|known| known.payload == request.payload) {
            return;
        }
        if sent.len() >= REPEATABLE {
            sent.pop_front();
        }
        let RecordedRequest { subject, op, payload, .. } = request.clone();
        sent.push_back(Sent { subject, op, payload });
    }
}

impl CallObserver for ClientRecord {
    fn sent(&self, request: &RecordedRequest) {
        let RecordedRequest { client, server, subject, op, payload, is_recorded } = request;
        let trace = &self.recorder.0.trace;
        trace.line(format_args!("call client-{client} {server} {op} {subject} {:016x}", brief(payload)));
        self.remember(request);
        if *is_recorded && let Some(name) = call_name(*op) {
            trace.count(name);
        }
    }

    fn ended(&self, request: &RecordedRequest, mut outcome: CallOutcome) -> CallOutcome {
        let RecordedRequest { client, subject, op, payload, is_recorded, .. } = request;
        let Shared { trace, net, .. } = &*self.recorder.0;
        let digest = brief(payload);
        if matches!(outcome, CallOutcome::Refused(_)) && net.has_repeated(digest) {
            // The error concerns only one copy.
            outcome = CallOutcome::Unknown;
        }
        trace.line(format_args!("done client-{client} {op} {subject} {digest:016x}: {}", words(&outcome)));
        if *is_recorded {
            trace.count(match &outcome {
                CallOutcome::Answered(_) => "answered",
                CallOutcome::Refused(error) if error.executed() == Executed::No => "refused",
                CallOutcome::Refused(_) | CallOutcome::Unknown => "outcome unknown",
            });
        }
        outcome
    }
}

/// The name of a recorded operation among the counts of the trace.
const fn call_name(op: Op) -> Option<&'static str> {
    Some(match op {
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
        // These operations are not recorded.
        Op::UploadBegin
        | Op::UploadChunk
        | Op::UploadFinish
        | Op::UploadCommit
        | Op::UploadCancel
        | Op::GetChunk => return None,
    })
}

fn words(outcome: &CallOutcome) -> String {
    match outcome {
        CallOutcome::Answered(answer) => match answer.position() {
            Some(position) => format!("answered at {position}"),
            None => "answered".to_owned(),
        },
        CallOutcome::Refused(error) => format!("refused, {}", error.code),
        CallOutcome::Unknown => "unknown".to_owned(),
    }
}
