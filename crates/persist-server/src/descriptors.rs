//! File descriptors: each open subject holds two, and they are what a machine runs out of first.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but subjects: connections, the bucket, the data directory, the runtime.
const BESIDES_SUBJECTS: u64 = 256;
/// A subject's file and its write-ahead log; and the engine turns requests away only at twice the number of subjects
/// that it likes to have open.
const PER_SUBJECT: u64 = 2 * 2;
/// How many subjects are held open where the operator does not say.
const USUAL_SUBJECTS: usize = 10_000;

/// How many subjects to hold open at most: `wanted` by the operator, or as many as are usual and possible. Raises the
/// process's limit of descriptors as far as that needs, and says where an operator's wish goes beyond what the system
/// allows.
pub(crate) fn subjects_to_hold(wanted: Option<usize>) -> usize {
    let needed = wanted.unwrap_or(USUAL_SUBJECTS) as u64 * PER_SUBJECT + BESIDES_SUBJECTS;
    let reached = raise_to(needed);
    match wanted {
        Some(subjects) => {
            if reached < needed {
                tracing::warn!(
                    descriptors = reached,
                    needed,
                    "too few file descriptors for --max-open {subjects}: raise the hard limit (ulimit -Hn, LimitNOFILE) \
                     or lower --max-open"
                );
            }
            subjects
        }
        None => possible(reached),
    }
}

/// How many subjects `descriptors` are enough for, up to what is usual.
fn possible(descriptors: u64) -> usize {
    let subjects = descriptors.saturating_sub(BESIDES_SUBJECTS) / PER_SUBJECT;
    usize::try_from(subjects).unwrap_or(USUAL_SUBJECTS).clamp(1, USUAL_SUBJECTS)
}

/// Raises the soft limit to `needed`, as far as the hard limit allows. What the limit is then.
fn raise_to(needed: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit at all.
    let Some(current) = limit.current else { return u64::MAX };
    let allowed = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if current >= allowed {
        return current;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    if raised.is_ok() { allowed } else { current }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_make_few_subjects_and_many_not_more_than_usual() {
        assert_eq!(possible(1_024), 192);
        assert_eq!(possible(10), 1);
        assert_eq!(possible(u64::MAX), USUAL_SUBJECTS);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        let reached = raise_to(u64::MAX - 1);
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        assert_eq!(after.current.unwrap_or(u64::MAX), reached);
        assert!(reached >= before.current.unwrap_or(u64::MAX));
    }
}
