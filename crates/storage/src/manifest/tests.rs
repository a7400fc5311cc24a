use dormouse_protocol::limits::REMEMBERED_SESSIONS;
use dormouse_protocol::{Position, RequestId, SessionId, Timestamp};
use proptest::prelude::*;
use ulid::Ulid;

use super::*;

/// Frozen: what any version ever wrote stays readable as it is. A change of these files is a new format.
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
        past: None,
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

/// The second delta holds answers only, so it leads to the rev that the first one leads to.
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

/// As a version wrote it that remembered nothing.
fn tombstone() -> Manifest {
    Manifest { snapshot: None, released: true, tombstone: true, ..snapshot() }
}

fn session(number: u128, counter: u64, at: u64) -> PastSession {
    let session = SessionId::new(Ulid::from(number));
    PastSession { session, counter, accept_time: Timestamp::from_micros(at) }
}

fn past() -> PastLife {
    let sessions = vec![session(1, 9, 1_700_000_000_000_002), session(2, u64::MAX, 1_700_000_000_000_001)];
    PastLife {
        position: Position { term: Term::new(3), rev: Rev::new(41) },
        accept_time: Timestamp::from_micros(1_700_000_000_000_002),
        request: Some(RequestId { session: sessions[0].session, counter: 9 }),
        sessions,
    }
}

fn tombstone_that_remembers() -> Manifest {
    Manifest { past: Some(past()), ..tombstone() }
}

