//! Failures of commands: a message in one line, and an exit code for scripts.

use std::fmt;

use dormouse_bus::RequestError;
use dormouse_bus::nats::NatsConnectError;
use dormouse_client::Error as ClientError;
use dormouse_protocol::{ErrorCode, ErrorReply, Executed};
use serde_json::{Value, json};

/// The exit codes in `--help`. A test compares them with [`FailureKind::exit_code`].
pub const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  any other failure
  2  usage: the command line is invalid
  3  not found: no such message, subject or server
  4  conflict: an expectation did not hold
  5  unavailable: no reply before the deadline; nothing was changed
  6  permission denied
  7  indeterminate: it is unknown whether the change took effect";

/// The kind of a failure. Scripts distinguish kinds by the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Any other failure.
    Failure,
    /// The command line is invalid.
    Usage,
    /// The requested message, subject or server does not exist.
    NotFound,
    /// An expectation did not hold.
    Conflict,
    /// No reply before the deadline; nothing was changed.
    Unavailable,
    /// Permission denied.
    Permission,
    /// It is unknown whether a change took effect.
    Indeterminate,
    /// The reader of standard output has closed the pipe. The command reports nothing.
    BrokenPipe,
}

impl FailureKind {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Permission => 6,
            Self::Indeterminate => 7,
        }
    }

    /// The kind as a word, for JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Permission => "permission_denied",
            Self::Indeterminate => "indeterminate",
            Self::BrokenPipe => "broken_pipe",
        }
    }
}

/// The failure of a command. The text contains the causes, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: FailureKind,
    code: Option<ErrorCode>,
    text: String,
}

