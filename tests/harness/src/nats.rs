//! A real nats-server on a free port of its choice.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Process, ProcessSpec, nats_server_program, tail};

/// The time limit for a nats-server to start, or to end.
const DEADLINE: Duration = Duration::from_secs(20);

/// The options of a nats-server.
#[derive(Debug, Clone, Default)]
pub struct NatsServerOptions {
    /// The text of its configuration file: users, permissions, TLS, limits. It names no port, because the server
    /// chooses one.
    pub config: String,
    /// The scheme of [`NatsServer::url`] is `tls` instead of `nats`.
    pub tls: bool,
    /// Its environment variables: the configuration may refer to them.
    pub environment: Vec<(String, String)>,
}

impl NatsServerOptions {
    /// Creates options with this configuration file.
    #[must_use]
    pub fn with_config(config: impl Into<String>) -> Self {
        Self { config: config.into(), ..Self::default() }
    }
}

/// A running nats-server. It is killed when dropped.
///
/// It chooses a free port and writes the port to a file, so that no two tests can use the same one. After a restart it
/// keeps the port.
#[derive(Debug)]
pub struct NatsServer {
    folder: TempDir,
    options: NatsServerOptions,
    port: u16,
    cluster_port: Option<u16>,
    monitoring_port: Option<u16>,
    process: Option<Process>,
}

impl NatsServer {
    /// Starts a server and waits until it listens. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// If there is no nats-server, or it does not start; the error contains its log.
    pub async fn start(options: NatsServerOptions) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for nats-server")?;
        let mut server =
            Self { folder, options, port: 0, cluster_port: None, monitoring_port: None, process: None };
        server.launch().await?;
        Ok(server)
    }

    /// Restarts the server on the same port, after [`stop`](Self::stop).
    ///
    /// Cancelling the call leaves it stopped.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// Replaces the configuration; it applies from the next start on.
    pub fn set_config(&mut self, config: impl Into<String>) {
        self.options.config = config.into();
    }

    /// Kills the server, as a crash would. Does nothing if it is not running.
    ///
    /// Cancelling the call leaves it running or killed.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill9().await,
            None => Ok(()),
        }
    }

    /// Returns its address, without a user.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls { "tls" } else { "nats" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Returns its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns its port for the others of its cluster, if its configuration makes it part of one. The port differs
    /// after each start, unless the configuration names it.
    #[must_use]
    pub fn cluster_port(&self) -> Option<u16> {
        self.cluster_port
    }

    /// Returns the number of other servers of its cluster to which it is connected, as it reports. Its configuration
    /// must enable HTTP monitoring.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn connected_servers(&self) -> anyhow::Result<usize> {
        let port = self.monitoring_port.context("nats-server does not answer over HTTP")?;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /routez HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).context("not HTTP")?;
        let routes: Routes = serde_json::from_str(body)?;
        // There are several connections to each other server.
        let others: BTreeSet<&str> = routes.routes.iter().map(|route| route.remote_id.as_str()).collect();
        Ok(others.len())
    }

    /// Returns its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// Returns the process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Returns the folder of its files, which is removed with it. Tests may add files there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let config = folder.join("nats.conf");
        std::fs::write(&config, &self.options.config).context("cannot write nats-server's configuration")?;
        // -1 means "choose a port". The server writes the port to the ports file.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let mut spec = ProcessSpec::new("nats-server", nats_server_program()?, folder)
            .args(["--addr", "127.0.0.1", "--port", &port])
            .args(["--config".into(), config.into_os_string()])
            .args(["--ports_file_dir".into(), folder.as_os_str().to_owned()]);
        let variables = self.options.environment.iter();
        spec.environment = variables.map(|(name, value)| (name.into(), value.into())).collect();
        let mut process = spec.start()?;
        let ports = process
            .pid()
            .map(|pid| ports_file(&spec.program, folder, pid))
            .context("nats-server has no pid")?;
        match tokio::time::timeout(DEADLINE, listening(&mut process, &ports)).await {
            Ok(ports) => {
                let ports = ports.with_context(|| logged(&spec.log))?;
                self.port = port_of(ports.nats.first().context("nats-server has no client port")?)?;
                self.cluster_port = ports.cluster.first().map(|address| port_of(address)).transpose()?;
                self.monitoring_port =
                    ports.monitoring.first().map(|address| port_of(address)).transpose()?;
            }
            Err(_) => {
                bail!("nats-server does not listen after {} s: {}", DEADLINE.as_secs(), logged(&spec.log))
            }
        }
        self.process = Some(process);
        Ok(())
    }
}

/// Waits until the server has written its port. It reports the port in no other way, so the file is polled.
async fn listening(process: &mut Process, ports: &Path) -> anyhow::Result<Ports> {
    loop {
        // A partly written file is not valid JSON yet.
        if let Ok(text) = std::fs::read_to_string(ports)
            && let Ok(ports) = serde_json::from_str::<Ports>(&text)
        {
            return Ok(ports);
        }
        if let Some(status) = process.ended()? {
            bail!("nats-server ended at once: {status}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[derive(serde::Deserialize)]
struct Ports {
    nats: Vec<String>,
    #[serde(default)]
    cluster: Vec<String>,
    #[serde(default)]
    monitoring: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Routes {
    #[serde(default)]
    routes: Vec<RouteInfo>,
}

#[derive(serde::Deserialize)]
struct RouteInfo {
    remote_id: String,
}

fn port_of(address: &str) -> anyhow::Result<u16> {
    let port = address.rsplit(':').next().unwrap_or_default();
    port.parse().with_context(|| format!("no port in {address}"))
}

fn ports_file(program: &Path, folder: &Path, pid: u32) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    folder.join(format!("{name}_{pid}.ports"))
}

fn logged(log: &Path) -> String {
    format!("nats-server logged:\n{}", tail(log, 30))
}
