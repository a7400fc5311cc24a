//! What befalls whom: decided here, done in [`super`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dormouse_runtime::{Entropy, SeededEntropy};

use crate::bucket::{BucketKey, Operation};

/// What may go wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nothing does.
    None,
    /// It never takes effect, and no answer comes: `BucketError::Timeout`.
    RequestLost,
    /// It takes effect, and no answer comes: `BucketError::Timeout`.
    AnswerLost,
    /// No answer comes, and it takes effect after the caller was told so: `BucketError::Timeout`. An upload takes
    /// effect before, for afterwards its file may be gone.
    Late,
    /// The store fails on its side, without effect: `BucketError::Unreachable`.
    ServerError,
    /// A create says that the object exists, which it does not, and writes nothing: what S3 does when creates of one
    /// key meet. No fault to other calls.
    Conflict,
    /// The store refuses, definitely and without effect: `BucketError::Denied`.
    Denied,
    /// No answer ever comes, and it takes no effect.
    Hangs,
    /// The call panics, as a defect would have it.
    Panics,
    /// What is read has one wrong bit. No fault to other calls.
    Corrupt,
    /// A create or delete is answered, and takes effect once more later, as when the network has kept a copy. No fault to
    /// other calls.
    Again,
    /// Its caller is gone before the request has arrived, and it takes effect later all the same. Befalls creates and deletes
    /// whose future is dropped.
    Orphaned,
    /// A listing lacks some of what was written a while ago and since. Breaks the contract of a bucket.
    StaleList,
}

/// How often which fault is drawn, in calls out of a thousand, and how long things take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// [`Fault::RequestLost`].
    pub request_lost: u16,
    /// [`Fault::AnswerLost`].
    pub answer_lost: u16,
    /// [`Fault::Late`].
    pub late: u16,
    /// [`Fault::ServerError`], for this call alone.
    pub server_error: u16,
    /// [`Fault::Conflict`].
    pub conflict: u16,
    /// [`Fault::Corrupt`].
    pub corrupt: u16,
    /// [`Fault::Again`].
    pub again: u16,
    /// [`Fault::Orphaned`], of the calls whose caller is gone.
    pub orphaned: u16,
    /// [`Fault::StaleList`].
    pub stale_list: u16,
    /// A storm begins: until it is over every call gets a [`Fault::ServerError`].
    pub storm: u16,
    /// Longest time that a request, and again its answer, is under way.
    pub latency: Duration,
    /// How long an answer that does not come is waited for.
    pub patience: Duration,
    /// How long after that a [late](Fault::Late) call takes effect, at most; and one that is repeated or orphaned. A stale
    /// listing is as old at most.
    pub late_by: Duration,
    /// Longest storm.
    pub storm_length: Duration,
}

impl FaultPlan {
    /// Nothing goes wrong by chance, and nothing takes time.
    #[must_use]
    pub const fn calm() -> Self {
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
            patience: Duration::from_secs(1),
            late_by: Duration::from_secs(10),
            storm_length: Duration::from_secs(5),
        }
    }

    /// Every fourth call suffers something. Nothing is [corrupt](Fault::Corrupt): of that, callers may do no more than
    /// complain.
    #[must_use]
    pub const fn rough() -> Self {
        Self {
            request_lost: 50,
            answer_lost: 50,
            late: 50,
            server_error: 50,
            conflict: 40,
            storm: 10,
            latency: Duration::from_millis(200),
            ..Self::calm()
        }
    }
}

/// Decides what befalls whom. Does no I/O and reads no clock.
pub(super) struct Faults {
    entropy: SeededEntropy,
    pub(super) plan: FaultPlan,
    pub(super) scripts: BTreeMap<Operation, VecDeque<Fault>>,
    storm_until: Duration,
    pub(super) gone: bool,
    pub(super) read_only: bool,
    pub(super) rotten: BTreeSet<BucketKey>,
    pub(super) calls: BTreeMap<Operation, u64>,
    pub(super) suffered: BTreeMap<Fault, u64>,
}

/// What befalls one call.
pub(super) struct Fate {
    pub(super) fault: Fault,
    pub(super) before: Duration,
    pub(super) after: Duration,
    pub(super) patience: Duration,
    pub(super) late_by: Duration,
    /// It takes effect though its caller is gone.
    pub(super) orphaned: bool,
    /// Chooses a bit.
    pub(super) draw: u64,
}

/// A length of time up to `longest`, by chance.
fn up_to(longest: Duration, draw: u64) -> Duration {
    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(if nanos == u64::MAX { draw } else { draw % (nanos + 1) })
}

const fn changes_something(operation: Operation) -> bool {
    match operation {
        Operation::Create | Operation::PutFile | Operation::Delete => true,
        Operation::Get | Operation::GetFile | Operation::List => false,
    }
}

impl Faults {
    pub(super) fn new(seed: u64, plan: FaultPlan) -> Self {
        Self {
            entropy: SeededEntropy::new(seed),
            plan,
            scripts: BTreeMap::new(),
            storm_until: Duration::ZERO,
            gone: false,
            read_only: false,
            rotten: BTreeSet::new(),
            calls: BTreeMap::new(),
            suffered: BTreeMap::new(),
        }
    }

    pub(super) fn set_plan(&mut self, plan: FaultPlan) {
        self.plan = plan;
        self.storm_until = Duration::ZERO;
    }

    pub(super) fn fate(&mut self, operation: Operation, now: Duration) -> Fate {
        *self.calls.entry(operation).or_default() += 1;
        // Always as many numbers: what befalls a call does not hang on what befell those before it.
        let [chance, storm, before, after, late, draw] = std::array::from_fn(|_| self.entropy.next_u64());
        let fault = self.fault(operation, now, chance, storm);
        if fault != Fault::None {
            *self.suffered.entry(fault).or_default() += 1;
        }
        let plan = &self.plan;
        Fate {
            fault,
            before: up_to(plan.latency, before),
            after: up_to(plan.latency, after),
            patience: plan.patience,
            late_by: up_to(plan.late_by, late),
            orphaned: (draw >> 32) % 1_000 < u64::from(plan.orphaned),
            draw,
        }
    }

    fn fault(&mut self, operation: Operation, now: Duration, chance: u64, storm: u64) -> Fault {
        if self.read_only && changes_something(operation) {
            return Fault::Denied;
        }
        if let Some(fault) = self.scripts.get_mut(&operation).and_then(VecDeque::pop_front) {
            return fault;
        }
        let plan = &self.plan;
        if storm % 1_000 < u64::from(plan.storm) && now >= self.storm_until {
            self.storm_until = now + up_to(plan.storm_length, storm / 1_000);
        }
        if now < self.storm_until {
            return Fault::ServerError;
        }
        let is_read = matches!(operation, Operation::Get | Operation::GetFile);
        let is_copied = matches!(operation, Operation::Create | Operation::Delete);
        let odds = [
            (Fault::RequestLost, plan.request_lost),
            (Fault::AnswerLost, plan.answer_lost),
            (Fault::Late, plan.late),
            (Fault::ServerError, plan.server_error),
            (Fault::Conflict, if operation == Operation::Create { plan.conflict } else { 0 }),
            (Fault::Corrupt, if is_read { plan.corrupt } else { 0 }),
            (Fault::Again, if is_copied { plan.again } else { 0 }),
            (Fault::StaleList, if operation == Operation::List { plan.stale_list } else { 0 }),
        ];
        let mut chance = chance % 1_000;
        for (fault, odds) in odds {
            match chance.checked_sub(odds.into()) {
                None => return fault,
                Some(rest) => chance = rest,
            }
        }
        Fault::None
    }
}
