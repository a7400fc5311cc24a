//! What a tombstone remembers of the life that it ended.
//!
//! A subject that was destroyed may begin again, and late copies of requests from before may arrive there: of sets, and of
//! the destroy itself. Where nobody remembered them they would be carried out a second time. So the tombstone takes
//! along how far each session had come. The manifests that follow carry it on for as long as they have no snapshot,
//! since until then the state is made from nothing; the first snapshot has it in its tables.

use dormouse_protocol::limits::REMEMBERED_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Term, Timestamp};
use serde::{Deserialize, Serialize};

use super::Manifest;

/// What a subject knows of its life before a destroy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastLife {
    /// Where it ended: the rev of the destroy, and the term that it was of.
    pub position: Position,
    /// When the destroy was accepted. The subject's time goes on from here.
    pub accept_time: Timestamp,
    /// The id of the destroy, if it had one.
    pub request: Option<RequestId>,
    /// The sessions that were heard of last, and that of the destroy: ascending, at most [`REMEMBERED_SESSIONS`].
    pub sessions: Vec<PastSession>,
}

/// How far a session had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PastSession {
    /// The session.
    pub session: SessionId,
    /// The highest counter that was known of it. What is not above it may have been carried out, but for the destroy,
    /// which was.
    pub counter: u64,
    /// When it was heard of last.
    pub accept_time: Timestamp,
}

impl PastLife {
    /// What is wrong with it in this manifest, if anything is.
    pub(super) fn contradiction(&self, manifest: &Manifest) -> Option<&'static str> {
        if self.position.term == Term::default() {
            return Some("counts from zero");
        }
        if self.sessions.len() > REMEMBERED_SESSIONS {
            return Some("remembers more sessions than it may");
        }
        let ascending = self.sessions.is_sorted_by(|one, next| one.session < next.session);
        let heard_before = self.sessions.iter().all(|session| session.accept_time <= self.accept_time);
        let knows = |id: RequestId| self.sessions.iter().any(|known| known.session == id.session);
        if !ascending || !heard_before || !self.request.is_none_or(knows) {
            return Some("remembers sessions that do not belong together");
        }
        if manifest.snapshot.is_some() {
            return Some("remembers what its snapshot knows");
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
        (!follows).then_some("remembers an end that it does not follow")
    }
}
