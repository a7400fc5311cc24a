//! Data of an earlier run on the local disk: when it may be used, and which of its writes have diverged.

#[cfg(test)]
mod tests;

use dormouse_format::manifest::{Manifest, TermBase};
use dormouse_protocol::{LogId, Rev, Term};

/// Metadata in the subject's file on the local disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalFile {
    /// The log of the process that last served it. A file that was downloaded and never served has none and is not
    /// reused.
    pub log: LogId,
    /// The term under which that process served it.
    pub term: Term,
    /// The rev up to which it holds every entry.
    pub applied_rev: Rev,
}

/// Whether the state may be rebuilt from the local file instead of the bucket's objects. `highest` is the highest rev
/// that the base, the slots and the local write-ahead log lead to: a file ahead of them all holds entries that no log
/// confirms.
///
/// The term counts too: between two terms of the same log, another process may have stored dedup records without a new
/// rev.
#[must_use]
pub fn may_reuse(local: &LocalFile, manifest: &Manifest, highest: Rev) -> bool {
    !manifest.tombstone
        && (&local.log, local.term) == (&manifest.owner, manifest.term)
        && (manifest.base_rev..=highest).contains(&local.applied_rev)
}

/// Entries of `term` above the returned rev have diverged: a process acknowledged them at a level below `bucket`, and
/// another process claimed the subject without them. They move to `lost/`. Entries up to it are in the state, even if
/// the claim that included them was reported as failed.
///
/// `newest` is the newest manifest, and not one that names the entries' log without being released (those entries are
/// part of its [tail](super::claim::TailSource::Sealed)). `terms` are those known to the state restored from it. If
/// they do not include `term`, all its entries count as diverged: `lost/` may hold entries that are not lost, but every
/// lost entry is in it.
#[must_use]
pub fn diverged_above(term: Term, newest: &Manifest, terms: &[TermBase]) -> Rev {
    if newest.term == term {
        return newest.base_rev;
    }
    let own = TermBase { term: newest.term, term_base: newest.term_base };
    let next = terms.iter().copied().chain([own]).find(|later| later.term == term.next());
    next.map_or(Rev::default(), |next| next.term_base)
}
