//! The program as operators meet it: what it says and how it exits when it cannot start. None of this needs NATS.

use std::path::Path;
use std::process::{Command, Output};

use dormouse_storage::data_dir::DataDir;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-persist-server"));
    // Whatever the environment of the tests says is not meant for this server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DORMOUSE_") {
            command.env_remove(name);
        }
    }
    // Nothing listens on the discard port: what gets this far waits for NATS, and no test here does.
    command.args(["--nats", "nats://127.0.0.1:9"]).args(arguments).output().unwrap()
}

fn ends(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

fn folders() -> (TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("bucket");
    std::fs::create_dir(&bucket).unwrap();
    let (bucket, data) = (format!("file://{}", bucket.display()), text(&folder.path().join("data")));
    (folder, bucket, data)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn wrong_settings_exit_2_and_name_every_fault() {
    ends(
        &["--level", "often"],
        2,
        &["--name is missing", "--bucket is missing", "--data-dir is missing", "--level"],
    );
    let (_folder, bucket, data) = folders();
    let usual = ["--name", "a", "--bucket", &bucket, "--data-dir", &data];
    ends(&[usual.as_slice(), &["--log", "a=b=c"]].concat(), 2, &["--log"]);
}

#[test]
fn a_bucket_that_cannot_be_used_exits_3() {
    let (folder, _, data) = folders();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let url = format!("file://{}", file.display());
    ends(&["--name", "a", "--bucket", &url, "--data-dir", &data], 3, &["the bucket cannot be used"]);
    ends(&["--name", "a", "--bucket", "ftp://x/y", "--data-dir", &data], 3, &["the bucket cannot be used"]);
}

#[test]
fn a_secret_in_the_bucket_url_is_not_printed() {
    let (_folder, _, data) = folders();
    let url = "s3://key:hunter2@bucket/?token=hunter2";
    let output = run(&["--name", "a", "--bucket", url, "--data-dir", &data]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("***") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_data_directory_that_cannot_be_used_exits_4() {
    let (folder, bucket, data) = folders();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let not_a_directory = text(&file);
    ends(&["--name", "a", "--bucket", &bucket, "--data-dir", &not_a_directory], 4, &["data directory"]);
    let _held = DataDir::open(Path::new(&data)).unwrap();
    ends(&["--name", "a", "--bucket", &bucket, "--data-dir", &data], 4, &["in use by another process"]);
}

#[test]
fn nats_that_refuses_us_is_not_waited_for() {
    let (_folder, bucket, data) = folders();
    let usual = ["--name", "a", "--bucket", &bucket, "--data-dir", &data];
    ends(&[usual.as_slice(), &["--nats-creds", "/no/such.creds"]].concat(), 1, &["cannot connect to NATS"]);
}
