use std::collections::BTreeMap;

use dormouse_protocol::ErrorCode;
use ulid::Ulid;

use super::*;
use crate::bucket::{BucketError, Operation};
use crate::checksum::Crc64;
use crate::keys::SnapshotName;

/// The lease that the process holds, and under which the files here were claimed unless a test says otherwise.
const LEASE: LeaseGeneration = LeaseGeneration(7);

fn subject() -> Subject {
    Subject::new("app.orders").unwrap()
}

fn log(server: &str, process: u128) -> LogId {
    LogId::new(server.parse().unwrap(), Ulid::from(process))
}

fn mine() -> LogId {
    log("me", 2)
}

fn predecessor() -> LogId {
    log("me", 1)
}

fn other() -> LogId {
    log("other", 1)
}

fn nonce(number: u128) -> Nonce {
    Nonce::new(Ulid::from(number))
}

fn snapshot(made_for: u64, rev: u64) -> SnapshotRef {
    let name = SnapshotName {
        made_for: ManifestNumber::new(made_for),
        rev: Rev::new(rev),
        nonce: nonce(u128::from(made_for)),
    };
    SnapshotRef { name, size_bytes: 4_096, crc64: Crc64::of(b"snapshot") }
}

/// Manifest 5 of term 3: a snapshot at rev 40, made for manifest 4.
fn manifest(owner: LogId) -> Manifest {
    Manifest {
        subject: subject(),
        number: ManifestNumber::new(5),
        term: Term::new(3),
        term_base: Rev::new(30),
        owner,
        base_rev: Rev::new(40),
        next_seq: Seq::new(77),
        first_slot: Slot::default(),
        snapshot: Some(snapshot(4, 40)),
        deltas: Vec::new(),
        terms: Vec::new(),
        released: false,
        tombstone: false,
        nonce: nonce(5),
    }
}

fn released(owner: LogId) -> Manifest {
    Manifest { released: true, ..manifest(owner) }
}

fn tombstone(owner: LogId) -> Manifest {
    Manifest { snapshot: None, tombstone: true, ..released(owner) }
}

/// A file at `applied`, of which the bucket has everything up to 40.
fn file(log: LogId, term: u64, applied: u64) -> LocalFile {
    LocalFile {
        log,
        lease: Some(LEASE),
        term: Term::new(term),
        manifest: ManifestNumber::new(5),
        applied_rev: Rev::new(applied),
        in_bucket_rev: Rev::new(40),
    }
}

fn folder(manifests: &[u64]) -> Folder {
    Folder { manifests: manifests.iter().map(|&n| ManifestNumber::new(n)).collect(), ..Folder::default() }
}

fn unknown() -> CreateOutcome {
    CreateOutcome::Unknown(BucketError::Interrupted { operation: Operation::Create, name: "a".to_owned() })
}

/// Drives a claim against a bucket that holds still, in which every step succeeds, and writes down the effects.
fn walk(newest: Option<&Manifest>, local: Option<LocalFile>) -> (Vec<String>, ClaimEffect) {
    let (mut claim, mut effect) = Claim::new(subject(), mine(), LEASE, local);
    let mut bucket: BTreeMap<u64, Manifest> =
        newest.into_iter().map(|manifest| (manifest.number.get(), manifest.clone())).collect();
    let mut steps = Vec::new();
    loop {
        let (step, input) = match &effect {
            ClaimEffect::List => {
                let numbers: Vec<u64> = bucket.keys().copied().collect();
                ("list".to_owned(), ClaimInput::Listed(folder(&numbers)))
            }
            ClaimEffect::Get(number) => {
                let bytes = bucket.get(&number.get()).map(Manifest::encode);
                (format!("get {}", number.get()), ClaimInput::Got(bytes))
            }
            ClaimEffect::AskAuthority { owner } => {
                let owner = owner.as_ref().map_or("nobody".to_owned(), |owner| owner.server().to_string());
                (format!("ask {owner}"), ClaimInput::Allowed)
            }
            ClaimEffect::SetAsideLocal => ("set aside".to_owned(), ClaimInput::LocalSetAside),
            ClaimEffect::ReuseLocal => ("reuse".to_owned(), ClaimInput::LocalReady { nonce: nonce(6) }),
            ClaimEffect::PullSnapshot(snapshot) => {
                (format!("pull {}", snapshot.rev()), ClaimInput::LocalReady { nonce: nonce(6) })
            }
            ClaimEffect::StartEmpty { base_rev, next_seq } => {
                (format!("empty at {base_rev}, {next_seq}"), ClaimInput::LocalReady { nonce: nonce(6) })
            }
            ClaimEffect::SnapshotLocal { made_for } => {
                let taken = snapshot(made_for.get(), 45);
                let next_seq = Seq::new(90);
                let input = ClaimInput::SnapshotTaken { snapshot: taken, next_seq, nonce: nonce(6) };
                (format!("snapshot for {}", made_for.get()), input)
            }
            ClaimEffect::Create(manifest) => {
                bucket.insert(manifest.number.get(), (**manifest).clone());
                (format!("create {}", manifest.number.get()), ClaimInput::Created(CreateOutcome::Ours))
            }
            ClaimEffect::Serve { .. } | ClaimEffect::GiveUp(_) => return (steps, effect),
        };
        steps.push(step);
        effect = claim.apply(input);
    }
}

