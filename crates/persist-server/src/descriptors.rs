//! File descriptors: each open subject uses two, and descriptors are usually the first limit of a machine.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not for subjects: connections, the bucket, the data directory, the runtime.
const RESERVED_DESCRIPTORS: u64 = 256;
/// A subject's file and its write-ahead log.
const DESCRIPTORS_PER_SUBJECT: u64 = 2;
/// Default maximum number of open subjects.
const DEFAULT_SUBJECTS: usize = 10_000;

/// Limits of the number of open subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenSubjects {
    /// Above it, the server closes the subjects that are idle longest.
    pub(crate) max: usize,
    /// At it, a request that would open another subject gets `overloaded`.
    pub(crate) limit: usize,
}

/// The limits of open subjects: from the operator's `wanted` or the default, capped by the file descriptors. Raises the
/// descriptor limit of the process as far as necessary. Logs a warning if the system allows fewer than `wanted`.
pub(crate) fn open_subject_limits(wanted: Option<usize>) -> OpenSubjects {
    let max = wanted.unwrap_or(DEFAULT_SUBJECTS) as u64;
    let needed = 2 * max * DESCRIPTORS_PER_SUBJECT + RESERVED_DESCRIPTORS;
    let descriptors = raise_to(needed);
    let open = fit(wanted, descriptors);
    if let Some(wanted) = wanted.filter(|wanted| open.max < *wanted) {
        tracing::warn!(
            descriptors,
            needed,
            wanted,
            max_open = open.max,
            action = "raise the hard limit (ulimit -Hn, LimitNOFILE) or lower --max-open",
            "too few file descriptors for --max-open"
        );
    }
    open
}

/// The limits that `descriptors` allow. The default keeps room for twice the maximum, so a burst of other subjects can
/// open before the longest idle ones close. An operator's value may use this room, except a sixteenth, at least one.
fn fit(wanted: Option<usize>, descriptors: u64) -> OpenSubjects {
    let room = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_SUBJECT;
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let max = match wanted {
        Some(wanted) => wanted.min(room.saturating_sub((room / 16).max(1))),
        None => DEFAULT_SUBJECTS.min(room / 2),
    };
    let max = max.max(1);
    OpenSubjects { max, limit: max.saturating_mul(2).min(room.max(2)) }
}

/// Raises the soft limit to `needed`, as far as the hard limit allows. Returns the new limit.
fn raise_to(needed: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // `None` means no limit.
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

    /// A low descriptor limit lowers the number of open subjects; a high one does not exceed the default.
    #[test]
    fn descriptor_limit_sets_default_open_subjects() {
        assert_eq!(fit(None, 1_024), OpenSubjects { max: 192, limit: 384 });
        assert_eq!(fit(None, 10), OpenSubjects { max: 1, limit: 2 });
        let default = OpenSubjects { max: DEFAULT_SUBJECTS, limit: 2 * DEFAULT_SUBJECTS };
        assert_eq!(fit(None, u64::MAX), default);
    }

    /// A configured number of open subjects applies only as far as the descriptor limit allows.
    #[test]
    fn open_subjects_setting_is_capped_by_descriptors() {
        assert_eq!(fit(Some(100), 1_024), OpenSubjects { max: 100, limit: 200 });
        assert_eq!(fit(Some(300), 1_024), OpenSubjects { max: 300, limit: 384 });
        assert_eq!(fit(Some(16_000), 1_024), OpenSubjects { max: 360, limit: 384 });
        assert_eq!(fit(Some(16_000), 10), OpenSubjects { max: 1, limit: 2 });
        for wanted in [1, 7, 384, 1_000_000] {
            for descriptors in [260, 270, 287, 300, 1_024, 20_000, 65_536] {
                let open = fit(Some(wanted), descriptors);
                assert!(open.max < open.limit, "{wanted} of {descriptors}: {open:?}");
                let held = open.limit as u64 * DESCRIPTORS_PER_SUBJECT + RESERVED_DESCRIPTORS;
                assert!(held <= descriptors, "{wanted} of {descriptors}: {open:?}");
            }
        }
    }

    /// The server raises its descriptor limit as far as the hard maximum allows and leaves the maximum unchanged.
    #[test]
    fn descriptor_limit_is_raised_to_hard_maximum() {
        let before = getrlimit(Resource::Nofile);
        let reached = raise_to(u64::MAX - 1);
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        assert_eq!(after.current.unwrap_or(u64::MAX), reached);
        assert!(reached >= before.current.unwrap_or(u64::MAX));
    }
}
