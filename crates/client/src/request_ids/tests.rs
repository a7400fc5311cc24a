use dormouse_protocol::{SessionId, Subject};
use futures::FutureExt;

use super::RequestIds;
use super::queue::{COUNTERS_AHEAD, IdQueue, IdUse};

const NEVER: fn(&u64) -> bool = |_| false;

/// A queue whose changes from counter 0 on are unresolved, as many as may be.
fn full() -> IdQueue<u64> {
    let mut queue = IdQueue::new(0);
    for counter in 0..COUNTERS_AHEAD {
        assert_eq!(queue.draw(IdUse::Shared, counter), Ok(counter));
    }
    queue
}

fn subject(name: &str) -> Subject {
    Subject::new(name).unwrap()
}

fn ids() -> RequestIds {
    RequestIds::new(SessionId::new(ulid::Ulid::from(7_u128)))
}

/// No counter is used that is 512 or more above the oldest unresolved one, however many are resolved.
#[test]
fn request_id_stays_near_oldest_unresolved() {
    let mut queue = full();
    assert!(queue.draw(IdUse::Shared, 1_000).is_err());
    for counter in 1..COUNTERS_AHEAD {
        assert_eq!(queue.resolve(counter, NEVER), []);
    }
    assert_eq!(queue.resolve(0, NEVER), [(1_000, COUNTERS_AHEAD)]);
    assert_eq!(queue.draw(IdUse::Shared, 1), Ok(COUNTERS_AHEAD + 1));
}

/// Waiting changes get their ids in the order of their calls, and those without a caller are skipped.
#[test]
fn request_ids_are_granted_in_call_order() {
    let mut queue = full();
    let turns: Vec<u64> = (0..4).map(|ticket| queue.draw(IdUse::Shared, ticket).unwrap_err()).collect();
    assert_eq!(queue.leave(turns[1], NEVER), []);
    let granted: Vec<u64> = (0..COUNTERS_AHEAD)
        .flat_map(|counter| queue.resolve(counter, |ticket| *ticket == 2))
        .map(|(ticket, _)| ticket)
        .collect();
    assert_eq!(granted, [0, 3]);
}

/// A change that must be alone waits for all earlier ones, and later ones wait for it.
#[test]
fn request_id_of_destroy_is_alone() {
    let mut queue = IdQueue::new(0);
    assert_eq!(queue.draw(IdUse::Shared, 0), Ok(0));
    assert!(queue.draw(IdUse::Alone, 1).is_err());
    assert!(queue.draw(IdUse::Shared, 2).is_err());
    assert_eq!(queue.resolve(0, NEVER), [(1, 1)]);
    assert!(queue.draw(IdUse::Shared, 3).is_err());
    assert_eq!(queue.resolve(1, NEVER), [(2, 2), (3, 3)]);
}

/// If the first waiting change gives up, those behind it get their turn.
#[test]
fn request_id_waiter_that_leaves_frees_others() {
    let mut queue = IdQueue::new(0);
    assert_eq!(queue.draw(IdUse::Shared, 0), Ok(0));
    let turn = queue.draw(IdUse::Alone, 1).unwrap_err();
    assert!(queue.draw(IdUse::Shared, 2).is_err());
    assert_eq!(queue.leave(turn, NEVER), [(2, 1)]);
}

/// A subject without unresolved changes uses no memory, and its counters still grow.
#[tokio::test]
async fn request_ids_of_idle_subjects_use_no_memory() {
    let ids = ids();
    let first = ids.next(&subject("a"), IdUse::Shared).await;
    let second = ids.next(&subject("a"), IdUse::Shared).await;
    assert_eq!(ids.in_progress(), 1);
    let last = second.id().counter;
    drop((first, second));
    assert_eq!(ids.in_progress(), 0);
    assert!(ids.next(&subject("a"), IdUse::Shared).await.id().counter > last);
}

/// A change that waits for an id gets it when the oldest is resolved; a dropped one leaves no trace.
#[tokio::test]
async fn request_id_waits_until_oldest_is_resolved() {
    let ids = ids();
    let a = subject("a");
    let mut held = Vec::new();
    for _ in 0..COUNTERS_AHEAD {
        held.push(ids.next(&a, IdUse::Shared).await);
    }
    assert!(ids.next(&a, IdUse::Shared).now_or_never().is_none());
    let mut waiting = std::pin::pin!(ids.next(&a, IdUse::Shared));
    assert!(waiting.as_mut().now_or_never().is_none());
    assert!(ids.next(&subject("b"), IdUse::Shared).now_or_never().is_some());
    held.remove(0);
    assert_eq!(waiting.await.id().counter, COUNTERS_AHEAD);
    drop(held);
    assert_eq!(ids.in_progress(), 0);
}
