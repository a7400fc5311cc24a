//! Servers that stop, are emptied, and have subjects moved away from them, all of it under load: nobody notices.

use std::time::Duration;

use anyhow::{Context, ensure};
use dormouse_client::Client;
use dormouse_e2e::{Fleet, until};
use dormouse_protocol::admin::{DrainReply, DrainRequest, MoveReply, MoveRequest};
use dormouse_protocol::fleet::ServerState;
use dormouse_protocol::{Prefix, ServerName, Subject};

use crate::load::{LEVELS, SUBJECTS, more_written, name, under_load};

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
            under_load(&client, &LEVELS, async |written| {
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
