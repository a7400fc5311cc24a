//! `watch`.

use dormouse_client::{FeedFrom, FeedKeys, Update};

use crate::args;
use crate::error::{Failure, FailureKind};
use crate::session::Session;
use crate::view::{UpdateView, update_line};

/// `watch`.
pub(super) async fn watch(session: &Session, arguments: args::Watch) -> Result<(), Failure> {
    let kv = session.kv(&arguments.subject)?;
    let keys = match (arguments.key, arguments.key_prefix) {
        (Some(key), _) => FeedKeys::One(key),
        (None, Some(key_prefix)) => FeedKeys::Prefix(key_prefix),
        (None, None) => FeedKeys::All,
    };
    let from = if arguments.history { FeedFrom::Beginning } else { FeedFrom::Now };
    let mut feed = kv.feed(keys, from).await?;
    // A script can wait for this line: the feed misses no later change.
    session.output.info_line(&format!("watching {}", arguments.subject));
    let mut left = arguments.count;
    // One listener for all updates, so Ctrl-C while an update is printed also ends the command.
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while left != Some(0) {
        let update = tokio::select! {
            biased;
            // Before the updates, which may arrive without a pause.
            _ = &mut interrupt => return Ok(()),
            update = feed.next() => update,
        };
        let Some(update) = update else {
            return Err(Failure::of(
                FailureKind::Unavailable,
                "the feed has ended: the connection is closed",
            ));
        };
        let update = update?;
        show(session, &update)?;
        // `caught up` and `reset` are no changes.
        if !matches!(update, Update::CaughtUp(_) | Update::Reset) {
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

fn show(session: &Session, update: &Update) -> Result<(), Failure> {
    if session.output.is_json() {
        session.output.json(&UpdateView::new(update))?;
    } else if let Update::CaughtUp(position) = update {
        session.output.info_line(&format!("caught up at {position}"));
    } else {
        session.output.line(update_line(update))?;
    }
    session.output.flush()
}
