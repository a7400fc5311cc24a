//! Groups calls into operations: a request that was sent several times is one operation.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use dormouse_protocol::data::{SetItem, SetOutcome, SetRequest, SetResult};
use dormouse_protocol::{ErrorReply, Message, RequestId};

use crate::history::{Call, Op, OpResult, ServerFault};
use crate::verdict::{Findings, Property, Source};

/// The status of an operation, from the replies that its callers received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationStatus {
    /// It was acknowledged.
    Done,
    /// Every attempt was answered as not executed.
    Refused,
    /// It may have been executed.
    Unknown,
}

pub(crate) struct Operation<'h> {
    pub(crate) op: &'h Op,
    pub(crate) calls: Vec<usize>,
    /// The time of the first request.
    pub(crate) invoked: Duration,
    /// The time of the first acknowledgement.
    pub(crate) acknowledged: Option<Duration>,
    pub(crate) status: OperationStatus,
}

/// One of the sets of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ItemRef {
    pub(crate) op: usize,
    pub(crate) index: usize,
}

/// All changing operations of a subject.
pub(crate) struct Operations<'h> {
    pub(crate) all: Vec<Operation<'h>>,
    /// The operation of each call.
    pub(crate) of_call: Vec<Option<usize>>,
    /// The sets that wrote each value.
    writers: HashMap<Option<Bytes>, Vec<ItemRef>>,
    /// The number of operations with each message id.
    msg_ids: HashMap<&'h str, u32>,
}

impl<'h> Operations<'h> {
    pub(crate) fn new(calls: &'h [Call], faults: &[ServerFault], findings: &mut Findings<'_>) -> Self {
        let mut made = Self {
            all: Vec::new(),
            of_call: vec![None; calls.len()],
            writers: HashMap::new(),
            msg_ids: HashMap::new(),
        };
        let mut known: HashMap<RequestId, usize> = HashMap::new();
        for (number, call) in calls.iter().enumerate() {
            if !call.op.changes() {
                continue;
            }
            let fresh = made.all.len();
            let index = call.op.request_id().map_or(fresh, |id| *known.entry(id).or_insert(fresh));
            if index == fresh {
                let (op, invoked) = (&call.op, call.invoked_at);
                let (calls, status) = (Vec::new(), OperationStatus::Refused);
                made.all.push(Operation { op, calls, invoked, acknowledged: None, status });
                made.index_writers(index);
            }
            made.of_call[number] = Some(index);
            made.all[index].take(number, call);
        }
        for op in 0..made.all.len() {
            if made.may_be_another(&made.all[op], calls) {
                made.all[op].status = OperationStatus::Unknown;
            }
        }
        for operation in &made.all {
            operation.check_repeats(calls, faults, findings);
        }
        made
    }

    fn index_writers(&mut self, op: usize) {
        let Op::Set(request) = self.all[op].op else { return };
        for (index, item) in request.sets.iter().enumerate() {
            self.writers.entry(item.value.clone()).or_default().push(ItemRef { op, index });
            if let Some(msg_id) = &item.msg_id {
                *self.msg_ids.entry(msg_id).or_default() += 1;
            }
        }
    }

    /// Returns whether several sets have this message id. Then a reply marked as a duplicate may belong to another set.
    pub(crate) fn is_shared(&self, msg_id: &str) -> bool {
        self.msg_ids.get(msg_id).is_some_and(|&sets| sets > 1)
    }

    /// Returns whether an operation is known only by the duplicate reply for its message id. Then an earlier copy of
    /// the request or another request made the change.
    fn may_be_another(&self, operation: &Operation<'_>, calls: &[Call]) -> bool {
        let (Some(request), true) = (operation.set(), operation.status == OperationStatus::Done) else {
            return false;
        };
        operation.calls.len() > 1
            && operation.calls.iter().filter_map(|&call| calls[call].answer()).all(|(answer, _)| {
                let OpResult::Set(reply) = answer else { return false };
                request.sets.iter().zip(&reply.results).any(|(item, outcome)| {
                    let again = matches!(outcome, SetOutcome::Ok(ok) if ok.duplicate);
                    again && item.msg_id.as_deref().is_some_and(|id| self.is_shared(id))
                })
            })
    }

    /// Returns the sets that may have written a message, found by its key and value.
    pub(crate) fn writers(&self, message: &Message) -> Vec<ItemRef> {
        let found = self.writers.get(&message.value).into_iter().flatten().copied();
        found.filter(|&item| self.item(item).is_some_and(|item| item.key == message.key)).collect()
    }

