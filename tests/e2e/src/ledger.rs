//! What writers were promised, and whether it was kept.
//!
//! A [`Ledger`] knows every value that was ever sent to a subject, what became of it as far as its writer was told, and
//! what befell the servers. Given what is in the subject afterwards, and in `lost/`, it says what should not be so. It
//! knows no clock, no network and no file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use dormouse_protocol::{Level, Message, MessageId, Position, Rev, ServerName};

/// What became of a write, as far as its writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nobody has said yet, or nobody ever will: it may have happened, and may happen still.
    Unknown,
    /// It was said not to have happened, whenever it was tried.
    Refused,
    /// It was acknowledged; see [`Write::promises`].
    Acknowledged,
}

/// One acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// Who gave it; `None`: the value was read, and so it counts.
    pub server: Option<ServerName>,
    /// At which level.
    pub level: Level,
    /// The message's name for ever.
    pub id: MessageId,
    /// The revision that wrote it.
    pub rev: Rev,
    /// When it was asked for: it was given no earlier.
    pub asked: Duration,
    /// When it was heard: it was given no later.
    pub at: Duration,
}

impl Promise {
    /// Where in the subject's history it stands.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { term: self.id.term, rev: self.rev }
    }
}

/// One write of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Under which key; `None` in a stream.
    pub key: Option<String>,
    /// What became of it.
    pub fate: Fate,
    /// What was said about it.
    pub promises: Vec<Promise>,
}

/// What a server suffered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Its process was killed; its disk is as it was.
    Killed,
    /// Its process was killed, and its disk is empty.
    Wiped,
}

/// One thing that befell a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blow {
    /// Who.
    pub server: ServerName,
    /// What.
    pub harm: Harm,
    /// Since when it may have done nothing to save what it had accepted: since then it stood still, was dead, or had not
    /// yet come to terms with what its predecessor left.
    pub since: Duration,
    /// When it struck.
    pub at: Duration,
}

/// All that is known of one subject.
#[derive(Debug, Clone)]
pub struct Ledger {
    name: String,
    /// Everything is acknowledged at least at this level.
    level: Level,
    /// How old an accepted change is at most that is not in the bucket, while its server runs.
    unshipped: Duration,
    writes: BTreeMap<String, Write>,
    /// In each term, everything up to this rev is in the bucket.
    durable: BTreeMap<u64, Rev>,
    /// Which value has which name, as far as anybody was told.
    names: HashMap<(u64, u64), String>,
    /// What should not be so and was seen while writing.
    wrong: Vec<String>,
}

/// Where a value is in the subject, or why not.
enum Kept {
    Yes,
    No(String),
}

impl Ledger {
    /// A subject of this level, of which nothing is known. What was accepted at a weaker level than `bucket` is in the
    /// bucket after `unshipped`, unless its server dies or stands still.
    #[must_use]
    pub fn new(name: &str, level: Level, unshipped: Duration) -> Self {
        Self {
            name: name.to_owned(),
            level,
            unshipped,
            writes: BTreeMap::new(),
            durable: BTreeMap::new(),
            names: HashMap::new(),
            wrong: Vec::new(),
        }
    }

    /// The subject's level.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// A value is on its way. Values are never sent twice, other than as a repetition of the same request.
    pub fn sent(&mut self, value: &str, key: Option<&str>) {
        let write = Write { key: key.map(str::to_owned), fate: Fate::Unknown, promises: Vec::new() };
        assert!(self.writes.insert(value.to_owned(), write).is_none(), "{value} is sent a second time");
    }

    /// It is certain that it did not happen.
    pub fn refused(&mut self, value: &str) {
        let write = self.writes.get_mut(value).expect("what is refused was sent");
        if write.fate == Fate::Unknown {
            write.fate = Fate::Refused;
        }
    }

    /// It was acknowledged.
    pub fn acknowledged(&mut self, value: &str, promise: Promise) {
        let level = promise.level.max(self.level);
        let promise = Promise { level, ..promise };
        self.name(promise.id, value);
        if level == Level::Bucket {
            self.durable(promise.position());
        }
        let write = self.writes.get_mut(value).expect("what is acknowledged was sent");
        write.fate = Fate::Acknowledged;
        let other = |known: &&Promise| known.level == Level::Bucket && known.id != promise.id;
        if level == Level::Bucket
            && let Some(other) = write.promises.iter().find(other)
        {
            self.wrong.push(format!("{value} was written twice: {} and {}", other.id, promise.id));
        }
        write.promises.push(promise);
    }