fn served(effect: ClaimEffect) -> Manifest {
    match effect {
        ClaimEffect::Serve { manifest, .. } => *manifest,
        other => panic!("{other:?}"),
    }
}

fn code(effect: &ClaimEffect) -> ErrorCode {
    match effect {
        ClaimEffect::GiveUp(reply) => reply.code.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_way_to_a_subject() {
    let pulled = ["pull rev 40", "create 6", "list"];
    let reused = ["reuse", "create 6", "list"];
    let ahead = ["snapshot for 6", "create 6", "list"];
    let (ask_pred, ask_other, ask_nobody) = ("ask me", "ask other", "ask nobody");
    type Case = (&'static str, Option<Manifest>, Option<LocalFile>, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        ("new", None, None, vec![ask_nobody, "empty at rev 0, seq 1", "create 1", "list"]),
        ("another's", Some(manifest(other())), None, [&[ask_other][..], &pulled].concat()),
        ("released", Some(released(other())), None, [&[ask_nobody][..], &pulled].concat()),
        ("released by me", Some(released(mine())), None, [&[ask_nobody][..], &pulled].concat()),
        (
            "released by me, file here",
            Some(released(mine())),
            Some(file(mine(), 3, 40)),
            [&[ask_nobody][..], &reused].concat(),
        ),
        ("mine, file here", Some(manifest(mine())), Some(file(mine(), 3, 45)), vec!["reuse", "list"]),
        // Somebody may have been allowed to take it over while I had no lease.
        (
            "mine, claimed under an earlier lease",
            Some(manifest(mine())),
            Some(LocalFile { lease: Some(LeaseGeneration(6)), ..file(mine(), 3, 40) }),
            reused.to_vec(),
        ),
        (
            "mine, claimed under an earlier lease, file ahead",
            Some(manifest(mine())),
            Some(LocalFile { lease: Some(LeaseGeneration(6)), ..file(mine(), 3, 45) }),
            ahead.to_vec(),
        ),
        (
            "mine, file pulled for a claim that failed",
            Some(manifest(mine())),
            Some(LocalFile { lease: None, ..file(mine(), 3, 40) }),
            reused.to_vec(),
        ),
        // Revs that I gave may have gone with the file: the next term begins.
        ("mine, file gone", Some(manifest(mine())), None, pulled.to_vec()),
        (
            "my predecessor's, same state",
            Some(manifest(predecessor())),
            Some(file(predecessor(), 3, 40)),
            [&[ask_pred][..], &reused].concat(),
        ),
        (
            "my predecessor's, file ahead",
            Some(manifest(predecessor())),
            Some(file(predecessor(), 3, 45)),
            [&[ask_pred][..], &ahead].concat(),
        ),
        (
            "my predecessor's, released with less",
            Some(released(predecessor())),
            Some(file(predecessor(), 3, 45)),
            [&[ask_nobody][..], &ahead].concat(),
        ),
        (
            "my predecessor's, file behind",
            Some(manifest(predecessor())),
            Some(LocalFile { in_bucket_rev: Rev::new(39), ..file(predecessor(), 3, 39) }),
            [&[ask_pred][..], &pulled].concat(),
        ),
        (
            "another took over, nothing to lose",
            Some(manifest(other())),
            Some(file(predecessor(), 2, 40)),
            [&[ask_other][..], &pulled].concat(),
        ),
        (
            "another took over, changes here",
            Some(manifest(other())),
            Some(file(predecessor(), 2, 45)),
            [&[ask_other, "set aside"][..], &pulled].concat(),
        ),
        (
            "I took over from myself, changes of an older term here",
            Some(manifest(mine())),
            Some(file(mine(), 2, 45)),
            [&["set aside"][..], &pulled].concat(),
        ),
        (
            "destroyed",
            Some(tombstone(other())),
            None,
            vec![ask_nobody, "empty at rev 40, seq 77", "create 6", "list"],
        ),
        (
            "destroyed by my predecessor, file left",
            Some(tombstone(predecessor())),
            Some(file(predecessor(), 3, 40)),
            vec![ask_nobody, "empty at rev 40, seq 77", "create 6", "list"],
        ),
    ];
    for (name, newest, local, rest) in cases {
        let (steps, effect) = walk(newest.as_ref(), local);
        let begin: &[&str] = if newest.is_some() { &["list", "get 5"] } else { &["list"] };
        assert_eq!(steps, [begin, &rest].concat(), "{name}");
        let manifest = served(effect);
        assert_eq!(
            (&manifest.owner, manifest.released, manifest.tombstone),
            (&mine(), false, false),
            "{name}"
        );
        let reopened = rest == ["reuse", "list"];
        let term = newest.as_ref().map_or(1, |newest| newest.term.get() + u64::from(!reopened));
        assert_eq!(manifest.term, Term::new(term), "{name}");
        let (base, term_base, next_seq) = if rest.contains(&"snapshot for 6") {
            (45, 45, 90)
        } else if reopened {
            (40, 30, 77)
        } else if newest.is_some() {
            (40, 40, 77)
        } else {
            (0, 0, 1)
        };
        assert_eq!((manifest.base_rev, manifest.term_base), (Rev::new(base), Rev::new(term_base)), "{name}");
        assert_eq!(manifest.next_seq, Seq::new(next_seq), "{name}");
        // What was created can be read by whoever comes next.
        assert_eq!(
            Manifest::decode(&subject(), manifest.number, &manifest.encode()).unwrap(),
            manifest,
            "{name}"
        );
    }
}

#[test]
fn what_is_refused_or_fails_is_passed_on() {
    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, None);
    claim.apply(ClaimInput::Listed(folder(&[5])));
    claim.apply(ClaimInput::Got(Some(manifest(other()).encode())));
    let reply = ErrorReply::not_owner(Some("other".parse().unwrap()));
    assert_eq!(claim.apply(ClaimInput::Refused(reply.clone())), ClaimEffect::GiveUp(reply));

    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, None);
    let reply = ErrorReply::unavailable("the bucket does not answer");
    assert_eq!(claim.apply(ClaimInput::Failed(reply.clone())), ClaimEffect::GiveUp(reply));
}

