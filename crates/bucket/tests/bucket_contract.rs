//! The contract of [`Bucket`]: one suite for each implementation that a test can run alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dormouse_bucket::{
    Bucket, BucketError, ConformanceError, CreateOutcome, Created, HeaderPatch, ObjectStoreBucket,
    OpenBucketError, create_once, open_bucket, probe,
};
use dormouse_format::checksum::Crc64;
use dormouse_format::keys::{BucketKey, BucketPrefix};
use dormouse_harness::{AzureServer, S3Flaw, S3Server};
use dormouse_runtime::Env;
use dormouse_testkit::bucket::{FaultPlan, FaultyBucket};
use tempfile::TempDir;

fn key(text: &str) -> BucketKey {
    BucketKey::new(text).unwrap()
}

fn prefix(text: &str) -> BucketPrefix {
    BucketPrefix::new(text).unwrap()
}

async fn listed(bucket: &dyn Bucket, folder: &str) -> Vec<String> {
    bucket.list(&prefix(folder)).await.unwrap().into_iter().map(|entry| entry.key.to_string()).collect()
}

async fn open_local(directory: &Path) -> Result<ObjectStoreBucket, OpenBucketError> {
    open_bucket(&format!("file://{}", directory.display()), [], Env::system()).await
}

/// Each case gets a fresh bucket and a scratch directory, on each implementation.
macro_rules! contract {
    ($($case:ident)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                super::$case(&ObjectStoreBucket::in_memory(Env::system()), TempDir::new().unwrap().path()).await;
            })*
        }
        mod without_faults {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                let inner = Arc::new(ObjectStoreBucket::in_memory(Env::system()));
                let bucket = FaultyBucket::new(inner, 1, FaultPlan::none(), Env::system());
                super::$case(&bucket, TempDir::new().unwrap().path()).await;
            })*
        }
        mod local_directory {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let directory = TempDir::new().unwrap();
                let bucket = open_local(directory.path()).await.unwrap();
                super::$case(&bucket, TempDir::new().unwrap().path()).await;
            })*
        }
        mod azure_server {
            use super::*;
            /// A bucket on a real server passes every case of the bucket contract.
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "the server is large: make soak-all"]
            async fn bucket_meets_contract() {
                let server = AzureServer::start().await.unwrap();
                server.create_container("contract").await.unwrap();
                $({
                    eprintln!("{}", stringify!($case));
                    let url = concat!("az://contract/", stringify!($case));
                    let bucket = open_bucket(url, server.variables(), Env::system()).await.unwrap();
                    super::$case(&bucket, TempDir::new().unwrap().path()).await;
                })*
            }
        }
        mod s3_server {
            use super::*;
            // One server for all cases, each in a folder of its own: it takes a second to start.
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn bucket_meets_contract() {
                let server = S3Server::start().await.unwrap();
                server.create_bucket("contract").await.unwrap();
                $({
                    eprintln!("{}", stringify!($case));
                    let url = concat!("s3://contract/", stringify!($case));
                    let bucket = open_bucket(url, server.variables(), Env::system()).await.unwrap();
                    super::$case(&bucket, TempDir::new().unwrap().path()).await;
                })*
            }
        }
    };
}

contract! {
    create_of_existing_object_changes_nothing
    create_race_has_one_winner
    absent_object_reads_as_none_and_delete_succeeds
    listing_is_sorted_and_complete
    listing_during_replacement_finds_old_or_new
    file_upload_and_download_round_trip
    multipart_file_upload_and_download_round_trip
    sqlite_header_is_patched_during_upload
    download_never_overwrites_local_file
    oversized_object_is_not_read_into_memory
    range_read_is_complete_or_corrupt
    object_tail_read_returns_last_bytes
    bucket_passes_conformance_check_without_leftovers
}