/// Begun again, written, claimed by another, and nobody has made a snapshot yet.
fn after_tombstone() -> Manifest {
    Manifest {
        snapshot: None,
        deltas: vec![delta(42, 60)],
        terms: vec![TermBase { term: Term::new(4), term_base: Rev::new(41) }],
        released: false,
        past: Some(PastLife { request: None, ..past() }),
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

/// The text with a checksum that is right again after it was changed.
fn resealed(text: &str) -> Vec<u8> {
    let body = format!("{}}}", text.split_once(CHECKSUM_FIELD).unwrap().0);
    let checksum = Crc64::of(body.as_bytes());
    format!("{}{CHECKSUM_FIELD}{checksum}{CHECKSUM_END}", &body[..body.len() - 1]).into()
}

#[test]
fn the_bytes_are_frozen() {
    let manifests = [new(), snapshot(), deltas(), tombstone(), tombstone_that_remembers(), after_tombstone()];
    for ((name, golden), manifest) in GOLDEN.into_iter().zip(manifests) {
        let encoded = manifest.encode();
        assert_eq!(std::str::from_utf8(&encoded).unwrap(), std::str::from_utf8(golden).unwrap(), "{name}");
        assert_eq!(Manifest::decode(&subject(), manifest.number, golden).unwrap(), manifest, "{name}");
    }
}

#[test]
fn one_changed_missing_or_added_byte_is_noticed() {
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

#[test]
fn what_is_no_manifest_is_refused() {
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

#[test]
fn another_s_manifest_is_refused() {
    let elsewhere = Manifest { subject: Subject::new("app.orders").unwrap(), ..snapshot() };
    assert!(corrupt(&elsewhere.encode()).contains("app.orders"));
    let renumbered = Manifest { number: ManifestNumber::new(43), ..snapshot() };
    assert!(corrupt(&renumbered.encode()).contains("manifest 43"));
}

#[test]
fn a_newer_format_is_not_guessed_at() {
    let text = String::from_utf8(snapshot().encode().to_vec()).unwrap();
    let newer = text.replacen("\"format\":1", "\"format\":3", 1);
    // With or without a checksum that we understand, and whatever else it holds.
    for bytes in [newer.clone().into_bytes(), resealed(&newer), b"{\"what\":[],\"format\":3}".to_vec()] {
        match Manifest::decode(&subject(), NUMBER, &bytes) {
            Err(ManifestError::UnsupportedVersion { format: 3, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(corrupt(&resealed(&text.replacen("\"format\":1", "\"format\":0", 1))).contains("never existed"));
}

#[test]
fn each_format_has_its_own_fields() {
    // A reader of the first format refuses the second by its number and never leaves out what is remembered.
    let remembers = String::from_utf8(tombstone_that_remembers().encode().to_vec()).unwrap();
    let without = String::from_utf8(tombstone().encode().to_vec()).unwrap();
    assert!(remembers.starts_with("{\"format\":2,") && without.starts_with("{\"format\":1,"));
    for (text, from, to) in [(remembers, 2, 1), (without, 1, 2)] {
        let other = text.replacen(&format!("\"format\":{from}"), &format!("\"format\":{to}"), 1);
        assert!(corrupt(&resealed(&other)).contains("of another format"));
    }
}

#[test]
fn what_is_remembered_belongs_together_and_to_its_manifest() {
    let with = |past| Manifest { past: Some(past), ..tombstone_that_remembers() };
    let many = (1..=257).map(|number| session(number, 1, 1)).collect();
    let ended = |term, rev| Position { term: Term::new(term), rev: Rev::new(rev) };
    let after = |position| Manifest { past: Some(PastLife { position, ..past() }), ..after_tombstone() };
    let empty = Manifest {
        deltas: Vec::new(),
        terms: Vec::new(),
        term_base: Rev::new(41),
        base_rev: Rev::new(41),
        ..after_tombstone()
    };
    assert_eq!(empty.contradiction(), None);
    for (bad, expected) in [
        (with(PastLife { sessions: many, ..past() }), "more sessions than it may"),
        (with(PastLife { sessions: vec![session(1, 9, 1), session(1, 9, 1)], ..past() }), "belong together"),
        (with(PastLife { sessions: vec![session(2, 9, 1), session(1, 9, 1)], ..past() }), "belong together"),
        (with(PastLife { sessions: vec![session(2, 9, 1)], ..past() }), "belong together"),
        (with(PastLife { accept_time: Timestamp::from_micros(1), ..past() }), "belong together"),
        (with(PastLife { position: ended(2, 41), ..past() }), "does not follow"),
        (with(PastLife { position: ended(3, 40), ..past() }), "does not follow"),
        (after(ended(4, 41)), "does not follow"),
        (after(ended(3, 42)), "does not follow"),
        (after(ended(0, 41)), "counts from zero"),
        (Manifest { past: Some(PastLife { position: ended(3, 40), ..past() }), ..empty }, "does not follow"),
        (Manifest { past: Some(past()), ..snapshot() }, "what its snapshot knows"),
    ] {
        let found = bad.contradiction().unwrap_or_default();
        assert!(found.contains(expected), "{found:?} instead of {expected:?} of {bad:?}");
        assert!(corrupt(&bad.encode()).contains(expected), "{bad:?}");
    }
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
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

#[test]
fn what_contradicts_itself_is_neither_written_nor_read() {
    let term = |term, base| TermBase { term: Term::new(term), term_base: Rev::new(base) };
    for good in [new(), snapshot(), deltas(), tombstone(), tombstone_that_remembers(), after_tombstone()] {
        assert_eq!(good.contradiction(), None, "{good:?}");
    }
    let many: Vec<_> = (1..=9).map(|n| delta(n, 60)).collect();
    let terms: Vec<_> = (1..=65).map(|n| term(n, 0)).collect();
    let ended = Manifest { released: true, tombstone: true, ..deltas() };
    for (bad, expected) in [
        (Manifest { term: Term::default(), ..deltas() }, "counts from zero"),
        (Manifest { next_seq: Seq::default(), ..deltas() }, "counts from zero"),
        (Manifest { term_base: Rev::new(61), ..deltas() }, "inherits more than it has"),
        (Manifest { released: false, ..tombstone() }, "a tombstone that goes on"),
        (Manifest { terms: vec![term(1, 0)], ..tombstone() }, "a tombstone that goes on"),
        (Manifest { terms: Vec::new(), ..ended.clone() }, "a tombstone with data"),
        (Manifest { terms: Vec::new(), snapshot: None, ..ended }, "a tombstone with data"),
        (Manifest { base_rev: Rev::new(61), ..deltas() }, "do not lead up to its base"),
        (Manifest { deltas: vec![delta(41, 59)], ..deltas() }, "do not lead up to its base"),
        (Manifest { deltas: Vec::new(), ..deltas() }, "do not lead up to its base"),
        (Manifest { snapshot: None, ..snapshot() }, "a base without an object"),
        (Manifest { deltas: vec![delta(43, 60)], ..deltas() }, "not made for it"),
        // Two objects made for one manifest, one made before what it follows, one that leads back.
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

proptest! {
    #[test]
    fn what_is_written_is_read(term in 1_u64.., base in 0_u64.., up: u64, next in 1_u64.., released: bool) {
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

    #[test]
    fn what_is_remembered_is_read(
        heard in proptest::collection::btree_map(any::<u128>(), (any::<u64>(), any::<u64>()), 0..300),
        own in any::<Option<proptest::sample::Index>>(),
        (term, rev, up) in (1_u64..u64::MAX - 1, any::<u64>(), any::<u64>()),
        accept_time: u64,
        begun_again: bool,
    ) {
        let sessions: Vec<_> =
            heard.into_iter().map(|(id, (counter, at))| session(id, counter, at.min(accept_time))).collect();
        let request = own.filter(|_| !sessions.is_empty()).map(|own| {
            let PastSession { session, counter, .. } = *own.get(&sessions);
            RequestId { session, counter }
        });
        let too_many = sessions.len() > REMEMBERED_SESSIONS;
        let position = Position { term: Term::new(term), rev: Rev::new(rev.min(up)) };
        let ended = PastLife { position, accept_time: Timestamp::from_micros(accept_time), request, sessions };
        let tombstone = Manifest {
            term: Term::new(term),
            term_base: Rev::new(0),
            base_rev: position.rev,
            past: Some(ended),
            ..tombstone()
        };
        let manifest = if begun_again {
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

    #[test]
    fn hostile_bytes_are_refused(bytes: Vec<u8>) {
        corrupt(&bytes);
    }
}
