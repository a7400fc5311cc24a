//! Live changes.

use dormouse_client::{Seq, Update};
use dormouse_e2e::{Fleet, PATIENCE};

#[tokio::test]
async fn a_watcher_sees_every_change_once_and_in_order() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let writer = fleet.client().await?.stream("app.live")?;
            let mut watch = fleet.client().await?.stream("app.live")?.watch().await?;
            for result in writer.publish_batch((0..500).map(|number| number.to_string())).await {
                result?;
            }
            writer.delete([Seq::new(3)]).await?;
            writer.delete_up_to(Seq::new(10)).await?;
            for number in 0..500_u64 {
                let update = tokio::time::timeout(PATIENCE, watch.next()).await?;
                let Some(Update::Set(message)) = &update else { anyhow::bail!("{number}: {update:?}") };
                assert_eq!(message.seq.get(), number + 1);
                assert_eq!(message.value.as_deref(), Some(number.to_string().as_bytes()));
            }
            let removed = tokio::time::timeout(PATIENCE, watch.next()).await?;
            assert_eq!(removed, Some(Update::Removed { seq: Seq::new(3), key: None }));
            let cleared = tokio::time::timeout(PATIENCE, watch.next()).await?;
            assert_eq!(cleared, Some(Update::Cleared { end_seq: Seq::new(10) }));
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
            for watch in [&mut one, &mut some] {
                loop {
                    match tokio::time::timeout(PATIENCE, watch.next()).await? {
                        Some(Update::Set(message)) => seen.push(message.key.unwrap_or_default()),
                        Some(Update::Removed { key, .. }) => {
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
async fn a_watcher_goes_on_after_the_nats_server_was_away_and_says_that_something_may_be_missing()
-> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let stream = fleet.client().await?.stream("app.interrupted")?;
            let mut watch = stream.watch().await?;
            stream.publish("before").await?;
            // Events are at most once, and the last ones before a loss may be lost: seen first, then interrupted.
            let seen = tokio::time::timeout(PATIENCE, watch.next()).await?;
            assert!(matches!(&seen, Some(Update::Set(message)) if message.seq == Seq::new(1)), "{seen:?}");
            fleet.expect_warning("the connection to NATS is lost");
            // The server cannot tell whether an event was heard that it sent just before.
            fleet.expect_warning("events were dropped");
            fleet.nats().restart().await?;
            fleet.wait_serving("persist-1").await?;
            stream.publish("after").await?;
            let gap = tokio::time::timeout(PATIENCE, watch.next()).await?;
            assert!(matches!(gap, Some(Update::Gap { seen: Some(_), .. })), "{gap:?}");
            let after = tokio::time::timeout(PATIENCE, watch.next()).await?;
            assert!(matches!(&after, Some(Update::Set(message)) if message.seq == Seq::new(2)), "{after:?}");
            Ok(())
        })
        .await
}
