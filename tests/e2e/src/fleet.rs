//! A fleet of real processes around one test.

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
use dormouse_harness::{NatsServer, NatsServerOptions, Process, ProcessSpec, complaints, our_program, tail};
use dormouse_protocol::health::{Health, HealthStatus};
use dormouse_protocol::{Prefix, ServerName, Subject};
use tempfile::TempDir;

use crate::{CLIENTS, PATIENCE, RawNats, Security, Wiring, until};

const COORDINATOR: &str = ServerName::COORDINATOR;

/// Who asks how a secured fleet is.
const OPERATOR: &str = "operator";

/// What a fleet shall be.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    servers: usize,
    in_memory: bool,
    wired: bool,
    security: Option<Security>,
    coordinator_arguments: Vec<String>,
    server_arguments: Vec<String>,
}

impl Builder {
    /// How many persistence servers, called `persist-1`, `persist-2`, …; 1 unless set.
    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// Keeps all files of the fleet in memory where the system has a place for that: for tests with very many files,
    /// which some disks take minutes to remove.
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// Puts a cluster of nats-servers in the place of one, an S3 server in the place of a directory, and lets the processes
    /// reach them through cables only: see [`Fleet::wiring`].
    pub fn wired(mut self) -> Self {
        self.wired = true;
        self
    }

    /// Gives nats-server users and permissions. The processes are the users `coordinator` and `persist-server`; who asks without
    /// saying who they are is `operator`.
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

    /// Starts the fleet, waits until it is ready, runs the test in it, stops it gracefully, and looks through the
    /// logs: a warning or error that nobody expected fails the test.
    ///
    /// # Errors
    /// The test's own, with the ends of all logs on standard error; or what is wrong with the fleet.
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
        let (nats, wiring) = if self.wired {
            (None, Some(Wiring::new().await?))
        } else {
            let options = self.security.as_ref().map_or_else(NatsServerOptions::default, Security::nats);
            (Some(NatsServer::start(options).await?), None)
        };
        let mut fleet = Fleet {
            folder,
            nats,
            wiring,
            builder: self,
            specs: BTreeMap::new(),
            running: BTreeMap::new(),
            asker: None,
            expected: Vec::new(),
            finished: false,
        };
        if let Some(wiring) = &mut fleet.wiring {
            wiring.add(COORDINATOR).await?;
        }
        fleet.add_coordinator()?;
        for number in 1..=fleet.builder.servers {
            let name = format!("persist-{number}");
            if let Some(wiring) = &mut fleet.wiring {
                wiring.add(&name).await?;
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
    wiring: Option<Wiring>,
    builder: Builder,
    specs: BTreeMap<String, ProcessSpec>,
    running: BTreeMap<String, Process>,
    asker: Option<Client>,
    expected: Vec<String>,
    finished: bool,
}

impl Fleet {
    /// A fleet of one server with every setting at its default.
    pub fn builder() -> Builder {
        Builder {
            servers: 1,
            in_memory: false,
            wired: false,
            security: None,
            coordinator_arguments: Vec::new(),
            server_arguments: Vec::new(),
        }
    }

    /// The address of the nats-server, or the addresses of all, joined by commas.
    ///
    /// # Panics
    /// Never: every fleet has one or the other.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for(CLIENTS).expect("the clients have cables")
    }

    fn url_for(&self, name: &str) -> anyhow::Result<String> {
        match (&self.wiring, &self.nats) {
            (Some(wiring), _) => wiring.nats_urls(name),
            (None, nats) => Ok(nats.as_ref().context("a fleet has a nats-server")?.url()),
        }
    }

    /// The nats-server.
    ///
    /// # Panics
    /// In a [wired](Builder::wired) fleet, which has several.
    pub fn nats(&mut self) -> &mut NatsServer {
        self.nats.as_mut().expect("a fleet with a single nats-server")
    }

    /// What lies between the processes of a [wired](Builder::wired) fleet.
    ///
    /// # Panics
    /// In any other fleet.
    pub fn wiring(&mut self) -> &mut Wiring {
        self.wiring.as_mut().expect("a wired fleet")
    }

    /// The folder that is the bucket.
    #[must_use]
    pub fn bucket_dir(&self) -> PathBuf {
        self.folder.path().join("bucket")
    }

    /// The data directory of a process.
    #[must_use]
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client of its own connection. Its calls wait longer than an application's would: a small machine may run
    /// several fleets.
    ///
    /// # Errors
    /// When no connection comes about.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::builder().deadline(PATIENCE).connect(self.nats_options()?).await?)
    }

