//! What the kernel knows: processor time, memory, disk, and what machine this is.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// The kernel counts processor time in hundredths of a second, on every Linux there is (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that a process has used, in user space and in the kernel.
///
/// # Errors
/// When it has ended, or the system has no `/proc`.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets and may hold anything.
    let fields = stat.rsplit_once(')').context("a line of /proc that cannot be read")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = 0;
    for _ in 0..2 {
        ticks += fields.next().context("a short line in /proc")?.parse::<u64>()?;
    }
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Processor time that everything on this machine has used, and what its host took away.
///
/// # Errors
/// When the system has no `/proc`.
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

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When it has ended, or the system has no `/proc`.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .context("no VmRSS in /proc")?;
    Ok(kilobytes.trim().parse::<u64>()? * 1_024)
}

/// Bytes of all files below a folder. What goes while it is looked at does not count.
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

/// Files that this process and those it starts may have open: as many as a server's service file asks for.
const FILES: u64 = 65_536;

/// Raises the limit of open files as far as it may. Returns how many there may be.
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

/// Waits until the disk has what is only in the page cache, so that the next one to be measured does not wait for it.
pub fn settle_disk() {
    rustix::fs::sync();
}

/// Tasks that wanted a core on average over the last minute.
#[must_use]
pub fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// Where and with what the figures were made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Number of cores.
    pub cores: usize,
    /// What they are.
    pub processor: String,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Tasks that wanted a core in the minute before it began.
    pub load_before: f64,
    /// How many files a process may have open.
    pub open_files: u64,
    /// The compiler.
    pub rustc: String,
    /// The commit that was measured.
    pub commit: String,
    /// The day, as in 2026-11-28, in UTC.
    pub date: String,
}

impl Machine {
    /// Looks around.
    #[must_use]
    pub fn here(open_files: u64) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let says = |program: &str, arguments: &[&str]| {
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
            rustc: says("rustc", &["--version"]).split(' ').take(2).collect::<Vec<_>>().join(" "),
            commit: says("git", &["describe", "--always", "--abbrev=10", "--dirty= with changes"]),
            date: says("date", &["-u", "+%F"]),
        }
    }
}
