//! A cluster of real nats-servers whose routes to each other can be cut.

use std::time::Duration;

use anyhow::{Context, bail};

use crate::{Cable, Condition, Dial, NatsServer, NatsServerOptions};

/// How long the servers may take to find each other.
const DEADLINE: Duration = Duration::from_secs(20);

/// Running nats-servers, each connected with each other by cables. Killed when dropped.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<NatsServer>,
    /// By who dials, then by who is dialled.
    routes: Vec<Vec<Option<Cable>>>,
}

impl NatsCluster {
    /// Starts so many servers and waits until each has found the others. Needs a tokio runtime.
    ///
    /// Cancelling the call leaves no server.
    ///
    /// # Errors
    /// When there is no nats-server, or one does not start or find the others.
    pub async fn start(size: usize) -> anyhow::Result<Self> {
        let mut routes = Vec::new();
        for from in 0..size {
            let mut row = Vec::new();
            for to in 0..size {
                row.push(if from == to { None } else { Some(Cable::new(Dial::AtOnce).await?) });
            }
            routes.push(row);
        }
        let mut cluster = Self { servers: Vec::new(), routes };
        for number in 0..size {
            let config = cluster.config(number);
            cluster.servers.push(NatsServer::start(NatsServerOptions::with_config(config)).await?);
            cluster.plug_in(number)?;
        }
        for number in 0..size {
            cluster.wait_connected(number).await?;
        }
        Ok(cluster)
    }

    /// How many servers there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.servers.len()
    }

    /// One of the servers.
    #[must_use]
    pub fn server(&self, number: usize) -> &NatsServer {
        &self.servers[number]
    }

    /// Kills a server, as a crash would.
    ///
    /// Cancelling the call leaves it running or killed.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn kill9(&mut self, number: usize) -> anyhow::Result<()> {
        self.servers[number].stop().await
    }

    /// Starts a server again on the same port. It finds the others by itself, and they it.
    ///
    /// Cancelling the call leaves it stopped.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        self.servers[number].restart().await?;
        self.plug_in(number)
    }

    /// Puts every cable between a server and the others in this condition.
    pub fn set_routes(&self, number: usize, condition: Condition) {
        for (from, row) in self.routes.iter().enumerate() {
            for (to, cable) in row.iter().enumerate() {
                if let Some(cable) = cable
                    && (from == number || to == number)
                {
                    cable.set(condition);
                }
            }
        }
    }

    /// Waits until a server is connected with every other one that runs.
    ///
    /// Cancelling the wait leaves nothing behind.
    ///
    /// # Errors
    /// When it is not in good time.
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
            bail!("nats-server {number} has not found the others after {} s", DEADLINE.as_secs());
        }
        Ok(())
    }

    fn plug_in(&self, number: usize) -> anyhow::Result<()> {
        let port = self.servers[number].cluster_port().context("nats-server is no part of a cluster")?;
        for row in &self.routes {
            if let Some(cable) = &row[number] {
                cable.lead_to(port);
            }
        }
        Ok(())
    }

    /// Nobody is told of any other address: what there is goes through the cables.
    fn config(&self, number: usize) -> String {
        let cables = self.routes[number].iter().flatten();
        let routes: Vec<String> =
            cables.map(|cable| format!("\"nats://127.0.0.1:{}\"", cable.port())).collect();
        format!(
            "http: \"127.0.0.1:-1\"\ncluster {{ name: dormouse, listen: \"127.0.0.1:-1\", advertise: \"127.0.0.1:1\", \
             no_advertise: true, routes: [{}] }}\n",
            routes.join(", ")
        )
    }
}
