use super::entries::EXAMINED;
use super::*;
use crate::api::SubjectRequest;

fn submission() -> Submission {
    Submission {
        tenant: TenantId::SHARED,
        deadline: Submission::NO_DEADLINE,
        received: Duration::ZERO,
        request: SubjectRequest::Info,
        max_reply_bytes: 0,
        respond: Box::new(drop),
    }
}

fn submit_to(table: &SubjectTable, subject: &Subject, one: Submission, now: Duration) -> SubmitOutcome {
    table.submit(subject, one, now, &TenantUsage::default())
}

fn name(name: &str) -> Subject {
    name.parse().unwrap()
}

fn start(table: &SubjectTable, subject: &str, at: u64) -> SubjectTaskArgs {
    match submit_to(table, &name(subject), submission(), Duration::from_secs(at)) {
        SubmitOutcome::Start(args) => args,
        SubmitOutcome::Queued => panic!("{subject} already has a task"),
        SubmitOutcome::Expired(_) => panic!("{subject} is dormant, and its request expired"),
        SubmitOutcome::Refused(_, reply) => panic!("{reply}"),
    }
}

fn is_asked(table: &SubjectTable, subject: &str) -> bool {
    table.lock().entries[&name(subject)].asked_to_close
}

/// A request or a reopen clears the close request of a subject, and the table can ask it again later.
#[test]
fn subject_used_or_reopened_can_be_asked_to_close_again() {
    let table = SubjectTable::new(2, None);
    let mut tasks: Vec<_> =
        ["a", "b", "c"].into_iter().zip(0..).map(|(subject, at)| start(&table, subject, at)).collect();
    assert!(is_asked(&table, "a") && !is_asked(&table, "b"));
    assert!(matches!(
        submit_to(&table, &name("a"), submission(), Duration::from_secs(9)),
        SubmitOutcome::Queued
    ));
    assert!(!is_asked(&table, "a"));
    // Now the other subjects are idle longer, and the used one stays open.
    tasks.push(start(&table, "d", 10));
    assert!(is_asked(&table, "b") && is_asked(&table, "c") && !is_asked(&table, "a"));
    // A request is queued, so the subject opens again.
    assert!(!table.remove_if_queue_empty(&name("b"), &tasks[1].queue));
    assert!(!is_asked(&table, "b"));
    // At the limit too, a further subject is asked.
    assert!(matches!(
        submit_to(&table, &name("e"), submission(), Duration::from_secs(11)),
        SubmitOutcome::Refused(..)
    ));
    assert!(is_asked(&table, "b"));
}

/// A full subject table rejects an open with a retry delay until another subject has closed.
#[test]
fn subject_table_full_rejects_opens_until_one_closes() {
    let table = SubjectTable::new(2, Some(3));
    let tasks: Vec<_> = ["a", "b", "c"].map(|subject| start(&table, subject, 0)).into();
    let refused = submit_to(&table, &name("d"), submission(), Duration::from_secs(1));
    assert!(matches!(refused, SubmitOutcome::Refused(_, reply) if reply.retry_after_ms.is_some()));
    assert!(is_asked(&table, "a"));
    let SubjectTaskArgs { mut queue, .. } = tasks.into_iter().next().unwrap();
    queue.try_recv().unwrap();
    assert!(table.remove_if_queue_empty(&name("a"), &queue));
    start(&table, "d", 2);
}

/// Each rejected open asks one more subject to close, and a subject with a panicked task can open again.
#[test]
fn subject_table_rejected_open_asks_one_more_to_close() {
    let table = SubjectTable::new(2, Some(3));
    let mut tasks: Vec<_> = ["a", "b", "c"].map(|subject| start(&table, subject, 0)).into();
    let asked = || ["a", "b", "c"].map(|subject| is_asked(&table, subject));
    let is_refused = || {
        let offered = submit_to(&table, &name("d"), submission(), Duration::ZERO);
        matches!(offered, SubmitOutcome::Refused(..))
    };
    assert!(is_refused());
    assert_eq!(asked(), [true, true, false]);
    assert!(is_refused());
    assert_eq!(asked(), [true, true, true]);
    drop(tasks.remove(0));
    let _again = start(&table, "a", 1);
    assert_eq!(asked(), [false, true, true]);
    // A panicked task is not asked; another subject is.
    tasks.remove(0);
    assert!(is_refused());
    assert_eq!(asked(), [true, true, true]);
}

