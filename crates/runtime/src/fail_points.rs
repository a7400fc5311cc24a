//! Fail points: named steps at which a test kills or stops this process, or blocks one of its threads.
//!
//! Production code names a step in one line, with [`fail_point!`](crate::fail_point). Without the feature `fail-points`
//! the line compiles to nothing. With the feature, a step can kill or stop the process if the environment arms it:
//!
//! - `DORMOUSE_FAIL_POINTS`: `name=probability`, `name=probability:stop` or `name=probability:hang`, several separated
//!   by commas. The process kills itself (SIGKILL: no destructor runs, nothing is flushed), or stops itself (SIGSTOP)
//!   until it gets SIGCONT, or blocks the thread that reached the step.
//! - `DORMOUSE_FAIL_SEED`: the seed of the random decisions.
//! - `DORMOUSE_FAIL_WHILE`: a file. While it does not exist, no step fires, and a blocked thread continues.
//!
//! A line on standard error names the step that fired.

/// Marks a [`FailPoint`](crate::fail_points::FailPoint), named by its variant.
#[macro_export]
macro_rules! fail_point {
    ($step:ident) => {
        $crate::fail_points::reach($crate::fail_points::FailPoint::$step)
    };
}

/// A step between two actions that must both happen, or whose order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailPoint {
    /// The data side of a server is at the end of a pass, and the control side does not know.
    DataPass,
    /// A change is planned, and the log has not accepted it.
    Planned,
    /// A group is about to be written to the local write-ahead log.
    WalWriting,
    /// A group is in the local write-ahead log, and its writers do not know.
    WalWritten,
    /// Writes of the levels `memory` and `interval` are acknowledged, and nothing is synced.
    WalUnsynced,
    /// A group is synced, and its writers do not know.
    WalSynced,
    /// A slot is created, and its writers do not know.
    SlotCreated,
    /// Changes have reached their level, and are neither published nor acknowledged.
    LevelReached,
    /// Changes that were published and acknowledged are in their subject's file.
    Applied,
    /// A blob is in the bucket, and no record refers to it.
    BlobUploaded,
    /// A snapshot or delta of a publication is in the bucket, and no manifest refers to it.
    BaseUploaded,
    /// The manifest of a publication is created, and no listing has shown it.
    ManifestCreated,
    /// An orphaned log is sealed, and has no index.
    Sealed,
    /// A claim's base is in the bucket, and no manifest refers to it.
    ClaimBaseUploaded,
    /// A claim's manifest is created, and no listing has shown it.
    ClaimCreated,
    /// A claim is verified, and the subject is not served yet.
    ClaimVerified,
    /// All writes of a subject are in the bucket, and its release is not published.
    Releasing,
    /// A release is published, and the authority does not know.
    Released,
    /// A part of an earlier process's unshipped writes is in its log.
    RecoveryPut,
    /// All unshipped writes of an earlier process are in its log, and the log is not sealed.
    RecoverySealing,
    /// The unshipped writes of an earlier process are in the bucket, and still on the disk.
    WalRemoving,
    /// An unneeded write-ahead log is removed.
    WalRemoved,
    /// Diverged writes are in `lost/`, and their subject still waits.
    LostSaved,
    /// The log is fenced, and the process is about to continue with a new log.
    TakenOver,
}

impl FailPoint {
    /// All steps.
    pub const ALL: [Self; 24] = [
        Self::DataPass,
        Self::Planned,
        Self::WalWriting,
        Self::WalWritten,
        Self::WalUnsynced,
        Self::WalSynced,
        Self::SlotCreated,
        Self::LevelReached,
        Self::Applied,
        Self::BlobUploaded,
        Self::BaseUploaded,
        Self::ManifestCreated,
        Self::Sealed,
        Self::ClaimBaseUploaded,
        Self::ClaimCreated,
        Self::ClaimVerified,
        Self::Releasing,
        Self::Released,
        Self::RecoveryPut,
        Self::RecoverySealing,
        Self::WalRemoving,
        Self::WalRemoved,
        Self::LostSaved,
        Self::TakenOver,
    ];

    /// The step's name in `DORMOUSE_FAIL_POINTS`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DataPass => "data-pass",
            Self::Planned => "planned",
            Self::WalWriting => "wal-writing",
            Self::WalWritten => "wal-written",
            Self::WalUnsynced => "wal-unsynced",
            Self::WalSynced => "wal-synced",
            Self::SlotCreated => "slot-put",
            Self::LevelReached => "landed",
            Self::Applied => "applied",
            Self::BlobUploaded => "value-up",
            Self::BaseUploaded => "base-up",
            Self::ManifestCreated => "manifest-created",
            Self::Sealed => "sealed",
            Self::ClaimBaseUploaded => "claim-base-up",
            Self::ClaimCreated => "claim-created",
            Self::ClaimVerified => "claim-verified",
            Self::Releasing => "releasing",
            Self::Released => "released",
            Self::RecoveryPut => "recovery-put",
            Self::RecoverySealing => "recovery-sealing",
            Self::WalRemoving => "wal-removing",
            Self::WalRemoved => "wal-removed",
            Self::LostSaved => "lost-kept",
            Self::TakenOver => "taken-over",
        }
    }
}

/// Does nothing without the feature `fail-points`.
#[cfg(not(feature = "fail-points"))]
#[inline(always)]
pub const fn reach(_: FailPoint) {}

#[cfg(feature = "fail-points")]
pub use armed::{arm_from_env, reach};

