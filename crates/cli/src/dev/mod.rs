//! `dormouse dev`: a whole local fleet in one command, for developers.
//!
//! | module | holds |
//! |---|---|
//! | [`fleet`] | which process is started or stopped when: a pure machine |
//! | [`supervisor`] | does what the machine says |
//! | [`child`] | one child process, which must not outlive us |
//! | [`programs`] | where the programs are |
//! | [`files`] | the data directory, its lock, the fleet file |
//! | [`banner`] | what is said when all is ready |

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

use self::files::DataDir;
use self::programs::Programs;
use crate::args::Dev;
use crate::error::Failure;
use crate::output::Output;

/// Everything about the fleet to be started, checked.
#[derive(Debug)]
struct Plan {
    prefix: Prefix,
    port: u16,
    lease_ttl: Duration,
    restart: bool,
    servers: Vec<ServerName>,
    bucket: String,
    data_dirs: BTreeMap<String, PathBuf>,
    programs: Programs,
    // Last, so that the lock outlives everything else.
    data_dir: DataDir,
}

/// Runs a local fleet until the user stops it.
///
/// Cancelling the call kills every process of the fleet.
///
/// # Errors
/// [`Failure`] when the fleet cannot be started or does not come up, or when a process had to be killed at the end.
pub async fn run(arguments: Dev, prefix: Prefix, output: Output) -> Result<(), Failure> {
    let plan = plan(&arguments, prefix)?;
    supervisor::run(plan, output).await
}

fn plan(arguments: &Dev, prefix: Prefix) -> Result<Plan, Failure> {
    // Cheap checks first; the directory is taken last, so that a mistake leaves nothing behind.
    let port = u16::try_from(arguments.port).unwrap_or(0);
    port_is_free(port)?;
    let programs = Programs::find()?;
    let data_dir = DataDir::take(&arguments.data_dir)?;
    let servers = (1..=arguments.servers)
        .map(|number| ServerName::new(&format!("persist-{number}")))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::new(error.to_string()))?;
    let mut data_dirs = BTreeMap::new();
    data_dirs.insert(ServerName::COORDINATOR.to_owned(), data_dir.create("coordinator")?);
    for name in &servers {
        data_dirs.insert(name.to_string(), data_dir.create(&format!("servers/{name}"))?);
    }
    Ok(Plan {
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

/// Says clearly what the nats-server would say in its log.
fn port_is_free(port: u16) -> Result<(), Failure> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "port {port} of 127.0.0.1 cannot be used ({error}): stop what listens there, or choose another with --port \
             (0: any free one)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_a_clear_error() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = port_is_free(port).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
        assert!(port_is_free(0).is_ok());
    }
}
