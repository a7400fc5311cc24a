//! `subject export`: writes the subject's state in the bucket as one complete file that `sqlite3` opens.

use std::path::Path;

use dormouse_bucket::{ObjectStoreBucket, open_bucket};
use dormouse_engine::{ExportError, export_snapshot};
use dormouse_protocol::{Position, Subject};
use dormouse_runtime::Env;
use serde_json::json;

use super::staged::{Interruption, StagedFile, refuse_existing};
use crate::args::{DEV_DATA_DIR, Export};
use crate::dev::files::FleetFile;
use crate::error::{Failure, FailureKind, one_line};
use crate::session::Session;

/// `subject export`.
pub(super) async fn export(session: &Session, arguments: Export) -> Result<(), Failure> {
    // Before the flush: a wrong command line should not cost a flush.
    refuse_existing(&arguments.file, arguments.force)?;
    let url = bucket_url(arguments.bucket.as_deref(), &arguments.data_dir)?;
    let flushed = session.stream(&arguments.subject)?.flush().await?;

    let mut interruption = Interruption::listen()?;
    let staged = StagedFile::beside(&arguments.file, arguments.force)?;
    let position = interruption.or(fetch(&url, &arguments.subject, &staged.path(), flushed)).await?;
    let size_bytes = staged.put_in_place()?;

    if session.output.is_json() {
        session.output.json(&json!({
            "subject": arguments.subject,
            // A path may not be UTF-8; JSON is.
            "file": arguments.file.to_string_lossy(),
            "size_bytes": size_bytes,
            "position": position,
        }))
    } else {
        let file = arguments.file.display();
        session.output.line(format_args!("{file}: {size_bytes} bytes, up to {position}"))
    }
}

/// The bucket from the command line, or the bucket of the local fleet.
pub(super) fn bucket_url(bucket: Option<&str>, data_dir: &Path) -> Result<String, Failure> {
    if let Some(url) = bucket {
        return Ok(url.to_owned());
    }
    FleetFile::read(data_dir).map(|fleet| fleet.bucket).map_err(|failure| {
        // A user without `dormouse dev` should get no error about its files.
        if data_dir == Path::new(DEV_DATA_DIR) && failure.kind() == FailureKind::Unavailable {
            Failure::usage("no bucket given: use --bucket URL, or the --data-dir of a running `dormouse dev`")
        } else {
            failure
        }
    })
}

/// Opens a bucket with its settings from the environment.
pub(super) async fn open(url: &str) -> Result<ObjectStoreBucket, Failure> {
    // Variables that are not UTF-8 are no bucket settings.
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
            ExportError::SubjectNotFound(_) | ExportError::NotFlushed(_) => FailureKind::NotFound,
            ExportError::Contended(_) => FailureKind::Unavailable,
            _ => FailureKind::Failure,
        };
        Failure::of(kind, one_line(&error))
    })?;
    if position < flushed {
        return Err(Failure::new(format!(
            "the bucket has {subject} only up to {position}, but its server has flushed up to {flushed}: is this the \
             fleet's bucket?"
        )));
    }
    Ok(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without `--bucket`, export needs a fleet file; in the default directory the error asks for the flag.
    #[test]
    fn export_without_bucket_flag_needs_fleet_file() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(bucket_url(Some("s3://b"), root.path()).unwrap(), "s3://b");
        let failure = bucket_url(None, root.path()).unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Unavailable);
        assert!(failure.to_string().contains("fleet.json is missing"), "{failure}");
        let failure = bucket_url(None, Path::new(DEV_DATA_DIR)).unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Usage);
        assert!(failure.to_string().contains("--bucket"), "{failure}");
    }
}
