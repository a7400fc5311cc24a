use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use dormouse_format::keys::BucketPrefix;
use tempfile::TempDir;

use super::*;

const NAME: &str = "subjects/app.orders/000000000001.manifest";

fn make_pipe(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(status.success());
}

/// Whatever is in place of an object, reads report it at once, the create of the object fails, and listings show it.
#[test]
fn local_bucket_names_what_is_in_place_of_an_object() {
    type Put = fn(&Path);
    let cases: [(&str, Put); 5] = [
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a named pipe", make_pipe),
        ("a symbolic link that leads nowhere", |path| symlink("nowhere", path).unwrap()),
        ("a symbolic link that leads in a circle", |path| symlink(path.file_name().unwrap(), path).unwrap()),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ];
    for (expected, put) in cases {
        let folder = TempDir::new().unwrap();
        let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
        fs::create_dir_all(folder.path().join("subjects/app.orders")).unwrap();
        put(&folder.path().join(NAME));
        let key = BucketKey::new(NAME).unwrap();
        let errors = [
            directory.read_object(NAME, 1_000).map(drop).unwrap_err(),
            directory.read_range(NAME, &(0..1)).map(drop).unwrap_err(),
            directory.create(&key, b"manifest", 1).map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{expected}: {error}");
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
        let listed = directory.try_list(&BucketPrefix::ALL, Duration::ZERO).unwrap();
        let listed: Vec<_> = listed.iter().map(|entry| (entry.key.as_str(), entry.size_bytes)).collect();
        assert_eq!(listed, [(NAME, 0)], "{expected}");
    }
}

/// Something in place of a subject's folder is an error of reads and listings.
#[test]
fn local_bucket_names_what_is_in_place_of_a_folder() {
    let folder = TempDir::new().unwrap();
    let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
    fs::create_dir(folder.path().join("subjects")).unwrap();
    make_pipe(&folder.path().join("subjects/app.orders"));
    let error = directory.read_object(NAME, 1_000).unwrap_err();
    assert!(error.to_string().contains("below something that is not a folder"), "{error}");
    let prefix = BucketPrefix::new("subjects/app.orders/").unwrap();
    assert_eq!(directory.try_list(&prefix, Duration::ZERO).unwrap_err().kind(), ErrorKind::InvalidData);
}

/// A symbolic link to a regular file is an object.
#[test]
fn local_bucket_follows_link_to_regular_file() {
    let folder = TempDir::new().unwrap();
    let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
    fs::write(folder.path().join("file"), "1234").unwrap();
    symlink("file", folder.path().join("link")).unwrap();
    assert_eq!(directory.read_object("link", 4).unwrap(), Some(Ok(b"1234".to_vec())));
    assert_eq!(directory.read_range("link", &(1..3)).unwrap(), Some(RangeRead::Bytes(b"23".to_vec())));
    assert_eq!(directory.read_range("link", &(1..5)).unwrap(), Some(RangeRead::TooShort(4)));
}

/// The layout of a bucket decides which names are objects.
#[test]
fn local_bucket_layout_separates_objects_from_folders() {
    for object in [NAME, "subjects/a/blobs/1-x", "logs/p-1/0000000000000001", "lost/a/1-x.delta"] {
        assert!(is_object(object), "{object}");
    }
    for folder in
        ["subjects", "subjects/a.manifest", "subjects/a/blobs", "logs/p-1", "lost/a", "probe/1/listed"]
    {
        assert!(!is_object(folder), "{folder}");
    }
}

/// A read and a listing beside creates and deletions of the same object report the object or its absence, never a wrong
/// entry.
#[test]
fn local_bucket_read_beside_create_reports_no_wrong_entry() {
    let folder = TempDir::new().unwrap();
    let directory = LocalDirectory::open(folder.path().to_owned()).unwrap();
    fs::create_dir_all(folder.path().join("subjects/app.orders")).unwrap();
    let (path, key) = (folder.path().join(NAME), BucketKey::new(NAME).unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                fs::write(&path, b"manifest").unwrap();
                fs::remove_file(&path).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            directory.open_object(NAME).unwrap();
            assert!(listed(&path, &key).unwrap() != Some(Listed::Folder));
        }
    });
}
