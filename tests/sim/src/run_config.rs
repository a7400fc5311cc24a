//! The random configuration of a run: the number of subjects, keys and clients, and the faults.

use std::time::Duration;

use dormouse_engine::LogSettings;
use dormouse_protocol::Level;
use dormouse_runtime::injected_bugs::InjectedBug;
use dormouse_testkit::bucket::FaultPlan;

use crate::network::NetworkFaults;
use crate::rng::SeededRng;

/// The assumptions of a run, and the expected result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// All assumptions of the guarantees hold: no violation is allowed.
    Standard,
    /// The same, clients sometimes destroy subjects, and the logs exceed their limit of bytes.
    Destroys,
    /// As `Standard`, but servers are often cut off from the others while they still reach the bucket. So their logs
    /// are sealed while they grow and are collected.
    Overtaken,
    /// An aggressor floods the fleet beside a polite tenant, and there are no faults: no polite call may fail, and no lease
    /// may lapse.
    Greedy,
    /// Two coordinators that do not know each other.
    TwoCoordinators,
    /// Clocks whose rates differ by more than leases allow.
    ClockDrift,
    /// Listings that omit new objects: the checker must find a violation.
    StaleList,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 7] = [
        Self::Standard,
        Self::Destroys,
        Self::Overtaken,
        Self::Greedy,
        Self::TwoCoordinators,
        Self::ClockDrift,
        Self::StaleList,
    ];

    /// Returns the profile that shows the bug, if only one does.
    #[must_use]
    pub const fn that_shows(bug: InjectedBug) -> Option<Self> {
        match bug {
            InjectedBug::DedupLostOnDestroy => Some(Self::Destroys),
            InjectedBug::NoListAfterSeal => Some(Self::Overtaken),
            _ => None,
        }
    }

    /// Returns the profile's name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Destroys => "destroys",
            Self::Overtaken => "overtaken",
            Self::Greedy => "greedy",
            Self::TwoCoordinators => "two-coordinators",
            Self::ClockDrift => "clock-drift",
            Self::StaleList => "stale-list",
        }
    }

    /// Returns the profile with this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == name)
    }

    /// Returns whether clocks and coordinator are as the guarantees assume.
    #[must_use]
    pub const fn assumptions_hold(self) -> bool {
        matches!(self, Self::Standard | Self::Destroys | Self::Overtaken | Self::Greedy | Self::StaleList)
    }
}

/// The faults and orders for the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAction {
    /// A server's process ends at some step; its disk is kept, torn, wiped or restored.
    CrashServer,
    /// A server's process is paused.
    PauseServer,
    /// A server gets a shutdown request, and is started again.
    StopServer,
    /// Messages between two hosts are lost, one way or both.
    Partition,
    /// A host loses its connection.
    Disconnect,
    /// A server does not reach the bucket.
    CutBucket,
    /// The coordinator crashes.
    CrashCoordinator,
    /// The coordinator crashes, and its disk is lost.
    WipeCoordinator,
    /// The coordinator loses unflushed data.
    LoseUnflushed,
    /// The coordinator is paused.
    PauseCoordinator,
    /// A machine's wall clock becomes wrong.
    JumpClock,
    /// A machine's disk is full for a while.
    FillDisk,
    /// A machine's disk fails to sync once.
    FailSync,
    /// A machine's disk is copied.
    BackUp,
    /// A client's process ends.
    CrashClient,
    /// An operator drains a server, and mostly cancels the drain later.
    Drain,
    /// An operator moves a subject.
    Move,
    /// An operator rebalances the load.
    Rebalance,
}