#[test]
fn a_manifest_that_cannot_be_understood_is_never_taken_for_none() {
    let newer = String::from_utf8(manifest(other()).encode().to_vec()).unwrap().replacen(
        "\"format\":1",
        "\"format\":2",
        1,
    );
    for (bytes, expected) in [
        (Bytes::from_static(b"garbage"), ErrorCode::Corrupt),
        (Manifest { number: ManifestNumber::new(4), ..manifest(other()) }.encode(), ErrorCode::Corrupt),
        (Bytes::from(newer), ErrorCode::Unavailable),
    ] {
        let (mut claim, _) = Claim::new(subject(), mine(), LEASE, None);
        claim.apply(ClaimInput::Listed(folder(&[5])));
        assert_eq!(code(&claim.apply(ClaimInput::Got(Some(bytes)))), expected);
    }
}

#[test]
fn a_bucket_whose_numbers_went_back_is_refused() {
    for (newest, local) in [(None, file(predecessor(), 3, 40)), (Some(4), file(other(), 2, 40))] {
        let (mut claim, _) = Claim::new(subject(), mine(), LEASE, Some(local));
        let numbers: Vec<u64> = newest.into_iter().collect();
        let effect = claim.apply(ClaimInput::Listed(folder(&numbers)));
        assert_eq!(code(&effect), ErrorCode::Corrupt, "{effect:?}");
    }
}

