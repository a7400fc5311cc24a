//! Taking a subject that one owns from one manifest to the next.

#[cfg(test)]
mod tests;

use dormouse_protocol::{ErrorReply, Seq};

use super::{Creation, Found, NewBase, Verified, contract_broken};
use crate::keys::{Folder, ManifestNumber, Nonce};
use crate::manifest::{Manifest, PastLife};

/// What the next manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Publication {
    /// A newer base; the owner stays.
    Base(NewBase),
    /// The owner gives the subject back, with every entry that it accepted, shipped or not: whoever comes next reads
    /// nothing of its log. `None`: no entry was accepted above the current base, not even one without operations. By
    /// now the subject is closed to operations, reads too, and nothing of it is in flight.
    Release(Option<NewBase>),
    /// The subject is destroyed; a later claim goes on from here. Closed as for a release.
    Destroy {
        /// Where it ends, and what is to be remembered of it.
        past: Box<PastLife>,
        /// The seq that a message without one gets next.
        next_seq: Seq,
    },
}

/// What a [`Publish`] is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublishInput {
    /// The answer to [`PublishEffect::Create`].
    Created(Creation),
    /// The answer to [`PublishEffect::Get`].
    Got(Found),
    /// The answer to [`PublishEffect::List`].
    Listed(Folder),
    /// What was asked failed.
    Failed(ErrorReply),
    /// Try an undecided publication again.
    Resume,
}

/// What a [`Publish`] wants next, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublishEffect {
    /// Create this manifest.
    Create(Box<Manifest>),
    /// Read this manifest.
    Get(ManifestNumber),
    /// List the subject's folder.
    List,
    /// The end: the manifest is the newest, and nothing before it is needed. Only now may the owner let go of slots.
    ///
    /// Not always the manifest that was to be published: where an earlier publication of this process counts after
    /// all, it is that one, and what was asked for must be asked again, with a fresh upload.
    Published(Verified),
    /// The end: another process owns the subject, which must not be served from here.
    Lost {
        /// The manifest was created, and may have been the newest for a while: a release or an end that it stood for
        /// may have happened.
        may_have_counted: bool,
    },
    /// Whether the manifest counts is not known. It may yet come to count, so nothing else may be published, and the
    /// subject neither left nor opened again under this log, before this is decided: answer with
    /// [`PublishInput::Resume`].
    Undecided(ErrorReply),
    /// The end: nothing was published; the current manifest still counts.
    Failed(ErrorReply),
}

/// Publishes one manifest: see [`Publication`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Publish {
    manifest: Box<Manifest>,
    /// The manifest may be in the bucket.
    may_exist: bool,
}

impl Publish {
    /// Begins to publish what follows `current`, which must be the verified newest manifest of a subject that this
    /// process owns. The first effect comes with it. `nonce` is fresh.
    #[must_use]
    pub fn new(current: &Manifest, publication: Publication, nonce: Nonce) -> (Self, PublishEffect) {
        let manifest = Box::new(follow(current, publication, nonce));
        let effect = match contradiction(current, &manifest) {
            // Created, it would be the newest, and nobody could read it.
            Some(what) => PublishEffect::Failed(ErrorReply::internal(format!(
                "a publication came to a manifest that {what}"
            ))),
            None => PublishEffect::Create(manifest.clone()),
        };
        (Self { manifest, may_exist: false }, effect)
    }

    /// Takes the answer to the last effect and says what to do next.
    pub fn apply(&mut self, input: PublishInput) -> PublishEffect {
        match input {
            PublishInput::Created(Creation::Ours) => {
                self.may_exist = true;
                PublishEffect::List
            }
            PublishInput::Created(Creation::Anothers) => PublishEffect::Get(self.manifest.number),
            PublishInput::Got(found) => self.taken_by(found),
            PublishInput::Created(Creation::Unknown(reply)) => {
                self.may_exist = true;
                PublishEffect::Undecided(reply)
            }
            PublishInput::Listed(folder) => self.listed(folder),
            PublishInput::Failed(reply) if self.may_exist => PublishEffect::Undecided(reply),
            PublishInput::Failed(reply) => PublishEffect::Failed(reply),
            PublishInput::Resume => PublishEffect::Create(self.manifest.clone()),
        }
    }

    /// The number is taken, by another process or by an earlier publication of this one that was believed to have
    /// failed.
    fn taken_by(&mut self, found: Found) -> PublishEffect {
        match found {
            Found::Manifest(there) if self.is_earlier(&there) => {
                self.may_exist = true;
                self.manifest = there;
                PublishEffect::List
            }
            // Gone: collected by somebody who has gone on. Not to be understood: whose it is, a claim finds out.
            // Had ours been there before, only a newer one could have made room for another's.
            _ => PublishEffect::Lost { may_have_counted: self.may_exist },
        }
    }

    /// Could `there` have been published by this process, under this term, and can be gone on from? Only a term that
    /// is over ends in a manifest that is released. The tombstone of another destroy does not remember this one.
    fn is_earlier(&self, there: &Manifest) -> bool {
        let mine = &self.manifest;
        let is_same_end = (there.released, there.tombstone, there.base_rev, &there.past)
            == (mine.released, mine.tombstone, mine.base_rev, &mine.past);
        (&there.owner, there.term) == (&mine.owner, mine.term) && (!there.released || is_same_end)
    }

    fn listed(&self, folder: Folder) -> PublishEffect {
        let newest = folder.newest();
        if newest > Some(self.manifest.number) {
            PublishEffect::Lost { may_have_counted: true }
        } else if newest < Some(self.manifest.number) {
            PublishEffect::Undecided(contract_broken(&self.manifest))
        } else {
            PublishEffect::Published(Verified::new(self.manifest.clone(), folder))
        }
    }
}

fn follow(current: &Manifest, publication: Publication, nonce: Nonce) -> Manifest {
    let mut next = Manifest {
        number: current.number.next(),
        released: !matches!(publication, Publication::Base(_)),
        nonce,
        ..current.clone()
    };
    match publication {
        Publication::Base(base) | Publication::Release(Some(base)) => {
            base.object.extend(&mut next);
            // Both hold; the higher one lets go of more.
            next.first_slot = base.first_slot.max(current.first_slot);
            next.next_seq = base.next_seq;
        }
        Publication::Release(None) => {}
        Publication::Destroy { past, next_seq } => {
            let base_rev = past.position.rev;
            let past = Some(*past);
            next = Manifest { base_rev, next_seq, snapshot: None, tombstone: true, past, ..next };
            next.deltas.clear();
            next.terms.clear();
        }
    }
    next
}

/// Nothing ever goes back, and what is uploaded is made for the manifest that refers to it.
fn contradiction(current: &Manifest, next: &Manifest) -> Option<&'static str> {
    if current.released {
        return Some("follows one that is released");
    }
    if next.base_rev < current.base_rev || next.next_seq < current.next_seq {
        return Some("goes back behind the one before");
    }
    let of = |manifest: &Manifest| {
        let delta = manifest.deltas.last().map(|delta| delta.name.made_for);
        delta.max(manifest.snapshot.map(|snapshot| snapshot.name.made_for))
    };
    if !next.tombstone && of(next) != of(current) && of(next) != Some(next.number) {
        return Some("refers to an object made for another");
    }
    next.contradiction()
}