    /// Everything up to there is in the bucket.
    pub fn durable(&mut self, position: Position) {
        let rev = self.durable.entry(position.term.get()).or_default();
        *rev = (*rev).max(position.rev);
    }

    /// What somebody read. In a subject of level `bucket`, what was seen once must never vanish.
    pub fn read(&mut self, messages: &[Message], at: Duration) {
        for message in messages {
            let Some(value) = value_of(message) else { continue };
            self.name(message.id(), &value);
            let Some(write) = self.writes.get(&value) else { continue };
            let known = write.promises.iter().any(|known| known.id == message.id());
            if self.level == Level::Bucket && !known {
                let (level, id, rev) = (self.level, message.id(), message.rev);
                let promise = Promise { server: None, level, id, rev, asked: at, at };
                self.acknowledged(&value, promise);
            }
        }
    }

    /// The newest position under a key that whoever reads from now on must be shown, or a newer one.
    #[must_use]
    pub fn must_show(&self, key: &str) -> Option<Position> {
        let under_key = self.writes.values().filter(|write| write.key.as_deref() == Some(key));
        let promises = under_key.flat_map(|write| &write.promises);
        promises.filter(|promise| self.is_durable(promise)).map(Promise::position).max_by_key(order)
    }

    /// What should not be so, given what is in the subject and what values were kept in `lost/`.
    #[must_use]
    pub fn violations(&self, state: &[Message], lost: &BTreeSet<String>, blows: &[Blow]) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        let mut values: HashMap<String, &Message> = HashMap::new();
        let mut keys: HashMap<&str, &Message> = HashMap::new();
        for message in state {
            let Some(value) = value_of(message) else {
                wrong.push(format!("{} has no value", message.id()));
                continue;
            };
            if let Some(other) = self.names.get(&(message.term.get(), message.seq.get()))
                && *other != value
            {
                wrong.push(format!("{} is {value} now and was {other}", message.id()));
            }
            if let Some(key) = &message.key {
                keys.insert(key, message);
            }
            match self.writes.get(&value) {
                None => wrong.push(format!("{value} was never sent")),
                Some(write) if write.key != message.key => {
                    wrong.push(format!("{value} is under {:?} and not {:?}", message.key, write.key));
                }
                Some(write) if write.fate == Fate::Refused => {
                    wrong.push(format!("{value} was refused, and is there at {}", message.id()));
                }
                Some(_) => {}
            }
            if let Some(twice) = values.insert(value.clone(), message) {
                wrong.push(format!("{value} is there twice: {} and {}", twice.id(), message.id()));
            }
        }
        for (value, write) in &self.writes {
            for promise in &write.promises {
                if let Kept::No(found) = keeps(write, value, promise, &values, &keys)
                    && let Some(why) = self.no_excuse(value, promise, lost, blows)
                {
                    let name = &self.name;
                    wrong.push(format!("{name}: {value} is gone ({found}), {why}: {promise:?}"));
                }
            }
        }
        wrong
    }

    /// How many acknowledged values are not in the subject and rightly so.
    #[must_use]
    pub fn lost_rightly(&self, state: &[Message]) -> usize {
        let values: BTreeSet<String> = state.iter().filter_map(value_of).collect();
        let lost = |(value, write): &(&String, &Write)| {
            write.key.is_none() && !write.promises.is_empty() && !values.contains(*value)
        };
        self.writes.iter().filter(lost).count()
    }

    fn name(&mut self, id: MessageId, value: &str) {
        let known = self.names.entry((id.term.get(), id.seq.get())).or_insert_with(|| value.to_owned());
        if known != value {
            self.wrong.push(format!("{id} is {value} and {known}"));
        }
    }

    fn is_durable(&self, promise: &Promise) -> bool {
        let through = self.durable.get(&promise.id.term.get());
        promise.level == Level::Bucket || through.is_some_and(|through| promise.rev <= *through)
    }

    /// Why a promise must have been kept; `None` when it may be broken.
    fn no_excuse(
        &self,
        value: &str,
        promise: &Promise,
        lost: &BTreeSet<String>,
        blows: &[Blow],
    ) -> Option<&'static str> {
        if self.is_durable(promise) {
            return Some("and it was in the bucket");
        }
        if lost.contains(value) {
            return None;
        }
        let excuses = |blow: &&Blow| {
            let in_time = promise.asked <= blow.at && promise.at + self.unshipped >= blow.since;
            Some(&blow.server) == promise.server.as_ref()
                && in_time
                && (blow.harm == Harm::Wiped || promise.level == Level::Memory)
        };
        if blows.iter().any(|blow| excuses(&blow)) {
            return None;
        }
        Some("it is not in lost/, and nothing befell its server that would explain it")
    }
}

