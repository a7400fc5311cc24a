//! Eviction of local files above the size limit. Once a subject is closed, the content of its local file is in the
//! bucket too, so the next open after an eviction only needs a download.

use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_protocol::Subject;
use dormouse_protocol::subject::Unescaped;
use dormouse_subject_state::database::{remove_files, sidecar_path};

use crate::engine::EngineShared;

/// Minimum interval of the checks.
const INTERVAL: Duration = Duration::from_secs(60);

/// Files read between two pauses, so that reading a folder of a million files does not load the disk.
const STEP: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(20);

/// Maximum number of files evicted per check.
const AT_ONCE: usize = 1_000;

/// Checks the size of the local files at intervals.
pub(super) async fn run(shared: Arc<EngineShared>) {
    let Some(most) = shared.settings.max_local_bytes else { return };
    loop {
        tokio::time::sleep(INTERVAL).await;
        match survey(&shared).await {
            Ok(survey) if survey.bytes > most => evict(&shared, survey, most).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "local files folder unreadable"),
        }
    }
}

/// A local file, ordered by the time of its last write.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    written: SystemTime,
    path: PathBuf,
    bytes: u64,
}

#[derive(Default)]
struct Survey {
    bytes: u64,
    /// The files written longest ago, with the newest of them on top.
    oldest: BinaryHeap<Candidate>,
}

impl Survey {
    fn add(&mut self, candidate: Candidate) {
        self.bytes += candidate.bytes;
        self.oldest.push(candidate);
        if self.oldest.len() > AT_ONCE {
            self.oldest.pop();
        }
    }
}

async fn survey(shared: &EngineShared) -> std::io::Result<Survey> {
    let folder = shared.data.subjects_dir();
    let mut entries = shared.env.blocking(move || std::fs::read_dir(folder)).await?;
    let mut survey = Survey::default();
    loop {
        let (rest, step) = shared
            .env
            .blocking(move || {
                let step: Vec<_> = entries
                    .by_ref()
                    .take(STEP)
                    .filter_map(Result::ok)
                    .filter_map(|entry| candidate(&entry))
                    .collect();
                let more = !step.is_empty();
                (more.then_some(entries), step)
            })
            .await;
        step.into_iter().for_each(|candidate| survey.add(candidate));
        match rest {
            Some(rest) => entries = rest,
            None => return Ok(survey),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn candidate(entry: &std::fs::DirEntry) -> Option<Candidate> {
    let path = entry.path();
    let metadata = entry.metadata().ok()?;
    let wal = std::fs::metadata(sidecar_path(&path, "-wal")).map_or(0, |metadata| metadata.len());
    let is_database = path.extension().is_some_and(|extension| extension == "sqlite3");
    // Files that are not databases count zero bytes, and the epoch as their time.
    let bytes = if is_database { metadata.len() + wal } else { 0 };
    let written = if is_database { metadata.modified().ok()? } else { SystemTime::UNIX_EPOCH };
    Some(Candidate { written, path, bytes })
}

async fn evict(shared: &EngineShared, survey: Survey, most: u64) {
    let mut over = survey.bytes.saturating_sub(most);
    let (mut files, mut bytes) = (0_u64, 0_u64);
    for candidate in survey.oldest.into_sorted_vec() {
        if over == 0 {
            break;
        }
        let Some(subject) = subject_of(&candidate.path) else { continue };
        let path = candidate.path.clone();
        // The subject cannot open while its file is removed; an open subject keeps its file.
        let removed = shared.subject_table.run_unless_open(&subject, || remove_files(&path));
        match removed {
            Some(Ok(())) => {
                (files, bytes) = (files + 1, bytes + candidate.bytes);
                over = over.saturating_sub(candidate.bytes);
            }
            Some(Err(error)) => tracing::warn!(%subject, %error, "local file not removed"),
            None => {}
        }
    }
    tracing::info!(files, bytes, "local files of dormant subjects evicted");
}

/// The subject of a file. `None` for a hashed name of a long subject, whose file stays.
fn subject_of(path: &Path) -> Option<Subject> {
    match Subject::unescape(path.file_stem()?.to_str()?) {
        Ok(Unescaped::Subject(subject)) => Some(subject),
        Ok(Unescaped::Hashed) | Err(_) => None,
    }
}
