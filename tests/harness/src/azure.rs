//! A real server with Azure's protocol, on a free port of its choice.

use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::process::Command;

use crate::{Process, ProcessSpec, azurite_program, tail};

/// The time limit for the start, or for the creation of a container.
const DEADLINE: Duration = Duration::from_secs(60);

/// The default account of Azurite, with its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const CREATE_CONTAINER: &str = include_str!("azure_container.js");

/// A running Azurite. It is killed when dropped; its contents are in memory and are then gone.
#[derive(Debug)]
pub struct AzureServer {
    // This field is declared before the folder of the log, because fields are dropped in this order.
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
    /// If the server is not installed or does not start; the error contains its log.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for Azurite")?;
        let spec = ProcessSpec::new("azurite", azurite_program()?, folder.path())
            .args(["--inMemoryPersistence", "--silent", "--skipApiVersionCheck"])
            // Tests send no telemetry.
            .args(["--disableTelemetry"])
            .args(["--blobHost", "127.0.0.1", "--blobPort", "0"]);
        let mut process = spec.start()?;
        let listening = async {
            loop {
                // Azurite reports its port only in its log.
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
    /// If the call is cancelled, the container may or may not exist.
    ///
    /// # Errors
    /// If the server rejects the request or does not answer.
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

    /// Returns the environment variables for a client.
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

/// Returns the port in `… listens on http://127.0.0.1:PORT`, once the line is complete.
fn port_in(log: &str) -> Option<u16> {
    let (_, rest) = log.split_once("listens on http://127.0.0.1:")?;
    rest.split_once('\n')?.0.trim().parse().ok()
}
