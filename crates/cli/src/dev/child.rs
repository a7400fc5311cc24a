//! One child process: started so that it does not outlive us, watched until it ends.
//!
//! A child is started in three layers, each of which holds without the others:
//!
//! 1. It is in a process group of its own, so that Ctrl-C in a terminal reaches `dormouse dev` alone, which then stops
//!    its children in order.
//! 2. On Linux it is started through this very program (`dormouse run-child`), which asks the kernel for SIGTERM when
//!    its parent dies, sees that the parent is still there, and then becomes the program asked for. So children stop
//!    also when `dormouse dev` is killed with SIGKILL. The kernel means the *thread* that started them: we run on
//!    one thread, the main one.
//! 3. Dropping the handle kills it.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use dormouse_runtime::{Env, Tasks};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::args::RunChild;
use crate::dev::fleet::Input;
use crate::error::Failure;

/// How long the last lines of a child that has ended are waited for: a grandchild could hold the pipe open.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Longest log line that is shown whole, in bytes.
const LINE_BYTES: u64 = 16 * 1_024;

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Stands for a child that runs. Dropping it kills the child.
#[derive(Debug)]
pub struct ChildHandle {
    /// Its process id.
    pub pid: u32,
    signals: mpsc::Sender<Signal>,
}

impl ChildHandle {
    /// Sends it a signal; nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        // At most two are ever sent, SIGTERM and SIGKILL; a full queue means that both are on their way.
        let _ = self.signals.try_send(signal);
    }
}

/// Starts a program as the child called `name`, shows its log under that name (as JSON where `json`), and reports [`Input::Ready`] when
/// `ready` is done and [`Input::Ended`] when the child has ended.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    tasks: &Tasks,
    inputs: mpsc::Sender<Input>,
    name: &str,
    program: &Program,
    json: bool,
    ready: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<ChildHandle> {
    let mut child = command(program).spawn()?;
    let pid = child.id().unwrap_or_default();
    let (signals, orders) = mpsc::channel(2);
    let log = {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let name = name.to_owned();
        async move { tokio::join!(show(&name, stdout, json), show(&name, stderr, json)) }
    };
    tasks.spawn("child", watch(name.to_owned(), child, orders, inputs, log, ready));
    Ok(ChildHandle { pid, signals })
}

fn command(program: &Program) -> Command {
    let mut command = wrapped(program);
    command
        .args(&program.arguments)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // What the user set for the command line tool is not meant for the daemons: everything they need is an argument,
    // except what to log.
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if (text.starts_with("DORMOUSE_") && text != "DORMOUSE_LOG") || text == "NATS_URL" {
            command.env_remove(&variable);
        }
    }
    command
}

#[cfg(target_os = "linux")]
fn wrapped(program: &Program) -> Command {
    // Not the path of this program but the program itself: the file may have been replaced since we started.
    let mut command = Command::new("/proc/self/exe");
    // Without the `--` the program's flags would be taken for ours.
    command.arg0("dormouse").args(["run-child", "--", &std::process::id().to_string()]).arg(&program.path);
    command
}

#[cfg(not(target_os = "linux"))]
fn wrapped(program: &Program) -> Command {
    Command::new(&program.path)
}

/// Becomes the program, having arranged to be told when the parent dies. Returns only when that fails.
pub fn run_child(arguments: &RunChild) -> Failure {
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            return Failure::new(format!("cannot ask for a signal when the parent dies: {error}"));
        }
        // It may have died before we asked.
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if u32::try_from(parent) != Ok(arguments.parent) {
            return Failure::new("the parent has died".to_owned());
        }
    }
    let error = std::process::Command::new(&arguments.program).args(&arguments.arguments).exec();
    Failure::new(format!("cannot start {}: {error}", Path::new(&arguments.program).display()))
}

async fn watch(
    name: String,
    mut child: Child,
    mut orders: mpsc::Receiver<Signal>,
    inputs: mpsc::Sender<Input>,
    log: impl Future,
    ready: impl Future<Output = ()>,
) {
    let pid = child.id();
    tokio::pin!(log, ready);
    let (mut is_ready, mut log_ended) = (false, false);
    let how = loop {
        tokio::select! {
            biased;
            status = child.wait() => break describe(status),
            order = orders.recv() => match order {
                // The child has not been waited for, so its id is still its own.
                Some(signal) => send(pid, signal),
                None => return,
            },
            () = &mut ready, if !is_ready => {
                is_ready = true;
                // Nobody listens any more: the handle goes too, which kills the child.
                let _ = inputs.send(Input::Ready(name.clone())).await;
            }
            _ = &mut log, if !log_ended => log_ended = true,
        }
    };
    if !log_ended {
        let _ = tokio::time::timeout(LAST_LINES, log).await;
    }
    let _ = inputs.send(Input::Ended(name, how)).await;
}

fn send(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!(%error, ?pid, "a signal could not be sent");
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    // The standard library's own words: `exit status: 1`, `signal: 9 (SIGKILL)`.
    status.map_or_else(|error| format!("its end could not be seen: {error}"), |status| status.to_string())
}

/// A line of a child as we show it.
fn shown(name: &str, said: &[u8], json: bool) -> Vec<u8> {
    let said = said.strip_suffix(b"\n").unwrap_or(said);
    if json {
        let line = json!({ "process": name, "line": String::from_utf8_lossy(said) });
        format!("{line}\n").into_bytes()
    } else {
        [format!("{name:<11} | ").as_bytes(), said, b"\n"].concat()
    }
}

/// Copies what a child says to our standard error, each line under its name. Ends with the pipe.
async fn show(name: &str, pipe: Option<impl AsyncRead + Unpin>, json: bool) {
    let Some(pipe) = pipe else { return };
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut said = Vec::new();
        // A bound, so that a child that never ends its line does not fill our memory.
        let mut bounded = (&mut pipe).take(LINE_BYTES);
        match bounded.read_until(b'\n', &mut said).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = shown(name, &said, json);
        // When nobody reads our log, that must stop neither us nor the child: it is written on another thread, and a
        // failure is ignored.
        Env::system()
            .blocking(move || {
                let _ = std::io::stderr().write_all(&line);
            })
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_child_stands_under_its_name() {
        assert_eq!(shown("nats", b"up\n", false), b"nats        | up\n");
        assert_eq!(shown("nats", b"half", false), b"nats        | half\n");
        let line: serde_json::Value = serde_json::from_slice(&shown("nats", b"a \"b\"\n", true)).unwrap();
        assert_eq!(line, json!({ "process": "nats", "line": "a \"b\"" }));
    }
}
