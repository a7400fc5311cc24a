//! What can happen next in a world.

use std::fmt;

/// One step. Numbers are places: of a process, a subject, a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A process accepts a write and sends it if nothing is in flight.
    Write(u8, u8),
    /// A read arrives that needs a barrier.
    Read(u8, u8),
    /// The segment in flight reaches the bucket.
    LandSegment(u8),
    /// The owner of the segment in flight learns the answer.
    SegmentAnswered(u8),
    /// The answer is lost, and the segment is sent again.
    LoseSegmentAnswer(u8),
    /// The look at the next slot reaches the bucket.
    Look(u8),
    /// Its answer arrives.
    Looked(u8),
    /// The same two, of a look that only a lying driver makes.
    RogueLook(u8),
    /// Its answer arrives.
    RogueLooked(u8),
    /// A process begins to open a subject.
    Open(u8, u8),
    /// A claim takes the step that it waits for.
    Step(u8, Job),
    /// The creation that a job waits for reaches the bucket.
    Land(u8, Job),
    /// Its answer arrives, and the job goes on.
    Answered(u8, Job),
    /// The answer is lost, and the request is sent again.
    LoseAnswer(u8, Job),
    /// The job waits no longer for the answer.
    GiveUp(u8, Job),
    /// The network keeps a second copy of the job's request.
    Duplicate(u8, Job),
    /// The same, of a segment.
    DuplicateSegment(u8),
    /// The owner uploads a newer base and sends its manifest.
    Compact(u8, u8),
    /// The owner closes the subject, uploads a base if need be and sends the released manifest.
    Release(u8, u8),
    /// A publication without known outcome is tried again.
    Resume(u8, u8),
    /// The subject is closed and stays owned.
    Evict(u8, u8),
    /// The process's lease comes to its end, for the process.
    LoseLease(u8),
    /// The coordinator grants the process a lease.
    GrantLease(u8),
    /// The coordinator declares a log dead.
    DeclareDead(u8),
    /// The coordinator forgets whom it has declared dead.
    Forget,
    /// The process dies and comes back.
    Crash(u8),
    /// A request lands that nobody waits for.
    LandOrphan(u8),
    /// A collector deletes a manifest that is not the newest.
    DeleteManifest(u8, u8),
    /// A collector deletes the snapshots and deltas that nothing needs.
    DeleteBases(u8),
    /// A permitted deletion of a slot hits.
    DeleteSlot(u8, u8),
    /// A process begins to drain a log.
    Drain(u8, u8),
}

/// Something of a process that can wait for a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// The claim or the publication of a subject.
    Subject(u8),
    /// The drain.
    Drain,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(subject) => f.write_str(["X", "Y"][usize::from(*subject)]),
            Self::Drain => f.write_str("drain"),
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
            Self::SegmentAnswered(p) => write!(f, "P{p} learns what became of its segment"),
            Self::LoseSegmentAnswer(p) => write!(f, "P{p}'s segment: the answer is lost, it is sent again"),
            Self::Look(p) => write!(f, "P{p}'s look at its next slot reaches the bucket"),
            Self::Looked(p) => write!(f, "P{p} learns what it saw there"),
            Self::RogueLook(p) => write!(f, "P{p}'s forbidden look reaches the bucket"),
            Self::RogueLooked(p) => write!(f, "P{p} learns what its forbidden look saw"),
            Self::Open(p, x) => write!(f, "P{p} begins to open {}", name(x)),
            Self::Step(p, job) => write!(f, "P{p} {job}: goes on"),
            Self::Land(p, job) => write!(f, "P{p} {job}: its create reaches the bucket"),
            Self::Answered(p, job) => write!(f, "P{p} {job}: learns the answer and goes on"),
            Self::LoseAnswer(p, job) => write!(f, "P{p} {job}: the answer is lost, it is sent again"),
            Self::GiveUp(p, job) => write!(f, "P{p} {job}: waits no longer for the answer"),
            Self::Duplicate(p, job) => write!(f, "P{p} {job}: the network keeps a copy of its create"),
            Self::DuplicateSegment(p) => write!(f, "P{p}: the network keeps a copy of its segment"),
            Self::Compact(p, x) => write!(f, "P{p} uploads a base of {} and sends its manifest", name(x)),
            Self::Release(p, x) => write!(f, "P{p} closes {} and sends the released manifest", name(x)),
            Self::Resume(p, x) => write!(f, "P{p} {}: sends the undecided manifest again", name(x)),
            Self::Evict(p, x) => write!(f, "P{p} closes {} and keeps it", name(x)),
            Self::LoseLease(p) => write!(f, "P{p}'s lease comes to its end"),
            Self::GrantLease(p) => write!(f, "P{p} gets a lease"),
            Self::DeclareDead(log) => write!(f, "the coordinator declares log {log} dead"),
            Self::Forget => f.write_str("the coordinator forgets whom it has declared dead"),
            Self::Crash(p) => write!(f, "P{p} dies and comes back"),
            Self::LandOrphan(at) => write!(f, "a request without a sender lands (number {at})"),
            Self::DeleteManifest(x, n) => write!(f, "collector: manifest {n} of {} goes", name(x)),
            Self::DeleteBases(x) => write!(f, "collector: unneeded bases of {} go", name(x)),
            Self::DeleteSlot(log, slot) => write!(f, "log {log}: slot {slot} is deleted"),
            Self::Drain(p, log) => write!(f, "P{p} begins to drain log {log}"),
        }
    }
}
