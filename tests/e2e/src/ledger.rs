//! The acknowledgements of writers, and whether they were kept.
//!
//! A [`Ledger`] knows every value that was sent to a subject, the status of its write, and the faults of the servers.
//! From the final contents of the subject and of `lost/`, it computes the violations. It uses no clock, no network and
//! no file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use dormouse_checker::{ServerFault, ServerFaultKind};
use dormouse_protocol::{Level, Message, MessageId, Position, Rev, ServerName};

/// The status of a write, as reported to its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStatus {
    /// The result is unknown: the write may have been executed, or may still be.
    Unknown,
    /// Every attempt was reported as not executed.
    Refused,
    /// It was acknowledged; see [`Write::acks`].
    Acknowledged,
}

/// One acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The server that sent it; `None`: the value was read, which counts as an acknowledgement.
    pub server: Option<ServerName>,
    /// The level.
    pub level: Level,
    /// The id of the message, which never changes.
    pub id: MessageId,
    /// The revision that wrote it.
    pub rev: Rev,
    /// The time of the request: the acknowledgement is not older.
    pub asked: Duration,
    /// The time of receipt: the acknowledgement is not newer.
    pub at: Duration,
}

impl Ack {
    /// Returns the position in the subject's history.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { term: self.id.term, rev: self.rev }
    }
}

/// One write of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key; `None` in a stream.
    pub key: Option<String>,
    /// The status.
    pub status: WriteStatus,
    /// The acknowledgements.
    pub acks: Vec<Ack>,
}

/// The record of one subject.
#[derive(Debug, Clone)]
pub struct Ledger {
    name: String,
    /// Every acknowledgement has at least this level.
    level: Level,
    /// The largest age of an accepted change that is not in the bucket, while its server runs.
    unshipped: Duration,
    writes: BTreeMap<String, Write>,
    /// The durable watermark of each term.
    durable: BTreeMap<u64, Rev>,
    /// The reported value of each message id.
    names: HashMap<(u64, u64), String>,
    /// Violations that were found during the run.
    problems: Vec<String>,
}

/// The presence of a value in the subject, or the reason of its absence.
enum ValuePresence {
    Yes,
    No(String),
}

impl Ledger {
    /// Creates the ledger of a subject with this level. Changes accepted at a weaker level than `bucket` are in the
    /// bucket after `unshipped`, unless their server is killed or paused.
    #[must_use]
    pub fn new(name: &str, level: Level, unshipped: Duration) -> Self {
        Self {
            name: name.to_owned(),
            level,
            unshipped,
            writes: BTreeMap::new(),
            durable: BTreeMap::new(),
            names: HashMap::new(),
            problems: Vec::new(),
        }
    }

    /// Returns the subject's level.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Records a value before it is sent. Values are never sent twice, except in a repeat of the same request.
    pub fn sent(&mut self, value: &str, key: Option<&str>) {
        let write = Write { key: key.map(str::to_owned), status: WriteStatus::Unknown, acks: Vec::new() };
        assert!(self.writes.insert(value.to_owned(), write).is_none(), "{value} is sent twice");
    }

    /// Records that the write was not executed.
    pub fn refused(&mut self, value: &str) {
        let write = self.writes.get_mut(value).expect("a rejected value was sent");
        if write.status == WriteStatus::Unknown {
            write.status = WriteStatus::Refused;
        }
    }

    /// Records an acknowledgement.
    pub fn acknowledged(&mut self, value: &str, ack: Ack) {
        let level = ack.level.max(self.level);
        let ack = Ack { level, ..ack };
        self.name(ack.id, value);
        if level == Level::Bucket {
            self.durable(ack.position());
        }
        let write = self.writes.get_mut(value).expect("an acknowledged value was sent");
        write.status = WriteStatus::Acknowledged;
        let other = |known: &&Ack| known.level == Level::Bucket && known.id != ack.id;
        if level == Level::Bucket
            && let Some(other) = write.acks.iter().find(other)
        {
            self.problems.push(format!("{value} was written twice: {} and {}", other.id, ack.id));
        }
        write.acks.push(ack);
    }

    /// Records that everything up to this position is in the bucket.
    pub fn durable(&mut self, position: Position) {
        let rev = self.durable.entry(position.term.get()).or_default();
        *rev = (*rev).max(position.rev);
    }

    /// Records read messages. In a subject of level `bucket`, a shown message must never vanish.
    pub fn read(&mut self, messages: &[Message], at: Duration) {
        for message in messages {
            let Some(value) = value_of(message) else { continue };
            self.name(message.id(), &value);
            let Some(write) = self.writes.get(&value) else { continue };
            let known = write.acks.iter().any(|known| known.id == message.id());
            if self.level == Level::Bucket && !known {
                let (level, id, rev) = (self.level, message.id(), message.rev);
                let ack = Ack { server: None, level, id, rev, asked: at, at };
                self.acknowledged(&value, ack);
            }
        }
    }

