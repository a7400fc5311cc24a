//! `subject export`: what the bucket holds of a subject as a file that `sqlite3` opens, complete by itself.

use std::path::Path;

use dormouse_protocol::{Position, Subject};
use dormouse_runtime::Env;
use dormouse_storage::bucket::{ObjectStoreBucket, open_bucket};
use dormouse_storage::{ExportError, export_snapshot};
use serde_json::json;

use super::staged::{Interruption, Staged, refuse_existing};
use crate::args::{DEV_DATA_DIR, Export};
use crate::dev::files::FleetFile;
use crate::error::{ErrorKind, Failure, one_line};
use crate::session::Session;

/// `subject export`.
pub(super) async fn export(session: &Session, arguments: Export) -> Result<(), Failure> {
    // Before the flush: what is wrong with the command line should not cost a flush.
    refuse_existing(&arguments.file, arguments.force)?;
    let url = bucket_url(arguments.bucket.as_deref(), &arguments.data_dir)?;
    let flushed = session.stream(&arguments.subject)?.flush().await?;

    let mut interruption = Interruption::listen()?;
    let staged = Staged::beside(&arguments.file, arguments.force)?;
    let position = interruption.or(fetch(&url, &arguments.subject, &staged.path(), flushed)).await?;
    let size_bytes = staged.put_in_place()?;

    if session.output.is_json() {
        session.output.json(&json!({
            "subject": arguments.subject,
            // A path need not be text; JSON is.
            "file": arguments.file.to_string_lossy(),
            "size_bytes": size_bytes,
            "position": position,
        }))
    } else {
        let file = arguments.file.display();
        session.output.line(format_args!("{file}: {size_bytes} bytes, up to {position}"))
    }
}

/// The bucket that was named, or that of the local fleet.
pub(super) fn bucket_url(bucket: Option<&str>, data_dir: &Path) -> Result<String, Failure> {
    if let Some(url) = bucket {
        return Ok(url.to_owned());
    }
    FleetFile::read(data_dir).map(|fleet| fleet.bucket).map_err(|failure| {
        // Who never heard of `dormouse dev` should not read about its files.
        if data_dir == Path::new(DEV_DATA_DIR) && failure.kind() == ErrorKind::Unavailable {
            Failure::usage(
                "which bucket? Give its URL with --bucket, or the --data-dir of a running `dormouse dev`",
            )
        } else {
            failure
        }
    })
}

/// Opens a bucket with what the environment says about it.
pub(super) async fn open(url: &str) -> Result<ObjectStoreBucket, Failure> {
    // Settings that are not text are none of ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    open_bucket(url, variables, Env::system())
        .await
        .map_err(|error| Failure::new(format!("cannot open the bucket: {}", one_line(&error))))
}

async fn fetch(url: &str, subject: &Subject, staged: &Path, flushed: Position) -> Result<Position, Failure> {
    let bucket = open(url).await?;
    let position = export_snapshot(&bucket, &Env::system(), subject, staged).await.map_err(|error| {
        let kind = match &error {
            ExportError::NoSuchSubject(_) | ExportError::NothingYet(_) => ErrorKind::NotFound,
            ExportError::TooBusy(_) => ErrorKind::Unavailable,
            _ => ErrorKind::Failure,
        };
        Failure::of(kind, one_line(&error))
    })?;
    if position < flushed {
        return Err(Failure::new(format!(
            "the bucket holds {subject} up to {position} only, while its server has brought {flushed} to the bucket: is \
             this the fleet's bucket?"
        )));
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_bucket_the_fleet_file_is_asked_and_else_the_user() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(bucket_url(Some("s3://b"), root.path()).unwrap(), "s3://b");
        let failure = bucket_url(None, root.path()).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Unavailable);
        assert!(failure.to_string().contains("fleet.json is missing"), "{failure}");
        let failure = bucket_url(None, Path::new(DEV_DATA_DIR)).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Usage);
        assert!(failure.to_string().contains("--bucket"), "{failure}");
    }
}
