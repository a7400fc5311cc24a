//! From calls to operations: a request that was sent several times is one operation.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetOutcome, SetRequest, SetResult};
use dormouse_protocol::{ErrorReply, Message, RequestId};

use crate::history::{Answer, Call, Harm, Op};
use crate::verdict::{Findings, Property, Source};

/// What became of an operation, as far as those were told who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was acknowledged.
    Done,
    /// It was said not to have happened, each time it was tried.
    Refused,
    /// It may have happened.
    Unknown,
}

pub(crate) struct Operation<'h> {
    pub(crate) op: &'h Op,
    pub(crate) calls: Vec<usize>,
    /// When it was first asked for.
    pub(crate) invoked: Duration,
    /// When it was first acknowledged.
    pub(crate) acknowledged: Option<Duration>,
    pub(crate) fate: Fate,
}

/// One of the sets of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ItemRef {
    pub(crate) op: usize,
    pub(crate) place: usize,
}

/// All changing operations of a subject.
pub(crate) struct Operations<'h> {
    pub(crate) all: Vec<Operation<'h>>,
    /// Which operation a call belongs to.
    pub(crate) of_call: Vec<Option<usize>>,
    /// Who wrote each value.
    writers: HashMap<Option<Bytes>, Vec<ItemRef>>,
    /// How many operations carry each message id.
    msg_ids: HashMap<&'h str, u32>,
}

impl<'h> Operations<'h> {
    pub(crate) fn new(calls: &'h [Call], harms: &[Harm], findings: &mut Findings<'_>) -> Self {
        let mut made = Self {
            all: Vec::new(),
            of_call: vec![None; calls.len()],
            writers: HashMap::new(),
            msg_ids: HashMap::new(),
        };
        let mut known: HashMap<RequestId, usize> = HashMap::new();
        for (place, call) in calls.iter().enumerate() {
            if !call.op.changes() {
                continue;
            }
            let fresh = made.all.len();
            let index = call.op.request_id().map_or(fresh, |id| *known.entry(id).or_insert(fresh));
            if index == fresh {
                let (op, invoked) = (&call.op, call.invoked_at);
                let (calls, fate) = (Vec::new(), Fate::Refused);
                made.all.push(Operation { op, calls, invoked, acknowledged: None, fate });
                made.remember_writer(index);
            }
            made.of_call[place] = Some(index);
            made.all[index].take(place, call);
        }
        for op in 0..made.all.len() {
            if made.may_be_another(&made.all[op], calls) {
                made.all[op].fate = Fate::Unknown;
            }
        }
        for operation in &made.all {
            operation.is_answered_alike(calls, harms, findings);
        }
        made
    }

    fn remember_writer(&mut self, op: usize) {
        let Op::Set(request) = self.all[op].op else { return };
        for (place, item) in request.sets.iter().enumerate() {
            self.writers.entry(item.value.clone()).or_default().push(ItemRef { op, place });
            if let Some(msg_id) = &item.msg_id {
                *self.msg_ids.entry(msg_id).or_default() += 1;
            }
        }
    }

    /// Whether several sets carry this message id, so that what is called done before may be another's.
    pub(crate) fn is_shared(&self, msg_id: &str) -> bool {
        self.msg_ids.get(msg_id).is_some_and(|&sets| sets > 1)
    }

    /// Whether all that is known of an operation is that something with its message id was done before: by itself, where
    /// an earlier copy of the request got through, or by another.
    fn may_be_another(&self, operation: &Operation<'_>, calls: &[Call]) -> bool {
        let (Some(request), true) = (operation.set(), operation.fate == Fate::Done) else { return false };
        operation.calls.len() > 1
            && operation.calls.iter().filter_map(|&call| calls[call].answer()).all(|(answer, _)| {
                let Answer::Set(reply) = answer else { return false };
                request.sets.iter().zip(&reply.results).any(|(item, outcome)| {
                    let again = matches!(outcome, SetOutcome::Ok(ok) if ok.duplicate);
                    again && item.msg_id.as_deref().is_some_and(|id| self.is_shared(id))
                })
            })
    }

    /// Who may have written a message, judged by its key and value.
    pub(crate) fn writers(&self, message: &Message) -> Vec<ItemRef> {
        let found = self.writers.get(&message.value).into_iter().flatten().copied();
        found.filter(|&item| self.item(item).is_some_and(|item| item.key == message.key)).collect()
    }

