//! Routes: the NATS addresses on which our messages travel, built and parsed in this one place.
//!
//! The subject is always the end of the route, never only in the payload, so that NATS permissions decide who may do
//! what with which subject.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ids::{InvalidName, ServerName};
use crate::limits::MAX_PREFIX_BYTES;
use crate::subject::{InvalidSubject, Subject};

/// An address a message can be sent to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route(Arc<str>);

/// What can be subscribed to: a route in which `*` stands for any one token and a final `>` for one or more.
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
    /// Takes a text for a route: one that a transport delivered, or one outside our own prefix such as a reply
    /// address. Not checked; the transport refuses what it cannot carry.
    #[must_use]
    pub fn new(route: impl Into<Arc<str>>) -> Self {
        Self(route.into())
    }
}

impl RoutePattern {
    /// Takes a text for a pattern. Not checked; the transport refuses what it cannot carry.
    #[must_use]
    pub fn new(pattern: impl Into<Arc<str>>) -> Self {
        Self(pattern.into())
    }

    /// Whether `route` is one of the routes that this pattern stands for, by the rules of NATS.
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

/// A route is a pattern that stands for itself alone.
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
            /// Every operation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The operation's token in a route.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether it can change a subject, or is a step on the way to that: for writers only. All others may be
            /// repeated freely.
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
    /// Read what has changed since a position.
    Changes = "changes", false;
    /// Read what there is to know about a subject.
    Info = "info", false;
    /// Replace a subject's configuration.
    Configure = "configure", true;
    /// Put everything so far in the bucket.
    Flush = "flush", false;
    /// Remove a subject for good.
    Destroy = "destroy", true;
    /// Begin to bring a large value, or ask how far it is.
    UploadBegin = "upload_begin", true;
    /// Bring a piece of a large value.
    UploadChunk = "upload_chunk", true;
    /// Have a large value that was brought whole put in the bucket.
    UploadFinish = "upload_finish", true;
    /// Write messages whose values were brought before.
    UploadCommit = "upload_commit", true;
    /// Forget a large value that was brought.
    UploadCancel = "upload_cancel", true;
    /// Read a piece of a large value.
    GetChunk = "get_chunk", false;
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

/// A route that is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// It does not start as it should, or ends too early.
    #[error("not a route of this kind")]
    Foreign,
    /// Its operation is unknown.
    #[error("unknown operation {0:?}")]
    UnknownOp(String),
    /// Its end is not a subject.
    #[error("{0}")]
    Subject(#[from] InvalidSubject),
    /// It names no server.
    #[error("{0}")]
    Server(InvalidName),
}

/// What a server must do for a message on one of its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRoute {
    /// The operation.
    pub op: Op,
    /// On this subject.
    pub subject: Subject,
}

/// What the coordinator must do for a message on `<prefix>.fleet.>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetRoute {
    /// A process wants to be a member.
    Join,
    /// A member is alive.
    Heartbeat,
    /// May a member claim this subject?
    Claim(Subject),
    /// A member has handed this subject back.
    Release(Subject),
    /// A member goes.
    Leave,
}

/// What the coordinator must do for a message on `<prefix>.admin.>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRoute {
    /// Which servers are there?
    Servers,
    /// Which subjects are assigned to whom?
    Subjects,
    /// Empty this server.
    Drain(ServerName),
    /// Let this server take subjects again.
    Undrain(ServerName),
    /// Have this subject served by another server.
    Move(Subject),
    /// Even out what servers have to do.
    Rebalance,
    /// Which moves are under way?
    Moves,
}

