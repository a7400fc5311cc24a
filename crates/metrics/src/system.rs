//! Figures of the process and of its disk, read at each scrape.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_runtime::{Env, Tasks};

use crate::{MetricsRegistry, Scrape};

/// Interval at which [`DiskRoom`] asks the file system.
const DISK_INTERVAL: Duration = Duration::from_secs(10);

/// Adds memory, descriptors and processor time of this process, and the room on its disk.
///
/// The figures come from `/proc`; a figure that the system does not have is left out.
pub fn register(registry: &mut MetricsRegistry, room: DiskRoom) {
    registry.collect(move |scrape| {
        process(scrape);
        let (free, size) = (room.free_bytes(), room.size_bytes());
        scrape.gauge("dormouse_disk_free_bytes", "Free room on the disk of the data directory", free);
        scrape.gauge("dormouse_disk_size_bytes", "Size of the disk of the data directory", size);
    });
}

/// The room on the disk of a directory, as of the last look. Cloning shares the figures.
///
/// A scrape reads a copy, because the thread that serves scrapes must not wait for a file system that hangs.
#[derive(Debug, Clone, Default)]
pub struct DiskRoom(Arc<[AtomicU64; 2]>);

impl DiskRoom {
    /// Looks at the disk of `data_dir` now and every ten seconds, as a task of `tasks`.
    pub fn watch(&self, data_dir: PathBuf, env: &Env, tasks: &Tasks) {
        let (room, env, stop) = (self.clone(), env.clone(), tasks.stop().clone());
        tasks.spawn("disk room", async move {
            loop {
                let (room, data_dir) = (room.clone(), data_dir.clone());
                let look = async {
                    env.blocking(move || room.look(&data_dir)).await;
                    tokio::time::sleep(DISK_INTERVAL).await;
                };
                tokio::select! {
                    biased;
                    () = stop.requested() => return,
                    () = look => {}
                }
            }
        });
    }

    /// If the file system does not answer, the last figures stay.
    fn look(&self, data_dir: &Path) {
        if let Ok(room) = rustix::fs::statvfs(data_dir) {
            let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
            self.0[0].store(bytes(room.f_bavail), Ordering::Relaxed);
            self.0[1].store(bytes(room.f_blocks), Ordering::Relaxed);
        }
    }

    /// Free room in bytes; 0 before the first look.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Size of the disk in bytes; 0 before the first look.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }
}

fn process(scrape: &mut Scrape<'_>) {
    if let Some(bytes) = resident_bytes() {
        scrape.gauge("dormouse_process_resident_memory_bytes", "Memory of the process", bytes);
    }
    if let Some(seconds) = cpu_seconds() {
        scrape.counter_f64("dormouse_process_cpu_seconds_total", "Processor time of the process", seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        scrape.gauge(
            "dormouse_process_open_descriptors",
            "Open descriptors of the process",
            open.count() as u64,
        );
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        scrape.gauge("dormouse_process_max_descriptors", "Limit of open descriptors", limit);
    }
}

/// The second field of `/proc/self/statm` counts resident pages.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

fn cpu_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let nanos = f64::from(u32::try_from(time.tv_nsec).ok()?);
    Some(time.tv_sec as f64 + nanos / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On Linux, all figures of the process and of the disk are there and plausible.
    #[test]
    #[cfg(target_os = "linux")]
    fn process_figures_are_plausible() {
        let mut registry = MetricsRegistry::default();
        let room = DiskRoom::default();
        room.look(&std::env::temp_dir());
        register(&mut registry, room);
        let text = registry.text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
            line.unwrap_or_else(|| panic!("{name} is missing: {text}")).parse::<f64>().unwrap()
        };
        assert!(value("dormouse_process_resident_memory_bytes") > 100_000.0);
        assert!(value("dormouse_process_cpu_seconds_total") > 0.0);
        assert!(value("dormouse_process_open_descriptors") >= 3.0);
        assert!(value("dormouse_process_max_descriptors") >= value("dormouse_process_open_descriptors"));
        assert!(value("dormouse_disk_size_bytes") > value("dormouse_disk_free_bytes"));
    }
}