#[test]
fn whatever_is_missing_starts_the_claim_again() {
    // The manifest goes, then the snapshot, then another process is faster twice: at the creation, and after it.
    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, None);
    let newest = released(other());
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[5]))), ClaimEffect::Get(newest.number));
    assert_eq!(claim.apply(ClaimInput::Got(None)), ClaimEffect::List);
    let to_preparation = |claim: &mut Claim| {
        claim.apply(ClaimInput::Listed(folder(&[5])));
        claim.apply(ClaimInput::Got(Some(newest.encode())));
        assert_eq!(claim.apply(ClaimInput::Allowed), ClaimEffect::PullSnapshot(snapshot(4, 40)));
    };
    to_preparation(&mut claim);
    assert_eq!(claim.apply(ClaimInput::SnapshotMissing), ClaimEffect::List);
    to_preparation(&mut claim);
    claim.apply(ClaimInput::LocalReady { nonce: nonce(6) });
    assert_eq!(claim.apply(ClaimInput::Created(CreateOutcome::Anothers)), ClaimEffect::List);
    to_preparation(&mut claim);
    claim.apply(ClaimInput::LocalReady { nonce: nonce(7) });
    assert_eq!(claim.apply(ClaimInput::Created(CreateOutcome::Ours)), ClaimEffect::List);
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[6, 7]))), ClaimEffect::List);
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[6, 7]))), ClaimEffect::Get(ManifestNumber::new(7)));
}

#[test]
fn a_claim_does_not_start_again_for_ever() {
    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, None);
    let mut effect = ClaimEffect::List;
    let mut reads = 0;
    while effect == ClaimEffect::List {
        claim.apply(ClaimInput::Listed(folder(&[5])));
        effect = claim.apply(ClaimInput::Got(None));
        reads += 1;
    }
    assert_eq!((code(&effect), reads), (ErrorCode::Unavailable, MAX_RESTARTS + 1));
}

/// Up to the creation of manifest 6, with a file that is ahead.
fn to_creation() -> (Claim, Box<Manifest>) {
    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, Some(file(predecessor(), 3, 45)));
    claim.apply(ClaimInput::Listed(folder(&[5])));
    claim.apply(ClaimInput::Got(Some(manifest(predecessor()).encode())));
    claim.apply(ClaimInput::Allowed);
    let taken =
        ClaimInput::SnapshotTaken { snapshot: snapshot(6, 45), next_seq: Seq::new(90), nonce: nonce(6) };
    match claim.apply(taken) {
        ClaimEffect::Create(manifest) => (claim, manifest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_an_unknown_outcome_the_same_manifest_is_created_again() {
    for numbers in [&[5][..], &[5, 6], &[6]] {
        let (mut claim, manifest) = to_creation();
        assert_eq!(claim.apply(ClaimInput::Created(unknown())), ClaimEffect::List);
        assert_eq!(claim.apply(ClaimInput::Listed(folder(numbers))), ClaimEffect::Create(manifest.clone()));
        assert_eq!(claim.apply(ClaimInput::Created(CreateOutcome::Ours)), ClaimEffect::List);
        assert_eq!(served(claim.apply(ClaimInput::Listed(folder(&[5, 6])))), *manifest);
    }
    // Overtaken meanwhile: the file's changes are in no manifest that counts.
    let (mut claim, _) = to_creation();
    claim.apply(ClaimInput::Created(unknown()));
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[5, 7]))), ClaimEffect::Get(ManifestNumber::new(7)));
    let successor = Manifest { number: ManifestNumber::new(7), ..manifest(other()) };
    claim.apply(ClaimInput::Got(Some(successor.encode())));
    assert_eq!(claim.apply(ClaimInput::Allowed), ClaimEffect::SetAsideLocal);

    let (mut claim, _) = to_creation();
    let mut effect = claim.apply(ClaimInput::Created(unknown()));
    while effect == ClaimEffect::List {
        claim.apply(ClaimInput::Listed(folder(&[5])));
        effect = claim.apply(ClaimInput::Created(unknown()));
    }
    assert_eq!(code(&effect), ErrorCode::Unavailable);
}

#[test]
fn a_listing_without_what_was_created_is_not_believed() {
    let (mut claim, _) = to_creation();
    claim.apply(ClaimInput::Created(CreateOutcome::Ours));
    assert_eq!(code(&claim.apply(ClaimInput::Listed(folder(&[5])))), ErrorCode::Corrupt);
}

#[test]
fn a_reopened_subject_is_verified_too() {
    let (mut claim, _) = Claim::new(subject(), mine(), LEASE, Some(file(mine(), 3, 45)));
    claim.apply(ClaimInput::Listed(folder(&[5])));
    assert_eq!(claim.apply(ClaimInput::Got(Some(manifest(mine()).encode()))), ClaimEffect::ReuseLocal);
    assert_eq!(claim.apply(ClaimInput::LocalReady { nonce: nonce(6) }), ClaimEffect::List);
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[5, 6]))), ClaimEffect::List);
    assert_eq!(claim.apply(ClaimInput::Listed(folder(&[5, 6]))), ClaimEffect::Get(ManifestNumber::new(6)));
}

