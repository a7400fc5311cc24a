use dormouse_protocol::limits::TOMBSTONE_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Timestamp};
use proptest::prelude::*;
use ulid::Ulid;

use super::*;

/// Frozen: manifests of all earlier versions stay readable. A change of these files is a new format.
const GOLDEN: [(&str, &[u8]); 6] = [
    ("new", include_bytes!("../../tests/golden/manifest-new.json")),
    ("snapshot", include_bytes!("../../tests/golden/manifest-snapshot.json")),
    ("deltas", include_bytes!("../../tests/golden/manifest-deltas.json")),
    ("tombstone", include_bytes!("../../tests/golden/manifest-tombstone.json")),
    ("tombstone-2", include_bytes!("../../tests/golden/manifest-tombstone-2.json")),
    ("after-tombstone-2", include_bytes!("../../tests/golden/manifest-after-tombstone-2.json")),
];

const NUMBER: ManifestNumber = ManifestNumber::new(42);

fn subject() -> Subject {
    Subject::new("app.Orders").unwrap()
}

fn new() -> Manifest {
    Manifest {
        subject: subject(),
        number: ManifestNumber::FIRST,
        term: Term::new(1),
        term_base: Rev::new(0),
        owner: "persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ".parse().unwrap(),
        base_rev: Rev::new(0),
        next_seq: Seq::new(1),
        first_slot: Slot::new(0),
        snapshot: None,
        deltas: Vec::new(),
        terms: Vec::new(),
        released: false,
        tombstone: false,
        tombstone_state: None,
        nonce: Nonce::new(Ulid::from(7_u128)),
    }
}

fn snapshot() -> Manifest {
    let name = SnapshotName {
        made_for: ManifestNumber::new(40),
        rev: Rev::new(41),
        nonce: Nonce::new(Ulid::from(8_u128)),
    };
    Manifest {
        number: NUMBER,
        term: Term::new(3),
        term_base: Rev::new(17),
        base_rev: Rev::new(41),
        next_seq: Seq::new((1 << 53) - 1),
        snapshot: Some(SnapshotRef { name, size_bytes: 12_288, crc64: Crc64::of(b"a snapshot") }),
        ..new()
    }
}

fn delta(made_for: u64, rev: u64) -> DeltaRef {
    let name = DeltaName {
        made_for: ManifestNumber::new(made_for),
        rev: Rev::new(rev),
        nonce: Nonce::new(Ulid::from(u128::from(made_for))),
    };
    DeltaRef { name, size_bytes: 640, crc64: Crc64::of(b"a delta") }
}

/// The second delta holds replies only, so both deltas have the same last rev.
fn deltas() -> Manifest {
    Manifest {
        term: Term::new(5),
        term_base: Rev::new(60),
        base_rev: Rev::new(60),
        first_slot: Slot::new(0x1f),
        deltas: vec![delta(41, 60), delta(42, 60)],
        terms: vec![
            TermBase { term: Term::new(3), term_base: Rev::new(17) },
            TermBase { term: Term::new(4), term_base: Rev::new(58) },
        ],
        released: true,
        ..snapshot()
    }
}

/// A tombstone of an earlier version, without tombstone state.
fn tombstone() -> Manifest {
    Manifest { snapshot: None, released: true, tombstone: true, ..snapshot() }
}

fn session(number: u128, counter: u64, at: u64) -> TombstoneSession {
    let session = SessionId::new(Ulid::from(number));
    TombstoneSession { session, counter, accept_time: Timestamp::from_micros(at) }
}

fn past() -> TombstoneState {
    let sessions = vec![session(1, 9, 1_700_000_000_000_002), session(2, u64::MAX, 1_700_000_000_000_001)];
    TombstoneState {
        position: Position { term: Term::new(3), rev: Rev::new(41) },
        accept_time: Timestamp::from_micros(1_700_000_000_000_002),
        request: Some(RequestId { session: sessions[0].session, counter: 9 }),
        sessions,
    }
}

