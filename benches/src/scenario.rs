//! The scenarios: each runs one operation on every target that supports it.

use crate::target::Capability;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Messages are written to subjects in turn.
    Set {
        /// Size of a value.
        bytes: usize,
        /// Writers that each wait for their reply.
        in_flight: usize,
        /// The number of subjects that take turns.
        subjects: usize,
    },
    /// One message of 128 bytes is read.
    Get {
        /// Readers that each wait for their reply.
        in_flight: usize,
    },
    /// All messages of one subject are read, one subject after the other; the unit is a message.
    GetAll {
        /// The number of subjects that take turns.
        subjects: usize,
        /// Messages of 128 bytes in each subject.
        messages: usize,
    },
    /// One client writes, and others watch. The unit is a received message; its duration starts with the start of the
    /// write.
    Watch {
        /// The number of watching connections.
        watchers: usize,
        /// The number of messages in flight: one for the delay, more for the rate.
        in_flight: usize,
    },
    /// New subjects get their first message.
    Create {
        /// The number, or as many of them as are created within a minute; `None` for as many as fit in a round.
        subjects: Option<usize>,
    },
    /// A value is written in chunks. The unit is a byte.
    PutLarge {
        /// Its size.
        bytes: u64,
    },
    /// A value is read in chunks. The unit is a byte.
    GetLarge {
        /// Its size.
        bytes: u64,
    },
    /// Subjects of about 100 kB are read for the first time by a server that has never served them, one after the
    /// other.
    Open {
        /// The number of subjects in a round.
        subjects: usize,
    },
}

/// The scale of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunScale {
    /// A run of a minute.
    Quick,
    /// The scenarios of the documentation.
    Usual,
    /// The long scenarios.
    Long,
}

/// A scenario: one line of the results.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The operation.
    pub operation: Operation,
    /// The smallest scale of a run with this scenario.
    pub scale: RunScale,
}

impl Scenario {
    /// Returns the name in the results.
    #[must_use]
    pub fn name(&self) -> String {
        let (family, column) = self.table_position();
        format!("{family}, {column}")
    }

    /// Returns the table and the column: scenarios that differ in one parameter only are side by side.
    #[must_use]
    pub fn table_position(&self) -> (String, String) {
        let in_flight = |number: usize| format!("{number} in flight");
        match self.operation {
            Operation::Set { bytes, in_flight: number, subjects } => (
                format!("set {}, {subjects} {}", size(bytes as u64), plural(subjects, "subject")),
                in_flight(number),
            ),
            Operation::Get { in_flight: number } => ("get 128 B".to_owned(), in_flight(number)),
            Operation::GetAll { subjects, messages } => (
                "get_all".to_owned(),
                format!("{subjects} {} of {messages} × 128 B", plural(subjects, "subject")),
            ),
            Operation::Watch { watchers, in_flight: number } => (
                format!("watch, {}", in_flight(number)),
                format!("{watchers} {}", plural(watchers, "watcher")),
            ),
            Operation::Create { subjects: None } => ("create subjects".to_owned(), "64 in flight".to_owned()),
            Operation::Create { subjects: Some(subjects) } => {
                ("create subjects".to_owned(), format!("{subjects} of them, 64 in flight"))
            }
            Operation::PutLarge { bytes } => (format!("a value of {}", size(bytes)), "put".to_owned()),
            Operation::GetLarge { bytes } => (format!("a value of {}", size(bytes)), "get".to_owned()),
            Operation::Open { subjects } => ("open".to_owned(), format!("{subjects} subjects of 100 kB")),
        }
    }

    /// Returns the capability that a target needs.
    #[must_use]
    pub const fn needs(&self) -> Capability {
        match self.operation {
            Operation::Set { .. } => Capability::Set,
            Operation::Create { .. } => Capability::Create,
            Operation::Get { .. } => Capability::Get,
            Operation::GetAll { .. } => Capability::GetAll,
            Operation::Watch { .. } => Capability::Watch,
            Operation::PutLarge { .. } | Operation::GetLarge { .. } => Capability::Large,
            Operation::Open { .. } => Capability::Reopen,
        }
    }

    /// Returns whether there is one round only, and each target starts with empty state after it: all targets together
    /// would keep more than the memory holds.
    #[must_use]
    pub const fn is_done_once(&self) -> bool {
        matches!(self.operation, Operation::Create { subjects: Some(_) })
    }

    /// Returns whether bytes are counted.
    #[must_use]
    pub const fn counts_bytes(&self) -> bool {
        matches!(self.operation, Operation::PutLarge { .. } | Operation::GetLarge { .. })
    }
}

/// The number of subjects of the scenarios with many subjects, if the limit of open files allows it.
pub const MANY: usize = 10_000;

/// Returns that number under a limit of open files: Dormouse has two files open for each subject, and others besides.
#[must_use]
pub fn many(open_files: u64) -> usize {
    let thousands = open_files.saturating_sub(2_000) / 2_000;
    usize::try_from(thousands * 1_000).map_or(MANY, |many| many.clamp(1_000, MANY))
}

/// Returns the name of a scenario with [`MANY`] subjects.
#[must_use]
pub fn usual_name(name: &str) -> String {
    let usual = || {
        let (what, rest) = name.split_once(", ")?;
        let (_, in_flight) = rest.split_once(" subjects, ")?;
        Some(format!("{what}, {MANY} subjects, {in_flight}"))
    };
    usual().unwrap_or_else(|| name.to_owned())
}

/// Returns the position of a scenario among all.
#[must_use]
pub fn index_of(name: &str) -> usize {
    let name = usual_name(name);
    all(MANY).iter().take_while(|scenario| scenario.name() != name).count()
}

/// Returns every scenario, in the order of the tables.
#[must_use]
pub fn all(many: usize) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |operation, scale| all.push(Scenario { operation, scale });
    for subjects in [1, many] {
        for bytes in [128, 1_024, 16_384] {
            for in_flight in [1, 64, 256, 4_096] {
                let quick = bytes == 128 && subjects == 1 && in_flight != 64;
                add(
                    Operation::Set { bytes, in_flight, subjects },
                    if quick { RunScale::Quick } else { RunScale::Usual },
                );
            }
        }
    }
    for in_flight in [1, 64, 256] {
        add(Operation::Get { in_flight }, if in_flight == 64 { RunScale::Usual } else { RunScale::Quick });
    }
    add(Operation::GetAll { subjects: 1, messages: 100_000 }, RunScale::Usual);
    add(Operation::GetAll { subjects: 1_000, messages: 100 }, RunScale::Usual);
    for watchers in [1, 10, 100] {
        add(Operation::Watch { watchers, in_flight: 1 }, RunScale::Usual);
        add(Operation::Watch { watchers, in_flight: 256 }, RunScale::Usual);
    }
    add(Operation::Create { subjects: None }, RunScale::Usual);
    add(Operation::Open { subjects: 200 }, RunScale::Usual);
    add(Operation::PutLarge { bytes: 1 << 30 }, RunScale::Long);
    add(Operation::GetLarge { bytes: 1 << 30 }, RunScale::Long);
    add(Operation::Create { subjects: Some(100_000) }, RunScale::Long);
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
