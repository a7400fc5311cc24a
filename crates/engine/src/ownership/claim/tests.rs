mod random;

use dormouse_format::keys::BucketKey;
use dormouse_protocol::ErrorCode;
use dormouse_protocol::limits::TERM_HISTORY;

use super::super::testing::*;
use super::*;

fn begin() -> Claim {
    let (claim, effect) = Claim::new(subject(), mine(), None);
    assert_eq!(effect, ClaimEffect::List);
    claim
}

fn reclaim(dry_run: bool) -> Claim {
    Claim::reclaim(subject(), mine(), other(), dry_run).0
}

fn found(manifest: &Manifest) -> ClaimInput {
    ClaimInput::Got(ManifestRead::Manifest(Box::new(manifest.clone())))
}

fn listed(manifests: &[u64]) -> ClaimInput {
    ClaimInput::Listed(folder(manifests))
}

fn unknown() -> ClaimInput {
    ClaimInput::Created(CreateResult::Unknown(ErrorReply::unavailable("no answer")))
}

fn code(effect: &ClaimEffect) -> ErrorCode {
    match effect {
        ClaimEffect::GiveUp(reply) => reply.code.clone(),
        other => panic!("{other:?}"),
    }
}

/// Drives a claim against a bucket without other writers, in which every step succeeds, and records the effects.
fn walk(claim: &mut Claim, newest: Option<&Manifest>, state: Restored) -> (Vec<String>, ClaimEffect) {
    let mut numbers: Vec<u64> = newest.iter().map(|manifest| manifest.number.get()).collect();
    let (mut steps, mut effect) = (Vec::new(), ClaimEffect::List);
    loop {
        let (step, input) = match effect {
            ClaimEffect::List => ("list".to_owned(), listed(&numbers)),
            ClaimEffect::Get(number) => (format!("get {}", number.get()), found(newest.unwrap())),
            ClaimEffect::AskAuthority { owner } => {
                let owner = owner.map_or("unowned".to_owned(), |owner| owner.to_string());
                (format!("ask {owner}"), ClaimInput::Allowed)
            }
            ClaimEffect::Seal(log) => (format!("seal {log}"), ClaimInput::Sealed),
            ClaimEffect::Restore { manifest, tail } => {
                assert_eq!(manifest.as_deref(), newest);
                (format!("restore {tail:?}"), ClaimInput::Restored(state))
            }
            ClaimEffect::PutBase { made_for } => {
                let object = a_delta(made_for.get(), state.rev.get());
                (format!("put base for {}", made_for.get()), ClaimInput::BasePut(object))
            }
            ClaimEffect::Create(manifest) => {
                let number = manifest.number.get();
                // The next claim can read it.
                let read = Manifest::decode(&subject(), manifest.number, &manifest.encode());
                assert_eq!(read.as_ref(), Ok(&*manifest));
                numbers.push(number);
                (format!("create {number}"), ClaimInput::Created(CreateResult::Ours))
            }
            end => return (steps, end),
        };
        steps.push(step);
        effect = claim.apply(input);
    }
}

fn served(effect: ClaimEffect) -> Manifest {
    match effect {
        ClaimEffect::Serve(verified) => *verified.manifest,
        other => panic!("{other:?}"),
    }
}

