//! The state of a subject at every step of its history: the value of each seq and key, and the step of each change.
//!
//! Each cell is a list of (step, value), so that past states can be read. The writes that a term did not inherit are
//! undone by adding the older values again.

use std::collections::BTreeMap;
use std::rc::Rc;

use dormouse_protocol::message::SubjectConfig;
use dormouse_protocol::{Message, MessageId, Seq};

/// A point in the history. Each change, gap and start of a term adds one.
pub(crate) type Step = usize;

/// The values of a cell, each with the step of its change.
#[derive(Debug, Clone)]
pub(crate) struct Cell<T>(Vec<(Step, T)>);

impl<T: Clone> Cell<T> {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn now(&self) -> Option<&T> {
        self.0.last().map(|(_, value)| value)
    }

    /// Returns the step of the last change.
    pub(crate) fn since(&self) -> Option<Step> {
        self.0.last().map(|(since, _)| *since)
    }

    /// Returns the value at the end of `step`.
    pub(crate) fn at(&self, step: Step) -> Option<&T> {
        let end = self.0.partition_point(|(since, _)| *since <= step);
        self.0[..end].last().map(|(_, value)| value)
    }

    /// Returns the values at any time from the end of `first` to the end of `last`.
    pub(crate) fn between(&self, first: Step, last: Step) -> impl Iterator<Item = &T> {
        let begin = self.0.partition_point(|(since, _)| *since <= first).saturating_sub(1);
        self.0[begin..].iter().take_while(move |(since, _)| *since <= last).map(|(_, value)| value)
    }

    /// Returns whether the cell has a value at the end of `first`. Earlier, it has none.
    pub(crate) fn is_older(&self, first: Step) -> bool {
        self.0.first().is_some_and(|(since, _)| *since <= first)
    }

    fn put(&mut self, step: Step, value: T) {
        self.0.push((step, value));
    }
}

/// A value that a step replaced.
#[derive(Debug, Clone)]
pub(crate) enum Undo {
    Seq(Seq, Option<Rc<Message>>),
    Key(String, Option<Seq>),
    Last(Option<MessageId>),
    Next(Seq, bool),
    Config(SubjectConfig),
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) seqs: BTreeMap<Seq, Cell<Option<Rc<Message>>>>,
    pub(crate) keys: BTreeMap<String, Cell<Option<Seq>>>,
    pub(crate) last: Cell<Option<MessageId>>,
    /// The seq of the next message, and whether it is certain.
    next: (Seq, bool),
    config: SubjectConfig,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) step: Step,
    undo: Vec<Undo>,
}

impl Model {
    pub(crate) fn new() -> Self {
        let mut last = Cell::new();
        last.put(0, None);
        Self {
            seqs: BTreeMap::new(),
            keys: BTreeMap::new(),
            last,
            next: (Seq::new(1), true),
            config: SubjectConfig::default(),
            count: 0,
            bytes: 0,
            step: 0,
            undo: Vec::new(),
        }
    }

    /// Starts the next step.
    pub(crate) fn advance(&mut self) -> Step {
        self.step += 1;
        self.undo.clear();
        self.step
    }

    /// Returns the values that the steps since [`Model::advance`] replaced, in order.
    pub(crate) fn take_undo(&mut self) -> Vec<Undo> {
        std::mem::take(&mut self.undo)
    }

    /// Undoes the changes of another step, as a part of this step.
    pub(crate) fn take_back(&mut self, undo: Vec<Undo>) {
        for undo in undo.into_iter().rev() {
            match undo {
                Undo::Seq(seq, message) => self.put(seq, message),
                Undo::Key(key, seq) => self.hold(&key, seq),
                Undo::Last(last) => self.set_last(last),
                Undo::Next(seq, certain) => self.set_next(seq, certain),
                Undo::Config(config) => self.configure(config),
            }
        }
    }

    pub(crate) const fn next_seq(&self) -> (Seq, bool) {
        self.next
    }

