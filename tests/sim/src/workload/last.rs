//! The last client: the calls that must succeed after the end of the faults.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_client::{Level, SubjectConfig};
use dormouse_protocol::{Position, Subject};

use super::Worker;
use crate::trace::Trace;

/// Reads everything of each subject, and writes to it. Returns the subjects for which this failed, and the positions of
/// the others.
pub async fn final_check(
    worker: &mut Worker,
    trace: &Trace,
    within: Duration,
) -> (Vec<Subject>, BTreeMap<Subject, Position>) {
    let (mut unserved, mut positions) = (Vec::new(), BTreeMap::new());
    for at in 0..worker.plan.subjects.len() {
        let subject = worker.plan.subjects[at].clone();
        let looked = tokio::time::timeout(within, async {
            loop {
                let value = worker.value();
                // A full subject that rejects writes is served all the same.
                let unlimited = worker.kv(at).configure(SubjectConfig::default()).await;
                let written = worker.kv(at).with_level(Level::Bucket).put("last", value).await;
                if unlimited.is_ok() && written.is_ok() {
                    break;
                }
                trace.line(format_args!("not served: {subject}"));
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
            Ok(position) => drop(positions.insert(subject, position)),
            Err(_) => unserved.push(subject),
        }
    }
    (unserved, positions)
}
