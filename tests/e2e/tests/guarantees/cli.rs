//! The `dormouse` tool.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, until};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// The CLI sets, gets, lists, removes and destroys, with text and JSON output.
#[tokio::test]
async fn cli_sets_gets_lists_and_removes_in_text_and_json() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            fleet.cli_ok(&["set", "app.tool", "--key", "colour", "green"]).await?;
            fleet.cli_ok(&["set", "app.tool", "--key", "size", "7", "--header", "unit: cm"]).await?;
            let set = documents(&fleet.cli_ok(&["--json", "set", "app.tool", "no key"]).await?)?;
            assert_eq!(set[0]["seq"], 3);

            assert_eq!(fleet.cli_ok(&["get", "app.tool", "--key", "colour"]).await?, "green");
            let got = documents(&fleet.cli_ok(&["--json", "get", "app.tool", "--seq", "2"]).await?)?;
            assert_eq!((&got[0]["value_text"], &got[0]["key"]), (&Value::from("7"), &Value::from("size")));
            assert_eq!(fleet.cli_ok(&["keys", "app.tool"]).await?, "colour\nsize\n");
            let keys = documents(&fleet.cli_ok(&["--json", "keys", "app.tool", "s"]).await?)?;
            assert_eq!(keys, [serde_json::json!({"key": "size"})]);
            let listed = documents(&fleet.cli_ok(&["--json", "ls", "app.tool"]).await?)?;
            let seqs: Vec<_> = listed.iter().map(|message| message["seq"].as_u64()).collect();
            assert_eq!(seqs, [Some(1), Some(2), Some(3)]);
            ensure!(fleet.cli_ok(&["ls", "app.tool"]).await?.contains("green"));

            fleet.cli_ok(&["rm", "app.tool", "--key", "colour"]).await?;
            let info = documents(&fleet.cli_ok(&["--json", "info", "app.tool"]).await?)?;
            assert_eq!((&info[0]["count"], &info[0]["server"]), (&Value::from(2), &Value::from("persist-1")));
            ensure!(fleet.cli_ok(&["info", "app.tool"]).await?.contains("persist-1"));
            fleet.cli_ok(&["subject", "destroy", "app.tool", "--yes"]).await?;
            assert_eq!(fleet.cli_ok(&["keys", "app.tool"]).await?, "");
            Ok(())
        })
        .await
}

/// A failing command exits with its documented code, writes a JSON error on request, and destroys nothing without
/// `--yes`.
#[tokio::test]
async fn cli_failure_has_an_exit_code_and_a_json_error() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let missing = fleet.cli(&["get", "app.tool", "--key", "none"]).await?;
            assert_eq!((missing.status.code(), missing.stdout.len()), (Some(3), 0));
            let missing = fleet.cli(&["--json", "get", "app.tool", "--key", "none"]).await?;
            let output_text = documents(std::str::from_utf8(&missing.stderr)?)?;
            assert_eq!(output_text[0]["error"]["kind"], "not_found");
            for illegal in ["app.*", "app..x", ""] {
                assert_eq!(
                    fleet.cli(&["get", illegal, "--key", "k"]).await?.status.code(),
                    Some(2),
                    "{illegal}"
                );
            }
            // Nothing is destroyed without `--yes`.
            ensure!(!fleet.cli(&["subject", "destroy", "app.tool"]).await?.status.success());
            Ok(())
        })
        .await
}

/// An exported subject is a SQLite file with all messages, and an export never overwrites a file.
#[tokio::test]
async fn exported_subject_is_a_readable_sqlite_file() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let stream = fleet.client().await?.stream("app.export")?;
            for result in stream.publish_batch((0..1_000).map(|number| format!("line {number}"))).await {
                result?;
            }
            let bucket = format!("file://{}", fleet.bucket_dir().display());
            let file = fleet.folder().join("export.sqlite3");
            let path = file.display().to_string();
            fleet.cli_ok(&["subject", "export", "app.export", &path, "--bucket", &bucket]).await?;
            ensure!(std::fs::read(&file)?.starts_with(b"SQLite format 3\0"));
            let question = "SELECT count(*), min(CAST(value AS TEXT)) FROM messages";
            let asked = tokio::process::Command::new("sqlite3").arg(&file).arg(question).output().await;
            // If no sqlite3 is installed, the check of the first bytes must be enough.
            if let Ok(output) = asked {
                assert_eq!(String::from_utf8(output.stdout)?, "1000|line 0\n");
            }
            // An export never overwrites an existing file.
            let again = fleet.cli(&["subject", "export", "app.export", &path, "--bucket", &bucket]).await?;
            ensure!(!again.status.success());
            Ok(())
        })
        .await
}

/// The CLI lists servers, checks the health of each process and locates a subject.
#[tokio::test]
async fn cli_shows_servers_health_and_locations() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let listed = documents(&fleet.cli_ok(&["--json", "server", "ls"]).await?)?;
            let servers = listed[0]["servers"].as_array().context("no servers")?;
            let names: Vec<_> = servers.iter().filter_map(|server| server["name"].as_str()).collect();
            assert_eq!(names, ["persist-1", "persist-2"]);
            ensure!(fleet.cli_ok(&["server", "ls"]).await?.contains("persist-2"));

            // The commands that the probes of the Kubernetes manifests run.
            for name in ["coordinator", "persist-1", "persist-2"] {
                ensure!(fleet.cli_ok(&["server", "health", name]).await?.contains("ok"), "{name}");
            }
            assert_eq!(fleet.cli(&["server", "health", "unknown"]).await?.status.code(), Some(5));

            let location = fleet.cli_ok(&["subject", "locate", "app.placed"]).await?;
            let json = documents(&fleet.cli_ok(&["--json", "subject", "locate", "app.placed"]).await?)?;
            assert_eq!(json[0]["server"], location.trim());
            Ok(())
        })
        .await
}

