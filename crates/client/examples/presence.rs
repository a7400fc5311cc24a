//! The users of a document and their positions: a key-value store with a key for each present user.
//!
//! With `dormouse dev` in one terminal, in others (`NATS_URL` names another fleet):
//!
//! ```text
//! cargo run -p dormouse-client --example presence -- plan alice 1:1       until Ctrl-C
//! cargo run -p dormouse-client --example presence -- plan bob 3:14
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_client::{Client, FeedFrom, FeedKeys, NewMessage, Update};

/// The time to live of a user's key, since a killed program cannot remove its key.
const GONE_AFTER: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [document, name, position] = &arguments[..] else {
        return Err("usage: DOCUMENT NAME POSITION".into());
    };
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = Client::connect(&url).await?;
    let document = client.kv(&format!("example.presence.{document}"))?;

    let here = || document.put_with(name, NewMessage::new(position.clone()).ttl(GONE_AFTER));
    here().await?;
    // A feed from the beginning first delivers the users who are already present.
    let mut feed = document.feed(FeedKeys::All, FeedFrom::Beginning).await?;
    let mut present = BTreeMap::new();
    let mut refresh = tokio::time::interval(GONE_AFTER / 3);
    let mut shown = String::new();
    let mut all_known = false;
    loop {
        let update = tokio::select! {
            update = feed.next() => update,
            _ = refresh.tick() => {
                here().await?;
                continue;
            }
            _ = tokio::signal::ctrl_c() => break,
        };
        match update.transpose()? {
            Some(Update::Set { message, .. }) => {
                let position =
                    String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
                present.insert(message.key.unwrap_or_default(), (message.seq, position));
            }
            Some(Update::Removed { key: Some(key), .. }) => drop(present.remove(&key)),
            Some(Update::Cleared { end_seq }) => present.retain(|_, (seq, _)| *seq > end_seq),
            Some(Update::CaughtUp(_)) => all_known = true,
            Some(_) => {}
            None => break,
        }
        if all_known {
            let list: Vec<_> =
                present.iter().map(|(name, (_, position))| format!("{name} at {position}")).collect();
            let list = list.join(", ");
            if list != shown {
                println!("here: {list}");
                shown = list;
            }
        }
    }
    document.delete(name).await?;
    client.close().await;
    Ok(())
}
