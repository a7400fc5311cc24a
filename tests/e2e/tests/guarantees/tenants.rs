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

/// Tenants with equal subject names see only their own data, also after a failover.
#[tokio::test]
async fn tenants_with_equal_subject_names_are_isolated() -> anyhow::Result<()> {
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

            // Within a tenant, users have their own permissions.
            let report = client_of(fleet, "acme-report").await?;
            let reader = report.kv("orders.eu")?;
            assert_eq!(reader.get("k").await?.as_deref(), Some(&b"acme's"[..]));
            cannot_write(&reader).await?;
            cannot_read(&report.kv("salaries")?).await?;

            // The name of another tenant is only a part of the tenant's own subject name.
            assert_eq!(umbrella.kv("acme.orders.eu")?.get("k").await?, None);

            // Through an import, a client also notices that a server is gone.
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

/// A forged account header returns the tenant's own data or `permission_denied`, never another tenant's data.
#[tokio::test]
async fn tenant_cannot_impersonate_another_by_headers() -> anyhow::Result<()> {
    fleet_of(Security::shipped("tenants.conf")?)
        .run(async |fleet| {
            client_of(fleet, "acme-app").await?.kv("orders.eu")?.put("k", "acme's").await?;
            client_of(fleet, "umbrella-app").await?.kv("orders.eu")?.put("k", "umbrella's").await?;
            let forged = "Nats-Request-Info: {\"acc\":\"acme\"}\r\n";
            for headers in [forged.to_owned(), forged.repeat(2), forged.to_lowercase()] {
                let answer = ask_with_headers(fleet, "umbrella-app", &headers).await?;
                // nats-server overwrites one of the headers; with several, the server cannot know which one is right.
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

/// The subject mapping is the first barrier; the account that nats-server names is a second one.
#[tokio::test]
async fn import_into_foreign_subjects_is_rejected_by_account() -> anyhow::Result<()> {
    let mut security = Security::shipped("tenants.conf")?;
    for position in 3..=5 {
        security.config = security.config.replace(&format!(", account_token_position: {position}"), "");
    }
    // A mistake of the operator: umbrella's imports lead to acme's subjects, and no export forbids it.
    let (head, umbrella) = security.config.split_once("  umbrella {").context("the other tenant")?;
    let misconfigured = umbrella.replace(".umbrella.>", ".acme.>");
    security.config = format!("{head}  umbrella {{{misconfigured}");
    fleet_of(security)
        .run(async |fleet| {
            let acme = client_of(fleet, "acme-app").await?.kv("orders.eu")?;
            acme.put("k", "acme's").await?;
            let umbrella = client_of(fleet, "umbrella-app").await?.kv("orders.eu")?;
            let error = umbrella.get("k").await.expect_err("located a foreign subject");
            ensure!(error.to_string().contains("account umbrella"), "{error}");
            cannot_write(&umbrella).await?;
            // The server itself also rejects a request that does not come from a lookup.
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
