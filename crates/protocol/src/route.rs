//! Routes: the NATS addresses of the messages, built and parsed in this one module.
//!
//! The subject is always at the end of the route, never only in the payload, so that NATS permissions can control the access
//! of each client to each subject.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ids::{InvalidName, ServerName};
use crate::limits::{MAX_CONFIGURE_BYTES, MAX_PREFIX_BYTES, MAX_QUERY_BYTES, MAX_SMALL_REQUEST_BYTES};
use crate::subject::{InvalidSubject, Subject};

/// A NATS address of a message.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route(Arc<str>);

/// The address of a subscription: a route in which `*` matches any one token and a final `>` one or more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoutePattern(Arc<str>);

macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// The address as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

address!(Route);
address!(RoutePattern);

impl Route {
    /// Creates a route from a text without validation: a route from a transport, or one outside the prefix, such as a reply
    /// address. The transport rejects invalid routes.
    #[must_use]
    pub fn new(route: impl Into<Arc<str>>) -> Self {
        Self(route.into())
    }
}

impl RoutePattern {
    /// Creates a pattern from a text without validation. The transport rejects invalid patterns.
    #[must_use]
    pub fn new(pattern: impl Into<Arc<str>>) -> Self {
        Self(pattern.into())
    }

    /// Whether `route` matches this pattern, by the rules of NATS.
    #[must_use]
    pub fn matches(&self, route: &str) -> bool {
        let mut tokens = route.split('.');
        let mut pattern = self.0.split('.').peekable();
        while let Some(wanted) = pattern.next() {
            let Some(token) = tokens.next() else { return false };
            if wanted == ">" && pattern.peek().is_none() {
                return true;
            }
            if wanted != "*" && wanted != token {
                return false;
            }
        }
        tokens.next().is_none()
    }
}

/// A route is a pattern that matches only itself.
impl From<Route> for RoutePattern {
    fn from(route: Route) -> Self {
        Self(route.0)
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $changes:literal;)*) => {
        /// A data operation: the fourth token of a server's route.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $($(#[$doc])* $variant,)*
        }

        impl Op {
            /// All operations.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The operation's token in a route.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether the operation can change a subject, or is a step of a change: it needs write permission. All other
            /// operations can be repeated without effect.
            #[must_use]
            pub const fn changes(self) -> bool {
                match self {
                    $(Self::$variant => $changes,)*
                }
            }
        }

        impl FromStr for Op {
            type Err = UnknownOp;

            fn from_str(token: &str) -> Result<Self, UnknownOp> {
                match token {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(UnknownOp),
                }
            }
        }
    };
}

ops! {
    /// Write messages.
    Set = "set", true;
    /// Read messages by seq or key.
    Get = "get", false;
    /// Read messages in order, a page at a time.
    GetAll = "get_all", false;
    /// Read keys in order, a page at a time.
    Keys = "keys", false;
    /// Remove messages by seq or key.
    Delete = "delete", true;
    /// Remove all messages up to a seq.
    DeleteAll = "delete_all", true;
    /// Read the changes since a position.
    Changes = "changes", false;
    /// Read the properties of a subject.
    Info = "info", false;
    /// Replace a subject's configuration.
    Configure = "configure", true;
    /// Wait until all writes so far are in the bucket.
    Flush = "flush", false;
    /// Destroy a subject permanently.
    Destroy = "destroy", true;
    /// Begin an upload of a large value, or ask for its progress.
    UploadBegin = "upload_begin", true;
    /// Upload a chunk of a large value.
    UploadChunk = "upload_chunk", true;
    /// Check a completely uploaded value and store it in the bucket.
    UploadFinish = "upload_finish", true;
    /// Write messages with uploaded values.
    UploadCommit = "upload_commit", true;
    /// Cancel an upload.
    UploadCancel = "upload_cancel", true;
    /// Read a chunk of a large value.
    GetChunk = "get_chunk", false;
}

