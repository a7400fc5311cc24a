//! A configuration that programs follow while they run, and that several users can edit at once without lost
//! updates.
//!
//! With `dormouse dev` in one terminal, in others (`NATS_URL` names another fleet):
//!
//! ```text
//! cargo run -p dormouse-client --example config -- watch                  the current values, and then every change
//! cargo run -p dormouse-client --example config -- set colour green
//! cargo run -p dormouse-client --example config -- append tags fast       reads, changes, and writes unless the entry has changed
//! ```

use dormouse_client::{Client, ErrorKind, FeedFrom, FeedKeys, Kv, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = Client::connect(&url).await?;
    let config = client.kv("example.config")?;
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["watch"] => watch(&config).await?,
        ["set", key, value] => drop(config.put(*key, (*value).to_owned()).await?),
        ["append", key, word] => append(&config, key, word).await?,
        _ => return Err("usage: watch | set KEY VALUE | append KEY WORD".into()),
    }
    client.close().await;
    Ok(())
}

async fn watch(config: &Kv) -> Result<(), Box<dyn std::error::Error>> {
    let mut feed = config.feed(FeedKeys::All, FeedFrom::Beginning).await?;
    while let Some(update) = feed.next().await {
        match update? {
            Update::Set { message, .. } => {
                let value =
                    String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()).into_owned();
                println!("{} = {value}", message.key.unwrap_or_default());
            }
            Update::Removed { key, .. } => println!("{} is not set", key.unwrap_or_default()),
            Update::Cleared { end_seq } => println!("all entries up to {end_seq} are removed"),
            Update::CaughtUp(_) => println!("(configuration complete)"),
            _ => {}
        }
    }
    Ok(())
}

async fn append(config: &Kv, key: &str, word: &str) -> Result<(), Box<dyn std::error::Error>> {
    loop {
        let written = match config.entry(key).await? {
            None => config.create(key, word.to_owned()).await,
            Some(entry) => {
                let old = String::from_utf8_lossy(entry.value.as_deref().unwrap_or_default()).into_owned();
                config.update(key, format!("{old} {word}"), entry.revision).await
            }
        };
        match written {
            // Another client has changed the entry: read it again.
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::WrongLastRevision) => {
            }
            written => {
                println!("written at {}", written?.id());
                return Ok(());
            }
        }
    }
}