/// For each state of the newest manifest, a claim takes the expected steps and creates the expected manifest.
#[test]
fn claim_takes_expected_steps_for_each_manifest_state() {
    let ask = |owner: &LogId| format!("ask {owner}");
    let seal = |owner: &LogId| format!("seal {owner}");
    let sealed = |owner: &LogId| format!("restore {:?}", TailSource::Sealed(owner.clone()));
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let get = words(&["list", "get 5"]);
    let unowned = words(&["ask unowned", "restore None"]);
    let take = words(&["create 6", "list"]);
    let with_base = words(&["put base for 6", "create 6", "list"]);
    let predecessor = log("me", 1);
    let same = restored(40, false);
    let more = restored(45, true);
    type Case = (&'static str, Option<Manifest>, Restored, Vec<String>);
    let cases: Vec<Case> = vec![
        (
            "new",
            None,
            restored(0, false),
            [words(&["list"]), unowned.clone(), words(&["create 1", "list"])].concat(),
        ),
        (
            "foreign, no entries in its log",
            Some(manifest(other())),
            same,
            [get.clone(), vec![ask(&other()), seal(&other()), sealed(&other())], take.clone()].concat(),
        ),
        (
            "foreign, entries above the base",
            Some(manifest(other())),
            more,
            [get.clone(), vec![ask(&other()), seal(&other()), sealed(&other())], with_base.clone()].concat(),
        ),
        // A reply without a rev is acknowledged too.
        (
            "foreign, dedup records in its log",
            Some(manifest(other())),
            restored(40, true),
            [get.clone(), vec![ask(&other()), seal(&other()), sealed(&other())], with_base.clone()].concat(),
        ),
        (
            "earlier run",
            Some(manifest(predecessor.clone())),
            more,
            [
                get.clone(),
                vec![ask(&predecessor), seal(&predecessor), sealed(&predecessor)],
                with_base.clone(),
            ]
            .concat(),
        ),
        ("released", Some(released(other())), same, [get.clone(), unowned.clone(), take.clone()].concat()),
        // It must be claimed again: the release may have been superseded.
        (
            "released by me",
            Some(released(mine())),
            same,
            [get.clone(), unowned.clone(), take.clone()].concat(),
        ),
        ("destroyed", Some(tombstone(other())), same, [get.clone(), unowned, take].concat()),
        ("mine", Some(manifest(mine())), more, [get, words(&["restore Own", "list"])].concat()),
    ];
    for (name, newest, state, expected) in cases {
        let (steps, effect) = walk(&mut begin(), newest.as_ref(), state);
        assert_eq!(steps, expected, "{name}");
        let manifest = served(effect);
        if name == "mine" {
            assert_eq!(Some(&manifest), newest.as_ref());
            continue;
        }
        assert_eq!((manifest.owner, manifest.released, manifest.tombstone), (mine(), false, false), "{name}");
        let number = newest.as_ref().map_or(1, |newest| newest.term.get() + 1);
        assert_eq!(manifest.term, Term::new(number), "{name}");
        assert_eq!((manifest.base_rev, manifest.term_base), (state.rev, state.rev), "{name}");
        assert_eq!((manifest.next_seq, manifest.first_slot), (state.next_seq, state.first_slot), "{name}");
        let keeps_base = newest.as_ref().is_some_and(|newest| !newest.tombstone);
        assert_eq!(manifest.snapshot, keeps_base.then(|| snapshot(3, 30)), "{name}");
        let mut deltas = if keeps_base { vec![delta(4, 40)] } else { Vec::new() };
        deltas.extend(state.above_base.then(|| delta(6, state.rev.get())));
        assert_eq!(manifest.deltas, deltas, "{name}");
        let terms = if keeps_base { vec![term(2, 33), term(3, 38)] } else { Vec::new() };
        assert_eq!(manifest.terms, terms, "{name}");
        assert_eq!(manifest.tombstone_state, (name == "destroyed").then(|| past(3, 40)), "{name}");
    }
}

/// A claim copies tombstone state into each manifest until a snapshot holds it.
#[test]
fn claim_carries_tombstone_state_until_snapshot() {
    let begun =
        Manifest { tombstone: false, term: Term::new(4), term_base: Rev::new(40), ..tombstone(other()) };
    for (object, carried) in
        [(a_delta(6, 45), Some(past(3, 40))), (BaseObject::Snapshot(snapshot(6, 45)), None)]
    {
        let mut claim = begin();
        claim.apply(listed(&[5]));
        claim.apply(found(&begun));
        claim.apply(ClaimInput::Allowed);
        claim.apply(ClaimInput::Restored(restored(45, true)));
        match claim.apply(ClaimInput::BasePut(object)) {
            ClaimEffect::Create(manifest) => {
                assert_eq!(manifest.tombstone_state, carried);
                assert_eq!(manifest.contradiction(), None);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A snapshot put by a claim replaces the earlier objects and terms in the manifest.
#[test]
fn claim_snapshot_replaces_deltas_and_terms() {
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(found(&manifest(other())));
    claim.apply(ClaimInput::Allowed);
    claim.apply(ClaimInput::Sealed);
    let put = claim.apply(ClaimInput::Restored(restored(45, true)));
    assert_eq!(put, ClaimEffect::PutBase { made_for: ManifestNumber::new(6) });
    match claim.apply(ClaimInput::BasePut(BaseObject::Snapshot(snapshot(6, 45)))) {
        ClaimEffect::Create(manifest) => {
            assert_eq!((manifest.snapshot, manifest.deltas), (Some(snapshot(6, 45)), Vec::new()));
            assert_eq!((manifest.terms, manifest.term, manifest.term_base.get()), (vec![], Term::new(4), 45));
        }
        other => panic!("{other:?}"),
    }
}

/// A merged delta put by a reclamation replaces the earlier deltas, and leaves the snapshot and the terms.
#[test]
fn claim_merged_delta_replaces_deltas_only() {
    let mut claim = reclaim(false);
    claim.apply(listed(&[5]));
    claim.apply(found(&manifest(other())));
    let put = claim.apply(ClaimInput::Restored(restored(45, true)));
    assert_eq!(put, ClaimEffect::PutBase { made_for: ManifestNumber::new(6) });
    match claim.apply(ClaimInput::BasePut(BaseObject::MergedDelta(delta(6, 45)))) {
        ClaimEffect::Create(manifest) => {
            assert_eq!(
                (manifest.snapshot, manifest.deltas.clone()),
                (Some(snapshot(3, 30)), vec![delta(6, 45)])
            );
            assert_eq!(manifest.terms, [term(2, 33), term(3, 38)]);
            assert_eq!(manifest.contradiction(), None);
        }
        other => panic!("{other:?}"),
    }
}

/// A claim keeps a bounded number of earlier terms in the manifest, the latest ones.
#[test]
fn claim_keeps_only_the_latest_terms() {
    let newest = Manifest {
        term: Term::new(100),
        term_base: Rev::new(40),
        terms: (36..100).map(|number| term(number, 35)).collect(),
        ..released(other())
    };
    let manifest = served(walk(&mut begin(), Some(&newest), restored(40, false)).1);
    assert_eq!(manifest.terms.len(), TERM_HISTORY);
    assert_eq!(manifest.terms.last(), Some(&term(100, 40)));
}

/// If permission is refused or a call fails, the claim gives up with the same error.
#[test]
fn claim_passes_on_rejection_and_failure() {
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(found(&manifest(other())));
    let reply = ErrorReply::not_owner(Some("other".parse().unwrap()));
    assert_eq!(claim.apply(ClaimInput::Refused(reply.clone())), ClaimEffect::GiveUp(reply));
    let reply = ErrorReply::unavailable("the bucket does not answer");
    assert_eq!(begin().apply(ClaimInput::Failed(reply.clone())), ClaimEffect::GiveUp(reply));
}

/// A corrupt or newer manifest ends the claim with an error and never counts as absent.
#[test]
fn claim_never_treats_unreadable_manifest_as_absent() {
    let newer = String::from_utf8(manifest(other()).encode().to_vec()).unwrap().replacen(
        "\"format\":1",
        "\"format\":3",
        1,
    );
    let elsewhere = Manifest { number: ManifestNumber::new(6), ..manifest(other()) }.encode();
    for (bytes, expected) in [
        ("garbage".into(), ErrorCode::Corrupt),
        (elsewhere, ErrorCode::Corrupt),
        (newer.into(), ErrorCode::Unavailable),
    ] {
        let mut claim = begin();
        claim.apply(listed(&[5]));
        let read = ManifestRead::read(&subject(), ManifestNumber::new(5), Some(bytes));
        assert_eq!(code(&claim.apply(ClaimInput::Got(read))), expected);
    }
    assert_eq!(ManifestRead::read(&subject(), ManifestNumber::new(5), None), ManifestRead::Missing);
}

/// If the highest manifest number falls below a known one, the claim gives up with `corrupt`.
#[test]
fn claim_rejects_bucket_with_lower_manifest_numbers() {
    for numbers in [&[][..], &[4]] {
        let (mut claim, _) = Claim::new(subject(), mine(), Some(ManifestNumber::new(5)));
        assert_eq!(code(&claim.apply(listed(numbers))), ErrorCode::Corrupt);
    }
    // Also within one claim, whatever this server knew before.
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(found(&released(other())));
    claim.apply(ClaimInput::Allowed);
    claim.apply(ClaimInput::Restored(restored(40, false)));
    claim.apply(ClaimInput::Created(CreateResult::Foreign));
    assert_eq!(code(&claim.apply(listed(&[4]))), ErrorCode::Corrupt);
}

/// Drives the claim up to the creation of manifest 6, on top of a released one.
fn to_creation(claim: &mut Claim) -> Box<Manifest> {
    claim.apply(listed(&[5]));
    claim.apply(found(&released(other())));
    claim.apply(ClaimInput::Allowed);
    match claim.apply(ClaimInput::Restored(restored(40, false))) {
        ClaimEffect::Create(manifest) => manifest,
        other => panic!("{other:?}"),
    }
}

/// A missing object, a foreign create or a higher manifest restarts the claim, and earlier permissions no longer count.
#[test]
fn claim_restarts_after_any_conflict() {
    let mut claim = begin();
    claim.apply(listed(&[5]));
    assert_eq!(claim.apply(ClaimInput::Got(ManifestRead::Missing)), ClaimEffect::List);
    assert_eq!(claim.apply(listed(&[6])), ClaimEffect::Get(ManifestNumber::new(6)));
    claim.apply(found(&Manifest { number: ManifestNumber::new(6), ..manifest(mine()) }));
    let missing = || ClaimInput::ObjectMissing { object: "a slot".to_owned() };
    assert_eq!(claim.apply(missing()), ClaimEffect::List);
    claim.apply(listed(&[6, 7]));
    let seventh = Manifest { number: ManifestNumber::new(7), ..released(other()) };
    claim.apply(found(&seventh));
    claim.apply(ClaimInput::Allowed);
    claim.apply(ClaimInput::Restored(restored(40, false)));
    assert_eq!(claim.apply(ClaimInput::Created(CreateResult::Foreign)), ClaimEffect::List);
    // Permissions and states for manifest 7 do not count for the next one.
    claim.apply(listed(&[8]));
    let eighth = Manifest { number: ManifestNumber::new(8), ..manifest(other()) };
    assert_eq!(claim.apply(found(&eighth)), ClaimEffect::AskAuthority { owner: Some(other()) });
    claim.apply(ClaimInput::Allowed);
    claim.apply(ClaimInput::Sealed);
    claim.apply(ClaimInput::Restored(restored(40, false)));
    assert_eq!(claim.apply(ClaimInput::Created(CreateResult::Ours)), ClaimEffect::List);
    // Created under a number that had been collected.
    assert_eq!(claim.apply(listed(&[9, 10])), ClaimEffect::List);
    assert_eq!(claim.apply(listed(&[9, 10])), ClaimEffect::Get(ManifestNumber::new(10)));
}

/// If the newest manifest or one of its objects stays missing, the claim gives up with `corrupt` and names the object.
#[test]
fn claim_with_object_missing_from_newest_manifest_is_corrupt() {
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(found(&released(other())));
    claim.apply(ClaimInput::Allowed);
    let missing = ClaimInput::ObjectMissing { object: "a delta".to_owned() };
    assert_eq!(claim.apply(missing), ClaimEffect::List);
    match claim.apply(listed(&[5])) {
        ClaimEffect::GiveUp(reply) => {
            assert_eq!((reply.code, reply.object.as_deref()), (ErrorCode::Corrupt, Some("a delta")));
        }
        other => panic!("{other:?}"),
    }
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(ClaimInput::Got(ManifestRead::Missing));
    assert_eq!(code(&claim.apply(listed(&[5]))), ErrorCode::Corrupt);
}

/// A claim gives up with `unavailable` after the maximum number of restarts.
#[test]
fn claim_restarts_are_limited() {
    for most in [MAX_RESTARTS, 2] {
        let mut claim = begin().with_restarts(most);
        let (mut effect, mut restarts) = (ClaimEffect::List, 0);
        let mut number = 5;
        while effect == ClaimEffect::List {
            claim.apply(listed(&[number]));
            effect = claim.apply(ClaimInput::Got(ManifestRead::Missing));
            (number, restarts) = (number + 1, restarts + 1);
        }
        assert_eq!((code(&effect), restarts), (ErrorCode::Unavailable, most + 1));
    }
}

/// After an unknown create outcome, a claim creates the same manifest again, restarts if a higher one exists, and
/// finally gives up.
#[test]
fn claim_after_indeterminate_create_retries_same_manifest() {
    for numbers in [&[5][..], &[5, 6], &[6]] {
        let mut claim = begin();
        let manifest = to_creation(&mut claim);
        assert_eq!(claim.apply(unknown()), ClaimEffect::List);
        assert_eq!(claim.apply(listed(numbers)), ClaimEffect::Create(manifest.clone()));
        assert_eq!(claim.apply(ClaimInput::Created(CreateResult::Ours)), ClaimEffect::List);
        assert_eq!(served(claim.apply(listed(&[5, 6]))), *manifest);
    }
    // Superseded meanwhile.
    let mut claim = begin();
    to_creation(&mut claim);
    claim.apply(unknown());
    assert_eq!(claim.apply(listed(&[5, 7])), ClaimEffect::Get(ManifestNumber::new(7)));

    let mut claim = begin();
    to_creation(&mut claim);
    let mut effect = claim.apply(unknown());
    while effect == ClaimEffect::List {
        claim.apply(listed(&[5]));
        effect = claim.apply(unknown());
    }
    assert_eq!(code(&effect), ErrorCode::Unavailable);
}

/// If a listing lacks the manifest that the claim created, the claim gives up with `corrupt`.
#[test]
fn claim_rejects_listing_without_created_manifest() {
    let mut claim = begin();
    to_creation(&mut claim);
    claim.apply(ClaimInput::Created(CreateResult::Ours));
    assert_eq!(code(&claim.apply(listed(&[5]))), ErrorCode::Corrupt);
}

/// A claim that reopens its own manifest lists again and restarts if a higher manifest exists.
#[test]
fn claim_verifies_reopened_subject_with_listing() {
    let mut claim = begin();
    claim.apply(listed(&[5]));
    claim.apply(found(&manifest(mine())));
    assert_eq!(claim.apply(ClaimInput::Restored(restored(45, true))), ClaimEffect::List);
    // A higher manifest of any process: everything that was restored is void.
    assert_eq!(claim.apply(listed(&[5, 6])), ClaimEffect::List);
    assert_eq!(claim.apply(listed(&[5, 6])), ClaimEffect::Get(ManifestNumber::new(6)));
}

/// If no manifest can follow the newest, the claim gives up with `corrupt`, which names that manifest.
#[test]
fn claim_of_last_manifest_number_or_term_is_corrupt() {
    let last = ManifestNumber::new(ManifestNumber::LAST.get() - 1);
    for newest in [
        Manifest { term: Term::new(u64::MAX - 1), ..manifest(other()) },
        Manifest { number: last, ..manifest(other()) },
        Manifest { number: last, ..manifest(mine()) },
    ] {
        let mut claim = begin();
        claim.apply(listed(&[newest.number.get()]));
        let effect = claim.apply(found(&newest));
        assert_eq!(code(&effect), ErrorCode::Corrupt, "{newest:?}");
        assert!(format!("{effect:?}").contains("no manifest can follow"), "{effect:?}");
    }
}

/// If the restored state or the uploaded base contradicts the manifest, the claim gives up with `internal`.
#[test]
fn claim_rejects_state_that_contradicts_manifest() {
    let internal = |state: Restored, object: Option<BaseObject>| {
        let mut claim = begin();
        claim.apply(listed(&[5]));
        claim.apply(found(&manifest(other())));
        claim.apply(ClaimInput::Allowed);
        claim.apply(ClaimInput::Sealed);
        let mut effect = claim.apply(ClaimInput::Restored(state));
        if let Some(object) = object {
            effect = claim.apply(ClaimInput::BasePut(object));
        }
        assert_eq!(code(&effect), ErrorCode::Internal, "{state:?} {object:?}");
    };
    internal(restored(39, true), None);
    internal(restored(41, false), None);
    internal(restored(45, true), Some(a_delta(6, 44)));
    internal(restored(45, true), Some(a_delta(5, 45)));
    internal(restored(45, true), Some(BaseObject::Snapshot(snapshot(7, 45))));
}

/// A log reclamation rebases a subject only if its newest manifest needs the log; a dry run only reports the need.
#[test]
fn reclaim_rebases_only_subjects_that_need_the_log() {
    let sealed = format!("restore {:?}", TailSource::Sealed(other()));
    let sealed = sealed.as_str();
    let more = restored(45, true);
    let not_needed = ClaimEffect::Reclaimed(ReclaimOutcome::NotNeeded);
    for (name, newest, state, dry_run, expected, end) in [
        (
            "of another log",
            manifest(log("third", 1)),
            more,
            false,
            vec!["list", "get 5", "list"],
            &not_needed,
        ),
        ("released", released(other()), more, false, vec!["list", "get 5", "list"], &not_needed),
        ("mine", manifest(mine()), more, false, vec!["list", "get 5", "list"], &not_needed),
        (
            "nothing above the base",
            manifest(other()),
            restored(40, false),
            false,
            vec!["list", "get 5", sealed, "list"],
            &not_needed,
        ),
        (
            "dry run",
            manifest(other()),
            more,
            true,
            vec!["list", "get 5", sealed, "list"],
            &ClaimEffect::Reclaimed(ReclaimOutcome::Needed),
        ),
    ] {
        let (steps, effect) = walk(&mut reclaim(dry_run), Some(&newest), state);
        assert_eq!(steps, expected, "{name}");
        assert_eq!(effect, *end, "{name}");
    }
    let (steps, effect) = walk(&mut reclaim(false), Some(&manifest(other())), more);
    assert_eq!(steps, ["list", "get 5", sealed, "put base for 6", "create 6", "list"]);
    match effect {
        ClaimEffect::Reclaimed(ReclaimOutcome::Released(verified)) => {
            let manifest = *verified.manifest;
            assert_eq!((manifest.owner, manifest.released, manifest.term), (mine(), true, Term::new(4)));
            assert_eq!((manifest.base_rev.get(), manifest.term_base.get()), (45, 45));
            assert_eq!(manifest.deltas, [delta(4, 40), delta(6, 45)]);
        }
        other => panic!("{other:?}"),
    }
}

/// A log reclamation lists again before it trusts a manifest, and a missing manifest is `corrupt`.
#[test]
fn reclaim_verifies_that_manifest_is_still_newest() {
    // LIST and GET are two requests: between them, the number may have been collected and created a second time.
    for newest in [released(other()), manifest(log("third", 1))] {
        let mut claim = reclaim(false);
        claim.apply(listed(&[5]));
        assert_eq!(claim.apply(found(&newest)), ClaimEffect::List);
        assert_eq!(claim.apply(listed(&[5, 6])), ClaimEffect::List);
        assert_eq!(claim.apply(listed(&[5, 6])), ClaimEffect::Get(ManifestNumber::new(6)));
    }
    // A log with entries of a subject without a manifest: a missing manifest never permits a delete.
    assert_eq!(code(&reclaim(false).apply(listed(&[]))), ErrorCode::Corrupt);
}

/// A finished claim names the objects that its manifest does not reference and the blobs in the folder.
#[test]
fn claim_result_lists_unreferenced_objects() {
    let mut claim = begin();
    to_creation(&mut claim);
    claim.apply(ClaimInput::Created(CreateResult::Ours));
    let blob = dormouse_format::keys::BlobName { term: Term::new(1), nonce: nonce(1) };
    let seen = Folder {
        snapshots: vec![snapshot(2, 20).name, snapshot(3, 30).name],
        deltas: vec![delta(4, 40).name, delta(6, 41).name],
        blobs: vec![blob],
        ..folder(&[5, 6])
    };
    match claim.apply(ClaimInput::Listed(seen)) {
        ClaimEffect::Serve(verified) => {
            let keys = SubjectKeys::new(&subject());
            let expected: Vec<BucketKey> = vec![
                keys.manifest(ManifestNumber::new(5)),
                keys.snapshot(&snapshot(2, 20).name),
                keys.delta(&delta(6, 41).name),
            ];
            assert_eq!((verified.garbage, verified.blobs), (expected, vec![blob]));
        }
        other => panic!("{other:?}"),
    }
}
