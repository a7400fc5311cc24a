use dormouse_format::keys::{BucketKey, SubjectKeys};
use dormouse_format::manifest::{MAX_DELTAS, SnapshotRef};
use dormouse_protocol::{ErrorCode, RequestId, Rev, Slot, Term};

use super::super::testing::*;
use super::super::{BaseObject, base_kind};
use super::*;

const SIXTH: ManifestNumber = ManifestNumber::new(6);

fn base(object: BaseObject) -> NewBase {
    NewBase { object, first_slot: Slot::new(20), next_seq: Seq::new(99) }
}

fn begin(publication: Publication) -> (Publish, PublishEffect) {
    Publish::new(&manifest(mine()), publication, nonce(6))
}

fn destroy(past: TombstoneState) -> Publication {
    Publication::Destroy { past: Box::new(past), next_seq: Seq::new(100) }
}

fn six(owner: dormouse_protocol::LogId) -> Manifest {
    Manifest { number: SIXTH, ..manifest(owner) }
}

fn found(manifest: Manifest) -> PublishInput {
    PublishInput::Got(ManifestRead::Manifest(Box::new(manifest)))
}

fn unknown() -> PublishInput {
    PublishInput::Created(CreateResult::Unknown(ErrorReply::unavailable("no answer")))
}

/// Each kind of publication creates the successor of the current manifest, verifies it and names the unneeded objects.
#[test]
fn publish_creates_successor_of_current_manifest() {
    let current = manifest(mine());
    let deltas = vec![delta(4, 40), delta(6, 50)];
    let on_delta = Manifest {
        base_rev: Rev::new(50),
        next_seq: Seq::new(99),
        first_slot: Slot::new(20),
        deltas,
        ..six(mine())
    };
    let on_snapshot = Manifest {
        snapshot: Some(snapshot(6, 50)),
        deltas: Vec::new(),
        // It includes all terms.
        terms: Vec::new(),
        ..on_delta.clone()
    };
    let destroyed = Manifest {
        base_rev: Rev::new(51),
        next_seq: Seq::new(100),
        snapshot: None,
        deltas: Vec::new(),
        terms: Vec::new(),
        tombstone: true,
        tombstone_state: Some(past(3, 51)),
        ..six(mine())
    };
    let (with_delta, with_snapshot) = (base(a_delta(6, 50)), base(BaseObject::Snapshot(snapshot(6, 50))));
    let end = destroy(past(3, 51));
    for (publication, expected, released) in [
        (Publication::Base(with_delta), on_delta.clone(), false),
        (Publication::Base(with_snapshot), on_snapshot.clone(), false),
        (Publication::Release(Some(with_delta)), on_delta, true),
        (Publication::Release(Some(with_snapshot)), on_snapshot, true),
        (Publication::Release(None), six(mine()), true),
        (end, destroyed, true),
    ] {
        let expected = Manifest { released, nonce: nonce(6), ..expected };
        let (mut publish, effect) = begin(publication.clone());
        assert_eq!(effect, PublishEffect::Create(Box::new(expected.clone())), "{publication:?}");
        assert_eq!(Manifest::decode(&subject(), SIXTH, &expected.encode()).unwrap(), expected);
        assert_eq!(publish.apply(PublishInput::Created(CreateResult::Ours)), PublishEffect::List);
        let published = publish.apply(PublishInput::Listed(folder(&[5, 6])));
        let garbage: Vec<BucketKey> = vec![SubjectKeys::new(&subject()).manifest(current.number)];
        let verified = Verified { manifest: Box::new(expected), garbage, blobs: Vec::new() };
        assert_eq!(published, PublishEffect::Published(verified));
    }
}

/// A publication with a lower first slot keeps the first slot of the current manifest.
#[test]
fn publish_never_lowers_first_slot() {
    let lower = NewBase { first_slot: Slot::new(3), ..base(a_delta(6, 50)) };
    match begin(Publication::Base(lower)).1 {
        PublishEffect::Create(next) => assert_eq!(next.first_slot, manifest(mine()).first_slot),
        other => panic!("{other:?}"),
    }
}

