//! The proxies of a fleet: a cluster of nats-servers, an S3 server, and for every process a proxy to each of them.

use std::collections::BTreeMap;

use anyhow::Context;
use dormouse_harness::{DialMode, NatsCluster, ProxyMode, S3Server, TcpProxy};

/// The number of nats-servers.
pub const NATS_SERVERS: usize = 3;

/// The name of the test itself and its clients.
pub const CLIENTS: &str = "clients";

const BUCKET: &str = "dormouse";

/// The servers and proxies between the processes of a fleet.
pub struct FleetProxies {
    cluster: NatsCluster,
    s3: S3Server,
    to_nats: BTreeMap<String, Vec<TcpProxy>>,
    to_bucket: BTreeMap<String, TcpProxy>,
}

impl FleetProxies {
    /// Starts the shared servers. Processes are [added](Self::add) before they are started.
    ///
    /// Cancelling the call leaves nothing running.
    ///
    /// # Errors
    /// If a server does not start.
    pub async fn new() -> anyhow::Result<Self> {
        let cluster = NatsCluster::start(NATS_SERVERS).await?;
        let s3 = S3Server::start().await?;
        s3.create_bucket(BUCKET).await?;
        let mut fleet_proxies = Self { cluster, s3, to_nats: BTreeMap::new(), to_bucket: BTreeMap::new() };
        fleet_proxies.add(CLIENTS).await?;
        Ok(fleet_proxies)
    }

    /// Creates the proxies of a process.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let mut proxies = Vec::new();
        for number in 0..self.cluster.size() {
            let proxy = TcpProxy::new(DialMode::Immediately).await?;
            proxy.set_target(self.cluster.server(number).port());
            proxies.push(proxy);
        }
        self.to_nats.insert(name.to_owned(), proxies);
        let proxy = TcpProxy::new(DialMode::OnFirstByte).await?;
        proxy.set_target(self.s3.port());
        self.to_bucket.insert(name.to_owned(), proxy);
        Ok(())
    }

    /// Returns the addresses at which a process reaches NATS, joined by commas.
    ///
    /// # Errors
    /// If it has no proxies.
    pub fn nats_urls(&self, name: &str) -> anyhow::Result<String> {
        let proxies = self.to_nats.get(name).with_context(|| format!("{name} has no proxies"))?;
        let urls: Vec<String> =
            proxies.iter().map(|proxy| format!("nats://127.0.0.1:{}", proxy.port())).collect();
        Ok(urls.join(","))
    }

    /// Returns the address of the bucket.
    #[must_use]
    pub fn bucket_url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// Returns the environment variables with which a process reaches the bucket.
    ///
    /// # Errors
    /// If it has no proxies.
    pub fn bucket_variables(&self, name: &str) -> anyhow::Result<Vec<(String, String)>> {
        let proxy = self.to_bucket.get(name).with_context(|| format!("{name} has no proxies"))?;
        Ok(S3Server::variables_through(proxy.port()))
    }

    /// Sets the mode of the proxies between a process and all nats-servers.
    pub fn set_nats(&self, name: &str, mode: ProxyMode) {
        for proxy in self.to_nats.get(name).into_iter().flatten() {
            proxy.set(mode);
        }
    }

    /// Sets the mode of one NATS connection of a process, named as its CONNECT names it.
    pub fn set_nats_connection(&self, process: &str, connection: &str, mode: ProxyMode) {
        for proxy in self.to_nats.get(process).into_iter().flatten() {
            proxy.set_connection(connection, mode);
        }
    }

    /// Sets the mode of the proxy between a process and the bucket.
    pub fn set_bucket(&self, name: &str, mode: ProxyMode) {
        if let Some(proxy) = self.to_bucket.get(name) {
            proxy.set(mode);
        }
    }

    /// Sets the mode of every proxy of the S3 server.
    pub fn set_s3(&self, mode: ProxyMode) {
        for proxy in self.to_bucket.values() {
            proxy.set(mode);
        }
    }

    /// Sets the mode of every proxy of a nats-server, including those to the others of its cluster.
    pub fn set_nats_server(&self, number: usize, mode: ProxyMode) {
        for proxies in self.to_nats.values() {
            proxies[number].set(mode);
        }
        self.cluster.set_routes(number, mode);
    }

    /// Returns the nats-servers.
    #[must_use]
    pub fn cluster(&self) -> &NatsCluster {
        &self.cluster
    }

    /// Returns the nats-servers.
    pub fn cluster_mut(&mut self) -> &mut NatsCluster {
        &mut self.cluster
    }

    /// Returns the S3 server.
    #[must_use]
    pub fn s3(&self) -> &S3Server {
        &self.s3
    }
}