#[cfg(feature = "fail-points")]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::FailPoint;

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// The armed steps.
    #[derive(Debug)]
    struct Armed {
        points: Vec<ArmedPoint>,
        rng_state: AtomicU64,
        only_while: Option<PathBuf>,
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct ArmedPoint {
        step: FailPoint,
        probability: f64,
        action: FailAction,
    }

    /// What a step does that fires.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum FailAction {
        /// Kill the process.
        Kill,
        /// Stop the process.
        Stop,
        /// Block the thread.
        Hang,
    }

    /// How often a blocked thread checks whether it may continue.
    const HANG_CHECK: Duration = Duration::from_millis(10);

    impl Armed {
        /// Parses the values of the three variables.
        ///
        /// # Errors
        /// A text that names the invalid part.
        fn read(points: &str, seed: u64, only_while: Option<PathBuf>) -> Result<Self, String> {
            let points = points.split(',').filter(|part| !part.is_empty()).map(|part| {
                let (name, rest) = part.split_once('=').ok_or_else(|| format!("{part}: no probability"))?;
                let (probability, action) = match rest.split_once(':') {
                    Some((probability, "stop")) => (probability, FailAction::Stop),
                    Some((probability, "hang")) => (probability, FailAction::Hang),
                    Some((_, other)) => return Err(format!("{other}: no such action")),
                    None => (rest, FailAction::Kill),
                };
                let step = FailPoint::ALL.into_iter().find(|step| step.as_str() == name);
                let step = step.ok_or_else(|| format!("{name}: no such fail point"))?;
                let probability = probability.parse().map_err(|error| format!("{part}: {error}"))?;
                Ok(ArmedPoint { step, probability, action })
            });
            Ok(Self {
                points: points.collect::<Result<_, String>>()?,
                rng_state: AtomicU64::new(seed),
                only_while,
            })
        }

        /// What this step does, if it fires.
        fn fires(&self, step: FailPoint) -> Option<FailAction> {
            let point = self.points.iter().find(|point| point.step == step)?;
            (self.next_fraction() < point.probability).then_some(point.action)
        }

        /// Whether steps may fire now.
        fn is_enabled(&self) -> bool {
            self.only_while.as_ref().is_none_or(|file| file.exists())
        }

        /// A uniformly distributed random number from 0 to 1 (SplitMix64).
        fn next_fraction(&self) -> f64 {
            const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
            let mut mixed = self.rng_state.fetch_add(STRIDE, Ordering::Relaxed).wrapping_add(STRIDE);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            #[expect(clippy::cast_precision_loss, reason = "32 bits fit")]
            let fraction = ((mixed ^ (mixed >> 31)) >> 32) as f64;
            fraction / f64::from(u32::MAX)
        }
    }

    /// Arms the steps that the environment names, for the rest of the process. Steps that are not armed do nothing.
    ///
    /// # Errors
    /// A text that names the invalid part of `DORMOUSE_FAIL_POINTS`.
    pub fn arm_from_env() -> Result<(), String> {
        let Ok(points) = std::env::var("DORMOUSE_FAIL_POINTS") else { return Ok(()) };
        let seed = std::env::var("DORMOUSE_FAIL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
        let armed = Armed::read(&points, seed, std::env::var_os("DORMOUSE_FAIL_WHILE").map(Into::into))?;
        // The first call decides.
        let _ = ARMED.set(armed);
        tracing::warn!(points, seed, impact = "this process may kill itself", "fail points are armed");
        Ok(())
    }

    /// Kills or stops the process, or blocks the thread, if the step is armed and fires. Use
    /// [`fail_point!`](crate::fail_point).
    pub fn reach(step: FailPoint) {
        let Some(armed) = ARMED.get() else { return };
        let Some(action) = armed.fires(step) else { return };
        if !armed.is_enabled() {
            return;
        }
        let name = step.as_str();
        // A signal to the own process cannot fail, and SIGKILL does not return.
        match action {
            FailAction::Kill => {
                eprintln!("fail point {name}: killed");
                let _ = kill_process(getpid(), Signal::KILL);
            }
            FailAction::Stop => {
                eprintln!("fail point {name}: stopping");
                let _ = kill_process(getpid(), Signal::STOP);
            }
            FailAction::Hang => {
                eprintln!("fail point {name}: thread blocked");
                while armed.is_enabled() {
                    block_for(HANG_CHECK);
                }
                eprintln!("fail point {name}: thread continues");
            }
        }
    }

    /// Blocks the thread: the purpose of the action.
    #[expect(clippy::disallowed_methods)]
    fn block_for(pause: Duration) {
        std::thread::sleep(pause);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A fail point is armed by name and fires with its probability; unknown names and bad values are rejected.
        #[test]
        fn fail_point_fires_by_name_and_probability() {
            let armed = Armed::read("landed=1,applied=0.5:stop,sealed=0,data-pass=1:hang", 7, None).unwrap();
            assert_eq!(armed.fires(FailPoint::LevelReached), Some(FailAction::Kill));
            assert_eq!(armed.fires(FailPoint::DataPass), Some(FailAction::Hang));
            assert_eq!(armed.fires(FailPoint::Sealed), None);
            assert_eq!(armed.fires(FailPoint::Planned), None);
            let stop = Some(FailAction::Stop);
            let stops = (0..1_000).filter(|_| armed.fires(FailPoint::Applied) == stop).count();
            assert!((400..600).contains(&stops), "{stops}");
            for wrong in ["landed", "nowhere=1", "landed=often", "landed=1:dance"] {
                assert!(Armed::read(wrong, 7, None).is_err(), "{wrong}");
            }
        }

        /// Steps fire only while the file exists.
        #[test]
        fn fail_point_fires_only_while_its_file_exists() {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("armed");
            let armed = Armed::read("landed=1", 7, Some(file.clone())).unwrap();
            assert!(!armed.is_enabled());
            std::fs::write(&file, "").unwrap();
            assert!(armed.is_enabled());
            std::fs::remove_file(&file).unwrap();
            assert!(!armed.is_enabled());
        }
    }
}
