//! A key-value store and a stream on a running fleet: `dormouse dev` in one terminal, and in another
//! `cargo run -p dormouse-client --example hello [NATS-URL]`.

use dormouse_client::{Client, NewMessage, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "nats://127.0.0.1:4222".to_owned());
    let client = Client::connect(&url).await?;

    let settings = client.kv("hello.settings")?;
    let mut changes = settings.watch_all().await?;
    let written = settings.put("colour", "green").await?;
    println!("put     colour = green at {}, {}", written.seq, written.rev);
    settings.update("colour", "blue", written.id()).await?;
    println!("get     colour = {:?}", settings.get("colour").await?);
    for _ in 0..3 {
        match changes.next().await.transpose()? {
            Some(Update::Set { message, .. }) => println!("watched {:?} = {:?}", message.key, message.value),
            other => println!("watched {other:?}"),
        }
    }

    let greetings = client.stream("hello.greetings")?;
    greetings.publish("hello").await?;
    greetings.publish_with(NewMessage::new("bonjour").header("language", "fr")).await?;
    let mut messages = greetings.get_all(..);
    while let Some(message) = messages.next().await {
        let message = message?;
        println!("read    {} = {:?}", message.seq, message.value);
    }

    let position = greetings.flush().await?;
    println!("flushed: everything up to {position} is in the bucket");
    client.close().await;
    Ok(())
}