/// A create of an existing object returns `Exists` and changes nothing; after a delete, the next create succeeds.
async fn create_of_existing_object_changes_nothing(bucket: &dyn Bucket, _: &Path) {
    let at = key("subjects/app.=4frders/000000000001.manifest");
    assert_eq!(bucket.create(&at, Bytes::from("first")).await.unwrap(), Created::New);
    assert_eq!(bucket.create(&at, Bytes::from("second")).await.unwrap(), Created::Exists);
    assert_eq!(bucket.get(&at).await.unwrap().unwrap(), "first");
    bucket.delete(&at).await.unwrap();
    assert_eq!(bucket.get(&at).await.unwrap(), None);
    assert_eq!(bucket.create(&at, Bytes::from("third")).await.unwrap(), Created::New);
    assert_eq!(bucket.get(&at).await.unwrap().unwrap(), "third");
}

/// Of 16 concurrent creates of one object, exactly one succeeds, and the object holds its bytes.
async fn create_race_has_one_winner(bucket: &dyn Bucket, _: &Path) {
    for round in 0..20 {
        let at = key(&format!("race/{round}"));
        let offers: Vec<String> = (0..16).map(|writer| format!("round {round}, writer {writer}")).collect();
        let answers =
            futures::future::join_all(offers.iter().map(|offer| bucket.create(&at, offer.clone().into())))
                .await;
        let winners: Vec<usize> =
            (0..16).filter(|&writer| *answers[writer].as_ref().unwrap() == Created::New).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(bucket.get(&at).await.unwrap().unwrap(), offers[winners[0]]);
    }
}

/// Every read of an absent object returns `None`, its delete succeeds, and listings stay empty.
async fn absent_object_reads_as_none_and_delete_succeeds(bucket: &dyn Bucket, scratch: &Path) {
    let at = key("no/such/object");
    assert_eq!(bucket.get(&at).await.unwrap(), None);
    assert_eq!(bucket.get_range(&at, 2..5).await.unwrap(), None);
    assert_eq!(bucket.get_range(&at, 0..0).await.unwrap(), None);
    assert_eq!(bucket.get_tail(&at, 4).await.unwrap(), None);
    assert_eq!(bucket.get_tail(&at, 0).await.unwrap(), None);
    assert_eq!(bucket.get_file(&at, &scratch.join("file")).await.unwrap(), None);
    assert!(!scratch.join("file").exists());
    bucket.delete(&at).await.unwrap();
    assert_eq!(listed(bucket, "no/such/").await, Vec::<String>::new());
    assert_eq!(listed(bucket, "").await, Vec::<String>::new());
}

/// A listing returns all objects below its prefix, sorted by key, with their sizes, and no other object.
async fn listing_is_sorted_and_complete(bucket: &dyn Bucket, _: &Path) {
    let names = ["a/2", "ab/1", "a/1", "a-b/1", "a/10", "a/sub/deep/1", "a.b", "a=/x", "a_/Z"];
    for name in names {
        bucket.create(&key(name), Bytes::from(name)).await.unwrap();
    }
    assert_eq!(listed(bucket, "a/").await, ["a/1", "a/10", "a/2", "a/sub/deep/1"]);
    assert_eq!(listed(bucket, "a/sub/").await, ["a/sub/deep/1"]);
    let mut all = names.map(str::to_owned);
    all.sort();
    assert_eq!(listed(bucket, "").await, all);
    for entry in bucket.list(&BucketPrefix::ALL).await.unwrap() {
        assert_eq!(entry.size_bytes, entry.key.as_str().len() as u64);
    }
}

