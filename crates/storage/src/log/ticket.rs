//! How far an appended write has come.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_protocol::{ErrorReply, Level, Slot};
use tokio::sync::Notify;

use crate::mutations::{Mutation, is_there};

/// How far a write has come. Each stage includes those before it, [`Stage::Failed`] none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// In memory.
    Accepted,
    /// In the local write-ahead log, not yet synced.
    Written,
    /// Synced to the local disk.
    Synced,
    /// In the bucket.
    Shipped,
    /// It will come no further, and everything of its subject after it failed too; [`Ticket::failure`] says why.
    Failed,
}

/// Where a write of this level has to come before it may be acknowledged.
fn stage_of(level: Level) -> Stage {
    match level {
        Level::Bucket if is_there(Mutation::ToldBeforeTheBucket) => Stage::Written,
        Level::Memory => Stage::Accepted,
        Level::Interval => Stage::Written,
        Level::Disk => Stage::Synced,
        Level::Bucket => Stage::Shipped,
    }
}

/// Follows one append. It is the place where "acknowledged" and "failed" exclude each other: what
/// [`Ticket::reached`] has let pass can no longer fail, what has failed is never let pass.
pub struct Ticket {
    state: Mutex<State>,
    waker: Arc<Notify>,
}

struct State {
    stage: Stage,
    acknowledged: bool,
    /// It will fail; until it has, nobody is told anything.
    doomed: bool,
    slot: Option<Slot>,
    failure: Option<ErrorReply>,
}

impl Ticket {
    pub(super) fn new(waker: Arc<Notify>) -> Arc<Self> {
        let state =
            State { stage: Stage::Accepted, acknowledged: false, doomed: false, slot: None, failure: None };
        Arc::new(Self { state: Mutex::new(state), waker })
    }

    /// How far the write has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.lock().stage
    }

    /// The slot that it was shipped in.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        self.lock().slot
    }

    /// Why it failed.
    #[must_use]
    pub fn failure(&self) -> Option<ErrorReply> {
        self.lock().failure.clone()
    }

    /// Whether the write may be acknowledged at `level`: `None` while it may not yet. Ask in the order of the appends and
    /// take `Some(Ok)` for the moment of the acknowledgement: from then on the write is not failed any more, whatever
    /// becomes of the log.
    ///
    /// # Errors
    /// What the caller of the write is to be told.
    #[must_use]
    pub fn reached(&self, level: Level) -> Option<Result<(), ErrorReply>> {
        let mut state = self.lock();
        if state.stage == Stage::Failed {
            let unknown = || ErrorReply::internal("a write failed without saying why");
            return Some(Err(state.failure.clone().unwrap_or_else(unknown)));
        }
        if state.doomed || state.stage < stage_of(level) {
            return None;
        }
        state.acknowledged = true;
        Some(Ok(()))
    }

    /// From now on the write cannot be acknowledged, unless it is already; says whether that is so. [`Ticket::fail`]
    /// must follow.
    pub(super) fn doom(&self) -> bool {
        let mut state = self.lock();
        state.doomed |= !state.acknowledged && state.stage < Stage::Shipped;
        state.doomed
    }

    /// Goes on to `stage`, never back.
    pub(super) fn advance(&self, stage: Stage) {
        let mut state = self.lock();
        if state.stage < stage && !state.doomed {
            state.stage = stage;
            drop(state);
            self.waker.notify_one();
        }
    }

    pub(super) fn shipped(&self, slot: Slot) {
        let mut state = self.lock();
        if state.stage != Stage::Failed {
            state.stage = Stage::Shipped;
            state.slot = Some(slot);
            drop(state);
            self.waker.notify_one();
        }
    }

    /// Fails the write unless it is acknowledged; says whether it has failed.
    pub(super) fn fail(&self, failure: &ErrorReply) -> bool {
        let mut state = self.lock();
        if state.acknowledged || state.stage == Stage::Shipped {
            return false;
        }
        if state.stage != Stage::Failed {
            state.stage = Stage::Failed;
            state.failure = Some(failure.clone());
            drop(state);
            self.waker.notify_one();
        }
        true
    }

    /// Has the waiter look again.
    pub(super) fn wake(&self) {
        self.waker.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Ticket")
            .field("stage", &state.stage)
            .field("slot", &state.slot)
            .finish_non_exhaustive()
    }
}