#[test]
fn after_a_gap_the_claim_that_was_allowed_meanwhile_and_the_owners_own_exclude_each_other() {
    // Both have read manifest 5, the other one while the owner had no lease; both want to create 6.
    let to_creation = |log: LogId, local: Option<LocalFile>| {
        let (mut claim, _) = Claim::new(subject(), log.clone(), LEASE, local);
        claim.apply(ClaimInput::Listed(folder(&[5])));
        let mut effect = claim.apply(ClaimInput::Got(Some(manifest(mine()).encode())));
        if log != mine() {
            assert_eq!(effect, ClaimEffect::AskAuthority { owner: Some(mine()) });
            effect = claim.apply(ClaimInput::Allowed);
        }
        assert!(matches!(effect, ClaimEffect::PullSnapshot(_) | ClaimEffect::ReuseLocal), "{effect:?}");
        match claim.apply(ClaimInput::LocalReady { nonce: nonce(6) }) {
            ClaimEffect::Create(manifest) => (claim, *manifest),
            other => panic!("{other:?}"),
        }
    };
    let before = LocalFile { lease: Some(LeaseGeneration(6)), ..file(mine(), 3, 40) };
    let (mut owners, own) = to_creation(mine(), Some(before));
    let (mut others, theirs) = to_creation(other(), None);
    assert_eq!((own.number, own.term), (theirs.number, theirs.term));
    assert_ne!(own.encode(), theirs.encode());
    for (loser, winner) in [(&mut others, own), (&mut owners, theirs)] {
        assert_eq!(loser.apply(ClaimInput::Created(CreateOutcome::Anothers)), ClaimEffect::List);
        assert_eq!(loser.apply(ClaimInput::Listed(folder(&[5, 6]))), ClaimEffect::Get(winner.number));
        // Nothing that was allowed for manifest 5 counts for this one.
        let effect = loser.apply(ClaimInput::Got(Some(winner.encode())));
        assert_eq!(effect, ClaimEffect::AskAuthority { owner: Some(winner.owner) });
    }
}

#[test]
fn each_publication_follows_the_manifest_before() {
    let current = manifest(mine());
    let base = NewBase { snapshot: snapshot(6, 50), next_seq: Seq::new(99) };
    let cases = [
        (Publication::Snapshot(base), Some(snapshot(6, 50)), 50, 99, false, false),
        (Publication::Release(Some(base)), Some(snapshot(6, 50)), 50, 99, true, false),
        (Publication::Release(None), Some(snapshot(4, 40)), 40, 77, true, false),
        (Publication::Destroy { rev: Rev::new(51), next_seq: Seq::new(100) }, None, 51, 100, true, true),
    ];
    for (publication, snapshot, base_rev, next_seq, released, tombstone) in cases {
        let (mut publish, effect) = Publish::new(&current, publication, nonce(6));
        let expected = Manifest {
            number: ManifestNumber::new(6),
            base_rev: Rev::new(base_rev),
            next_seq: Seq::new(next_seq),
            snapshot,
            released,
            tombstone,
            nonce: nonce(6),
            ..current.clone()
        };
        assert_eq!(effect, PublishEffect::Create(Box::new(expected.clone())), "{publication:?}");
        assert_eq!(Manifest::decode(&subject(), expected.number, &expected.encode()).unwrap(), expected);
        assert_eq!(publish.apply(PublishInput::Created(CreateOutcome::Ours)), PublishEffect::List);
        let published = publish.apply(PublishInput::Listed(folder(&[5, 6])));
        let garbage = vec![SubjectKeys::new(&subject()).manifest(ManifestNumber::new(5))];
        assert_eq!(published, PublishEffect::Published { manifest: Box::new(expected), garbage });
    }
}