/// Returns a tombstone that holds the state of two sessions.
fn tombstone_with_sessions() -> Manifest {
    Manifest { tombstone_state: Some(past()), ..tombstone() }
}

/// A subject that was created again, written, and claimed by another process, without a snapshot so far.
fn after_tombstone() -> Manifest {
    Manifest {
        snapshot: None,
        deltas: vec![delta(42, 60)],
        terms: vec![TermBase { term: Term::new(4), term_base: Rev::new(41) }],
        released: false,
        tombstone_state: Some(TombstoneState { request: None, ..past() }),
        ..deltas()
    }
}

fn corrupt(bytes: &[u8]) -> String {
    match Manifest::decode(&subject(), NUMBER, bytes) {
        Err(ManifestError::Corrupt { object, what }) => {
            assert_eq!(object, "subjects/app.=4frders/000000000042.manifest");
            what
        }
        other => panic!("{other:?}"),
    }
}

/// The changed text with a recomputed checksum.
fn resealed(text: &str) -> Vec<u8> {
    let body = format!("{}}}", text.split_once(CHECKSUM_FIELD).unwrap().0);
    let checksum = Crc64::of(body.as_bytes());
    format!("{}{CHECKSUM_FIELD}{checksum}{CHECKSUM_END}", &body[..body.len() - 1]).into()
}

/// Each kind of manifest encodes to its golden bytes and decodes from them.
#[test]
fn manifest_bytes_match_golden_files() {
    let manifests = [new(), snapshot(), deltas(), tombstone(), tombstone_with_sessions(), after_tombstone()];
    for ((name, golden), manifest) in GOLDEN.into_iter().zip(manifests) {
        let encoded = manifest.encode();
        assert_eq!(std::str::from_utf8(&encoded).unwrap(), std::str::from_utf8(golden).unwrap(), "{name}");
        assert_eq!(Manifest::decode(&subject(), manifest.number, golden).unwrap(), manifest, "{name}");
    }
}

/// The decoder rejects any flipped bit, truncation or added byte of a manifest.
#[test]
fn manifest_decode_rejects_any_byte_change() {
    let good = snapshot().encode();
    for position in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[position] ^= 1 << bit;
            let read = Manifest::decode(&subject(), NUMBER, &bad);
            assert!(read.is_err(), "bit {bit} of byte {position}");
        }
        corrupt(&good[..position]);
    }
    for bad in [[&good[..], b" "].concat(), [b" ", &good[..]].concat(), [&good[..], &good[..]].concat()] {
        corrupt(&bad);
    }
}

/// The decoder rejects other content, such as empty, malformed or deeply nested JSON, as corrupt.
#[test]
fn manifest_decode_rejects_other_content() {
    for bad in [
        &b""[..],
        b"{}",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b"{\"format\":1}",
        b"{\"format\":\"1\"}",
        b"SQLite format 3\0",
    ] {
        corrupt(bad);
    }
    let nested = format!("{{\"format\":1,\"x\":{}", "[".repeat(100_000));
    corrupt(nested.as_bytes());
}

/// The decoder rejects a manifest of another subject or another number as corrupt.
#[test]
fn manifest_of_other_subject_or_number_is_rejected() {
    let elsewhere = Manifest { subject: Subject::new("app.orders").unwrap(), ..snapshot() };
    assert!(corrupt(&elsewhere.encode()).contains("app.orders"));
    let renumbered = Manifest { number: ManifestNumber::new(43), ..snapshot() };
    assert!(corrupt(&renumbered.encode()).contains("manifest 43"));
}

