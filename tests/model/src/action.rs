//! The events that can happen next in a world.

use std::fmt;

/// One step. The numbers are indexes: of a process, a subject, a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A process accepts a write. If nothing is in flight, it ships the write.
    Write(u8, u8),
    /// A read arrives that needs a barrier.
    Read(u8, u8),
    /// The segment in flight reaches the bucket.
    LandSegment(u8),
    /// The owner of the segment in flight gets the reply.
    SegmentAnswered(u8),
    /// The reply is lost, and the segment is sent again.
    LoseSegmentAnswer(u8),
    /// The probe of the next slot reaches the bucket.
    Probe(u8),
    /// The reply to the probe arrives.
    ProbeAnswered(u8),
    /// The same two steps, for a probe that only a driver with a broken rule makes.
    RogueProbe(u8),
    /// The reply to that probe arrives.
    RogueProbeAnswered(u8),
    /// A process starts to open a subject.
    Open(u8, u8),
    /// A claim takes the step that it is waiting for.
    Step(u8, Job),
    /// The create that a job is waiting for reaches the bucket.
    Land(u8, Job),
    /// The reply to the create arrives, and the job continues.
    Answered(u8, Job),
    /// The reply is lost, and the request is sent again.
    LoseAnswer(u8, Job),
    /// The job stops waiting for the reply.
    GiveUp(u8, Job),
    /// The network keeps a second copy of the job's request.
    Duplicate(u8, Job),
    /// The same, of a segment.
    DuplicateSegment(u8),
    /// The owner uploads a newer base and sends its manifest.
    Compact(u8, u8),
    /// The owner closes the subject, uploads a base if need be and sends the released manifest.
    Release(u8, u8),
    /// A publish with an indeterminate result is tried again.
    Resume(u8, u8),
    /// The subject is closed and stays owned.
    Evict(u8, u8),
    /// The process's lease expires, on the clock of the process.
    LoseLease(u8),
    /// The coordinator grants the process a lease.
    GrantLease(u8),
    /// The coordinator declares the server of a log dead.
    DeclareDead(u8),
    /// The coordinator loses its record of dead servers.
    Forget,
    /// The process crashes and restarts.
    Crash(u8),
    /// A request lands whose sender no longer waits for it.
    LandDetached(u8),
    /// A collector deletes a manifest that is not the newest.
    DeleteManifest(u8, u8),
    /// A collector deletes the unneeded snapshots and deltas.
    DeleteBases(u8),
    /// A permitted deletion of a slot takes effect.
    DeleteSlot(u8, u8),
    /// A process starts to reclaim a log.
    Drain(u8, u8),
}

/// The parts of a process that can wait for a create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// The claim or the publish of a subject.
    Subject(u8),
    /// The reclaim.
    Drain,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(subject) => f.write_str(["X", "Y"][usize::from(*subject)]),
            Self::Drain => f.write_str("reclaim"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |subject: &u8| Job::Subject(*subject);
        match self {
            Self::Write(p, x) => write!(f, "P{p} accepts a write of {}", name(x)),
            Self::Read(p, x) => write!(f, "P{p} gets a read of {}", name(x)),
            Self::LandSegment(p) => write!(f, "P{p}'s segment reaches the bucket"),
            Self::SegmentAnswered(p) => write!(f, "P{p} gets the reply for its segment"),
            Self::LoseSegmentAnswer(p) => write!(f, "P{p}'s segment: the reply is lost, it is sent again"),
            Self::Probe(p) => write!(f, "P{p}'s probe of its next slot reaches the bucket"),
            Self::ProbeAnswered(p) => write!(f, "P{p} gets the reply to its probe"),
            Self::RogueProbe(p) => write!(f, "P{p}'s forbidden probe reaches the bucket"),
            Self::RogueProbeAnswered(p) => write!(f, "P{p} gets the reply to its forbidden probe"),
            Self::Open(p, x) => write!(f, "P{p} starts to open {}", name(x)),
            Self::Step(p, job) => write!(f, "P{p} {job}: continues"),
            Self::Land(p, job) => write!(f, "P{p} {job}: its create reaches the bucket"),
            Self::Answered(p, job) => write!(f, "P{p} {job}: gets the reply and continues"),
            Self::LoseAnswer(p, job) => write!(f, "P{p} {job}: the reply is lost, it is sent again"),
            Self::GiveUp(p, job) => write!(f, "P{p} {job}: stops waiting for the reply"),
            Self::Duplicate(p, job) => write!(f, "P{p} {job}: the network keeps a copy of its create"),
            Self::DuplicateSegment(p) => write!(f, "P{p}: the network keeps a copy of its segment"),
            Self::Compact(p, x) => write!(f, "P{p} uploads a base of {} and sends its manifest", name(x)),
            Self::Release(p, x) => write!(f, "P{p} closes {} and sends the released manifest", name(x)),
            Self::Resume(p, x) => write!(f, "P{p} {}: sends the indeterminate manifest again", name(x)),
            Self::Evict(p, x) => write!(f, "P{p} closes {} and stays its owner", name(x)),
            Self::LoseLease(p) => write!(f, "P{p}'s lease expires"),
            Self::GrantLease(p) => write!(f, "P{p} gets a lease"),
            Self::DeclareDead(log) => write!(f, "the coordinator declares the server of log {log} dead"),
            Self::Forget => f.write_str("the coordinator loses its record of dead servers"),
            Self::Crash(p) => write!(f, "P{p} crashes and restarts"),
            Self::LandDetached(at) => write!(f, "a request without a sender lands (number {at})"),
            Self::DeleteManifest(x, n) => write!(f, "collector: manifest {n} of {} is deleted", name(x)),
            Self::DeleteBases(x) => write!(f, "collector: unneeded bases of {} are deleted", name(x)),
            Self::DeleteSlot(log, slot) => write!(f, "log {log}: slot {slot} is deleted"),
            Self::Drain(p, log) => write!(f, "P{p} starts to reclaim log {log}"),
        }
    }
}
