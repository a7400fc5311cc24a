use tempfile::TempDir;
use ulid::Ulid;

use super::*;

fn log(number: u128) -> LogId {
    LogId::new("persist-1".parse().unwrap(), Ulid::from(number))
}

/// A data directory is created with its parents, uses the documented paths and keeps its files on reopen.
#[test]
fn data_dir_is_created_and_reopens_with_same_files() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("var/lib/dormouse");
    let data_dir = DataDir::open(&path).unwrap();
    assert_eq!(data_dir.predecessor(), None);
    let subject = Subject::new("app.Orders").unwrap();
    assert_eq!(data_dir.subject_file(&subject), path.join("subjects/app.=4frders.sqlite3"));
    fs::write(data_dir.subject_file(&subject), "kept").unwrap();
    assert_eq!(
        data_dir.lost_file(&subject, Term::new(3), Nonce::new(Ulid::from(1_u128))),
        path.join("lost/app.=4frders/3-00000000000000000000000001.sqlite3")
    );
    drop(data_dir);
    let again = DataDir::open(&path).unwrap();
    assert_eq!(fs::read(again.subject_file(&subject)).unwrap(), b"kept");
}

/// Subject files are reused only if the boot id is known and unchanged and the disk lost nothing; otherwise they are
/// discarded.
#[test]
fn data_dir_reuses_files_only_within_one_machine_boot() {
    let path = TempDir::new().unwrap();
    let data_dir = DataDir::open(path.path()).unwrap();
    let file = data_dir.subject_file(&Subject::new("app.orders").unwrap());
    let mut discarded = 0;
    for (number, (boot_id, kept)) in (1_u128..).zip([
        (Some("first"), false),
        (Some("first"), true),
        (Some("second"), false),
        (Some("second"), true),
        (None, false),
        (None, false),
        (Some("second"), false),
    ]) {
        fs::write(&file, "written before").unwrap();
        data_dir.set_aside_unsynced(boot_id, Nonce::new(Ulid::from(number))).unwrap();
        assert_eq!(file.exists(), kept, "{boot_id:?}");
        discarded += u32::from(!kept);
        let folders = fs::read_dir(data_dir.discarded_dir()).unwrap();
        assert_eq!(folders.count(), discarded as usize);
    }
    data_dir.discard_on_next_start().unwrap();
    data_dir.set_aside_unsynced(Some("second"), Nonce::new(Ulid::from(99_u128))).unwrap();
    assert!(!file.exists(), "files are discarded after the disk has lost data");
}

/// A second process cannot open a data directory that is in use; after release it can.
#[test]
fn data_dir_is_locked_to_one_process() {
    let path = TempDir::new().unwrap();
    let first = DataDir::open(path.path()).unwrap();
    let refused = DataDir::open(path.path()).unwrap_err();
    assert!(matches!(refused, DataDirError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another process"));
    drop(first);
    DataDir::open(path.path()).unwrap();
}

/// A process finds the log id that the previous process recorded and does not report its own.
#[test]
fn data_dir_reports_log_of_previous_process() {
    let path = TempDir::new().unwrap();
    let first = DataDir::open(path.path()).unwrap();
    first.record_log(&log(1)).unwrap();
    assert_eq!(first.predecessor(), None, "a process is not its own predecessor");
    drop(first);
    let second = DataDir::open(path.path()).unwrap();
    assert_eq!(second.predecessor(), Some(&log(1)));
    second.record_log(&log(2)).unwrap();
    drop(second);
    assert_eq!(DataDir::open(path.path()).unwrap().predecessor(), Some(&log(2)));
}

/// An invalid log id counts as none, and the process can record a new one.
#[test]
fn data_dir_ignores_invalid_log_id() {
    let path = TempDir::new().unwrap();
    for wrong in [&b""[..], b"persist-1", b"\xff\xfe", b"persist-1-01J9Z3ZZZZZZZZZZZZZZZZZZZZ x"] {
        fs::write(path.path().join(LOG_ID_FILE), wrong).unwrap();
        let data_dir = DataDir::open(path.path()).unwrap();
        assert_eq!(data_dir.predecessor(), None);
        data_dir.record_log(&log(3)).unwrap();
        drop(data_dir);
        assert_eq!(DataDir::open(path.path()).unwrap().predecessor(), Some(&log(3)));
    }
}

/// A path that cannot be created, written or read gives the matching error.
#[test]
fn data_dir_unusable_path_gives_typed_error() {
    let parent = TempDir::new().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let refused = DataDir::open(&path).unwrap_err();
        assert!(matches!(refused, DataDirError::Create { .. }), "{refused:?}");
    }
    // Permissions do not stop a privileged user, but a folder at the path of the trial file does.
    for (blocked, name) in [("lock", "one"), ("subjects/.writable", "two")] {
        let path = parent.path().join(name);
        fs::create_dir_all(path.join(blocked)).unwrap();
        let refused = DataDir::open(&path).unwrap_err();
        assert!(matches!(refused, DataDirError::NotWritable { .. }), "{refused:?}");
    }
    let path = parent.path().join("three");
    fs::create_dir_all(path.join(LOG_ID_FILE)).unwrap();
    let refused = DataDir::open(&path).unwrap_err();
    assert!(matches!(refused, DataDirError::File { .. }), "{refused:?}");
}

/// Removing the files of a directory keeps its folders, such as `lost+found`.
#[test]
fn data_dir_file_removal_keeps_folders() {
    let path = TempDir::new().unwrap();
    fs::create_dir(path.path().join("lost+found")).unwrap();
    fs::write(path.path().join("app.orders.sqlite3"), "written before").unwrap();
    remove_files_in(path.path()).unwrap();
    let left: Vec<_> = fs::read_dir(path.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lost+found"]);
}
