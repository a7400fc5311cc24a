//! A fleet of real processes for one test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_bus::nats::NatsOptions;
use dormouse_bus::{Bus, Outgoing};
use dormouse_client::Client;
use dormouse_harness::{
    NatsServer, NatsServerOptions, Process, ProcessSpec, S3Server, log_problems, our_program, tail,
};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Prefix, ServerName, Subject};
use tempfile::TempDir;

use crate::{CLIENTS, FleetProxies, RawNats, Security, TIMEOUT, until};

const COORDINATOR: &str = ServerName::COORDINATOR;

/// The bucket's name on an S3 server.
const S3_BUCKET: &str = "dormouse";

/// The user for queries to a secured fleet.
const OPERATOR: &str = "operator";

/// The configuration of a fleet.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    servers: usize,
    in_memory: bool,
    proxied: bool,
    s3_bucket: bool,
    security: Option<Security>,
    coordinator_arguments: Vec<String>,
    server_arguments: Vec<String>,
}

impl Builder {
    /// Sets the number of persistence servers, called `persist-1`, `persist-2`, …; the default is 1.
    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// Keeps all files of the fleet in memory if the system has a memory file system: for tests with very many files,
    /// which some disks take minutes to remove.
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Uses a cluster of nats-servers instead of one, and an S3 server instead of a directory. The processes reach them
    /// only through proxies: see [`Fleet::proxies`].
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Uses an S3 server as the bucket, without a proxy: see [`Fleet::s3`].
    pub fn s3_bucket(mut self) -> Self {
        self.s3_bucket = true;
        self
    }

    /// Gives nats-server users and permissions. The processes are the users `coordinator` and `persist-server`; clients
    /// without a user name are `operator`.
    pub fn secured(mut self, security: Security) -> Self {
        self.security = Some(security);
        self
    }

    /// Adds arguments for every persistence server.
    pub fn server_args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.server_arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Adds arguments for the coordinator.
    pub fn coordinator_args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.coordinator_arguments.extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// Starts the fleet, waits until it is ready, runs the test in it, stops it gracefully, and checks the logs: an
    /// unexpected warning or error fails the test.
    ///
    /// # Errors
    /// The test's own, with the ends of all logs on standard error, or a failure of the fleet.
    pub async fn run(self, test: impl AsyncFnOnce(&mut Fleet) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut fleet = self.start().await?;
        test(&mut fleet).await?;
        fleet.finish().await
    }

    async fn start(self) -> anyhow::Result<Fleet> {
        let memory = Path::new("/dev/shm");
        let place =
            if self.in_memory && memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("dormouse-e2e-").tempdir_in(place)?;
        for part in ["bucket", "data", "logs"] {
            std::fs::create_dir(folder.path().join(part))?;
        }
        let (nats, proxies) = if self.proxied {
            (None, Some(FleetProxies::new().await?))
        } else {
            let options = self.security.as_ref().map_or_else(NatsServerOptions::default, Security::nats);
            (Some(NatsServer::start(options).await?), None)
        };
        let s3 = if self.s3_bucket {
            let s3 = S3Server::start().await?;
            s3.create_bucket(S3_BUCKET).await?;
            Some(s3)
        } else {
            None
        };
        let mut fleet = Fleet {
            folder,
            nats,
            proxies,
            s3,
            builder: self,
            specs: BTreeMap::new(),
            running: BTreeMap::new(),
            query_client: None,
            expected: Vec::new(),
            finished: false,
        };
        if fleet.s3.is_some() || fleet.proxies.is_some() {
            // The S3 server serves one request at a time, so a busy machine needs longer than the check may take.
            fleet.expect_warning("check of concurrent creates incomplete");
        }
        if let Some(proxies) = &mut fleet.proxies {
            proxies.add(COORDINATOR).await?;
        }
        fleet.add_coordinator()?;
        for number in 1..=fleet.builder.servers {
            let name = format!("persist-{number}");
            if let Some(proxies) = &mut fleet.proxies {
                proxies.add(&name).await?;
            }
            let spec = fleet.server_spec(&name)?;
            fleet.add(spec)?;
        }
        for name in fleet.running.keys().cloned().collect::<Vec<_>>() {
            fleet.wait_ready(&name).await?;
        }
        Ok(fleet)
    }
}

/// A running fleet: a nats-server, a coordinator, persistence servers, and a local directory as the bucket.
pub struct Fleet {
    folder: TempDir,
    nats: Option<NatsServer>,
    proxies: Option<FleetProxies>,
    s3: Option<S3Server>,
    builder: Builder,
    specs: BTreeMap<String, ProcessSpec>,
    running: BTreeMap<String, Process>,
    query_client: Option<Client>,
    expected: Vec<String>,
    finished: bool,
}

