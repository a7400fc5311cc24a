//! A local directory as a bucket, in which another program has put something else in place of an object.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::{Bucket, BucketError, CreateOutcome, ObjectStoreBucket, create_once, open_bucket};
use dormouse_format::keys::{BucketKey, BucketPrefix};
use dormouse_runtime::Env;
use tempfile::TempDir;

const MANIFEST: &str = "subjects/app.orders/000000000001.manifest";

async fn open(directory: &Path) -> ObjectStoreBucket {
    open_bucket(&format!("file://{}", directory.display()), [], Env::system()).await.unwrap()
}

fn make_pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// The object and the cause that a call reports.
fn corrupt<T: std::fmt::Debug>(found: Result<T, BucketError>) -> String {
    match found {
        Err(BucketError::Corrupt { object, what }) => format!("{object}: {what}"),
        other => panic!("not corrupt: {other:?}"),
    }
}

/// Each call on an object that is a folder, a pipe or a symbolic link in a circle is corrupt and names the cause, and
/// blocks no thread. A pipe would block a thread until the runtime ends, and so this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_bucket_reports_wrong_entry_as_corrupt() {
    type Put = fn(&Path);
    let cases: [(&str, Put); 3] = [
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a named pipe", make_pipe),
        ("leads in a circle", |path| symlink(path.file_name().unwrap(), path).unwrap()),
    ];
    for (cause, put) in cases {
        let (directory, scratch) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let bucket = open(directory.path()).await;
        fs::create_dir_all(directory.path().join("subjects/app.orders")).unwrap();
        put(&directory.path().join(MANIFEST));
        let key = BucketKey::new(MANIFEST).unwrap();
        let target = scratch.path().join("target");
        for found in [
            corrupt(bucket.get(&key).await),
            corrupt(bucket.get_range(&key, 0..1).await),
            corrupt(bucket.get_range(&key, 0..0).await),
            corrupt(bucket.get_tail(&key, 1).await),
            corrupt(bucket.get_file(&key, &target).await),
            corrupt(bucket.create(&key, Bytes::from("manifest")).await),
        ] {
            assert!(found.contains(cause) && found.contains(MANIFEST), "{cause}: {found}");
        }
        assert!(!target.exists());
        // A create with retries ends too.
        let created = create_once(&bucket, &key, Bytes::from("manifest"), std::future::pending()).await;
        assert!(matches!(created, Err(BucketError::Corrupt { .. })), "{cause}: {created:?}");
        let listed = bucket.list(&BucketPrefix::ALL).await.unwrap();
        assert_eq!(listed.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), [MANIFEST]);
    }
}

/// A create whose first answer was lost counts an unreadable entry under its key as foreign.
#[tokio::test]
async fn conditional_create_over_existing_object_stays_foreign() {
    let directory = TempDir::new().unwrap();
    let bucket = open(directory.path()).await;
    let key = BucketKey::new(MANIFEST).unwrap();
    bucket.create(&key, Bytes::from("theirs")).await.unwrap();
    let outcome = create_once(&bucket, &key, Bytes::from("ours"), std::future::pending()).await;
    assert!(matches!(outcome, Ok(CreateOutcome::Foreign)), "{outcome:?}");
}

/// Other users can lock no lock file: the files are closed to them, and so is their folder, also one from before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_bucket_locks_are_closed_to_other_users() {
    let directory = TempDir::new().unwrap();
    let locks = directory.path().join("dormouse.locks");
    fs::create_dir(&locks).unwrap();
    fs::set_permissions(&locks, fs::Permissions::from_mode(0o777)).unwrap();
    let bucket = open(directory.path()).await;
    bucket.list(&BucketPrefix::ALL).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&locks), 0o700);
    assert_eq!(mode(&directory.path().join("dormouse.lock")), 0o600);
    let files: Vec<_> = fs::read_dir(&locks).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 64);
    assert!(files.iter().all(|file| mode(file) == 0o600));
}

/// A pipe in place of the marker of a bucket's directory is an error at the start, and blocks no thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_bucket_with_pipe_as_marker_is_rejected() {
    let directory = TempDir::new().unwrap();
    make_pipe(&directory.path().join("dormouse.lock"));
    let url = format!("file://{}", directory.path().display());
    let opened = tokio::time::timeout(Duration::from_secs(60), open_bucket(&url, [], Env::system())).await;
    let error = opened.expect("no thread waits for the pipe").unwrap_err();
    assert!(error.to_string().contains("cannot be opened"), "{error}");
}
