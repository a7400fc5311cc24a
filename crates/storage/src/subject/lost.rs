//! Keeping what would otherwise be written over.

use std::path::Path;

use dormouse_protocol::{ErrorReply, Rev, Subject, Term};

use crate::database::{Database, companion, remove_files};
use crate::engine::Shared;
use crate::keys::Nonce;

/// Moves the file of a subject that has gone on without it to `lost/`, as one plain SQLite file.
///
/// # Errors
/// The answer to a request that cannot be served because of it; the file is still in its place.
pub(super) async fn set_aside(
    shared: &Shared,
    subject: &Subject,
    database: Database,
) -> Result<(), ErrorReply> {
    let state = database.state();
    let (term, rev, in_bucket) = (state.term, state.rev, database.provenance().bucket_rev);
    let path = database.path().to_owned();
    let target = shared.data.lost_file(subject, term, Nonce::new(shared.env.ulid()));
    let kept = target.clone();
    let moved = shared
        .env
        .blocking(move || {
            if let Err(error) = database.close() {
                tracing::debug!(%error, "a file to be kept could not be put in one piece");
            }
            move_files(&path, &target)
        })
        .await;
    match moved {
        Ok(()) => {
            warn(subject, term, rev, in_bucket, &kept);
            Ok(())
        }
        Err(error) => Err(ErrorReply::internal(format_args!(
            "changes of {subject} that are not in the bucket could not be moved to {}: {error}",
            kept.display()
        ))),
    }
}

/// Moves a file that is not what it should be to `lost/`.
pub(super) fn quarantine(path: &Path, target: &Path, subject: &Subject, why: &str) -> std::io::Result<()> {
    move_files(path, target)?;
    tracing::warn!(%subject, why, kept = %target.display(), "the local file of a subject is unusable and is kept");
    Ok(())
}

fn warn(subject: &Subject, term: Term, rev: Rev, in_bucket: Rev, kept: &Path) {
    tracing::warn!(
        %subject, %term, %rev, %in_bucket, kept = %kept.display(),
        "changes accepted here never reached the bucket before another process went on with the subject; they are kept"
    );
}

fn move_files(path: &Path, target: &Path) -> std::io::Result<()> {
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // The file first: left without its companion it would be taken for complete.
    std::fs::rename(path, target)?;
    match std::fs::rename(companion(path, "-wal"), companion(target, "-wal")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    remove_files(path)
}