impl Fleet {
    /// Creates a fleet of one server with default settings.
    pub fn builder() -> Builder {
        Builder {
            servers: 1,
            in_memory: false,
            proxied: false,
            s3_bucket: false,
            security: None,
            coordinator_arguments: Vec::new(),
            server_arguments: Vec::new(),
        }
    }

    /// Returns the address of the nats-server, or the addresses of all, joined by commas.
    ///
    /// # Panics
    /// Never: every fleet has one or the other.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for(CLIENTS).expect("the clients have proxies")
    }

    fn url_for(&self, name: &str) -> anyhow::Result<String> {
        match (&self.proxies, &self.nats) {
            (Some(proxies), _) => proxies.nats_urls(name),
            (None, nats) => Ok(nats.as_ref().context("a fleet has a nats-server")?.url()),
        }
    }

    /// Returns the nats-server.
    ///
    /// # Panics
    /// In a fleet with [proxies](Builder::proxied), which has several nats-servers.
    pub fn nats(&mut self) -> &mut NatsServer {
        self.nats.as_mut().expect("a fleet with a single nats-server")
    }

    /// Returns the proxies between the processes of a fleet [with proxies](Builder::proxied).
    ///
    /// # Panics
    /// In any other fleet.
    pub fn proxies(&mut self) -> &mut FleetProxies {
        self.proxies.as_mut().expect("a fleet with proxies")
    }

    /// Returns the S3 server.
    ///
    /// # Errors
    /// If the fleet has [none](Builder::s3_bucket).
    pub fn s3(&self) -> anyhow::Result<&S3Server> {
        self.s3.as_ref().context("the fleet has no S3 server")
    }

    /// Returns the folder of the bucket.
    #[must_use]
    pub fn bucket_dir(&self) -> PathBuf {
        self.folder.path().join("bucket")
    }

    /// Returns the data directory of a process.
    #[must_use]
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    /// Returns a folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a client with its own connection. Its deadline is longer than an application's, because a small machine
    /// may run several fleets.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::builder().deadline(TIMEOUT).connect(self.nats_options()?).await?)
    }

    /// Returns the options to connect to this fleet.
    ///
    /// # Errors
    /// Never, unless an address of this fleet is invalid.
    pub fn nats_options(&self) -> anyhow::Result<NatsOptions> {
        self.nats_options_of(CLIENTS)
    }

    /// Returns the options to connect to this fleet through the proxies of `name`.
    ///
    /// # Errors
    /// If it has none.
    pub fn nats_options_of(&self, name: &str) -> anyhow::Result<NatsOptions> {
        let urls = self.url_for(name)?;
        let options = NatsOptions::new(urls.split(',').map(str::parse).collect::<Result<_, _>>()?);
        match &self.builder.security {
            Some(security) => security.apply(OPERATOR, options),
            None => Ok(options),
        }
    }

    /// Returns the users and permissions.
    ///
    /// # Errors
    /// If the fleet is not [secured](Builder::secured).
    pub fn security(&self) -> anyhow::Result<&Security> {
        self.builder.security.as_ref().context("the fleet is not secured")
    }

    /// Returns the options to connect as a user of a [secured](Builder::secured) fleet.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn nats_options_as(&self, user: &str) -> anyhow::Result<NatsOptions> {
        self.security()?.apply(user, self.nats_options()?)
    }

    /// Opens a raw connection as a user.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn raw_as(&self, user: &str) -> anyhow::Result<RawNats> {
        RawNats::connect_as(&self.url(), Some((user, self.security()?.password(user)?))).await
    }

    /// Opens a raw connection.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn raw(&self) -> anyhow::Result<RawNats> {
        RawNats::connect(&self.url()).await
    }

    /// Returns the server of a subject, as the coordinator reports it.
    ///
    /// # Errors
    /// If the coordinator does not answer.
    pub async fn owner(&self, client: &Client, subject: &str) -> anyhow::Result<String> {
        Ok(client.locate(&Subject::new(subject)?).await?.as_str().to_owned())
    }

    /// Allows warnings and errors that contain this text.
    pub fn expect_warning(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Returns the start command of `dormouse-persist-server` under `name` in this fleet.
    ///
    /// # Errors
    /// If the program has not been built.
    pub fn server_spec(&self, name: &str) -> anyhow::Result<ProcessSpec> {
        let (bucket, variables) = match (&self.proxies, &self.s3) {
            (Some(proxies), _) => (proxies.bucket_url(), proxies.bucket_variables(name)?),
            (None, Some(s3)) => (format!("s3://{S3_BUCKET}"), s3.variables()),
            (None, None) => (format!("file://{}", self.bucket_dir().display()), Vec::new()),
        };
        let data_dir = self.data_dir(name).display().to_string();
        let url = self.url_for(name)?;
        let arguments = ["--nats", &url, "--name", name, "--bucket", &bucket, "--data-dir", &data_dir];
        let mut spec = ProcessSpec::new(name, our_program("dormouse-persist-server")?, &self.log_dir())
            .args(arguments)
            .args(&self.builder.server_arguments);
        spec.environment = self.environment("persist-server", variables)?;
        Ok(spec)
    }

    /// Starts another process, which becomes part of the fleet. Does not wait until it is ready.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add(&mut self, spec: ProcessSpec) -> anyhow::Result<()> {
        self.running.insert(spec.name.clone(), spec.start()?);
        self.specs.insert(spec.name.clone(), spec);
        Ok(())
    }

    /// Runs a separate process to its end; returns its exit status and its output.
    ///
    /// # Errors
    /// If it cannot be started or does not end.
    pub async fn run_to_end(&self, spec: &ProcessSpec) -> anyhow::Result<(ExitStatus, String)> {
        let status = spec.start()?.wait(TIMEOUT).await?;
        Ok((status, std::fs::read_to_string(&spec.log)?))
    }

    /// Returns the `dormouse` command without arguments, and without the settings of the user that runs the tests. Its
    /// home is [`folder`](Self::folder).
    ///
    /// # Errors
    /// If the program has not been built.
    pub fn tool(&self) -> anyhow::Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(our_program("dormouse")?);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DORMOUSE_") || name.starts_with("NATS_")) {
                command.env_remove(name);
            }
        }
        // The contexts of the user that runs the tests must not be used.
        command.env("HOME", self.folder.path()).env("XDG_CONFIG_HOME", self.folder.path());
        command.envs(self.environment(OPERATOR, Vec::new())?);
        command.current_dir(self.folder.path()).stdin(std::process::Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs `dormouse` against this fleet.
    ///
    /// # Errors
    /// If it has not been built or does not end.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.tool()?;
        command.args(["--nats", &self.url()]).args(arguments);
        tokio::time::timeout(TIMEOUT, command.output())
            .await
            .with_context(|| format!("`dormouse {}` does not end", arguments.join(" ")))?
            .context("cannot run dormouse")
    }

    /// Runs `dormouse` and returns its standard output.
    ///
    /// # Errors
    /// If it fails; the error contains standard error.
    pub async fn cli_ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.cli(arguments).await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`dormouse {}`: {}\n{error}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Returns a running process.
    ///
    /// # Errors
    /// If no process of that name runs.
    pub fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.running.get_mut(name).with_context(|| format!("{name} is not running"))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn kill9(&mut self, name: &str) -> anyhow::Result<()> {
        let mut process = self.running.remove(name).with_context(|| format!("{name} is not running"))?;
        process.kill9().await
    }

    /// SIGTERM; the process must exit with success.
    ///
    /// # Errors
    /// If it does not end, or fails.
    pub async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let mut process = self.running.remove(name).with_context(|| format!("{name} is not running"))?;
        let status = process.terminate(TIMEOUT).await?;
        ensure!(status.success(), "{name} ended with {status} after SIGTERM");
        Ok(())
    }

    /// Restarts a killed or stopped process with the same command, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready.
    pub async fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("{name} was never started"))?.clone();
        self.add(spec)?;
        self.wait_ready(name).await
    }

    /// Restarts an ended or killed process with additional environment variables, without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_with(&mut self, name: &str, environment: &[(&str, String)]) -> anyhow::Result<()> {
        let mut spec = self.specs.get(name).with_context(|| format!("{name} was never started"))?.clone();
        spec.environment.extend(environment.iter().map(|(name, value)| (name.into(), value.into())));
        self.add(spec)
    }

    /// Returns the exit status of a process that has ended by itself, which then no longer counts as running; `None`
    /// while it runs.
    ///
    /// # Errors
    /// If no process of that name runs.
    pub fn ended(&mut self, name: &str) -> anyhow::Result<Option<ExitStatus>> {
        let ended = self.process(name)?.ended()?;
        if ended.is_some() {
            self.running.remove(name);
        }
        Ok(ended)
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If it is not running.
    pub async fn pause(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.pause().await
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it is not running.
    pub fn resume(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.resume()
    }

    /// Returns a process's health, if it answers.
    ///
    /// # Errors
    /// If the reply is not valid health.
    pub async fn health(&mut self, name: &str) -> anyhow::Result<Option<Health>> {
        let bus = self.bus().await?;
        let message = Outgoing::new(Prefix::default().health_of(name), Vec::new().into());
        match bus.request(message, Duration::from_secs(1)).await {
            Ok(reply) => Ok(Some(serde_json::from_slice(&reply.payload).context("health is not JSON")?)),
            Err(_) => Ok(None),
        }
    }

    /// Waits until a process reports that it is healthy.
    ///
    /// # Errors
    /// If it ends, or is not healthy in time.
    pub async fn wait_ready(&mut self, name: &str) -> anyhow::Result<()> {
        self.wait_for_health(name, "ready", |health| health.status == HealthStatus::Ok).await
    }

    /// Returns whether a process reports that it is serving.
    ///
    /// # Errors
    /// If the reply is not valid health.
    pub async fn is_serving(&mut self, name: &str) -> anyhow::Result<bool> {
        Ok(self.health(name).await?.as_ref().is_some_and(is_serving))
    }

    /// Waits until a process is serving, regardless of other problems: after an outage of NATS, a server may report
    /// lost events for minutes.
    ///
    /// # Errors
    /// If it ends, or does not serve in time.
    pub async fn wait_serving(&mut self, name: &str) -> anyhow::Result<()> {
        self.wait_for_health(name, "serving", is_serving).await
    }

    async fn wait_for_health(
        &mut self,
        name: &str,
        what: &str,
        reached: impl Fn(&Health) -> bool,
    ) -> anyhow::Result<()> {
        let mut last = None;
        let waited = until(&format!("{name} is {what}"), async || {
            if let Some(status) = self.process(name)?.ended()? {
                anyhow::bail!("{name} ended with {status}");
            }
            last = self.health(name).await?;
            Ok(last.as_ref().is_some_and(&reached).then_some(()))
        })
        .await;
        waited.with_context(|| match last {
            Some(Health { status, problems, .. }) => format!("{name} says {status:?}: {problems:?}"),
            None => format!("{name} does not answer"),
        })
    }

    /// Returns the log of a process so far.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_dir().join(format!("{name}.log")))?)
    }

    fn log_dir(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// Returns the connection of the fleet's own queries.
    async fn bus(&mut self) -> anyhow::Result<Arc<dyn Bus>> {
        let query_client = match self.query_client.take() {
            Some(query_client) => query_client,
            None => self.client().await?,
        };
        Ok(Arc::clone(self.query_client.insert(query_client).bus()))
    }

    fn add_coordinator(&mut self) -> anyhow::Result<()> {
        let data_dir = self.data_dir(COORDINATOR).display().to_string();
        let mut spec = ProcessSpec::new(COORDINATOR, our_program("dormouse-coordinator")?, &self.log_dir())
            .args(["--nats", &self.url_for(COORDINATOR)?, "--data-dir", &data_dir])
            .args(&self.builder.coordinator_arguments);
        spec.environment = self.environment(COORDINATOR, Vec::new())?;
        self.add(spec)
    }

    /// Returns the environment of a process that connects as `user`.
    fn environment(
        &self,
        user: &str,
        mut variables: Vec<(String, String)>,
    ) -> anyhow::Result<Vec<(OsString, OsString)>> {
        if let Some(security) = &self.builder.security {
            variables.extend(security.variables(user)?);
        }
        Ok(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        let mut members: Vec<String> = self.running.keys().cloned().collect();
        // The servers release their subjects first, while the coordinator still runs.
        members.sort_by_key(|name| name == COORDINATOR);
        for name in members {
            self.stop(&name).await?;
        }
        let mut unexpected = Vec::new();
        for name in self.specs.keys() {
            for line in log_problems(&self.log(name)?) {
                if !self.expected.iter().any(|text| line.contains(text)) {
                    unexpected.push(format!("{name}: {line}"));
                }
            }
        }
        ensure!(unexpected.is_empty(), "unexpected warnings:\n{}", unexpected.join("\n"));
        self.finished = true;
        Ok(())
    }
}

fn is_serving(health: &Health) -> bool {
    // Without a lease a server serves nothing. The coordinator needs no lease and does not report one.
    health.status != HealthStatus::NotServing && health.figures.get("lease_generation") != Some(&0)
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for name in self.specs.keys() {
            let log = self.log_dir().join(format!("{name}.log"));
            eprintln!("──── the end of the log of {name} ────\n{}", tail(&log, 40));
        }
    }
}
