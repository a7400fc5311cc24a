//! The validated settings of a local fleet, and the command lines of its processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_protocol::{Prefix, ServerName};

use super::child::Program;
use super::files::DevDataDir;
use super::fleet::{ProcessName, Role};
use super::programs::ProgramPaths;
use crate::args::Dev;
use crate::error::Failure;

/// The name of the nats-server in logs and in the fleet file.
pub(super) const NATS: &str = "nats";

/// The validated settings of the fleet.
#[derive(Debug)]
pub(super) struct DevPlan {
    pub(super) prefix: Prefix,
    pub(super) port: u16,
    pub(super) lease_ttl: Duration,
    pub(super) restart: bool,
    pub(super) servers: Vec<ServerName>,
    pub(super) bucket: String,
    pub(super) data_dirs: BTreeMap<String, PathBuf>,
    pub(super) programs: ProgramPaths,
    // The last field, so the lock outlives everything else.
    pub(super) data_dir: DevDataDir,
}

impl DevPlan {
    /// Validates the arguments, finds the programs and locks the data directory.
    pub(super) fn new(arguments: &Dev, prefix: Prefix) -> Result<Self, Failure> {
        // Cheap checks first. The directory is locked last, so a wrong argument creates nothing.
        let port = u16::try_from(arguments.port).unwrap_or(0);
        port_is_free(port)?;
        let programs = ProgramPaths::find()?;
        let data_dir = DevDataDir::lock(&arguments.data_dir)?;
        let servers = (1..=arguments.servers)
            .map(|number| ServerName::new(&format!("persist-{number}")))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Failure::new(error.to_string()))?;
        let mut data_dirs = BTreeMap::new();
        data_dirs.insert(ServerName::COORDINATOR.to_owned(), data_dir.create("coordinator")?);
        for name in &servers {
            data_dirs.insert(name.to_string(), data_dir.create(&format!("servers/{name}"))?);
        }
        Ok(Self {
            prefix,
            port,
            lease_ttl: arguments.lease_ttl.into(),
            restart: arguments.restart,
            servers,
            bucket: data_dir.bucket_url()?,
            data_dirs,
            programs,
            data_dir,
        })
    }

    pub(super) fn roles(&self) -> Vec<(ProcessName, Role)> {
        let fixed = [(NATS.to_owned(), Role::Nats), (ServerName::COORDINATOR.to_owned(), Role::Coordinator)];
        let servers = self.servers.iter().map(|name| (name.to_string(), Role::Server));
        fixed.into_iter().chain(servers).collect()
    }

    pub(super) fn role(&self, name: &str) -> Role {
        match name {
            NATS => Role::Nats,
            ServerName::COORDINATOR => Role::Coordinator,
            _ => Role::Server,
        }
    }

    pub(super) fn nats_server(&self, port: u16, ports_dir: &Path) -> Program {
        // Removes the file of an earlier run, which would show a wrong port.
        for stale in std::fs::read_dir(ports_dir).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(stale.path());
        }
        let port = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let mut arguments: Vec<OsString> =
            ["--addr", "127.0.0.1", "--port", &port, "--name", "dormouse-dev"].map(OsString::from).into();
        arguments.extend(["--ports_file_dir".into(), ports_dir.into()]);
        Program { path: self.programs.nats_server.clone(), arguments }
    }

    pub(super) fn coordinator(&self, url: &str) -> Program {
        let mut arguments = self.common(ServerName::COORDINATOR, url);
        let lease_ttl = humantime::format_duration(self.lease_ttl).to_string();
        arguments.extend(["--lease-ttl".into(), lease_ttl.into()]);
        Program { path: self.programs.coordinator.clone(), arguments }
    }

    pub(super) fn server(&self, name: &str, url: &str) -> Program {
        let mut arguments = self.common(name, url);
        arguments.extend(["--name", name, "--bucket", &self.bucket].map(OsString::from));
        Program { path: self.programs.persist_server.clone(), arguments }
    }

    fn common(&self, name: &str, url: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--nats", url, "--prefix", self.prefix.as_str()].map(OsString::from).into();
        if let Some(data_dir) = self.data_dirs.get(name) {
            arguments.extend(["--data-dir".into(), data_dir.into()]);
        }
        arguments
    }
}

/// Reports a port in use, which otherwise only the log of the nats-server would show.
fn port_is_free(port: u16) -> Result<(), Failure> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "port {port} of 127.0.0.1 cannot be used ({error}): stop the process that uses it, or choose another port \
             with --port (0: any free one)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error for a port in use names the port and the `--port` flag.
    #[test]
    fn dev_port_in_use_is_a_clear_error() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = port_is_free(port).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        assert!(port_is_free(0).is_ok());
    }
}
