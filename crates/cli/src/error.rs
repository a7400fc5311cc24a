//! Why a command failed: one line for people, a code for scripts.

use std::fmt;

use dormouse_bus::RequestError;
use dormouse_bus::nats::ConnectError;
use dormouse_client::Error as ClientError;
use dormouse_protocol::{ErrorCode, ErrorReply, Happened};
use serde_json::{Value, json};

/// What `--help` says about exit codes. A test holds it to [`ErrorKind::exit_code`].
pub const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure of any other kind
  2  usage: the command line is wrong
  3  not found: no such message or server there
  4  conflict: an expectation did not hold
  5  unavailable: nobody could answer before the deadline; nothing was changed
  6  permission denied
  7  indeterminate: whether the change took effect is not known";

/// What kind of failure it is; scripts tell them apart by exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Any other.
    Failure,
    /// The command line is wrong.
    Usage,
    /// What was asked for is not there.
    NotFound,
    /// An expectation did not hold.
    Conflict,
    /// Nobody could answer in time; nothing was changed.
    Unavailable,
    /// Refused.
    Permission,
    /// Whether a change took effect is not known.
    Indeterminate,
    /// Nobody reads our output any more. Not worth a word.
    BrokenPipe,
}

impl ErrorKind {
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

/// Why a command failed. The causes are part of the text, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    kind: ErrorKind,
    code: Option<ErrorCode>,
    text: String,
}

impl Failure {
    /// A failure of no particular kind.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self::of(ErrorKind::Failure, text)
    }

    /// A failure of this kind.
    #[must_use]
    pub fn of(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, code: None, text: text.into() }
    }

    /// A command line that makes no sense.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Self {
        Self::of(ErrorKind::Usage, text)
    }

    /// The same, having befallen a command that changes nothing: whatever happened, no change is in doubt.
    #[must_use]
    pub fn of_a_read(self) -> Self {
        match self.kind {
            ErrorKind::Indeterminate => Self { kind: ErrorKind::Failure, ..self },
            _ => self,
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What is printed with `--json`.
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

    fn caused(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
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

/// An error with its causes, as far as each says something new.
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

fn kind_of(code: &ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::WrongLast | ErrorCode::KeyExists => ErrorKind::Conflict,
        ErrorCode::Unavailable | ErrorCode::Overloaded | ErrorCode::NotOwner | ErrorCode::UnknownServer => {
            ErrorKind::Unavailable
        }
        ErrorCode::PermissionDenied => ErrorKind::Permission,
        ErrorCode::Indeterminate => ErrorKind::Indeterminate,
        other if other.happened() == Happened::Unknown => ErrorKind::Indeterminate,
        _ => ErrorKind::Failure,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::InvalidSubject(_) => Self::caused(ErrorKind::Usage, &error),
            ClientError::PermissionDenied { .. } => Self::caused(ErrorKind::Permission, &error),
            ClientError::Deadline { .. } | ClientError::Unreachable(_) | ClientError::Closed => {
                Self::caused(ErrorKind::Unavailable, &error)
            }
            ClientError::Indeterminate { .. } => Self::caused(ErrorKind::Indeterminate, &error),
            ClientError::WrongLast { .. } | ClientError::KeyExists { .. } => {
                Self::caused(ErrorKind::Conflict, &error)
            }
            ClientError::Service(reply) => Self::reply(reply),
            _ => Self::caused(ErrorKind::Failure, &error),
        }
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::caused(kind_of_request(&error), &error)
    }
}

// Only questions are asked this way, so a lost answer leaves nothing in doubt.
fn kind_of_request(error: &RequestError) -> ErrorKind {
    match error {
        RequestError::PermissionDenied(_) => ErrorKind::Permission,
        RequestError::NoResponders(_)
        | RequestError::Deadline { .. }
        | RequestError::Disconnected
        | RequestError::Closed { .. } => ErrorKind::Unavailable,
        _ => ErrorKind::Failure,
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::Unreachable { .. } | ConnectError::Broke { .. } => ErrorKind::Unavailable,
            ConnectError::Refused { .. } | ConnectError::InboxDenied { .. } => ErrorKind::Permission,
            _ => ErrorKind::Failure,
        };
        Self::caused(kind, &error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dormouse_protocol::Route;

    use super::*;

    #[test]
    fn the_help_names_every_exit_code() {
        use ErrorKind::{
            BrokenPipe, Conflict, Failure, Indeterminate, NotFound, Permission, Unavailable, Usage,
        };
        for kind in [Failure, Usage, NotFound, Conflict, Unavailable, Permission, Indeterminate] {
            let word = kind.as_str().replace('_', " ");
            let line = EXIT_CODES.lines().find(|line| line.contains(&word)).unwrap();
            assert!(line.trim_start().starts_with(&kind.exit_code().to_string()), "{line}");
        }
        assert_eq!(BrokenPipe.exit_code(), 0);
    }

    #[test]
    fn client_errors_have_their_exit_codes() {
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
        assert_eq!(Failure::from(denied).kind(), ErrorKind::Permission);
        assert_eq!(Failure::from(RequestError::NoResponders(route)).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_code_of_the_protocol_means_the_same_however_it_arrives() {
        for (code, kind) in [
            (ErrorCode::WrongLast, ErrorKind::Conflict),
            (ErrorCode::KeyExists, ErrorKind::Conflict),
            (ErrorCode::PermissionDenied, ErrorKind::Permission),
            (ErrorCode::Indeterminate, ErrorKind::Indeterminate),
            (ErrorCode::Overloaded, ErrorKind::Unavailable),
            (ErrorCode::BadRequest, ErrorKind::Failure),
        ] {
            let reply = ErrorReply::new(code, "why");
            assert_eq!(Failure::from(ClientError::Service(Box::new(reply))).kind(), kind);
        }
    }

    #[test]
    fn causes_are_told_once_in_one_line() {
        let last = ClientError::Service(Box::new(ErrorReply::unavailable("no live\nserver")));
        let error = ClientError::Deadline { deadline: Duration::from_secs(1), last: Some(Box::new(last)) };
        assert_eq!(
            Failure::from(error).to_string(),
            "no success within 1000 ms: unavailable: no live server"
        );
    }

    #[test]
    fn errors_as_json_carry_the_code_of_the_protocol() {
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
