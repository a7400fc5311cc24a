//! The bounds of a run: the number of processes, subjects and events, and the rule that is broken on purpose.

use crate::action::Action;

/// The largest number of subjects.
pub const MAX_SUBJECTS: usize = 2;

/// The largest number of revs of a subject.
pub const MAX_REVS: usize = 6;

/// The bounds of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of processes. At the start, the first one owns every subject, by manifest 1.
    pub processes: u8,
    /// How often a process may start to open each subject.
    pub opens: [u8; MAX_SUBJECTS],
    /// How many writes each subject may get, from all processes.
    pub writes: [u8; MAX_SUBJECTS],
    /// The number of subjects.
    pub subjects: u8,
    /// Compactions, in total.
    pub compactions: u8,
    /// Releases, in total.
    pub releases: u8,
    /// Crashes, in total. A process restarts at once, with a new log.
    pub crashes: u8,
    /// Reads that need a barrier, in total.
    pub reads: u8,
    /// Closings of a subject that stays owned, in total.
    pub evictions: u8,
    /// Creates of manifests and seals that are given up with an indeterminate result.
    pub unknowns: u8,
    /// Requests that the network delivers twice.
    pub duplicates: u8,
    /// Reclaims by the production machine.
    pub drains: u8,
    /// The number of lease expiries. With a value, processes have leases, and the coordinator permits a claim only
    /// after it has declared the server of the owner's log dead. It does that only while the log's process has no
    /// confirmed lease.
    pub lapses: Option<u8>,
    /// How often the coordinator loses its record of dead servers.
    pub state_losses: u8,
    /// How often a claim may restart.
    pub restarts: u32,
    /// The kind of base that a claim or a compaction uploads.
    pub bases: Bases,
    /// A permitted deletion of a slot may take effect at any later time, repeatedly, on any object in the slot by then.
    /// Otherwise, it takes effect once.
    pub lazy: bool,
    /// A collector outside the processes collects sealed logs, as far as production's rules permit.
    pub collector: bool,
    /// A listing and the dependent reads are separate steps.
    pub split: bool,
    /// At the start, the subjects have no manifest.
    pub empty: bool,
    /// Steps that happen first, so that a distant counterexample is found in time.
    pub prologue: Vec<Action>,
    /// The broken rule.
    pub broken_rule: Option<BrokenRule>,
}

/// The last part of a manifest's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bases {
    /// A delta whenever there are changes above the base.
    Deltas,
    /// Always a snapshot.
    Snapshots,
    /// Claims upload deltas, owners upload snapshots.
    Mixed,
}

/// Rules that the driver breaks: it misleads the machines, or acts without their request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenRule {
    /// A created seal counts without a listing that shows it as the highest slot.
    NoListAfterSeal,
    /// The owner deletes its highest slot too, if no subject needs it.
    OwnerTrimsHighest,
    /// A claim serves after the create of its manifest, without a last listing.
    NoListAfterClaim,
    /// Any object in the slot of a segment counts as that segment.
    ExistsIsSuccessForData,
    /// Any manifest with the number of a claim counts as its own.
    ExistsIsSuccessForClaim,
    /// The same, for a compaction.
    ExistsIsSuccessForCompaction,
    /// Any object in the slot of a seal counts as that seal.
    ExistsIsSuccessForSeal,
    /// Collectors delete the seals that end logs too.
    SealsAreDeleted,
    /// A claim reads its predecessor's log without sealing it.
    ClaimWithoutSeal,
    /// A log counts as sealed if any slot is a seal.
    SealedIfAnySlotIs,
    /// An owner that meets a seal writes its batch after the seal.
    SameBatchAfterSeal,
    /// A compaction counts after the create of its manifest, without a last listing.
    NoListAfterCompaction,
    /// The same, for a release.
    NoListAfterRelease,
    /// A collector of slots decides by any existing manifest instead of the newest.
    CollectorTakesAnyManifest,
    /// A reclaim treats a subject as free of the log without the last listing.
    ReclaimWithoutLastList,
    /// A reclaim omits the last listing after the create of its manifest.
    ReclaimReleaseWithoutLastList,
    /// A subject that the process's own log owns is opened without the last listing.
    OwnOpenWithoutLastList,
    /// The same; in addition, the process reads its own log from the bucket instead of its own record, and reads
    /// survive the closing of a subject.
    OwnOpenFromBucket,
    /// A probe of the next slot confirms reads that arrived after its start.
    EarlierProbeCounts,
    /// A probe of the next slot starts during a create in flight, and confirms reads.
    ProbeDuringCreate,
    /// A create confirms reads that arrived while it was in flight.
    CreateInFlightCounts,
    /// Reads are served until the release is definite.
    ReadsUntilReleased,
    /// A subject reopens while its release is indeterminate.
    ReopenDuringRelease,
    /// A subject is closed, and opened again, with writes in flight.
    EvictWithWritesInFlight,
    /// A collector reads the manifests first, and then checks whether the log is sealed.
    CollectorReadsBeforeSeal,
    /// The authority's answer from before the seal counts after it too.
    NoRecheckAfterSeal,
    /// A lease counts as confirmed as soon as it is granted.
    LeaseWithoutBarrier,
    /// The coordinator declares a server dead whose process still has a confirmed lease: its clock is broken.
    DeadDespiteLease,
    /// Claims continue after the log for which they were started has ended.
    ClaimSurvivesLog,
}