/// A manifest of a newer format gives an unsupported-version error, whatever its other content; format zero is corrupt.
#[test]
fn manifest_of_newer_format_is_unsupported() {
    let text = String::from_utf8(snapshot().encode().to_vec()).unwrap();
    let newer = text.replacen("\"format\":1", "\"format\":3", 1);
    // With or without a checksum in a known form, and with any other content.
    for bytes in [newer.clone().into_bytes(), resealed(&newer), b"{\"what\":[],\"format\":3}".to_vec()] {
        match Manifest::decode(&subject(), NUMBER, &bytes) {
            Err(ManifestError::UnsupportedVersion { format: 3, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(corrupt(&resealed(&text.replacen("\"format\":1", "\"format\":0", 1))).contains("never existed"));
}

/// The decoder rejects a manifest with a format number that does not match its fields.
#[test]
fn manifest_format_allows_only_own_fields() {
    // A reader of the first format refuses the second by its number, so it never drops tombstone state.
    let with_state = String::from_utf8(tombstone_with_sessions().encode().to_vec()).unwrap();
    let without_state = String::from_utf8(tombstone().encode().to_vec()).unwrap();
    assert!(with_state.starts_with("{\"format\":2,") && without_state.starts_with("{\"format\":1,"));
    for (text, from, to) in [(with_state, 2, 1), (without_state, 1, 2)] {
        let other = text.replacen(&format!("\"format\":{from}"), &format!("\"format\":{to}"), 1);
        assert!(corrupt(&resealed(&other)).contains("of another format"));
    }
}

/// Tombstone state that contradicts itself or its manifest fails the consistency check and does not decode.
#[test]
fn manifest_tombstone_state_must_be_consistent() {
    let with = |past| Manifest { tombstone_state: Some(past), ..tombstone_with_sessions() };
    let many = (1..=257).map(|number| session(number, 1, 1)).collect();
    let ended = |term, rev| Position { term: Term::new(term), rev: Rev::new(rev) };
    let after = |position| Manifest {
        tombstone_state: Some(TombstoneState { position, ..past() }),
        ..after_tombstone()
    };
    let empty = Manifest {
        deltas: Vec::new(),
        terms: Vec::new(),
        term_base: Rev::new(41),
        base_rev: Rev::new(41),
        ..after_tombstone()
    };
    assert_eq!(empty.contradiction(), None);
    for (bad, expected) in [
        (with(TombstoneState { sessions: many, ..past() }), "more sessions than allowed"),
        (
            with(TombstoneState { sessions: vec![session(1, 9, 1), session(1, 9, 1)], ..past() }),
            "inconsistent sessions",
        ),
        (
            with(TombstoneState { sessions: vec![session(2, 9, 1), session(1, 9, 1)], ..past() }),
            "inconsistent sessions",
        ),
        (with(TombstoneState { sessions: vec![session(2, 9, 1)], ..past() }), "inconsistent sessions"),
        (with(TombstoneState { accept_time: Timestamp::from_micros(1), ..past() }), "inconsistent sessions"),
        (with(TombstoneState { position: ended(2, 41), ..past() }), "does not follow"),
        (with(TombstoneState { position: ended(3, 40), ..past() }), "does not follow"),
        (after(ended(4, 41)), "does not follow"),
        (after(ended(3, 42)), "does not follow"),
        (after(ended(0, 41)), "counts from zero"),
        (
            Manifest { tombstone_state: Some(TombstoneState { position: ended(3, 40), ..past() }), ..empty },
            "does not follow",
        ),
        (Manifest { tombstone_state: Some(past()), ..snapshot() }, "its snapshot already holds"),
    ] {
        let found = bad.contradiction().unwrap_or_default();
        assert!(found.contains(expected), "{found:?} instead of {expected:?} of {bad:?}");
        assert!(corrupt(&bad.encode()).contains(expected), "{bad:?}");
    }
}

/// The decoder rejects contradictory, unknown, repeated or missing fields, even with a correct checksum.
#[test]
fn manifest_decode_rejects_contradictory_fields() {
    let text = String::from_utf8(snapshot().encode().to_vec()).unwrap();
    assert_eq!(Manifest::decode(&subject(), NUMBER, &resealed(&text)).unwrap(), snapshot());
    for (from, to) in [
        ("\"term\":3", "\"term\":0"),
        ("\"term_base\":17", "\"term_base\":42"),
        ("\"base_rev\":41", "\"base_rev\":40"),
        ("\"next_seq\":9007199254740991", "\"next_seq\":0"),
        ("\"deltas\":[]", "\"deltas\":[{}]"),
        ("000000000040-41-", "000000000043-41-"),
        ("\"snapshot\":{", "\"snapshot\":null,\"x\":{"),
        ("\"term_base\":17", "\"term_base\":-1"),
        ("\"tombstone\":false", "\"tombstone\":true"),
        ("\"released\":false", "\"released\":false,\"new\":1"),
        ("\"released\":false", "\"released\":false,\"released\":true"),
        ("\"released\":false,", ""),
    ] {
        assert!(text.contains(from), "{from}");
        corrupt(&resealed(&text.replacen(from, to, 1)));
    }
}

/// The consistency check and the decoder reject each inconsistent manifest and accept each valid one.
#[test]
fn manifest_inconsistency_fails_check_and_decode() {
    let term = |term, base| TermBase { term: Term::new(term), term_base: Rev::new(base) };
    for good in [new(), snapshot(), deltas(), tombstone(), tombstone_with_sessions(), after_tombstone()] {
        assert_eq!(good.contradiction(), None, "{good:?}");
    }
    let many: Vec<_> = (1..=9).map(|n| delta(n, 60)).collect();
    let terms: Vec<_> = (1..=65).map(|n| term(n, 0)).collect();
    let ended = Manifest { released: true, tombstone: true, ..deltas() };
    for (bad, expected) in [
        (Manifest { term: Term::default(), ..deltas() }, "counts from zero"),
        (Manifest { next_seq: Seq::default(), ..deltas() }, "counts from zero"),
        (Manifest { term: Term::new(u64::MAX), ..deltas() }, "nothing can follow"),
        (Manifest { next_seq: Seq::new(u64::MAX), ..deltas() }, "nothing can follow"),
        (Manifest { first_slot: Slot::new(u64::MAX), ..deltas() }, "nothing can follow"),
        (
            Manifest { base_rev: Rev::new(u64::MAX), deltas: vec![delta(42, u64::MAX)], ..deltas() },
            "nothing can follow",
        ),
        (Manifest { term_base: Rev::new(61), ..deltas() }, "has a term_base above its base_rev"),
        (Manifest { released: false, ..tombstone() }, "a tombstone that is not final"),
        (Manifest { terms: vec![term(1, 0)], ..tombstone() }, "a tombstone that is not final"),
        (Manifest { terms: Vec::new(), ..ended.clone() }, "a tombstone with data"),
        (Manifest { terms: Vec::new(), snapshot: None, ..ended }, "a tombstone with data"),
        (Manifest { base_rev: Rev::new(61), ..deltas() }, "do not lead up to its base"),
        (Manifest { deltas: vec![delta(41, 59)], ..deltas() }, "do not lead up to its base"),
        (Manifest { deltas: Vec::new(), ..deltas() }, "do not lead up to its base"),
        (Manifest { snapshot: None, ..snapshot() }, "a base without an object"),
        (Manifest { deltas: vec![delta(43, 60)], ..deltas() }, "not made for it"),
        // Two objects made for one manifest, one made before its predecessor, and one with a decreasing rev.
        (Manifest { deltas: vec![delta(41, 60), delta(41, 60)], ..deltas() }, "do not follow each other"),
        (Manifest { deltas: vec![delta(39, 60)], ..deltas() }, "do not follow each other"),
        (Manifest { deltas: vec![delta(41, 40), delta(42, 60)], ..deltas() }, "do not follow each other"),
        (Manifest { snapshot: None, deltas: many, ..deltas() }, "more deltas"),
        (Manifest { terms: vec![term(5, 17)], ..deltas() }, "do not precede its own"),
        (Manifest { terms: vec![term(4, 61)], ..deltas() }, "do not precede its own"),
        (Manifest { terms: vec![term(3, 17), term(3, 17)], ..deltas() }, "do not precede its own"),
        (Manifest { terms: vec![term(3, 17), term(4, 16)], ..deltas() }, "do not precede its own"),
        (Manifest { terms: vec![term(0, 0)], ..deltas() }, "do not precede its own"),
        (Manifest { terms, term: Term::new(66), ..deltas() }, "more terms than are remembered"),
    ] {
        let found = bad.contradiction().unwrap_or_default();
        assert!(found.contains(expected), "{found:?} instead of {expected:?} of {bad:?}");
        assert!(corrupt(&bad.encode()).contains(expected), "{bad:?}");
    }
}

/// The manifest with the last number that a name can hold does not decode; the one before does, and is the last.
#[test]
fn manifest_with_last_number_is_corrupt() {
    let numbered = |number| Manifest { number, ..new() };
    let number = ManifestNumber::LAST;
    assert_eq!(number.get(), 999_999_999_999);
    let error = Manifest::decode(&subject(), number, &numbered(number).encode()).unwrap_err();
    assert!(error.to_string().contains("nothing can follow"), "{error}");
    let before = numbered(ManifestNumber::new(number.get() - 1));
    assert_eq!(Manifest::decode(&subject(), before.number, &before.encode()).unwrap(), before);
    assert!(before.is_last());
    assert!(!new().is_last());
}

proptest! {
    /// An encoded manifest decodes to the same value.
    #[test]
    fn manifest_encoding_round_trips(
        term in 1_u64..u64::MAX, base in 0_u64..u64::MAX, up in 0_u64..u64::MAX, next in 1_u64..u64::MAX,
        released: bool,
    ) {
        let manifest = Manifest {
            term: Term::new(term),
            term_base: Rev::new(base.min(up)),
            base_rev: Rev::new(base.max(up)),
            next_seq: Seq::new(next),
            deltas: vec![delta(1, base.max(up))],
            released,
            ..new()
        };
        prop_assert_eq!(Manifest::decode(&subject(), manifest.number, &manifest.encode()).unwrap(), manifest);
    }

    /// A manifest with tombstone state decodes to the same value, and too many sessions are corrupt.
    #[test]
    fn manifest_tombstone_state_round_trips(
        entries in proptest::collection::btree_map(any::<u128>(), (any::<u64>(), any::<u64>()), 0..300),
        own in any::<Option<proptest::sample::Index>>(),
        (term, rev, up) in (1_u64..u64::MAX - 1, any::<u64>(), any::<u64>()),
        accept_time: u64,
        created_again: bool,
    ) {
        let sessions: Vec<_> =
            entries.into_iter().map(|(id, (counter, at))| session(id, counter, at.min(accept_time))).collect();
        let request = own.filter(|_| !sessions.is_empty()).map(|own| {
            let TombstoneSession { session, counter, .. } = *own.get(&sessions);
            RequestId { session, counter }
        });
        let too_many = sessions.len() > TOMBSTONE_SESSIONS;
        let position = Position { term: Term::new(term), rev: Rev::new(rev.min(up)) };
        let ended = TombstoneState { position, accept_time: Timestamp::from_micros(accept_time), request, sessions };
        let tombstone = Manifest {
            term: Term::new(term),
            term_base: Rev::new(0),
            base_rev: position.rev,
            tombstone_state: Some(ended),
            ..tombstone()
        };
        let manifest = if created_again {
            Manifest {
                term: Term::new(term + 1),
                term_base: position.rev,
                base_rev: Rev::new(rev.max(up)),
                deltas: vec![delta(42, rev.max(up))],
                tombstone: false,
                ..tombstone
            }
        } else {
            tombstone
        };
        let read = Manifest::decode(&subject(), manifest.number, &manifest.encode());
        if too_many {
            let is_refused = matches!(read, Err(ManifestError::Corrupt { .. }));
            prop_assert!(is_refused);
        } else {
            prop_assert_eq!(read.unwrap(), manifest);
        }
    }

    /// The decoder rejects random bytes as corrupt and never panics.
    #[test]
    fn manifest_decode_rejects_random_bytes(bytes: Vec<u8>) {
        corrupt(&bytes);
    }
}