/// While a writer creates each object before it deletes the previous one, every listing finds one, and the newest never
/// goes back.
async fn listing_during_replacement_finds_old_or_new(bucket: &dyn Bucket, _: &Path) {
    let number = |n: u32| key(&format!("chain/{n:012}"));
    bucket.create(&number(0), Bytes::from("0")).await.unwrap();
    let writer = async {
        for n in 1..200 {
            bucket.create(&number(n), Bytes::from(n.to_string())).await.unwrap();
            bucket.delete(&number(n - 1)).await.unwrap();
        }
    };
    let reader = async {
        let mut newest = 0;
        loop {
            let seen = listed(bucket, "chain/").await;
            let last: u32 = seen
                .last()
                .expect("the chain always has an object")
                .rsplit('/')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(last >= newest, "the newest went back from {newest} to {last}");
            newest = last;
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
}

/// A downloaded file has the bytes, size and CRC-64 of the upload; a missing source file is a definite local error.
async fn file_upload_and_download_round_trip(bucket: &dyn Bucket, scratch: &Path) {
    for (name, content) in [("empty", Vec::new()), ("small", b"a plain file".to_vec())] {
        let (source, target) = (scratch.join(name), scratch.join(format!("{name}.back")));
        std::fs::write(&source, &content).unwrap();
        let up = bucket.put_file(&key(name), &source, HeaderPatch::None).await.unwrap();
        assert_eq!((up.size_bytes, up.crc64), (content.len() as u64, Crc64::of(&content)));
        assert_eq!(bucket.get(&key(name)).await.unwrap().unwrap(), content);
        assert_eq!(bucket.get_file(&key(name), &target).await.unwrap(), Some(up));
        assert_eq!(std::fs::read(&target).unwrap(), content);
    }
    let missing = bucket.put_file(&key("x"), &scratch.join("missing"), HeaderPatch::None).await.unwrap_err();
    assert!(matches!(missing, BucketError::LocalFile { .. }), "{missing}");
    assert!(!missing.is_unknown());
}

/// A file of several upload parts downloads with the same bytes, size and CRC-64, also when the last part is empty.
async fn multipart_file_upload_and_download_round_trip(bucket: &dyn Bucket, scratch: &Path) {
    // One file of two whole parts of 8 MiB, so that the last part is empty, and one of two parts and 12,345 bytes.
    for (name, size) in [("exact", 16 << 20), ("more", (16 << 20) + 12_345)] {
        let content: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        let (source, target) = (scratch.join(name), scratch.join(format!("{name}.back")));
        std::fs::write(&source, &content).unwrap();
        let up = bucket.put_file(&key(name), &source, HeaderPatch::None).await.unwrap();
        assert_eq!((up.size_bytes, up.crc64), (u64::from(size), Crc64::of(&content)));
        assert_eq!(bucket.get_file(&key(name), &target).await.unwrap(), Some(up));
        assert!(std::fs::read(&target).unwrap() == content);
    }
}

/// The upload patches the SQLite header to rollback-journal mode, leaves the local file unchanged, and rejects other
/// files.
async fn sqlite_header_is_patched_during_upload(bucket: &dyn Bucket, scratch: &Path) {
    let source = scratch.join("live.sqlite3");
    let connection = rusqlite::Connection::open(&source).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (7); PRAGMA wal_checkpoint(TRUNCATE);")
        .unwrap();
    let before = std::fs::read(&source).unwrap();
    assert_eq!(before[18..20], [2, 2], "the test needs a file in WAL mode");
    let up = bucket.put_file(&key("snapshot"), &source, HeaderPatch::RollbackJournal).await.unwrap();
    assert!(std::fs::read(&source).unwrap() == before, "the local file is unchanged");
    let object = bucket.get(&key("snapshot")).await.unwrap().unwrap();
    assert_eq!((up.size_bytes, up.crc64), (object.len() as u64, Crc64::of(&object)));
    assert_eq!((&object[..18], &object[18..20], &object[20..]), (&before[..18], &[1, 1][..], &before[20..]));

    // A reader without write permission in the folder could not open a file in WAL mode.
    let target = scratch.join("copy.sqlite3");
    bucket.get_file(&key("snapshot"), &target).await.unwrap();
    let copy =
        rusqlite::Connection::open_with_flags(&target, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mode: String = copy.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    let x: i64 = copy.query_row("SELECT x FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!((mode.as_str(), x), ("delete", 7));

    for other in [&b"no database at all, but long enough"[..], b"SQLite format 3\0", b""] {
        std::fs::write(scratch.join("other"), other).unwrap();
        let refused = bucket
            .put_file(&key("other"), &scratch.join("other"), HeaderPatch::RollbackJournal)
            .await
            .unwrap_err();
        assert!(matches!(refused, BucketError::Corrupt { .. }), "{refused}");
    }
    assert_eq!(bucket.get(&key("other")).await.unwrap(), None);
}

/// A download to an existing local file fails and leaves that file unchanged.
async fn download_never_overwrites_local_file(bucket: &dyn Bucket, scratch: &Path) {
    let target = scratch.join("precious");
    std::fs::write(&target, "precious").unwrap();
    bucket.create(&key("object"), Bytes::from("object")).await.unwrap();
    let refused = bucket.get_file(&key("object"), &target).await.unwrap_err();
    assert!(matches!(refused, BucketError::LocalFile { .. }), "{refused}");
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
}

/// A get of an object above the size limit fails as corrupt and names the object.
async fn oversized_object_is_not_read_into_memory(bucket: &dyn Bucket, scratch: &Path) {
    let source = scratch.join("large");
    std::fs::File::create(&source).unwrap().set_len(33 << 20).unwrap();
    bucket.put_file(&key("large"), &source, HeaderPatch::None).await.unwrap();
    let refused = bucket.get(&key("large")).await.unwrap_err();
    assert!(matches!(&refused, BucketError::Corrupt { object, .. } if object == "large"), "{refused}");
}

/// A range read returns the complete range; a range beyond the object or above the size limit fails as corrupt.
async fn range_read_is_complete_or_corrupt(bucket: &dyn Bucket, scratch: &Path) {
    let (at, empty) = (key("logs/a/1"), key("logs/a/2"));
    bucket.create(&at, Bytes::from("0123456789")).await.unwrap();
    bucket.create(&empty, Bytes::new()).await.unwrap();
    for (range, part) in
        [(0..10, "0123456789"), (0..1, "0"), (3..7, "3456"), (9..10, "9"), (4..4, ""), (10..10, "")]
    {
        assert_eq!(bucket.get_range(&at, range.clone()).await.unwrap().unwrap(), part, "{range:?}");
    }
    assert_eq!(bucket.get_range(&empty, 0..0).await.unwrap().unwrap(), "");
    let beyond = [(&at, 0..11), (&at, 9..11), (&at, 10..11), (&at, 90..91), (&at, 11..11), (&empty, 0..1)];
    for (key, range) in beyond {
        let refused = bucket.get_range(key, range.clone()).await.unwrap_err();
        assert!(
            matches!(&refused, BucketError::Corrupt { object, .. } if object == key.as_str()),
            "{range:?}: {refused:?}"
        );
    }

    let large = scratch.join("large");
    std::fs::File::create(&large).unwrap().set_len(40 << 20).unwrap();
    bucket.put_file(&key("large"), &large, HeaderPatch::None).await.unwrap();
    assert_eq!(bucket.get_range(&key("large"), 36 << 20..37 << 20).await.unwrap().unwrap().len(), 1 << 20);
    let refused = bucket.get_range(&key("large"), 0..33 << 20).await.unwrap_err();
    assert!(matches!(refused, BucketError::Corrupt { .. }), "{refused:?}");
    let refused = bucket.get_tail(&key("large"), 33 << 20).await.unwrap_err();
    assert!(matches!(refused, BucketError::Corrupt { .. }), "{refused:?}");
}

/// A tail read returns the last bytes of an object, or the whole object if it is shorter.
async fn object_tail_read_returns_last_bytes(bucket: &dyn Bucket, _: &Path) {
    let (at, empty) = (key("logs/a/1"), key("logs/a/2"));
    bucket.create(&at, Bytes::from("0123456789")).await.unwrap();
    bucket.create(&empty, Bytes::new()).await.unwrap();
    for (count, tail) in [(0, ""), (1, "9"), (4, "6789"), (10, "0123456789"), (11, "0123456789")] {
        assert_eq!(bucket.get_tail(&at, count).await.unwrap().unwrap(), tail, "the last {count}");
    }
    assert_eq!(bucket.get_tail(&at, u64::MAX).await.unwrap().unwrap(), "0123456789");
    for count in [0, 1, 100] {
        assert_eq!(bucket.get_tail(&empty, count).await.unwrap().unwrap(), "");
    }
}

/// The bucket passes the conformance check, and the check leaves no object.
async fn bucket_passes_conformance_check_without_leftovers(bucket: &dyn Bucket, _: &Path) {
    probe(bucket, &Env::system()).await.unwrap();
    assert_eq!(listed(bucket, "").await, Vec::<String>::new());
}

/// The error of the conformance check on a real server with this flaw.
async fn finding(flaw: S3Flaw) -> ConformanceError {
    let server = S3Server::start_with(flaw).await.unwrap();
    server.create_bucket("flawed").await.unwrap();
    let bucket = open_bucket("s3://flawed", server.variables(), Env::system()).await.unwrap();
    let finding = probe(&bucket, &Env::system()).await.unwrap_err();
    assert_eq!(listed(&bucket, "").await, Vec::<String>::new());
    finding
}

/// The conformance check rejects an S3 server that ignores the condition of a conditional create.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_ignoring_conditions_fails_conformance_check() {
    let finding = finding(S3Flaw::IgnoresConditions).await;
    assert!(matches!(finding, ConformanceError::ConditionIgnored { .. }), "{finding:?}");
}

/// The conformance check rejects an S3 server on which multiple concurrent creates of one object succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_with_multiple_create_winners_fails_conformance_check() {
    let finding = finding(S3Flaw::ChecksThenWrites).await;
    assert!(matches!(finding, ConformanceError::MultipleWinners { winners: 2.., .. }), "{finding:?}");
}

/// Opening a bucket in a missing directory, or at a plain file, fails and creates no directory.
#[tokio::test]
async fn missing_directory_is_not_an_empty_bucket() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("mount");
    let missing = open_local(&directory).await.unwrap_err();
    assert!(matches!(&missing, OpenBucketError::Directory { path, .. } if *path == directory), "{missing}");
    assert!(!directory.exists(), "an open creates no directory");

    std::fs::write(&directory, "a file").unwrap();
    assert!(matches!(open_local(&directory).await, Err(OpenBucketError::Directory { .. })));
}

/// If the directory of a bucket is moved away, every operation fails as unreachable and writes nothing at the mount
/// point.
#[tokio::test]
async fn removed_directory_is_not_an_empty_bucket() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("mount");
    std::fs::create_dir(&directory).unwrap();
    let bucket = open_local(&directory).await.unwrap();
    bucket.create(&key("subjects/a/1"), Bytes::from("a")).await.unwrap();
    std::fs::rename(&directory, parent.path().join("unmounted")).unwrap();
    std::fs::create_dir(&directory).unwrap(); // The empty mount point.

    let source = parent.path().join("file");
    std::fs::write(&source, "file").unwrap();
    let (at, target) = (key("subjects/a/1"), parent.path().join("target"));
    let failures = [
        bucket.list(&BucketPrefix::ALL).await.map(drop).unwrap_err(),
        bucket.list(&prefix("subjects/a/")).await.map(drop).unwrap_err(),
        bucket.get(&at).await.map(drop).unwrap_err(),
        bucket.get_range(&at, 0..1).await.map(drop).unwrap_err(),
        bucket.get_tail(&at, 1).await.map(drop).unwrap_err(),
        bucket.get_file(&at, &target).await.map(drop).unwrap_err(),
        bucket.create(&at, Bytes::from("b")).await.map(drop).unwrap_err(),
        bucket.put_file(&at, &source, HeaderPatch::None).await.map(drop).unwrap_err(),
        bucket.delete(&at).await.unwrap_err(),
    ];
    for failure in failures {
        assert!(matches!(failure, BucketError::Unreachable { .. }), "{failure:?}");
    }
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "no operation writes into the mount point");
}

