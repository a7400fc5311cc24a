//! One child process: it never outlives this process, and a task watches it until it ends.
//!
//! Three independent mechanisms control a child:
//!
//! 1. A child has its own process group. So Ctrl-C in a terminal reaches only `dormouse dev`, which then stops its
//!    children in order.
//! 2. On Linux the child starts through this program (`dormouse run-child`). `run-child` requests SIGTERM from the
//!    kernel at the end of its parent, checks that the parent still runs, and then executes the requested program. So
//!    children also stop if `dormouse dev` is killed with SIGKILL. The kernel watches the *thread* that started the
//!    child: this process has one thread, the main thread.
//! 3. A drop of the handle kills the child.

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
use crate::dev::fleet::FleetInput;
use crate::error::Failure;

/// Maximum wait for the last lines of an ended child: a grandchild could keep the pipe open.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Maximum length of a log line, in bytes. A longer line is split.
const LINE_BYTES: u64 = 16 * 1_024;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Handle of a running child. A drop kills the child.
#[derive(Debug)]
pub struct ChildHandle {
    /// Its process id.
    pub pid: u32,
    signals: mpsc::Sender<Signal>,
}

impl ChildHandle {
    /// Sends a signal to the child. Does nothing if the child has ended.
    pub fn signal(&self, signal: Signal) {
        // At most two signals are sent, SIGTERM and SIGKILL. A full queue means that both are queued.
        let _ = self.signals.try_send(signal);
    }
}

/// Starts a program as the child `name`, and shows its log with that name (as JSON if `json`). Reports
/// [`FleetInput::Ready`] when `ready` is done, and [`FleetInput::Ended`] when the child has ended.
///
/// # Errors
/// If the program cannot be started.
pub fn start(
    tasks: &Tasks,
    inputs: mpsc::Sender<FleetInput>,
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
    // The user's variables are for the command line tool. The daemons get every setting as an argument, except the log
    // filter.
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
    // The running program instead of its path: the file may have been replaced since the start.
    let mut command = Command::new("/proc/self/exe");
    // Without the `--`, clap would read the program's flags as flags of `dormouse`.
    command.arg0("dormouse").args(["run-child", "--", &std::process::id().to_string()]).arg(&program.path);
    command
}

#[cfg(not(target_os = "linux"))]
fn wrapped(program: &Program) -> Command {
    Command::new(&program.path)
}

/// Requests a signal at the end of the parent, and executes the program in this process. Returns only on failure.
pub fn run_child(arguments: &RunChild) -> Failure {
    #[cfg(target_os = "linux")]
    {
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::TERM)) {
            return Failure::new(format!("cannot request a signal for the end of the parent: {error}"));
        }
        // The parent may have ended before the request.
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if u32::try_from(parent) != Ok(arguments.parent) {
            return Failure::new("the parent process has ended".to_owned());
        }
    }
    let error = std::process::Command::new(&arguments.program).args(&arguments.arguments).exec();
    Failure::new(format!("cannot start {}: {error}", Path::new(&arguments.program).display()))
}

async fn watch(
    name: String,
    mut child: Child,
    mut orders: mpsc::Receiver<Signal>,
    inputs: mpsc::Sender<FleetInput>,
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
                // The child has not been reaped, so its process id is still valid.
                Some(signal) => send(pid, signal),
                None => return,
            },
            () = &mut ready, if !is_ready => {
                is_ready = true;
                // No receiver is left. The drop of the handle kills the child.
                let _ = inputs.send(FleetInput::Ready(name.clone())).await;
            }
            _ = &mut log, if !log_ended => log_ended = true,
        }
    };
    if !log_ended {
        let _ = tokio::time::timeout(LAST_LINES, log).await;
    }
    let _ = inputs.send(FleetInput::Ended(name, how)).await;
}

fn send(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!(%error, ?pid, "signal not sent");
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    // The text of the standard library: `exit status: 1`, `signal: 9 (SIGKILL)`.
    status.map_or_else(|error| format!("unknown exit status: {error}"), |status| status.to_string())
}

/// An output line of a child, with the name of the process.
fn shown(name: &str, line_bytes: &[u8], json: bool) -> Vec<u8> {
    let line_bytes = line_bytes.strip_suffix(b"\n").unwrap_or(line_bytes);
    if json {
        let line = json!({ "process": name, "line": String::from_utf8_lossy(line_bytes) });
        format!("{line}\n").into_bytes()
    } else {
        [format!("{name:<11} | ").as_bytes(), line_bytes, b"\n"].concat()
    }
}

/// Copies the output of a child to standard error, each line with the child's name. Ends with the pipe.
async fn show(name: &str, pipe: Option<impl AsyncRead + Unpin>, json: bool) {
    let Some(pipe) = pipe else { return };
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line_bytes = Vec::new();
        // A bound, so a child that never ends its line cannot fill the memory.
        let mut bounded = (&mut pipe).take(LINE_BYTES);
        match bounded.read_until(b'\n', &mut line_bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = shown(name, &line_bytes, json);
        // A blocked or closed standard error must stop neither this process nor the child: another thread writes, and
        // failures are ignored.
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

    /// Each output line of a child carries its process name, as text and as JSON.
    #[test]
    fn child_output_line_carries_process_name() {
        assert_eq!(shown("nats", b"up\n", false), b"nats        | up\n");
        assert_eq!(shown("nats", b"half", false), b"nats        | half\n");
        let line: serde_json::Value = serde_json::from_slice(&shown("nats", b"a \"b\"\n", true)).unwrap();
        assert_eq!(line, json!({ "process": "nats", "line": "a \"b\"" }));
    }
}
