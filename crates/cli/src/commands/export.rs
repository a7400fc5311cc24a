//! `subject export`: what the bucket holds of a subject as a file that `sqlite3` opens, complete by itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_protocol::{Position, Subject};
use dormouse_runtime::Env;
use dormouse_storage::bucket::{ObjectStoreBucket, open_bucket};
use dormouse_storage::{ExportError, export_snapshot};
use serde_json::json;

use crate::args::{DEV_DATA_DIR, Export};
use crate::dev::files::FleetFile;
use crate::error::{ErrorKind, Failure, one_line};
use crate::session::Session;

/// `subject export`.
pub(super) async fn export(session: &Session, arguments: Export) -> Result<(), Failure> {
    // Before the flush: what is wrong with the command line should not cost a flush.
    if !arguments.force && arguments.file.exists() {
        return Err(exists(&arguments.file));
    }
    let url = bucket_url(arguments.bucket.as_deref(), &arguments.data_dir)?;
    let flushed = session.stream(&arguments.subject)?.flush().await?;

    let staged = staged(&arguments.file);
    let outcome = fetch(&url, &arguments.subject, &staged, flushed).await;
    let outcome = outcome.and_then(|position| {
        let size_bytes = put_in_place(&staged, &arguments.file, arguments.force)?;
        Ok((position, size_bytes))
    });
    // Ours alone, by its name; when it is in place there is nothing left to remove.
    let _ = fs::remove_file(&staged);
    let (position, size_bytes) = outcome?;

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

/// A name beside the file, so that the finished file can be put in its place in one step.
pub(super) fn staged(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", Env::system().ulid()));
    file.with_file_name(name)
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

pub(super) fn put_in_place(staged: &Path, file: &Path, force: bool) -> Result<u64, Failure> {
    let cannot = |error: &io::Error| Failure::new(format!("cannot write {}: {error}", file.display()));
    let size_bytes = fs::metadata(staged).map_err(|error| cannot(&error))?.len();
    if force {
        fs::rename(staged, file).map_err(|error| cannot(&error))?;
    } else {
        // Unlike a rename, a link does not replace what somebody has put there meanwhile. Not every file system knows
        // links.
        let linked = match fs::hard_link(staged, file) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => copy_new(staged, file),
            linked => linked,
        };
        linked.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(file),
            _ => cannot(&error),
        })?;
    }
    Ok(size_bytes)
}

/// Copies to a file that must not exist yet. A copy that fails is removed.
fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = fs::File::open(from)?;
    let mut copy = fs::File::create_new(to)?;
    io::copy(&mut source, &mut copy).and_then(|_| copy.sync_all()).inspect_err(|_| {
        // Ours: we have created it.
        let _ = fs::remove_file(to);
    })
}

pub(super) fn exists(file: &Path) -> Failure {
    Failure::of(ErrorKind::Conflict, format!("{} exists: --force replaces it", file.display()))
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

    #[test]
    fn a_file_is_replaced_only_by_force() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("s.sqlite3");
        let staged = staged(&file);
        assert_eq!(staged.parent(), file.parent());
        fs::write(&staged, "new").unwrap();
        fs::write(&file, "old").unwrap();
        assert_eq!(put_in_place(&staged, &file, false).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(copy_new(&staged, &file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(put_in_place(&staged, &file, true).unwrap(), 3);
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let copy = root.path().join("copy.sqlite3");
        copy_new(&file, &copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"new");
    }
}
