//! A bounded pool of threads for work on files, in slices that its users take in turn.
//!
//! A caller first [reserves](Pool::try_reserve) an entry, then [runs](PoolEntry::run) one job with it and awaits the
//! result. The entry includes the place for the result, so a job that has run is never lost and a thread of the pool
//! never waits for a caller. A full pool refuses at once: submitting never blocks a thread. A user may hold half of the
//! entries that the others leave, so a user with many slow jobs does not stop another.
//!
//! The owner of a long task divides it into slices of bounded size, one job each. After a slice the thread takes the next
//! job, of the next user in turn. A call that cannot be divided says so: such calls use at most all threads but one, so a
//! short slice always finds a thread.
//!
//! Under simulation there is no thread. A task runs one job, yields, and takes the next, in the same order.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar};

use tokio::sync::{Notify, oneshot};

use crate::env::Env;
use crate::fair_permits::{FairPermit, FairPermits};
use crate::fair_queue::FairQueue;
use crate::lock::{self, Lock};

/// Jobs of requests that may be in the pool at once.
pub const REQUEST_JOBS: usize = 768;

/// The same for internal jobs: a quarter of all, so requests cannot stop them.
pub const INTERNAL_JOBS: usize = 256;

/// The fewest threads: one for calls that cannot be divided, one for slices.
const MIN_THREADS: usize = 2;

/// Whether a job is a slice of bounded size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Bounded work; others take their turn after it.
    Slice,
    /// One call of any length, such as a checkpoint.
    Indivisible,
}

/// The pool has no entry left for a request of this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFull;

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the pool is full")
    }
}

impl std::error::Error for PoolFull {}

/// Threads that run jobs. Cloning shares the pool; it ends once the last clone is dropped and all its jobs have run.
#[derive(Clone)]
pub struct Pool(Arc<PoolHandle>);

struct PoolHandle {
    shared: Arc<PoolShared>,
    requests: FairPermits,
    internal: FairPermits,
}

struct PoolShared {
    jobs: Lock<PoolJobs>,
    /// Notified for each job, and at the end. For threads.
    changed: Condvar,
    /// The same for the task under simulation.
    changed_task: Notify,
}

type Job = Box<dyn FnOnce() + Send>;

/// The queued jobs, and which may run.
struct PoolJobs {
    slices: FairQueue<u32, Job>,
    indivisible: FairQueue<u32, Job>,
    running_indivisible: usize,
    max_indivisible: usize,
    closed: bool,
}

impl PoolJobs {
    /// For this many threads.
    const fn new(threads: usize) -> Self {
        let max_indivisible = if threads > 1 { threads - 1 } else { 1 };
        Self {
            // Slices have equal bounds, so users take one job each in turn.
            slices: FairQueue::new(1),
            indivisible: FairQueue::new(1),
            running_indivisible: 0,
            max_indivisible,
            closed: false,
        }
    }

    fn push(&mut self, kind: JobKind, user: u32, job: Job) {
        match kind {
            JobKind::Slice => self.slices.push(user, 1, job),
            JobKind::Indivisible => self.indivisible.push(user, 1, job),
        }
    }

    /// Takes the next job that a thread may run.
    fn take(&mut self) -> Option<(JobKind, Job)> {
        if self.running_indivisible < self.max_indivisible
            && let Some((_, job)) = self.indivisible.pop()
        {
            self.running_indivisible += 1;
            return Some((JobKind::Indivisible, job));
        }
        self.slices.pop().map(|(_, job)| (JobKind::Slice, job))
    }

    /// Records that a job has run.
    fn finished(&mut self, kind: JobKind) {
        if kind == JobKind::Indivisible {
            self.running_indivisible -= 1;
        }
    }
}