/// A listing of a directory bucket skips staged uploads and foreign files.
#[tokio::test]
async fn listing_skips_files_that_are_no_objects() {
    let directory = TempDir::new().unwrap();
    let bucket = open_local(directory.path()).await.unwrap();
    bucket.create(&key("a/object"), Bytes::from("a")).await.unwrap();
    // A staged file of an interrupted upload, and a file of a user.
    std::fs::write(directory.path().join("a/object#1"), "staged").unwrap();
    std::fs::write(directory.path().join("a/read me.txt"), "hello").unwrap();
    assert_eq!(listed(&bucket, "").await, ["a/object"]);
}

/// A listing deletes old staged files of unfinished uploads below its prefix, and keeps recent and foreign files.
#[tokio::test]
async fn listing_deletes_old_staged_files() {
    let directory = TempDir::new().unwrap();
    let bucket = open_local(directory.path()).await.unwrap();
    bucket.create(&key("subjects/a/object"), Bytes::from("a")).await.unwrap();
    bucket.create(&key("subjects/b/object"), Bytes::from("b")).await.unwrap();
    let put = |name: &str, age: Duration| {
        let path = directory.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(std::fs::metadata(directory.path()).unwrap().modified().unwrap() - age).unwrap();
        path
    };
    let (long_ago, lately) = (Duration::from_secs(2 * 3_600), Duration::from_secs(1_800));
    let leftovers =
        ["subjects/a/object#1", "subjects/a/gone#18446744073709551615"].map(|name| put(name, long_ago));
    let kept = [
        // Its upload may still run.
        put("subjects/a/new#2", lately),
        // Files of users.
        put("subjects/a/notes#a", long_ago),
        put("subjects/a/to do #3", long_ago),
        put("subjects/a/#", long_ago),
        // The listing does not cover this prefix.
        put("subjects/b/object#1", long_ago),
    ];
    assert_eq!(listed(&bucket, "subjects/a/").await, ["subjects/a/object"]);
    assert!(leftovers.iter().all(|path| !path.exists()), "{leftovers:?}");
    let gone = |paths: &[PathBuf]| paths.iter().filter(|path| !path.exists()).cloned().collect::<Vec<_>>();
    assert_eq!(gone(&kept), Vec::<PathBuf>::new());
    assert_eq!(listed(&bucket, "").await.len(), 2);
    assert_eq!(gone(&kept), kept[4..]);
}

