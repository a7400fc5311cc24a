//! Gates: calls that wait until the test lets them continue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_bucket::BucketOperation;
use dormouse_runtime::Lock;
use tokio::sync::Semaphore;

/// The point at which a gate holds a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatePoint {
    /// The request has arrived and has no effect yet.
    Request,
    /// The request has taken effect, and its answer is not sent yet.
    Answer,
}

/// The gates of one bucket.
#[derive(Default)]
pub(super) struct CallGates(Lock<Vec<Gate>>);

#[derive(Clone)]
struct Gate {
    operation: BucketOperation,
    /// The gate holds calls on objects whose names contain this text.
    name_part: String,
    point: GatePoint,
    /// Held calls wait for a permit. It never has one, and the guard closes it.
    semaphore: Arc<Semaphore>,
    reached: Arc<AtomicU64>,
}

/// Holds calls until it is dropped. See [`FaultyBucket::hold_requests`](super::FaultyBucket::hold_requests).
#[must_use = "dropping the guard opens the gate"]
pub struct CallGateGuard {
    semaphore: Arc<Semaphore>,
    reached: Arc<AtomicU64>,
}

impl CallGateGuard {
    /// Number of calls that the gate has held so far.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Drop for CallGateGuard {
    fn drop(&mut self) {
        self.semaphore.close();
    }
}

impl CallGates {
    pub(super) fn close(
        &self,
        operation: BucketOperation,
        name_part: &str,
        point: GatePoint,
    ) -> CallGateGuard {
        let (semaphore, reached) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(0)));
        let guard = CallGateGuard { semaphore: Arc::clone(&semaphore), reached: Arc::clone(&reached) };
        let gate = Gate { operation, name_part: name_part.to_owned(), point, semaphore, reached };
        self.0.lock().push(gate);
        guard
    }

    /// Waits at each closed gate of this call.
    pub(super) async fn wait(&self, operation: BucketOperation, name: &str, point: GatePoint) {
        let gates = {
            let mut gates = self.0.lock();
            gates.retain(|gate| !gate.semaphore.is_closed());
            gates.clone()
        };
        for gate in gates {
            if (gate.operation, gate.point) == (operation, point)
                && name.contains(&gate.name_part)
                && !gate.semaphore.is_closed()
            {
                gate.reached.fetch_add(1, Ordering::SeqCst);
                // The wait ends with an error, when the guard closes the semaphore.
                let _ = gate.semaphore.acquire().await;
            }
        }
    }
}
