//! The fleet that `dormouse dev` runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dormouse_harness::{Process, ProcessSpec, kill9_pid, our_program, tail};
use tempfile::TempDir;

/// The time limit for the fleet to become ready, and to stop.
const DEADLINE: Duration = Duration::from_secs(60);

/// The file in which `dormouse dev` describes itself.
#[derive(Debug, serde::Deserialize)]
pub struct FleetFile {
    /// The address of the nats-server.
    pub url: String,
    /// The bucket's URL.
    bucket: String,
    /// The processes, by name.
    pids: BTreeMap<String, u32>,
}

/// A running local fleet.
pub struct DevFleet {
    folder: TempDir,
    process: Process,
    /// Its description of itself.
    pub file: FleetFile,
}

impl DevFleet {
    /// Starts a fleet of two servers in a new folder beside this program's build, on any free port.
    pub async fn start(keep: bool) -> anyhow::Result<Self> {
        let program = our_program("dormouse")?;
        let build = program.parent().and_then(Path::parent).context("no build folder")?.join("demo");
        std::fs::create_dir_all(&build)?;
        let mut folder = tempfile::Builder::new().prefix("fleet-").tempdir_in(build)?;
        folder.disable_cleanup(keep);
        let data_dir = folder.path().join("data");
        let mut process = ProcessSpec::new("fleet", program, folder.path())
            .args(["dev", "--servers", "2", "--port", "0", "--data-dir"])
            .args([&data_dir])
            .start()?;
        println!("a fleet of two servers on {}", data_dir.display());
        let ready = tokio::time::timeout(DEADLINE, ready(&mut process, &data_dir.join("fleet.json"))).await;
        match ready.unwrap_or_else(|_| bail!("not ready after {} s", DEADLINE.as_secs())) {
            Ok(file) => Ok(Self { folder, process, file }),
            Err(error) => {
                let log = tail(&process.spec().log, 60);
                Err(error.context(format!("the fleet did not start:\n{log}")))
            }
        }
    }

    /// kill -9.
    pub fn kill9(&mut self, name: &str) -> anyhow::Result<()> {
        let pid = self.file.pids.remove(name).with_context(|| format!("no process {name}"))?;
        kill9_pid(pid)
    }

    /// Returns the folder of the bucket.
    pub fn bucket_dir(&self) -> anyhow::Result<PathBuf> {
        let path = self.file.bucket.strip_prefix("file://").context("the bucket is not a local directory")?;
        Ok(path.into())
    }

    /// Stops the fleet as Ctrl-C does.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.process.interrupt()?;
        let status = self.process.wait(DEADLINE).await?;
        anyhow::ensure!(status.success(), "the fleet ended with {status}");
        Ok(())
    }

    /// Returns the end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.folder.path().join("fleet.log"), 60)
    }
}

async fn ready(process: &mut Process, file: &Path) -> anyhow::Result<FleetFile> {
    loop {
        if let Ok(text) = std::fs::read(file) {
            return serde_json::from_slice(&text).context("fleet.json cannot be read");
        }
        if let Some(status) = process.ended()? {
            bail!("`dormouse dev` ended with {status}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
