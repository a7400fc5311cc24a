//! What a run may do: how many processes, subjects and events, and which rule is broken on purpose.

use crate::action::Action;

/// Most subjects.
pub const MOST_SUBJECTS: usize = 2;

/// Most revs of a subject.
pub const MOST_REVS: usize = 6;

/// The bounds of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many processes there are. The first owns every subject at the beginning, by manifest 1.
    pub processes: u8,
    /// How often a process may begin to open each subject.
    pub opens: [u8; MOST_SUBJECTS],
    /// How many writes each subject may get, by whichever process.
    pub writes: [u8; MOST_SUBJECTS],
    /// How many subjects there are.
    pub subjects: u8,
    /// Compactions, all together.
    pub compactions: u8,
    /// Releases, all together.
    pub releases: u8,
    /// Crashes, all together. A process comes back at once, with a fresh log.
    pub crashes: u8,
    /// Reads that need a barrier, all together.
    pub reads: u8,
    /// Closings of a subject that stays owned, all together.
    pub evictions: u8,
    /// Creations of manifests and seals that are given up without a known outcome.
    pub unknowns: u8,
    /// Requests that the network delivers twice.
    pub duplicates: u8,
    /// Drains by the production machine.
    pub drains: u8,
    /// Processes have leases, and the coordinator allows a claim only once it has declared the owner's log dead, which
    /// it does only while that log's process trusts no lease. This often, a lease may come to its end.
    pub lapses: Option<u8>,
    /// How often the coordinator forgets whom it has declared dead.
    pub oblivions: u8,
    /// How often a claim may begin again.
    pub restarts: u32,
    /// What a claim or a compaction uploads.
    pub bases: Bases,
    /// A permitted deletion of a slot may hit at any later time, repeatedly, whatever lies there by then. Otherwise it
    /// hits once.
    pub lazy: bool,
    /// Somebody who is not one of the processes collects sealed logs, as far as production's rules allow.
    pub collector: bool,
    /// A listing and what is read because of it are steps of their own.
    pub split: bool,
    /// At the beginning the subjects have no manifest.
    pub empty: bool,
    /// What happens first, before everything is tried: a counterexample that is far away is found in time.
    pub prologue: Vec<Action>,
    /// The rule that is broken.
    pub lie: Option<Lie>,
}

/// What becomes the end of a manifest's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bases {
    /// Always a delta where there is something above the base.
    Deltas,
    /// Always a snapshot.
    Snapshots,
    /// Claims put deltas, owners put snapshots.
    Mixed,
}

/// Ways in which the driver of the machines lies to them, or does what they did not ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// A seal that was created counts without a look at whether it is the highest slot.
    NoListAfterSeal,
    /// The owner deletes its highest slot, too, once nobody needs it.
    OwnerTrimsHighest,
    /// A claim whose manifest was created serves without a last listing.
    NoListAfterClaim,
    /// Whatever lies in the slot of a segment counts as that segment.
    ExistsIsSuccessForData,
    /// Whatever manifest has the number of a claim counts as its own.
    ExistsIsSuccessForClaim,
    /// The same, of a compaction.
    ExistsIsSuccessForCompaction,
    /// Whatever lies in the slot of a seal counts as that seal.
    ExistsIsSuccessForSeal,
    /// Collectors delete the seals that end logs, too.
    SealsAreDeleted,
    /// A claim reads its predecessor's log without sealing it.
    ClaimWithoutSeal,
    /// A log counts as sealed when any slot is a seal.
    SealedIfAnySlotIs,
    /// An owner that meets a seal puts its batch behind it.
    SameBatchAfterSeal,
    /// A compaction whose manifest was created counts without a last listing.
    NoListAfterCompaction,
    /// The same, of a release.
    NoListAfterRelease,
    /// A collector of slots decides by any manifest that exists, not by the newest.
    CollectorTakesAnyManifest,
    /// A drain takes a subject for free of its log without the last listing.
    DrainWithoutLastList,
    /// A drain whose manifest was created does without the last listing.
    DrainReleasesWithoutLastList,
    /// A subject that the process's own log owns is opened without the last listing.
    OwnOpenWithoutLastList,
    /// The same; its own log is read by what is there, not by the books; and reads survive the closing of a subject.
    OwnOpenByWhatIsThere,
    /// A look at the next slot proves reads that arrived after it was begun.
    EarlierLookCounts,
    /// A look at the next slot is begun while a create is in flight, and proves reads.
    LookWhilePutting,
    /// A create proves reads that arrived when it was in flight already.
    CreateInFlightCounts,
    /// Reads are served until the release is definite.
    ReadsUntilReleased,
    /// A subject is opened again while its release has no known outcome.
    ReopenDuringRelease,
    /// A subject is closed, and opened again, with writes in flight.
    EvictWithWritesInFlight,
    /// A collector looks at the manifests first, and then whether the log is sealed.
    CollectorLooksBeforeSeal,
    /// What the authority said before the seal was in place counts after it, too.
    NoAskAfterSeal,
    /// A lease is trusted as soon as it is granted.
    LeaseWithoutBarrier,
    /// The coordinator declares a log dead whose process still trusts a lease: its clock is broken.
    DeadDespiteLease,
    /// Claims under way go on after the log has ended for which they were begun.
    ClaimSurvivesLog,
}

