//! The pulse of the data side: passes without requests, round trips of its connection, and the copy of its figures.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_protocol::fleet::BusySubject;
use dormouse_protocol::limits::{MAX_BUSY_SUBJECTS, MAX_BUSY_TENANTS};
use dormouse_protocol::tenant::BusyTenant;
use dormouse_runtime::{Env, Tasks};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::liveness::CHECKS_PER_TTL;
use crate::progress::{DataFigures, DataProgress};
use crate::server::ServerSide;

/// How often the copy of the figures is replaced.
pub(crate) const FIGURES_INTERVAL: Duration = Duration::from_secs(1);
/// Longest interval between two beats, also while the TTL is unknown or long.
const LONGEST_BEAT: Duration = Duration::from_millis(500);
/// Maximum number of round trips in flight on one connection. Each waits at most one TTL.
const MAX_ROUND_TRIPS: usize = 8;

/// The interval between two beats under this TTL.
pub(crate) fn beat_interval(ttl: Duration) -> Duration {
    (ttl / CHECKS_PER_TTL).min(LONGEST_BEAT)
}

/// Round trips of one connection.
pub(crate) struct RoundTrips {
    bus: Arc<dyn Bus>,
    env: Env,
    in_flight: FuturesUnordered<BoxFuture<'static, Option<Duration>>>,
}

impl RoundTrips {
    pub(crate) fn new(bus: &Arc<dyn Bus>, env: &Env) -> Self {
        Self { bus: Arc::clone(bus), env: env.clone(), in_flight: FuturesUnordered::new() }
    }

    /// Starts a round trip that ends within `deadline`. Does nothing while the maximum number is in flight.
    pub(crate) fn start(&self, deadline: Duration) {
        if self.in_flight.len() < MAX_ROUND_TRIPS {
            let (bus, sent_at) = (Arc::clone(&self.bus), self.env.boot());
            let trip = async move { bus.round_trip(deadline).await.is_ok().then_some(sent_at) };
            self.in_flight.push(Box::pin(trip));
        }
    }

    /// Waits for the next success, and returns when its message was sent. Waits without end if nothing is in flight.
    /// Cancelling the wait loses no success.
    pub(crate) async fn next(&mut self) -> Duration {
        loop {
            match self.in_flight.next().await {
                Some(Some(sent_at)) => return sent_at,
                Some(None) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Reads the tenants with the most requests, the busiest first, at most as many as its argument says.
pub type TenantsSource = Box<dyn Fn(usize) -> Vec<BusyTenant> + Send + Sync>;

/// Starts the pulse on the data side, until the stop signal of `tasks` is given.
pub fn start(side: &ServerSide, tasks: &Tasks, progress: &Arc<DataProgress>, tenants: TenantsSource) {
    let ServerSide { bus, env } = side;
    let pulse =
        Pulse { env: env.clone(), trips: RoundTrips::new(bus, env), tenants, progress: Arc::clone(progress) };
    let stop = tasks.stop().clone();
    tasks.spawn("pulse", async move {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            () = pulse.run() => {}
        }
    });
}

/// The task of the pulse.
struct Pulse {
    env: Env,
    trips: RoundTrips,
    progress: Arc<DataProgress>,
    tenants: TenantsSource,
}

impl Pulse {
    async fn run(mut self) {
        let (mut beat_at, mut figures_at) = (Duration::ZERO, Duration::ZERO);
        let mut ttl = self.progress.ttl();
        loop {
            let now = self.env.boot();
            if beat_at <= now {
                self.progress.run_pass();
                self.trips.start(ttl);
                beat_at = now + beat_interval(ttl);
            }
            if figures_at <= now {
                self.progress.set_figures(self.read_figures());
                figures_at = now + FIGURES_INTERVAL;
            }
            let due = beat_at.min(figures_at).saturating_sub(self.env.boot());
            tokio::select! {
                biased;
                changed = self.progress.ttl_changed(ttl) => {
                    ttl = changed;
                    // A shorter TTL needs newer signs of life at once.
                    beat_at = now;
                }
                sent_at = self.trips.next() => self.progress.round_trip(sent_at),
                () = tokio::time::sleep(due) => {}
            }
        }
    }

    fn read_figures(&self) -> DataFigures {
        let Some(engine) = self.progress.engine() else { return DataFigures::default() };
        let busiest = engine.busiest(MAX_BUSY_SUBJECTS).into_iter().map(|busy| BusySubject {
            subject: busy.subject,
            // Rates are never negative, and the cast saturates.
            requests_per_second: busy.requests_per_second.round() as u64,
            bytes: busy.bytes,
        });
        DataFigures {
            engine: engine.metrics(),
            busiest: busiest.collect(),
            tenants: (self.tenants)(MAX_BUSY_TENANTS),
        }
    }
}