/// Polls `waiting` beside other bucket calls, enough for it to complete if it were not blocked.
async fn assert_blocked(bucket: &dyn Bucket, waiting: &mut (impl Future + Unpin), by: &str) {
    let other_work = async {
        for _ in 0..200 {
            bucket.get(&key("chain/1")).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        _ = waiting => panic!("the call did not wait for {by}"),
        () = other_work => {}
    }
}

/// The lock files of a directory bucket, opened as another process opens them.
fn locks(directory: &Path) -> Vec<std::fs::File> {
    let locks = std::fs::read_dir(directory.join("dormouse.locks")).unwrap();
    let open = |path| std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    locks.map(|entry| open(entry.unwrap().path())).collect()
}

/// A directory lock of another process makes a delete wait for a listing and a listing wait for a delete.
#[tokio::test]
async fn listings_and_deletes_exclude_each_other_across_processes() {
    let directory = TempDir::new().unwrap();
    let bucket = open_local(directory.path()).await.unwrap();
    let (here, elsewhere) = ("subjects/here/", "subjects/elsewhere/");
    let (old, kept) = (key("subjects/here/1"), key("subjects/elsewhere/1"));
    for key in [&old, &kept] {
        bucket.create(key, Bytes::from("1")).await.unwrap();
    }
    listed(&bucket, here).await;
    let [lock] = &locks(directory.path())[..] else { panic!("a folder has one lock file") };

    lock.lock_shared().unwrap();
    assert_eq!(listed(&bucket, here).await, ["subjects/here/1"], "listings do not exclude each other");
    assert_eq!(listed(&bucket, "").await.len(), 2);
    let mut deletion = bucket.delete(&old);
    assert_blocked(&bucket, &mut deletion, "a listing").await;
    assert!(bucket.get(&old).await.unwrap().is_some());
    lock.unlock().unwrap();
    deletion.await.unwrap();
    assert_eq!(bucket.get(&old).await.unwrap(), None);

    lock.lock().unwrap();
    let (folder, everything) = (prefix(here), BucketPrefix::ALL);
    let (mut listing, mut whole) = (bucket.list(&folder), bucket.list(&everything));
    assert_blocked(&bucket, &mut listing, "a deletion").await;
    assert_blocked(&bucket, &mut whole, "a deletion").await;
    assert_eq!(listed(&bucket, elsewhere).await, ["subjects/elsewhere/1"], "the lock blocks no other folder");
    lock.unlock().unwrap();
    assert_eq!(listing.await.unwrap(), []);
    assert_eq!(whole.await.unwrap().len(), 1);
}

/// If a directory lock stays held, listings and deletes fail as unreachable; after its release they succeed.
#[tokio::test(start_paused = true)]
async fn stuck_directory_lock_times_out() {
    let directory = TempDir::new().unwrap();
    let bucket = open_local(directory.path()).await.unwrap();
    let (folder, at) = (prefix("subjects/here/"), key("subjects/here/1"));
    bucket.create(&at, Bytes::from("1")).await.unwrap();
    bucket.list(&folder).await.unwrap();
    let locks = locks(directory.path());
    locks[0].lock().unwrap();
    for failure in [bucket.list(&folder).await.map(drop).unwrap_err(), bucket.delete(&at).await.unwrap_err()]
    {
        let BucketError::Unreachable { source, .. } = &failure else { panic!("{failure:?}") };
        assert!(source.to_string().contains("dormouse.locks/"), "{source}");
    }
    assert!(bucket.get(&at).await.unwrap().is_some());
    locks[0].unlock().unwrap();
    bucket.delete(&at).await.unwrap();
    assert_eq!(bucket.list(&folder).await.unwrap(), []);
}

/// The conformance check removes its folders in a directory bucket and touches no other folder.
#[tokio::test]
async fn conformance_check_leaves_no_folders() {
    let directory = TempDir::new().unwrap();
    let bucket = open_local(directory.path()).await.unwrap();
    bucket.create(&key("subjects/here/1"), Bytes::from("1")).await.unwrap();
    bucket.delete(&key("subjects/here/1")).await.unwrap();
    probe(&bucket, &Env::system()).await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("probe")).unwrap().count(), 0);
    assert!(directory.path().join("subjects/here").is_dir(), "other folders remain");
}

