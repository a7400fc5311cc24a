//! `server ls`, `server info`, `server health` and `server metrics`.

use bytes::Bytes;
use dormouse_bus::{Outgoing, service_error};
use dormouse_protocol::ServerName;
use dormouse_protocol::fleet::{ServerEntry, ServerState};
use dormouse_protocol::health::{Health, HealthStatus};
use futures::future::join_all;
use serde::Serialize;

use super::drain::{drain, undrain};
use super::server_list::{find_server, state_name};
use crate::args::{self, ServerCommand};
use crate::error::{Failure, FailureKind};
use crate::session::Session;
use crate::view::{cell, duration};

pub(super) async fn run(session: &Session, command: ServerCommand) -> Result<(), Failure> {
    match command {
        ServerCommand::Ls => ls(session).await,
        ServerCommand::Info(arguments) => info(session, &arguments.name).await,
        ServerCommand::Drain(arguments) => drain(session, arguments).await,
        ServerCommand::Undrain(arguments) => undrain(session, &arguments.name).await,
        ServerCommand::Health(arguments) => health(session, arguments).await,
        ServerCommand::Metrics(arguments) => metrics(session, arguments.name).await,
    }
}

/// The JSON output of `server metrics`.
#[derive(Debug, Serialize)]
struct MetricsView<'m> {
    name: &'m str,
    /// The text format of Prometheus.
    metrics: &'m str,
}

/// `server metrics`.
async fn metrics(session: &Session, name: String) -> Result<(), Failure> {
    let question = Outgoing::new(session.client().prefix().metrics_of(&name), Bytes::new());
    let reply = session.client().bus().request(question, session.deadline).await?;
    if let Some(error) = service_error(&reply) {
        return Err(Failure::new(format!("no metrics of {name}: {error}")));
    }
    let text = std::str::from_utf8(&reply.payload)
        .map_err(|error| Failure::new(format!("invalid metrics reply: {error}")))?;
    if session.output.is_json() {
        return session.output.json(&MetricsView { name: &name, metrics: text });
    }
    session.output.text(text)
}

/// `server ls`.
async fn ls(session: &Session) -> Result<(), Failure> {
    let reply = session.client().servers().await?;
    if session.output.is_json() {
        return session.output.json(&reply);
    }
    if reply.servers.is_empty() {
        session.output.info_line("the coordinator knows no server");
        return Ok(());
    }
    let titles =
        ["NAME", "STATE", "HEARTBEAT", "ASSIGNED", "OPEN", "REQUESTS", "LOCAL BYTES", "CAPACITY", "VERSION"];
    session.output.table(&titles, reply.servers.iter().map(server_row))
}

fn server_row(server: &ServerEntry) -> Vec<String> {
    vec![
        server.name.to_string(),
        state_name(server.state).to_owned(),
        last_heartbeat(server),
        server.assigned_subjects.to_string(),
        server.load.open_subjects.to_string(),
        server.load.requests.to_string(),
        server.load.local_bytes.to_string(),
        server.capacity.to_string(),
        cell(&server.version),
    ]
}

fn last_heartbeat(server: &ServerEntry) -> String {
    server.heard_ms_ago.map_or_else(|| "never".to_owned(), |ago| format!("{} ago", duration(ago)))
}

/// The JSON output of `server info`.
#[derive(Debug, Serialize)]
struct ServerInfoView<'i> {
    #[serde(flatten)]
    server: &'i ServerEntry,
    /// Health of the process; absent if it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'i Health>,
    /// Why there is no health.
    #[serde(skip_serializing_if = "Option::is_none")]
    health_error: Option<&'i str>,
}

/// `server info`.
async fn info(session: &Session, name: &ServerName) -> Result<(), Failure> {
    let server = find_server(session, name).await?;
    // A dead server gets no request: the command would only wait for the whole deadline.
    let finding = match server.state {
        ServerState::Dead => None,
        ServerState::Alive | ServerState::Draining | ServerState::Drained => {
            Some(ask(session, name.to_string()).await)
        }
    };
    let health = finding.as_ref().and_then(|finding| finding.health.as_ref());
    let health_error = finding.as_ref().and_then(|finding| finding.error.as_deref());
    if session.output.is_json() {
        return session.output.json(&ServerInfoView { server: &server, health, health_error });
    }
    let mut rows = vec![
        ("name", server.name.to_string()),
        ("state", state_name(server.state).to_owned()),
        ("log", server.log.to_string()),
        ("last heartbeat", last_heartbeat(&server)),
        ("version", cell(&server.version)),
        ("capacity", server.capacity.to_string()),
        ("assigned subjects", server.assigned_subjects.to_string()),
        ("open subjects", server.load.open_subjects.to_string()),
        ("requests", server.load.requests.to_string()),
        ("local bytes", server.load.local_bytes.to_string()),
    ];
    if let Some(health) = health {
        rows.push(("health", status_name(health.status).to_owned()));
        rows.push(("uptime", duration(health.uptime_ms)));
        rows.extend(health.problems.iter().map(|problem| ("problem", cell(problem))));
    }
    rows.extend(health_error.map(|error| ("health", format!("no answer: {error}"))));
    let figures = health.map(|health| &health.figures).into_iter().flatten();
    let figures = figures.map(|(name, figure)| vec![cell(name), figure.to_string()]);
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    session.output.table(&[], rows.chain(figures))
}

