//! `dormouse dev`: a whole local fleet in one command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use dormouse_client::Client;
use dormouse_e2e::{TIMEOUT, until};
use dormouse_harness::{Process, ProcessSpec, kill9_pid, our_program, pid_is_alive, tail};
use tempfile::TempDir;

#[derive(serde::Deserialize)]
struct FleetFile {
    url: String,
    pids: BTreeMap<String, u32>,
}

struct Dev {
    folder: TempDir,
    process: Process,
    file: FleetFile,
}

impl Dev {
    async fn start(folder: TempDir) -> anyhow::Result<Self> {
        let data_dir = folder.path().join("data");
        let mut process = ProcessSpec::new("dev", our_program("dormouse")?, folder.path())
            .args(["dev", "--servers", "2", "--port", "0", "--data-dir"])
            .args([&data_dir])
            .start()?;
        let file = until("the fleet is ready", async || {
            let log = || tail(&folder.path().join("dev.log"), 40);
            if let Some(status) = process.ended()? {
                anyhow::bail!("dormouse dev ended with {status}:\n{}", log());
            }
            Ok(read(&data_dir.join("fleet.json")))
        })
        .await?;
        Ok(Self { folder, process, file })
    }

    /// Waits until every process of the fleet has ended.
    async fn wait_until_all_ended(&self) -> anyhow::Result<()> {
        until("every process of the fleet is gone", async || {
            Ok((!self.file.pids.values().any(|pid| pid_is_alive(*pid))).then_some(()))
        })
        .await
    }
}

fn read(file: &Path) -> Option<FleetFile> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn folder() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("dormouse-dev-").tempdir()?)
}

/// `dormouse dev` runs a fleet until Ctrl-C, stops every process, and serves the same data after a restart.
#[tokio::test]
async fn dev_fleet_runs_until_ctrl_c_and_keeps_data() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let names: Vec<_> = dev.file.pids.keys().map(String::as_str).collect();
    assert_eq!(names, ["coordinator", "nats", "persist-1", "persist-2"]);
    let client = Client::connect(&dev.file.url).await?;
    client.kv("app.dev")?.put("k", "v").await?;
    client.close().await;
    dev.process.interrupt()?;
    let status = dev.process.wait(TIMEOUT).await?;
    ensure!(status.success(), "{status}:\n{}", tail(&dev.process.spec().log, 40));
    dev.wait_until_all_ended().await?;
    ensure!(!dev.folder.path().join("data/fleet.json").exists(), "the fleet file still exists");

    let mut again = Dev::start(dev.folder).await?;
    let client = Client::connect(&again.file.url).await?;
    assert_eq!(client.kv("app.dev")?.get("k").await?.as_deref(), Some(&b"v"[..]));
    let status = again.process.terminate(TIMEOUT).await?;
    ensure!(status.success(), "{status}");
    again.wait_until_all_ended().await
}

/// If the `dormouse dev` process is killed, every process of its fleet ends.
#[tokio::test]
async fn dev_command_killed_leaves_no_orphan_processes() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    dev.process.kill9().await?;
    dev.wait_until_all_ended().await
}

/// A `dormouse dev` fleet acknowledges writes after one of its servers is killed.
#[tokio::test]
async fn dev_fleet_serves_after_one_server_is_killed() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let client = Client::builder()
        .deadline(TIMEOUT)
        .connect(dormouse_client::NatsOptions::new(vec![dev.file.url.parse()?]))
        .await?;
    kill9_pid(dev.file.pids["persist-1"])?;
    for number in 0..10 {
        let store = client.kv(&format!("app.dev.{number}"))?;
        until("a write is acknowledged", async || Ok(store.put("k", "v").await.ok())).await?;
    }
    let status = dev.process.terminate(TIMEOUT).await?;
    ensure!(status.success(), "{status}");
    dev.wait_until_all_ended().await
}

/// A second `dormouse dev` on the same data directory fails, and the first fleet keeps serving.
#[tokio::test]
async fn dev_fleet_on_a_used_data_directory_is_rejected() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let data_dir: PathBuf = dev.folder.path().join("data");
    let mut second = ProcessSpec::new("second", our_program("dormouse")?, dev.folder.path())
        .args(["dev", "--port", "0", "--data-dir"])
        .args([&data_dir])
        .start()?;
    ensure!(!second.wait(TIMEOUT).await?.success());
    let output = std::fs::read_to_string(&second.spec().log)?;
    ensure!(output.contains("in use") || output.contains("another"), "{output}");
    Client::connect(&dev.file.url).await?.kv("app.dev")?.put("k", "v").await?;
    dev.process.terminate(TIMEOUT).await?;
    dev.wait_until_all_ended().await
}

/// If `fleet.json` cannot be written, `dormouse dev` stops the fleet gracefully and exits with 1.
#[tokio::test]
async fn dev_fleet_without_fleet_file_stops_and_fails() -> anyhow::Result<()> {
    let folder = folder()?;
    let data_dir = folder.path().join("data");
    // The path is a directory that is not empty, so the file cannot be written.
    std::fs::create_dir_all(data_dir.join("fleet.json/in-the-way"))?;
    let mut process = ProcessSpec::new("dev", our_program("dormouse")?, folder.path())
        .args(["dev", "--servers", "1", "--port", "0", "--data-dir"])
        .args([&data_dir])
        .start()?;
    let status = process.wait(TIMEOUT).await?;
    let output = std::fs::read_to_string(&process.spec().log)?;
    ensure!(status.code() == Some(1) && output.contains("fleet.json"), "{status}:\n{output}");
    ensure!(output.contains("stopping the fleet") && !output.contains("was killed"), "{output}");
    Ok(())
}