impl Op {
    /// The largest encoded request of this operation, in bytes. `None`: as large as a message may be, because the request
    /// carries values.
    #[must_use]
    pub const fn max_request_bytes(self) -> Option<usize> {
        match self {
            Self::Set | Self::UploadCommit | Self::UploadChunk => None,
            Self::Get | Self::Delete => Some(MAX_QUERY_BYTES),
            Self::Configure => Some(MAX_CONFIGURE_BYTES),
            Self::GetAll
            | Self::Keys
            | Self::DeleteAll
            | Self::Changes
            | Self::Info
            | Self::Flush
            | Self::Destroy
            | Self::UploadBegin
            | Self::UploadFinish
            | Self::UploadCancel
            | Self::GetChunk => Some(MAX_SMALL_REQUEST_BYTES),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// No operation has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such operation")]
pub struct UnknownOp;

/// The route is not a valid route of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// The beginning does not match, or the route is too short.
    #[error("not a route of this kind")]
    Foreign,
    /// Its operation is unknown.
    #[error("unknown operation {0:?}")]
    UnknownOp(String),
    /// The end is not a subject.
    #[error("{0}")]
    Subject(#[from] InvalidSubject),
    /// The server name is invalid.
    #[error("{0}")]
    Server(InvalidName),
}

/// A parsed route of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRoute {
    /// The operation.
    pub op: Op,
    /// The subject.
    pub subject: Subject,
}

/// A parsed route of `<prefix>.fleet.>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetRoute {
    /// A process asks to become a member.
    Join,
    /// A member reports that it is alive.
    Heartbeat,
    /// A member asks for permission to claim this subject.
    Claim(Subject),
    /// A member has released this subject.
    Release(Subject),
    /// A member leaves.
    Leave,
    /// A server reads the limits of the tenants.
    Limits,
}

/// A parsed route of `<prefix>.admin.>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRoute {
    /// List the servers.
    Servers,
    /// List the assignments of subjects.
    Subjects,
    /// Drain this server.
    Drain(ServerName),
    /// End the drain of this server.
    Undrain(ServerName),
    /// Move this subject to another server.
    Move(Subject),
    /// Balance the load of the servers.
    Rebalance,
    /// Report the progress of the moves.
    Moves,
    /// List the tenants.
    Tenants,
    /// Set limits of a tenant.
    TenantLimit,
}

