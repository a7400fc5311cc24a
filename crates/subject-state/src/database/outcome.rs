//! The stored form of a recorded reply. The reply to a set of ten thousand messages has ten thousand results,
//! and a session has a thousand replies: consecutive results are stored as one run.

use dormouse_format::entry::WriteOutcome;
use dormouse_protocol::data::{
    ConfigureReply, DeleteAllReply, DeleteReply, DestroyReply, SetOutcome, SetReply, SetResult,
};
use dormouse_protocol::limits::MAX_ITEMS_PER_REQUEST;
use dormouse_protocol::{ErrorReply, Rev, Seq, Timestamp};
use serde::{Deserialize, Serialize};

/// A [`WriteOutcome`] in its stored form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stored {
    Set(Vec<Run>),
    Delete(DeleteReply),
    DeleteAll(DeleteAllReply),
    Configure(ConfigureReply),
    Destroy(DestroyReply),
    Refused(ErrorReply),
}

/// Consecutive results.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Run {
    /// Executed sets, each at the seq after the previous one.
    Ok {
        first: SetResult,
        count: u64,
        /// The difference in rev between consecutive results: 0 in an atomic batch.
        rev_step: u64,
        /// Their timestamps in microseconds, except the first; empty if all are equal to the first.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        timestamps: Vec<u64>,
    },
    /// Sets that were rejected with the same error.
    Error { error: ErrorReply, count: u64 },
}

/// Encodes a reply.
pub(super) fn encode(outcome: &WriteOutcome) -> Result<Vec<u8>, String> {
    let stored = match outcome {
        WriteOutcome::Set(reply) => Stored::Set(runs(&reply.results)),
        WriteOutcome::Delete(reply) => Stored::Delete(reply.clone()),
        WriteOutcome::DeleteAll(reply) => Stored::DeleteAll(*reply),
        WriteOutcome::Configure(reply) => Stored::Configure(*reply),
        WriteOutcome::Destroy(reply) => Stored::Destroy(*reply),
        WriteOutcome::Refused(error) => Stored::Refused(error.clone()),
    };
    dormouse_protocol::encode(&stored).map(Vec::from).map_err(|error| error.to_string())
}

/// Decodes the bytes of [`encode`].
pub(super) fn decode(bytes: &[u8]) -> Result<WriteOutcome, String> {
    Ok(match dormouse_protocol::decode(bytes).map_err(|error| error.to_string())? {
        Stored::Set(runs) => {
            let mut results = Vec::new();
            for run in runs {
                run.unfold(&mut results)?;
            }
            WriteOutcome::Set(SetReply { results })
        }
        Stored::Delete(reply) => WriteOutcome::Delete(reply),
        Stored::DeleteAll(reply) => WriteOutcome::DeleteAll(reply),
        Stored::Configure(reply) => WriteOutcome::Configure(reply),
        Stored::Destroy(reply) => WriteOutcome::Destroy(reply),
        Stored::Refused(error) => WriteOutcome::Refused(error),
    })
}

fn runs(results: &[SetOutcome]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for result in results {
        if runs.last_mut().is_some_and(|run| run.take(result)) {
            continue;
        }
        runs.push(match result {
            SetOutcome::Ok(first) => Run::Ok { first: *first, count: 1, rev_step: 0, timestamps: Vec::new() },
            SetOutcome::Error(error) => Run::Error { error: error.clone(), count: 1 },
        });
    }
    runs
}

impl Run {
    /// Adds `result` to the run if it is consecutive; returns whether it was added.
    fn take(&mut self, result: &SetOutcome) -> bool {
        match (self, result) {
            (Self::Error { error, count }, SetOutcome::Error(next)) if error == next => {
                *count += 1;
                true
            }
            (Self::Ok { first, count, rev_step, timestamps }, SetOutcome::Ok(next)) => {
                let step = if *count == 1 { next.rev.get().wrapping_sub(first.rev.get()) } else { *rev_step };
                let timestamp = next.timestamp;
                let expected = nth(first, *count, step, timestamp);
                if step > 1 || expected != Some(*next) {
                    return false;
                }
                if timestamp != first.timestamp || !timestamps.is_empty() {
                    timestamps.resize(*count as usize - 1, first.timestamp.as_micros());
                    timestamps.push(timestamp.as_micros());
                }
                (*count, *rev_step) = (*count + 1, step);
                true
            }
            _ => false,
        }
    }

