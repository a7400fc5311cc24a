//! One sample per message and per variant that a decoder could misread: all fields, no fields, null versus empty.

use std::fmt::Debug;

use bytes::Bytes;
use dormouse_protocol::admin::*;
use dormouse_protocol::data::*;
use dormouse_protocol::fleet::*;
use dormouse_protocol::message::*;
use dormouse_protocol::tenant::*;
use dormouse_protocol::transfer::*;
use dormouse_protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Panics unless the bytes decode to the sample's value.
pub type Check = Box<dyn Fn(&[u8])>;

/// A value, its bytes, and a check that bytes decode to the value.
pub struct Sample {
    pub name: &'static str,
    pub type_name: &'static str,
    pub bytes: Bytes,
    pub check_decode: Check,
}

fn sample<T>(name: &'static str, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let type_name = std::any::type_name::<T>().rsplit("::").next().unwrap();
    Sample {
        name,
        type_name,
        bytes: encode(&value).unwrap(),
        check_decode: Box::new(move |bytes| assert_eq!(decode::<T>(bytes).unwrap(), value)),
    }
}

/// All samples by file.
pub fn samples() -> Vec<(&'static str, Vec<Sample>)> {
    vec![
        ("set", set()),
        ("read", read()),
        ("remove", remove()),
        ("transfer", transfer()),
        ("subject", subject()),
        ("events", events()),
        ("coordinator", coordinator()),
        ("fleet", fleet()),
        ("admin", admin()),
        ("errors", errors()),
    ]
}

fn id(term: u64, seq: u64) -> MessageId {
    MessageId { term: Term::new(term), seq: Seq::new(seq) }
}

fn position() -> Position {
    Position { term: Term::new(7), rev: Rev::new(41) }
}

fn subject_name() -> Subject {
    Subject::new("app.orders.eu").unwrap()
}

