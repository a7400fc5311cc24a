//! Fault decisions: this module decides the fault of each call; [`super`] applies it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_format::keys::BucketKey;
use dormouse_runtime::{Entropy, SeededEntropy};

use crate::bucket::BucketOperation;

/// A fault of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BucketFault {
    /// No fault.
    None,
    /// The call never takes effect, and no answer comes: `BucketError::Timeout`.
    RequestLost,
    /// The call takes effect, and no answer comes: `BucketError::Timeout`.
    AnswerLost,
    /// No answer comes, and the call takes effect after the timeout: `BucketError::Timeout`. An upload takes effect
    /// before the timeout, because its file may be gone afterwards.
    Late,
    /// The store has an internal error, without effect: `BucketError::Unreachable`.
    ServerError,
    /// A create reports that the object exists although it does not, and writes nothing. S3 does this when creates of
    /// one key conflict. No fault for other calls.
    Conflict,
    /// The store refuses, definitely and without effect: `BucketError::Denied`.
    Denied,
    /// No answer ever comes, and the call has no effect.
    Hangs,
    /// The call panics, as a defect in the code would.
    Panics,
    /// The read bytes have one flipped bit. No fault for other calls.
    Corrupt,
    /// A create or delete is answered, and takes effect once more later, as if the network had kept a copy. No fault
    /// for other calls.
    Again,
    /// The caller is gone before the request has arrived, and the request takes effect later. Applies to creates and
    /// deletes whose future is dropped.
    Orphaned,
    /// A listing lacks some recently written objects. Breaks the contract of a bucket.
    StaleList,
}

/// Probabilities of random faults, in calls out of a thousand, and durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// [`BucketFault::RequestLost`].
    pub request_lost: u16,
    /// [`BucketFault::AnswerLost`].
    pub answer_lost: u16,
    /// [`BucketFault::Late`].
    pub late: u16,
    /// [`BucketFault::ServerError`], for this call alone.
    pub server_error: u16,
    /// [`BucketFault::Conflict`].
    pub conflict: u16,
    /// [`BucketFault::Corrupt`].
    pub corrupt: u16,
    /// [`BucketFault::Again`].
    pub again: u16,
    /// [`BucketFault::Orphaned`], of the calls whose caller is gone.
    pub orphaned: u16,
    /// [`BucketFault::StaleList`].
    pub stale_list: u16,
    /// Start of a fault storm: until it ends, every call gets a [`BucketFault::ServerError`].
    pub storm: u16,
    /// Longest transmission time of a request, and again of its answer.
    pub latency: Duration,
    /// Timeout of a call without an answer. If it is zero, the error comes at once.
    pub timeout: Duration,
    /// Longest time after the timeout until a [late](BucketFault::Late) call takes effect. Also the longest delay of a
    /// repeated or orphaned request, and the highest age of a stale listing.
    pub late_by: Duration,
    /// Longest storm.
    pub storm_length: Duration,
}

impl FaultPlan {
    /// No random faults, and no delays.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            request_lost: 0,
            answer_lost: 0,
            late: 0,
            server_error: 0,
            conflict: 0,
            corrupt: 0,
            again: 0,
            orphaned: 0,
            stale_list: 0,
            storm: 0,
            latency: Duration::ZERO,
            timeout: Duration::from_secs(1),
            late_by: Duration::from_secs(10),
            storm_length: Duration::from_secs(5),
        }
    }

    /// About every fourth call gets a fault. None is [corrupt](BucketFault::Corrupt), because a caller can only report
    /// corruption.
    #[must_use]
    pub const fn frequent() -> Self {
        Self {
            request_lost: 50,
            answer_lost: 50,
            late: 50,
            server_error: 50,
            conflict: 40,
            storm: 10,
            latency: Duration::from_millis(200),
            ..Self::none()
        }
    }
}

/// Decides the faults. Does no I/O and reads no clock.
pub(super) struct FaultInjector {
    entropy: SeededEntropy,
    pub(super) plan: FaultPlan,
    pub(super) scripts: BTreeMap<BucketOperation, VecDeque<BucketFault>>,
    storm_until: Duration,
    pub(super) is_unreachable: bool,
    pub(super) loses_answers: bool,
    pub(super) read_only: bool,
    pub(super) corrupted_keys: BTreeSet<BucketKey>,
    /// The calls, with the names of their objects.
    pub(super) calls: Vec<(BucketOperation, String)>,
    pub(super) injected_counts: BTreeMap<BucketFault, u64>,
}

