//! The NATS services API, version 1: `nats service ls`, `info` and `stats` show the services announced here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use dormouse_protocol::RoutePattern;
use dormouse_runtime::{Env, Tasks};
use serde::Serialize;

use crate::fixed_replies::{FixedReply, serve_fixed_reply};
use crate::serve::EndpointStats;
use crate::{Bus, InboxPrefixes, SubscribeError};

/// The description of a service.
#[derive(Debug, Clone)]
pub struct ServiceDescription {
    /// Name of the kind of service: letters, digits, `-` and `_`.
    pub name: String,
    /// Id of this instance: letters, digits, `-` and `_`.
    pub id: String,
    /// Semantic version.
    pub version: String,
    /// A text for people.
    pub description: String,
    /// Metadata for programs.
    pub metadata: BTreeMap<String, String>,
    /// The endpoints. Bounded: never one per stored subject.
    pub endpoints: Vec<EndpointDescription>,
}

/// One endpoint of a service.
#[derive(Debug, Clone)]
pub struct EndpointDescription {
    /// Name: letters, digits, `-` and `_`.
    pub name: String,
    /// The pattern of its requests.
    pub pattern: RoutePattern,
    /// Its queue group, if it has one.
    pub queue: Option<String>,
    /// Metadata for programs.
    pub metadata: BTreeMap<String, String>,
    /// Its statistics.
    pub stats: Arc<EndpointStats>,
}

/// Answers `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, each also with the service's name and with name and id, until the
/// stop signal of `tasks` is given or the bus is closed. `inbox_prefixes` as in
/// [`ServeOptions`](crate::ServeOptions::inbox_prefixes).
///
/// If the call is cancelled, some of the routes get replies.
///
/// # Errors
/// [`SubscribeError`].
pub async fn announce(
    bus: &Arc<dyn Bus>,
    env: &Env,
    tasks: &Tasks,
    inbox_prefixes: &InboxPrefixes,
    service: ServiceDescription,
) -> Result<(), SubscribeError> {
    let routes = |verb: &str| {
        let ServiceDescription { name, id, .. } = &service;
        [format!("$SRV.{verb}"), format!("$SRV.{verb}.{name}"), format!("$SRV.{verb}.{name}.{id}")]
    };
    let started = UNIX_EPOCH + Duration::from_micros(env.wall_micros());
    let started = humantime::format_rfc3339_micros(started).to_string();
    let ping =
        json(&Ping { kind: "io.nats.micro.v1.ping_response", identity: ServiceIdentity::of(&service) });
    let info = json(&Info {
        kind: "io.nats.micro.v1.info_response",
        identity: ServiceIdentity::of(&service),
        description: &service.description,
        endpoints: service.endpoints.iter().map(EndpointInfo::of).collect(),
    });
    let (pings, infos, stats) = (routes("PING"), routes("INFO"), routes("STATS"));
    let answers: [([String; 3], FixedReply); 3] = [
        (pings, Arc::new(move || ping.clone())),
        (infos, Arc::new(move || info.clone())),
        (stats, Arc::new(move || statistics(&service, &started))),
    ];
    for (routes, answer) in answers {
        for route in routes {
            let pattern = RoutePattern::new(route);
            serve_fixed_reply(bus, tasks, "services", pattern, inbox_prefixes, Arc::clone(&answer)).await?;
        }
    }
    Ok(())
}

fn statistics(service: &ServiceDescription, started: &str) -> Bytes {
    json(&Stats {
        kind: "io.nats.micro.v1.stats_response",
        identity: ServiceIdentity::of(service),
        started,
        endpoints: service.endpoints.iter().map(EndpointStatistics::of).collect(),
    })
}

fn json<T: Serialize>(value: &T) -> Bytes {
    // Every value of these types has a JSON form.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

#[derive(Serialize)]
struct ServiceIdentity<'s> {
    name: &'s str,
    id: &'s str,
    version: &'s str,
    metadata: &'s BTreeMap<String, String>,
}

impl<'s> ServiceIdentity<'s> {
    fn of(service: &'s ServiceDescription) -> Self {
        Self { name: &service.name, id: &service.id, version: &service.version, metadata: &service.metadata }
    }
}

#[derive(Serialize)]
struct Ping<'s> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    identity: ServiceIdentity<'s>,
}

#[derive(Serialize)]
struct Info<'s> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    identity: ServiceIdentity<'s>,
    description: &'s str,
    endpoints: Vec<EndpointInfo<'s>>,
}

#[derive(Serialize)]
struct EndpointIdentity<'s> {
    name: &'s str,
    subject: &'s str,
    queue_group: &'s str,
}

impl<'s> EndpointIdentity<'s> {
    fn of(endpoint: &'s EndpointDescription) -> Self {
        Self {
            name: &endpoint.name,
            subject: endpoint.pattern.as_str(),
            queue_group: endpoint.queue.as_deref().unwrap_or_default(),
        }
    }
}

#[derive(Serialize)]
struct EndpointInfo<'s> {
    #[serde(flatten)]
    identity: EndpointIdentity<'s>,
    metadata: &'s BTreeMap<String, String>,
}

impl<'s> EndpointInfo<'s> {
    fn of(endpoint: &'s EndpointDescription) -> Self {
        Self { identity: EndpointIdentity::of(endpoint), metadata: &endpoint.metadata }
    }
}

#[derive(Serialize)]
struct Stats<'s> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    identity: ServiceIdentity<'s>,
    started: &'s str,
    endpoints: Vec<EndpointStatistics<'s>>,
}

#[derive(Serialize)]
struct EndpointStatistics<'s> {
    #[serde(flatten)]
    identity: EndpointIdentity<'s>,
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    // Nanoseconds, as the API defines.
    processing_time: u64,
    average_processing_time: u64,
    data: EndpointData,
}

/// The service-specific data of the API.
#[derive(Serialize)]
struct EndpointData {
    unanswerable: u64,
    refused: u64,
    dropped: u64,
}

impl<'s> EndpointStatistics<'s> {
    fn of(endpoint: &'s EndpointDescription) -> Self {
        let figures = endpoint.stats.read();
        let processing_time = u64::try_from(figures.processing.as_nanos()).unwrap_or(u64::MAX);
        Self {
            identity: EndpointIdentity::of(endpoint),
            num_requests: figures.requests,
            num_errors: figures.errors,
            last_error: figures.last_error.unwrap_or_default(),
            processing_time,
            average_processing_time: processing_time.checked_div(figures.requests).unwrap_or(0),
            data: EndpointData {
                unanswerable: figures.unanswerable,
                refused: figures.refused,
                dropped: figures.dropped,
            },
        }
    }
}