/// The first tokens of every route of a fleet, `persist` unless configured otherwise. Fleets with different prefixes
/// can share a NATS system.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The default prefix.
    pub const DEFAULT: &'static str = "persist";

    /// Validates `prefix`: it must be a valid subject of at most [`MAX_PREFIX_BYTES`] bytes, and not start with `$` or `_`
    /// (reserved by NATS).
    ///
    /// # Errors
    /// [`InvalidName`] if it violates a rule.
    pub fn new(prefix: &str) -> Result<Self, InvalidName> {
        let reserved = prefix.starts_with('$') || prefix.starts_with('_');
        if reserved || prefix.len() > MAX_PREFIX_BYTES || Subject::new(prefix).is_err() {
            return Err(InvalidName::new(
                "route prefix",
                prefix,
                "a dotted name of at most 64 bytes without wildcards, not starting with $ or _",
            ));
        }
        Ok(Self(prefix.into()))
    }

    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn route(&self, rest: fmt::Arguments<'_>) -> Route {
        Route(format!("{}.{rest}", self.0).into())
    }

    fn pattern(&self, rest: fmt::Arguments<'_>) -> RoutePattern {
        self.route(rest).into()
    }

    fn strip<'r>(&self, route: &'r str, kind: &str) -> Result<&'r str, InvalidRoute> {
        route
            .strip_prefix(&*self.0)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.strip_prefix(kind))
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(InvalidRoute::Foreign)
    }

    /// The route on which clients ask for the server of `subject`.
    #[must_use]
    pub fn locate(&self, subject: &Subject) -> Route {
        self.route(format_args!("coord.locate.{subject}"))
    }

    /// The pattern of all locate routes.
    #[must_use]
    pub fn locate_all(&self) -> RoutePattern {
        self.pattern(format_args!("coord.locate.>"))
    }

    /// The subject of a locate route.
    ///
    /// # Errors
    /// [`InvalidRoute`] if it is no locate route, or does not end in a subject.
    pub fn parse_locate(&self, route: &str) -> Result<Subject, InvalidRoute> {
        Ok(Subject::new(self.strip(route, "coord.locate")?)?)
    }

    /// The route on which the coordinator announces gone servers.
    #[must_use]
    pub fn gone(&self) -> Route {
        self.route(format_args!("coord.gone"))
    }

    /// The route of the operation `op` on `subject` at `server`.
    #[must_use]
    pub fn server(&self, server: &ServerName, op: Op, subject: &Subject) -> Route {
        self.route(format_args!("server.{server}.{op}.{subject}"))
    }

    /// The pattern of all routes of `server`.
    #[must_use]
    pub fn server_all(&self, server: &ServerName) -> RoutePattern {
        self.pattern(format_args!("server.{server}.>"))
    }

    /// The operation and subject of a route of `server`.
    ///
    /// # Errors
    /// [`InvalidRoute`] if it is no route of `server`, names no operation, or does not end in a subject.
    pub fn parse_server(&self, server: &ServerName, route: &str) -> Result<ServerRoute, InvalidRoute> {
        let rest = self
            .strip(route, "server")?
            .strip_prefix(server.as_str())
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(InvalidRoute::Foreign)?;
        let (op, subject) = rest.split_once('.').ok_or(InvalidRoute::Foreign)?;
        let op = op.parse().map_err(|UnknownOp| InvalidRoute::UnknownOp(op.chars().take(80).collect()))?;
        Ok(ServerRoute { op, subject: Subject::new(subject)? })
    }

    /// The route on which the changes of `subject` are published.
    #[must_use]
    pub fn events(&self, subject: &Subject) -> Route {
        self.route(format_args!("events.{subject}"))
    }

    /// The subject of an events route.
    ///
    /// # Errors
    /// [`InvalidRoute`] if it is no events route, or does not end in a subject.
    pub fn parse_events(&self, route: &str) -> Result<Subject, InvalidRoute> {
        Ok(Subject::new(self.strip(route, "events")?)?)
    }

    /// The route on which a server joins.
    #[must_use]
    pub fn join(&self) -> Route {
        self.route(format_args!("fleet.join"))
    }

    /// The route on which a server renews its lease.
    #[must_use]
    pub fn heartbeat(&self) -> Route {
        self.route(format_args!("fleet.heartbeat"))
    }

    /// The route on which a server leaves.
    #[must_use]
    pub fn leave(&self) -> Route {
        self.route(format_args!("fleet.leave"))
    }

    /// The route on which a server asks for permission to claim `subject`.
    #[must_use]
    pub fn claim(&self, subject: &Subject) -> Route {
        self.route(format_args!("fleet.claim.{subject}"))
    }

    /// The route on which a server reports the release of `subject`.
    #[must_use]
    pub fn release(&self, subject: &Subject) -> Route {
        self.route(format_args!("fleet.release.{subject}"))
    }

    /// The route on which a server reads the limits of the tenants.
    #[must_use]
    pub fn limits(&self) -> Route {
        self.route(format_args!("fleet.limits"))
    }

    /// The pattern of all routes from servers to the coordinator.
    #[must_use]
    pub fn fleet_all(&self) -> RoutePattern {
        self.pattern(format_args!("fleet.>"))
    }

    /// Parses a fleet route.
    ///
    /// # Errors
    /// [`InvalidRoute`] if it is no fleet route.
    pub fn parse_fleet(&self, route: &str) -> Result<FleetRoute, InvalidRoute> {
        let rest = self.strip(route, "fleet")?;
        match rest.split_once('.') {
            None => match rest {
                "join" => Ok(FleetRoute::Join),
                "heartbeat" => Ok(FleetRoute::Heartbeat),
                "leave" => Ok(FleetRoute::Leave),
                "limits" => Ok(FleetRoute::Limits),
                other => Err(InvalidRoute::UnknownOp(other.chars().take(80).collect())),
            },
            Some(("claim", subject)) => Ok(FleetRoute::Claim(Subject::new(subject)?)),
            Some(("release", subject)) => Ok(FleetRoute::Release(Subject::new(subject)?)),
            Some((other, _)) => Err(InvalidRoute::UnknownOp(other.chars().take(80).collect())),
        }
    }

    /// The route on which operators list the servers.
    #[must_use]
    pub fn admin_servers(&self) -> Route {
        self.route(format_args!("admin.servers"))
    }

    /// The route on which operators list the assignments of subjects.
    #[must_use]
    pub fn admin_subjects(&self) -> Route {
        self.route(format_args!("admin.subjects"))
    }

    /// The route on which operators drain `server`.
    #[must_use]
    pub fn admin_drain(&self, server: &ServerName) -> Route {
        self.route(format_args!("admin.drain.{server}"))
    }

    /// The route on which operators end the drain of `server`.
    #[must_use]
    pub fn admin_undrain(&self, server: &ServerName) -> Route {
        self.route(format_args!("admin.undrain.{server}"))
    }

    /// The route on which operators move `subject`.
    #[must_use]
    pub fn admin_move(&self, subject: &Subject) -> Route {
        self.route(format_args!("admin.move.{subject}"))
    }

    /// The route on which operators balance the load of the servers.
    #[must_use]
    pub fn admin_rebalance(&self) -> Route {
        self.route(format_args!("admin.rebalance"))
    }

    /// The route on which operators ask for the progress of the moves.
    #[must_use]
    pub fn admin_moves(&self) -> Route {
        self.route(format_args!("admin.moves"))
    }

    /// The route on which operators list the tenants.
    #[must_use]
    pub fn admin_tenants(&self) -> Route {
        self.route(format_args!("admin.tenants"))
    }

    /// The route on which operators set limits of a tenant.
    #[must_use]
    pub fn admin_tenant_limit(&self) -> Route {
        self.route(format_args!("admin.tenant_limit"))
    }

    /// The pattern of all routes from operators to the coordinator.
    #[must_use]
    pub fn admin_all(&self) -> RoutePattern {
        self.pattern(format_args!("admin.>"))
    }

    /// Parses an admin route.
    ///
    /// # Errors
    /// [`InvalidRoute`] if it is no admin route.
    pub fn parse_admin(&self, route: &str) -> Result<AdminRoute, InvalidRoute> {
        let rest = self.strip(route, "admin")?;
        let unknown = |op: &str| InvalidRoute::UnknownOp(op.chars().take(80).collect());
        let server = |name: &str| ServerName::new(name).map_err(InvalidRoute::Server);
        match rest.split_once('.') {
            None => match rest {
                "servers" => Ok(AdminRoute::Servers),
                "subjects" => Ok(AdminRoute::Subjects),
                "rebalance" => Ok(AdminRoute::Rebalance),
                "moves" => Ok(AdminRoute::Moves),
                "tenants" => Ok(AdminRoute::Tenants),
                "tenant_limit" => Ok(AdminRoute::TenantLimit),
                other => Err(unknown(other)),
            },
            Some(("drain", name)) => Ok(AdminRoute::Drain(server(name)?)),
            Some(("undrain", name)) => Ok(AdminRoute::Undrain(server(name)?)),
            Some(("move", subject)) => Ok(AdminRoute::Move(Subject::new(subject)?)),
            Some((other, _)) => Err(unknown(other)),
        }
    }

    /// The route of handover orders to `server`.
    #[must_use]
    pub fn order(&self, server: &ServerName) -> Route {
        self.route(format_args!("coord.order.{server}"))
    }

    /// The route of presence checks between coordinators.
    #[must_use]
    pub fn presence(&self) -> Route {
        self.route(format_args!("coord.presence"))
    }

    /// The route on which the active coordinator announces itself.
    #[must_use]
    pub fn active(&self) -> Route {
        self.route(format_args!("coord.active"))
    }

    /// The route of health requests to all processes.
    #[must_use]
    pub fn health(&self) -> Route {
        self.route(format_args!("health"))
    }

    /// The route of health requests to one process: a server by its name, the coordinator as
    /// [`ServerName::COORDINATOR`].
    #[must_use]
    pub fn health_of(&self, name: &str) -> Route {
        self.route(format_args!("health.{name}"))
    }

    /// The route of requests for the metrics of one process; `name` as in [`Prefix::health_of`].
    #[must_use]
    pub fn metrics_of(&self, name: &str) -> Route {
        self.route(format_args!("metrics.{name}"))
    }
}

