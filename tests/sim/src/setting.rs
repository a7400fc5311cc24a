//! What is drawn for a whole run: how many of what, how often what goes wrong.

use std::time::Duration;

use dormouse_protocol::Level;
use dormouse_storage::LogSettings;
use dormouse_storage::bucket::faults::FaultPlan;

use crate::dice::Dice;
use crate::network::Weather;

/// What a run assumes, and what is expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Profile {
    /// Everything that the guarantees assume holds: no violation is allowed.
    Standard,
    /// The same, and clients destroy subjects now and then.
    Destroys,
    /// The same as the first, and servers are often cut off from the others while they go on with the bucket, so that their
    /// logs are sealed while they grow and are collected.
    Overtaken,
    /// Two coordinators that know nothing of each other.
    TwoCoordinators,
    /// Clocks whose rates differ by more than leases allow for.
    ClockDrift,
    /// Listings that do not show what was written: the checker must find something.
    StaleList,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Standard,
        Self::Destroys,
        Self::Overtaken,
        Self::TwoCoordinators,
        Self::ClockDrift,
        Self::StaleList,
    ];

    /// The profile's name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Destroys => "destroys",
            Self::Overtaken => "overtaken",
            Self::TwoCoordinators => "two-coordinators",
            Self::ClockDrift => "clock-drift",
            Self::StaleList => "stale-list",
        }
    }

    /// The profile of that name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.as_str() == name)
    }

    /// Whether clocks and coordinator are as the guarantees assume.
    #[must_use]
    pub const fn assumptions_hold(self) -> bool {
        matches!(self, Self::Standard | Self::Destroys | Self::Overtaken | Self::StaleList)
    }
}

/// What may be done to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// A server's process dies at some step; its disk is kept, torn, wiped or restored.
    CrashServer,
    /// A server's process stands still.
    PauseServer,
    /// A server is asked to end, and started again.
    StopServer,
    /// Messages between two hosts get lost, one way or both.
    Partition,
    /// A host loses its connection.
    Disconnect,
    /// A server does not reach the bucket.
    CutBucket,
    /// The coordinator dies.
    CrashCoordinator,
    /// The coordinator dies with its disk.
    WipeCoordinator,
    /// The coordinator loses what it had not flushed.
    ForgetCoordinator,
    /// The coordinator stands still.
    PauseCoordinator,
    /// A machine's wall clock is set wrong.
    JumpClock,
    /// A machine's disk is full for a while.
    FillDisk,
    /// A machine's disk fails to sync once.
    FailSync,
    /// A machine's disk is copied.
    BackUp,
    /// A client's process dies.
    CrashClient,
    /// An operator has a server emptied, and mostly takes that back later.
    Drain,
    /// An operator moves a subject.
    Move,
    /// An operator has the load spread.
    Rebalance,
}

/// How often each of them, where it may happen at all.
const BLOWS: [(u64, Blow); 18] = [
    (24, Blow::CrashServer),
    (14, Blow::PauseServer),
    (6, Blow::StopServer),
    (12, Blow::Partition),
    (6, Blow::Disconnect),
    (8, Blow::CutBucket),
    (6, Blow::CrashCoordinator),
    (2, Blow::WipeCoordinator),
    (4, Blow::ForgetCoordinator),
    (4, Blow::PauseCoordinator),
    (4, Blow::JumpClock),
    (4, Blow::FillDisk),
    (3, Blow::FailSync),
    (6, Blow::BackUp),
    (3, Blow::CrashClient),
    (6, Blow::Drain),
    (10, Blow::Move),
    (2, Blow::Rebalance),
];

/// What is drawn for a run.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What it assumes.
    pub profile: Profile,
    /// How long everything is at work and things go wrong.
    pub length: Duration,
    /// Time to live of leases.
    pub lease_ttl: Duration,
    /// How many subjects there are.
    pub subjects: u64,
    /// How many keys each has.
    pub keys: u64,
    /// How long a client waits between two calls at most, in milliseconds.
    pub pause_ms: u64,
    /// Whether subjects get configurations.
    pub configures: bool,
    /// Whether clients delete.
    pub deletes: bool,
    /// Whether clients destroy.
    pub destroys: bool,
    /// Whether some values are objects of their own.
    pub large_values: bool,
    /// The servers' own level.
    pub level: Level,
    /// How servers bring changes to the bucket.
    pub log: LogSettings,
    /// After how long without a request a subject is closed.
    pub idle_close: Duration,
    /// How many subjects a server has open.
    pub max_open: usize,
    /// What befalls requests to the bucket.
    pub bucket: FaultPlan,
    /// How many of the creates that decide something suffer something, out of a thousand.
    pub sharp: u64,
    /// How many of the steps that matter are met by a blow, out of a thousand.
    pub ambushes: u64,
    /// What befalls messages.
    pub weather: Weather,
    /// What befalls events, where it is something else.
    pub events: Option<Weather>,
    /// What is done to the fleet, and how often.
    pub blows: Vec<(u64, Blow)>,
    /// The time between two blows, in milliseconds on average.
    pub between_ms: u64,
}

