//! `subject configure`.

use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use dormouse_protocol::Subject;
use dormouse_protocol::message::{Discard, SubjectConfig};

use super::values::{LevelArg, Metadata};

const CHANGES: [&str; 9] = [
    "level",
    "max_msgs",
    "max_bytes",
    "max_age",
    "max_msg_size",
    "discard",
    "ttl",
    "metadata",
    "remove_metadata",
];

/// `subject configure`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(CHANGES))]
pub struct Configure {
    /// The stream or key-value store, such as app.orders.eu
    pub subject: Subject,

    /// Level of writes: memory, interval, disk or bucket; `default` for the server's default [default: unchanged]
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<LevelArg>,

    /// Maximum number of messages; `none` for no limit [default: unchanged]
    #[arg(long, value_name = "NUMBER")]
    pub max_msgs: Option<NumberChoice>,

    /// Maximum bytes of all values together; `none` for no limit [default: unchanged]
    #[arg(long, value_name = "BYTES")]
    pub max_bytes: Option<NumberChoice>,

    /// Age at which every message is deleted, such as 36h; `none` for no limit [default: unchanged]
    #[arg(long, value_name = "DURATION")]
    pub max_age: Option<DurationChoice>,

    /// Maximum bytes of one value; `none` for no limit [default: unchanged]
    #[arg(long, value_name = "BYTES")]
    pub max_msg_size: Option<NumberChoice>,

    /// Effect of a write at --max-msgs or --max-bytes: delete the oldest messages, or fail [default: unchanged]
    #[arg(long, value_name = "WHAT")]
    pub discard: Option<DiscardChoice>,

    /// Default TTL of messages, such as 90s; `none` for no TTL [default: unchanged]
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<DurationChoice>,

    /// Metadata to set; repeatable [default: unchanged]
    #[arg(long, value_name = "NAME=VALUE")]
    pub metadata: Vec<Metadata>,

    /// Metadata to remove; repeatable [default: none]
    #[arg(long, value_name = "NAME")]
    pub remove_metadata: Vec<String>,
}

impl Configure {
    /// Applies the changes to a configuration.
    pub fn apply(self, config: &mut SubjectConfig) {
        if let Some(LevelArg(level)) = self.level {
            config.level = level;
        }
        let set = |limit: &mut Option<u64>, choice: Option<Option<u64>>| {
            if let Some(choice) = choice {
                *limit = choice;
            }
        };
        set(&mut config.max_msgs, self.max_msgs.map(|choice| choice.0));
        set(&mut config.max_bytes, self.max_bytes.map(|choice| choice.0));
        set(&mut config.max_age_ms, self.max_age.map(|choice| choice.0));
        set(&mut config.max_msg_size, self.max_msg_size.map(|choice| choice.0));
        set(&mut config.default_ttl_ms, self.ttl.map(|choice| choice.0));
        if let Some(discard) = self.discard {
            config.discard = Some(match discard {
                DiscardChoice::Old => Discard::Old,
                DiscardChoice::New => Discard::New,
            });
        }
        for name in &self.remove_metadata {
            config.metadata.remove(name);
        }
        for metadata in self.metadata {
            config.metadata.insert(metadata.name, metadata.value);
        }
    }
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumberChoice(pub Option<u64>);

impl FromStr for NumberChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self(None)),
            "0" => Err("a limit is 1 or more, or `none`".to_owned()),
            number => number
                .parse()
                .map(|number| Self(Some(number)))
                .map_err(|error| format!("a limit is a whole number or `none`: {error}")),
        }
    }
}

/// A duration in milliseconds, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationChoice(pub Option<u64>);

impl FromStr for DurationChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(None));
        }
        let duration = humantime::parse_duration(text)
            .map_err(|error| format!("a duration such as 90s or 36h, or `none`: {error}"))?;
        if duration < Duration::from_millis(1) {
            return Err("a duration is 1ms or more, or `none`".to_owned());
        }
        Ok(Self(Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))))
    }
}

/// Effect of a write at a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiscardChoice {
    /// The oldest messages are deleted
    Old,
    /// The write fails
    New,
}