/// The fault and the delays of one call.
pub(super) struct CallFault {
    pub(super) fault: BucketFault,
    pub(super) before: Duration,
    pub(super) after: Duration,
    pub(super) timeout: Duration,
    pub(super) late_by: Duration,
    /// The request takes effect although its caller is gone.
    pub(super) orphaned: bool,
    /// Random number that selects a bit, or the entries of a stale listing.
    pub(super) draw: u64,
}

/// A random duration up to `longest`.
fn up_to(longest: Duration, draw: u64) -> Duration {
    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(if nanos == u64::MAX { draw } else { draw % (nanos + 1) })
}

const fn changes_something(operation: BucketOperation) -> bool {
    match operation {
        BucketOperation::Create | BucketOperation::PutFile | BucketOperation::Delete => true,
        BucketOperation::Get | BucketOperation::GetFile | BucketOperation::List => false,
    }
}

impl FaultInjector {
    pub(super) fn new(seed: u64, plan: FaultPlan) -> Self {
        Self {
            entropy: SeededEntropy::new(seed),
            plan,
            scripts: BTreeMap::new(),
            storm_until: Duration::ZERO,
            is_unreachable: false,
            loses_answers: false,
            read_only: false,
            corrupted_keys: BTreeSet::new(),
            calls: Vec::new(),
            injected_counts: BTreeMap::new(),
        }
    }

    pub(super) fn set_plan(&mut self, plan: FaultPlan) {
        self.plan = plan;
        self.storm_until = Duration::ZERO;
    }

    pub(super) fn loses_answer(&self, operation: BucketOperation) -> bool {
        self.loses_answers && matches!(operation, BucketOperation::Create | BucketOperation::Get)
    }

    pub(super) fn next_call(&mut self, operation: BucketOperation, name: &str, now: Duration) -> CallFault {
        self.calls.push((operation, name.to_owned()));
        // Always the same count of random numbers, so that the fault of a call does not depend on the faults before it.
        let [chance, storm, before, after, late, draw] = std::array::from_fn(|_| self.entropy.next_u64());
        let fault = self.fault(operation, now, chance, storm);
        if fault != BucketFault::None {
            *self.injected_counts.entry(fault).or_default() += 1;
        }
        let plan = &self.plan;
        CallFault {
            fault,
            before: up_to(plan.latency, before),
            after: up_to(plan.latency, after),
            timeout: plan.timeout,
            late_by: up_to(plan.late_by, late),
            orphaned: (draw >> 32) % 1_000 < u64::from(plan.orphaned),
            draw,
        }
    }

    fn fault(&mut self, operation: BucketOperation, now: Duration, chance: u64, storm: u64) -> BucketFault {
        if self.read_only && changes_something(operation) {
            return BucketFault::Denied;
        }
        if let Some(fault) = self.scripts.get_mut(&operation).and_then(VecDeque::pop_front) {
            return fault;
        }
        let plan = &self.plan;
        if storm % 1_000 < u64::from(plan.storm) && now >= self.storm_until {
            self.storm_until = now + up_to(plan.storm_length, storm / 1_000);
        }
        if now < self.storm_until {
            return BucketFault::ServerError;
        }
        let is_read = matches!(operation, BucketOperation::Get | BucketOperation::GetFile);
        let is_copied = matches!(operation, BucketOperation::Create | BucketOperation::Delete);
        let odds = [
            (BucketFault::RequestLost, plan.request_lost),
            (BucketFault::AnswerLost, plan.answer_lost),
            (BucketFault::Late, plan.late),
            (BucketFault::ServerError, plan.server_error),
            (BucketFault::Conflict, if operation == BucketOperation::Create { plan.conflict } else { 0 }),
            (BucketFault::Corrupt, if is_read { plan.corrupt } else { 0 }),
            (BucketFault::Again, if is_copied { plan.again } else { 0 }),
            (BucketFault::StaleList, if operation == BucketOperation::List { plan.stale_list } else { 0 }),
        ];
        let mut chance = chance % 1_000;
        for (fault, odds) in odds {
            match chance.checked_sub(odds.into()) {
                None => return fault,
                Some(rest) => chance = rest,
            }
        }
        BucketFault::None
    }
}
