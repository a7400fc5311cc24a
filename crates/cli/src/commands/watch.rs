//! `watch`.

use dormouse_client::Update;

use crate::args;
use crate::error::{ErrorKind, Failure};
use crate::session::Session;
use crate::view::{UpdateView, update_line};

/// `watch`.
pub(super) async fn watch(session: &Session, arguments: args::Watch) -> Result<(), Failure> {
    let kv = session.kv(&arguments.subject)?;
    let mut watch = match (arguments.key, arguments.key_prefix) {
        (Some(key), _) => kv.watch(key).await?,
        (None, Some(key_prefix)) => kv.watch_prefix(key_prefix).await?,
        (None, None) => kv.watch_all().await?,
    };
    // Tells a script that waits for it that no later change is missed.
    session.output.note(&format!("watching {}", arguments.subject));
    let mut left = arguments.count;
    // One for all updates: an interruption while one is being shown counts, too.
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while left != Some(0) {
        let update = tokio::select! {
            biased;
            // Before the updates, which may come without a pause.
            _ = &mut interrupt => return Ok(()),
            update = watch.next() => update,
        };
        let Some(update) = update else {
            return Err(Failure::of(ErrorKind::Unavailable, "the watch has ended: the connection is closed"));
        };
        show(session, &update)?;
        // A gap is no change.
        if !matches!(update, Update::Gap { .. }) {
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

fn show(session: &Session, update: &Update) -> Result<(), Failure> {
    if session.output.is_json() {
        session.output.json(&UpdateView::new(update))?;
    } else {
        session.output.line(update_line(update))?;
    }
    session.output.flush()
}