#[test]
fn a_publication_is_lost_undecided_or_failed() {
    let begin = || Publish::new(&manifest(mine()), Publication::Release(None), nonce(6));
    let failure = ErrorReply::unavailable("the bucket does not answer");

    let (mut publish, _) = begin();
    let anothers = || PublishInput::Created(CreateOutcome::Anothers);
    let read = PublishEffect::Get(ManifestNumber::new(6));
    assert_eq!(publish.apply(anothers()), read);
    let six = |owner: LogId| Manifest { number: ManifestNumber::new(6), ..manifest(owner) };
    assert_eq!(publish.apply(PublishInput::Got(Some(six(other()).encode()))), PublishEffect::Lost);
    let (mut publish, _) = begin();
    publish.apply(anothers());
    assert_eq!(publish.apply(PublishInput::Got(None)), PublishEffect::Lost);
    let (mut publish, _) = begin();
    publish.apply(anothers());
    assert_eq!(publish.apply(PublishInput::Failed(failure.clone())), PublishEffect::Failed(failure.clone()));

    // An own one that was believed to have failed is gone on from; one of an older claim, or an end, is not.
    let (mut publish, _) = begin();
    publish.apply(anothers());
    assert_eq!(publish.apply(PublishInput::Got(Some(six(mine()).encode()))), PublishEffect::List);
    match publish.apply(PublishInput::Listed(folder(&[5, 6]))) {
        PublishEffect::Published { manifest, .. } => assert_eq!(*manifest, six(mine())),
        effect => panic!("{effect:?}"),
    }
    let end = Manifest { number: ManifestNumber::new(6), ..tombstone(mine()) };
    for there in [Manifest { term: Term::new(2), ..six(mine()) }, end] {
        let (mut publish, _) = begin();
        publish.apply(anothers());
        assert_eq!(publish.apply(PublishInput::Got(Some(there.encode()))), PublishEffect::Lost);
    }
    let (mut publish, _) = begin();
    publish.apply(PublishInput::Created(CreateOutcome::Ours));
    assert_eq!(publish.apply(PublishInput::Listed(folder(&[6, 7]))), PublishEffect::Lost);

    let (mut publish, _) = begin();
    assert_eq!(publish.apply(PublishInput::Failed(failure.clone())), PublishEffect::Failed(failure.clone()));

    // Once it may exist, only a definite answer about the same bytes decides.
    let (mut publish, create) = begin();
    assert!(matches!(publish.apply(PublishInput::Created(unknown())), PublishEffect::Undecided(_)));
    assert_eq!(publish.apply(PublishInput::Resume), create);
    assert_eq!(
        publish.apply(PublishInput::Failed(failure.clone())),
        PublishEffect::Undecided(failure.clone())
    );
    assert_eq!(publish.apply(PublishInput::Resume), create);
    assert_eq!(publish.apply(PublishInput::Created(CreateOutcome::Ours)), PublishEffect::List);
    assert_eq!(publish.apply(PublishInput::Failed(failure.clone())), PublishEffect::Undecided(failure));
    let behind = publish.apply(PublishInput::Listed(folder(&[5])));
    assert!(
        matches!(&behind, PublishEffect::Undecided(reply) if reply.code == ErrorCode::Corrupt),
        "{behind:?}"
    );
    assert_eq!(publish.apply(PublishInput::Resume), create);
    publish.apply(PublishInput::Created(CreateOutcome::Ours));
    assert!(matches!(publish.apply(PublishInput::Listed(folder(&[6]))), PublishEffect::Published { .. }));
}

#[test]
fn garbage_is_what_the_newest_manifest_does_not_need() {
    let keys = SubjectKeys::new(&subject());
    let newest = manifest(mine());
    let folder = Folder {
        manifests: [2, 4, 5].map(ManifestNumber::new).to_vec(),
        snapshots: [snapshot(1, 3), snapshot(4, 40), snapshot(4, 41), snapshot(5, 50), snapshot(6, 50)]
            .map(|snapshot| snapshot.name)
            .to_vec(),
        unknown: vec![keys.manifest(ManifestNumber::new(99))],
        ..Folder::default()
    };
    let expected = [
        keys.manifest(ManifestNumber::new(2)),
        keys.manifest(ManifestNumber::new(4)),
        keys.snapshot(&snapshot(1, 3).name),
        keys.snapshot(&snapshot(4, 41).name),
        keys.snapshot(&snapshot(5, 50).name),
    ];
    assert_eq!(garbage(&folder, &newest), expected);
    assert!(is_newest(&folder, &newest));

    // An owner that was overtaken collects nothing, whatever it believes.
    let overtaken = Folder { manifests: [2, 4, 5, 6].map(ManifestNumber::new).to_vec(), ..folder };
    assert!(!is_newest(&overtaken, &newest));
    assert_eq!(garbage(&overtaken, &newest), []);
}
