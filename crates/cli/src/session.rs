//! A connection to a fleet and where results go: what every command needs.

use std::sync::Arc;
use std::time::Duration;

use dormouse_bus::Bus;
use dormouse_bus::nats::NatsOptions;
use dormouse_client::{Client, Kv, Stream};
use dormouse_protocol::{Prefix, Subject};
use dormouse_runtime::{Env, Tasks};

use crate::args::Global;
use crate::context::{Contexts, Wish};
use crate::error::Failure;
use crate::output::Output;

/// The name under which a nats-server lists our connection.
const CONNECTION_NAME: &str = "dormouse command line";

/// What every command needs.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// How long one call may take.
    pub deadline: Duration,
    /// Where results go.
    pub output: Output,
}

impl Session {
    /// Connects as the command line says.
    ///
    /// Cancelling the call leaves no connection.
    ///
    /// # Errors
    /// [`Failure`] when the arguments make no sense or no connection comes about.
    pub async fn connect(global: Global, output: Output) -> Result<Self, Failure> {
        let wish = Wish {
            context: global.context,
            flags: global.connection_flags,
            nats_url_set: std::env::var_os("NATS_URL").is_some_and(|url| !url.is_empty()),
        };
        let arguments = Contexts::of_user().complete(global.nats, &wish)?;
        let options = arguments.resolve().map_err(|error| Failure::usage(error.to_string()))?;
        let deadline = global.deadline.into();
        let options = NatsOptions {
            connection_name: CONNECTION_NAME.to_owned(),
            connect_deadline: options.connect_deadline.min(deadline),
            ..options
        };
        // The connection lives as long as the process: its tasks are never finished, the exit ends them.
        let bus = options.connect(Env::system(), &Tasks::new()).await?;
        Self::over(Arc::new(bus), global.prefix, deadline, output).await
    }

    /// Uses a connection that is there already.
    ///
    /// Cancelling the call leaves nothing behind.
    ///
    /// # Errors
    /// [`Failure`] when the connection is closed.
    pub async fn over(
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
    /// None in practice: the subject is one.
    pub fn stream(&self, subject: &Subject) -> Result<Stream, Failure> {
        Ok(self.client.stream(subject.as_str())?)
    }

    /// `subject` as a key-value store.
    ///
    /// # Errors
    /// None in practice: the subject is one.
    pub fn kv(&self, subject: &Subject) -> Result<Kv, Failure> {
        Ok(self.client.kv(subject.as_str())?)
    }
}
