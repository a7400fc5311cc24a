//! A client in another language, written from PROTOCOL.md: see `tests/interop`.

use std::process::Stdio;

use anyhow::{Context, ensure};
use dormouse_e2e::Fleet;
use dormouse_harness::{interop_python, workspace_root};
use tokio::process::Command;

/// The Python client written from PROTOCOL.md passes every check against a fleet.
#[tokio::test]
async fn client_written_from_protocol_page_passes_all_checks() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let mut client = Command::new(interop_python()?);
            client.arg(workspace_root().join("tests/interop/interop.py"));
            client.args(["--nats", &fleet.url(), "--servers", "persist-1,persist-2"]);
            // Python must not write byte code into the source folder.
            client.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).kill_on_drop(true);
            let output = client.output().await.context("cannot run Python")?;
            let text = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}\n{text}{error}", output.status);
            // The last line names the number of checks: without checks, the test would prove nothing.
            let last = text.lines().last().unwrap_or_default();
            let checks: usize =
                last.split(' ').next().unwrap_or_default().parse().context(last.to_owned())?;
            ensure!(
                checks > 20 && text.lines().filter(|line| line.starts_with("ok ")).count() == checks,
                "{text}"
            );
            Ok(())
        })
        .await
}
