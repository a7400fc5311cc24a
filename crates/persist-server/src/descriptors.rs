//! File descriptors: each open subject holds two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything but subjects: connections, the bucket, the data directory, the runtime.
const BESIDES_SUBJECTS: u64 = 256;
/// The engine turns requests away only at twice the number of subjects it likes to have open.
const PER_OPEN_SUBJECT: u64 = 2 * 2;

/// Raises the limit as far as `max_open` subjects need, and says so where the system does not allow it.
pub(crate) fn provide_for(max_open: usize) {
    let wanted = max_open as u64 * PER_OPEN_SUBJECT + BESIDES_SUBJECTS;
    let limit = getrlimit(Resource::Nofile);
    // `None` is no limit at all.
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let allowed = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    let reached = if raised.is_ok() { allowed } else { limit.current.unwrap_or(allowed) };
    if reached < wanted {
        tracing::warn!(
            allowed = reached,
            wanted,
            "too few file descriptors for --max-open {max_open}: raise the hard limit (ulimit -Hn, LimitNOFILE) or lower \
             --max-open"
        );
    }
}