fn submit_of(table: &SubjectTable, tenant: u32, subject: &str) -> SubmitOutcome {
    let submission = Submission { tenant: TenantId::new(tenant), ..submission() };
    submit_to(table, &name(subject), submission, Duration::from_secs(1))
}

/// The last eighth of the limit stays free for tenants below their share, and a tenant above it makes room among its
/// own subjects.
#[test]
fn subject_table_keeps_room_for_other_tenants() {
    let table = SubjectTable::new(8, Some(16));
    let polite = start(&table, "polite", 0);
    let greedy: Vec<_> = (0..20).map(|number| submit_of(&table, 1, &format!("greedy{number}"))).collect();
    let opened = greedy.iter().filter(|one| matches!(one, SubmitOutcome::Start(_))).count();
    assert_eq!(opened, 13, "with the other one, 14 of 16");
    assert!(
        matches!(greedy.last(), Some(SubmitOutcome::Refused(_, reply)) if reply.retry_after_ms.is_some())
    );
    assert!(!is_asked(&table, "polite"), "it is idle longest, but the room is needed by another tenant");
    let more = (2..10).map(|tenant| submit_of(&table, tenant, &format!("other{tenant}")));
    assert_eq!(more.filter(|one| matches!(one, SubmitOutcome::Start(_))).count(), 2);
    assert_eq!(table.open_by_tenant()[&TenantId::new(1)], 13);
    let SubjectTaskArgs { mut queue, .. } = polite;
    queue.try_recv().unwrap();
    assert!(table.remove_if_queue_empty(&name("polite"), &queue));
    assert!(!table.open_by_tenant().contains_key(&TenantId::SHARED));
}

/// A refused open examines a bounded number of subjects, and later refusals continue where it stopped.
#[test]
fn subject_table_refusal_examines_bounded_number() {
    const OPEN: usize = 1_750;
    // The tenant may open no further subject.
    let table = SubjectTable::new(OPEN, Some(2_000));
    let name_of = |number: usize| format!("s{number:04}");
    let _tasks: Vec<_> = (0..OPEN).map(|number| start(&table, &name_of(number), 0)).collect();
    let use_at = |number, at| {
        let used = submit_to(&table, &name(&name_of(number)), submission(), Duration::from_secs(at));
        assert!(matches!(used, SubmitOutcome::Queued));
    };
    (0..OPEN).rev().for_each(|number| use_at(number, 5));
    use_at(0, 6);
    let refuse = || {
        let offered = submit_to(&table, &name("more"), submission(), Duration::from_secs(7));
        assert!(matches!(offered, SubmitOutcome::Refused(..)));
        (0..OPEN).filter(|number| is_asked(&table, &name_of(*number))).count()
    };
    // Each subject was used since it has its position, so it is examined once more.
    for _ in 0..OPEN / EXAMINED {
        assert_eq!(refuse(), 0);
    }
    assert!(refuse() > 0);
    assert!(is_asked(&table, "s0001") && !is_asked(&table, "s0000"), "the other is idle longer");
}

/// The table lists the busiest subjects first, with their file sizes, up to the requested number.
#[test]
fn subject_table_lists_busiest_subjects_first() {
    let table = SubjectTable::new(10, None);
    let tasks: Vec<_> = ["a", "b", "c", "d"].map(|subject| start(&table, subject, 0)).into();
    for (subject, requests) in [("b", 30), ("d", 60), ("a", 2)] {
        for _ in 0..requests {
            let offered = submit_to(&table, &name(subject), submission(), Duration::ZERO);
            assert!(matches!(offered, SubmitOutcome::Queued));
        }
    }
    tasks[3].file_guard.set_bytes(4_096);
    let busiest = table.busiest(3, Duration::ZERO);
    let names: Vec<_> = busiest.iter().map(|busy| busy.subject.as_str()).collect();
    assert_eq!((names, busiest[0].bytes), (vec!["d", "b", "a"], 4_096));
    assert!(table.busiest(0, Duration::ZERO).is_empty());
}

/// After a panic, no new task of the subject starts while the file is in use.
#[test]
fn subject_task_starts_after_panicked_task_frees_file() {
    let table = SubjectTable::new(2, None);
    let SubjectTaskArgs { queue, file_guard: hold, .. } = start(&table, "a", 0);
    let publishing = Arc::clone(&hold);
    drop((queue, hold));
    let refused = submit_to(&table, &name("a"), submission(), Duration::ZERO);
    assert!(matches!(refused, SubmitOutcome::Refused(_, reply) if reply.retry_after_ms.is_some()));
    drop(publishing);
    start(&table, "a", 0);
}
