//! Figures of the process and of its disk, read at each scrape.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{MetricsRegistry, Scrape};

/// Adds memory, descriptors and processor time of this process, and the room on the disk that holds `data_dir`.
///
/// The figures come from `/proc`; a figure that the system does not have is left out.
pub fn register(registry: &mut MetricsRegistry, data_dir: PathBuf) {
    registry.collect(move |scrape| {
        process(scrape);
        disk(scrape, &data_dir);
    });
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

fn disk(scrape: &mut Scrape<'_>, data_dir: &Path) {
    if let Ok(room) = rustix::fs::statvfs(data_dir) {
        let bytes = |blocks: u64| blocks.saturating_mul(room.f_frsize);
        scrape.gauge(
            "dormouse_disk_free_bytes",
            "Free room on the disk of the data directory",
            bytes(room.f_bavail),
        );
        scrape.gauge(
            "dormouse_disk_size_bytes",
            "Size of the disk of the data directory",
            bytes(room.f_blocks),
        );
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
        register(&mut registry, std::env::temp_dir());
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
