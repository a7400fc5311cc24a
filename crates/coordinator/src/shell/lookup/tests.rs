use std::sync::Arc;

use dormouse_protocol::{ProtocolVersion, ServerName, Subject};
use dormouse_runtime::{Env, SeededEntropy, VirtualClock};
use proptest::prelude::*;

use super::*;
use crate::store::Change;
use crate::store::memory::{MemoryDisk, MemoryStore};

fn server(name: &str) -> ServerName {
    ServerName::new(name).unwrap()
}

fn reader(assigned: &[(String, &str)]) -> Reader {
    let store = MemoryStore::open(&MemoryDisk::new());
    let assign = |(subject, name): &(String, &str)| Change::Assign {
        subject: Subject::new(subject).unwrap(),
        previous: None,
        server: server(name),
    };
    store.write(&assigned.iter().map(assign).collect::<Vec<_>>()).unwrap();
    let clock = VirtualClock::starting_at(std::time::Duration::ZERO);
    let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(1)));
    Reader { env, store: Arc::new(store) }
}

/// Every page, from the first to the last; and how many there were.
async fn all(reader: &Reader, request: SubjectsRequest, most_bytes: usize) -> (Vec<String>, usize) {
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

#[tokio::test(start_paused = true)]
async fn a_page_is_short_work_however_few_of_the_subjects_are_meant() {
    let assigned: Vec<_> =
        (0..25_000).map(|n| (format!("a.{n:05}.{}", if n == 24_999 { "x" } else { "y" }), "one")).collect();
    let reader = reader(&assigned);
    let (found, pages) = all(&reader, request("a.*.x", 100), 1 << 20).await;
    assert_eq!((found, pages), (vec!["a.24999.x".to_owned()], 3));
    let first = reader.page(request("a.*.x", 100), 1 << 20).await.unwrap();
    assert!(first.subjects.is_empty() && first.cursor.is_some());
    // What the pattern rules out by its beginning is not even looked at.
    assert_eq!(all(&reader, request("b.>", 100), 1 << 20).await, (vec![], 1));
    assert_eq!(all(&reader, request("a.24999.*", 100), 1 << 20).await.1, 1);
    assert_eq!(all(&reader, request("a.24999.x", 100), 1 << 20).await.0.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_page_fits_into_an_answer() {
    let assigned: Vec<_> = (0..100).map(|n| (format!("a.{n:03}"), "one")).collect();
    let reader = reader(&assigned);
    let (found, pages) = all(&reader, request(">", 1_000), 400).await;
    assert!(found.len() == 100 && (9..=14).contains(&pages), "{} in {pages}", found.len());
    assert_eq!(all(&reader, request(">", 1_000), 1).await.1, 100, "one fits always");
    assert_eq!(all(&reader, request(">", 0), 1_000).await.1, 100, "and less than one is no page");
}

#[tokio::test(start_paused = true)]
async fn candidates_are_looked_for_where_the_search_before_ended() {
    let assigned: Vec<_> =
        (0..6_000).map(|n| (format!("a.{n:05}"), if n % 2 == 0 { "one" } else { "two" })).collect();
    let reader = reader(&assigned);
    let wanted = |number| BTreeMap::from([(server("one"), number)]);
    let (first, after) = reader.subjects_of(wanted(700), None).await.unwrap();
    assert_eq!(first.len(), 700);
    let (second, after) = reader.subjects_of(wanted(700), after).await.unwrap();
    assert!(second.iter().all(|(subject, name)| name.as_str() == "one" && *subject > first[699].0));
    // Round and round, each subject once.
    let (all, _) = reader.subjects_of(wanted(1_000_000), after).await.unwrap();
    assert_eq!(all.len(), 3_000);
    assert_eq!(reader.subjects_of(BTreeMap::new(), None).await.unwrap().0, []);
}

proptest! {
    #[test]
    fn pages_together_are_what_matches(
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