const fn status_name(status: HealthStatus) -> &'static str {
    match status {
        HealthStatus::Ok => "ok",
        HealthStatus::Degraded => "degraded",
        HealthStatus::NotServing => "not serving",
        HealthStatus::Critical => "critical",
    }
}

/// The health of one process, as JSON.
#[derive(Debug, Serialize)]
struct HealthResult {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<Health>,
    /// Why there is no health.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    kind: Option<FailureKind>,
}

/// `server health`.
async fn health(session: &Session, arguments: args::HealthArgs) -> Result<(), Failure> {
    let names = match arguments.name {
        Some(name) => vec![name],
        None => live_processes(session).await?,
    };
    let findings = join_all(names.into_iter().map(|name| ask(session, name))).await;
    if session.output.is_json() {
        session.output.json(&findings)?;
    } else {
        let titles = ["NAME", "STATUS", "UPTIME", "VERSION", "ID", "PROBLEMS"];
        session.output.table(&titles, findings.iter().map(health_row))?;
    }
    exit_status(&findings, arguments.accept.is_some())
}

/// The coordinator, and every server that is not dead.
async fn live_processes(session: &Session) -> Result<Vec<String>, Failure> {
    let servers = session.client().servers().await?.servers;
    let alive = servers.into_iter().filter(|server| server.state != ServerState::Dead);
    Ok(std::iter::once(ServerName::COORDINATOR.to_owned())
        .chain(alive.map(|server| server.name.to_string()))
        .collect())
}

async fn ask(session: &Session, name: String) -> HealthResult {
    let route = session.client().prefix().health_of(&name);
    let question = Outgoing::new(route, Bytes::new());
    let answer = session.client().bus().request(question, session.deadline).await.map_err(Failure::from);
    let health = answer.and_then(|reply| {
        serde_json::from_slice::<Health>(&reply.payload)
            .map_err(|error| Failure::new(format!("invalid health reply: {error}")))
    });
    match health {
        Ok(health) => HealthResult { name, health: Some(health), error: None, kind: None },
        Err(failure) => {
            HealthResult { name, health: None, error: Some(failure.to_string()), kind: Some(failure.kind()) }
        }
    }
}

fn health_row(finding: &HealthResult) -> Vec<String> {
    let Some(health) = &finding.health else {
        let error = finding.error.clone().unwrap_or_default();
        return vec![
            finding.name.clone(),
            "no answer".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            error,
        ];
    };
    vec![
        finding.name.clone(),
        status_name(health.status).to_owned(),
        duration(health.uptime_ms),
        cell(&health.version),
        cell(&health.id),
        health.problems.iter().map(|problem| cell(problem)).collect::<Vec<_>>().join("; "),
    ]
}

/// The exit code reports the same result as the table.
fn exit_status(findings: &[HealthResult], accept_degraded: bool) -> Result<(), Failure> {
    let silent: Vec<&HealthResult> = findings.iter().filter(|finding| finding.health.is_none()).collect();
    if let Some(first) = silent.first() {
        let names: Vec<&str> = silent.iter().map(|finding| finding.name.as_str()).collect();
        let kind = first.kind.unwrap_or(FailureKind::Unavailable);
        return Err(Failure::of(kind, format!("no health of {}", names.join(", "))));
    }
    let failing: Vec<&str> = findings
        .iter()
        .filter(|finding| {
            finding.health.as_ref().is_some_and(|health| match health.status {
                HealthStatus::Ok => false,
                HealthStatus::Degraded => !accept_degraded,
                HealthStatus::NotServing | HealthStatus::Critical => true,
            })
        })
        .map(|finding| finding.name.as_str())
        .collect();
    if failing.is_empty() { Ok(()) } else { Err(Failure::new(format!("not ok: {}", failing.join(", ")))) }
}
