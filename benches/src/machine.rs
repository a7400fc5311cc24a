//! Figures of the kernel: processor time, memory, disk, and the machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The kernel counts processor time in hundredths of a second on every Linux (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Returns the processor time that a process has used, in user space and in the kernel.
///
/// # Errors
/// If it has ended, or the system has no `/proc`.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets and may contain any character.
    let fields = stat.rsplit_once(')').context("a line of /proc that cannot be read")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = 0;
    for _ in 0..2 {
        ticks += fields.next().context("a short line in /proc")?.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Returns the processor time that everything on this machine has used, including the time that its host took.
///
/// # Errors
/// If the system has no `/proc`.
pub fn busy_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line =
        stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no cpu in /proc/stat")?;
    let fields = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen, ..] = fields[..] else {
        bail!("a short line in /proc/stat")
    };
    let ticks = user + nice + system + interrupts + soft_interrupts + stolen;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Returns the resident memory of a process, in bytes.
///
/// # Errors
/// If it has ended, or the system has no `/proc`.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .context("no VmRSS in /proc")?;
    Ok(kilobytes.trim().parse::<u64>()? * 1_024)
}

/// Returns the size of all files below a folder in bytes. Files that are deleted in the meantime do not count.
#[must_use]
pub fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => disk_bytes(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
            _ => 0,
        })
        .sum()
}

/// The limit of open files for this process and its children: the same as in a server's service file.
const FILES: u64 = 65_536;

/// Raises the limit of open files as far as possible. Returns the limit.
#[must_use]
pub fn raise_open_files() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.map_or(FILES, |hard| hard.max(FILES));
    for limit in [hard, before.maximum.unwrap_or(FILES)] {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).is_ok() {
            return limit;
        }
    }
    before.current.unwrap_or(FILES)
}

/// Writes the page cache to the disk, so that the next target does not wait for it.
pub fn settle_disk() {
    rustix::fs::sync();
}

/// Returns the average number of tasks that wanted a core over the last minute.
#[must_use]
pub fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The machine and the environment of the measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Number of cores.
    pub cores: usize,
    /// The processor.
    pub processor: String,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The number of tasks that wanted a core in the minute before the start.
    pub load_before: f64,
    /// The limit of open files per process.
    pub open_files: u64,
    /// The compiler.
    pub rustc: String,
    /// The measured commit.
    pub commit: String,
    /// The day, as in 2026-11-28, in UTC.
    pub date: String,
}

impl Machine {
    /// Describes this machine.
    #[must_use]
    pub fn here(open_files: u64) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let output_of = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            )
        };
        let model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| "processor".to_owned(), |(_, name)| name.trim().to_owned());
        let kilobytes = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap_or(0_u64);
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: model,
            memory_gib: kilobytes.div_ceil(1024 * 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: load(),
            open_files,
            rustc: output_of("rustc", &["--version"]).split(' ').take(2).collect::<Vec<_>>().join(" "),
            commit: output_of("git", &["describe", "--always", "--abbrev=10", "--dirty= with changes"]),
            date: output_of("date", &["-u", "+%F"]),
        }
    }
}
