//! A cluster of real nats-servers whose routes to each other can be cut.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::{DialMode, NatsServer, NatsServerOptions, ProxyMode, TcpProxy};

/// The time limit for the servers to connect to each other.
const DEADLINE: Duration = Duration::from_secs(20);

/// Running nats-servers, connected to each other through proxies. They are killed when dropped.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    /// Indexed by the dialling server, then by the dialled server.
    routes: Vec<Vec<Option<TcpProxy>>>,
}

impl NatsCluster {
    /// Starts `size` servers and waits until each is connected to the others. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// If there is no nats-server, or one does not start or connect to the others.
    pub async fn start(size: usize) -> anyhow::Result<Self> {
        let mut routes = Vec::new();
        for from in 0..size {
            let mut row = Vec::new();
            for to in 0..size {
                row.push(if from == to { None } else { Some(TcpProxy::new(DialMode::Immediately).await?) });
            }
            routes.push(row);
        }
        let mut cluster = Self { servers: Vec::new(), routes };
        for number in 0..size {
            let config = cluster.config(number);
            cluster.servers.push(NatsServer::start(NatsServerOptions::with_config(config)).await?);
            cluster.connect_routes(number)?;
        }
        for number in 0..size {
            cluster.wait_connected(number).await?;
        }
        Ok(cluster)
    }

    /// Returns the number of servers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.servers.len()
    }

    /// Returns one of the servers.
    #[must_use]
    pub fn server(&self, number: usize) -> &NatsServer {
        &self.servers[number]
    }

    /// Kills a server, as a crash would.
    ///
    /// Cancelling the call leaves it running or killed.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn kill9(&mut self, number: usize) -> anyhow::Result<()> {
        self.servers[number].stop().await
    }

    /// Restarts a server on the same port. It connects to the others by itself, and they connect to it.
    ///
    /// Cancelling the call leaves it stopped.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        self.servers[number].restart().await?;
        self.connect_routes(number)
    }

    /// Sets the mode of every proxy between a server and the others.
    pub fn set_routes(&self, number: usize, mode: ProxyMode) {
        for (from, row) in self.routes.iter().enumerate() {
            for (to, proxy) in row.iter().enumerate() {
                if let Some(proxy) = proxy
                    && (from == number || to == number)
                {
                    proxy.set(mode);
                }
            }
        }
    }

    /// Waits until a server is connected to every other running one.
    ///
    /// Cancelling the wait leaves nothing behind.
    ///
    /// # Errors
    /// If it is not connected in time.
    pub async fn wait_connected(&self, number: usize) -> anyhow::Result<()> {
        let wanted = self.servers.iter().filter(|server| server.pid().is_some()).count().saturating_sub(1);
        let connected = async {
            loop {
                match self.servers[number].connected_servers().await {
                    Ok(connected) if connected >= wanted => return,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        if tokio::time::timeout(DEADLINE, connected).await.is_err() {
            bail!("nats-server {number} is not connected to the others after {} s", DEADLINE.as_secs());
        }
        Ok(())
    }

    fn connect_routes(&self, number: usize) -> anyhow::Result<()> {
        let port = self.servers[number].cluster_port().context("nats-server is not part of a cluster")?;
        for row in &self.routes {
            if let Some(proxy) = &row[number] {
                proxy.set_target(port);
            }
        }
        Ok(())
    }

    /// The configuration advertises no other address, so all cluster traffic goes through the proxies.
    fn config(&self, number: usize) -> String {
        let proxies = self.routes[number].iter().flatten();
        let routes: Vec<String> =
            proxies.map(|proxy| format!("\"nats://127.0.0.1:{}\"", proxy.port())).collect();
        format!(
            "http: \"127.0.0.1:-1\"\ncluster {{ name: dormouse, listen: \"127.0.0.1:-1\", advertise: \"127.0.0.1:1\", \
             no_advertise: true, routes: [{}] }}\n",
            routes.join(", ")
        )
    }
}
