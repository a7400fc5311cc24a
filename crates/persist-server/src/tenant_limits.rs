//! Reads the tenants' limits from the coordinator when a lease names a revision that this server does not have.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::{AskError, Bus, ask};
use dormouse_protocol::fleet::{LimitsReply, LimitsRequest};
use dormouse_protocol::tenant::{LimitedTenant, LimitsRevision};
use dormouse_protocol::{Prefix, ProtocolVersion};
use futures::FutureExt;
use futures::future::BoxFuture;

/// Deadline of the request for a page.
const PAGE_DEADLINE: Duration = Duration::from_secs(2);

/// Maximum number of pages. Above it the limits are not applied.
const MAX_PAGES: usize = 1_000;

/// Takes the limits of all tenants.
pub type LimitsSink = Arc<dyn Fn(Vec<LimitedTenant>) + Send + Sync>;

type AllLimits = (LimitsRevision, Vec<LimitedTenant>);

/// Why the limits were not read. The next lease starts another attempt.
#[derive(Debug, thiserror::Error)]
enum LimitsError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the limits changed while they were read")]
    Changed,
    #[error("the limits have more than {MAX_PAGES} pages")]
    TooMany,
}

/// The revision that this server has, and the running attempt to read another one.
pub(crate) struct LimitsReader {
    bus: Arc<dyn Bus>,
    prefix: Prefix,
    sink: LimitsSink,
    revision: LimitsRevision,
    reading: Option<BoxFuture<'static, Result<AllLimits, LimitsError>>>,
    /// Whether the last attempt failed: a series of failures is logged once.
    has_failed: bool,
}

impl LimitsReader {
    pub(crate) fn new(bus: Arc<dyn Bus>, prefix: Prefix, sink: LimitsSink) -> Self {
        Self { bus, prefix, sink, revision: LimitsRevision::NONE, reading: None, has_failed: false }
    }

    /// A lease names the current revision.
    pub(crate) fn announced(&mut self, revision: LimitsRevision) {
        if revision != self.revision && self.reading.is_none() {
            self.reading = Some(read(Arc::clone(&self.bus), self.prefix.clone()).boxed());
        }
    }

    /// Waits for the end of the attempt and applies its limits; pends while there is none. Cancelling the call loses
    /// nothing.
    pub(crate) async fn finish_reading(&mut self) {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let outcome = reading.await;
        self.reading = None;
        match outcome {
            Ok((revision, limits)) => {
                tracing::info!(tenants = limits.len(), "tenant limits applied");
                self.revision = revision;
                self.has_failed = false;
                (self.sink)(limits);
            }
            Err(_) if self.has_failed => {}
            Err(error) => {
                tracing::info!(%error, "tenant limits not read, retrying");
                self.has_failed = true;
            }
        }
    }
}

async fn read(bus: Arc<dyn Bus>, prefix: Prefix) -> Result<AllLimits, LimitsError> {
    let (mut limits, mut first, mut after) = (Vec::new(), None, None);
    for _ in 0..MAX_PAGES {
        let request = LimitsRequest { v: ProtocolVersion::CURRENT, after };
        let page: LimitsReply = ask(&*bus, prefix.limits(), &request, PAGE_DEADLINE).await?;
        if *first.get_or_insert(page.revision) != page.revision {
            return Err(LimitsError::Changed);
        }
        limits.extend(page.limits);
        match page.cursor {
            None => return Ok((page.revision, limits)),
            cursor => after = cursor,
        }
    }
    Err(LimitsError::TooMany)
}

#[cfg(test)]
mod tests;