impl Default for Prefix {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl FromStr for Prefix {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subjects() -> impl Strategy<Value = Subject> {
        "[a-zA-Z0-9_$=-]{1,8}(\\.[a-zé0-9]{1,5}){0,3}".prop_map(|name| Subject::new(&name).unwrap())
    }

    proptest! {
        /// Each route parses back to the values that it was made of.
        #[test]
        fn routes_round_trip(subject in subjects(), op in proptest::sample::select(Op::ALL)) {
            let prefix = Prefix::new("my.fleet").unwrap();
            let server = ServerName::new("persist-1").unwrap();
            let route = prefix.server(&server, op, &subject);
            prop_assert_eq!(prefix.parse_server(&server, route.as_str()), Ok(ServerRoute { op, subject: subject.clone() }));
            prop_assert!(prefix.server_all(&server).matches(route.as_str()));
            prop_assert_eq!(prefix.parse_locate(prefix.locate(&subject).as_str()), Ok(subject.clone()));
            prop_assert_eq!(prefix.parse_events(prefix.events(&subject).as_str()), Ok(subject.clone()));
            prop_assert_eq!(prefix.parse_fleet(prefix.claim(&subject).as_str()), Ok(FleetRoute::Claim(subject.clone())));
            prop_assert_eq!(prefix.parse_fleet(prefix.release(&subject).as_str()), Ok(FleetRoute::Release(subject.clone())));
            prop_assert_eq!(prefix.parse_admin(prefix.admin_move(&subject).as_str()), Ok(AdminRoute::Move(subject)));
            let drained = Ok(AdminRoute::Drain(server.clone()));
            prop_assert_eq!(prefix.parse_admin(prefix.admin_drain(&server).as_str()), drained);
        }

        /// The route parsers and the pattern matcher never panic on arbitrary text.
        #[test]
        fn route_parser_never_panics_on_hostile_text(route in "\\PC{0,60}") {
            let server = ServerName::new("s").unwrap();
            let prefix = Prefix::default();
            let _ = prefix.parse_server(&server, &route);
            let _ = prefix.parse_server(&server, &format!("persist.server.s.{route}"));
            let _ = prefix.parse_fleet(&format!("persist.fleet.{route}"));
            let _ = prefix.parse_admin(&format!("persist.admin.{route}"));
            let _ = RoutePattern::new(route.as_str()).matches(&route);
        }
    }