fn keeps(
    write: &Write,
    value: &str,
    promise: &Promise,
    values: &HashMap<String, &Message>,
    keys: &HashMap<&str, &Message>,
) -> Kept {
    let Some(key) = write.key.as_deref() else {
        return match values.get(value) {
            Some(message) if promise.level < Level::Bucket || message.id() == promise.id => Kept::Yes,
            Some(message) => Kept::No(format!("it is at {} instead", message.id())),
            None => Kept::No("no message has it".to_owned()),
        };
    };
    match keys.get(key) {
        Some(message) => {
            let found = Position { term: message.term, rev: message.rev };
            if order(&found) >= order(&promise.position()) {
                Kept::Yes
            } else {
                Kept::No(format!("{key} is of {found}"))
            }
        }
        None => Kept::No(format!("{key} is not there")),
    }
}

/// Later in a subject's history: a later term, or later in it.
#[must_use]
pub const fn order(position: &Position) -> (u64, u64) {
    (position.term.get(), position.rev.get())
}

/// What a value is known by: what comes before its filling.
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

    fn promise(level: Level, term: u64, rev: u64, at: u64) -> Promise {
        let id = MessageId { term: Term::new(term), seq: Seq::new(rev) };
        let at = Duration::from_secs(at);
        Promise { server: Some(server("persist-1")), level, id, rev: Rev::new(rev), asked: at, at }
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

    fn blow(name: &str, harm: Harm, at: u64) -> Blow {
        let at = Duration::from_secs(at);
        Blow { server: server(name), harm, since: at, at }
    }

    fn stream(level: Level) -> Ledger {
        let mut ledger = Ledger::new("s", level, UNSHIPPED);
        for number in 1..=3 {
            let value = format!("v{number};");
            ledger.sent(&value, None);
            ledger.acknowledged(&value, promise(level, 1, number, 10 * number));
        }
        ledger
    }

    fn state(numbers: &[u64]) -> Vec<Message> {
        numbers.iter().map(|number| message(&format!("v{number};"), None, 1, *number)).collect()
    }

    fn wrong(ledger: &Ledger, state: &[Message], lost: &[&str], blows: &[Blow]) -> usize {
        let lost = lost.iter().map(|&value| value.to_owned()).collect();
        ledger.violations(state, &lost, blows).len()
    }

    #[test]
    fn what_was_acknowledged_at_bucket_has_no_excuse() {
        let ledger = stream(Level::Bucket);
        assert_eq!(wrong(&ledger, &state(&[1, 2, 3]), &[], &[]), 0);
        let blows = [blow("persist-1", Harm::Wiped, 30)];
        assert_eq!(wrong(&ledger, &state(&[1, 2]), &["v3;"], &blows), 1);
        // Under another name it is another message.
        let moved = [state(&[1, 2]), vec![message("v3;", None, 2, 3)]].concat();
        assert_eq!(wrong(&ledger, &moved, &[], &[]), 1);
    }

    #[test]
    fn weaker_levels_lose_what_their_row_says_and_no_more() {
        for level in [Level::Interval, Level::Disk] {
            let ledger = stream(level);
            assert_eq!(wrong(&ledger, &state(&[1, 2]), &[], &[]), 1, "nothing happened");
            assert_eq!(wrong(&ledger, &state(&[1, 2]), &["v3;"], &[]), 0, "kept aside");
            assert_eq!(wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-1", Harm::Killed, 30)]), 1);
            assert_eq!(wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-1", Harm::Wiped, 31)]), 0);
            assert_eq!(
                wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-1", Harm::Wiped, 32)]),
                1,
                "shipped"
            );
            assert_eq!(wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-2", Harm::Wiped, 31)]), 1);
        }
        let ledger = stream(Level::Memory);
        assert_eq!(wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-1", Harm::Killed, 31)]), 0);
        assert_eq!(
            wrong(&ledger, &state(&[1, 2]), &[], &[blow("persist-1", Harm::Killed, 32)]),
            1,
            "written"
        );
    }

    #[test]
    fn what_comes_before_something_in_the_bucket_is_in_the_bucket() {
        let mut ledger = stream(Level::Memory);
        let blows = [blow("persist-1", Harm::Wiped, 20)];
        assert_eq!(wrong(&ledger, &state(&[1, 3]), &[], &blows), 0);
        ledger.durable(promise(Level::Memory, 1, 2, 0).position());
        assert_eq!(wrong(&ledger, &state(&[1, 3]), &[], &blows), 1);
        // Of another term it may be another past.
        let mut ledger = stream(Level::Memory);
        ledger.durable(promise(Level::Memory, 2, 2, 0).position());
        assert_eq!(wrong(&ledger, &state(&[1, 3]), &[], &blows), 0);
    }

    #[test]
    fn what_was_refused_or_never_sent_or_is_there_twice_is_noticed() {
        let mut ledger = stream(Level::Bucket);
        ledger.sent("v4;", None);
        assert_eq!(wrong(&ledger, &state(&[1, 2, 3, 4]), &[], &[]), 0, "nobody knows");
        ledger.refused("v4;");
        assert_eq!(wrong(&ledger, &state(&[1, 2, 3, 4]), &[], &[]), 1);
        assert_eq!(wrong(&ledger, &state(&[1, 2, 3, 5]), &[], &[]), 1);
        let twice = [state(&[1, 2, 3]), vec![message("v2;", None, 1, 9)]].concat();
        assert!(wrong(&ledger, &twice, &[], &[]) > 0);
        ledger.acknowledged("v3;", promise(Level::Bucket, 2, 9, 40));
        assert!(wrong(&ledger, &state(&[1, 2, 3]), &[], &[]) > 0, "applied twice");
    }

    #[test]
    fn one_name_has_one_value() {
        let mut ledger = Ledger::new("s", Level::Memory, UNSHIPPED);
        ledger.sent("a;", None);
        ledger.sent("b;", None);
        ledger.acknowledged("a;", promise(Level::Memory, 1, 1, 10));
        ledger.read(&[message("b;", None, 1, 1)], UNSHIPPED);
        let blows = [blow("persist-1", Harm::Wiped, 10)];
        assert!(wrong(&ledger, &[], &[], &blows) > 0);
    }

    #[test]
    fn what_was_read_at_bucket_must_stay() {
        let mut ledger = Ledger::new("s", Level::Bucket, UNSHIPPED);
        ledger.sent("a;", None);
        assert_eq!(wrong(&ledger, &[], &[], &[]), 0);
        ledger.read(&[message("a;", None, 1, 1)], UNSHIPPED);
        assert_eq!(wrong(&ledger, &[], &[], &[]), 1);
    }

    #[test]
    fn under_a_key_something_newer_is_as_good() {
        let mut ledger = Ledger::new("s", Level::Bucket, UNSHIPPED);
        for (value, rev) in [("a;", 1), ("b;", 2)] {
            ledger.sent(value, Some("k"));
            ledger.acknowledged(value, promise(Level::Bucket, 1, rev, rev));
        }
        ledger.sent("c;", Some("k"));
        assert_eq!(ledger.must_show("k").map(|position| order(&position)), Some((1, 2)));
        assert_eq!(wrong(&ledger, &[message("b;", Some("k"), 1, 2)], &[], &[]), 0);
        assert_eq!(wrong(&ledger, &[message("c;", Some("k"), 2, 2)], &[], &[]), 0);
        assert_eq!(wrong(&ledger, &[message("a;", Some("k"), 1, 1)], &[], &[]), 1);
        assert!(wrong(&ledger, &[message("b;", Some("l"), 1, 2)], &[], &[]) > 0);
        assert_eq!(wrong(&ledger, &[], &[], &[]), 2);
    }
}
