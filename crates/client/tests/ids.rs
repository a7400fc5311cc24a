//! The ids of changes: permanent, and never far apart.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_client::{ErrorReply, Position, Seq};
use dormouse_protocol::data::{DeleteReply, DeleteRequest, DestroyReply, SetRequest};
use dormouse_protocol::{Op, RequestId, decode};
use futures::future::join_all;

use support::{CannedReply, Fleet, at, done, reply};

fn deleted(seq: u64) -> CannedReply {
    reply(&DeleteReply { position: Position::default(), seqs: vec![Seq::new(seq)], duplicate: false })
}

/// While a server refuses a change, the ids of concurrent changes stay so near that the subject remembers it.
/// All changes succeed.
#[tokio::test(start_paused = true)]
async fn changes_beside_refused_one_stay_near_its_id() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let seen = Arc::new(Mutex::new((Vec::<RequestId>::new(), Vec::<u64>::new())));
    let log = Arc::clone(&seen);
    fleet
        .server("a", move |op, payload, _| {
            assert_eq!(op, Op::Delete);
            let request: DeleteRequest = decode(payload).unwrap();
            let (refused, others) = &mut *log.lock().unwrap();
            let id = request.request.unwrap();
            if request.keys[0] != "refused" {
                others.push(id.counter);
            } else if refused.len() < 10 {
                refused.push(id);
                return CannedReply::Error(ErrorReply::overloaded("busy", 100));
            } else {
                others.push(u64::MAX);
            }
            deleted(1)
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let deletes = (0..2_000).map(|n| kv.delete(if n == 0 { "refused".to_owned() } else { n.to_string() }));
    assert!(join_all(deletes).await.into_iter().all(|deleted| deleted.unwrap()));
    let (refused, others) = &*seen.lock().unwrap();
    assert!(refused.iter().all(|id| *id == refused[0]), "{refused:?}");
    let before = others.iter().take_while(|counter| **counter != u64::MAX);
    assert_eq!(before.max(), Some(&(refused[0].counter + 511)));
    assert_eq!(others.len(), 2_000);
}

/// A change that waits for an earlier one ends by its deadline and was not executed.
#[tokio::test(start_paused = true)]
async fn change_waits_for_id_until_its_deadline() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    fleet.server("a", |_, _, _| CannedReply::Silence).await;
    let kv = fleet.client().await.kv("app.x").unwrap().with_deadline(Duration::from_secs(60));
    let late = kv.clone().with_deadline(Duration::from_secs(3));
    let deletes = (0..512).map(|n| kv.delete(n.to_string()));
    let before = fleet.now();
    let error = tokio::select! {
        biased;
        _ = join_all(deletes) => panic!("no reply comes"),
        error = late.delete("late") => error.unwrap_err(),
    };
    assert!(matches!(error, dormouse_client::Error::Deadline { .. }), "{error:?}");
    assert_eq!(fleet.now() - before, Duration::from_secs(3));
}

/// A destroy is in flight alone: after it, the subject could not recognize an earlier change of the client.
#[tokio::test(start_paused = true)]
async fn destroy_is_not_in_flight_with_other_changes() {
    let fleet = Fleet::new();
    fleet.coordinator(|_| at("a")).await;
    let delay = Duration::from_millis(100);
    fleet
        .server("a", move |op, payload, _| {
            let answer = match op {
                Op::Set => done(payload),
                Op::Destroy => reply(&DestroyReply { position: Position::default(), duplicate: false }),
                _ => deleted(1),
            };
            CannedReply::Late(delay, Box::new(answer))
        })
        .await;
    let kv = fleet.client().await.kv("app.x").unwrap();
    let before = fleet.now();
    let (first, destroyed, last) = tokio::join!(kv.delete("a"), kv.destroy(), kv.put("b", "1"));
    assert!(first.is_ok() && destroyed.is_ok() && last.is_ok());
    assert_eq!(fleet.arrivals.list()[1..], ["a delete", "a destroy", "a set"]);
    assert!(fleet.now() - before >= 3 * delay);
    let set: SetRequest = decode(&fleet.arrivals.payloads("a set")[0]).unwrap();
    assert_eq!(set.request.unwrap().counter, 2);
}
