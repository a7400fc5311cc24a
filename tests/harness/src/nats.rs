//! A real nats-server on a port of its own choosing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Process, ProcessSpec, nats_server_program, tail};

/// How long a nats-server may take to listen, or to end.
const DEADLINE: Duration = Duration::from_secs(20);

/// How to start a nats-server.
#[derive(Debug, Clone, Default)]
pub struct NatsServerOptions {
    /// The text of its configuration file: users, permissions, TLS, limits. No port: it chooses one.
    pub config: String,
    /// The scheme of [`NatsServer::url`] is `tls` instead of `nats`.
    pub tls: bool,
    /// Environment variables set for it: its configuration may refer to them.
    pub environment: Vec<(String, String)>,
}

impl NatsServerOptions {
    /// A server with this configuration file.
    #[must_use]
    pub fn with_config(config: impl Into<String>) -> Self {
        Self { config: config.into(), ..Self::default() }
    }
}

/// A running nats-server. Killed when dropped.
///
/// It chooses its own free port and tells it in a file, so that no two tests can want the same one; starting it again
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
    /// When there is no nats-server, or it does not start; with what it logged.
    pub async fn start(options: NatsServerOptions) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for nats-server")?;
        let mut server =
            Self { folder, options, port: 0, cluster_port: None, monitoring_port: None, process: None };
        server.launch().await?;
        Ok(server)
    }

    /// Starts it again on the same port, after [`stop`](Self::stop).
    ///
    /// Cancelling the call leaves it stopped.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// Replaces the configuration; it holds from the next start on.
    pub fn set_config(&mut self, config: impl Into<String>) {
        self.options.config = config.into();
    }

    /// Kills it, as a crash would. Does nothing when it is not running.
    ///
    /// Cancelling the call leaves it running or killed.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill9().await,
            None => Ok(()),
        }
    }

    /// Its address, without a user.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls { "tls" } else { "nats" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port on which it listens for the others of its cluster, if its configuration makes it a part of one. Another one
    /// each time it is started, unless the configuration names it.
    #[must_use]
    pub fn cluster_port(&self) -> Option<u16> {
        self.cluster_port
    }

    /// With how many other servers of its cluster it is connected, as it says. Its configuration must make it answer over
    /// HTTP.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn connected_servers(&self) -> anyhow::Result<usize> {
        let port = self.monitoring_port.context("nats-server does not answer over HTTP")?;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /routez HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).context("not HTTP")?;
        let routes: Routes = serde_json::from_str(body)?;
        // To each other server there are several connections.
        let others: BTreeSet<&str> = routes.routes.iter().map(|route| route.remote_id.as_str()).collect();
        Ok(others.len())
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// The process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// The folder of its files, gone with it. Tests may put theirs there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let config = folder.join("nats.conf");
        std::fs::write(&config, &self.options.config).context("cannot write nats-server's configuration")?;
        // -1 is "choose one", which the server tells in the ports file.
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let mut spec = ProcessSpec::new("nats-server", nats_server_program()?, folder)
            .args(["--addr", "127.0.0.1", "--port", &port])
            .args(["--config".into(), config.into_os_string()])
            .args(["--ports_file_dir".into(), folder.as_os_str().to_owned()]);
        let variables = self.options.environment.iter();
        spec.environment = variables.map(|(name, value)| (name.into(), value.into())).collect();
        let mut process = spec.start()?;
        let ports =
            process.pid().map(|pid| ports_file(&spec.program, folder, pid)).context("it has no pid")?;
        match tokio::time::timeout(DEADLINE, listening(&mut process, &ports)).await {
            Ok(ports) => {
                let ports = ports.with_context(|| logged(&spec.log))?;
                self.port = port_of(ports.nats.first().context("nats-server listens for nobody")?)?;
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

/// Waits until the server has told its port. It tells in no other way, so the file is looked for again and again.
async fn listening(process: &mut Process, ports: &Path) -> anyhow::Result<Ports> {
    loop {
        // Half written, it is not JSON yet.
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
