//! File descriptors: each open subject holds two, and they are what a machine runs out of first.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but subjects: connections, the bucket, the data directory, the runtime.
const BESIDES_SUBJECTS: u64 = 256;
/// A subject's file and its write-ahead log.
const PER_SUBJECT: u64 = 2;
/// How many subjects are held open where the operator does not say.
const USUAL_SUBJECTS: usize = 10_000;

/// How many subjects there may be open at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenSubjects {
    /// Above it, those idle longest are closed.
    pub(crate) max: usize,
    /// At it, requests that would open another one are turned away.
    pub(crate) limit: usize,
}

/// How many subjects to hold open: `wanted` by the operator, or as many as are usual, but never more than there are
/// descriptors for. Raises the process's limit of descriptors as far as that needs, and says where an operator's wish
/// goes beyond what the system allows.
pub(crate) fn subjects_to_hold(wanted: Option<usize>) -> OpenSubjects {
    let max = wanted.unwrap_or(USUAL_SUBJECTS) as u64;
    let needed = 2 * max * PER_SUBJECT + BESIDES_SUBJECTS;
    let descriptors = raise_to(needed);
    let open = possible(wanted, descriptors);
    if let Some(wanted) = wanted.filter(|wanted| open.max < *wanted) {
        tracing::warn!(
            descriptors,
            needed,
            "too few file descriptors for --max-open {wanted}: {} subjects are held open; raise the hard limit (ulimit -Hn, \
             LimitNOFILE) or lower --max-open",
            open.max
        );
    }
    open
}

/// How many subjects `descriptors` are enough for: twice as many as are held, so that a burst of others finds room until
/// those idle longest are closed. An operator's wish may take of that room, down to a sixteenth, and to one at least.
fn possible(wanted: Option<usize>, descriptors: u64) -> OpenSubjects {
    let room = descriptors.saturating_sub(BESIDES_SUBJECTS) / PER_SUBJECT;
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let max = match wanted {
        Some(wanted) => wanted.min(room.saturating_sub((room / 16).max(1))),
        None => USUAL_SUBJECTS.min(room / 2),
    };
    let max = max.max(1);
    OpenSubjects { max, limit: max.saturating_mul(2).min(room.max(2)) }
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
        assert_eq!(possible(None, 1_024), OpenSubjects { max: 192, limit: 384 });
        assert_eq!(possible(None, 10), OpenSubjects { max: 1, limit: 2 });
        let usual = OpenSubjects { max: USUAL_SUBJECTS, limit: 2 * USUAL_SUBJECTS };
        assert_eq!(possible(None, u64::MAX), usual);
    }

    #[test]
    fn a_wish_is_granted_as_far_as_there_are_descriptors() {
        assert_eq!(possible(Some(100), 1_024), OpenSubjects { max: 100, limit: 200 });
        assert_eq!(possible(Some(300), 1_024), OpenSubjects { max: 300, limit: 384 });
        assert_eq!(possible(Some(16_000), 1_024), OpenSubjects { max: 360, limit: 384 });
        assert_eq!(possible(Some(16_000), 10), OpenSubjects { max: 1, limit: 2 });
        for wanted in [1, 7, 384, 1_000_000] {
            for descriptors in [260, 270, 287, 300, 1_024, 20_000, 65_536] {
                let open = possible(Some(wanted), descriptors);
                assert!(open.max < open.limit, "{wanted} of {descriptors}: {open:?}");
                let held = open.limit as u64 * PER_SUBJECT + BESIDES_SUBJECTS;
                assert!(held <= descriptors, "{wanted} of {descriptors}: {open:?}");
            }
        }
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
