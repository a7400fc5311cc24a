//! `dormouse dev`: a whole local fleet in one command, for developers.
//!
//! | module | holds |
//! |---|---|
//! | [`fleet`] | the pure machine that starts and stops processes in order |
//! | [`supervisor`] | carries out the effects of the machine |
//! | [`child`] | one child process, which never outlives this process |
//! | [`programs`] | lookup of the programs |
//! | [`files`] | the data directory, its lock, the fleet file |
//! | [`banner`] | the message when the fleet is ready |

mod banner;
pub mod child;
pub mod files;
mod fleet;
mod programs;
mod supervisor;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use dormouse_protocol::{Prefix, ServerName};

use self::files::DevDataDir;
use self::programs::ProgramPaths;
use crate::args::Dev;
use crate::error::Failure;
use crate::output::Output;

/// The validated settings of the fleet.
#[derive(Debug)]
struct DevPlan {
    prefix: Prefix,
    port: u16,
    lease_ttl: Duration,
    restart: bool,
    servers: Vec<ServerName>,
    bucket: String,
    data_dirs: BTreeMap<String, PathBuf>,
    programs: ProgramPaths,
    // The last field, so the lock outlives everything else.
    data_dir: DevDataDir,
}

/// Runs a local fleet until the user stops it.
///
/// If the call is cancelled, every process of the fleet is killed.
///
/// # Errors
/// [`Failure`] if the fleet cannot be started or does not become ready, or if a process had to be killed at the end.
pub async fn run(arguments: Dev, prefix: Prefix, output: Output) -> Result<(), Failure> {
    let plan = plan(&arguments, prefix)?;
    supervisor::run(plan, output).await
}

fn plan(arguments: &Dev, prefix: Prefix) -> Result<DevPlan, Failure> {
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
    Ok(DevPlan {
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
