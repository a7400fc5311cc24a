//! Tenants with an account each, with the configuration that is shipped in `deploy/nats`.

use anyhow::{Context, ensure};
use dormouse_e2e::{Builder, Fleet, RawMessage, Security};
use dormouse_protocol::data::{GetReply, GetRequest};
use dormouse_protocol::{ErrorCode, ErrorReply, decode, encode};

use crate::permissions::{cannot_read, cannot_write, client_of, next_set};

const ON_SERVER: &str = "persist.server.persist-1.get.orders.eu";

fn fleet_of(security: Security) -> Builder {
    let flags = ["--tenant-accounts", "--inbox-prefix", "_INBOX", "--inbox-prefix", "_R_"];
    Fleet::builder().secured(security).coordinator_args(flags).server_args(flags)
}

#[tokio::test]
async fn tenants_use_the_same_names_and_have_nothing_to_do_with_each_other() -> anyhow::Result<()> {
    fleet_of(Security::shipped("tenants.conf")?)
        .servers(2)
        .run(async |fleet| {
            let (acme, umbrella) =
                (client_of(fleet, "acme-app").await?, client_of(fleet, "umbrella-app").await?);
            let (theirs, others) = (acme.kv("orders.eu")?, umbrella.kv("orders.eu")?);
            let mut watch = theirs.watch_all().await?;
            others.put("k", "umbrella's").await?;
            theirs.put("k", "acme's").await?;
            assert_eq!(next_set(&mut watch).await?, "acme's");
            assert_eq!(theirs.get("k").await?.as_deref(), Some(&b"acme's"[..]));
            assert_eq!(others.get("k").await?.as_deref(), Some(&b"umbrella's"[..]));
            let listed = fleet.cli_ok(&["subjects", "ls"]).await?;
            ensure!(listed.contains("acme.orders.eu") && listed.contains("umbrella.orders.eu"), "{listed}");

            // Within a tenant users have permissions of their own.
            let report = client_of(fleet, "acme-report").await?;
            let reader = report.kv("orders.eu")?;
            assert_eq!(reader.get("k").await?.as_deref(), Some(&b"acme's"[..]));
            cannot_write(&reader).await?;
            cannot_read(&report.kv("salaries")?).await?;

            // Naming another tenant only makes a name of one's own.
            assert_eq!(umbrella.kv("acme.orders.eu")?.get("k").await?, None);

            // A server that is gone is noticed through an import, too.
            fleet.expect_warning("declared dead");
            let owner = fleet.owner(&client_of(fleet, "acme-app").await?, "orders.eu").await?;
            fleet.kill9(&owner).await?;
            theirs.put("k", "still acme's").await?;
            assert_eq!(others.get("k").await?.as_deref(), Some(&b"umbrella's"[..]));
            Ok(())
        })
        .await
}

async fn ask_with_headers(fleet: &Fleet, user: &str, headers: &str) -> anyhow::Result<RawMessage> {
    let mut raw = fleet.raw_as(user).await?;
    let reply = format!("{}.1", fleet.security()?.inbox_of(user));
    raw.subscribe(&reply).await?;
    raw.publish_with_headers(ON_SERVER, &reply, headers, &encode(&GetRequest::key("k"))?).await?;
    raw.next_on(&reply).await
}

#[tokio::test]
async fn a_tenant_cannot_pass_for_another_by_what_it_writes_into_a_request() -> anyhow::Result<()> {
    fleet_of(Security::shipped("tenants.conf")?)
        .run(async |fleet| {
            client_of(fleet, "acme-app").await?.kv("orders.eu")?.put("k", "acme's").await?;
            client_of(fleet, "umbrella-app").await?.kv("orders.eu")?.put("k", "umbrella's").await?;
            let forged = "Nats-Request-Info: {\"acc\":\"acme\"}\r\n";
            for headers in [forged.to_owned(), forged.repeat(2), forged.to_lowercase()] {
                let answer = ask_with_headers(fleet, "umbrella-app", &headers).await?;
                // nats-server writes over one of them; with more the server does not know whom to believe.
                if answer.headers.is_empty() {
                    let reply: GetReply = decode(&answer.payload)?;
                    assert_eq!(reply.messages[0].value.as_deref(), Some(&b"umbrella's"[..]), "{headers}");
                } else {
                    let error: ErrorReply = decode(&answer.payload)?;
                    assert_eq!(error.code, ErrorCode::PermissionDenied, "{headers}");
                }
            }
            Ok(())
        })
        .await
}

/// The mapping of subjects is the wall; the account that nats-server names is a second one behind it.
#[tokio::test]
async fn an_import_that_leads_into_anothers_subjects_is_refused_by_the_name_of_its_account()
-> anyhow::Result<()> {
    let mut security = Security::shipped("tenants.conf")?;
    for position in 3..=5 {
        security.config = security.config.replace(&format!(", account_token_position: {position}"), "");
    }
    // A slip of the operator's: umbrella's imports lead to acme's subjects, and no export forbids it.
    let (head, umbrella) = security.config.split_once("  umbrella {").context("the other tenant")?;
    let slipped = umbrella.replace(".umbrella.>", ".acme.>");
    security.config = format!("{head}  umbrella {{{slipped}");
    fleet_of(security)
        .run(async |fleet| {
            let acme = client_of(fleet, "acme-app").await?.kv("orders.eu")?;
            acme.put("k", "acme's").await?;
            let umbrella = client_of(fleet, "umbrella-app").await?.kv("orders.eu")?;
            let error = umbrella.get("k").await.expect_err("located another's subject");
            ensure!(error.to_string().contains("account umbrella"), "{error}");
            cannot_write(&umbrella).await?;
            // And by the server itself, when nobody was asked for the way.
            let answer =
                ask_with_headers(fleet, "umbrella-app", "Nats-Request-Info: {\"acc\":\"acme\"}\r\n").await?;
            let error: ErrorReply = decode(&answer.payload)?;
            assert_eq!(error.code, ErrorCode::PermissionDenied);
            ensure!(error.message.contains("account umbrella"), "{error}");
            assert_eq!(acme.get("k").await?.as_deref(), Some(&b"acme's"[..]));
            Ok(())
        })
        .await
}
