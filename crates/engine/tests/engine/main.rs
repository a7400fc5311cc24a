//! The engine as a whole: its guarantees for writes and reads while processes, disks, bucket and coordinator fail.
//!
//! Each server runs on its own clock, which advances only while the test waits for that server. A server without calls
//! from the test is therefore a suspended process.

mod bounds;
mod claims;
mod compaction;
mod deadlines;
mod dedup;
mod destroyed;
mod disk;
mod expiry;
mod export;
mod fencing;
mod gc;
mod large_values;
mod leases;
mod levels;
mod limits;
mod local_file;
mod memory;
mod metrics;
mod opens;
mod own_open;
mod pages;
mod reclaim;
mod recovery;
mod replies;
mod serving;
mod subject_handover;
mod support;
mod timers;
mod uploads;
mod visible;
