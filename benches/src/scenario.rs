//! What is measured: each scenario does one thing to every target that can do it.

use crate::target::Ability;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Messages are written to subjects in turn.
    Set {
        /// Size of a value.
        bytes: usize,
        /// Writers that each wait for their answer.
        in_flight: usize,
        /// Subjects that take turns.
        subjects: usize,
    },
    /// One message of 128 bytes is read.
    Get {
        /// Readers that each wait for their answer.
        in_flight: usize,
    },
    /// All messages of one subject are read, one subject after the other; what counts is messages.
    GetAll {
        /// Subjects that take turns.
        subjects: usize,
        /// Messages of 128 bytes in each.
        messages: usize,
    },
    /// One client writes, and others hear of it. What counts is messages heard, and how long after the client began to
    /// write them.
    Watch {
        /// Connections that watch.
        watchers: usize,
        /// Messages under way: one for how long it takes, more for how many there can be.
        in_flight: usize,
    },
    /// Subjects that were never there get their first message.
    Create {
        /// How many, or as many of them as are made within a minute; `None` for as many as a round has time for.
        subjects: Option<usize>,
    },
    /// A value is written piece by piece. What counts is bytes.
    PutLarge {
        /// Its size.
        bytes: u64,
    },
    /// A value is read piece by piece. What counts is bytes.
    GetLarge {
        /// Its size.
        bytes: u64,
    },
    /// Subjects of about 100 kB are read for the first time by a server that has never seen them, one after the other.
    Wake {
        /// How many in a round.
        subjects: usize,
    },
}

/// How much of everything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// What a minute shows.
    Quick,
    /// What stands in the documentation.
    Usual,
    /// What takes long.
    Long,
}

/// One line of the results.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What is done.
    pub deed: Deed,
    /// The least effort to which it belongs.
    pub effort: Effort,
}

impl Scenario {
    /// Its name in results.
    #[must_use]
    pub fn name(&self) -> String {
        let (family, column) = self.place();
        format!("{family}, {column}")
    }

    /// The table and the column in which it stands: what differs in one thing only is side by side.
    #[must_use]
    pub fn place(&self) -> (String, String) {
        let in_flight = |number: usize| format!("{number} in flight");
        match self.deed {
            Deed::Set { bytes, in_flight: number, subjects } => (
                format!("set {}, {subjects} {}", size(bytes as u64), plural(subjects, "subject")),
                in_flight(number),
            ),
            Deed::Get { in_flight: number } => ("get 128 B".to_owned(), in_flight(number)),
            Deed::GetAll { subjects, messages } => (
                "get_all".to_owned(),
                format!("{subjects} {} of {messages} × 128 B", plural(subjects, "subject")),
            ),
            Deed::Watch { watchers, in_flight: number } => (
                format!("watch, {}", in_flight(number)),
                format!("{watchers} {}", plural(watchers, "watcher")),
            ),
            Deed::Create { subjects: None } => ("create subjects".to_owned(), "64 in flight".to_owned()),
            Deed::Create { subjects: Some(subjects) } => {
                ("create subjects".to_owned(), format!("{subjects} of them, 64 in flight"))
            }
            Deed::PutLarge { bytes } => (format!("a value of {}", size(bytes)), "put".to_owned()),
            Deed::GetLarge { bytes } => (format!("a value of {}", size(bytes)), "get".to_owned()),
            Deed::Wake { subjects } => ("wake".to_owned(), format!("{subjects} subjects of 100 kB")),
        }
    }

    /// What a target must be able to do.
    #[must_use]
    pub const fn needs(&self) -> Ability {
        match self.deed {
            Deed::Set { .. } => Ability::Set,
            Deed::Create { .. } => Ability::Create,
            Deed::Get { .. } => Ability::Get,
            Deed::GetAll { .. } => Ability::GetAll,
            Deed::Watch { .. } => Ability::Watch,
            Deed::PutLarge { .. } | Deed::GetLarge { .. } => Ability::Large,
            Deed::Wake { .. } => Ability::Sleep,
        }
    }

    /// Whether there is one round only, and each target begins anew after it: it leaves more behind than there is memory for
    /// in all targets at once.
    #[must_use]
    pub const fn is_done_once(&self) -> bool {
        matches!(self.deed, Deed::Create { subjects: Some(_) })
    }

    /// Whether bytes are counted.
    #[must_use]
    pub const fn counts_bytes(&self) -> bool {
        matches!(self.deed, Deed::PutLarge { .. } | Deed::GetLarge { .. })
    }
}

/// To how many subjects is written where it is many, if the system lets so many files be open.
pub const MANY: usize = 10_000;

/// How many they are where one process may have so many files open: Dormouse has two of each subject, and others beside
/// them.
#[must_use]
pub fn many(open_files: u64) -> usize {
    let thousands = open_files.saturating_sub(2_000) / 2_000;
    usize::try_from(thousands * 1_000).map_or(MANY, |many| many.clamp(1_000, MANY))
}

/// The name that a scenario has where it is done with [`MANY`] subjects.
#[must_use]
pub fn usual_name(name: &str) -> String {
    let usual = || {
        let (what, rest) = name.split_once(", ")?;
        let (_, in_flight) = rest.split_once(" subjects, ")?;
        Some(format!("{what}, {MANY} subjects, {in_flight}"))
    };
    usual().unwrap_or_else(|| name.to_owned())
}

/// Where a scenario stands among all.
#[must_use]
pub fn place_of(name: &str) -> usize {
    let name = usual_name(name);
    all(MANY).iter().take_while(|scenario| scenario.name() != name).count()
}

/// Every scenario, in the order of the tables.
#[must_use]
pub fn all(many: usize) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |deed, effort| all.push(Scenario { deed, effort });
    for subjects in [1, many] {
        for bytes in [128, 1_024, 16_384] {
            for in_flight in [1, 64, 256, 4_096] {
                let quick = bytes == 128 && subjects == 1 && in_flight != 64;
                add(
                    Deed::Set { bytes, in_flight, subjects },
                    if quick { Effort::Quick } else { Effort::Usual },
                );
            }
        }
    }
    for in_flight in [1, 64, 256] {
        add(Deed::Get { in_flight }, if in_flight == 64 { Effort::Usual } else { Effort::Quick });
    }
    add(Deed::GetAll { subjects: 1, messages: 100_000 }, Effort::Usual);
    add(Deed::GetAll { subjects: 1_000, messages: 100 }, Effort::Usual);
    for watchers in [1, 10, 100] {
        add(Deed::Watch { watchers, in_flight: 1 }, Effort::Usual);
        add(Deed::Watch { watchers, in_flight: 256 }, Effort::Usual);
    }
    add(Deed::Create { subjects: None }, Effort::Usual);
    add(Deed::Wake { subjects: 200 }, Effort::Usual);
    add(Deed::PutLarge { bytes: 1 << 30 }, Effort::Long);
    add(Deed::GetLarge { bytes: 1 << 30 }, Effort::Long);
    add(Deed::Create { subjects: Some(100_000) }, Effort::Long);
    all
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes % (1 << 30) == 0 => format!("{} GiB", bytes >> 30),
        bytes if bytes % 1_024 == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn plural(number: usize, word: &str) -> String {
    if number == 1 { word.to_owned() } else { format!("{word}s") }
}
