use super::super::testing::*;
use super::*;

/// A local file is reused only if its log and term match the manifest and its rev lies between the base and the known
/// rev.
#[test]
fn local_file_is_reused_only_between_base_and_known_rev() {
    let file = |applied: u64| LocalFile { log: mine(), term: Term::new(3), applied_rev: Rev::new(applied) };
    let reuse = |file: &LocalFile, manifest: &Manifest| may_reuse(file, manifest, Rev::new(45));
    let owned = manifest(mine());
    for (applied, expected) in [(39, false), (40, true), (45, true), (46, false)] {
        assert_eq!(reuse(&file(applied), &owned), expected, "{applied}");
    }
    assert!(reuse(&file(40), &released(mine())));
    assert!(!reuse(&file(40), &tombstone(mine())));
    assert!(!reuse(&file(40), &manifest(other())));
    assert!(!reuse(&LocalFile { term: Term::new(2), ..file(40) }, &owned));
    assert!(!reuse(&LocalFile { log: other(), ..file(40) }, &owned));
}

/// Writes of a term above the next term's base are diverged, and so are all writes of an unknown term.
#[test]
fn diverged_writes_begin_above_base_of_next_term() {
    let newest = manifest(other());
    let terms = [term(1, 0), term(2, 33), term(3, 38)];
    let lost = |number: u64, terms: &[TermBase]| diverged_above(Term::new(number), &newest, terms).get();
    assert_eq!(lost(1, &terms), 33);
    assert_eq!(lost(2, &terms), 38);
    // Also from the manifest alone.
    assert_eq!(lost(2, &[]), 38);
    // The end of its own term: the base is its last state.
    assert_eq!(lost(3, &terms), 40);
    // A dropped term, a destroyed subject, or a term that never existed: no state is known to hold the writes.
    assert_eq!(lost(1, &[]), 0);
    assert_eq!(lost(7, &terms), 0);
}
