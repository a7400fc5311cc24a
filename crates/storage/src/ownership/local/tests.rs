use super::super::testing::*;
use super::*;

#[test]
fn a_file_is_reused_between_the_base_and_what_is_vouched_for() {
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

#[test]
fn what_the_next_term_did_not_inherit_is_lost() {
    let newest = manifest(other());
    let terms = [term(1, 0), term(2, 33), term(3, 38)];
    let lost = |number: u64, terms: &[TermBase]| lost_above(Term::new(number), &newest, terms).get();
    assert_eq!(lost(1, &terms), 33);
    assert_eq!(lost(2, &terms), 38);
    // Also from the manifest alone.
    assert_eq!(lost(2, &[]), 38);
    // The end of its own term: what it left is its base.
    assert_eq!(lost(3, &terms), 40);
    // Forgotten, destroyed, or of a term that never was: nothing tells that it is anywhere.
    assert_eq!(lost(1, &[]), 0);
    assert_eq!(lost(7, &terms), 0);
}
