//! Real processes: started with their output in a file, signalled, awaited, and ended with their owner.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

/// The start command of a process, kept for a restart.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// The process name, which also names the log file.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The file for its output. A restart appends to it.
    pub log: PathBuf,
}

impl ProcessSpec {
    /// Creates a command for a process `name` that runs `program`, with its output in `<log_dir>/<name>.log`.
    #[must_use]
    pub fn new(name: &str, program: PathBuf, log_dir: &Path) -> Self {
        let log = log_dir.join(format!("{name}.log"));
        Self { name: name.to_owned(), program, arguments: Vec::new(), environment: Vec::new(), log }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I, A>(mut self, arguments: I) -> Self
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString>,
    {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Starts the process. The settings of the user that runs the tests do not reach it: `DORMOUSE_…` and `NATS_…`
    /// variables are removed. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the program cannot be run or the log cannot be written.
    pub fn start(&self) -> anyhow::Result<Process> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DORMOUSE_") || name.starts_with("NATS_")) {
                command.env_remove(name);
            }
        }
        end_with_parent(&mut command);
        let child = command
            .args(&self.arguments)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal is for the test runner, not for its processes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        Ok(Process { spec: self.clone(), child })
    }
}

/// Makes the kernel kill the process when the thread that starts it ends, so that neither SIGKILL nor a test runner
/// that gives up leaves a process running. The kernel watches the thread, which is the one of a test or of `main`.
#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let arrange = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the call.
        let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        if u32::try_from(now) == Ok(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only system calls are made: nothing is allocated, no lock is taken, and an error
    // made of a number needs no allocation either.
    #[expect(unsafe_code, reason = "there is no other way to ask the kernel on the child's behalf")]
    unsafe {
        command.pre_exec(arrange);
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_: &mut Command) {}

/// A running process. It is killed when dropped, and on Linux also when the thread that started it ends.
#[derive(Debug)]
pub struct Process {
    spec: ProcessSpec,
    child: Child,
}

impl Process {
    /// Returns its start command.
    #[must_use]
    pub fn spec(&self) -> &ProcessSpec {
        &self.spec
    }

    /// Returns its process id, as long as it has not been awaited.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Returns the exit status, if it has ended.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// Cancelling the wait leaves it running.
    ///
    /// # Errors
    /// If it has not ended within `deadline`.
    pub async fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let name = &self.spec.name;
        tokio::time::timeout(deadline, self.child.wait())
            .await
            .with_context(|| format!("{name} is still running after {} s", deadline.as_secs()))?
            .with_context(|| format!("cannot wait for {name}"))
    }

    /// SIGKILL; waits until it has ended.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.start_kill().with_context(|| format!("cannot kill {}", self.spec.name))?;
        self.wait(Duration::from_secs(10)).await.map(drop)
    }

    /// SIGTERM; waits until it has ended.
    ///
    /// # Errors
    /// If it has not ended within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline).await
    }

    /// SIGINT, as Ctrl-C sends it.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.signal(Signal::INT)
    }

    /// SIGSTOP; waits until every thread is stopped.
    ///
    /// # Errors
    /// If it has ended already.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        let name = &self.spec.name;
        let pid = self.pid().with_context(|| format!("{name} has ended"))?;
        tokio::time::timeout(Duration::from_secs(10), async {
            while !is_stopped(pid)? {
                anyhow::ensure!(pid_is_alive(pid), "{name} has ended");
                tokio::task::yield_now().await;
            }
            Ok(())
        })
        .await
        .with_context(|| format!("{name} does not stop"))?
    }

    /// Returns whether every thread of it is stopped, for example because it has stopped itself.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pid().is_some_and(|pid| is_stopped(pid).unwrap_or(false))
    }

    /// SIGCONT: it continues.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Returns its resident memory in bytes.
    ///
    /// # Errors
    /// If it has ended already, or the system has no `/proc`.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        memory_of(self.pid().with_context(|| format!("{} has ended", self.spec.name))?, "VmRSS:")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let name = &self.spec.name;
        let pid = self.pid().with_context(|| format!("{name} has ended"))?;
        signal_pid(pid, signal).with_context(|| format!("cannot signal {name}"))
    }
}

/// Returns the peak resident memory of a process so far, in bytes.
///
/// # Errors
/// If it has ended already, or the system has no `/proc`.
pub fn peak_resident_bytes(pid: u32) -> anyhow::Result<u64> {
    memory_of(pid, "VmHWM:")
}

fn memory_of(pid: u32, what: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix(what))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .with_context(|| format!("no {what} in /proc"))?;
    Ok(kilobytes.trim().parse::<u64>()? * 1_024)
}

/// Sends SIGINT, as Ctrl-C does, to a process of another owner.
///
/// # Errors
/// If there is no such process.
pub fn interrupt_pid(pid: u32) -> anyhow::Result<()> {
    signal_pid(pid, Signal::INT)
}

/// Sends SIGKILL to a process of another owner.
///
/// # Errors
/// If there is no such process.
pub fn kill9_pid(pid: u32) -> anyhow::Result<()> {
    signal_pid(pid, Signal::KILL)
}

/// Returns whether a process with this id exists and has not ended (a zombie has ended).
#[must_use]
pub fn pid_is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(state(&stat), None | Some('Z' | 'X')))
}

/// Returns whether every thread of a process is stopped.
fn is_stopped(pid: u32) -> anyhow::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        if state(&stat) != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the state in a `stat` file of `/proc`: `pid (name) state …`, where the name may contain any character, also
/// brackets.
fn state(stat: &str) -> Option<char> {
    stat.rsplit(')').next()?.trim().chars().next()
}

fn signal_pid(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    rustix::process::kill_process(pid, signal).context("no such process")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A child process ends when the thread that started it ends.
    #[test]
    fn process_ends_with_the_starting_thread() {
        let folder = tempfile::tempdir().unwrap();
        let spec = ProcessSpec::new("sleeper", "sleep".into(), folder.path()).args(["3600"]);
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let process = runtime.block_on(async { spec.start() }).unwrap();
            let pid = process.pid().unwrap();
            assert!(pid_is_alive(pid));
            // As after SIGKILL, nothing is dropped.
            std::mem::forget((process, runtime));
            pid
        };
        let pid = std::thread::scope(|threads| threads.spawn(start).join()).unwrap();
        while pid_is_alive(pid) {
            std::thread::yield_now();
        }
    }
}
