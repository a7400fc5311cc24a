use proptest::prelude::*;

use dormouse_protocol::Rev;
use ulid::Ulid;

use super::*;

fn nonce(number: u128) -> Nonce {
    Nonce::new(Ulid::from(number))
}

fn keys(subject: &str) -> SubjectKeys {
    SubjectKeys::new(&Subject::new(subject).unwrap())
}

fn entries(names: &[String]) -> Vec<BucketEntry> {
    names.iter().map(|name| BucketEntry { key: BucketKey::new(name).unwrap(), size_bytes: 1 }).collect()
}

/// Folder, manifest and snapshot keys match the documented bucket layout.
#[test]
fn object_keys_match_documented_layout() {
    let keys = keys("app.Orders");
    let name = SnapshotName { made_for: ManifestNumber::new(42), rev: Rev::new(7), nonce: nonce(1) };
    assert_eq!(keys.folder().as_str(), "subjects/app.=4frders/");
    assert_eq!(
        keys.manifest(ManifestNumber::new(42)).as_str(),
        "subjects/app.=4frders/000000000042.manifest"
    );
    assert_eq!(
        keys.snapshot(&name).as_str(),
        "subjects/app.=4frders/000000000042-7-00000000000000000000000001.sqlite3"
    );
}

/// A listing of a subject folder separates sorted manifests and snapshots from all names in another form.
#[test]
fn key_listing_separates_known_and_unknown_names() {
    let keys = keys("a");
    let snapshot = SnapshotName { made_for: ManifestNumber::new(2), rev: Rev::new(0), nonce: nonce(9) };
    let known = [
        keys.manifest(ManifestNumber::new(10)).to_string(),
        keys.manifest(ManifestNumber::new(9)).to_string(),
        keys.snapshot(&snapshot).to_string(),
    ];
    let ulid = nonce(9).to_string();
    let unknown = [
        "000000000000.manifest".to_owned(),
        "7.manifest".to_owned(),
        "0000000000007.manifest".to_owned(),
        "00000000000x.manifest".to_owned(),
        "000000000007.manifest.bak".to_owned(),
        format!("000000000002-007-{ulid}.sqlite3"),
        format!("000000000002-1-{}.sqlite3", ulid.to_lowercase().replace('0', "o")),
        format!("000000000002-1-{ulid}.sqlite3.zst"),
        format!("000000000002-1-{ulid}.delta.zst"),
        format!("000000000002--1-{ulid}.sqlite3"),
        format!("blobs/03-{ulid}"),
        "blobs/000000000007.manifest".to_owned(),
    ]
    .map(|name| format!("subjects/a/{name}"));
    let all: Vec<String> = known.iter().chain(&unknown).cloned().collect();
    let folder = keys.read_listing(&entries(&all));
    assert_eq!(folder.manifests, [ManifestNumber::new(9), ManifestNumber::new(10)]);
    assert_eq!(folder.newest(), Some(ManifestNumber::new(10)));
    assert_eq!(folder.snapshots, [snapshot]);
    assert_eq!(folder.unknown.iter().map(ToString::to_string).collect::<Vec<_>>(), unknown);
}

/// A listing never counts an object of another subject as its own.
#[test]
fn key_listing_treats_other_subjects_as_unknown() {
    let foreign = ["subjects/ab/000000000001.manifest".to_owned(), "000000000001.manifest".to_owned()];
    let folder = keys("a").read_listing(&entries(&foreign));
    assert_eq!((folder.newest(), folder.unknown.len()), (None, 2));
}

proptest! {
    /// Manifest and snapshot names parse back to the values that wrote them.
    #[test]
    fn object_names_round_trip_through_text(n in 1_u64..1_000_000_000_000, rev: u64, random: u128) {
        let name = SnapshotName { made_for: ManifestNumber::new(n), rev: Rev::new(rev), nonce: nonce(random) };
        prop_assert_eq!(name.to_string().parse::<SnapshotName>().unwrap(), name);
        let keys = keys("a");
        let names = [keys.manifest(name.made_for).to_string(), keys.snapshot(&name).to_string()];
        let folder = keys.read_listing(&entries(&names));
        prop_assert_eq!((folder.manifests, folder.snapshots), (vec![name.made_for], vec![name]));
    }

    /// The parser accepts a text as a snapshot name only if the name formats to the same text.
    #[test]
    fn object_name_parser_accepts_only_canonical_text(text in "[0-9A-Za-z.-]{0,60}") {
        if let Ok(name) = text.parse::<SnapshotName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }

    /// Manifest keys sort in the order of their numbers.
    #[test]
    fn manifest_keys_sort_in_numeric_order(one in 1_u64..1_000_000_000_000, other in 1_u64..1_000_000_000_000) {
        let keys = keys("a");
        let key = |n| keys.manifest(ManifestNumber::new(n));
        prop_assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
    }
}
