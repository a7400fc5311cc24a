//! Taking a subject that one owns from one manifest to the next, and what may be deleted afterwards.

use bytes::Bytes;
use dormouse_protocol::{ErrorReply, Rev, Seq};

use crate::bucket::{BucketKey, CreateOutcome};
use crate::keys::{Folder, ManifestNumber, Nonce, SubjectKeys};
use crate::manifest::{Manifest, SnapshotRef};

/// A snapshot that is complete in the bucket, to become a manifest's base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewBase {
    /// The snapshot, made for the number after the current manifest's.
    pub snapshot: SnapshotRef,
    /// The seq that a message without one gets next, as of the snapshot.
    pub next_seq: Seq,
}

/// What the next manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// A newer base; the owner stays.
    Snapshot(NewBase),
    /// The owner gives the subject back, with everything that it accepted: `None` when the current base holds it
    /// all. By now the subject must be closed to operations, reads too.
    Release(Option<NewBase>),
    /// The subject is destroyed as of this rev; a later claim goes on from here.
    Destroy {
        /// The last rev.
        rev: Rev,
        /// The seq that a message without one gets next.
        next_seq: Seq,
    },
}

/// What a [`Publish`] is told.
#[derive(Debug)]
pub enum PublishInput {
    /// The answer to [`PublishEffect::Create`].
    Created(CreateOutcome),
    /// The answer to [`PublishEffect::Get`]; `None`: there is no such object any more.
    Got(Option<Bytes>),
    /// The answer to [`PublishEffect::List`].
    Listed(Folder),
    /// What was asked failed.
    Failed(ErrorReply),
    /// Try an undecided publication again.
    Resume,
}

/// What a [`Publish`] wants next, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishEffect {
    /// Create this manifest.
    Create(Box<Manifest>),
    /// Read this manifest.
    Get(ManifestNumber),
    /// List the subject's folder.
    List,
    /// The manifest is the newest, and nothing before it is needed.
    Published {
        /// The manifest that counts from now on. Not always the one that was to be published: where an earlier
        /// publication of this process counts after all, it is that one, and what was asked for must be asked again.
        manifest: Box<Manifest>,
        /// Objects that nothing refers to any more.
        garbage: Vec<BucketKey>,
    },
    /// Another process owns the subject. It must not be served from here; changes that are not in the bucket belong
    /// into `lost/`.
    Lost,
    /// Whether the manifest counts is not known. It may yet come to count, so nothing else may be published before
    /// this is decided: answer with [`PublishInput::Resume`].
    Undecided(ErrorReply),
    /// Nothing was published; the current manifest still counts.
    Failed(ErrorReply),
}

/// Publishes one manifest: see [`Publication`].
#[derive(Debug)]
pub struct Publish {
    manifest: Manifest,
    /// The manifest may be in the bucket.
    may_exist: bool,
}

impl Publish {
    /// Begins to publish what follows `current`, which must be the verified newest manifest of a subject that this
    /// process owns. The first effect comes with it. `nonce` is fresh.
    #[must_use]
    pub fn new(current: &Manifest, publication: Publication, nonce: Nonce) -> (Self, PublishEffect) {
        let manifest = follow(current, publication, nonce);
        let effect = PublishEffect::Create(Box::new(manifest.clone()));
        (Self { manifest, may_exist: false }, effect)
    }

    /// Takes the answer to the last effect and says what to do next.
    pub fn apply(&mut self, input: PublishInput) -> PublishEffect {
        match input {
            PublishInput::Created(CreateOutcome::Ours) => {
                self.may_exist = true;
                PublishEffect::List
            }
            PublishInput::Created(CreateOutcome::Anothers) => PublishEffect::Get(self.manifest.number),
            PublishInput::Got(bytes) => self.taken_by(bytes),
            PublishInput::Created(CreateOutcome::Unknown(error)) => {
                self.may_exist = true;
                PublishEffect::Undecided(ErrorReply::from(&error))
            }
            PublishInput::Listed(folder) => self.listed(&folder),
            PublishInput::Failed(reply) if self.may_exist => PublishEffect::Undecided(reply),
            PublishInput::Failed(reply) => PublishEffect::Failed(reply),
            PublishInput::Resume => PublishEffect::Create(Box::new(self.manifest.clone())),
        }
    }

