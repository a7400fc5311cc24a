//! The program from an operator's view: error output and exit codes if it cannot start. No test needs NATS.

use std::path::Path;
use std::process::{Command, Output};

use dormouse_engine::data_dir::DataDir;
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-persist-server"));
    // Variables of the test environment must not configure this server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DORMOUSE_") {
            command.env_remove(name);
        }
    }
    // No server listens on the discard port. A program that starts up to here waits for NATS; no test here gets so far.
    command.args(["--nats", "nats://127.0.0.1:9"]).args(arguments);
    command
}

fn ends(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in: {stderr}");
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

/// The program exits with code 2 and names each missing or invalid setting.
#[test]
fn server_exits_2_and_names_each_invalid_setting() {
    ends(
        &["--level", "often"],
        2,
        &["--name is missing", "--bucket is missing", "--data-dir is missing", "--level"],
    );
    let (_folder, bucket, data) = folders();
    let usual = ["--name", "a", "--bucket", &bucket, "--data-dir", &data];
    ends(&[usual.as_slice(), &["--log", "a=b=c"]].concat(), 2, &["--log"]);
}

/// A variable without a value counts as unset: a required setting is missing, and another one has its default.
#[test]
fn settings_variable_without_value_counts_as_unset() {
    let mut program = program(&["--bucket", "file:///nowhere"]);
    for name in ["NAME", "DATA_DIR", "CAPACITY", "MAX_OPEN", "METRICS_LISTEN", "TENANT_ACCOUNTS", "NATS_USER"]
    {
        program.env(format!("DORMOUSE_{name}"), "");
    }
    let output = program.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let faults: Vec<&str> = stderr.lines().skip(1).map(str::trim).collect();
    assert_eq!(faults, ["--name is missing", "--data-dir is missing"]);
}

/// The program exits with code 3 if the bucket cannot be used.
#[test]
fn server_exits_3_on_unusable_bucket() {
    let (folder, _, data) = folders();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let url = format!("file://{}", file.display());
    ends(&["--name", "a", "--bucket", &url, "--data-dir", &data], 3, &["bucket unusable"]);
    ends(&["--name", "a", "--bucket", "ftp://x/y", "--data-dir", &data], 3, &["bucket unusable"]);
}

/// The error output hides the secrets of the bucket URL.
#[test]
fn server_output_hides_bucket_url_secrets() {
    let (_folder, _, data) = folders();
    let url = "s3://key:hunter2@bucket/?token=hunter2";
    let output = run(&["--name", "a", "--bucket", url, "--data-dir", &data]);
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("***") && !stderr.contains("hunter2"), "{stderr}");
}

/// The program exits with code 4 if the data directory is no directory or is in use.
#[test]
fn server_exits_4_on_unusable_data_dir() {
    let (folder, bucket, data) = folders();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let not_a_directory = text(&file);
    ends(&["--name", "a", "--bucket", &bucket, "--data-dir", &not_a_directory], 4, &["data directory"]);
    let _held = DataDir::open(Path::new(&data)).unwrap();
    ends(&["--name", "a", "--bucket", &bucket, "--data-dir", &data], 4, &["in use by another process"]);
}

/// The program exits with code 1 if the NATS credentials cannot be used; it does not wait for NATS.
#[test]
fn server_exits_1_on_unusable_nats_credentials() {
    let (_folder, bucket, data) = folders();
    let usual = ["--name", "a", "--bucket", &bucket, "--data-dir", &data];
    ends(&[usual.as_slice(), &["--nats-creds", "/no/such.creds"]].concat(), 1, &["NATS connection failed"]);
}
