//! Live changes.

use anyhow::Context;
use dormouse_client::{Feed, FeedFrom, FeedKeys, Seq, Update};
use dormouse_e2e::{Fleet, PATIENCE};

#[tokio::test]
async fn a_watcher_sees_every_change_once_and_in_order() -> anyhow::Result<()> {
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

#[tokio::test]
async fn a_watch_of_a_key_sees_that_key_and_nothing_else() -> anyhow::Result<()> {
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

#[tokio::test]
async fn a_watcher_is_told_what_happened_while_the_nats_server_was_away() -> anyhow::Result<()> {
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
            fleet.expect_warning("the connection to NATS is lost");
            // The server cannot tell whether an event was heard that it sent just before.
            fleet.expect_warning("events were dropped");
            fleet.nats().restart().await?;
            fleet.wait_serving("persist-1").await?;
            // The server may be back before the watcher is.
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

/// The next update that is no mark.
async fn next(feed: &mut Feed) -> anyhow::Result<Update> {
    loop {
        let update = tokio::time::timeout(PATIENCE, feed.next()).await?;
        match update.context("the feed has ended")?? {
            Update::CaughtUp(_) => {}
            update => return Ok(update),
        }
    }
}
