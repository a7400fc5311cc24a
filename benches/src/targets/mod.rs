//! The measured systems, each through the client of its users.

mod dormouse;
mod echo;
mod jetstream;
mod redis;
mod s2;

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Result, bail};
use dormouse_harness::NatsServer;

pub use echo::respond;

use crate::target::{Role, Running, Target, TargetProcess};
use dormouse::{Dormouse, Store};
use jetstream::{JetStream, Shape};

/// Every target's name, in the order in which the tables show them.
pub const NAMES: &[&str] = &[
    "echo",
    "dormouse-memory",
    "dormouse-interval",
    "dormouse-disk",
    "dormouse-bucket",
    "jetstream",
    "jetstream-one-stream",
    "jetstream-kv",
    "jetstream-always",
    "redis-everysec",
    "redis-always",
    "s2-lite",
    "dormouse-s3",
];

/// Targets that are only measured in scenarios about the bucket: the S3 server is for tests, and slow in all other
/// scenarios.
pub const ONLY_OPEN: &[&str] = &["dormouse-s3"];

/// Starts a target.
///
/// # Errors
/// If one of its programs is missing or does not start. The caller names the target and continues without it.
pub async fn start(name: &str) -> Result<Running> {
    let target: Rc<dyn Target> = match name {
        "echo" => Rc::new(echo::Echo::start().await?),
        "jetstream" => Rc::new(JetStream::start(Shape::Streams, false).await?),
        "jetstream-one-stream" => Rc::new(JetStream::start(Shape::OneStream, false).await?),
        "jetstream-kv" => Rc::new(JetStream::start(Shape::Kv, false).await?),
        "jetstream-always" => Rc::new(JetStream::start(Shape::Streams, true).await?),
        "redis-everysec" => Rc::new(redis::Redis::start("everysec").await?),
        "redis-always" => Rc::new(redis::Redis::start("always").await?),
        "s2-lite" => Rc::new(s2::S2Lite::start().await?),
        "dormouse-s3" => Rc::new(Dormouse::start("bucket", Store::S3).await?),
        name => match name.strip_prefix("dormouse-") {
            Some(level) if NAMES.contains(&name) => Rc::new(Dormouse::start(level, Store::Directory).await?),
            _ => bail!("unknown target {name:?}; the targets are {}", NAMES.join(", ")),
        },
    };
    Ok(Running::new(name, target))
}

/// Returns the program of a peer: from `scripts/tools`, or on the `PATH`.
fn program(name: &str) -> Result<PathBuf> {
    let tools = dormouse_harness::workspace_root().join(".tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools).chain(std::env::split_paths(&path));
    match folders.map(|folder| folder.join(name)).find(|file| file.is_file()) {
        Some(program) => Ok(program),
        None => bail!("no {name} found: `scripts/tools {name}` installs it"),
    }
}

/// Returns a nats-server as a process of a target.
fn nats_member(nats: &NatsServer, role: Role) -> Option<TargetProcess> {
    nats.pid().map(|pid| TargetProcess { role, pid })
}
