//! Keeping what would otherwise be written over.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use dormouse_protocol::{ErrorReply, Rev, Subject, Term};

use crate::database::{Database, companion, remove_files, sync_folder};
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
        Err(error) => {
            tracing::error!(%subject, %error, kept = %kept.display(), "changes that are not in the bucket cannot be moved");
            Err(ErrorReply::unavailable(format!(
                "changes of {subject} that are not in the bucket could not be kept elsewhere: {error}"
            )))
        }
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
    // Whoever is killed in here leaves both files where they were or both where they are to be: a companion that
    // stayed behind alone would be taken for rubbish. Its own second name comes first, because a file without its
    // companion would be taken for complete.
    match give_second_name(&companion(path, "-wal"), &companion(target, "-wal")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    give_second_name(path, target)?;
    target.parent().map_or(Ok(()), sync_folder)?;
    remove_files(path)
}

/// Where the file system knows no second names, the file gets a copy.
fn give_second_name(path: &Path, target: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(path, target) {
        Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
            std::fs::copy(path, target).and_then(|_| File::open(target)?.sync_all())
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_go_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("s.sqlite3"), folder.path().join("lost/1.sqlite3"));
        std::fs::write(&path, "file").unwrap();
        std::fs::write(companion(&path, "-wal"), "companion").unwrap();
        // The move of the companion fails, as it does for one who is killed before it.
        std::fs::create_dir_all(companion(&target, "-wal")).unwrap();
        move_files(&path, &target).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"file");
        assert_eq!(std::fs::read(companion(&path, "-wal")).unwrap(), b"companion");
        assert!(!target.exists());

        std::fs::remove_dir(companion(&target, "-wal")).unwrap();
        move_files(&path, &target).unwrap();
        assert!(!path.exists() && !companion(&path, "-wal").exists());
        assert_eq!(std::fs::read(&target).unwrap(), b"file");
        assert_eq!(std::fs::read(companion(&target, "-wal")).unwrap(), b"companion");
    }
}