    /// Returns the position under a key that every later read must show, or a newer one.
    #[must_use]
    pub fn must_show(&self, key: &str) -> Option<Position> {
        let under_key = self.writes.values().filter(|write| write.key.as_deref() == Some(key));
        let acks = under_key.flat_map(|write| &write.acks);
        acks.filter(|ack| self.is_durable(ack)).map(Ack::position).max_by_key(order)
    }

    /// Returns the violations, given the messages of the subject, the values in `lost/` and the faults of the servers.
    /// Only a [wiped disk](ServerFaultKind::DiskWiped) may lose changes above level `memory`.
    #[must_use]
    pub fn violations(
        &self,
        state: &[Message],
        lost: &BTreeSet<String>,
        faults: &[ServerFault],
    ) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut values: HashMap<String, &Message> = HashMap::new();
        let mut keys: HashMap<&str, &Message> = HashMap::new();
        for message in state {
            let Some(value) = value_of(message) else {
                problems.push(format!("{} has no value", message.id()));
                continue;
            };
            if let Some(other) = self.names.get(&(message.term.get(), message.seq.get()))
                && *other != value
            {
                problems.push(format!("{} is {value} now, but was {other}", message.id()));
            }
            if let Some(key) = &message.key {
                keys.insert(key, message);
            }
            match self.writes.get(&value) {
                None => problems.push(format!("{value} was never sent")),
                Some(write) if write.key != message.key => {
                    problems.push(format!("{value} is under {:?} instead of {:?}", message.key, write.key));
                }
                Some(write) if write.status == WriteStatus::Refused => {
                    problems.push(format!("{value} was rejected, but it is at {}", message.id()));
                }
                Some(_) => {}
            }
            if let Some(twice) = values.insert(value.clone(), message) {
                problems.push(format!("{value} exists twice: {} and {}", twice.id(), message.id()));
            }
        }
        for (value, write) in &self.writes {
            for ack in &write.acks {
                if let ValuePresence::No(found) = keeps(write, value, ack, &values, &keys)
                    && let Some(why) = self.must_exist_because(value, ack, lost, faults)
                {
                    let name = &self.name;
                    problems.push(format!("{name}: {value} is gone ({found}), {why}: {ack:?}"));
                }
            }
        }
        problems
    }

    /// Returns the number of acknowledged values that are missing with a valid reason.
    #[must_use]
    pub fn allowed_losses(&self, state: &[Message]) -> usize {
        let values: BTreeSet<String> = state.iter().filter_map(value_of).collect();
        let lost = |(value, write): &(&String, &Write)| {
            write.key.is_none() && !write.acks.is_empty() && !values.contains(*value)
        };
        self.writes.iter().filter(lost).count()
    }

    fn name(&mut self, id: MessageId, value: &str) {
        let known = self.names.entry((id.term.get(), id.seq.get())).or_insert_with(|| value.to_owned());
        if known != value {
            self.problems.push(format!("{id} is both {value} and {known}"));
        }
    }

    fn is_durable(&self, ack: &Ack) -> bool {
        let through = self.durable.get(&ack.id.term.get());
        ack.level == Level::Bucket || through.is_some_and(|through| ack.rev <= *through)
    }

    /// Returns the reason why an acknowledged value must exist; `None` if it may be lost.
    fn must_exist_because(
        &self,
        value: &str,
        ack: &Ack,
        lost: &BTreeSet<String>,
        faults: &[ServerFault],
    ) -> Option<&'static str> {
        if self.is_durable(ack) {
            return Some("and it was in the bucket");
        }
        if lost.contains(value) {
            return None;
        }
        let excuses = |fault: &&ServerFault| {
            let in_time = ack.asked <= fault.until && ack.at + self.unshipped >= fault.since;
            Some(&fault.server) == ack.server.as_ref()
                && in_time
                && (fault.kind == ServerFaultKind::DiskWiped || ack.level == Level::Memory)
        };
        if faults.iter().any(|fault| excuses(&fault)) {
            return None;
        }
        Some("it is not in lost/, and no fault of its server explains the loss")
    }
}

fn keeps(
    write: &Write,
    value: &str,
    ack: &Ack,
    values: &HashMap<String, &Message>,
    keys: &HashMap<&str, &Message>,
) -> ValuePresence {
    let Some(key) = write.key.as_deref() else {
        return match values.get(value) {
            Some(message) if ack.level < Level::Bucket || message.id() == ack.id => ValuePresence::Yes,
            Some(message) => ValuePresence::No(format!("it is at {} instead", message.id())),
            None => ValuePresence::No("it is in no message".to_owned()),
        };
    };
    match keys.get(key) {
        Some(message) => {
            let found = Position { term: message.term, rev: message.rev };
            if order(&found) >= order(&ack.position()) {
                ValuePresence::Yes
            } else {
                ValuePresence::No(format!("{key} is from {found}"))
            }
        }
        None => ValuePresence::No(format!("{key} does not exist")),
    }
}