/// The first tokens of every route of a fleet, `persist` unless configured otherwise. Fleets with different prefixes
/// can share a NATS system.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// The prefix unless configured otherwise.
    pub const DEFAULT: &'static str = "persist";

    /// Checks `prefix`: what would be a subject, of at most [`MAX_PREFIX_BYTES`] bytes, not starting with `$` or `_`
    /// (NATS keeps those for itself).
    ///
    /// # Errors
    /// [`InvalidName`] when it breaks a rule.
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

    /// Where to ask which server serves `subject`.
    #[must_use]
    pub fn locate(&self, subject: &Subject) -> Route {
        self.route(format_args!("coord.locate.{subject}"))
    }

    /// Every locate route.
    #[must_use]
    pub fn locate_all(&self) -> RoutePattern {
        self.pattern(format_args!("coord.locate.>"))
    }

    /// The subject of a locate route.
    ///
    /// # Errors
    /// [`InvalidRoute`] when it is not one, or does not end in a subject.
    pub fn parse_locate(&self, route: &str) -> Result<Subject, InvalidRoute> {
        Ok(Subject::new(self.strip(route, "coord.locate")?)?)
    }

    /// Where the coordinator announces servers that are gone.
    #[must_use]
    pub fn gone(&self) -> Route {
        self.route(format_args!("coord.gone"))
    }

    /// Where `server` is asked for `op` on `subject`.
    #[must_use]
    pub fn server(&self, server: &ServerName, op: Op, subject: &Subject) -> Route {
        self.route(format_args!("server.{server}.{op}.{subject}"))
    }

    /// Every route of `server`.
    #[must_use]
    pub fn server_all(&self, server: &ServerName) -> RoutePattern {
        self.pattern(format_args!("server.{server}.>"))
    }

    /// The operation and subject of a route of `server`.
    ///
    /// # Errors
    /// [`InvalidRoute`] when it is not one, names no operation, or does not end in a subject.
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

    /// Where the changes of `subject` are published.
    #[must_use]
    pub fn events(&self, subject: &Subject) -> Route {
        self.route(format_args!("events.{subject}"))
    }

    /// The subject of an events route.
    ///
    /// # Errors
    /// [`InvalidRoute`] when it is not one, or does not end in a subject.
    pub fn parse_events(&self, route: &str) -> Result<Subject, InvalidRoute> {
        Ok(Subject::new(self.strip(route, "events")?)?)
    }

    /// Where a server joins.
    #[must_use]
    pub fn join(&self) -> Route {
        self.route(format_args!("fleet.join"))
    }

    /// Where a server renews its lease.
    #[must_use]
    pub fn heartbeat(&self) -> Route {
        self.route(format_args!("fleet.heartbeat"))
    }

    /// Where a server says that it goes.
    #[must_use]
    pub fn leave(&self) -> Route {
        self.route(format_args!("fleet.leave"))
    }

    /// Where a server asks whether it may claim `subject`.
    #[must_use]
    pub fn claim(&self, subject: &Subject) -> Route {
        self.route(format_args!("fleet.claim.{subject}"))
    }

    /// Where a server says that it has handed back `subject`.
    #[must_use]
    pub fn release(&self, subject: &Subject) -> Route {
        self.route(format_args!("fleet.release.{subject}"))
    }

    /// Every route between servers and the coordinator.
    #[must_use]
    pub fn fleet_all(&self) -> RoutePattern {
        self.pattern(format_args!("fleet.>"))
    }

    /// What a fleet route asks of the coordinator.
    ///
    /// # Errors
    /// [`InvalidRoute`] when it is none of ours.
    pub fn parse_fleet(&self, route: &str) -> Result<FleetRoute, InvalidRoute> {
        let rest = self.strip(route, "fleet")?;
        match rest.split_once('.') {
            None => match rest {
                "join" => Ok(FleetRoute::Join),
                "heartbeat" => Ok(FleetRoute::Heartbeat),
                "leave" => Ok(FleetRoute::Leave),
                other => Err(InvalidRoute::UnknownOp(other.chars().take(80).collect())),
            },
            Some(("claim", subject)) => Ok(FleetRoute::Claim(Subject::new(subject)?)),
            Some(("release", subject)) => Ok(FleetRoute::Release(Subject::new(subject)?)),
            Some((other, _)) => Err(InvalidRoute::UnknownOp(other.chars().take(80).collect())),
        }
    }

    /// Where operators ask for the list of servers.
    #[must_use]
    pub fn admin_servers(&self) -> Route {
        self.route(format_args!("admin.servers"))
    }

    /// Where operators ask which subjects are assigned to whom.
    #[must_use]
    pub fn admin_subjects(&self) -> Route {
        self.route(format_args!("admin.subjects"))
    }

    /// Where operators have `server` emptied.
    #[must_use]
    pub fn admin_drain(&self, server: &ServerName) -> Route {
        self.route(format_args!("admin.drain.{server}"))
    }

    /// Where operators let `server` take subjects again.
    #[must_use]
    pub fn admin_undrain(&self, server: &ServerName) -> Route {
        self.route(format_args!("admin.undrain.{server}"))
    }

    /// Where operators have `subject` moved.
    #[must_use]
    pub fn admin_move(&self, subject: &Subject) -> Route {
        self.route(format_args!("admin.move.{subject}"))
    }

    /// Where operators have the servers' work evened out.
    #[must_use]
    pub fn admin_rebalance(&self) -> Route {
        self.route(format_args!("admin.rebalance"))
    }

    /// Where operators ask for the moves that are under way.
    #[must_use]
    pub fn admin_moves(&self) -> Route {
        self.route(format_args!("admin.moves"))
    }

    /// Every route of operators to the coordinator.
    #[must_use]
    pub fn admin_all(&self) -> RoutePattern {
        self.pattern(format_args!("admin.>"))
    }

    /// What a route of operators asks of the coordinator.
    ///
    /// # Errors
    /// [`InvalidRoute`] when it is none of ours.
    pub fn parse_admin(&self, route: &str) -> Result<AdminRoute, InvalidRoute> {
        let rest = self.strip(route, "admin")?;
        let unknown = |word: &str| InvalidRoute::UnknownOp(word.chars().take(80).collect());
        let server = |name: &str| ServerName::new(name).map_err(InvalidRoute::Server);
        match rest.split_once('.') {
            None => match rest {
                "servers" => Ok(AdminRoute::Servers),
                "subjects" => Ok(AdminRoute::Subjects),
                "rebalance" => Ok(AdminRoute::Rebalance),
                "moves" => Ok(AdminRoute::Moves),
                other => Err(unknown(other)),
            },
            Some(("drain", name)) => Ok(AdminRoute::Drain(server(name)?)),
            Some(("undrain", name)) => Ok(AdminRoute::Undrain(server(name)?)),
            Some(("move", subject)) => Ok(AdminRoute::Move(Subject::new(subject)?)),
            Some((other, _)) => Err(unknown(other)),
        }
    }

    /// Where the coordinator tells `server` what to hand over.
    #[must_use]
    pub fn order(&self, server: &ServerName) -> Route {
        self.route(format_args!("coord.order.{server}"))
    }

    /// Where a coordinator asks whether another one coordinates.
    #[must_use]
    pub fn presence(&self) -> Route {
        self.route(format_args!("coord.presence"))
    }

    /// Where a coordinator says that it coordinates.
    #[must_use]
    pub fn active(&self) -> Route {
        self.route(format_args!("coord.active"))
    }

    /// Where everybody is asked for health.
    #[must_use]
    pub fn health(&self) -> Route {
        self.route(format_args!("health"))
    }

    /// Where one process is asked for health: a server by its name, the coordinator as
    /// [`ServerName::COORDINATOR`].
    #[must_use]
    pub fn health_of(&self, name: &str) -> Route {
        self.route(format_args!("health.{name}"))
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

        #[test]
        fn hostile_routes_never_panic(route in "\\PC{0,60}") {
            let server = ServerName::new("s").unwrap();
            let prefix = Prefix::default();
            let _ = prefix.parse_server(&server, &route);
            let _ = prefix.parse_server(&server, &format!("persist.server.s.{route}"));
            let _ = prefix.parse_fleet(&format!("persist.fleet.{route}"));
            let _ = prefix.parse_admin(&format!("persist.admin.{route}"));
            let _ = RoutePattern::new(route.as_str()).matches(&route);
        }
    }

    #[test]
    fn what_is_not_ours_is_refused_with_the_reason() {
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