/// The weight of each action, if a run allows it.
const FAULTS: [(u64, FaultAction); 18] = [
    (24, FaultAction::CrashServer),
    (14, FaultAction::PauseServer),
    (6, FaultAction::StopServer),
    (12, FaultAction::Partition),
    (6, FaultAction::Disconnect),
    (8, FaultAction::CutBucket),
    (6, FaultAction::CrashCoordinator),
    (2, FaultAction::WipeCoordinator),
    (4, FaultAction::LoseUnflushed),
    (4, FaultAction::PauseCoordinator),
    (4, FaultAction::JumpClock),
    (4, FaultAction::FillDisk),
    (3, FaultAction::FailSync),
    (6, FaultAction::BackUp),
    (3, FaultAction::CrashClient),
    (6, FaultAction::Drain),
    (10, FaultAction::Move),
    (2, FaultAction::Rebalance),
];

/// The random configuration of a run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Its profile.
    pub profile: Profile,
    /// The length of the phase with clients and faults.
    pub length: Duration,
    /// The time to live of leases.
    pub lease_ttl: Duration,
    /// The number of subjects.
    pub subjects: u64,
    /// The number of keys per subject.
    pub keys: u64,
    /// The longest pause of a client between two calls, in milliseconds.
    pub pause_ms: u64,
    /// Whether clients configure subjects.
    pub configures: bool,
    /// Whether clients delete.
    pub deletes: bool,
    /// Whether clients destroy.
    pub destroys: bool,
    /// Whether some values are objects of their own.
    pub large_values: bool,
    /// The servers' default level.
    pub level: Level,
    /// The shipping settings of the servers.
    pub log: LogSettings,
    /// The time without requests after which a subject is closed.
    pub idle_close: Duration,
    /// The largest number of open subjects per server.
    pub max_open: usize,
    /// The faults of requests to the bucket.
    pub bucket: FaultPlan,
    /// The creates of manifests and seals that get a fault, out of a thousand.
    pub create_faults: u64,
    /// The critical steps that get a fault, out of a thousand.
    pub step_faults: u64,
    /// The faults of messages.
    pub network: NetworkFaults,
    /// The faults of events, if they differ.
    pub events: Option<NetworkFaults>,
    /// The actions, with their weights.
    pub faults: Vec<(u64, FaultAction)>,
    /// The mean time between two actions, in milliseconds.
    pub between_ms: u64,
}

impl RunConfig {
    /// Draws the configuration of `seed`.
    #[must_use]
    pub fn draw(seed: u64, profile: Profile) -> Self {
        let config = Self::draw_any(seed, profile);
        match profile {
            Profile::Overtaken => config.overtaken(),
            Profile::Greedy => config.greedy(),
            Profile::Destroys => config.with_small_log(),
            _ => config,
        }
    }

    fn overtaken(self) -> Self {
        let ms = Duration::from_millis;
        Self {
            lease_ttl: ms(500),
            // With more subjects, other servers would seal too while a paused server is about to.
            subjects: 1,
            pause_ms: 100,
            level: Level::Bucket,
            log: LogSettings { ship_interval: ms(100), ..self.log },
            // Then every change soon gets a base, and its slots are trimmed.
            idle_close: ms(500),
            max_open: 1,
            create_faults: 500,
            step_faults: 500,
            network: NetworkFaults::NONE,
            faults: vec![(1, FaultAction::Partition)],
            between_ms: 1_000,
            ..self
        }
    }

    /// Returns the configuration with a log of a few segments, so that subjects are compacted for their old slots.
    fn with_small_log(self) -> Self {
        Self { log: LogSettings { max_log_bytes: 4_096, ..self.log }, ..self }
    }

    fn greedy(self) -> Self {
        Self {
            // Every attack adds hundreds of calls to the history.
            length: Duration::from_secs(5),
            // A few hundred writes of the aggressor fill the log.
            log: LogSettings { max_unshipped_bytes: 256 * 1_024, ..self.log.clone() },
            // The aggressor uses more subjects than may be open.
            max_open: 100,
            faults: vec![(1, FaultAction::BackUp)],
            bucket: FaultPlan { latency: self.bucket.latency, ..FaultPlan::none() },
            ..self.without_faults()
        }
    }

