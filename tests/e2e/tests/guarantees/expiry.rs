//! Limits and messages that expire: set with the tool, observed by a watcher.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Error, Feed, NewMessage, Update};
use dormouse_e2e::{Fleet, TIMEOUT, until};
use dormouse_runtime::Env;

/// Returns the key of the next removed message.
async fn next_removed(watch: &mut Feed) -> anyhow::Result<String> {
    loop {
        let update = tokio::time::timeout(TIMEOUT, watch.next()).await?.context("the feed continues")??;
        if let Update::Removed { key, .. } = update {
            return Ok(key.unwrap_or_default());
        }
    }
}

/// Messages removed by TTL, `max_msgs` or `max_age` disappear for readers, and watchers receive their removal.
#[tokio::test]
async fn retention_removes_messages_for_readers_and_watchers() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let store = fleet.client().await?.kv("app.presence")?;
            let mut watch = fleet.client().await?.kv("app.presence")?.watch_all().await?;
            fleet.cli_ok(&["subject", "configure", "app.presence", "--max-msgs", "2"]).await?;
            fleet.cli_ok(&["set", "app.presence", "--key", "alice", "here", "--ttl", "1s"]).await?;
            store.put("bob", "here").await?;
            assert_eq!(next_removed(&mut watch).await?, "alice");
            assert_eq!(store.get("alice").await?, None);
            for name in ["carol", "dave"] {
                store.put(name, "here").await?;
            }
            assert_eq!(next_removed(&mut watch).await?, "bob");
            assert_eq!(store.keys("").all().await?, ["carol", "dave"]);
            ensure!(fleet.cli_ok(&["info", "app.presence"]).await?.contains("2 of 2 (100 %)"));

            fleet.cli_ok(&["subject", "configure", "app.presence", "--discard", "new"]).await?;
            let refused = store.put("erin", "here").await;
            ensure!(
                matches!(&refused, Err(Error::Service(error)) if error.limit.as_deref() == Some("max_msgs"))
            );
            store.put("dave", "still here").await?;
            fleet.cli_ok(&["subject", "configure", "app.presence", "--max-age", "1s"]).await?;
            until("all messages are expired", async || Ok((store.info().await?.count == 0).then_some(())))
                .await?;
            let mut gone = [next_removed(&mut watch).await?, next_removed(&mut watch).await?];
            gone.sort_unstable();
            assert_eq!(gone, ["carol", "dave"]);
            store.put("erin", "here").await?;
            Ok(())
        })
        .await
}

/// If a message expires while its server is down, the first read after the restart does not return it.
#[tokio::test]
async fn dormant_subject_opens_without_expired_messages() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.sleeper")?;
            store.put("stays", "1").await?;
            store.put_with("goes", NewMessage::new("2").ttl(Duration::from_secs(2))).await?;
            let expires_at = store.entry("goes").await?.context("the entry exists")?.expires_at;
            let expires_at = expires_at.context("the entry expires")?.as_micros();
            fleet.stop("persist-1").await?;
            until("the message is expired", async || {
                Ok((Env::system().wall_micros() > expires_at).then_some(()))
            })
            .await?;
            fleet.restart("persist-1").await?;
            assert_eq!(store.get("goes").await?, None, "the first reply");
            assert_eq!(store.get("stays").await?.as_deref(), Some(&b"1"[..]));
            Ok(())
        })
        .await
}