    /// The parser rejects a foreign or invalid route with the reason, and invalid prefixes.
    #[test]
    fn route_foreign_or_invalid_is_rejected_with_reason() {
        let prefix = Prefix::default();
        let server = ServerName::new("s").unwrap();
        let parse = |route| prefix.parse_server(&server, route);
        assert_eq!(parse("persist.server.t.get.a"), Err(InvalidRoute::Foreign));
        assert_eq!(parse("persist.server.s.get"), Err(InvalidRoute::Foreign));
        assert_eq!(parse("persistent.server.s.get.a"), Err(InvalidRoute::Foreign));
        assert_eq!(parse("persist.server.s.frob.a"), Err(InvalidRoute::UnknownOp("frob".into())));
        assert_eq!(
            parse("persist.server.s.get.a.*"),
            Err(InvalidRoute::Subject(InvalidSubject::IllegalCharacter('*')))
        );
        assert_eq!(
            parse("persist.server.s.get.a..b"),
            Err(InvalidRoute::Subject(InvalidSubject::EmptyToken))
        );
        for bad in ["", "$JS", "_INBOX", "a.*", "a b", "a..b", &"p".repeat(65)] {
            assert!(Prefix::new(bad).is_err(), "{bad:?}");
        }
    }

    /// Route patterns match routes by the rules of NATS.
    #[test]
    fn patterns_match_as_in_nats() {
        for (pattern, route, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.b", "a.b", true),
            ("a.*.c", "a.b.c", true),
        ] {
            assert_eq!(RoutePattern::new(pattern).matches(route), expected, "{pattern} {route}");
        }
    }
}
