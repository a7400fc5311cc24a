//! A chat room: a stream that each participant reads from its own position.
//!
//! With `dormouse dev` in one terminal, in others (`NATS_URL` names another fleet):
//!
//! ```text
//! cargo run -p dormouse-client --example chat -- kitchen                      the last 20 messages, and then new ones
//! cargo run -p dormouse-client --example chat -- kitchen alice Who has the cheese?
//! ```

use dormouse_client::{Client, FeedFrom, Message, NewMessage, SeqRange, Stream, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((room, said)) = arguments.split_first() else {
        return Err("usage: ROOM [NAME WORDS...]".into());
    };
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = Client::connect(&url).await?;
    let room = client.stream(&format!("example.chat.{room}"))?;
    match said.split_first() {
        None => listen(&room).await?,
        Some((name, words)) => {
            room.publish_with(NewMessage::new(words.join(" ")).header("from", name)).await?;
        }
    }
    client.close().await;
    Ok(())
}

async fn listen(room: &Stream) -> Result<(), Box<dyn std::error::Error>> {
    let mut newest = room.get_all(SeqRange::all().reverse().limit(20));
    let mut messages = Vec::new();
    while let Some(message) = newest.next().await {
        messages.push(message?);
    }
    messages.iter().rev().for_each(show);
    // The feed starts at the position of the read: no message is missed or repeated.
    let from = newest.position().map_or(FeedFrom::Beginning, FeedFrom::After);
    let mut feed = room.feed(from).await?;
    while let Some(update) = feed.next().await {
        match update? {
            Update::Set { message, .. } => show(&message),
            Update::CaughtUp(_) => println!("(no more messages so far)"),
            _ => {}
        }
    }
    Ok(())
}

fn show(message: &Message) {
    let from = message.headers.get("from").unwrap_or("unknown");
    println!("{from}: {}", String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()));
}
