//! Support for the end-to-end tests and the demo: programs, free ports, and real processes that end with their owner.
//!
//! The crate depends on no other crate of Dormouse, so that any of them can use it in its tests.

mod azure;
mod cluster;
mod exposition;
mod hostile;
mod logs;
mod metric_docs;
mod nats;
mod process;
mod rng;
mod s3;
mod s3_proxy;
mod tcp_proxy;

use std::path::{Path, PathBuf};

pub use azure::AzureServer;
pub use cluster::NatsCluster;
pub use exposition::{Samples, read_exposition};
pub use hostile::{CountingAllocator, mutate};
pub use logs::{log_problems, tail};
pub use metric_docs::metric_docs_differences;
pub use nats::{NatsServer, NatsServerOptions};
pub use process::{Process, ProcessSpec, interrupt_pid, kill9_pid, peak_resident_bytes, pid_is_alive};
pub use rng::SeededRng;
pub use s3::{S3Flaw, S3Server};
pub use s3_proxy::{LinkProfile, S3Fault, S3Operation, S3Proxy, S3Request};
pub use tcp_proxy::{DialMode, ProxyMode, TcpProxy};

/// Returns the nats-server to use: `DORMOUSE_NATS_SERVER`, else the one on the PATH, else the one that `make tools`
/// installed.
///
/// # Errors
/// If there is none; the error names the remedy.
pub fn nats_server_program() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DORMOUSE_NATS_SERVER") {
        return Ok(program.into());
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>())
        .map(|folder| folder.join("nats-server"));
    on_path
        .chain(installed("bin/nats-server"))
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("no nats-server found: run `make tools`"))
}

/// Returns the Python for the S3 server: `DORMOUSE_S3_PYTHON`, else the one for which `make tools` installed it.
///
/// # Errors
/// If there is none; the error names the remedy.
pub fn s3_server_python() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DORMOUSE_S3_PYTHON") {
        return Ok(program.into());
    }
    installed("moto/bin/python")
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("no S3 server for tests found: run `make tools`"))
}

/// Returns the Python for the client in `tests/interop`: `DORMOUSE_INTEROP_PYTHON`, else the one that `make tools`
/// installed.
///
/// # Errors
/// If there is none; the error names the remedy.
pub fn interop_python() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DORMOUSE_INTEROP_PYTHON") {
        return Ok(program.into());
    }
    installed("interop/bin/python").find(|program| program.is_file()).ok_or_else(|| {
        anyhow::anyhow!("no Python with the packages of tests/interop found: run `make tools`")
    })
}

/// Returns the Azurite to use: `DORMOUSE_AZURITE`, else the one that `scripts/tools azurite` installed.
///
/// # Errors
/// If there is none; the error names the remedy.
pub fn azurite_program() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DORMOUSE_AZURITE") {
        return Ok(program.into());
    }
    installed("azurite/node_modules/.bin/azurite-blob")
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("no Azurite found: run `scripts/tools azurite`, or `make soak-all`"))
}

/// Returns the paths at which `make tools` may have installed a tool.
fn installed(path: &'static str) -> impl Iterator<Item = PathBuf> {
    // Programs and tests are built below the workspace, or in a separate target folder.
    let running = std::env::current_exe().unwrap_or_default();
    let above = running.ancestors().map(Path::to_path_buf).chain([workspace_root()]).collect::<Vec<_>>();
    above.into_iter().map(move |folder| folder.join(".tools").join(path))
}

/// Returns the top folder of the workspace of this build.
#[must_use]
pub fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns a program of this workspace: in `DORMOUSE_BIN_DIR`, else beside the running program or test.
///
/// # Errors
/// If it has not been built; the error names the remedy.
pub fn our_program(name: &str) -> anyhow::Result<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(folder) = std::env::var_os("DORMOUSE_BIN_DIR") {
        folders.push(folder.into());
    } else {
        // `target/<profile>/<program>` or `target/<profile>/deps/<test>`.
        let running = std::env::current_exe()?;
        folders.extend(running.ancestors().skip(1).take(2).map(Path::to_path_buf));
    }
    folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("{name} has not been built: run `cargo build --workspace --bins`"))
}
