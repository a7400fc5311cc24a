//! Live changes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Feed, FeedFrom, FeedKeys, Kv, Message, Seq, Update};
use dormouse_e2e::{Fleet, TIMEOUT, until};

/// A watcher receives 500 sets and two kinds of removal, each once and in order.
#[tokio::test]
async fn watcher_sees_each_change_once_in_order() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let writer = fleet.client().await?.stream("app.live")?;
            let mut feed = fleet.client().await?.stream("app.live")?.feed(FeedFrom::Now).await?;
            for result in writer.publish_batch((0..500).map(|number| number.to_string())).await {
                result?;
            }
            writer.delete([Seq::new(3)]).await?;
            writer.delete_up_to(Seq::new(10)).await?;
            for number in 0..500_u64 {
                let update = next(&mut feed).await?;
                let Update::Set { message, .. } = &update else { anyhow::bail!("{number}: {update:?}") };
                assert_eq!(message.seq.get(), number + 1);
                assert_eq!(message.value.as_deref(), Some(number.to_string().as_bytes()));
            }
            assert_eq!(next(&mut feed).await?, Update::Removed { seq: Seq::new(3), key: None });
            assert_eq!(next(&mut feed).await?, Update::Cleared { end_seq: Seq::new(10) });
            Ok(())
        })
        .await
}

/// A watch of a key or a prefix receives only changes of matching keys.
#[tokio::test]
async fn watch_of_a_key_or_prefix_sees_only_matching_keys() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let store = fleet.client().await?.kv("app.keys")?;
            let mut one = store.watch("b").await?;
            let mut some = store.watch_prefix("b").await?;
            for key in ["a", "b", "bb", "c"] {
                store.put(key, "1").await?;
            }
            store.delete("b").await?;
            let mut seen = Vec::new();
            for feed in [&mut one, &mut some] {
                loop {
                    match next(feed).await? {
                        Update::Set { message, .. } => seen.push(message.key.unwrap_or_default()),
                        Update::Removed { key, .. } => {
                            seen.push(format!("-{}", key.unwrap_or_default()));
                            break;
                        }
                        other => anyhow::bail!("{other:?}"),
                    }
                }
            }
            assert_eq!(seen, ["b", "-b", "b", "bb", "-b"]);
            Ok(())
        })
        .await
}

/// A watcher receives the changes around a restart of the nats-server.
#[tokio::test]
async fn watcher_catches_up_after_a_nats_restart() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let store = fleet.client().await?.kv("app.interrupted")?;
            store.put("stays", "1").await?;
            store.put("goes", "1").await?;
            let mut feed = store.feed(FeedKeys::All, FeedFrom::Beginning).await?;
            for seq in 1..=2 {
                let update = next(&mut feed).await?;
                assert!(
                    matches!(&update, Update::Set { message, .. } if message.seq == Seq::new(seq)),
                    "{update:?}"
                );
            }
            fleet.expect_warning("NATS connection lost");
            // The server cannot know whether an event that it sent just before was delivered.
            fleet.expect_warning("events dropped");
            fleet.nats().restart().await?;
            fleet.wait_serving("persist-1").await?;
            // The server may reconnect before the watcher.
            store.put("stays", "2").await?;
            store.delete("goes").await?;
            let update = next(&mut feed).await?;
            let Update::Set { message, replaces: Some(replaced) } = update else {
                anyhow::bail!("{update:?}")
            };
            assert_eq!((message.seq, replaced), (Seq::new(3), Seq::new(1)));
            let gone = Update::Removed { seq: Seq::new(2), key: Some("goes".to_owned()) };
            assert_eq!(next(&mut feed).await?, gone);
            Ok(())
        })
        .await
}

/// Puts every key once more and removes every third key.
async fn rewrite_keys(store: &Kv, round: usize) -> anyhow::Result<()> {
    for number in 0..60 {
        let key = format!("k{}", number % 20);
        until("a write is acknowledged", async || {
            Ok(if number % 3 == 0 {
                store.delete(&key).await.ok().map(drop)
            } else {
                store.put(&key, format!("{round}-{number}")).await.ok().map(drop)
            })
        })
        .await?;
    }
    Ok(())
}

/// The messages of a reader that applies the output of a feed.
#[derive(Default)]
struct Fold {
    messages: BTreeMap<Seq, Message>,
}

impl Fold {
    fn apply(&mut self, update: Update) -> anyhow::Result<()> {
        match update {
            Update::Set { message, replaces } => {
                ensure!(self.messages.get(&message.seq) != Some(&message), "{message:?} was received twice");
                if let Some(replaced) = replaces {
                    ensure!(self.messages.remove(&replaced).is_some(), "no message was at {replaced}");
                }
                self.messages.insert(message.seq, message);
            }
            Update::Removed { seq, key } => {
                let gone = self.messages.remove(&seq);
                ensure!(gone.is_some_and(|gone| gone.key == key), "{key:?} was not at {seq}");
            }
            Update::CaughtUp(_) => {}
            other => anyhow::bail!("{other:?}"),
        }
        Ok(())
    }

    /// Reads until the feed has the position of the subject, and compares.
    async fn check_equals_state(&mut self, feed: &mut Feed, store: &Kv) -> anyhow::Result<()> {
        let goal = store.info().await?.position;
        until("the feed has the position of the subject", async || {
            // A new term without changes moves the feed without an update.
            if let Ok(update) = tokio::time::timeout(Duration::from_millis(100), feed.next()).await {
                self.apply(update.context("the feed has ended")??)?;
            }
            Ok((feed.position() >= Some(goal)).then_some(()))
        })
        .await?;
        let messages = store.entries("").all().await?;
        assert_eq!(self.messages.values().collect::<Vec<_>>(), messages.iter().collect::<Vec<_>>());
        Ok(())
    }
}

/// Applying a feed gives the subject's state, also after a server kill and a NATS restart.
#[tokio::test]
async fn feed_applied_equals_state_after_kill_and_nats_restart() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .coordinator_args(["--lease-ttl", "2s"])
        .run(async |fleet| {
            for warning in ["lease expired", "declared dead", "NATS connection lost", "events dropped"] {
                fleet.expect_warning(warning);
            }
            let client = fleet.client().await?;
            let store = fleet.client().await?.kv("app.stirred")?;
            rewrite_keys(&store, 0).await?;
            let mut feed = client.kv("app.stirred")?.feed(FeedKeys::All, FeedFrom::Beginning).await?;
            let mut fold = Fold::default();
            fold.check_equals_state(&mut feed, &store).await?;

            rewrite_keys(&store, 1).await?;
            fold.check_equals_state(&mut feed, &store).await?;

            let owner = fleet.owner(&client, "app.stirred").await?;
            let (stirred, killed) = tokio::join!(rewrite_keys(&store, 2), fleet.kill9(&owner));
            stirred.and(killed)?;
            fold.check_equals_state(&mut feed, &store).await?;
            fleet.restart(&owner).await?;

            let (stirred, restarted) = tokio::join!(rewrite_keys(&store, 3), fleet.nats().restart());
            stirred.and(restarted)?;
            fold.check_equals_state(&mut feed, &store).await
        })
        .await
}

/// Returns the next update that is not a mark.
async fn next(feed: &mut Feed) -> anyhow::Result<Update> {
    loop {
        let update = tokio::time::timeout(TIMEOUT, feed.next()).await?;
        match update.context("the feed has ended")?? {
            Update::CaughtUp(_) => {}
            update => return Ok(update),
        }
    }
}