/// A store that returns these statuses, one per request, and then the number of requests.
fn store_with_fixed_replies(statuses: &'static [&'static str]) -> (String, std::thread::JoinHandle<usize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::Builder::new().spawn(move || {
        use std::io::{BufRead, BufReader, Read, Write};
        for (number, status) in statuses.iter().enumerate() {
            let Ok((mut stream, _)) = listener.accept() else { return number };
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while lines.read_line(&mut line).unwrap() > 2 {
                let lower = line.to_ascii_lowercase();
                if lower.starts_with("get /stop") {
                    return number;
                }
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            lines.read_exact(&mut vec![0; length]).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        }
        statuses.len()
    });
    (url, serving.unwrap())
}

/// The bucket sends each create once: after a 503 the outcome is unknown, after a 403 it is denied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_is_sent_once() {
    // The first create may have taken effect before the 503; at the second, the credentials have expired.
    let (url, serving) = store_with_fixed_replies(&["503 Slow Down", "403 Forbidden", "403 Forbidden"]);
    let mut variables = unreachable_store_settings();
    variables.push(("AWS_ENDPOINT_URL".to_owned(), url.clone()));
    let bucket = open_bucket("s3://bucket", variables, Env::system()).await.unwrap();
    let failure = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
    assert!(failure.is_unknown(), "{failure:?}");
    let outcome = bucket.create(&key("a"), Bytes::from("a")).await.unwrap_err();
    assert!(matches!(outcome, BucketError::Denied { .. }), "{outcome:?}");
    let mut stop = std::net::TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    std::io::Write::write_all(&mut stop, b"GET /stop HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(serving.join().unwrap(), 2);
}

/// Of two buckets on one directory, only the first create of an object succeeds, and both read its bytes.
#[tokio::test]
async fn directory_bucket_is_shared_by_two_instances() {
    let directory = TempDir::new().unwrap();
    let (one, other) =
        (open_local(directory.path()).await.unwrap(), open_local(directory.path()).await.unwrap());
    assert_eq!(one.create(&key("a"), Bytes::from("one")).await.unwrap(), Created::New);
    assert_eq!(other.create(&key("a"), Bytes::from("other")).await.unwrap(), Created::Exists);
    assert_eq!(other.get(&key("a")).await.unwrap().unwrap(), "one");
}

/// The server rejects an invalid bucket URL, and the error does not repeat its secrets.
#[tokio::test]
async fn invalid_bucket_url_is_rejected_without_secrets() {
    for wrong in [
        "",
        "bucket",
        "/var/bucket",
        "./bucket",
        "ftp://host/path",
        "file://elsewhere/path",
        "s3:///path",
        "s3://user:geheim@bucket",
        "s3://bucket?token=geheim",
        "file:///",
        "file:////",
        "file:///var/..",
        "s3://bucket:9000",
        "s3://bucket:9000/path",
        "gs://bucket:443",
        "az://container:10000",
    ] {
        let refused = open_bucket(wrong, [], Env::system()).await.unwrap_err();
        assert!(matches!(refused, OpenBucketError::InvalidUrl { .. }), "{wrong}: {refused}");
        assert!(!refused.to_string().contains("geheim"), "{refused}");
    }
}

/// The settings that object_store reads from the environment, for a store whose port is closed.
fn unreachable_store_settings() -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "geheim"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_PROFILE", "is not ours"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// If the object store is unreachable, the conformance check fails and the outcome of each operation is unknown.
#[tokio::test]
async fn unreachable_store_makes_outcomes_unknown() {
    let bucket =
        open_bucket("s3://bucket/some/where", unreachable_store_settings(), Env::system()).await.unwrap();
    assert!(!format!("{bucket:?}").contains("geheim"));
    let refused = probe(&bucket, &Env::system()).await.unwrap_err();
    assert!(refused.to_string().contains("cannot be used"), "{refused}");
    let failure = bucket.list(&BucketPrefix::ALL).await.unwrap_err();
    assert!(matches!(failure, BucketError::Unreachable { .. }) && failure.is_unknown(), "{failure:?}");

    let until = tokio::time::sleep(Duration::from_millis(10));
    let outcome = create_once(&bucket, &key("a"), Bytes::from("a"), until).await.unwrap();
    assert!(matches!(outcome, CreateOutcome::Unknown(_)), "{outcome:?}");
}

/// If the settings of the object store are invalid, the error names the prefix of their environment variables.
#[tokio::test]
async fn invalid_store_settings_error_names_variables() {
    let mut variables = unreachable_store_settings();
    variables.push(("AWS_ALLOW_HTTP".to_owned(), "perhaps".to_owned()));
    let refused = open_bucket("s3://bucket", variables, Env::system()).await.unwrap_err();
    assert!(matches!(refused, OpenBucketError::Settings { variables: "AWS_", .. }), "{refused:?}");
}