impl Pool {
    /// A pool with one thread per core, at least two, named `name`. Needs a tokio runtime under simulation only.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn start(env: &Env, name: &'static str) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(MIN_THREADS, usize::from);
        let threads = if env.simulation.is_some() { 1 } else { cores.max(MIN_THREADS) };
        let shared = Arc::new(PoolShared {
            jobs: Lock::new(PoolJobs::new(threads)),
            changed: Condvar::new(),
            changed_task: Notify::new(),
        });
        let pool = Self(Arc::new(PoolHandle {
            shared: Arc::clone(&shared),
            requests: FairPermits::new(REQUEST_JOBS),
            internal: FairPermits::new(INTERNAL_JOBS),
        }));
        if env.simulation.is_some() {
            // It outlives the tasks of the pool's user, which still need the pool when they stop.
            env.tasks().spawn(name, async move { shared.run_as_task().await });
        } else {
            for _ in 0..threads {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name(name.to_owned()).spawn(move || shared.run_on_thread())?;
            }
        }
        Ok(pool)
    }

    /// Reserves an entry for a job of a request of `user`.
    ///
    /// # Errors
    /// [`PoolFull`].
    pub fn try_reserve(&self, user: u32) -> Result<PoolEntry, PoolFull> {
        let permit = self.0.requests.try_acquire(user).ok_or(PoolFull)?;
        Ok(PoolEntry { pool: self.clone(), permit, user })
    }

    /// Waits for an entry for an internal job that is done for `user`, in turn with other users. Only a task that serves no
    /// others may wait. Cancelling the call reserves nothing.
    pub async fn reserve_internal(&self, user: u32) -> PoolEntry {
        let permit = self.0.internal.acquire(user).await;
        PoolEntry { pool: self.clone(), permit, user }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, internal) = (&self.0.requests, &self.0.internal);
        f.debug_struct("Pool")
            .field("free_requests", &requests.free())
            .field("free_internal", &internal.free())
            .finish_non_exhaustive()
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        self.shared.jobs.lock().closed = true;
        self.shared.changed.notify_all();
        self.shared.changed_task.notify_one();
    }
}

/// The right to run one job, with a place for its result. Dropping it without a job gives it back.
pub struct PoolEntry {
    // While an entry exists, the threads do not end.
    pool: Pool,
    permit: FairPermit,
    user: u32,
}

impl PoolEntry {
    /// Queues `work` for its user at once, and returns its result as a future. The entry is free again when the job has
    /// run.
    ///
    /// Dropping the future does not stop the job: it runs, and its result is dropped.
    ///
    /// # Panics
    /// The future panics if `work` does, or if a killed simulated process is polled again.
    pub fn run<T, F>(self, kind: JobKind, work: F) -> impl Future<Output = T> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let Self { pool, permit, user } = self;
        let (sender, receiver) = oneshot::channel::<Result<T, Box<dyn Any + Send>>>();
        let job = Box::new(move || {
            let done = catch_unwind(AssertUnwindSafe(work));
            drop(permit);
            // Fails if the caller has gone.
            let _ = sender.send(done);
        });
        let shared = &pool.0.shared;
        shared.jobs.lock().push(kind, user, job);
        shared.changed.notify_one();
        shared.changed_task.notify_one();
        async move {
            match receiver.await {
                Ok(Ok(done)) => done,
                Ok(Err(panic)) => resume_unwind(panic),
                Err(_) => panic!("the pool ended before its job"),
            }
        }
    }
}

impl fmt::Debug for PoolEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolEntry").finish_non_exhaustive()
    }
}

impl PoolShared {
    fn run_on_thread(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some((kind, job)) = jobs.take() {
                drop(jobs);
                job();
                jobs = self.jobs.lock();
                jobs.finished(kind);
            } else if jobs.closed {
                // If indivisible calls are left, the threads that run one take them.
                return;
            } else {
                jobs = lock::wait(jobs, &self.changed);
            }
        }
    }

    async fn run_as_task(&self) {
        loop {
            let next = self.jobs.lock().take();
            if let Some((kind, job)) = next {
                job();
                self.jobs.lock().finished(kind);
                tokio::task::yield_now().await;
            } else if self.jobs.lock().closed {
                return;
            } else {
                self.changed_task.notified().await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
