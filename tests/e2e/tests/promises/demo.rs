//! The demo: the main job of Dormouse on real data, with a server killed half way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dormouse_e2e::{PATIENCE, until};
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
    /// Starts it on a package database of this many packages. It keeps its fleet's folder, so that the test can see it.
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

    fn said(&self) -> String {
        tail(&self.folder.path().join("demo.log"), 100)
    }

    /// The fleet's folder, when it has said where it is.
    fn data_dir(&self) -> Option<PathBuf> {
        let said = self.said();
        let line = said.lines().find_map(|line| line.strip_prefix("a fleet of two servers on "))?;
        Some(PathBuf::from(line))
    }

    async fn fleet(&mut self) -> anyhow::Result<FleetFile> {
        until("the demo's fleet is ready", async || {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("the demo ended with {status}:\n{}", self.said());
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

async fn all_gone(fleet: &FleetFile) -> anyhow::Result<()> {
    until("every process of the fleet is gone", async || {
        Ok((!fleet.pids.values().any(|pid| pid_is_alive(*pid))).then_some(()))
    })
    .await
}

#[tokio::test]
async fn the_demo_finds_every_byte_again() -> anyhow::Result<()> {
    let mut demo = Demo::start(300)?;
    let status = demo.process.wait(PATIENCE).await.with_context(|| demo.said())?;
    ensure!(status.success(), "{status}:\n{}", demo.said());
    ensure!(demo.said().contains("Everything matched"), "{}", demo.said());
    Ok(())
}

#[tokio::test]
async fn a_demo_that_is_interrupted_stops_its_fleet() -> anyhow::Result<()> {
    let mut demo = Demo::start(30_000)?;
    let fleet = demo.fleet().await?;
    demo.process.interrupt()?;
    let status = demo.process.wait(PATIENCE).await?;
    ensure!(!status.success() && demo.said().contains("interrupted"), "{status}:\n{}", demo.said());
    // The fleet was stopped before the demo ended, not later by somebody else.
    ensure!(!fleet.pids.values().any(|pid| pid_is_alive(*pid)), "{:?} go on", fleet.pids);
    Ok(())
}

#[tokio::test]
async fn a_demo_that_is_killed_leaves_no_orphans() -> anyhow::Result<()> {
    let mut demo = Demo::start(30_000)?;
    let fleet = demo.fleet().await?;
    demo.process.kill9().await?;
    all_gone(&fleet).await
}