    pub(crate) fn item(&self, item: ItemRef) -> Option<&'h SetItem> {
        match self.all[item.op].op {
            Op::Set(request) => request.sets.get(item.place),
            _ => None,
        }
    }

    /// The calls that make up an operation.
    pub(crate) fn sources(&self, op: usize) -> impl Iterator<Item = Source> + use<'_, 'h> {
        self.all[op].calls.iter().map(|&place| Source::Call(place))
    }

    /// Those that may have happened, and nobody was told.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = usize> + use<'_, 'h> {
        (0..self.all.len()).filter(|&op| self.all[op].fate == Fate::Unknown)
    }
}

impl<'h> Operation<'h> {
    fn take(&mut self, place: usize, call: &Call) {
        self.calls.push(place);
        self.invoked = self.invoked.min(call.invoked_at);
        let fate = if let Some((_, at)) = call.answer() {
            self.acknowledged = Some(self.acknowledged.map_or(at, |before| before.min(at)));
            Fate::Done
        } else if call.refusal().is_some() {
            Fate::Refused
        } else {
            Fate::Unknown
        };
        self.fate = match (self.fate, fate) {
            (Fate::Done, _) | (_, Fate::Done) => Fate::Done,
            (Fate::Unknown, _) | (_, Fate::Unknown) => Fate::Unknown,
            (Fate::Refused, Fate::Refused) => Fate::Refused,
        };
    }

    pub(crate) fn set(&self) -> Option<&'h SetRequest> {
        match self.op {
            Op::Set(request) => Some(request),
            _ => None,
        }
    }

    /// How many revs it takes at most.
    pub(crate) fn most_revs(&self) -> u64 {
        self.set().map_or(1, |request| if request.atomic { 1 } else { request.sets.len() as u64 })
    }

    /// The refusal of one of its sets, if it was answered as a whole.
    pub(crate) fn refusal_of(&self, calls: &'h [Call], place: usize) -> Option<&'h ErrorReply> {
        self.calls.iter().find_map(|&call| match calls[call].answer() {
            Some((Answer::Set(reply), _)) => match reply.results.get(place) {
                Some(SetOutcome::Error(error)) => Some(error),
                _ => None,
            },
            _ => None,
        })
    }

    /// Whoever asks again in the same term is told what was said the first time. Under another term the first may have
    /// been lost; then it is carried out anew. A refusal names no term: it may have been lost where a server was harmed
    /// meanwhile.
    fn is_answered_alike(&self, calls: &[Call], harms: &[Harm], findings: &mut Findings<'_>) {
        let mut answers = self.calls.iter().filter_map(|&call| calls[call].answer().map(|(a, _)| (call, a)));
        let Some((first_call, first)) = answers.next() else { return };
        let shape = answered(first);
        for (call, answer) in answers {
            let other = answered(answer);
            let is_remembered = match (first.position(), answer.position()) {
                (Some(first), Some(other)) => first.term == other.term,
                _ => !harms.iter().any(|harm| is_between(harm, &calls[first_call], &calls[call])),
            };
            findings.coverage.add(if is_remembered { "repeats" } else { "repeats of what may be lost" });
            if is_remembered && shape != other {
                findings.wrong(
                    Property::OnceAtMost,
                    "the same request was answered in two ways",
                    [Source::Call(first_call), Source::Call(call)],
                );
            }
        }
    }
}

/// Whether a harm was there at any moment from the beginning of one call to the end of another.
fn is_between(harm: &Harm, one: &Call, other: &Call) -> bool {
    let began = one.invoked_at.min(other.invoked_at);
    let ends = [one, other].map(|call| call.returned.as_ref().map_or(Duration::MAX, |returned| returned.at));
    harm.since <= ends[0].max(ends[1]) && began <= harm.until
}

/// An answer without what differs between the first and a repeat.
fn answered(answer: &Answer) -> String {
    match answer {
        Answer::Set(reply) => {
            let plain = |outcome: &SetOutcome| match outcome {
                SetOutcome::Ok(ok) => format!("{:?}", SetResult { duplicate: false, ..*ok }),
                SetOutcome::Error(error) => error.code.to_string(),
            };
            reply.results.iter().map(plain).collect::<Vec<_>>().join(";")
        }
        Answer::Delete(reply) => format!("{:?} {:?}", reply.position, reply.seqs),
        Answer::DeleteAll(reply) => format!("{:?} {}", reply.position, reply.count),
        Answer::Configure(reply) => format!("{:?}", reply.position),
        Answer::Destroy(reply) => format!("{:?}", reply.position),
        _ => String::new(),
    }
}