impl Failure {
    /// A failure of no particular kind.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self::of(FailureKind::Failure, text)
    }

    /// A failure of this kind.
    #[must_use]
    pub fn of(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, code: None, text: text.into() }
    }

    /// A failure of kind `usage`.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self::of(FailureKind::Usage, text)
    }

    /// The same failure of a command that changes nothing: it cannot be indeterminate.
    #[must_use]
    pub fn without_change(self) -> Self {
        match self.kind {
            FailureKind::Indeterminate => Self { kind: FailureKind::Failure, ..self },
            _ => self,
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The output with `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut error = json!({
            "kind": self.kind.as_str(),
            "exit_code": self.kind.exit_code(),
            "message": self.text,
        });
        if let Some(code) = &self.code {
            error["code"] = json!(code.as_str());
        }
        json!({ "error": error })
    }

    fn caused(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        Self::of(kind, one_line(error))
    }

    fn reply(reply: &ErrorReply) -> Self {
        let kind = kind_of(&reply.code);
        let text = if reply.message.is_empty() { reply.code.to_string() } else { reply.to_string() };
        Self { kind, code: Some(reply.code.clone()), text }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// An error with its causes. A cause whose text is already included is skipped.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

fn kind_of(code: &ErrorCode) -> FailureKind {
    match code {
        ErrorCode::WrongLast | ErrorCode::KeyExists => FailureKind::Conflict,
        ErrorCode::Unavailable | ErrorCode::Overloaded | ErrorCode::NotOwner | ErrorCode::UnknownServer => {
            FailureKind::Unavailable
        }
        ErrorCode::PermissionDenied => FailureKind::Permission,
        ErrorCode::Indeterminate | ErrorCode::Forgotten => FailureKind::Indeterminate,
        other if other.executed() == Executed::Unknown => FailureKind::Indeterminate,
        _ => FailureKind::Failure,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::InvalidSubject(_) => Self::caused(FailureKind::Usage, &error),
            ClientError::PermissionDenied { .. } => Self::caused(FailureKind::Permission, &error),
            ClientError::Deadline { .. } | ClientError::Unreachable(_) | ClientError::Closed => {
                Self::caused(FailureKind::Unavailable, &error)
            }
            ClientError::Indeterminate { .. } | ClientError::Forgotten(_) => {
                Self::caused(FailureKind::Indeterminate, &error)
            }
            ClientError::WrongLast { .. } | ClientError::KeyExists { .. } => {
                Self::caused(FailureKind::Conflict, &error)
            }
            ClientError::Service(reply) => Self::reply(reply),
            _ => Self::caused(FailureKind::Failure, &error),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::caused(kind_of_request(&error), &error)
    }
}

// Only requests without effect are sent this way, so a lost reply is not indeterminate.
fn kind_of_request(error: &RequestError) -> FailureKind {
    match error {
        RequestError::PermissionDenied(_) => FailureKind::Permission,
        RequestError::NoResponders(_)
        | RequestError::Deadline { .. }
        | RequestError::Disconnected
        | RequestError::Closed { .. } => FailureKind::Unavailable,
        _ => FailureKind::Failure,
    }
}

impl From<NatsConnectError> for Failure {
    fn from(error: NatsConnectError) -> Self {
        let kind = match &error {
            NatsConnectError::Unreachable { .. } | NatsConnectError::Interrupted { .. } => {
                FailureKind::Unavailable
            }
            NatsConnectError::Refused { .. } | NatsConnectError::InboxDenied { .. } => {
                FailureKind::Permission
            }
            _ => FailureKind::Failure,
        };
        Self::caused(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dormouse_protocol::Route;

    use super::*;

    /// The help lists each exit code with the name of its failure.
    #[test]
    fn help_lists_each_exit_code() {
        use FailureKind::{
            BrokenPipe, Conflict, Failure, Indeterminate, NotFound, Permission, Unavailable, Usage,
        };
        for kind in [Failure, Usage, NotFound, Conflict, Unavailable, Permission, Indeterminate] {
            let word = kind.as_str().replace('_', " ");
            let line = EXIT_CODES.lines().find(|line| line.contains(&word)).unwrap();
            assert!(line.trim_start().starts_with(&kind.exit_code().to_string()), "{line}");
        }
        assert_eq!(BrokenPipe.exit_code(), 0);
    }

    /// Each client error maps to its exit code, and each bus error to its failure kind.
    #[test]
    fn client_errors_map_to_exit_codes() {
        let deadline = ClientError::Deadline { deadline: Duration::from_secs(1), last: None };
        let cases = [
            (deadline, 5),
            (ClientError::WrongLast { actual: None }, 4),
            (ClientError::KeyExists { actual: None }, 4),
            (ClientError::PermissionDenied { what: "it".to_owned() }, 6),
            (ClientError::Service(Box::new(ErrorReply::unsupported("ttl"))), 1),
            (ClientError::Service(Box::new(ErrorReply::internal("disk"))), 7),
            (ClientError::Service(Box::new(ErrorReply::unavailable("no server"))), 5),
        ];
        for (error, exit_code) in cases {
            assert_eq!(Failure::from(error.clone()).kind().exit_code(), exit_code, "{error}");
        }
        let route = Route::new("persist.admin.servers");
        let denied = RequestError::PermissionDenied(route.clone());
        assert_eq!(Failure::from(denied).kind(), FailureKind::Permission);
        assert_eq!(Failure::from(RequestError::NoResponders(route)).kind(), FailureKind::Unavailable);
    }

    /// Each protocol error code in a service error maps to its failure kind.
    #[test]
    fn error_code_maps_to_failure_kind() {
        for (code, kind) in [
            (ErrorCode::WrongLast, FailureKind::Conflict),
            (ErrorCode::KeyExists, FailureKind::Conflict),
            (ErrorCode::PermissionDenied, FailureKind::Permission),
            (ErrorCode::Indeterminate, FailureKind::Indeterminate),
            (ErrorCode::Forgotten, FailureKind::Indeterminate),
            (ErrorCode::Overloaded, FailureKind::Unavailable),
            (ErrorCode::BadRequest, FailureKind::Failure),
        ] {
            let reply = ErrorReply::new(code, "why");
            assert_eq!(Failure::from(ClientError::Service(Box::new(reply))).kind(), kind);
        }
    }

    /// A failure message states each cause once, in one line.
    #[test]
    fn failure_message_states_each_cause_once_in_one_line() {
        let last = ClientError::Service(Box::new(ErrorReply::unavailable("no live\nserver")));
        let error = ClientError::Deadline { deadline: Duration::from_secs(1), last: Some(Box::new(last)) };
        assert_eq!(
            Failure::from(error).to_string(),
            "deadline of 1000 ms exceeded: unavailable: no live server"
        );
    }

    /// A failure as JSON carries the protocol error code, kind, exit code and message.
    #[test]
    fn failure_json_carries_protocol_error_code() {
        let failure = Failure::from(ClientError::Service(Box::new(ErrorReply::unsupported("ttl"))));
        assert_eq!(
            failure.json(),
            json!({ "error": {
                "kind": "failure",
                "exit_code": 1,
                "code": "unsupported",
                "message": "unsupported: this server does not offer ttl",
            }})
        );
    }
}