/// A publication that gives an inconsistent manifest fails with `internal` before any create.
#[test]
fn publish_never_creates_inconsistent_manifest() {
    let current = manifest(mine());
    let full = Manifest {
        deltas: (4..12).map(|n| delta(n, 40)).collect(),
        number: ManifestNumber::new(12),
        ..current.clone()
    };
    assert_eq!(full.deltas.len(), MAX_DELTAS);
    let later = |object| Publication::Base(base(object));
    let low = NewBase { next_seq: Seq::new(76), ..base(a_delta(6, 50)) };
    for (current, publication) in [
        (&current, later(a_delta(6, 39))),
        (&current, later(a_delta(5, 50))),
        (&current, later(a_delta(7, 50))),
        (&current, later(BaseObject::Snapshot(snapshot(6, 39)))),
        (&current, Publication::Base(low)),
        (&current, destroy(past(3, 39))),
        (&full, later(a_delta(13, 50))),
        (&released(mine()), Publication::Release(None)),
    ] {
        match Publish::new(current, publication.clone(), nonce(6)).1 {
            PublishEffect::Failed(reply) => assert_eq!(reply.code, ErrorCode::Internal, "{publication:?}"),
            other => panic!("{publication:?}: {other:?}"),
        }
    }
}

/// If another process has created the manifest number or a higher one, the publication is lost and reports whether it
/// can have counted.
#[test]
fn publish_ends_if_another_process_took_the_number() {
    let release = || begin(Publication::Release(None)).0;
    let anothers = || PublishInput::Created(CreateResult::Foreign);
    for there in [
        found(six(other())),
        PublishInput::Got(ManifestRead::Missing),
        PublishInput::Got(ManifestRead::Unreadable(ErrorReply::corrupt("a", "b"))),
        // A manifest of an older claim of this process, or of another release or destroy.
        found(Manifest { term: Term::new(2), ..six(mine()) }),
        found(Manifest { number: SIXTH, ..tombstone(mine()) }),
    ] {
        let mut publish = release();
        assert_eq!(publish.apply(anothers()), PublishEffect::Get(SIXTH));
        assert_eq!(publish.apply(there), PublishEffect::NotOwner { may_have_counted: false });
    }
    let mut publish = release();
    publish.apply(PublishInput::Created(CreateResult::Ours));
    let superseded = publish.apply(PublishInput::Listed(folder(&[6, 7])));
    assert_eq!(superseded, PublishEffect::NotOwner { may_have_counted: true });
    // The first attempt got no reply, and may have been the newest until the number was collected.
    let mut publish = release();
    publish.apply(unknown());
    publish.apply(PublishInput::Resume);
    publish.apply(anothers());
    assert_eq!(publish.apply(found(six(other()))), PublishEffect::NotOwner { may_have_counted: true });
}

/// If the number holds an earlier publication of the same process, the publication adopts it and discards the new
/// object.
#[test]
fn publish_continues_from_own_earlier_manifest() {
    let (mut publish, _) = begin(Publication::Base(base(a_delta(6, 50))));
    publish.apply(PublishInput::Created(CreateResult::Foreign));
    assert_eq!(publish.apply(found(six(mine()))), PublishEffect::List);
    // Its own object is another one than the new upload.
    let listed = Folder { deltas: vec![delta(4, 40).name, delta(6, 50).name], ..folder(&[6]) };
    match publish.apply(PublishInput::Listed(listed)) {
        PublishEffect::Published(verified) => {
            assert_eq!(*verified.manifest, six(mine()));
            assert_eq!(verified.garbage, [SubjectKeys::new(&subject()).delta(&delta(6, 50).name)]);
        }
        other => panic!("{other:?}"),
    }
    let (mut publish, _) = begin(Publication::Release(None));
    publish.apply(PublishInput::Created(CreateResult::Foreign));
    assert_eq!(publish.apply(found(Manifest { released: true, ..six(mine()) })), PublishEffect::List);
}