impl BrokenRule {
    /// All rules.
    pub const ALL: [Self; 29] = [
        Self::NoListAfterSeal,
        Self::OwnerTrimsHighest,
        Self::NoListAfterClaim,
        Self::ExistsIsSuccessForData,
        Self::ExistsIsSuccessForClaim,
        Self::ExistsIsSuccessForCompaction,
        Self::ExistsIsSuccessForSeal,
        Self::SealsAreDeleted,
        Self::ClaimWithoutSeal,
        Self::SealedIfAnySlotIs,
        Self::SameBatchAfterSeal,
        Self::NoListAfterCompaction,
        Self::NoListAfterRelease,
        Self::CollectorTakesAnyManifest,
        Self::ReclaimWithoutLastList,
        Self::ReclaimReleaseWithoutLastList,
        Self::OwnOpenWithoutLastList,
        Self::OwnOpenFromBucket,
        Self::EarlierProbeCounts,
        Self::ProbeDuringCreate,
        Self::CreateInFlightCounts,
        Self::ReadsUntilReleased,
        Self::ReopenDuringRelease,
        Self::EvictWithWritesInFlight,
        Self::CollectorReadsBeforeSeal,
        Self::NoRecheckAfterSeal,
        Self::LeaseWithoutBarrier,
        Self::DeadDespiteLease,
        Self::ClaimSurvivesLog,
    ];
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            processes: 2,
            opens: [1, 1],
            writes: [2, 0],
            subjects: 1,
            compactions: 1,
            releases: 0,
            crashes: 0,
            reads: 0,
            evictions: 0,
            unknowns: 0,
            duplicates: 0,
            drains: 0,
            lapses: None,
            state_losses: 0,
            restarts: 1,
            bases: Bases::Mixed,
            lazy: false,
            collector: true,
            split: false,
            empty: false,
            prologue: Vec::new(),
            broken_rule: None,
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// How often a run covered cases that are easily missed.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// Returns the counters by name.
            #[must_use]
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Seals that landed in a gap below the log's end.
    void_seals,
    /// Seals put on logs.
    seals,
    /// Manifests created under a number that had been collected.
    recycled_by_claim,
    /// The same, for a compaction.
    recycled_by_compaction,
    /// The same, for a release.
    recycled_by_release,
    /// Lost replies to creates.
    lost_answers,
    /// Segments that landed after their sender had given them up.
    late_segments,
    /// The same, for a seal.
    late_seals,
    /// The same, for a manifest.
    late_manifests,
    /// Segments created in a slot that a collector had emptied.
    segments_in_gaps,
    /// Creates that found their own object in place.
    own_nonce,
    /// Claims whose last listing showed a newer manifest.
    failed_claim_verifies,
    /// The same, for compactions and releases.
    failed_publish_verifies,
    /// Released manifests taken as the base of a claim.
    released_claims,
    /// Subjects opened on the log that owns them.
    own_opens,
    /// Claims that took over operations of a sealed log.
    takeovers,
    /// Reads answered after a probe of the next slot.
    reads_by_probe,
    /// Reads answered by a create.
    reads_by_create,
    /// Reads answered under a lease.
    reads_by_lease,
    /// Leases that a barrier confirmed.
    leases_confirmed,
    /// Leases granted to a log whose server had been declared dead, by a coordinator that had lost its record.
    leases_after_death,
    /// Logs that ended.
    ended_logs,
    /// Writes acknowledged.
    acknowledged,
    /// Claims that restarted because an object was missing.
    objects_missing,
    /// Indeterminate publishes that were settled later.
    resumed,
    /// Slots deleted by a collector.
    collected_slots,
    /// Slots deleted by their owner.
    trimmed_slots,
    /// Objects of a subject collected between their upload and the creation of the manifest that they were made for.
    collected_uploads,
    /// Subjects that the production reclaim released.
    drained,
}
