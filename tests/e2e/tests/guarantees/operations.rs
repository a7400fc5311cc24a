//! The operations, through the client, on one server.

use anyhow::ensure;
use bytes::Bytes;
use dormouse_client::{Error, Level, NewMessage, Seq, SubjectConfig};
use dormouse_e2e::{Fleet, until};

use crate::support::{files_ending, filled, value};

/// A key-value store applies put, update, create, delete and clear, and rejects failed expectations.
#[tokio::test]
async fn key_value_store_applies_puts_updates_and_deletes() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.settings")?;
            assert_eq!(store.get("colour").await?, None);
            let first = store.put("colour", "green").await?;
            assert_eq!(store.get("colour").await?.as_deref(), Some(&b"green"[..]));
            let second = store.update("colour", "blue", first.id()).await?;
            assert!(second.rev > first.rev && second.seq > first.seq);
            let refused = store.update("colour", "red", first.id()).await;
            assert!(matches!(refused, Err(Error::WrongLast { actual }) if actual == Some(second.id())));
            assert!(matches!(store.create("colour", "red").await, Err(Error::KeyExists { .. })));
            store.create("size", "7").await?;
            assert_eq!(store.keys("").all().await?, ["colour", "size"]);
            assert_eq!(store.entries("co").all().await?.len(), 1);
            assert!(store.delete("colour").await?);
            assert!(!store.delete("colour").await?);
            assert_eq!(store.get("colour").await?, None);
            assert_eq!(store.clear().await?, 1);
            assert_eq!(store.keys("").all().await?, Vec::<String>::new());
            Ok(())
        })
        .await
}

/// The empty key, a null value, an empty value and repeated headers are read back as written.
#[tokio::test]
async fn empty_keys_null_values_and_headers_round_trip() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("odd")?;
            store.put("", "under the empty key").await?;
            store.put_with("null", NewMessage::null()).await?;
            store.put("empty", "").await?;
            store.put_with("headed", NewMessage::new("v").header("a", "1").header("a", "2")).await?;
            assert_eq!(store.get("").await?.as_deref(), Some(&b"under the empty key"[..]));
            let null = store.entry("null").await?.expect("the entry is there");
            assert_eq!(null.value, None);
            let empty = store.entry("empty").await?.expect("the entry is there");
            assert_eq!(empty.value, Some(Bytes::new()));
            let headed = store.entry("headed").await?.expect("the entry is there");
            let headers = [("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
            assert_eq!(headed.headers.0, headers);
            Ok(())
        })
        .await
}

/// A stream keeps its order, leaves skipped seqs empty, and deletes by seq, up to a seq and all but the last.
#[tokio::test]
async fn stream_keeps_order_and_skipped_seqs() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let stream = client.stream("app.log")?;
            assert_eq!(stream.publish("one").await?.seq, Seq::new(1));
            for result in stream.publish_batch(["two", "three", "four"]).await {
                result?;
            }
            let far = stream.publish_with(NewMessage::new("ten").seq(Seq::new(10))).await?;
            assert_eq!(far.seq, Seq::new(10));
            assert_eq!(stream.publish("eleven").await?.seq, Seq::new(11));
            assert_eq!(stream.get(Seq::new(5)).await?, None);

            let seqs = |messages: Vec<dormouse_client::Message>| -> Vec<u64> {
                messages.iter().map(|message| message.seq.get()).collect()
            };
            assert_eq!(seqs(stream.get_all(..).all().await?), [1, 2, 3, 4, 10, 11]);
            assert_eq!(seqs(stream.get_all(2..=10).all().await?), [2, 3, 4, 10]);
            let newest = dormouse_client::SeqRange::all().reverse().limit(2);
            assert_eq!(seqs(stream.get_all(newest).all().await?), [11, 10]);

            assert_eq!(stream.delete([Seq::new(2), Seq::new(7)]).await?, [Seq::new(2)]);
            assert_eq!(stream.delete_up_to(Seq::new(3)).await?, 2);
            assert_eq!(stream.keep_last(1).await?, 2);
            assert_eq!(seqs(stream.get_all(..).all().await?), [11]);
            Ok(())
        })
        .await
}

/// Info reports count, bytes, configuration, position, level, `bucket_rev` and server of a subject.
#[tokio::test]
async fn subject_info_reports_counts_and_configuration() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.described").await?;
            let metadata = [("owner".to_owned(), "team blue".to_owned())].into();
            let config = SubjectConfig { metadata, ..SubjectConfig::default() };
            let position = store.configure(config.clone()).await?;
            let info = store.info().await?;
            assert_eq!((info.count, info.config, info.position), (300, config, position));
            assert_eq!(info.bytes, (0..300).map(|number| value(number).len() as u64).sum::<u64>());
            assert_eq!(info.server.as_str(), "persist-1");
            assert_eq!((info.level, info.bucket_rev), (Level::Bucket, info.position.rev));
            Ok(())
        })
        .await
}