/// A destroy accepts an existing tombstone only if it records the same request.
#[test]
fn publish_destroy_rejects_tombstone_of_another_destroy() {
    let begun = || {
        let (mut publish, _) = begin(destroy(past(3, 51)));
        publish.apply(PublishInput::Created(CreateResult::Foreign));
        publish
    };
    let there = |past| {
        found(Manifest {
            number: SIXTH,
            base_rev: Rev::new(51),
            tombstone_state: Some(past),
            ..tombstone(mine())
        })
    };
    assert_eq!(begun().apply(there(past(3, 51))), PublishEffect::List);
    // The tombstone does not record this destroy: a retry of it would execute again.
    let mut others = past(3, 51);
    others.sessions[0].counter = 8;
    others.request = others.request.map(|id| RequestId { counter: 8, ..id });
    assert_eq!(begun().apply(there(others)), PublishEffect::NotOwner { may_have_counted: false });
}

/// Once the manifest can exist, only a definite reply about the same bytes decides; before that, a failure is final.
#[test]
fn publish_possible_create_needs_definite_reply() {
    let failure = ErrorReply::unavailable("the bucket does not answer");
    let failed = || PublishInput::Failed(failure.clone());
    let (mut publish, create) = begin(Publication::Release(None));
    assert!(matches!(publish.apply(unknown()), PublishEffect::Indeterminate(_)));
    assert_eq!(publish.apply(PublishInput::Resume), create);
    assert_eq!(publish.apply(failed()), PublishEffect::Indeterminate(failure.clone()));
    assert_eq!(publish.apply(PublishInput::Resume), create);
    assert_eq!(publish.apply(PublishInput::Created(CreateResult::Ours)), PublishEffect::List);
    assert_eq!(publish.apply(failed()), PublishEffect::Indeterminate(failure.clone()));
    let behind = publish.apply(PublishInput::Listed(folder(&[5])));
    assert!(
        matches!(&behind, PublishEffect::Indeterminate(reply) if reply.code == ErrorCode::Corrupt),
        "{behind:?}"
    );
    assert_eq!(publish.apply(PublishInput::Resume), create);
    publish.apply(PublishInput::Created(CreateResult::Ours));
    assert!(matches!(publish.apply(PublishInput::Listed(folder(&[6]))), PublishEffect::Published(_)));

    // Before that, a failure is final.
    let (mut publish, _) = begin(Publication::Release(None));
    assert_eq!(publish.apply(failed()), PublishEffect::Failed(failure.clone()));
    let (mut publish, _) = begin(Publication::Release(None));
    publish.apply(PublishInput::Created(CreateResult::Foreign));
    assert_eq!(publish.apply(failed()), PublishEffect::Failed(failure.clone()));
}

/// A new base is a delta while the deltas are few and small beside the snapshot; otherwise it is a snapshot.
#[test]
fn base_is_delta_while_deltas_are_few_and_small() {
    use super::super::BaseKind::{Delta, Snapshot};
    let on = |size_bytes: u64, deltas: u64| Manifest {
        snapshot: Some(SnapshotRef { size_bytes, ..snapshot(3, 30) }),
        deltas: (0..deltas).map(|n| delta(4 + n, 40)).collect(),
        ..manifest(mine())
    };
    const KIB: u64 = 1_024;
    for (manifest, tail_bytes, expected) in [
        (on(4 * KIB, 0), 16 * KIB, Delta),
        (on(1_024 * KIB, 0), 256 * KIB, Delta),
        (on(1_024 * KIB, 0), 256 * KIB + 1, Snapshot),
        // The existing deltas count.
        (on(1_024 * KIB, 2), 255 * KIB, Delta),
        (on(1_024 * KIB, 2), 255 * KIB + 1, Snapshot),
        (on(1_024 * KIB, 7), 1, Delta),
        (on(1_024 * KIB, 8), 1, Snapshot),
        (on(1_024 * KIB, 1), u64::MAX, Snapshot),
    ] {
        assert_eq!(base_kind(&manifest, tail_bytes), expected, "{tail_bytes} on {manifest:?}");
    }
}