impl Lie {
    /// Every lie.
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
        Self::DrainWithoutLastList,
        Self::DrainReleasesWithoutLastList,
        Self::OwnOpenWithoutLastList,
        Self::OwnOpenByWhatIsThere,
        Self::EarlierLookCounts,
        Self::LookWhilePutting,
        Self::CreateInFlightCounts,
        Self::ReadsUntilReleased,
        Self::ReopenDuringRelease,
        Self::EvictWithWritesInFlight,
        Self::CollectorLooksBeforeSeal,
        Self::NoAskAfterSeal,
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
            oblivions: 0,
            restarts: 1,
            bases: Bases::Mixed,
            lazy: false,
            collector: true,
            split: false,
            empty: false,
            prologue: Vec::new(),
            lie: None,
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident),* $(,)?) => {
        /// How often a run came through places that are easily missed.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// The counters by name.
            #[must_use]
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Seals that fell into a hole below the log's end.
    void_seals,
    /// Seals put on logs.
    seals,
    /// Manifests created under a number that had been collected.
    recycled_by_claim,
    /// The same, by a compaction.
    recycled_by_compaction,
    /// The same, by a release.
    recycled_by_release,
    /// Answers to creations that were lost.
    lost_answers,
    /// Requests that landed after their sender had given them up.
    late_segments,
    /// The same, of a seal.
    late_seals,
    /// The same, of a manifest.
    late_manifests,
    /// Segments created in a slot that had been emptied by a collector.
    segments_in_holes,
    /// Creations that found their own object there.
    own_nonce,
    /// Claims whose last listing showed a newer manifest.
    failed_claim_verifies,
    /// The same, of compactions and releases.
    failed_publish_verifies,
    /// Released manifests taken as the base of a claim.
    released_claims,
    /// Subjects opened on the log that owns them.
    own_opens,
    /// Claims that took over operations of a sealed log.
    takeovers,
    /// Reads answered after a look at the next slot.
    reads_by_look,
    /// Reads answered by a create.
    reads_by_create,
    /// Reads answered under a lease.
    reads_by_lease,
    /// Leases that came to be trusted after a barrier.
    leases_trusted,
    /// Leases granted to a log that had been declared dead, by a coordinator that had forgotten it.
    leases_to_the_dead,
    /// Logs that met their end.
    ended_logs,
    /// Writes acknowledged.
    acknowledged,
    /// Claims that began again because an object was missing.
    objects_missing,
    /// Publications without a known outcome that were settled later.
    resumed,
    /// Slots deleted by a collector.
    collected_slots,
    /// Slots deleted by their owner.
    trimmed_slots,
    /// Objects of a subject collected between their upload and the creation of the manifest that they were made for.
    collected_uploads,
    /// Subjects that the production drain released.
    drained,
}