impl Setting {
    /// What `seed` says.
    #[must_use]
    pub fn draw(seed: u64, profile: Profile) -> Self {
        let setting = Self::draw_any(seed, profile);
        if profile != Profile::Overtaken {
            return setting;
        }
        let ms = Duration::from_millis;
        Self {
            lease_ttl: ms(500),
            // Nobody else seals while one who is about to stands still.
            subjects: 1,
            pause_ms: 100,
            level: Level::Bucket,
            log: LogSettings { ship_interval: ms(100), ..setting.log },
            // Whatever is written soon has a base, and its slots go.
            idle_close: ms(500),
            max_open: 1,
            sharp: 500,
            ambushes: 500,
            weather: Weather::FAIR,
            blows: vec![(1, Blow::Partition)],
            between_ms: 1_000,
            ..setting
        }
    }

    fn draw_any(seed: u64, profile: Profile) -> Self {
        let dice = Dice::of(seed, "setting");
        let ms = Duration::from_millis;
        // Nothing is listed where nobody takes over.
        let takes_over =
            |blow| profile == Profile::StaleList && matches!(blow, Blow::CrashServer | Blow::PauseServer);
        // Few kinds at a time: what happens seldom in a crowd is common among few.
        let mut blows: Vec<_> =
            BLOWS.into_iter().filter(|(_, blow)| dice.chance(550) || takes_over(*blow)).collect();
        if blows.is_empty() {
            blows.push((1, Blow::CrashServer));
        }
        let log = LogSettings {
            ship_interval: ms(*dice.pick(&[100, 500, 1_000])),
            max_unshipped_age: ms(*dice.pick(&[1_000, 3_000])),
            sync_interval: ms(*dice.pick(&[100, 1_000])),
            ..LogSettings::default()
        };
        Self {
            profile,
            length: ms(dice.within(8_000..20_000)),
            lease_ttl: ms(*dice.pick(&[500, 500, 1_000, 3_000])),
            subjects: dice.within(1..5),
            keys: dice.within(2..7),
            pause_ms: *dice.pick(&[250, 500, 1_000]),
            configures: dice.chance(600),
            deletes: dice.chance(700),
            destroys: profile == Profile::Destroys,
            large_values: dice.chance(200),
            level: dice.weighted(&[
                (70, Level::Bucket),
                (10, Level::Disk),
                (10, Level::Interval),
                (10, Level::Memory),
            ]),
            log,
            idle_close: ms(*dice.pick(&[500, 2_000, 60_000])),
            max_open: *dice.pick(&[1, 2, 100]),
            bucket: bucket(&dice, profile),
            sharp: *dice.pick(&[0, 50, 200]),
            ambushes: *dice.pick(&[0, 10, 40, 100]),
            weather: weather(&dice),
            events: None,
            blows,
            between_ms: *dice.pick(&[400, 1_000, 2_500]),
        }
    }
}

/// A world in which nothing goes wrong but with events, which are lost, repeated and late all the time.
#[must_use]
pub fn deaf(seed: u64) -> Setting {
    Setting {
        bucket: FaultPlan { latency: Duration::from_millis(10), ..FaultPlan::calm() },
        sharp: 0,
        ambushes: 0,
        weather: Weather::FAIR,
        events: Some(Weather { lost: 300, twice: 200, late: 200, late_ms: 2_000 }),
        // Longer than any run.
        between_ms: 1_000_000_000,
        ..Setting::draw(seed, Profile::Standard)
    }
}

fn bucket(dice: &Dice, profile: Profile) -> FaultPlan {
    // How rough, in calls out of a thousand.
    let each = *dice.pick(&[0, 0, 10, 40]);
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
        latency: Duration::from_millis(*dice.pick(&[10, 50, 200])),
        patience: Duration::from_millis(*dice.pick(&[300, 1_000])),
        late_by: Duration::from_millis(*dice.pick(&[500, 3_000, 10_000])),
        storm_length: Duration::from_secs(3),
        ..FaultPlan::calm()
    }
}

fn weather(dice: &Dice) -> Weather {
    let each = *dice.pick(&[0, 0, 5, 20]);
    Weather { lost: each, twice: each, late: each * 2, late_ms: *dice.pick(&[50, 500, 3_000]) }
}
