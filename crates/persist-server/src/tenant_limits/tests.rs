//! The reader against a scripted coordinator.

use std::collections::VecDeque;

use dormouse_bus::memory::{MemoryBroker, MemoryOptions};
use dormouse_bus::{ServeOptions, serve};
use dormouse_protocol::tenant::TenantLimits;
use dormouse_protocol::{TenantName, decode, encode};
use dormouse_runtime::{Env, Lock, Observable, SeededEntropy, Tasks, VirtualClock};

use super::*;

fn tenant(number: usize) -> TenantName {
    TenantName::new(&format!("t{number:05}")).unwrap()
}

fn limited(number: usize, requests: u64) -> LimitedTenant {
    let limits = TenantLimits { requests: Some(requests), ..TenantLimits::NONE };
    LimitedTenant { tenant: tenant(number), limits }
}

fn revision(limits: &[LimitedTenant]) -> LimitsRevision {
    LimitsRevision::of(limits.iter().map(|limited| (&limited.tenant, &limited.limits)))
}

fn page(all: &[LimitedTenant], limits: &[LimitedTenant], last: bool) -> LimitsReply {
    let cursor = limits.last().filter(|_| !last).map(|limited| limited.tenant.clone());
    LimitsReply { revision: revision(all), limits: limits.to_vec(), cursor }
}

/// A reader, and a coordinator that sends these replies; `None` stands for no reply. It records the cursors.
struct Scene {
    wanted: Arc<Observable<LimitsRevision>>,
    applied: Arc<Observable<Vec<Vec<LimitedTenant>>>>,
    cursors: Arc<Lock<Vec<Option<TenantName>>>>,
    tasks: Tasks,
}

impl Scene {
    async fn new(replies: impl IntoIterator<Item = Option<LimitsReply>>) -> Self {
        let clock = VirtualClock::starting_at(Duration::from_secs(1_700_000_000));
        let env = Env::simulated(Arc::new(clock), Arc::new(SeededEntropy::new(7)));
        let broker = MemoryBroker::new();
        let tasks = Tasks::new();
        let coordinator: Arc<dyn Bus> = Arc::new(broker.connect(MemoryOptions::named("coordinator")));
        let route = Prefix::default().limits().into();
        let mut requests = serve(&coordinator, &env, &tasks, route, ServeOptions::default()).await.unwrap();
        let cursors = Arc::new(Lock::new(Vec::new()));
        let (seen, mut replies) = (Arc::clone(&cursors), replies.into_iter().collect::<VecDeque<_>>());
        tasks.spawn("coordinator", async move {
            while let Some(incoming) = requests.next().await {
                let LimitsRequest { after, .. } = decode(&incoming.payload).unwrap();
                seen.lock().push(after);
                if let Some(reply) = replies.pop_front().expect("a scripted reply") {
                    incoming.responder.ok(encode(&reply).unwrap());
                }
            }
        });
        let (wanted, applied) =
            (Arc::new(Observable::new(LimitsRevision::NONE)), Arc::new(Observable::new(Vec::new())));
        let result = Arc::clone(&applied);
        let sink: LimitsSink = Arc::new(move |limits| {
            result.change(|applied: &mut Vec<_>| {
                applied.push(limits.clone());
                true
            });
        });
        let bus = Arc::new(broker.connect(MemoryOptions::named("server")));
        let mut reader = LimitsReader::new(bus, Prefix::default(), sink);
        let lease = Arc::clone(&wanted);
        // A lease comes every second.
        tasks.spawn("membership", async move {
            let mut leases = tokio::time::interval(Duration::from_secs(1));
            loop {
                tokio::select! {
                    biased;
                    () = reader.finish_reading() => {}
                    _ = leases.tick() => reader.announced(lease.get()),
                }
            }
        });
        Self { wanted, applied, cursors, tasks }
    }

    async fn applied(&self, times: usize) -> Vec<Vec<LimitedTenant>> {
        self.applied.wait_for(move |applied| applied.len() >= times).await
    }

    /// The cursors of the requests.
    fn end(self) -> Vec<Option<TenantName>> {
        self.tasks.stop().request();
        std::mem::take(&mut *self.cursors.lock())
    }
}

/// A new revision makes the server read all pages, and apply them at once; the same revision makes it read nothing.
#[tokio::test(start_paused = true)]
async fn limits_of_new_revision_are_read_page_by_page() {
    let all = [limited(1, 10), limited(2, 20), limited(3, 30)];
    let scene = Scene::new([
        Some(page(&all, &all[..2], false)),
        Some(page(&all, &all[2..], true)),
        Some(page(&[], &[], true)),
    ])
    .await;
    scene.wanted.set(revision(&all));
    assert_eq!(scene.applied(1).await, [all.to_vec()]);
    // Further leases with this revision.
    tokio::time::sleep(Duration::from_secs(10)).await;
    // An operator removed all limits, or the coordinator lost its state.
    scene.wanted.set(LimitsRevision::NONE);
    assert_eq!(scene.applied(2).await, [all.to_vec(), Vec::new()]);
    assert_eq!(scene.end(), [None, Some(tenant(2)), None]);
}

/// If the limits change while they are read, nothing is applied, and they are read again from the first page.
#[tokio::test(start_paused = true)]
async fn limits_that_change_between_pages_are_read_again() {
    let (old, new) = ([limited(1, 10), limited(2, 20)], [limited(1, 11), limited(2, 20)]);
    let scene = Scene::new([
        Some(page(&old, &old[..1], false)),
        Some(page(&new, &new[1..], true)),
        Some(page(&new, &new, true)),
    ])
    .await;
    scene.wanted.set(revision(&old));
    assert_eq!(scene.applied(1).await, [new.to_vec()], "never a mixture");
    // The next leases have the revision that is known already.
    scene.wanted.set(revision(&new));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(scene.applied.get().len(), 1);
    assert_eq!(scene.end(), [None, Some(tenant(1)), None]);
}

/// If the coordinator does not answer, the earlier limits stay, and the server asks again.
#[tokio::test(start_paused = true)]
async fn limits_without_reply_are_requested_again() {
    let all = [limited(1, 10)];
    let scene = Scene::new([None, None, Some(page(&all, &all, true))]).await;
    scene.wanted.set(revision(&all));
    assert_eq!(scene.applied(1).await, [all.to_vec()]);
    assert_eq!(scene.end(), [None, None, None]);
}

/// Pages that never end are not applied.
#[tokio::test(start_paused = true)]
async fn limits_without_last_page_are_not_applied() {
    let all = [limited(1, 10)];
    let endless = std::iter::repeat_n(Some(page(&all, &all, false)), MAX_PAGES);
    let scene = Scene::new(endless.chain([Some(page(&all, &all, true))])).await;
    scene.wanted.set(revision(&all));
    assert_eq!(scene.applied(1).await, [all.to_vec()], "only those of the next attempt");
    assert_eq!(scene.end().len(), MAX_PAGES + 1);
}