/// A subject keeps its configured level, and a single write at level `bucket` is in the bucket after its ack.
#[tokio::test]
async fn subject_level_applies_and_a_write_may_raise_the_level() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            for level in Level::ALL {
                let store = client.kv(&format!("app.level.{level}"))?;
                store.configure(SubjectConfig { level: Some(level), ..SubjectConfig::default() }).await?;
                store.put("k", "v").await?;
                assert_eq!(store.info().await?.level, level);
                let strong = store.clone().with_level(Level::Bucket).put("l", "w").await?;
                assert_eq!(store.info().await?.bucket_rev, strong.rev, "{level}");
            }
            Ok(())
        })
        .await
}

/// After a flush and a graceful stop, the bucket holds a plain SQLite file with all messages.
#[tokio::test]
async fn graceful_stop_leaves_a_sqlite_file_in_the_bucket() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.files").await?;
            let position = store.flush().await?;
            let info = store.info().await?;
            assert_eq!((info.position, info.bucket_rev), (position, position.rev));
            fleet.stop("persist-1").await?;
            let files = files_ending(&fleet.bucket_dir(), ".sqlite3")?;
            let mut counts = Vec::new();
            for file in &files {
                let bytes = std::fs::read(file)?;
                ensure!(bytes.starts_with(b"SQLite format 3\0"), "{} is not an SQLite file", file.display());
                counts.push(count_with_sqlite3(file).await?);
            }
            // The newest file holds all messages. If no sqlite3 is installed, the check of the first bytes must be
            // enough.
            ensure!(counts.iter().any(|count| matches!(count, None | Some(300))), "{counts:?}");
            Ok(())
        })
        .await
}

/// Returns the number of messages in a file from the `sqlite3` tool; `None` if it is not installed.
async fn count_with_sqlite3(file: &std::path::Path) -> anyhow::Result<Option<u64>> {
    let question = "PRAGMA integrity_check; SELECT count(*) FROM messages;";
    let asked =
        tokio::process::Command::new("sqlite3").arg("-readonly").arg(file).arg(question).output().await;
    let Ok(output) = asked else { return Ok(None) };
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.first() == Some(&"ok"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(Some(lines[1].parse()?))
}

/// A destroyed subject is empty, its files leave the bucket, and term, rev and seq continue to grow.
#[tokio::test]
async fn destroyed_subject_is_empty_and_keeps_numbering() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = filled(&client, "app.destroyed").await?;
            store.flush().await?;
            let ended = store.destroy().await?;
            // The reply comes first: from then on no manifest refers to the files.
            until("the files are gone", async || {
                Ok(files_ending(&fleet.bucket_dir(), ".sqlite3")?.is_empty().then_some(()))
            })
            .await?;
            assert_eq!(store.keys("").all().await?, Vec::<String>::new());
            let again = store.put("k", "v").await?;
            assert!(again.term > ended.term, "{again:?} {ended:?}");
            assert!(again.rev > ended.rev && again.seq > Seq::new(300), "{again:?} {ended:?}");
            Ok(())
        })
        .await
}

/// Concurrent writes to 40 subjects reach their own subject, in order.
#[tokio::test]
async fn subjects_under_concurrent_requests_do_not_mix() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            let writes = (0..40).map(|subject| {
                let client = client.clone();
                async move {
                    let stream = client.stream(&format!("app.many.{subject}"))?;
                    for number in 0..25 {
                        stream.publish(format!("{subject}/{number}")).await?;
                    }
                    anyhow::Ok(())
                }
            });
            futures::future::try_join_all(writes).await?;
            for subject in 0..40 {
                let messages = client.stream(&format!("app.many.{subject}"))?.get_all(..).all().await?;
                let values: Vec<_> = messages.into_iter().filter_map(|message| message.value).collect();
                let wanted: Vec<_> =
                    (0..25).map(|number| Bytes::from(format!("{subject}/{number}"))).collect();
                assert_eq!(values, wanted);
            }
            Ok(())
        })
        .await
}

/// By default, a nats-server carries messages of 1 MiB, including the other parts of a message.
#[tokio::test]
async fn values_of_any_size_are_kept_large_headers_rejected() -> anyhow::Result<()> {
    Fleet::builder()
        .run(async |fleet| {
            let client = fleet.client().await?;
            let store = client.kv("app.large")?;
            // Sizes around the limit of an inline value, and around the limit of a message.
            for limit in [256 * 1_024, 1_024 * 1_024 - 4_096, 1_024 * 1_024] {
                for size in [limit - 300, limit - 1, limit, limit + 1] {
                    let value = Bytes::from(vec![(size % 251) as u8; size]);
                    store.put("k", value.clone()).await?;
                    assert_eq!(store.get("k").await?, Some(value), "{size} bytes, read back whole");
                }
            }

            // The client would send this, but the server rejects it: headers have a limit of their own.
            let headers = "h".repeat(dormouse_protocol::limits::MAX_HEADERS_BYTES);
            let refused = store.put_with("headed", NewMessage::new("v").header("a", headers)).await;
            assert!(matches!(&refused, Err(Error::TooLarge { .. })), "{refused:?}");
            assert_eq!(store.keys("").all().await?, ["k"]);
            Ok(())
        })
        .await
}
