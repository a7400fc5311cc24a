//! The program from an operator's view: its log and its signals. NATS does not answer, so it waits for NATS.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};

/// How long a step may take before the test fails.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a coordinator that logs to `log`, and waits until it has its data directory: it listens for signals before.
async fn started(data_dir: &Path, log: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-coordinator"));
    // Variables of the test environment must not configure this coordinator.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DORMOUSE_") {
            command.env_remove(name);
        }
    }
    // No server listens on the discard port.
    command.args(["--nats", "nats://127.0.0.1:9", "--log", "debug", "--data-dir"]).arg(data_dir);
    let mut child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
    let opened = async {
        while !data_dir.join("state").exists() {
            assert_eq!(child.try_wait().unwrap(), None, "the program ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, opened).await.expect("the data directory is not there");
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The exit code of a program that got SIGTERM. A program that does not end fails the test, and ends then.
async fn stopped(mut child: Child) -> Option<i32> {
    send(&child, Signal::TERM);
    let ended = async {
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(LIMIT, ended).await;
    let _ = child.kill();
    ended.expect("the program did not end after SIGTERM")
}

/// A pipe that takes no more bytes, and its reader.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4_096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

/// A log on a full disk does not end the program.
#[tokio::test]
async fn log_on_full_disk_leaves_program_running() {
    let folder = tempfile::tempdir().unwrap();
    let log = File::options().write(true).open("/dev/full").unwrap();
    let child = started(&folder.path().join("data"), log.into()).await;
    assert_eq!(stopped(child).await, Some(0));
}

/// A closed pipe as the log does not end the program.
#[tokio::test]
async fn log_in_closed_pipe_leaves_program_running() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let child = started(&folder.path().join("data"), writer.into()).await;
    assert_eq!(stopped(child).await, Some(0));
}

/// A log reader that reads nothing does not stall the program.
#[tokio::test]
async fn log_reader_that_stalls_does_not_stall_program() {
    let folder = tempfile::tempdir().unwrap();
    let (_reader, writer) = full_pipe();
    let child = started(&folder.path().join("data"), writer.into()).await;
    assert_eq!(stopped(child).await, Some(0));
}

/// SIGHUP, as from a terminal that closes, does not end the program.
#[tokio::test]
async fn sighup_leaves_program_running() {
    let folder = tempfile::tempdir().unwrap();
    let child = started(&folder.path().join("data"), Stdio::null()).await;
    send(&child, Signal::HUP);
    assert_eq!(stopped(child).await, Some(0));
}
