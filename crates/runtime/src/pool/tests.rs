use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::{SeededEntropy, VirtualClock};

/// A limit for what must happen: no test takes this long.
const LIMIT: Duration = Duration::from_secs(60);

fn simulated() -> Env {
    let clock = Arc::new(VirtualClock::starting_at(Duration::from_secs(1_000)));
    Env::simulated(clock, Arc::new(SeededEntropy::new(1)))
}

fn threads() -> Pool {
    Pool::start(&Env::system(), "pool test").unwrap()
}

fn slice<T, F>(pool: &Pool, user: u32, work: F) -> impl Future<Output = T> + use<T, F>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    pool.try_reserve(user).unwrap().run(JobKind::Slice, work)
}

/// Every accepted job runs although its caller does nothing until the end, and a full pool refuses the rest.
#[tokio::test]
async fn pool_runs_every_accepted_job_of_stopped_caller() {
    let pool = threads();
    let entropy = SeededEntropy::new(3);
    let (done, results) = mpsc::channel();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for number in 0..4 * REQUEST_JOBS {
        let user = u32::try_from(crate::Entropy::next_u64(&entropy) % 7).unwrap();
        match pool.try_reserve(user) {
            Ok(entry) => {
                let done = done.clone();
                let kind = if number % 5 == 0 { JobKind::Indivisible } else { JobKind::Slice };
                accepted.push((number, entry.run(kind, move || done.send(number).map(|()| number))));
            }
            Err(PoolFull) => refused += 1,
        }
    }
    let mut seen: Vec<usize> =
        (0..accepted.len()).map(|_| results.recv_timeout(LIMIT).expect("every job runs")).collect();
    seen.sort_unstable();
    assert_eq!(seen, accepted.iter().map(|(number, _)| *number).collect::<Vec<_>>());
    assert_eq!(accepted.len() + refused, 4 * REQUEST_JOBS);
    for (number, result) in accepted {
        assert_eq!(result.await.unwrap(), number);
    }
}

/// A pool whose jobs do not end refuses further jobs of requests at once, and still takes internal jobs.
#[tokio::test]
async fn pool_full_of_requests_refuses_and_takes_internal_jobs() {
    let pool = threads();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Lock::new(released));
    let blocked: Vec<_> = (0..20)
        .flat_map(|user| std::iter::from_fn(|| pool.try_reserve(user).ok()).collect::<Vec<_>>())
        .map(|entry| {
            let released = Arc::clone(&released);
            // Ends when the sender is dropped.
            entry.run(JobKind::Slice, move || released.lock().recv().is_err())
        })
        .collect();
    assert_eq!((blocked.len(), pool.try_reserve(30).unwrap_err()), (REQUEST_JOBS, PoolFull));
    let internal = pool.reserve_internal(2).await.run(JobKind::Slice, || 7);
    drop(release);
    assert_eq!(internal.await, 7);
    for job in blocked {
        job.await;
    }
    assert!(pool.try_reserve(1).is_ok(), "an entry is free when its job has run");
}

/// Calls that cannot be divided leave a thread for slices, whatever their number.
#[tokio::test]
async fn pool_indivisible_calls_leave_thread_for_slices() {
    let pool = threads();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Lock::new(released));
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let released = Arc::clone(&released);
            let entry = pool.try_reserve(1).unwrap();
            entry.run(JobKind::Indivisible, move || released.lock().recv().is_err())
        })
        .collect();
    for number in 0..10 {
        let done = tokio::time::timeout(LIMIT, slice(&pool, 2, move || number)).await;
        assert_eq!(done, Ok(number));
    }
    drop(release);
    for call in calls {
        call.await;
    }
}

/// A user with more slow calls than the pool has entries stops neither an internal slice nor a page of another user.
#[tokio::test]
async fn pool_slow_user_leaves_entries_to_others() {
    let pool = threads();
    let tasks = crate::Tasks::new();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Lock::new(released));
    let (waits, mut ended) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..2 * INTERNAL_JOBS {
        let (pool, released, waits) = (pool.clone(), Arc::clone(&released), waits.clone());
        tasks.spawn("slow", async move {
            let entry = pool.reserve_internal(1).await;
            assert!(entry.run(JobKind::Indivisible, move || released.lock().recv().is_err()).await);
            let _ = waits.send(());
        });
    }
    drop(waits);
    // Until all calls of the slow user run or wait.
    while pool.0.internal.free() > INTERNAL_JOBS / 2 {
        tokio::task::yield_now().await;
    }
    let calls: Vec<_> = std::iter::from_fn(|| pool.try_reserve(1).ok()).collect();
    for user in 2..6 {
        let entry = tokio::time::timeout(LIMIT, pool.reserve_internal(user)).await.expect("an entry is free");
        let done = tokio::time::timeout(LIMIT, entry.run(JobKind::Slice, move || user)).await;
        assert_eq!(done, Ok(user));
        assert_eq!(tokio::time::timeout(LIMIT, slice(&pool, user, move || user)).await, Ok(user));
    }
    assert!(!calls.is_empty());
    drop(release);
    for _ in 0..2 * INTERNAL_JOBS {
        tokio::time::timeout(LIMIT, ended.recv()).await.expect("every call ends").expect("each reports it");
    }
}

/// Under simulation, users take one slice each in turn, and two runs have the same order.
#[tokio::test(start_paused = true)]
async fn pool_simulated_order_is_fair_and_repeatable() {
    async fn order() -> Vec<u32> {
        let pool = Pool::start(&simulated(), "pool test").unwrap();
        let order = Arc::new(Lock::new(Vec::new()));
        let users = std::iter::repeat_n(1, 20).chain([2, 2, 3]);
        let jobs: Vec<_> = users
            .map(|user| {
                let order = Arc::clone(&order);
                slice(&pool, user, move || order.lock().push(user))
            })
            .collect();
        for job in jobs {
            job.await;
        }
        order.lock().clone()
    }
    let first = order().await;
    assert_eq!(first[..6], [1, 2, 3, 1, 2, 1]);
    assert_eq!(order().await, first);
}

/// A panic of a job reaches its caller, and the thread continues with the next job.
#[tokio::test]
async fn pool_job_panic_reaches_only_its_caller() {
    let pool = threads();
    for number in 0..8 {
        let job = slice::<(), _>(&pool, 1, || panic!("on purpose"));
        let tasks = crate::Tasks::new();
        let (sender, reached) = oneshot::channel::<()>();
        tasks.spawn("panics", async move {
            let _sender = sender;
            job.await;
        });
        assert!(reached.await.is_err());
        assert_eq!(slice(&pool, 1, move || number).await, number);
    }
}

/// A job that was accepted before the end of the pool still runs, and its entry can outlive the pool.
#[tokio::test]
async fn pool_runs_accepted_jobs_after_last_handle_is_dropped() {
    let pool = threads();
    let jobs: Vec<_> = (0..100).map(|number| slice(&pool, 1, move || number)).collect();
    drop(pool);
    for (number, job) in jobs.into_iter().enumerate() {
        assert_eq!(job.await, number);
    }
}