    /// How to connect to this fleet.
    ///
    /// # Errors
    /// Never, unless an address of this fleet is none.
    pub fn nats_options(&self) -> anyhow::Result<NatsOptions> {
        self.nats_options_of(CLIENTS)
    }

    /// How somebody connects to this fleet who has cables of its own.
    ///
    /// # Errors
    /// When it has none.
    pub fn nats_options_of(&self, name: &str) -> anyhow::Result<NatsOptions> {
        let urls = self.url_for(name)?;
        let options = NatsOptions::new(urls.split(',').map(str::parse).collect::<Result<_, _>>()?);
        match &self.builder.security {
            Some(security) => security.apply(OPERATOR, options),
            None => Ok(options),
        }
    }

    /// Who may do what.
    ///
    /// # Errors
    /// When the fleet is not [secured](Builder::secured).
    pub fn security(&self) -> anyhow::Result<&Security> {
        self.builder.security.as_ref().context("everybody may do everything")
    }

    /// How a user of a [secured](Builder::secured) fleet connects to it.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn nats_options_as(&self, user: &str) -> anyhow::Result<NatsOptions> {
        self.security()?.apply(user, self.nats_options()?)
    }

    /// A connection of a user that can say anything.
    ///
    /// # Errors
    /// When no connection comes about.
    pub async fn raw_as(&self, user: &str) -> anyhow::Result<RawNats> {
        RawNats::connect_as(&self.url(), Some((user, self.security()?.password(user)?))).await
    }

    /// A connection that can say anything.
    ///
    /// # Errors
    /// When no connection comes about.
    pub async fn raw(&self) -> anyhow::Result<RawNats> {
        RawNats::connect(&self.url()).await
    }

    /// The server that serves a subject, as the coordinator says.
    ///
    /// # Errors
    /// When the coordinator does not say.
    pub async fn owner(&self, client: &Client, subject: &str) -> anyhow::Result<String> {
        Ok(client.locate(&Subject::new(subject)?).await?.as_str().to_owned())
    }

    /// Warnings and errors with this text in them are part of the test.
    pub fn expect_warning(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// How `dormouse-persist-server` is started under `name` in this fleet.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn server_spec(&self, name: &str) -> anyhow::Result<ProcessSpec> {
        let (bucket, variables) = match &self.wiring {
            Some(wiring) => (wiring.bucket_url(), wiring.bucket_variables(name)?),
            None => (format!("file://{}", self.bucket_dir().display()), Vec::new()),
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

    /// Starts one more process, which becomes part of the fleet. Does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn add(&mut self, spec: ProcessSpec) -> anyhow::Result<()> {
        self.running.insert(spec.name.clone(), spec.start()?);
        self.specs.insert(spec.name.clone(), spec);
        Ok(())
    }

    /// Runs a process of its own to its end: what it wrote, and how it ended.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub async fn run_to_end(&self, spec: &ProcessSpec) -> anyhow::Result<(ExitStatus, String)> {
        let status = spec.start()?.wait(PATIENCE).await?;
        Ok((status, std::fs::read_to_string(&spec.log)?))
    }

    /// `dormouse` without arguments, and without the settings of whoever runs the tests. Its home is
    /// [`folder`](Self::folder).
    ///
    /// # Errors
    /// When it has not been built.
    pub fn tool(&self) -> anyhow::Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(our_program("dormouse")?);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("DORMOUSE_") || name.starts_with("NATS_")) {
                command.env_remove(name);
            }
        }
        // The contexts of whoever runs the tests are not ours.
        command.env("HOME", self.folder.path()).env("XDG_CONFIG_HOME", self.folder.path());
        command.envs(self.environment(OPERATOR, Vec::new())?);
        command.current_dir(self.folder.path()).stdin(std::process::Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Runs `dormouse` against this fleet.
    ///
    /// # Errors
    /// When it has not been built or does not end.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.tool()?;
        command.args(["--nats", &self.url()]).args(arguments);
        tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("`dormouse {}` does not end", arguments.join(" ")))?
            .context("cannot run dormouse")
    }

    /// What `dormouse` wrote to standard output, having succeeded.
    ///
    /// # Errors
    /// When it failed; standard error is in the error.
    pub async fn cli_ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.cli(arguments).await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`dormouse {}`: {}\n{error}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A running process.
    ///
    /// # Errors
    /// When none of that name runs.
    pub fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.running.get_mut(name).with_context(|| format!("{name} is not running"))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill9(&mut self, name: &str) -> anyhow::Result<()> {
        let mut process = self.running.remove(name).with_context(|| format!("{name} is not running"))?;
        process.kill9().await
    }

    /// SIGTERM; the process must end well.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub async fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let mut process = self.running.remove(name).with_context(|| format!("{name} is not running"))?;
        let status = process.terminate(PATIENCE).await?;
        ensure!(status.success(), "{name} ended with {status} after SIGTERM");
        Ok(())
    }

    /// Starts a process again that was killed or stopped, as it was started before, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self, name: &str) -> anyhow::Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("{name} was never started"))?.clone();
        self.add(spec)?;
        self.wait_ready(name).await
    }

    /// Starts a process again that has ended or was killed, with these environment variables set too, and does not wait for
    /// anything.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start_with(&mut self, name: &str, environment: &[(&str, String)]) -> anyhow::Result<()> {
        let mut spec = self.specs.get(name).with_context(|| format!("{name} was never started"))?.clone();
        spec.environment.extend(environment.iter().map(|(name, value)| (name.into(), value.into())));
        self.add(spec)
    }

    /// How a process ended by itself, which from then on is not running any more; `None` while it runs.
    ///
    /// # Errors
    /// When none of that name runs.
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
    /// When it is not running.
    pub async fn pause(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.pause().await
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it is not running.
    pub fn resume(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.resume()
    }

    /// What a process says about itself, if it answers.
    ///
    /// # Errors
    /// When what it answers is not health.
    pub async fn health(&mut self, name: &str) -> anyhow::Result<Option<Health>> {
        let bus = self.bus().await?;
        let message = Outgoing::new(Prefix::default().health_of(name), Vec::new().into());
        match bus.request(message, Duration::from_secs(1)).await {
            Ok(reply) => Ok(Some(serde_json::from_slice(&reply.payload).context("health is not JSON")?)),
            Err(_) => Ok(None),
        }
    }

    /// Waits until a process says that all is well.
    ///
    /// # Errors
    /// When it ends, or does not say so in time.
    pub async fn wait_ready(&mut self, name: &str) -> anyhow::Result<()> {
        self.wait_for_health(name, "ready", |health| health.status == HealthStatus::Ok).await
    }

    /// Whether a process does its work at this moment, as it says.
    ///
    /// # Errors
    /// When what it answers is not health.
    pub async fn is_serving(&mut self, name: &str) -> anyhow::Result<bool> {
        Ok(self.health(name).await?.as_ref().is_some_and(is_serving))
    }

    /// Waits until a process does its work, whatever else it says: after an outage of NATS a server may complain for
    /// minutes about events that were lost.
    ///
    /// # Errors
    /// When it ends, or does not say so in time.
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

    /// What a process has logged so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn log(&self, name: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log_dir().join(format!("{name}.log")))?)
    }

    fn log_dir(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// The connection over which the fleet itself asks.
    async fn bus(&mut self) -> anyhow::Result<Arc<dyn Bus>> {
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => self.client().await?,
        };
        Ok(Arc::clone(self.asker.insert(asker).bus()))
    }

    fn add_coordinator(&mut self) -> anyhow::Result<()> {
        let data_dir = self.data_dir(COORDINATOR).display().to_string();
        let mut spec = ProcessSpec::new(COORDINATOR, our_program("dormouse-coordinator")?, &self.log_dir())
            .args(["--nats", &self.url_for(COORDINATOR)?, "--data-dir", &data_dir])
            .args(&self.builder.coordinator_arguments);
        spec.environment = self.environment(COORDINATOR, Vec::new())?;
        self.add(spec)
    }

    /// The environment of a process that connects as `user`.
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
        // Servers hand back their subjects to a coordinator that is still there.
        members.sort_by_key(|name| name == COORDINATOR);
        for name in members {
            self.stop(&name).await?;
        }
        let mut unexpected = Vec::new();
        for name in self.specs.keys() {
            for line in complaints(&self.log(name)?) {
                if !self.expected.iter().any(|text| line.contains(text)) {
                    unexpected.push(format!("{name}: {line}"));
                }
            }
        }
        ensure!(unexpected.is_empty(), "warnings that nobody expected:\n{}", unexpected.join("\n"));
        self.finished = true;
        Ok(())
    }
}

fn is_serving(health: &Health) -> bool {
    // Without a lease a server serves nothing. The coordinator needs none and does not speak of it.
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
