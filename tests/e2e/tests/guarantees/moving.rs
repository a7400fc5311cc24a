//! Servers that stop, are drained, and hand over subjects, all under load: no call fails.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::Client;
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::admin::{DrainReply, DrainRequest, MoveReply, MoveRequest};
use dormouse_protocol::fleet::ServerState;
use dormouse_protocol::{Prefix, ServerName, Subject};

use crate::load::{LEVELS, SUBJECTS, more_written, name, under_load};

/// Returns the subjects of the load that a server has, as the coordinator reports them.
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
    Ok(entry.context("no member entry")?.state)
}

/// Servers that stop gracefully one after the other fail no call and lose no write.
#[tokio::test]
async fn servers_stopped_in_turn_fail_no_call() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .run(async |fleet| {
            let client = fleet.client().await?;
            under_load(&client, &LEVELS, async |written| {
                for server in ["persist-1", "persist-2", "persist-3"] {
                    ensure!(
                        !subjects_of(fleet, &client, server).await?.is_empty(),
                        "{server} has nothing to hand over"
                    );
                    fleet.stop(server).await?;
                    more_written(written).await?;
                    ensure!(subjects_of(fleet, &client, server).await?.is_empty());
                    let log = fleet.log(server)?;
                    ensure!(log.contains("subjects released"), "{log}");
                    fleet.restart(server).await?;
                    // New subjects would be assigned to it; these are moved back explicitly.
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

/// Orders a move of a subject, and waits until it is done.
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

/// A server is drained and undrained under load, without a failed call and without a process restart.
#[tokio::test]
async fn drain_and_undrain_under_load_fail_no_call() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(3)
        .run(async |fleet| {
            let client = fleet.client().await?;
            // This subject is dormant by the time of the next request, in a log that has ended by then.
            let dormant = client.kv("app.dormant")?;
            dormant.put("k", "v").await?;
            under_load(&client, &LEVELS, async |written| {
                let server = fleet.owner(&client, &name(0)).await?;
                let named = ServerName::new(&server)?;
                let process = fleet.process(&server)?.pid();
                order(&client, Prefix::default().admin_drain(&named)).await?;
                until("the server is drained", async || {
                    Ok((state_of(&client, &server).await? == ServerState::Drained).then_some(()))
                })
                .await?;
                ensure!(subjects_of(fleet, &client, &server).await?.is_empty());
                more_written(written).await?;
                let health = fleet.health(&server).await?.context("no health reply")?;
                ensure!(
                    health.figures["draining"] == 1 && health.figures["open_subjects"] == 0,
                    "{health:?}"
                );
                ensure!(dormant.get("k").await?.as_deref() == Some(&b"v"[..]));

                order(&client, Prefix::default().admin_undrain(&named)).await?;
                until("the server serves again", async || {
                    Ok((state_of(&client, &server).await? == ServerState::Alive).then_some(()))
                })
                .await?;
                move_to(&client, &name(0), &server).await?;
                more_written(written).await?;
                ensure!(fleet.process(&server)?.pid() == process, "the process was restarted");
                for line in ["drain started", "drain complete, new log started", "drain cancelled"] {
                    until(&format!("its log contains {line:?}"), async || {
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

/// Subjects that move between two servers under load fail no call and lose no write.
#[tokio::test]
async fn subjects_moved_back_and_forth_lose_nothing() -> anyhow::Result<()> {
    Fleet::builder()
        .servers(2)
        .run(async |fleet| {
            let client = fleet.client().await?;
            under_load(&client, &LEVELS, async |_| {
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
