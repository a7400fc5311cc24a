//! The log of a job: written while the job runs, and followed as with `tail -f`, also after the job has
//! ended.
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
        _ => return Err("usage: run JOB STEPS | tail JOB".into()),
    }
    client.close().await;
    Ok(())
}

/// The job continues while its lines are in flight: they are queued in order, and lines that are queued
/// together are sent together. After every 1,000 lines it awaits their acknowledgements, which bounds the
/// queue.
async fn run(log: &Stream, steps: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut in_flight: Vec<AckFuture> = Vec::new();
    for step in 1..=steps {
        in_flight.push(log.publish(format!("step {step} of {steps}")));
        if in_flight.len() >= 1_000 {
            for ack in in_flight.drain(..) {
                ack.await?;
            }
        }
    }
    for ack in in_flight {
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
