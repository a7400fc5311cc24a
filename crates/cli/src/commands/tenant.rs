//! Tenants: `tenant ls` and `tenant limit`.

use dormouse_client::TenantEntry;
use dormouse_protocol::tenant::{TenantLimits, TenantUse};
use serde_json::{Map, Value, json};

use super::list::tables;
use crate::args::{TenantCommand, TenantLimit};
use crate::error::Failure;
use crate::session::Session;
use crate::view::cell;

/// A figure of a tenant that can have a limit.
struct LimitedFigure {
    name: &'static str,
    title: &'static str,
    in_use: fn(&TenantUse) -> u64,
    limit: fn(&TenantLimits) -> Option<u64>,
}

macro_rules! figures {
    ($($field:ident: $title:literal,)*) => {
        &[$(LimitedFigure {
            name: stringify!($field),
            title: $title,
            in_use: |in_use| in_use.$field,
            limit: |limits| limits.$field,
        },)*]
    };
}

const FIGURES: &[LimitedFigure] = figures! {
    requests: "REQUESTS",
    bytes: "BYTES",
    open_subjects: "OPEN",
    creations_per_minute: "NEW/MIN",
    messages_per_second: "MSGS/S",
    stored_bytes: "STORED",
    unshipped_bytes: "UNSHIPPED",
    uploads: "UPLOADS",
};

/// Runs a command on tenants.
pub(super) async fn run(session: &Session, command: TenantCommand) -> Result<(), Failure> {
    match command {
        TenantCommand::Ls => ls(session).await,
        TenantCommand::Limit(arguments) => limit(session, arguments).await,
    }
}

async fn ls(session: &Session) -> Result<(), Failure> {
    let mut pages = session.client().tenants();
    if session.output.is_json() {
        while let Some(entry) = pages.next().await {
            session.output.json(&entry_json(&entry?))?;
        }
        return Ok(());
    }
    let mut titles = vec!["TENANT", "SERVERS"];
    titles.extend(FIGURES.iter().map(|figure| figure.title));
    titles.extend(["REQUESTS/S", "REFUSED"]);
    tables(session, &titles, "no tenants", &mut pages, row).await
}

fn row(entry: &TenantEntry) -> Vec<String> {
    let TenantEntry { tenant, limits, in_use, servers } = entry;
    let mut row = vec![cell(tenant.as_str()), servers.to_string()];
    row.extend(FIGURES.iter().map(|figure| {
        let used = (figure.in_use)(in_use);
        (figure.limit)(limits).map_or_else(|| used.to_string(), |limit| format!("{used} of {limit}"))
    }));
    row.extend([in_use.requests_per_second.to_string(), in_use.refused.to_string()]);
    row
}

fn entry_json(entry: &TenantEntry) -> Value {
    let TenantEntry { tenant, limits, in_use, servers } = entry;
    let mut used: Map<String, Value> =
        FIGURES.iter().map(|figure| (figure.name.to_owned(), (figure.in_use)(in_use).into())).collect();
    used.insert("requests_per_second".to_owned(), in_use.requests_per_second.into());
    used.insert("refused".to_owned(), in_use.refused.into());
    json!({ "tenant": tenant, "servers": servers, "limits": limits, "use": used })
}

async fn limit(session: &Session, arguments: TenantLimit) -> Result<(), Failure> {
    let TenantLimit { tenant, clear, limits } = arguments;
    let limits = session.client().limit_tenant(&tenant, clear, limits.into()).await?;
    if session.output.is_json() {
        return session.output.json(&json!({ "tenant": tenant, "limits": limits }));
    }
    let tenant = cell(tenant.as_str());
    if limits.is_empty() {
        return session.output.line(format_args!("{tenant} has no limits"));
    }
    let text =
        |figure: &LimitedFigure| (figure.limit)(&limits).map(|limit| format!("{} {limit}", figure.name));
    let all: Vec<String> = FIGURES.iter().filter_map(text).collect();
    session.output.line(format_args!("{tenant} is limited to {}", all.join(", ")))
}
