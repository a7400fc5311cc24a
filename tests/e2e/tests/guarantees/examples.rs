//! The client's examples, run as a user would run them.

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, TIMEOUT, until};
use dormouse_harness::{Process, ProcessSpec, our_program};

/// Starts an example as process `name`, so that its output can be read.
fn start(fleet: &Fleet, name: &str, example: &str, arguments: &[&str]) -> anyhow::Result<Process> {
    let program = our_program(&format!("examples/{example}"))
        .context("cargo build --workspace --all-targets builds it")?;
    let mut spec = ProcessSpec::new(name, program, fleet.folder()).args(arguments);
    spec.environment.push(("NATS_URL".into(), fleet.url().into()));
    spec.start()
}

/// Runs an example to its end, and returns its output.
async fn run(fleet: &Fleet, name: &str, example: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut process = start(fleet, name, example, arguments)?;
    let status = process.wait(TIMEOUT).await?;
    let text = output(&process)?;
    ensure!(status.success(), "{example} {arguments:?} ended with {status}: {text}");
    Ok(text)
}

fn output(process: &Process) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(&process.spec().log)?)
}

/// Waits until an example has printed a line.
async fn wait_for_line(process: &Process, line: &str) -> anyhow::Result<()> {
    until(&format!("{} prints {line:?}", process.spec().name), async || {
        Ok(output(process)?.lines().any(|text| text == line).then_some(()))
    })
    .await
}

/// The chat example shows earlier messages and live messages, each once.
#[tokio::test]
async fn chat_example_shows_earlier_and_live_messages() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            run(fleet, "alice", "chat", &["kitchen", "alice", "Who", "has", "the", "cheese?"]).await?;
            let room = start(fleet, "room", "chat", &["kitchen"])?;
            wait_for_line(&room, "alice: Who has the cheese?").await?;
            run(fleet, "bob", "chat", &["kitchen", "bob", "I", "do."]).await?;
            wait_for_line(&room, "bob: I do.").await?;
            let text = output(&room)?;
            assert_eq!(text.matches("cheese").count(), 1, "{text}");
            Ok(())
        })
        .await
}

/// The presence example shows other users as they join and leave.
#[tokio::test]
async fn presence_example_shows_joins_and_leaves() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let alice = start(fleet, "alice", "presence", &["plan", "alice", "1:1"])?;
            wait_for_line(&alice, "here: alice at 1:1").await?;
            let mut bob = start(fleet, "bob", "presence", &["plan", "bob", "3:14"])?;
            wait_for_line(&bob, "here: alice at 1:1, bob at 3:14").await?;
            wait_for_line(&alice, "here: alice at 1:1, bob at 3:14").await?;
            bob.interrupt()?;
            let status = bob.wait(TIMEOUT).await?;
            ensure!(status.success(), "{status}: {}", output(&bob)?);
            until("alice is alone again", async || {
                Ok((output(&alice)?.lines().last() == Some("here: alice at 1:1")).then_some(()))
            })
            .await
        })
        .await
}

/// The job log example prints every line in order, live and after the job has ended.
#[tokio::test]
async fn joblog_example_follows_a_log_live_and_afterwards() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut follower = start(fleet, "follower", "joblog", &["tail", "build"])?;
            run(fleet, "job", "joblog", &["run", "build", "2500"]).await?;
            let status = follower.wait(TIMEOUT).await?;
            ensure!(status.success(), "{status}: {}", output(&follower)?);
            let mut lines: Vec<String> = (1..=2_500).map(|step| format!("step {step} of 2500")).collect();
            lines.push("done".to_owned());
            ensure!(output(&follower)?.lines().eq(lines.iter()), "{}", output(&follower)?);
            let afterwards = run(fleet, "afterwards", "joblog", &["tail", "build"]).await?;
            ensure!(afterwards.lines().eq(lines.iter()), "{afterwards}");
            Ok(())
        })
        .await
}

/// The config example shows changes live, and four concurrent edits lose no word.
#[tokio::test]
async fn config_example_merges_concurrent_edits() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            run(fleet, "first", "config", &["set", "colour", "green"]).await?;
            let watcher = start(fleet, "watcher", "config", &["watch"])?;
            wait_for_line(&watcher, "colour = green").await?;
            run(fleet, "second", "config", &["set", "colour", "blue"]).await?;
            wait_for_line(&watcher, "colour = blue").await?;
            let mut editors = Vec::new();
            for word in ["one", "two", "three", "four"] {
                editors.push(start(fleet, word, "config", &["append", "tags", word])?);
            }
            for editor in &mut editors {
                let status = editor.wait(TIMEOUT).await?;
                ensure!(status.success(), "{status}: {}", output(editor)?);
            }
            let tags =
                fleet.client().await?.kv("example.config")?.get("tags").await?.context("tags are set")?;
            let tags = String::from_utf8(tags.to_vec())?;
            let mut words: Vec<_> = tags.split(' ').collect();
            words.sort_unstable();
            assert_eq!(words, ["four", "one", "three", "two"]);
            wait_for_line(&watcher, &format!("tags = {tags}")).await
        })
        .await
}

/// The hello example runs unchanged, reads its value back and flushes it.
#[tokio::test]
async fn hello_example_runs_without_changes() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let url = fleet.url();
            let text = run(fleet, "hello", "hello", &[&url]).await?;
            ensure!(text.contains("colour = Some(b\"blue\")"), "{text}");
            ensure!(text.contains("is in the bucket"), "{text}");
            Ok(())
        })
        .await
}
