//! Named steps at which a test may have this process die, or stand still.
//!
//! Without the feature `fail-points` a step is nothing at all. With it, and only when the environment asks for it, a step
//! may be the last thing the process does:
//!
//! - `DORMOUSE_FAIL_POINTS`: `name=probability` or `name=probability:stop`, several separated by commas. The process kills
//!   itself (SIGKILL: no destructor runs, nothing is flushed), or stops itself (SIGSTOP) until somebody wakes it.
//! - `DORMOUSE_FAIL_SEED`: a number from which the dice follow.
//! - `DORMOUSE_FAIL_WHILE`: a file; nothing happens once it is gone.
//!
//! A line on standard error says which step it was.

/// A step between two things that both have to happen, or an order that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A change is planned, and not in the log's books.
    Planned,
    /// A group is in the local write-ahead log, and nobody knows.
    WalWritten,
    /// Writers of the levels `memory` and `interval` were told, and nothing is synced.
    WalUnsynced,
    /// A group is synced, and nobody knows.
    WalSynced,
    /// A slot is created, and its writers do not know.
    SlotPut,
    /// Changes have reached their level, and are neither announced nor answered.
    Landed,
    /// Changes that were announced and answered are in their file.
    Applied,
    /// A large value is in the bucket, and no record refers to it.
    ValueUp,
    /// A snapshot or delta of a publication is in the bucket, and no manifest refers to it.
    BaseUp,
    /// The manifest of a publication is created, and was not seen in a listing.
    ManifestCreated,
    /// A dead log is sealed, and has no index.
    Sealed,
    /// A claim's base is in the bucket, and no manifest refers to it.
    ClaimBaseUp,
    /// A claim's manifest is created, and was not seen in a listing.
    ClaimCreated,
    /// A claim stands, and nothing is served yet.
    ClaimVerified,
    /// Everything of a subject is settled, and its release is not published.
    Releasing,
    /// A release is published, and nobody was told.
    Released,
    /// A part of what an earlier process left is in its log.
    RecoveryPut,
    /// All that an earlier process left is in its log, and the log is not sealed.
    RecoverySealing,
    /// What an earlier process left is in the bucket, and still on the disk.
    WalRemoving,
    /// A write-ahead log that nobody needs is gone.
    WalRemoved,
    /// What was lost is kept aside, and its subject still waits.
    LostKept,
    /// The log was taken over, and the process is about to go on with a fresh one.
    TakenOver,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 22] = [
        Self::Planned,
        Self::WalWritten,
        Self::WalUnsynced,
        Self::WalSynced,
        Self::SlotPut,
        Self::Landed,
        Self::Applied,
        Self::ValueUp,
        Self::BaseUp,
        Self::ManifestCreated,
        Self::Sealed,
        Self::ClaimBaseUp,
        Self::ClaimCreated,
        Self::ClaimVerified,
        Self::Releasing,
        Self::Released,
        Self::RecoveryPut,
        Self::RecoverySealing,
        Self::WalRemoving,
        Self::WalRemoved,
        Self::LostKept,
        Self::TakenOver,
    ];

    /// The step's name as it is written in `DORMOUSE_FAIL_POINTS`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::WalWritten => "wal-written",
            Self::WalUnsynced => "wal-unsynced",
            Self::WalSynced => "wal-synced",
            Self::SlotPut => "slot-put",
            Self::Landed => "landed",
            Self::Applied => "applied",
            Self::ValueUp => "value-up",
            Self::BaseUp => "base-up",
            Self::ManifestCreated => "manifest-created",
            Self::Sealed => "sealed",
            Self::ClaimBaseUp => "claim-base-up",
            Self::ClaimCreated => "claim-created",
            Self::ClaimVerified => "claim-verified",
            Self::Releasing => "releasing",
            Self::Released => "released",
            Self::RecoveryPut => "recovery-put",
            Self::RecoverySealing => "recovery-sealing",
            Self::WalRemoving => "wal-removing",
            Self::WalRemoved => "wal-removed",
            Self::LostKept => "lost-kept",
            Self::TakenOver => "taken-over",
        }
    }
}

