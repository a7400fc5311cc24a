//! A real server that speaks Azure's protocol, on a port of its own choosing.

use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Process, ProcessSpec, azurite_program, tail};

/// How long it may take to listen, or to create a container.
const DEADLINE: Duration = Duration::from_secs(60);

/// The account that every Azurite has, with its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const CREATE_CONTAINER: &str = include_str!("azure_container.js");

/// A running Azurite. Killed when dropped; what it holds is in its memory and is gone with it.
#[derive(Debug)]
pub struct AzureServer {
    // Before the folder of its log: fields are dropped in this order.
    _process: Process,
    _folder: TempDir,
    port: u16,
}

impl AzureServer {
    /// Starts a server and waits until it listens. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// When the server is not installed or does not start; with what it logged.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for Azurite")?;
        let spec = ProcessSpec::new("azurite", azurite_program()?, folder.path())
            .args(["--inMemoryPersistence", "--silent", "--skipApiVersionCheck"])
            // Tests tell nobody that they run.
            .args(["--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0"]);
        let mut process = spec.start()?;
        let listening = async {
            loop {
                // It tells its port in its log only.
                if let Some(port) = port_in(&std::fs::read_to_string(&spec.log)?) {
                    return Ok(port);
                }
                if let Some(status) = process.ended()? {
                    bail!("Azurite ended at once: {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let port = tokio::time::timeout(DEADLINE, listening)
            .await
            .context("Azurite does not listen")
            .flatten()
            .with_context(|| format!("Azurite logged:\n{}", tail(&spec.log, 30)))?;
        Ok(Self { _process: process, _folder: folder, port })
    }

    /// Creates a container.
    ///
    /// Cancelling the call leaves it there or not.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub async fn create_container(&self, name: &str) -> anyhow::Result<()> {
        let mut command = Command::new("node");
        command.args(["-e", CREATE_CONTAINER, &self.port.to_string(), ACCOUNT, KEY, name]).kill_on_drop(true);
        let done = tokio::time::timeout(DEADLINE, command.output())
            .await
            .context("Azurite does not answer")?
            .context("cannot run node")?;
        if !done.status.success() {
            bail!("cannot create the container {name}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }

    /// The environment variables with which a client reaches it.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}/{ACCOUNT}", self.port);
        [
            ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
            ("AZURE_ALLOW_HTTP", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }
}

/// The port in `… listens on http://127.0.0.1:PORT`, once the line is whole.
fn port_in(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once("listens on http://127.0.0.1:")?;
    rest.split_once('\n')?.0.trim().parse().ok()
}
