//! Servers that stop, are emptied, and have subjects moved away from them, all of it under load: nobody notices.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::{Client, Kv, Level, SubjectConfig};
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::admin::{DrainReply, DrainRequest, MoveReply, MoveRequest};
use dormouse_protocol::fleet::ServerState;
use dormouse_protocol::{Prefix, ServerName, Subject};

use crate::support::{key, value};

/// One subject of each of these for each server or so.
const LEVELS: [Level; 4] = [Level::Memory, Level::Interval, Level::Disk, Level::Bucket];
const SUBJECTS: usize = 12;

/// The load on one subject: a writer whose every write must succeed, and a reader who must see what was written.
struct Load<'a> {
    stop: &'a Cell<bool>,
    written: &'a Cell<usize>,
    /// The longest that one call took.
    longest: &'a RefCell<(Duration, String)>,
}

impl Load<'_> {
    async fn timed<T, E: Into<anyhow::Error>>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let began = tokio::time::Instant::now();
        let done = call.await.map_err(Into::into).with_context(|| format!("{what} failed"))?;
        let took = began.elapsed();
        if took > self.longest.borrow().0 {
            *self.longest.borrow_mut() = (took, what.to_owned());
        }
        Ok(done)
    }

    /// Writes and reads until told to stop, and then finds everything as it was written. How much was written.
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
                    "{subject}: what was acknowledged is not read: {last}"
                );
            }
            anyhow::Ok(())
        };
        futures::try_join!(writing, reading)?;
        crate::support::check(&store, 0..number.get()).await?;
        Ok(number.get())
    }
}

/// Stores of every level, written to and read all the time while `disturb` does what it does. Not one call may fail, and
/// nothing that was acknowledged may be missing.
async fn under_load(
    client: &Client,
    disturb: impl AsyncFnOnce(&Cell<usize>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (stop, written) = (Cell::new(false), Cell::new(0));
    let longest = RefCell::default();
    let load = Load { stop: &stop, written: &written, longest: &longest };
    let mut stores = Vec::new();
    for number in 0..SUBJECTS {
        let store = client.kv(&name(number))?;
        let level = Some(LEVELS[number % LEVELS.len()]);
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
        "{} writes, not one failed; the longest call took {took:?}: {what}",
        counts.iter().sum::<usize>()
    );
    Ok(())
}

fn name(number: usize) -> String {
    format!("app.moving.{number}")
}

/// Waits until a good deal more is written.
async fn more_written(written: &Cell<usize>) -> anyhow::Result<()> {
    let enough = written.get() + 20 * SUBJECTS;
    until("writes go on", async || Ok((written.get() >= enough).then_some(()))).await
}

/// Which subjects of the load a server has, as the coordinator says.
async fn subjects_of(fleet: &Fleet, client: &Client, server: &str) -> anyhow::Result<Vec<String>> {
    let mut subjects = Vec::new();
    for number in 0..SUBJECTS {
        if fleet.owner(client, &name(number)).await? == server {
            subjects.push(name(number));
        }
    }
    Ok(subjects)
}

async fn state_of(client: &Client, server: &str) -> anyhow::Result<ServerState> {
    let servers = client.servers().await?.servers;
    let entry = servers.into_iter().find(|entry| entry.name.as_str() == server);
    Ok(entry.context("it is a member")?.state)
}

#[tokio::test]
async fn servers_that_stop_one_after_the_other_cost_no_call_and_no_write() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .run(async |fleet| {
            let client = fleet.client().await?;
            under_load(&client, async |written| {
                for server in ["persist-1", "persist-2", "persist-3"] {
                    ensure!(
                        !subjects_of(fleet, &client, server).await?.is_empty(),
                        "{server} has nothing to hand over"
                    );
                    fleet.stop(server).await?;
                    more_written(written).await?;
                    ensure!(subjects_of(fleet, &client, server).await?.is_empty());
                    let log = fleet.log(server)?;
                    ensure!(log.contains("handed subjects back"), "{log}");
                    fleet.restart(server).await?;
                    // New subjects would come to it; these are moved back to it by hand.
                    for number in (0..SUBJECTS).step_by(3) {
                        move_to(&client, &name(number), server).await?;
                    }
                }
                Ok(())
            })
            .await
        })
        .await
}

/// Has a subject moved, and waits until it has been.
async fn move_to(client: &Client, subject: &str, to: &str) -> anyhow::Result<()> {
    let route = Prefix::default().admin_move(&Subject::new(subject)?);
    let request = MoveRequest { v: Default::default(), to: ServerName::new(to)? };
    until(&format!("{subject} is moved to {to}"), async || {
        let reply: MoveReply =
            dormouse_bus::ask(&**client.bus(), route.clone(), &request, Duration::from_secs(5)).await?;
        Ok(reply.done.then_some(()))
    })
    .await
}

async fn order(client: &Client, route: dormouse_protocol::Route) -> anyhow::Result<DrainReply> {
    Ok(dormouse_bus::ask(&**client.bus(), route, &DrainRequest::default(), Duration::from_secs(5)).await?)
}

#[tokio::test]
async fn a_server_is_emptied_by_order_and_serves_again_when_that_is_taken_back_and_nobody_notices()
-> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .run(async |fleet| {
            let client = fleet.client().await?;
            // It sleeps by the time it is asked for again, in a log that is over by then.
            let asleep = client.kv("app.asleep")?;
            asleep.put("k", "v").await?;
            under_load(&client, async |written| {
                let server = fleet.owner(&client, &name(0)).await?;
                let named = ServerName::new(&server)?;
                let process = fleet.process(&server)?.pid();
                order(&client, Prefix::default().admin_drain(&named)).await?;
                until("it is drained", async || {
                    Ok((state_of(&client, &server).await? == ServerState::Drained).then_some(()))
                })
                .await?;
                ensure!(subjects_of(fleet, &client, &server).await?.is_empty());
                more_written(written).await?;
                let health = fleet.health(&server).await?.context("it answers")?;
                ensure!(
                    health.figures["draining"] == 1 && health.figures["open_subjects"] == 0,
                    "{health:?}"
                );
                ensure!(asleep.get("k").await?.as_deref() == Some(&b"v"[..]));

                order(&client, Prefix::default().admin_undrain(&named)).await?;
                until("it serves again", async || {
                    Ok((state_of(&client, &server).await? == ServerState::Alive).then_some(()))
                })
                .await?;
                move_to(&client, &name(0), &server).await?;
                more_written(written).await?;
                ensure!(fleet.process(&server)?.pid() == process, "it was not started again");
                for line in
                    ["handing over every subject", "going on with a fresh log", "taking subjects again"]
                {
                    until(&format!("its log says {line:?}"), async || {
                        Ok(fleet.log(&server)?.contains(line).then_some(()))
                    })
                    .await?;
                }
                Ok(())
            })
            .await
        })
        .await
}

#[tokio::test]
async fn subjects_that_are_moved_to_and_fro_lose_nothing_and_nobody_notices() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            under_load(&client, async |_| {
                for to in ["persist-1", "persist-2", "persist-1"] {
                    for number in 0..SUBJECTS {
                        move_to(&client, &name(number), to).await?;
                    }
                    ensure!(subjects_of(fleet, &client, to).await?.len() == SUBJECTS);
                }
                Ok(())
            })
            .await
        })
        .await
}