#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub(crate) const fn reach(_: Step) {}

#[cfg(feature = "fail-points")]
pub(crate) use armed::reach;
#[cfg(feature = "fail-points")]
pub use armed::{Armed, arm};

#[cfg(feature = "fail-points")]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Step;

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// Which steps may be the last.
    #[derive(Debug)]
    pub struct Armed {
        charges: Vec<Charge>,
        dice: AtomicU64,
        only_while: Option<PathBuf>,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Charge {
        step: Step,
        probability: f64,
        stop: bool,
    }

    impl Armed {
        /// Reads what the three variables say.
        ///
        /// # Errors
        /// What is wrong with it.
        pub fn read(points: &str, seed: u64, only_while: Option<PathBuf>) -> Result<Self, String> {
            let charges = points.split(',').filter(|part| !part.is_empty()).map(|part| {
                let (name, rest) = part.split_once('=').ok_or_else(|| format!("{part}: no probability"))?;
                let (probability, stop) = match rest.strip_suffix(":stop") {
                    Some(probability) => (probability, true),
                    None => (rest, false),
                };
                let step = Step::ALL.into_iter().find(|step| step.as_str() == name);
                let step = step.ok_or_else(|| format!("{name}: no such step"))?;
                let probability = probability.parse().map_err(|error| format!("{part}: {error}"))?;
                Ok(Charge { step, probability, stop })
            });
            Ok(Self {
                charges: charges.collect::<Result<_, String>>()?,
                dice: AtomicU64::new(seed),
                only_while,
            })
        }

        /// Whether the process shall end (`Some(false)`) or stand still (`Some(true)`) at this step.
        fn falls(&self, step: Step) -> Option<bool> {
            let charge = self.charges.iter().find(|charge| charge.step == step)?;
            (self.roll() < charge.probability).then_some(charge.stop)
        }

        /// A number from 0 to 1, drawn evenly (SplitMix64).
        fn roll(&self) -> f64 {
            const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
            let mut mixed = self.dice.fetch_add(STRIDE, Ordering::Relaxed).wrapping_add(STRIDE);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            #[expect(clippy::cast_precision_loss, reason = "32 bits fit")]
            let fraction = ((mixed ^ (mixed >> 31)) >> 32) as f64;
            fraction / f64::from(u32::MAX)
        }
    }

    /// Arms the steps for the rest of the process, once. Steps that nobody arms do nothing.
    pub fn arm(armed: Armed) {
        // Whoever armed them first has said what shall happen.
        let _ = ARMED.set(armed);
    }

    pub(crate) fn reach(step: Step) {
        let Some(armed) = ARMED.get() else { return };
        let Some(stop) = armed.falls(step) else { return };
        if armed.only_while.as_ref().is_some_and(|file| !file.exists()) {
            return;
        }
        let (signal, what) = if stop { (Signal::STOP, "stopping") } else { (Signal::KILL, "killed") };
        eprintln!("fail point {}: {what}", step.as_str());
        // To oneself it cannot fail, and SIGKILL does not return.
        let _ = kill_process(getpid(), signal);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn steps_are_armed_by_name_and_fall_as_often_as_they_shall() {
            let armed = Armed::read("landed=1,applied=0.5:stop,sealed=0", 7, None).unwrap();
            assert_eq!(armed.falls(Step::Landed), Some(false));
            assert_eq!(armed.falls(Step::Sealed), None);
            assert_eq!(armed.falls(Step::Planned), None);
            let stops = (0..1_000).filter(|_| armed.falls(Step::Applied) == Some(true)).count();
            assert!((400..600).contains(&stops), "{stops}");
            for wrong in ["landed", "nowhere=1", "landed=often"] {
                assert!(Armed::read(wrong, 7, None).is_err(), "{wrong}");
            }
        }
    }
}
