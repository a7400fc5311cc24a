use std::sync::Arc;

use dormouse_protocol::{ProtocolVersion, ServerName, Subject};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use proptest::prelude::*;

use super::*;
use crate::store::StoreChange;
use crate::store::memory::{MemoryDisk, MemoryStore};

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn reader(assigned: &[(String, &str)]) -> AssignmentReader {
    let store = MemoryStore::open(&MemoryDisk::new());
    let assign = |(subject, name): &(String, &str)| StoreChange::Assign {
        subject: Subject::new(subject).unwrap(),
        previous: None,
        server: server(name),
    };
    store.write(&assigned.iter().map(assign).collect::<Vec<_>>()).unwrap();
    let clock = VirtualClock::starting_at(std::time::Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
    AssignmentReader { env, store: Arc::new(store) }
}

/// The subjects of all pages, from the first to the last, and the number of pages.
async fn all(reader: &AssignmentReader, request: SubjectsRequest, most_bytes: usize) -> (Vec<String>, usize) {
    let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
    loop {
        let page = reader.page(SubjectsRequest { after, ..request.clone() }, most_bytes).await.unwrap();
        found.extend(page.subjects.iter().map(|row| row.subject.to_string()));
        pages += 1;
        after = page.cursor;
        if after.is_none() {
            return (found, pages);
        }
    }
}

fn request(pattern: &str, limit: u64) -> SubjectsRequest {
    SubjectsRequest { v: ProtocolVersion::CURRENT, pattern: pattern.to_owned(), limit, ..Default::default() }
}

/// A page scans a bounded number of rows even if few match, and only rows under the fixed pattern prefix.
#[tokio::test(start_paused = true)]
async fn subject_page_scans_bounded_number_of_rows() {
    let assigned: Vec<_> =
        (0..25_000).map(|n| (format!("a.{n:05}.{}", if n == 24_999 { "x" } else { "y" }), "one")).collect();
    let reader = reader(&assigned);
    let (found, pages) = all(&reader, request("a.*.x", 100), 1 << 20).await;
    assert_eq!((found, pages), (vec!["a.24999.x".to_owned()], 3));
    let first = reader.page(request("a.*.x", 100), 1 << 20).await.unwrap();
    assert!(first.subjects.is_empty() && first.cursor.is_some());
    // Subjects outside the literal prefix of the pattern are not scanned.
    assert_eq!(all(&reader, request("b.>", 100), 1 << 20).await, (vec![], 1));
    assert_eq!(all(&reader, request("a.24999.*", 100), 1 << 20).await.1, 1);
    assert_eq!(all(&reader, request("a.24999.x", 100), 1 << 20).await.0.len(), 1);
}

/// Each page fits the reply size limit and holds at least one subject.
#[tokio::test(start_paused = true)]
async fn subject_page_fits_reply_size_limit() {
    let assigned: Vec<_> = (0..100).map(|n| (format!("a.{n:03}"), "one")).collect();
    let reader = reader(&assigned);
    let (found, pages) = all(&reader, request(">", 1_000), 400).await;
    assert!(found.len() == 100 && (9..=14).contains(&pages), "{} in {pages}", found.len());
    assert_eq!(all(&reader, request(">", 1_000), 1).await.1, 100, "a page holds at least one");
    assert_eq!(all(&reader, request(">", 0), 1_000).await.1, 100, "a limit of 0 counts as 1");
}

/// The candidate scan resumes after its last position, wraps around, and returns each subject once.
#[tokio::test(start_paused = true)]
async fn rebalance_candidate_scan_resumes_after_last_position() {
    let assigned: Vec<_> =
        (0..6_000).map(|n| (format!("a.{n:05}"), if n % 2 == 0 { "one" } else { "two" })).collect();
    let reader = reader(&assigned);
    let wanted = |number| BTreeMap::from([(server("one"), number)]);
    let (first, after) = reader.subjects_of(wanted(700), None).await.unwrap();
    assert_eq!(first.len(), 700);
    let (second, after) = reader.subjects_of(wanted(700), after).await.unwrap();
    assert!(second.iter().all(|(subject, name)| name.as_str() == "one" && *subject > first[699].0));
    // After a full wrap, each subject occurs once.
    let (all, _) = reader.subjects_of(wanted(1_000_000), after).await.unwrap();
    assert_eq!(all.len(), 3_000);
    assert_eq!(reader.subjects_of(BTreeMap::new(), None).await.unwrap().0, []);
}

proptest! {
    /// All pages together hold exactly the subjects that match the pattern and the server.
    #[test]
    fn subject_pages_together_hold_all_matches(
        names in proptest::collection::btree_set("[ab]{1,2}(\\.[ab]{1,2}){0,2}", 0..40),
        pattern in proptest::sample::select(vec![">", "a.>", "*.a", "a", "a.*.b", "*", "ab.>", "*.*.>", "a.b"]),
        of_two: bool,
        limit in 1..7_u64,
    ) {
        let named: Vec<_> = names.iter().map(|name| (name.clone(), if name.len() % 2 == 0 { "two" } else { "one" })).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let found = runtime.block_on(async {
            let server = of_two.then(|| server("two"));
            all(&reader(&named), SubjectsRequest { server, ..request(pattern, limit) }, 1 << 20).await.0
        });
        let matches = |name: &str| RoutePattern::new(pattern).matches(name);
        let expected: Vec<_> = named
            .iter()
            .filter(|(name, server)| matches(name) && (!of_two || *server == "two"))
            .map(|(name, _)| name.clone())
            .collect();
        prop_assert_eq!(found, expected);
    }
}
