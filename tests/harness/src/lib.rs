//! What the end-to-end tests and the demo need around them: programs, free ports, real processes that end with
//! their owner.

use std::path::PathBuf;

/// The nats-server to use: `DORMOUSE_NATS_SERVER`, else the one on the PATH, else the one `make tools` installed.
///
/// # Errors
/// Says what to do when there is none.
pub fn nats_server_program() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("DORMOUSE_NATS_SERVER") {
        return Ok(program.into());
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>())
        .map(|folder| folder.join("nats-server"));
    let installed = workspace_root().join(".tools/bin/nats-server");
    on_path
        .chain([installed])
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("no nats-server found: run `make tools`"))
}

/// The top folder of the workspace this was built from.
#[must_use]
pub fn workspace_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