/// Orders positions in a subject's history: by term, then by rev.
#[must_use]
pub const fn order(position: &Position) -> (u64, u64) {
    (position.term.get(), position.rev.get())
}

/// Returns the identifying part of a value, before its padding.
#[must_use]
pub fn value_of(message: &Message) -> Option<String> {
    let bytes = message.value.as_ref()?;
    let end = bytes.iter().position(|byte| *byte == b';')? + 1;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::{Headers, Seq, Term, Timestamp};

    use super::*;

    const UNSHIPPED: Duration = Duration::from_secs(1);

    fn server(name: &str) -> ServerName {
        name.parse().unwrap()
    }

    fn ack(level: Level, term: u64, rev: u64, at: u64) -> Ack {
        let id = MessageId { term: Term::new(term), seq: Seq::new(rev) };
        let at = Duration::from_secs(at);
        Ack { server: Some(server("persist-1")), level, id, rev: Rev::new(rev), asked: at, at }
    }

    fn message(value: &str, key: Option<&str>, term: u64, rev: u64) -> Message {
        Message {
            seq: Seq::new(rev),
            term: Term::new(term),
            rev: Rev::new(rev),
            key: key.map(str::to_owned),
            value: Some(format!("{value}xxx").into_bytes().into()),
            headers: Headers::default(),
            timestamp: Timestamp::from_micros(1),
            size: 3,
            value_omitted: false,
            expires_at: None,
        }
    }

    fn fault(name: &str, kind: ServerFaultKind, at: u64) -> ServerFault {
        let at = Duration::from_secs(at);
        ServerFault { server: server(name), kind, since: at, until: at }
    }

    fn stream(level: Level) -> Ledger {
        let mut ledger = Ledger::new("s", level, UNSHIPPED);
        for number in 1..=3 {
            let value = format!("v{number};");
            ledger.sent(&value, None);
            ledger.acknowledged(&value, ack(level, 1, number, 10 * number));
        }
        ledger
    }

    fn state(numbers: &[u64]) -> Vec<Message> {
        numbers.iter().map(|number| message(&format!("v{number};"), None, 1, *number)).collect()
    }

    fn violations_of(ledger: &Ledger, state: &[Message], lost: &[&str], faults: &[ServerFault]) -> usize {
        let lost = lost.iter().map(|&value| value.to_owned()).collect();
        ledger.violations(state, &lost, faults).len()
    }

    /// The ledger reports a lost or renamed `bucket` write, under any fault and even if `lost/` holds the value.
    #[test]
    fn bucket_ack_loss_is_always_a_violation() {
        let ledger = stream(Level::Bucket);
        assert_eq!(violations_of(&ledger, &state(&[1, 2, 3]), &[], &[]), 0);
        let faults = [fault("persist-1", ServerFaultKind::DiskWiped, 30)];
        assert_eq!(violations_of(&ledger, &state(&[1, 2]), &["v3;"], &faults), 1);
        // Under another id it is another message.
        let moved = [state(&[1, 2]), vec![message("v3;", None, 2, 3)]].concat();
        assert_eq!(violations_of(&ledger, &moved, &[], &[]), 1);
    }

    /// A weaker write may be missing only if `lost/` holds it or a matching fault hit its server in time.
    #[test]
    fn weaker_level_loss_needs_a_matching_fault() {
        for level in [Level::Interval, Level::Disk] {
            let ledger = stream(level);
            assert_eq!(violations_of(&ledger, &state(&[1, 2]), &[], &[]), 1, "no fault");
            assert_eq!(violations_of(&ledger, &state(&[1, 2]), &["v3;"], &[]), 0, "kept in lost/");
            assert_eq!(
                violations_of(
                    &ledger,
                    &state(&[1, 2]),
                    &[],
                    &[fault("persist-1", ServerFaultKind::Killed, 30)]
                ),
                1
            );
            assert_eq!(
                violations_of(
                    &ledger,
                    &state(&[1, 2]),
                    &[],
                    &[fault("persist-1", ServerFaultKind::DiskWiped, 31)]
                ),
                0
            );
            assert_eq!(
                violations_of(
                    &ledger,
                    &state(&[1, 2]),
                    &[],
                    &[fault("persist-1", ServerFaultKind::DiskWiped, 32)]
                ),
                1,
                "shipped"
            );
            assert_eq!(
                violations_of(
                    &ledger,
                    &state(&[1, 2]),
                    &[],
                    &[fault("persist-2", ServerFaultKind::DiskWiped, 31)]
                ),
                1
            );
        }
        let ledger = stream(Level::Memory);
        assert_eq!(
            violations_of(&ledger, &state(&[1, 2]), &[], &[fault("persist-1", ServerFaultKind::Killed, 31)]),
            0
        );
        assert_eq!(
            violations_of(&ledger, &state(&[1, 2]), &[], &[fault("persist-1", ServerFaultKind::Killed, 32)]),
            1,
            "written"
        );
    }

    /// A durable position makes all earlier writes of its term durable, and no write of another term.
    #[test]
    fn durable_position_covers_earlier_writes_of_one_term() {
        let mut ledger = stream(Level::Memory);
        let faults = [fault("persist-1", ServerFaultKind::DiskWiped, 20)];
        assert_eq!(violations_of(&ledger, &state(&[1, 3]), &[], &faults), 0);
        ledger.durable(ack(Level::Memory, 1, 2, 0).position());
        assert_eq!(violations_of(&ledger, &state(&[1, 3]), &[], &faults), 1);
        // In another term, that rev may belong to another history.
        let mut ledger = stream(Level::Memory);
        ledger.durable(ack(Level::Memory, 2, 2, 0).position());
        assert_eq!(violations_of(&ledger, &state(&[1, 3]), &[], &faults), 0);
    }

    /// The ledger reports a stored value that was rejected, never sent, stored twice or acknowledged twice.
    #[test]
    fn ledger_reports_rejected_unsent_and_duplicate_values() {
        let mut ledger = stream(Level::Bucket);
        ledger.sent("v4;", None);
        assert_eq!(violations_of(&ledger, &state(&[1, 2, 3, 4]), &[], &[]), 0, "unknown");
        ledger.refused("v4;");
        assert_eq!(violations_of(&ledger, &state(&[1, 2, 3, 4]), &[], &[]), 1);
        assert_eq!(violations_of(&ledger, &state(&[1, 2, 3, 5]), &[], &[]), 1);
        let twice = [state(&[1, 2, 3]), vec![message("v2;", None, 1, 9)]].concat();
        assert!(violations_of(&ledger, &twice, &[], &[]) > 0);
        ledger.acknowledged("v3;", ack(Level::Bucket, 2, 9, 40));
        assert!(violations_of(&ledger, &state(&[1, 2, 3]), &[], &[]) > 0, "executed twice");
    }

    /// The ledger reports a message id that shows two different values.
    #[test]
    fn message_id_has_one_value() {
        let mut ledger = Ledger::new("s", Level::Memory, UNSHIPPED);
        ledger.sent("a;", None);
        ledger.sent("b;", None);
        ledger.acknowledged("a;", ack(Level::Memory, 1, 1, 10));
        ledger.read(&[message("b;", None, 1, 1)], UNSHIPPED);
        let faults = [fault("persist-1", ServerFaultKind::DiskWiped, 10)];
        assert!(violations_of(&ledger, &[], &[], &faults) > 0);
    }

    /// An unanswered `bucket` write must stay once a read has shown it.
    #[test]
    fn bucket_write_shown_by_a_read_must_stay() {
        let mut ledger = Ledger::new("s", Level::Bucket, UNSHIPPED);
        ledger.sent("a;", None);
        assert_eq!(violations_of(&ledger, &[], &[], &[]), 0);
        ledger.read(&[message("a;", None, 1, 1)], UNSHIPPED);
        assert_eq!(violations_of(&ledger, &[], &[], &[]), 1);
    }

    /// A newer value under the same key satisfies older acks; an older value, another key or no value does not.
    #[test]
    fn key_with_a_newer_value_satisfies_older_acks() {
        let mut ledger = Ledger::new("s", Level::Bucket, UNSHIPPED);
        for (value, rev) in [("a;", 1), ("b;", 2)] {
            ledger.sent(value, Some("k"));
            ledger.acknowledged(value, ack(Level::Bucket, 1, rev, rev));
        }
        ledger.sent("c;", Some("k"));
        assert_eq!(ledger.must_show("k").map(|position| order(&position)), Some((1, 2)));
        assert_eq!(violations_of(&ledger, &[message("b;", Some("k"), 1, 2)], &[], &[]), 0);
        assert_eq!(violations_of(&ledger, &[message("c;", Some("k"), 2, 2)], &[], &[]), 0);
        assert_eq!(violations_of(&ledger, &[message("a;", Some("k"), 1, 1)], &[], &[]), 1);
        assert!(violations_of(&ledger, &[message("b;", Some("l"), 1, 2)], &[], &[]) > 0);
        assert_eq!(violations_of(&ledger, &[], &[], &[]), 2);
    }
}