    pub(crate) const fn config(&self) -> &SubjectConfig {
        &self.config
    }

    pub(crate) fn message(&self, seq: Seq) -> Option<&Rc<Message>> {
        self.seqs.get(&seq)?.now()?.as_ref()
    }

    pub(crate) fn holder(&self, key: &str) -> Option<Seq> {
        *self.keys.get(key)?.now()?
    }

    pub(crate) fn under(&self, key: &str) -> Option<&Rc<Message>> {
        self.message(self.holder(key)?)
    }

    pub(crate) fn message_at(&self, seq: Seq, step: Step) -> Option<&Rc<Message>> {
        self.seqs.get(&seq)?.at(step)?.as_ref()
    }

    pub(crate) fn under_at(&self, key: &str, step: Step) -> Option<&Rc<Message>> {
        self.message_at((*self.keys.get(key)?.at(step)?)?, step)
    }

    /// Returns all messages, in order of seq.
    pub(crate) fn messages(&self) -> impl DoubleEndedIterator<Item = &Rc<Message>> {
        self.seqs.values().filter_map(|cell| cell.now()?.as_ref())
    }

    /// Returns the messages with a seq in this range.
    pub(crate) fn range(&self, from: Seq, to: Seq) -> impl DoubleEndedIterator<Item = &Rc<Message>> {
        // If the range is empty, its start must not be above its end.
        let to = to.max(from);
        self.seqs.range(from..=to).filter_map(|(_, cell)| cell.now()?.as_ref())
    }

    pub(crate) fn write(&mut self, message: &Rc<Message>) {
        if let Some(key) = &message.key
            && let Some(holder) = self.holder(key)
            && holder != message.seq
        {
            self.put(holder, None);
        }
        self.put(message.seq, Some(Rc::clone(message)));
        if let Some(key) = &message.key {
            self.hold(key, Some(message.seq));
        }
        let id = message.id();
        if self.last.now().copied().flatten().is_none_or(|last| id.seq >= last.seq) {
            self.set_last(Some(id));
        }
        if message.seq >= self.next.0 {
            self.set_next(message.seq.next(), true);
        }
    }

    pub(crate) fn remove(&mut self, seq: Seq) -> Option<Rc<Message>> {
        let gone = self.message(seq).cloned()?;
        self.put(seq, None);
        if let Some(key) = &gone.key
            && self.holder(key) == Some(seq)
        {
            self.hold(key, None);
        }
        Some(gone)
    }

    pub(crate) fn set_next(&mut self, seq: Seq, certain: bool) {
        self.undo.push(Undo::Next(self.next.0, self.next.1));
        self.next = (seq, certain);
    }

    pub(crate) fn set_last(&mut self, last: Option<MessageId>) {
        self.undo.push(Undo::Last(self.last.now().copied().flatten()));
        self.last.put(self.step, last);
    }

    pub(crate) fn configure(&mut self, config: SubjectConfig) {
        self.undo.push(Undo::Config(std::mem::replace(&mut self.config, config)));
    }

    fn put(&mut self, seq: Seq, message: Option<Rc<Message>>) {
        let cell = self.seqs.entry(seq).or_insert_with(Cell::new);
        let before = cell.now().cloned().flatten();
        if let Some(before) = &before {
            self.count -= 1;
            self.bytes -= before.size;
        }
        if let Some(message) = &message {
            self.count += 1;
            self.bytes += message.size;
        }
        cell.put(self.step, message);
        self.undo.push(Undo::Seq(seq, before));
    }

    fn hold(&mut self, key: &str, seq: Option<Seq>) {
        if !self.keys.contains_key(key) {
            self.keys.insert(key.to_owned(), Cell::new());
        }
        if let Some(cell) = self.keys.get_mut(key) {
            let before = cell.now().copied().flatten();
            cell.put(self.step, seq);
            self.undo.push(Undo::Key(key.to_owned(), before));
        }
    }
}