    /// Returns the configuration without faults of processes, messages and the bucket.
    fn without_faults(self) -> Self {
        Self {
            bucket: FaultPlan { latency: Duration::from_millis(10), ..FaultPlan::none() },
            create_faults: 0,
            step_faults: 0,
            network: NetworkFaults::NONE,
            // Longer than any run.
            between_ms: 1_000_000_000,
            ..self
        }
    }

    fn draw_any(seed: u64, profile: Profile) -> Self {
        let rng = SeededRng::of(seed, "setting");
        let ms = Duration::from_millis;
        // Listings are only used in takeovers.
        let causes_takeover = |fault| {
            profile == Profile::StaleList
                && matches!(fault, FaultAction::CrashServer | FaultAction::PauseServer)
        };
        // Each run uses few kinds of faults: a fault that would be rare among all kinds is common among few.
        let mut faults: Vec<_> =
            FAULTS.into_iter().filter(|(_, fault)| rng.chance(550) || causes_takeover(*fault)).collect();
        if faults.is_empty() {
            faults.push((1, FaultAction::CrashServer));
        }
        let log = LogSettings {
            ship_interval: ms(*rng.pick(&[100, 500, 1_000])),
            max_unshipped_age: ms(*rng.pick(&[1_000, 3_000])),
            sync_interval: ms(*rng.pick(&[100, 1_000])),
            ..LogSettings::default()
        };
        Self {
            profile,
            length: ms(rng.within(8_000..20_000)),
            lease_ttl: ms(*rng.pick(&[500, 500, 1_000, 3_000])),
            subjects: rng.within(1..5),
            keys: rng.within(2..7),
            pause_ms: *rng.pick(&[250, 500, 1_000]),
            configures: rng.chance(600),
            deletes: rng.chance(700),
            destroys: profile == Profile::Destroys,
            large_values: rng.chance(200),
            level: rng.weighted(&[
                (70, Level::Bucket),
                (10, Level::Disk),
                (10, Level::Interval),
                (10, Level::Memory),
            ]),
            log,
            idle_close: ms(*rng.pick(&[500, 2_000, 60_000])),
            max_open: *rng.pick(&[1, 2, 100]),
            bucket: bucket(&rng, profile),
            create_faults: *rng.pick(&[0, 50, 200]),
            step_faults: *rng.pick(&[0, 10, 40, 100]),
            network: network_faults(&rng),
            events: None,
            faults,
            between_ms: *rng.pick(&[400, 1_000, 2_500]),
        }
    }
}

/// A configuration without faults, except that events are lost, repeated and delayed all the time.
#[must_use]
pub fn lossy_events(seed: u64) -> RunConfig {
    RunConfig {
        events: Some(NetworkFaults { lost: 300, twice: 200, late: 200, late_ms: 2_000 }),
        ..RunConfig::draw(seed, Profile::Standard).without_faults()
    }
}

fn bucket(rng: &SeededRng, profile: Profile) -> FaultPlan {
    // The fault rate, in calls out of a thousand.
    let each = *rng.pick(&[0, 0, 10, 40]);
    FaultPlan {
        request_lost: each,
        answer_lost: each,
        late: each,
        server_error: each,
        conflict: each,
        again: each * 2,
        orphaned: each * 8,
        storm: each / 10,
        stale_list: if profile == Profile::StaleList { 500 } else { 0 },
        latency: Duration::from_millis(*rng.pick(&[10, 50, 200])),
        timeout: Duration::from_millis(*rng.pick(&[300, 1_000])),
        late_by: Duration::from_millis(*rng.pick(&[500, 3_000, 10_000])),
        storm_length: Duration::from_secs(3),
        ..FaultPlan::none()
    }
}

fn network_faults(rng: &SeededRng) -> NetworkFaults {
    let each = *rng.pick(&[0, 0, 5, 20]);
    NetworkFaults { lost: each, twice: each, late: each * 2, late_ms: *rng.pick(&[50, 500, 3_000]) }
}