    fn unfold(self, results: &mut Vec<SetOutcome>) -> Result<(), String> {
        match self {
            Self::Error { error, count } => {
                results.extend(std::iter::repeat_n(SetOutcome::Error(error), checked(count)?));
            }
            Self::Ok { first, count, rev_step, timestamps } => {
                for index in 0..checked(count)? {
                    let timestamp = match index.checked_sub(1).and_then(|index| timestamps.get(index)) {
                        Some(&micros) => Timestamp::from_micros(micros),
                        None => first.timestamp,
                    };
                    let result = nth(&first, index as u64, rev_step, timestamp);
                    results.push(SetOutcome::Ok(result.ok_or("a run exceeds the highest number")?));
                }
            }
        }
        Ok(())
    }
}

/// The result at `index` positions after `first`.
fn nth(first: &SetResult, index: u64, rev_step: u64, timestamp: Timestamp) -> Option<SetResult> {
    let seq = Seq::new(first.seq.get().checked_add(index)?);
    let rev = Rev::new(first.rev.get().checked_add(rev_step.checked_mul(index)?)?);
    Some(SetResult { seq, rev, timestamp, ..*first })
}

/// No request has more items: a damaged file must not exhaust the memory.
fn checked(count: u64) -> Result<usize, String> {
    usize::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_ITEMS_PER_REQUEST)
        .ok_or_else(|| format!("a run of {count} results"))
}

#[cfg(test)]
mod tests {
    use dormouse_protocol::Term;
    use proptest::prelude::*;

    use super::*;

    fn result() -> impl Strategy<Value = SetOutcome> {
        let ok = (1..4_u64, 1..4_u64, 0..3_u64, proptest::bool::weighted(0.1)).prop_map(
            |(seq, rev, at, duplicate)| {
                let timestamp = Timestamp::from_micros(at);
                SetOutcome::Ok(SetResult {
                    seq: Seq::new(seq),
                    term: Term::new(1),
                    rev: Rev::new(rev),
                    timestamp,
                    duplicate,
                })
            },
        );
        prop_oneof![4 => ok, 1 => "[ab]".prop_map(|why| SetOutcome::Error(ErrorReply::bad_request(why)))]
    }

    /// Sequences of consecutive results, mixed with others.
    fn results() -> impl Strategy<Value = Vec<SetOutcome>> {
        let times = proptest::collection::vec(proptest::bool::weighted(0.2), 1..6);
        let sequence = (result(), 0..3_u64, times).prop_map(|(first, rev_step, times)| {
            (0_u64..)
                .zip(times)
                .map(|(index, later)| match &first {
                    SetOutcome::Ok(first) => {
                        let at = Timestamp::from_micros(first.timestamp.as_micros() + u64::from(later));
                        SetOutcome::Ok(nth(first, index, rev_step, at).unwrap())
                    }
                    SetOutcome::Error(error) => SetOutcome::Error(error.clone()),
                })
                .collect::<Vec<_>>()
        });
        proptest::collection::vec(sequence, 0..6).prop_map(|sequences| sequences.concat())
    }

    proptest! {
        /// Each stored set outcome decodes to the value that was encoded.
        #[test]
        fn dedup_outcome_encoding_round_trips(results in results()) {
            let outcome = WriteOutcome::Set(SetReply { results });
            prop_assert_eq!(decode(&encode(&outcome).unwrap()).unwrap(), outcome);
        }
    }

    /// The outcome of ten thousand sets takes fewer than 200 bytes, and a run with an endless count fails to decode.
    #[test]
    fn dedup_outcome_of_many_sets_is_stored_compactly() {
        let first = SetResult {
            seq: Seq::new(1 << 40),
            term: Term::new(7),
            rev: Rev::new(1 << 40),
            timestamp: Timestamp::from_micros(1 << 50),
            duplicate: false,
        };
        let results = |rev_step| -> Vec<_> {
            (0..10_000).map(|n| SetOutcome::Ok(nth(&first, n, rev_step, first.timestamp).unwrap())).collect()
        };
        for rev_step in [0, 1] {
            let outcome = WriteOutcome::Set(SetReply { results: results(rev_step) });
            assert!(encode(&outcome).unwrap().len() < 200);
        }
        let endless = Stored::Set(vec![Run::Error { error: ErrorReply::bad_request(""), count: u64::MAX }]);
        decode(&dormouse_protocol::encode(&endless).unwrap()).unwrap_err();
    }
}