    pub(crate) fn item(&self, item: ItemRef) -> Option<&'h SetItem> {
        match self.all[item.op].op {
            Op::Set(request) => request.sets.get(item.index),
            _ => None,
        }
    }

    /// Returns the calls of an operation.
    pub(crate) fn sources(&self, op: usize) -> impl Iterator<Item = Source> + use<'_, 'h> {
        self.all[op].calls.iter().map(|&index| Source::Call(index))
    }

    /// Returns the operations that may have been executed without a reply.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = usize> + use<'_, 'h> {
        (0..self.all.len()).filter(|&op| self.all[op].status == OperationStatus::Unknown)
    }
}

impl<'h> Operation<'h> {
    fn take(&mut self, index: usize, call: &Call) {
        self.calls.push(index);
        self.invoked = self.invoked.min(call.invoked_at);
        let status = if let Some((_, at)) = call.answer() {
            self.acknowledged = Some(self.acknowledged.map_or(at, |before| before.min(at)));
            OperationStatus::Done
        } else if call.refusal().is_some() {
            OperationStatus::Refused
        } else {
            OperationStatus::Unknown
        };
        self.status = match (self.status, status) {
            (OperationStatus::Done, _) | (_, OperationStatus::Done) => OperationStatus::Done,
            (OperationStatus::Unknown, _) | (_, OperationStatus::Unknown) => OperationStatus::Unknown,
            (OperationStatus::Refused, OperationStatus::Refused) => OperationStatus::Refused,
        };
    }

    pub(crate) fn set(&self) -> Option<&'h SetRequest> {
        match self.op {
            Op::Set(request) => Some(request),
            _ => None,
        }
    }

    /// The largest number of revs that the operation can take.
    pub(crate) fn max_revs(&self) -> u64 {
        self.set().map_or(1, |request| if request.atomic { 1 } else { request.sets.len() as u64 })
    }

    /// Returns the error for one of its sets, if the request as a whole was answered.
    pub(crate) fn refusal_of(&self, calls: &'h [Call], index: usize) -> Option<&'h ErrorReply> {
        self.calls.iter().find_map(|&call| match calls[call].answer() {
            Some((OpResult::Set(reply), _)) => match reply.results.get(index) {
                Some(SetOutcome::Error(error)) => Some(error),
                _ => None,
            },
            _ => None,
        })
    }

    /// Checks that a repeat in the same term gets the result of the first request. Under another term, the first may
    /// have been lost and the repeat executed. An error names no term: if a server had a fault in between, the record
    /// of the error may be lost.
    fn check_repeats(&self, calls: &[Call], faults: &[ServerFault], findings: &mut Findings<'_>) {
        let mut answers = self.calls.iter().filter_map(|&call| calls[call].answer().map(|(a, _)| (call, a)));
        let Some((first_call, first)) = answers.next() else { return };
        let shape = answered(first);
        for (call, answer) in answers {
            let other = answered(answer);
            let has_record = match (first.position(), answer.position()) {
                (Some(first), Some(other)) => first.term == other.term,
                _ => !faults.iter().any(|fault| is_between(fault, &calls[first_call], &calls[call])),
            };
            findings.coverage.add(if has_record { "repeats" } else { "repeats with a possibly lost record" });
            if has_record && shape != other {
                findings.report(
                    Property::OnceAtMost,
                    "the same request got two different results",
                    [Source::Call(first_call), Source::Call(call)],
                );
            }
        }
    }
}

/// Returns whether a fault was active between the start of one call and the end of another.
fn is_between(fault: &ServerFault, one: &Call, other: &Call) -> bool {
    let began = one.invoked_at.min(other.invoked_at);
    let ends = [one, other].map(|call| call.returned.as_ref().map_or(Duration::MAX, |returned| returned.at));
    fault.since <= ends[0].max(ends[1]) && began <= fault.until
}

/// Formats a reply without the parts that differ between the first reply and a repeat.
fn answered(answer: &OpResult) -> String {
    match answer {
        OpResult::Set(reply) => {
            let plain = |outcome: &SetOutcome| match outcome {
                SetOutcome::Ok(ok) => format!("{:?}", SetResult { duplicate: false, ..*ok }),
                SetOutcome::Error(error) => error.code.to_string(),
            };
            reply.results.iter().map(plain).collect::<Vec<_>>().join(";")
        }
        OpResult::Delete(reply) => format!("{:?} {:?}", reply.position, reply.seqs),
        OpResult::DeleteAll(reply) => format!("{:?} {}", reply.position, reply.count),
        OpResult::Configure(reply) => format!("{:?}", reply.position),
        OpResult::Destroy(reply) => format!("{:?}", reply.position),
        _ => String::new(),
    }
}
