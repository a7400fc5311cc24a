//! `dormouse dev`: a whole local fleet in one command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use dormouse_client::Client;
use dormouse_e2e::{PATIENCE, until};
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

    async fn all_gone(&self) -> anyhow::Result<()> {
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

#[tokio::test]
async fn one_command_runs_a_fleet_until_ctrl_c_and_keeps_everything() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let names: Vec<_> = dev.file.pids.keys().map(String::as_str).collect();
    assert_eq!(names, ["coordinator", "nats", "persist-1", "persist-2"]);
    let client = Client::connect(&dev.file.url).await?;
    client.kv("app.dev")?.put("k", "v").await?;
    client.close().await;
    dev.process.interrupt()?;
    let status = dev.process.wait(PATIENCE).await?;
    ensure!(status.success(), "{status}:\n{}", tail(&dev.process.spec().log, 40));
    dev.all_gone().await?;
    ensure!(!dev.folder.path().join("data/fleet.json").exists(), "the fleet file outlives the fleet");

    let mut again = Dev::start(dev.folder).await?;
    let client = Client::connect(&again.file.url).await?;
    assert_eq!(client.kv("app.dev")?.get("k").await?.as_deref(), Some(&b"v"[..]));
    let status = again.process.terminate(PATIENCE).await?;
    ensure!(status.success(), "{status}");
    again.all_gone().await
}

#[tokio::test]
async fn a_fleet_whose_command_is_killed_leaves_no_orphans() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    dev.process.kill9().await?;
    dev.all_gone().await
}

#[tokio::test]
async fn a_fleet_goes_on_when_one_of_its_servers_is_killed() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let client = Client::builder()
        .deadline(PATIENCE)
        .connect(dormouse_client::NatsOptions::new(vec![dev.file.url.parse()?]))
        .await?;
    kill9_pid(dev.file.pids["persist-1"])?;
    for number in 0..10 {
        let store = client.kv(&format!("app.dev.{number}"))?;
        until("a write is acknowledged", async || Ok(store.put("k", "v").await.ok())).await?;
    }
    let status = dev.process.terminate(PATIENCE).await?;
    ensure!(status.success(), "{status}");
    dev.all_gone().await
}

#[tokio::test]
async fn a_second_fleet_on_the_same_data_directory_is_refused() -> anyhow::Result<()> {
    let mut dev = Dev::start(folder()?).await?;
    let data_dir: PathBuf = dev.folder.path().join("data");
    let mut second = ProcessSpec::new("second", our_program("dormouse")?, dev.folder.path())
        .args(["dev", "--port", "0", "--data-dir"])
        .args([&data_dir])
        .start()?;
    ensure!(!second.wait(PATIENCE).await?.success());
    let said = std::fs::read_to_string(&second.spec().log)?;
    ensure!(said.contains("in use") || said.contains("another"), "{said}");
    Client::connect(&dev.file.url).await?.kv("app.dev")?.put("k", "v").await?;
    dev.process.terminate(PATIENCE).await?;
    dev.all_gone().await
}

#[tokio::test]
async fn a_fleet_that_cannot_tell_of_itself_is_stopped_in_order_and_fails() -> anyhow::Result<()> {
    let folder = folder()?;
    let data_dir = folder.path().join("data");
    // A directory in its place that is not empty: the file can be put nowhere.
    std::fs::create_dir_all(data_dir.join("fleet.json/in-the-way"))?;
    let mut process = ProcessSpec::new("dev", our_program("dormouse")?, folder.path())
        .args(["dev", "--servers", "1", "--port", "0", "--data-dir"])
        .args([&data_dir])
        .start()?;
    let status = process.wait(PATIENCE).await?;
    let said = std::fs::read_to_string(&process.spec().log)?;
    ensure!(status.code() == Some(1) && said.contains("fleet.json"), "{status}:\n{said}");
    ensure!(said.contains("stopping the fleet") && !said.contains("was killed"), "{said}");
    Ok(())
}
