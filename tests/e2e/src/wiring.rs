//! A fleet whose processes reach each other through cables only: a cluster of nats-servers, an S3 server, and for every
//! process a cable to each of them.

use std::collections::BTreeMap;

use anyhow::Context;
use dormouse_harness::{Cable, Condition, Dial, NatsCluster, S3Server};

/// How many nats-servers there are.
pub const NATS_SERVERS: usize = 3;

/// Who the test itself is, and its clients.
pub const CLIENTS: &str = "clients";

const BUCKET: &str = "dormouse";

/// What lies between the processes of a fleet.
pub struct Wiring {
    cluster: NatsCluster,
    s3: S3Server,
    to_nats: BTreeMap<String, Vec<Cable>>,
    to_bucket: BTreeMap<String, Cable>,
}

impl Wiring {
    /// Starts what all share. Processes are [added](Self::add) before they are started.
    ///
    /// Cancelling the call leaves nothing running.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn new() -> anyhow::Result<Self> {
        let cluster = NatsCluster::start(NATS_SERVERS).await?;
        let s3 = S3Server::start().await?;
        s3.create_bucket(BUCKET).await?;
        let mut wiring = Self { cluster, s3, to_nats: BTreeMap::new(), to_bucket: BTreeMap::new() };
        wiring.add(CLIENTS).await?;
        Ok(wiring)
    }

    /// Lays the cables of a process.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn add(&mut self, name: &str) -> anyhow::Result<()> {
        let mut cables = Vec::new();
        for number in 0..self.cluster.size() {
            let cable = Cable::new(Dial::AtOnce).await?;
            cable.lead_to(self.cluster.server(number).port());
            cables.push(cable);
        }
        self.to_nats.insert(name.to_owned(), cables);
        let cable = Cable::new(Dial::WhenSpokenTo).await?;
        cable.lead_to(self.s3.port());
        self.to_bucket.insert(name.to_owned(), cable);
        Ok(())
    }

    /// The addresses at which a process finds NATS, joined by commas.
    ///
    /// # Errors
    /// When it has no cables.
    pub fn nats_urls(&self, name: &str) -> anyhow::Result<String> {
        let cables = self.to_nats.get(name).with_context(|| format!("{name} has no cables"))?;
        let urls: Vec<String> =
            cables.iter().map(|cable| format!("nats://127.0.0.1:{}", cable.port())).collect();
        Ok(urls.join(","))
    }

    /// The address of the bucket.
    #[must_use]
    pub fn bucket_url(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// The environment variables with which a process reaches the bucket.
    ///
    /// # Errors
    /// When it has no cables.
    pub fn bucket_variables(&self, name: &str) -> anyhow::Result<Vec<(String, String)>> {
        let cable = self.to_bucket.get(name).with_context(|| format!("{name} has no cables"))?;
        Ok(S3Server::variables_through(cable.port()))
    }

    /// Puts the cables between a process and all nats-servers in this condition.
    pub fn set_nats(&self, name: &str, condition: Condition) {
        for cable in self.to_nats.get(name).into_iter().flatten() {
            cable.set(condition);
        }
    }

    /// Puts the cable between a process and the bucket in this condition.
    pub fn set_bucket(&self, name: &str, condition: Condition) {
        if let Some(cable) = self.to_bucket.get(name) {
            cable.set(condition);
        }
    }

    /// Puts every cable of the S3 server in this condition.
    pub fn set_s3(&self, condition: Condition) {
        for cable in self.to_bucket.values() {
            cable.set(condition);
        }
    }

    /// Puts every cable of a nats-server in this condition, those to the others of its cluster too.
    pub fn set_nats_server(&self, number: usize, condition: Condition) {
        for cables in self.to_nats.values() {
            cables[number].set(condition);
        }
        self.cluster.set_routes(number, condition);
    }

    /// The nats-servers.
    #[must_use]
    pub fn cluster(&self) -> &NatsCluster {
        &self.cluster
    }

    /// The nats-servers.
    pub fn cluster_mut(&mut self) -> &mut NatsCluster {
        &mut self.cluster
    }

    /// The S3 server.
    #[must_use]
    pub fn s3(&self) -> &S3Server {
        &self.s3
    }
}
