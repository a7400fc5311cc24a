//! A client in another language, written from PROTOCOL.md: see `tests/interop`.

use std::process::Stdio;

use anyhow::{Context, ensure};
use dormouse_e2e::Fleet;
use dormouse_harness::{interop_python, workspace_root};
use tokio::process::Command;

#[tokio::test]
async fn a_client_written_from_the_page_alone_finds_everything_as_it_says() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let mut client = Command::new(interop_python()?);
            client.arg(workspace_root().join("tests/interop/interop.py"));
            client.args(["--nats", &fleet.url(), "--servers", "persist-1,persist-2"]);
            // Nothing is left in the folder of the sources.
            client.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null()).kill_on_drop(true);
            let output = client.output().await.context("cannot run Python")?;
            let said = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}\n{said}{error}", output.status);
            // The last line says how many checks there were: none would be as good as a test that was skipped.
            let last = said.lines().last().unwrap_or_default();
            let held: usize = last.split(' ').next().unwrap_or_default().parse().context(last.to_owned())?;
            ensure!(
                held > 20 && said.lines().filter(|line| line.starts_with("ok ")).count() == held,
                "{said}"
            );
            Ok(())
        })
        .await
}
