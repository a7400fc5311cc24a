//! The client's examples, as somebody who tries them would run them.

use anyhow::{Context, ensure};
use dormouse_e2e::{Fleet, PATIENCE, until};
use dormouse_harness::{Process, ProcessSpec, our_program};

/// A running example is called `name`, so that its output can be read.
fn start(fleet: &Fleet, name: &str, example: &str, arguments: &[&str]) -> anyhow::Result<Process> {
    let program = our_program(&format!("examples/{example}"))
        .context("cargo build --workspace --all-targets builds it")?;
    let mut spec = ProcessSpec::new(name, program, fleet.folder()).args(arguments);
    spec.environment.push(("NATS_URL".into(), fleet.url().into()));
    spec.start()
}

/// Runs an example to its end, and returns what it said.
async fn run(fleet: &Fleet, name: &str, example: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut process = start(fleet, name, example, arguments)?;
    let status = process.wait(PATIENCE).await?;
    let said = output(&process)?;
    ensure!(status.success(), "{example} {arguments:?} ended with {status}: {said}");
    Ok(said)
}

fn output(process: &Process) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(&process.spec().log)?)
}

/// Waits until an example has said a line.
async fn says(process: &Process, line: &str) -> anyhow::Result<()> {
    until(&format!("{} says {line:?}", process.spec().name), async || {
        Ok(output(process)?.lines().any(|said| said == line).then_some(()))
    })
    .await
}

#[tokio::test]
async fn what_is_said_in_a_chat_room_is_heard_by_who_is_there_and_who_comes_later() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            run(fleet, "alice", "chat", &["kitchen", "alice", "Who", "has", "the", "cheese?"]).await?;
            let room = start(fleet, "room", "chat", &["kitchen"])?;
            says(&room, "alice: Who has the cheese?").await?;
            run(fleet, "bob", "chat", &["kitchen", "bob", "I", "do."]).await?;
            says(&room, "bob: I do.").await?;
            let said = output(&room)?;
            assert_eq!(said.matches("cheese").count(), 1, "{said}");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn who_comes_to_a_document_and_who_leaves_is_seen_by_the_others() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let alice = start(fleet, "alice", "presence", &["plan", "alice", "1:1"])?;
            says(&alice, "here: alice at 1:1").await?;
            let mut bob = start(fleet, "bob", "presence", &["plan", "bob", "3:14"])?;
            says(&bob, "here: alice at 1:1, bob at 3:14").await?;
            says(&alice, "here: alice at 1:1, bob at 3:14").await?;
            bob.interrupt()?;
            let status = bob.wait(PATIENCE).await?;
            ensure!(status.success(), "{status}: {}", output(&bob)?);
            until("alice is alone again", async || {
                Ok((output(&alice)?.lines().last() == Some("here: alice at 1:1")).then_some(()))
            })
            .await
        })
        .await
}

#[tokio::test]
async fn a_job_log_is_followed_to_its_end_while_it_is_written_and_afterwards() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let mut follower = start(fleet, "follower", "joblog", &["tail", "build"])?;
            run(fleet, "job", "joblog", &["run", "build", "2500"]).await?;
            let status = follower.wait(PATIENCE).await?;
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

#[tokio::test]
async fn a_configuration_is_watched_and_edited_by_several_without_losing_a_word() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            run(fleet, "first", "config", &["set", "colour", "green"]).await?;
            let watcher = start(fleet, "watcher", "config", &["watch"])?;
            says(&watcher, "colour = green").await?;
            run(fleet, "second", "config", &["set", "colour", "blue"]).await?;
            says(&watcher, "colour = blue").await?;
            let mut editors = Vec::new();
            for word in ["one", "two", "three", "four"] {
                editors.push(start(fleet, word, "config", &["append", "tags", word])?);
            }
            for editor in &mut editors {
                let status = editor.wait(PATIENCE).await?;
                ensure!(status.success(), "{status}: {}", output(editor)?);
            }
            let tags =
                fleet.client().await?.kv("example.config")?.get("tags").await?.context("tags are set")?;
            let tags = String::from_utf8(tags.to_vec())?;
            let mut words: Vec<_> = tags.split(' ').collect();
            words.sort_unstable();
            assert_eq!(words, ["four", "one", "three", "two"]);
            says(&watcher, &format!("tags = {tags}")).await
        })
        .await
}

#[tokio::test]
async fn the_first_example_runs_as_it_stands() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let url = fleet.url();
            let said = run(fleet, "hello", "hello", &[&url]).await?;
            ensure!(said.contains("colour = Some(b\"blue\")"), "{said}");
            ensure!(said.contains("is in the bucket"), "{said}");
            Ok(())
        })
        .await
}