/// `dormouse watch` prints changes as they happen and ends after the given count.
#[tokio::test]
async fn cli_watch_prints_live_changes() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let stream = fleet.client().await?.stream("app.watched")?;
            let mut seen = String::new();
            // The tool reports on standard error when it is subscribed. Changes before that are missed, so they are
            // written again.
            let watching = fleet.cli_ok(&["--json", "watch", "app.watched", "--count", "3"]);
            let writing = until("the tool has received enough", async || {
                stream.publish("x").await?;
                Ok(None::<()>)
            });
            tokio::select! {
                watched = watching => seen = watched?,
                written = writing => written?,
            }
            let mut updates = documents(&seen)?;
            updates.retain(|update| update["type"] == "set");
            assert_eq!(updates.len(), 3);
            ensure!(updates.iter().all(|update| update["message"]["value_text"] == "x"), "{seen}");
            Ok(())
        })
        .await
}

/// The CLI flushes, configures and exports a subject, also to a file whose name is not UTF-8.
#[tokio::test]
async fn cli_flushes_configures_and_exports_subjects() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            fleet.cli_ok(&["set", "app.cared", "--key", "k", "v"]).await?;
            let flushed = documents(&fleet.cli_ok(&["--json", "subject", "flush", "app.cared"]).await?)?;
            assert_eq!(flushed[0]["subject"], "app.cared");
            let info = documents(&fleet.cli_ok(&["--json", "info", "app.cared"]).await?)?;
            assert_eq!(
                (&info[0]["bucket_rev"], &info[0]["position"]),
                (&Value::from(1), &flushed[0]["position"])
            );
            ensure!(
                fleet.cli_ok(&["subject", "flush", "app.cared"]).await?.starts_with("in the bucket up to")
            );

            let configure = ["subject", "configure", "app.cared"];
            fleet
                .cli_ok(&[&configure[..], &["--metadata", "owner=blue", "--metadata", "tier=1"]].concat())
                .await?;
            let line = [&["--json"], &configure[..], &["--remove-metadata", "tier"]].concat();
            let configured = documents(&fleet.cli_ok(&line).await?)?;
            assert_eq!(configured[0]["config"]["metadata"], serde_json::json!({"owner": "blue"}));
            let info = documents(&fleet.cli_ok(&["--json", "info", "app.cared"]).await?)?;
            assert_eq!(info[0]["config"]["metadata"], serde_json::json!({"owner": "blue"}));

            // A file name need not be UTF-8.
            let bucket = format!("file://{}", fleet.bucket_dir().display());
            let file = fleet.folder().join(OsStr::from_bytes(b"export-\xff.sqlite3"));
            let mut export = fleet.tool()?;
            export.args([
                "--nats",
                &fleet.url(),
                "--json",
                "subject",
                "export",
                "app.cared",
                "--bucket",
                &bucket,
            ]);
            let ran = export.arg(&file).output().await?;
            ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            let exported = documents(std::str::from_utf8(&ran.stdout)?)?;
            assert_eq!(exported[0]["size_bytes"].as_u64(), Some(std::fs::metadata(&file)?.len()));
            Ok(())
        })
        .await
}

/// The CLI sets a binary value from standard input, and a get with a closed pipe exits cleanly.
#[tokio::test]
async fn cli_reads_stdin_values_and_tolerates_a_closed_pipe() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let value = vec![0xff; 100_000];
            let mut set = fleet.tool()?;
            set.args(["--nats", &fleet.url(), "set", "app.piped", "--key", "k", "-"]);
            let mut set = set.stdin(Stdio::piped()).spawn()?;
            let mut input = set.stdin.take().context("no input")?;
            input.write_all(&value).await?;
            drop(input);
            ensure!(set.wait().await?.success());
            assert_eq!(fleet.cli(&["get", "app.piped", "--key", "k"]).await?.stdout, value);

            // The value is larger than a pipe buffer, and the pipe has no reader.
            let mut get = fleet.tool()?;
            get.args(["--nats", &fleet.url(), "get", "app.piped", "--key", "k"]);
            let mut get = get.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            drop(get.stdout.take());
            let ended = get.wait_with_output().await?;
            assert_eq!((ended.status.code(), String::from_utf8(ended.stderr)?), (Some(0), String::new()));
            Ok(())
        })
        .await
}

/// A NATS context overrides the environment variables, and a flag overrides the context.
#[tokio::test]
async fn cli_context_overrides_the_environment() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let contexts = fleet.folder().join("nats/context");
            std::fs::create_dir_all(&contexts)?;
            let context = serde_json::json!({ "description": "", "url": fleet.url(), "creds": "" });
            std::fs::write(contexts.join("here.json"), context.to_string())?;
            let listed = async |arguments: &[&str], is_overridden: bool| {
                let mut command = fleet.tool()?;
                command.args(["server", "ls"]).args(arguments);
                if is_overridden {
                    // No server listens on the discard port.
                    command.env("DORMOUSE_NATS", "nats://127.0.0.1:9").env("NATS_URL", "nats://127.0.0.1:9");
                }
                anyhow::Ok(command.output().await?)
            };
            for is_overridden in [false, true] {
                let output = listed(&["--context", "here"], is_overridden).await?;
                let output_text = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "is_overridden: {is_overridden}: {output_text}");
            }
            // A flag overrides it.
            let output =
                listed(&["--context", "here", "--nats", "nats://127.0.0.1:9", "--deadline", "2s"], false);
            assert_eq!(output.await?.status.code(), Some(5));
            let missing = listed(&["--context", "nowhere"], false).await?;
            assert_eq!(missing.status.code(), Some(2));
            Ok(())
        })
        .await
}
