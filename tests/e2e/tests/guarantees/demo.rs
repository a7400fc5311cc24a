//! The demo: the main job of Dormouse on real data, with a server killed half-way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dormouse_e2e::{TIMEOUT, until};
use dormouse_harness::{Process, ProcessSpec, our_program, pid_is_alive, tail};
use tempfile::TempDir;

#[derive(serde::Deserialize)]
struct FleetFile {
    pids: BTreeMap<String, u32>,
}

struct Demo {
    process: Process,
    folder: TempDir,
}

impl Demo {
    /// Starts the demo on a package database of this many packages. It keeps its fleet's folder, so that the test can
    /// read it.
    fn start(packages: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("dormouse-demo-").tempdir()?;
        let database = folder.path().join("status");
        let mut text = String::new();
        for number in 0..packages {
            let section = ["net", "utils", "non-free/doc"][number % 3];
            let description = "x".repeat(number % 300);
            writeln!(
                text,
                "Package: p{number}\nSection: {section}\nArchitecture: all\nDescription: {description}\n"
            )?;
        }
        std::fs::write(&database, &text)?;
        let process = ProcessSpec::new("demo", our_program("dormouse-demo")?, folder.path())
            .args(["--keep".into(), "--packages".into(), database.clone(), "--log".into(), database])
            .start()?;
        Ok(Self { process, folder })
    }

    fn output(&self) -> String {
        tail(&self.folder.path().join("demo.log"), 100)
    }

    /// Returns the fleet's folder, once the demo has printed it.
    fn data_dir(&self) -> Option<PathBuf> {
        let output = self.output();
        let line = output.lines().find_map(|line| line.strip_prefix("a fleet of two servers on "))?;
        Some(PathBuf::from(line))
    }

    async fn fleet(&mut self) -> anyhow::Result<FleetFile> {
        until("the demo's fleet is ready", async || {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("the demo ended with {status}:\n{}", self.output());
            }
            let file = self.data_dir().and_then(|folder| std::fs::read(folder.join("fleet.json")).ok());
            Ok(file.and_then(|text| serde_json::from_slice(&text).ok()))
        })
        .await
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(folder) = self.data_dir().as_deref().and_then(Path::parent) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Waits until every process of the fleet has ended.
async fn wait_until_all_ended(fleet: &FleetFile) -> anyhow::Result<()> {
    until("every process of the fleet is gone", async || {
        Ok((!fleet.pids.values().any(|pid| pid_is_alive(*pid))).then_some(()))
    })
    .await
}

/// The demo kills a server and then reads back every byte that it wrote.
#[tokio::test]
async fn demo_reads_back_every_byte_after_a_server_kill() -> anyhow::Result<()> {
    let mut demo = Demo::start(300)?;
    let status = demo.process.wait(TIMEOUT).await.with_context(|| demo.output())?;
    ensure!(status.success(), "{status}:\n{}", demo.output());
    ensure!(demo.output().contains("Everything matched"), "{}", demo.output());
    Ok(())
}

/// An interrupted demo stops its fleet before it ends, and fails.
#[tokio::test]
async fn demo_interrupted_stops_the_fleet() -> anyhow::Result<()> {
    let mut demo = Demo::start(30_000)?;
    let fleet = demo.fleet().await?;
    demo.process.interrupt()?;
    let status = demo.process.wait(TIMEOUT).await?;
    ensure!(!status.success() && demo.output().contains("interrupted"), "{status}:\n{}", demo.output());
    // The fleet was stopped before the demo ended, not later by the kernel.
    ensure!(!fleet.pids.values().any(|pid| pid_is_alive(*pid)), "{:?} still run", fleet.pids);
    Ok(())
}

/// If the demo is killed, every process of its fleet ends.
#[tokio::test]
async fn demo_killed_leaves_no_orphan_processes() -> anyhow::Result<()> {
    let mut demo = Demo::start(30_000)?;
    let fleet = demo.fleet().await?;
    demo.process.kill9().await?;
    wait_until_all_ended(&fleet).await
}
