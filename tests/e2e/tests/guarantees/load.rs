//! Load during planned changes: writers and readers of which no call may fail.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Client, Kv, Level, SubjectConfig};
use dormouse_e2e::until;
use dormouse_runtime::Env;

use crate::support::{key, value};

/// All levels.
pub const LEVELS: [Level; 4] = [Level::Memory, Level::Interval, Level::Disk, Level::Bucket];
/// The number of subjects under load.
pub const SUBJECTS: usize = 12;

/// The load on one subject: a writer whose every write must succeed, and a reader that must read every acknowledged
/// value.
struct Load<'a> {
    env: Env,
    stop: &'a Cell<bool>,
    written: &'a Cell<usize>,
    /// The longest duration of one call.
    longest: &'a RefCell<(Duration, String)>,
}

impl Load<'_> {
    async fn timed<T, E: Into<anyhow::Error>>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let began = self.env.boot();
        let done = call.await.map_err(Into::into).with_context(|| format!("{what} failed"))?;
        let took = self.env.boot().saturating_sub(began);
        if took > self.longest.borrow().0 {
            *self.longest.borrow_mut() = (took, what.to_owned());
        }
        Ok(done)
    }

    /// Writes and reads until `stop` is set, then checks every entry. Returns the number of writes.
    async fn on(&self, store: Kv) -> anyhow::Result<usize> {
        let subject = store.subject().to_string();
        let (number, written) = (Cell::new(0), Cell::new(None));
        let writing = async {
            while !self.stop.get() {
                let next = number.get();
                self.timed(&format!("write {next} of {subject}"), store.put(key(next), value(next))).await?;
                written.set(Some(next));
                number.set(next + 1);
                self.written.set(self.written.get() + 1);
            }
            anyhow::Ok(())
        };
        let reading = async {
            while !self.stop.get() {
                let Some(last) = written.get() else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let read = self.timed(&format!("read {last} of {subject}"), store.get(key(last))).await?;
                ensure!(
                    read.as_ref() == Some(&value(last)),
                    "{subject}: acknowledged write {last} is not readable"
                );
            }
            anyhow::Ok(())
        };
        futures::try_join!(writing, reading)?;
        crate::support::check(&store, 0..number.get()).await?;
        Ok(number.get())
    }
}

/// Writes and reads stores of these levels all the time while `disturb` runs. No call may fail, and no acknowledged
/// write may be missing.
pub async fn under_load(
    client: &Client,
    levels: &[Level],
    disturb: impl AsyncFnOnce(&Cell<usize>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (stop, written) = (Cell::new(false), Cell::new(0));
    let longest = RefCell::default();
    let load = Load { env: Env::system(), stop: &stop, written: &written, longest: &longest };
    let mut stores = Vec::new();
    for number in 0..SUBJECTS {
        let store = client.kv(&name(number))?;
        let level = Some(levels[number % levels.len()]);
        store.configure(SubjectConfig { level, ..SubjectConfig::default() }).await?;
        stores.push(store);
    }
    let loads = futures::future::try_join_all(stores.into_iter().map(|store| load.on(store)));
    let disturbing = async {
        more_written(&written).await?;
        disturb(&written).await?;
        more_written(&written).await?;
        stop.set(true);
        anyhow::Ok(())
    };
    let (counts, ()) = futures::try_join!(loads, disturbing)?;
    let (took, what) = longest.take();
    eprintln!(
        "{} writes without a failure; the longest call took {took:?}: {what}",
        counts.iter().sum::<usize>()
    );
    Ok(())
}

/// Returns the name of one of the subjects.
pub fn name(number: usize) -> String {
    format!("app.moving.{number}")
}

/// Waits until many more writes are done.
pub async fn more_written(written: &Cell<usize>) -> anyhow::Result<()> {
    let enough = written.get() + 20 * SUBJECTS;
    until("writes continue", async || Ok((written.get() >= enough).then_some(()))).await
}