    /// The number is taken, by another process or by an earlier publication of this one that was believed to have
    /// failed.
    fn taken_by(&mut self, bytes: Option<Bytes>) -> PublishEffect {
        let (subject, number) = (&self.manifest.subject, self.manifest.number);
        match bytes.map(|bytes| Manifest::decode(subject, number, &bytes)) {
            Some(Ok(there)) if self.is_earlier(&there) => {
                self.may_exist = true;
                self.manifest = there;
                PublishEffect::List
            }
            // Gone: collected by somebody who has gone on. Not to be understood: whose it is, a claim finds out.
            _ => PublishEffect::Lost,
        }
    }

    /// Could `there` have been published by this process, under this term, and can be gone on from? Only a term that
    /// is over ends in a manifest that is released.
    fn is_earlier(&self, there: &Manifest) -> bool {
        let mine = &self.manifest;
        let end = |manifest: &Manifest| (manifest.released, manifest.tombstone, manifest.base_rev);
        (&there.owner, there.term) == (&mine.owner, mine.term) && (!there.released || end(there) == end(mine))
    }

    fn listed(&self, folder: &Folder) -> PublishEffect {
        match folder.newest() {
            Some(newest) if newest == self.manifest.number => PublishEffect::Published {
                manifest: Box::new(self.manifest.clone()),
                garbage: garbage(folder, &self.manifest),
            },
            Some(newest) if newest > self.manifest.number => PublishEffect::Lost,
            _ => PublishEffect::Undecided(ErrorReply::corrupt(
                SubjectKeys::new(&self.manifest.subject).manifest(self.manifest.number).to_string(),
                "written, but a listing does not show it: the bucket does not keep its contract",
            )),
        }
    }
}

fn follow(current: &Manifest, publication: Publication, nonce: Nonce) -> Manifest {
    let next = Manifest { number: current.number.next(), nonce, ..current.clone() };
    let on = |base: NewBase| {
        debug_assert_eq!(base.snapshot.name.made_for, next.number);
        Manifest {
            base_rev: base.snapshot.rev(),
            next_seq: base.next_seq,
            snapshot: Some(base.snapshot),
            ..next.clone()
        }
    };
    match publication {
        Publication::Snapshot(base) => on(base),
        Publication::Release(base) => Manifest { released: true, ..base.map_or(next.clone(), on) },
        Publication::Destroy { rev, next_seq } => {
            Manifest { base_rev: rev, next_seq, snapshot: None, released: true, tombstone: true, ..next }
        }
    }
}

/// Is `manifest`, which was once verified as the newest, still the newest of this listing? A listing proves only the
/// past: who has been without a lease since must also claim the subject anew before it serves again.
///
/// The number alone decides: the newest manifest is never deleted, so its number cannot be used again.
#[must_use]
pub fn is_newest(folder: &Folder, manifest: &Manifest) -> bool {
    folder.newest() == Some(manifest.number)
}

/// What may be deleted once a listing has shown `manifest` to be the newest: the manifests before it, and the
/// snapshots made for it or for earlier ones that it does not refer to. Empty when it is not the newest.
///
/// This stays true however late the deletions happen: every later manifest refers to the snapshot that this one
/// refers to, or to one made for a later number. Names that this version does not know are left alone.
#[must_use]
pub fn garbage(folder: &Folder, manifest: &Manifest) -> Vec<BucketKey> {
    if !is_newest(folder, manifest) {
        return Vec::new();
    }
    let keys = SubjectKeys::new(&manifest.subject);
    let needed = manifest.snapshot.map(|snapshot| snapshot.name);
    let manifests = folder.manifests.iter().filter(|&&number| number < manifest.number);
    let snapshots = folder
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.made_for <= manifest.number && Some(**snapshot) != needed);
    manifests.map(|&number| keys.manifest(number)).chain(snapshots.map(|name| keys.snapshot(name))).collect()
}
