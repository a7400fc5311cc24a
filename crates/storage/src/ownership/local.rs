//! What an earlier run has left on the local disk: when it may be used, and what of it is lost.

#[cfg(test)]
mod tests;

use dormouse_protocol::{LogId, Rev, Term};

use crate::manifest::{Manifest, TermBase};

/// What the subject's file on the local disk says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalFile {
    /// The log of the process that last served it. A file that was brought here and never served has none and is not
    /// reused.
    pub log: LogId,
    /// The term under which that process served it.
    pub term: Term,
    /// The rev up to which it holds every entry.
    pub applied_rev: Rev,
}

/// May the state be rebuilt from the local file instead of the bucket's objects? `highest` is the highest rev that the
/// base, the slots and the local write-ahead log lead up to: a file that is ahead of them all holds what nobody
/// vouches for.
///
/// The term counts too: between two terms of the same log, another process may have remembered answers without making
/// a rev.
#[must_use]
pub fn may_reuse(local: &LocalFile, manifest: &Manifest, highest: Rev) -> bool {
    !manifest.tombstone
        && (&local.log, local.term) == (&manifest.owner, manifest.term)
        && (manifest.base_rev..=highest).contains(&local.applied_rev)
}

/// Entries of `term` above the returned rev are in no state that counts: what a process acknowledged at a level below
/// `bucket` and another claimed without. They belong into `lost/`. Those up to it are where they should be, even when
/// the claim that took them over was believed to have failed.
///
/// `newest` is the newest manifest, not one that names the entries' log without being released (those entries are part
/// of its [tail](super::claim::Tail::Sealed)); `terms` are those that the state restored from it knows. Where they do
/// not tell, everything counts as lost: `lost/` may hold what is not, never the other way round.
#[must_use]
pub fn lost_above(term: Term, newest: &Manifest, terms: &[TermBase]) -> Rev {
    if newest.term == term {
        return newest.base_rev;
    }
    let own = TermBase { term: newest.term, term_base: newest.term_base };
    let next = terms.iter().copied().chain([own]).find(|later| later.term == term.next());
    next.map_or(Rev::default(), |next| next.term_base)
}
