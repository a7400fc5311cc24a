//! The log of a job, written while it runs and followed as by `tail -f`, also long after it has ended.
//!
//! With `dormouse dev` in one terminal, in others (`NATS_URL` names another fleet):
//!
//! ```text
//! cargo run -p dormouse-client --example joblog -- run build 1000      a job of 1000 steps
//! cargo run -p dormouse-client --example joblog -- tail build          until the job has ended
//! ```

use dormouse_client::{AckFuture, Client, FeedFrom, NewMessage, Stream, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let url = std::env::var("NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".to_owned());
    let client = Client::connect(&url).await?;
    let log = |job: &str| client.stream(&format!("example.joblog.{job}"));
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", job, steps] => run(&log(job)?, steps.parse()?).await?,
        ["tail", job] => tail(&log(job)?).await?,
        _ => return Err("run JOB STEPS, or tail JOB".into()),
    }
    client.close().await;
    Ok(())
}

/// The job goes on while its lines are on their way: they are queued in order, and those that queue together are sent
/// together. Now and then it waits for those that it has written, so that there are never too many.
async fn run(log: &Stream, steps: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut on_their_way: Vec<AckFuture> = Vec::new();
    for step in 1..=steps {
        on_their_way.push(log.publish(format!("step {step} of {steps}")));
        if on_their_way.len() >= 1_000 {
            for ack in on_their_way.drain(..) {
                ack.await?;
            }
        }
    }
    for ack in on_their_way {
        ack.await?;
    }
    let end = log.publish_with(NewMessage::new("done").header("end", "success")).await?;
    println!("wrote {steps} lines and the end at {}", end.seq);
    Ok(())
}

async fn tail(log: &Stream) -> Result<(), Box<dyn std::error::Error>> {
    let mut feed = log.feed(FeedFrom::Beginning).await?;
    while let Some(update) = feed.next().await {
        if let Update::Set { message, .. } = update? {
            println!("{}", String::from_utf8_lossy(message.value.as_deref().unwrap_or_default()));
            if message.headers.get("end").is_some() {
                return Ok(());
            }
        }
    }
    Ok(())
}
