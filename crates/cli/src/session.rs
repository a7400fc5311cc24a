//! A connection to a fleet and the output: the context of every command.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_bus::nats::NatsOptions;
use dormouse_client::{Client, Kv, Stream};
use dormouse_protocol::{Prefix, Subject};
use dormouse_runtime::{Env, Tasks};

use crate::args::Global;
use crate::context::{ContextSelection, Contexts};
use crate::error::Failure;
use crate::output::Output;

/// The name of the connection in the lists of a nats-server.
const CONNECTION_NAME: &str = "dormouse command line";

/// The context of a command.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// Deadline of one call.
    pub deadline: Duration,
    /// Output of results.
    pub output: Output,
}

impl Session {
    /// Connects with the settings of the command line.
    ///
    /// If the call is cancelled, no connection stays open.
    ///
    /// # Errors
    /// [`Failure`] if the arguments are invalid or the connection fails.
    pub async fn connect(global: Global, output: Output) -> Result<Self, Failure> {
        let selection = ContextSelection {
            context: global.context,
            flags: global.connection_flags,
            nats_url_set: std::env::var_os("NATS_URL").is_some_and(|url| !url.is_empty()),
        };
        let arguments = Contexts::of_user().complete(global.nats, &selection)?;
        let options = arguments.resolve().map_err(|error| Failure::usage(error.to_string()))?;
        let deadline = global.deadline.into();
        let options = NatsOptions {
            connection_name: CONNECTION_NAME.to_owned(),
            connect_deadline: options.connect_deadline.min(deadline),
            ..options
        };
        // The connection stays open until the process exits, which also ends its tasks.
        let bus = options.connect(Env::system(), &Tasks::new()).await?;
        Self::with_bus(Arc::new(bus), global.prefix, deadline, output).await
    }

    /// Uses an existing connection.
    ///
    /// If the call is cancelled, nothing remains.
    ///
    /// # Errors
    /// [`Failure`] if the connection is closed.
    pub async fn with_bus(
        bus: Arc<dyn Bus>,
        prefix: Prefix,
        deadline: Duration,
        output: Output,
    ) -> Result<Self, Failure> {
        let client = Client::builder().prefix(prefix).deadline(deadline).over(bus).await?;
        Ok(Self { client, deadline, output })
    }

    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// `subject` as a stream.
    ///
    /// # Errors
    /// None in practice, because the subject is valid.
    pub fn stream(&self, subject: &Subject) -> Result<Stream, Failure> {
        Ok(self.client.stream(subject.as_str())?)
    }

    /// `subject` as a key-value store.
    ///
    /// # Errors
    /// None in practice, because the subject is valid.
    pub fn kv(&self, subject: &Subject) -> Result<Kv, Failure> {
        Ok(self.client.kv(subject.as_str())?)
    }
}
