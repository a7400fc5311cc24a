//! Publishing the next manifest of an owned subject.

#[cfg(test)]
mod tests;

use dormouse_format::keys::{Folder, ManifestNumber, Nonce};
use dormouse_format::manifest::{Manifest, TombstoneState};
use dormouse_protocol::{ErrorReply, Seq};

use super::{CreateResult, ManifestRead, NewBase, Verified, contract_broken, no_successor};

/// The content of the next manifest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Publication {
    /// A newer base; the owner stays.
    Base(NewBase),
    /// The owner releases the subject, with every entry that it accepted, shipped or not: the next owner reads nothing
    /// of its log. `None`: no entry was accepted above the current base, not even one without operations. At this point
    /// the subject is closed to operations, including reads, and has nothing in flight.
    Release(Option<NewBase>),
    /// The subject is destroyed; a later claim continues from here. Closed as for a release.
    Destroy {
        /// Its end, and its tombstone state.
        past: Box<TombstoneState>,
        /// The next seq for a message without a given one.
        next_seq: Seq,
    },
}

/// Input of a [`Publish`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublishInput {
    /// The answer to [`PublishEffect::Create`].
    Created(CreateResult),
    /// The answer to [`PublishEffect::Get`].
    Got(ManifestRead),
    /// The answer to [`PublishEffect::List`].
    Listed(Folder),
    /// The last effect failed.
    Failed(ErrorReply),
    /// Retry a publication with an indeterminate outcome.
    Resume,
}

/// The next effect of a [`Publish`], or its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PublishEffect {
    /// Create this manifest.
    Create(Box<Manifest>),
    /// Read this manifest.
    Get(ManifestNumber),
    /// List the subject's folder.
    List,
    /// The end: the manifest is the newest, and nothing before it is needed. Only now may the owner release slots.
    ///
    /// It may differ from the requested manifest: if an earlier publication of this process has become the newest, this
    /// is that one. Then the request must be repeated, with a new upload.
    Published(Verified),
    /// The end: another process owns the subject, and this process must not serve it.
    NotOwner {
        /// Whether the manifest was created and may have been the newest for a while: its release or destroy may have
        /// taken effect.
        may_have_counted: bool,
    },
    /// It is unknown whether the manifest is the newest. It may still become the newest. Until this is decided, nothing
    /// else may be published, and the subject must be neither left nor opened again under this log: answer with
    /// [`PublishInput::Resume`].
    Indeterminate(ErrorReply),
    /// The end: nothing was published; the current manifest remains the newest.
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
    /// Starts to publish the successor of `current`, which must be the verified newest manifest of a subject that this
    /// process owns. Returns the first effect too. `nonce` is new.
    #[must_use]
    pub fn new(current: &Manifest, publication: Publication, nonce: Nonce) -> (Self, PublishEffect) {
        let manifest = Box::new(follow(current, publication, nonce));
        let effect = match contradiction(current, &manifest) {
            Some(_) if current.is_last() => PublishEffect::Failed(no_successor(current)),
            // If it were created, it would be the newest manifest, and unreadable.
            Some(text) => PublishEffect::Failed(ErrorReply::internal(format!(
                "publication produced a manifest that {text}"
            ))),
            None => PublishEffect::Create(manifest.clone()),
        };
        (Self { manifest, may_exist: false }, effect)
    }

    /// Applies the answer to the last effect and returns the next effect.
    pub fn apply(&mut self, input: PublishInput) -> PublishEffect {
        match input {
            PublishInput::Created(CreateResult::Ours) => {
                self.may_exist = true;
                PublishEffect::List
            }
            PublishInput::Created(CreateResult::Foreign) => PublishEffect::Get(self.manifest.number),
            PublishInput::Got(found) => self.taken_by(found),
            PublishInput::Created(CreateResult::Unknown(reply)) => {
                self.may_exist = true;
                PublishEffect::Indeterminate(reply)
            }
            PublishInput::Listed(folder) => self.listed(folder),
            PublishInput::Failed(reply) if self.may_exist => PublishEffect::Indeterminate(reply),
            PublishInput::Failed(reply) => PublishEffect::Failed(reply),
            PublishInput::Resume => PublishEffect::Create(self.manifest.clone()),
        }
    }

    /// The number exists already: created by another process, or by an earlier publication of this one that counted as
    /// failed.
    fn taken_by(&mut self, found: ManifestRead) -> PublishEffect {
        match found {
            ManifestRead::Manifest(existing) if self.is_earlier(&existing) => {
                self.may_exist = true;
                self.manifest = existing;
                PublishEffect::List
            }
            // A missing object was collected by a process with a newer manifest; a claim finds the owner of an
            // unreadable one. If ours had existed before, only a newer manifest could have freed the number for a
            // foreign one.
            _ => PublishEffect::NotOwner { may_have_counted: self.may_exist },
        }
    }

    /// Whether this process may have published `existing` under this term, and can continue from it. A released
    /// manifest ends its term. The tombstone of another destroy does not record this one.
    fn is_earlier(&self, existing: &Manifest) -> bool {
        let ours = &self.manifest;
        let is_same_end =
            (existing.released, existing.tombstone, existing.base_rev, &existing.tombstone_state)
                == (ours.released, ours.tombstone, ours.base_rev, &ours.tombstone_state);
        (&existing.owner, existing.term) == (&ours.owner, ours.term) && (!existing.released || is_same_end)
    }

    fn listed(&self, folder: Folder) -> PublishEffect {
        let newest = folder.newest();
        if newest > Some(self.manifest.number) {
            PublishEffect::NotOwner { may_have_counted: true }
        } else if newest < Some(self.manifest.number) {
            PublishEffect::Indeterminate(contract_broken(&self.manifest))
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
            // Both are valid; the higher one releases more slots.
            next.first_slot = base.first_slot.max(current.first_slot);
            next.next_seq = base.next_seq;
        }
        Publication::Release(None) => {}
        Publication::Destroy { past, next_seq } => {
            let base_rev = past.position.rev;
            let past = Some(*past);
            next = Manifest {
                base_rev,
                next_seq,
                snapshot: None,
                tombstone: true,
                tombstone_state: past,
                ..next
            };
            next.deltas.clear();
            next.terms.clear();
        }
    }
    next
}

/// Revs and seqs never decrease, and an uploaded object is made for the manifest that refers to it.
fn contradiction(current: &Manifest, next: &Manifest) -> Option<&'static str> {
    if current.released {
        return Some("follows a released manifest");
    }
    if next.base_rev < current.base_rev || next.next_seq < current.next_seq {
        return Some("has a lower rev or seq than its predecessor");
    }
    let of = |manifest: &Manifest| {
        let delta = manifest.deltas.last().map(|delta| delta.name.made_for);
        delta.max(manifest.snapshot.map(|snapshot| snapshot.name.made_for))
    };
    if !next.tombstone && of(next) != of(current) && of(next) != Some(next.number) {
        return Some("refers to an object made for another manifest");
    }
    next.contradiction()
}