fn request_id() -> RequestId {
    RequestId { session: "01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap(), counter: 12 }
}

fn server() -> ServerName {
    "persist-1".parse().unwrap()
}

fn log() -> LogId {
    "persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWX".parse().unwrap()
}

fn incarnation() -> Incarnation {
    "01J9Z4ABCDEFGHJKMNPQRSTVWX".parse().unwrap()
}

fn message() -> Message {
    Message {
        seq: Seq::new(40),
        term: Term::new(7),
        rev: Rev::new(41),
        key: Some("colour".into()),
        value: Some(Bytes::from_static(b"blue")),
        headers: Headers(vec![("content-type".into(), "text/plain".into())]),
        timestamp: Timestamp::from_micros(1_790_000_000_000_000),
        size: 4,
        value_omitted: false,
        expires_at: Some(Timestamp::from_micros(1_790_000_060_000_000)),
    }
}

fn plain_message() -> Message {
    Message {
        seq: Seq::new(1),
        term: Term::new(1),
        rev: Rev::new(1),
        key: None,
        value: None,
        headers: Headers::default(),
        timestamp: Timestamp::from_micros(0),
        size: 0,
        value_omitted: false,
        expires_at: None,
    }
}

fn set() -> Vec<Sample> {
    let full = SetItem {
        seq: Some(Seq::new(40)),
        key: Some("colour".into()),
        value: Some(Bytes::from_static(b"blue")),
        uploaded: None,
        headers: Headers(vec![("a".into(), "1".into()), ("a".into(), "2".into())]),
        timestamp: Some(Timestamp::from_micros(1_790_000_000_000_000)),
        ttl_ms: Some(60_000),
        msg_id: Some("order-17".into()),
        expect: Some(Expect::Key(Some(id(7, 39)))),
    };
    let result = SetResult {
        seq: Seq::new(40),
        term: Term::new(7),
        rev: Rev::new(41),
        timestamp: Timestamp::from_micros(1_790_000_000_000_000),
        duplicate: false,
    };
    vec![
        sample(
            "append one value",
            SetRequest {
                sets: vec![SetItem { value: Some(Bytes::from_static(b"hello")), ..SetItem::default() }],
                ..SetRequest::default()
            },
        ),
        sample(
            "null value under the empty key",
            SetRequest {
                sets: vec![SetItem { key: Some(String::new()), ..SetItem::default() }],
                ..SetRequest::default()
            },
        ),
        sample(
            "empty value under the empty key",
            SetRequest {
                sets: vec![SetItem {
                    key: Some(String::new()),
                    value: Some(Bytes::new()),
                    ..SetItem::default()
                }],
                ..SetRequest::default()
            },
        ),
        sample(
            "every field",
            SetRequest {
                v: ProtocolVersion::CURRENT,
                request: Some(request_id()),
                atomic: true,
                level: Some(Level::Bucket),
                sets: vec![full],
            },
        ),
        sample(
            "the key must not exist",
            SetRequest {
                sets: vec![SetItem {
                    key: Some("k".into()),
                    value: Some(Bytes::from_static(b"v")),
                    expect: Some(Expect::Key(None)),
                    ..SetItem::default()
                }],
                ..SetRequest::default()
            },
        ),
        sample(
            "the subject's last message must be this one",
            SetRequest {
                sets: vec![SetItem { expect: Some(Expect::Last(Some(id(7, 39)))), ..SetItem::default() }],
                ..SetRequest::default()
            },
        ),
        sample(
            "one carried out, one repeated, one refused",
            SetReply {
                results: vec![
                    SetOutcome::Ok(result),
                    SetOutcome::Ok(SetResult { duplicate: true, ..result }),
                    SetOutcome::Error(ErrorReply::wrong_last(Some(id(7, 39)))),
                ],
            },
        ),
    ]
}

/// "123456789" has the check value of CRC-64/NVME.
fn uploaded() -> UploadedValue {
    UploadedValue { upload: upload_id(), size: 9, digest: ValueDigest::new(0xae8b_1486_0a79_9888) }
}

fn upload_id() -> UploadId {
    "01J9Z5ABCDEFGHJKMNPQRSTVWX".parse().unwrap()
}

fn transfer() -> Vec<Sample> {
    let v = ProtocolVersion::CURRENT;
    let UploadedValue { upload, size, digest } = uploaded();
    vec![
        sample(
            "begin an upload of known size",
            UploadBeginRequest { v, upload, size: Some(size), place: None },
        ),
        sample(
            "begin an upload, or ask how far it is",
            UploadBeginRequest { v, upload, size: None, place: None },
        ),
        sample("begin an upload for a key", {
            let place = UploadPlace { key: Some("film".into()), seq: None };
            UploadBeginRequest { v, upload, size: Some(size), place: Some(place) }
        }),
        sample("begin an upload for a new message without a key", {
            UploadBeginRequest { v, upload, size: None, place: Some(UploadPlace::default()) }
        }),
        sample(
            "the second piece",
            UploadChunkRequest { v, upload, offset: 5, bytes: Bytes::from_static(b"6789") },
        ),
        sample("all was sent", UploadFinishRequest { v, upload, size, digest }),
        sample("forget it", UploadCancelRequest { v, upload }),
        sample("how far it is", UploadReply { received: 5, stored: false }),
        sample("it is in the bucket", UploadReply { received: 9, stored: true }),
        sample(
            "commit",
            SetRequest {
                request: Some(request_id()),
                sets: vec![SetItem {
                    key: Some("film".into()),
                    uploaded: Some(uploaded()),
                    expect: Some(Expect::Key(None)),
                    ..SetItem::default()
                }],
                ..SetRequest::default()
            },
        ),
        sample(
            "a piece of the value",
            GetChunkRequest { v, seq: Seq::new(40), rev: Rev::new(41), offset: 5, length: 4 },
        ),
        sample("the piece", GetChunkReply { size, digest, bytes: Bytes::from_static(b"6789") }),
    ]
}

fn read() -> Vec<Sample> {
    vec![
        sample("get by seq", GetRequest::seq(Seq::new(40))),
        sample("get by key", GetRequest::key("colour")),
        sample(
            "get several keys",
            GetRequest { keys: Some(vec!["a".into(), String::new()]), ..GetRequest::default() },
        ),
        sample(
            "get several seqs",
            GetRequest { seqs: Some(vec![Seq::new(40), Seq::new(7)]), ..GetRequest::default() },
        ),
        sample(
            "one message with everything",
            GetReply { position: position(), messages: vec![message()], answered: 1 },
        ),
        sample("no such message", GetReply { position: position(), messages: vec![], answered: 1 }),
        sample(
            "a message without key, value and headers",
            GetReply { position: position(), messages: vec![plain_message()], answered: 1 },
        ),
        sample(
            "a value too large to be sent along",
            GetReply {
                position: position(),
                messages: vec![Message {
                    value: None,
                    size: 5_000_000_000,
                    value_omitted: true,
                    ..plain_message()
                }],
                answered: 1,
            },
        ),
        sample("get_all from the start", GetAllRequest::default()),
        sample(
            "get_all with every field",
            GetAllRequest {
                v: ProtocolVersion::CURRENT,
                start_seq: Some(Seq::new(1)),
                end_seq: Some(Seq::new(limits::MAX_SEQ)),
                key_prefix: Some("a/".into()),
                reverse: true,
                limit: Some(100),
            },
        ),
        sample(
            "a page with more to come",
            GetAllReply { position: position(), messages: vec![message()], cursor: Some(Seq::new(42)) },
        ),
        sample("the last page", GetAllReply { position: position(), messages: vec![], cursor: None }),
        sample(
            "keys of a prefix after a key",
            KeysRequest {
                v: ProtocolVersion::CURRENT,
                prefix: Some("a/".into()),
                cursor: Some("a/b".into()),
                limit: Some(10),
            },
        ),
        sample(
            "a page of keys",
            KeysReply { position: position(), keys: vec!["a/c".into()], cursor: Some("a/c".into()) },
        ),
        sample(
            "changes since a position",
            ChangesRequest { v: ProtocolVersion::CURRENT, after: position(), limit: None },
        ),
        sample(
            "changes must be read anew",
            ChangesReply {
                position: position(),
                term_base: Rev::new(30),
                resync: true,
                changes: vec![],
                more: false,
            },
        ),
        sample(
            "changes with more to come",
            ChangesReply {
                position: position(),
                term_base: Rev::new(30),
                resync: false,
                changes: vec![Change::Set(SetChange { message: message(), replaces: None })],
                more: true,
            },
        ),
    ]
}

fn remove() -> Vec<Sample> {
    vec![
        sample(
            "delete by seq and key",
            DeleteRequest {
                v: ProtocolVersion::CURRENT,
                request: Some(request_id()),
                level: Some(Level::Disk),
                seqs: vec![Seq::new(3), Seq::new(5)],
                keys: vec!["colour".into()],
                expect: Some(Expect::Last(None)),
            },
        ),
        sample(
            "what was removed",
            DeleteReply { position: position(), seqs: vec![Seq::new(3)], duplicate: false },
        ),
        sample("delete everything", DeleteAllRequest::default()),
        sample(
            "delete up to a seq",
            DeleteAllRequest { end_seq: Some(Seq::new(30)), ..DeleteAllRequest::default() },
        ),
        sample("keep the newest", DeleteAllRequest { keep_last: Some(10), ..DeleteAllRequest::default() }),
        sample(
            "how much was removed",
            DeleteAllReply { position: position(), count: 12_345, duplicate: false },
        ),
    ]
}

fn config() -> SubjectConfig {
    SubjectConfig {
        level: Some(Level::Bucket),
        max_msgs: Some(1_000),
        max_bytes: Some(1_000_000),
        max_age_ms: Some(86_400_000),
        max_msg_size: Some(65_536),
        discard: Some(Discard::New),
        default_ttl_ms: Some(3_600_000),
        metadata: [("owner".to_owned(), "team-a".to_owned())].into(),
    }
}

fn subject() -> Vec<Sample> {
    vec![
        sample("info", InfoRequest::default()),
        sample(
            "what there is to know",
            InfoReply {
                position: position(),
                term_base: Rev::new(30),
                first_seq: Some(Seq::new(3)),
                last_seq: Some(Seq::new(40)),
                next_seq: Seq::new(41),
                count: 20,
                bytes: 4_096,
                config: SubjectConfig::default(),
                level: Level::Memory,
                server: server(),
                log: log(),
                bucket_rev: Rev::new(39),
                details: InfoDetails {
                    accept_time: Timestamp::from_micros(1_760_000_000_000_000),
                    oldest_timestamp: Some(Timestamp::from_micros(1_750_000_000_000_000)),
                    newest_timestamp: Some(Timestamp::from_micros(1_760_000_000_000_000)),
                    expiring: 2,
                    next_expiry: Some(Timestamp::from_micros(1_760_000_060_000_000)),
                    large_values: 1,
                    large_value_bytes: 1_000_000,
                    sessions: 4,
                    base_rev: Rev::new(35),
                    tail_bytes: 700,
                    local_bytes: 65_536,
                    open_since: Timestamp::from_micros(1_759_999_000_000_000),
                },
            },
        ),
        sample(
            "configure with every field",
            ConfigureRequest { v: ProtocolVersion::CURRENT, request: Some(request_id()), config: config() },
        ),
        sample("configure back to the defaults", ConfigureRequest::default()),
        sample("configured", ConfigureReply { position: position(), duplicate: false }),
        sample("flush", FlushRequest::default()),
        sample("flushed", FlushReply { position: position() }),
        sample("destroy", DestroyRequest { v: ProtocolVersion::CURRENT, request: Some(request_id()) }),
        sample("destroyed", DestroyReply { position: position(), duplicate: false }),
    ]
}

fn events() -> Vec<Sample> {
    let event = |changes| Event {
        v: ProtocolVersion::CURRENT,
        term: Term::new(7),
        term_base: Rev::new(30),
        rev: Rev::new(41),
        changes,
    };
    vec![
        sample("beacon", event(vec![])),
        sample(
            "a key was set and its earlier message is gone",
            event(vec![Change::Set(SetChange { message: message(), replaces: Some(Seq::new(39)) })]),
        ),
        sample(
            "messages were deleted",
            event(vec![Change::Delete(DeleteChange {
                rev: Rev::new(41),
                removed: vec![
                    Removed { seq: Seq::new(3), key: None },
                    Removed { seq: Seq::new(5), key: Some("colour".into()) },
                ],
            })]),
        ),
        sample(
            "everything up to a seq was deleted",
            event(vec![Change::DeleteAll(DeleteAllChange {
                rev: Rev::new(41),
                end_seq: Seq::new(30),
                count: 28,
            })]),
        ),
        sample(
            "the configuration was replaced",
            event(vec![Change::Configure(ConfigureChange { rev: Rev::new(41), config: config() })]),
        ),
    ]
}

fn coordinator() -> Vec<Sample> {
    vec![
        sample("locate", LocateRequest::default()),
        sample("located", LocateReply { server: server() }),
        sample("a server is gone", GoneAnnouncement { v: ProtocolVersion::CURRENT, log: log() }),
        sample("list the servers", ServersRequest::default()),
        sample(
            "the servers",
            ServersReply {
                incarnation: incarnation(),
                servers: vec![ServerEntry {
                    name: server(),
                    log: log(),
                    state: ServerState::Alive,
                    heard_ms_ago: Some(210),
                    capacity: 100,
                    assigned_subjects: 12,
                    load: ServerLoad { open_subjects: 3, requests: 4_711, local_bytes: 65_536 },
                    version: "0.1.0".into(),
                }],
            },
        ),
    ]
}

fn fleet() -> Vec<Sample> {
    vec![
        sample(
            "join after a restart",
            JoinRequest {
                v: ProtocolVersion::CURRENT,
                log: log(),
                predecessor: Some("persist-1-01J9Z3ABCDEFGHJKMNPQRSTVWW".parse().unwrap()),
                capacity: 100,
                version: "0.1.0".into(),
            },
        ),
        sample(
            "a lease",
            LeaseReply {
                incarnation: incarnation(),
                ttl_ms: 3_000,
                draining: false,
                limits: LimitsRevision::NONE,
            },
        ),
        sample(
            "a lease while tenants have limits",
            LeaseReply {
                incarnation: incarnation(),
                ttl_ms: 3_000,
                draining: false,
                limits: limits_revision(),
            },
        ),
        sample(
            "a lease of a server that is to be emptied",
            LeaseReply {
                incarnation: incarnation(),
                ttl_ms: 3_000,
                draining: true,
                limits: LimitsRevision::NONE,
            },
        ),
        sample(
            "heartbeat",
            HeartbeatRequest {
                v: ProtocolVersion::CURRENT,
                log: log(),
                load: ServerLoad { open_subjects: 3, requests: 4_711, local_bytes: 65_536 },
                draining: true,
                busiest: Vec::new(),
                tenants: Vec::new(),
            },
        ),
        sample(
            "heartbeat of a busy server",
            HeartbeatRequest {
                v: ProtocolVersion::CURRENT,
                log: log(),
                load: ServerLoad { open_subjects: 3, requests: 4_711, local_bytes: 65_536 },
                draining: false,
                busiest: vec![BusySubject {
                    subject: subject_name(),
                    requests_per_second: 90,
                    bytes: 12_288,
                }],
                tenants: Vec::new(),
            },
        ),
        sample(
            "heartbeat of a server with busy tenants",
            HeartbeatRequest {
                v: ProtocolVersion::CURRENT,
                log: log(),
                load: ServerLoad::default(),
                draining: false,
                busiest: Vec::new(),
                tenants: vec![BusyTenant { tenant: tenant(), in_use: tenant_use() }],
            },
        ),
        sample("limits from the first tenant on", LimitsRequest::default()),
        sample(
            "limits of later tenants",
            LimitsRequest { after: Some(tenant()), ..LimitsRequest::default() },
        ),
        sample(
            "a page of limits",
            LimitsReply {
                revision: limits_revision(),
                limits: vec![LimitedTenant { tenant: tenant(), limits: tenant_limits() }],
                cursor: Some(tenant()),
            },
        ),
        sample(
            "may I claim what another process owned",
            ClaimRequest {
                v: ProtocolVersion::CURRENT,
                claimant: log(),
                owner: Some("persist-2-01J9Z3ABCDEFGHJKMNPQRSTVWW".parse().unwrap()),
            },
        ),
        sample("go ahead", ClaimReply { incarnation: incarnation() }),
        sample("release", ReleaseRequest { v: ProtocolVersion::CURRENT, log: log() }),
        sample("leave", LeaveRequest { v: ProtocolVersion::CURRENT, log: log() }),
        sample("noted", Acknowledged::default()),
    ]
}

fn tenant() -> TenantName {
    TenantName::new("user.alice").unwrap()
}

fn tenant_limits() -> TenantLimits {
    TenantLimits {
        requests: Some(1_000),
        bytes: Some(16 << 20),
        open_subjects: Some(500),
        creations_per_minute: Some(60),
        messages_per_second: Some(10_000),
        stored_bytes: Some(1 << 30),
        unshipped_bytes: Some(8 << 20),
        uploads: Some(0),
    }
}

fn limits_revision() -> LimitsRevision {
    LimitsRevision::of([(&tenant(), &tenant_limits())])
}

fn tenant_use() -> TenantUse {
    TenantUse { requests: 7, bytes: 4_096, open_subjects: 3, requests_per_second: 90, ..TenantUse::default() }
}

fn admin() -> Vec<Sample> {
    let other = ServerName::new("persist-2").unwrap();
    let entry = ServerEntry {
        name: server(),
        log: log(),
        state: ServerState::Drained,
        heard_ms_ago: Some(210),
        capacity: 100,
        assigned_subjects: 0,
        load: ServerLoad::default(),
        version: "0.1.0".into(),
    };
    vec![
        sample("drain", DrainRequest::default()),
        sample("drained", DrainReply { server: entry }),
        sample("every subject", SubjectsRequest::default()),
        sample(
            "the next page of a server's subjects",
            SubjectsRequest {
                pattern: "app.>".into(),
                server: Some(server()),
                after: Some(subject_name()),
                limit: 100,
                ..SubjectsRequest::default()
            },
        ),
        sample(
            "assignments",
            SubjectsReply {
                subjects: vec![Assigned { subject: subject_name(), server: server() }],
                cursor: Some(subject_name()),
            },
        ),
        sample("move", MoveRequest { v: ProtocolVersion::CURRENT, to: other.clone() }),
        sample("moving", MoveReply { from: Some(server()), to: other.clone(), done: false }),
        sample("rebalance", RebalanceRequest::default()),
        sample(
            "a plan",
            RebalanceReply {
                moves: vec![PlannedMove {
                    subject: subject_name(),
                    from: server(),
                    to: other,
                    requests_per_second: 90,
                    bytes: 12_288,
                }],
                servers: vec![ServerBalance {
                    name: server(),
                    capacity: 100,
                    assigned_subjects: 12,
                    assigned_subjects_after: 11,
                    requests_per_second: 100,
                    requests_per_second_after: 10,
                }],
            },
        ),
        sample("moves", MovesRequest::default()),
        sample("moves under way", MovesReply { pending: 7, done: 93, given_up: 0 }),
        sample("tenants from the first on", TenantsRequest::default()),
        sample("later tenants", TenantsRequest { after: Some(tenant()), ..TenantsRequest::default() }),
        sample(
            "tenants",
            TenantsReply {
                tenants: vec![
                    TenantEntry {
                        tenant: TenantName::shared(),
                        limits: TenantLimits::NONE,
                        in_use: TenantUse { refused: 4, ..TenantUse::default() },
                        servers: 1,
                    },
                    TenantEntry {
                        tenant: tenant(),
                        limits: tenant_limits(),
                        in_use: tenant_use(),
                        servers: 2,
                    },
                ],
                cursor: Some(tenant()),
            },
        ),
        sample(
            "one limit of a tenant",
            TenantLimitRequest {
                v: ProtocolVersion::CURRENT,
                tenant: tenant(),
                clear: false,
                limits: TenantLimits { requests: Some(1_000), ..TenantLimits::NONE },
            },
        ),
        sample(
            "no limits any more",
            TenantLimitRequest {
                v: ProtocolVersion::CURRENT,
                tenant: tenant(),
                clear: true,
                limits: TenantLimits::NONE,
            },
        ),
        sample("limits of a tenant", TenantLimitReply { limits: tenant_limits() }),
        sample(
            "hand over",
            HandOverOrder { v: ProtocolVersion::CURRENT, log: log(), subject: subject_name() },
        ),
        sample(
            "does anybody coordinate?",
            PresenceRequest { v: ProtocolVersion::CURRENT, incarnation: incarnation() },
        ),
        sample("somebody does", PresenceReply { incarnation: incarnation() }),
        sample(
            "this run does",
            ActiveAnnouncement { v: ProtocolVersion::CURRENT, incarnation: incarnation() },
        ),
    ]
}

fn errors() -> Vec<Sample> {
    vec![
        sample("bad_request", ErrorReply::bad_request("no sets")),
        sample("unsupported_version", ErrorReply::unsupported_version(ProtocolVersion::new(2))),
        sample("unsupported", ErrorReply::unsupported("atomic batches")),
        sample("permission_denied", ErrorReply::new(ErrorCode::PermissionDenied, "not yours")),
        sample("too_large", ErrorReply::too_large("key bytes", 2_000, 1_024)),
        sample(
            "limit_exceeded",
            ErrorReply {
                limit: Some("max_msgs".into()),
                ..ErrorReply::new(ErrorCode::LimitExceeded, "full")
            },
        ),
        sample("wrong_last", ErrorReply::wrong_last(Some(id(7, 39)))),
        sample("wrong_last, nothing there", ErrorReply::wrong_last(None)),
        sample("key_exists", ErrorReply::key_exists(id(7, 39))),
        sample("name_in_use", ErrorReply::name_in_use(log())),
        sample("unknown_server", ErrorReply::unknown_server(&log())),
        sample("not_owner, owner known", ErrorReply::not_owner(Some(server()))),
        sample("not_owner, owner unknown", ErrorReply::not_owner(None)),
        sample("unavailable", ErrorReply::unavailable("no live server")),
        sample("overloaded", ErrorReply::overloaded("queue full", 50)),
        sample(
            "indeterminate",
            ErrorReply::new(ErrorCode::Indeterminate, "write failed or may execute later"),
        ),
        sample("forgotten", ErrorReply::forgotten()),
        sample("corrupt", ErrorReply::corrupt("subjects/a/000000000001.manifest", "wrong checksum")),
        sample("internal", ErrorReply::internal("a defect")),
    ]
}
