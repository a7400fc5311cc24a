//! Durability progress of one append.

use std::fmt;
use std::sync::{Arc, MutexGuard};

use dormouse_protocol::{ErrorReply, Level, Slot};
use dormouse_runtime::Lock;
use tokio::sync::Notify;

use dormouse_runtime::injected_bug;

/// Durability stage of a write. Each stage includes the earlier ones; [`DurabilityStage::Failed`] includes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DurabilityStage {
    /// In memory.
    Accepted,
    /// In the local write-ahead log, not yet synced.
    Written,
    /// Synced to the local disk.
    Synced,
    /// In the bucket.
    Shipped,
    /// The write failed, and so did every later write of its subject; [`AppendProgress::failure`] has the reason.
    Failed,
}

/// The stage that a write of this level must reach before it may be acknowledged.
fn required_stage(level: Level) -> DurabilityStage {
    match level {
        Level::Bucket if injected_bug!(AckBeforeBucket) => DurabilityStage::Written,
        Level::Memory => DurabilityStage::Accepted,
        Level::Interval => DurabilityStage::Written,
        Level::Disk => DurabilityStage::Synced,
        Level::Bucket => DurabilityStage::Shipped,
    }
}

/// Follows one append. Here "acknowledged" and "failed" exclude each other: a write that [`AppendProgress::reached`]
/// has passed can no longer fail, and a failed write never passes.
pub struct AppendProgress {
    state: Lock<ProgressState>,
    waker: Arc<Notify>,
}

struct ProgressState {
    stage: DurabilityStage,
    acknowledged: bool,
    /// The write will fail; until then, its writer gets no reply.
    failing: bool,
    slot: Option<Slot>,
    failure: Option<ErrorReply>,
}

impl AppendProgress {
    pub(super) fn new(waker: Arc<Notify>) -> Arc<Self> {
        let state = ProgressState {
            stage: DurabilityStage::Accepted,
            acknowledged: false,
            failing: false,
            slot: None,
            failure: None,
        };
        Arc::new(Self { state: Lock::new(state), waker })
    }

    /// The current stage of the write.
    #[must_use]
    pub fn stage(&self) -> DurabilityStage {
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

    /// Whether the write may be acknowledged at `level`; `None` if not yet. Call this in the order of the appends.
    /// `Some(Ok)` is the moment of the acknowledgement: afterwards the write never fails, even if the log ends.
    ///
    /// # Errors
    /// The error for the caller of the write.
    #[must_use]
    pub fn reached(&self, level: Level) -> Option<Result<(), ErrorReply>> {
        let mut state = self.lock();
        if state.stage == DurabilityStage::Failed {
            let unknown = || ErrorReply::internal("write failed without a recorded reason");
            return Some(Err(state.failure.clone().unwrap_or_else(unknown)));
        }
        if state.failing || state.stage < required_stage(level) {
            return None;
        }
        state.acknowledged = true;
        Some(Ok(()))
    }

    /// Prevents acknowledgement, unless the write is acknowledged or shipped already. Returns whether it is prevented;
    /// if so, [`AppendProgress::fail`] must follow.
    pub(super) fn mark_failing(&self) -> bool {
        let mut state = self.lock();
        state.failing |= !state.acknowledged && state.stage < DurabilityStage::Shipped;
        state.failing
    }

    /// Advances to `stage`, never back.
    pub(super) fn advance(&self, stage: DurabilityStage) {
        let mut state = self.lock();
        if state.stage < stage && !state.failing {
            state.stage = stage;
            drop(state);
            self.waker.notify_one();
        }
    }

    pub(super) fn shipped(&self, slot: Slot) {
        let mut state = self.lock();
        if state.stage != DurabilityStage::Failed {
            state.stage = DurabilityStage::Shipped;
            state.slot = Some(slot);
            drop(state);
            self.waker.notify_one();
        }
    }

    /// Fails the write unless it is acknowledged or shipped; returns whether it has failed.
    pub(super) fn fail(&self, failure: &ErrorReply) -> bool {
        let mut state = self.lock();
        if state.acknowledged || state.stage == DurabilityStage::Shipped {
            return false;
        }
        if state.stage != DurabilityStage::Failed {
            state.stage = DurabilityStage::Failed;
            state.failure = Some(failure.clone());
            drop(state);
            self.waker.notify_one();
        }
        true
    }

    /// Notifies the waiter.
    pub(super) fn notify(&self) {
        self.waker.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        // Every change of the state is complete before any code could panic.
        self.state.lock()
    }
}

impl fmt::Debug for AppendProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("AppendProgress")
            .field("stage", &state.stage)
            .field("slot", &state.slot)
            .finish_non_exhaustive()
    }
}
