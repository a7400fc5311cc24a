//! The state that a tombstone keeps of its destroyed subject.
//!
//! A destroyed subject can be created again, and late copies of earlier requests may arrive then: of sets, and of the
//! destroy itself. Without a record of them they would be executed a second time. So the tombstone keeps the highest
//! counter of each session. The manifests after it keep that state while they have no snapshot, because until then the
//! subject is rebuilt from an empty state. The first snapshot has it in its tables.

use dormouse_protocol::limits::TOMBSTONE_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Term, Timestamp};
use serde::{Deserialize, Serialize};

use super::Manifest;

/// State of a subject from before a destroy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TombstoneState {
    /// The rev and the term of the destroy.
    pub position: Position,
    /// When the destroy was accepted. Later accept times of the subject are not before it.
    pub accept_time: Timestamp,
    /// The id of the destroy, if it had one.
    pub request: Option<RequestId>,
    /// The most recently active sessions, and that of the destroy: ascending, at most [`TOMBSTONE_SESSIONS`].
    pub sessions: Vec<TombstoneSession>,
}

/// The highest counter of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TombstoneSession {
    /// The session.
    pub session: SessionId,
    /// The session's highest counter. Requests up to it may have been executed; the destroy was executed.
    pub counter: u64,
    /// When the session's last request was accepted.
    pub accept_time: Timestamp,
}

impl TombstoneState {
    /// The contradiction in this state or with its manifest, if there is one.
    pub(super) fn contradiction(&self, manifest: &Manifest) -> Option<&'static str> {
        if self.position.term == Term::default() {
            return Some("counts from zero");
        }
        if self.sessions.len() > TOMBSTONE_SESSIONS {
            return Some("has tombstone state with more sessions than allowed");
        }
        let ascending = self.sessions.is_sorted_by(|one, next| one.session < next.session);
        let accepted_before = self.sessions.iter().all(|session| session.accept_time <= self.accept_time);
        let knows = |id: RequestId| self.sessions.iter().any(|known| known.session == id.session);
        if !ascending || !accepted_before || !self.request.is_none_or(knows) {
            return Some("has tombstone state with inconsistent sessions");
        }
        if manifest.snapshot.is_some() {
            return Some("has tombstone state that its snapshot already holds");
        }
        let (ended, begun) = (self.position, manifest.terms.first());
        let follows = if manifest.tombstone {
            (ended.term, ended.rev) == (manifest.term, manifest.base_rev)
        } else {
            let first_term = begun.map_or(manifest.term, |begun| begun.term);
            let first_base = begun.map_or(manifest.term_base, |begun| begun.term_base);
            let is_empty = manifest.deltas.is_empty();
            ended.term < first_term
                && ended.rev <= first_base
                && (!is_empty || ended.rev == manifest.base_rev)
        };
        (!follows).then_some("has tombstone state of a destroy that it does not follow")
    }
}
