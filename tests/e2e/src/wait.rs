//! Waiting for a condition.

use std::time::Duration;

use anyhow::Context;

/// The time that a test waits for a required condition. No test passes because of it: it only ends a test that would
/// otherwise hang, so it is generous.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Calls `probe` repeatedly until it returns a value. An error of the probe ends the wait.
///
/// Cancelling the wait leaves nothing behind.
///
/// # Errors
/// The probe's own, or after [`TIMEOUT`] an error that names `what`.
pub async fn until<T>(
    what: &str,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let asking = async {
        loop {
            if let Some(answer) = probe().await? {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, asking)
        .await
        .with_context(|| format!("timeout after {} s: {what}", TIMEOUT.as_secs()))?
}
