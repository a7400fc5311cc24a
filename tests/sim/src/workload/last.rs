//! The last client: what must be possible once everything is well again.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_client::{Level, SubjectConfig};
use dormouse_protocol::{Position, Subject};

use super::Worker;
use crate::trace::Trace;

/// Reads everything of each subject, and writes to it: what must be possible once everything is well again. Returns the
/// subjects of which it was not, and where the others are.
pub async fn last_look(
    worker: &mut Worker,
    trace: &Trace,
    within: Duration,
) -> (Vec<Subject>, BTreeMap<Subject, Position>) {
    let (mut silent, mut places) = (Vec::new(), BTreeMap::new());
    for at in 0..worker.plan.subjects.len() {
        let subject = worker.plan.subjects[at].clone();
        let looked = tokio::time::timeout(within, async {
            loop {
                let value = worker.value();
                // A subject that is full and refuses writes is well all the same.
                let unlimited = worker.kv(at).configure(SubjectConfig::default()).await;
                let written = worker.kv(at).with_level(Level::Bucket).put("last", value).await;
                if unlimited.is_ok() && written.is_ok() {
                    break;
                }
                trace.line(format_args!("not yet: {subject}"));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            while worker.stream(at).get_all(..).all().await.is_err()
                || worker.kv(at).keys("").all().await.is_err()
                || worker.kv(at).flush().await.is_err()
            {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            worker.positions.remove(&at);
            worker.changes(at).await;
            loop {
                if let Ok(info) = worker.kv(at).info().await {
                    return info.position;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        match looked.await {
            Ok(position) => drop(places.insert(subject, position)),
            Err(_) => silent.push(subject),
        }
    }
    (silent, places)
}
