//! The engine as a whole: what it promises to whoever writes and reads, whatever becomes of processes, disks, bucket and
//! coordinator. Servers run on a clock of their own that stands still while the test does something else, so a server
//! that is not spoken to is one that is suspended.

mod bounds;
mod clockwork;
mod collect;
mod compaction;
mod destroyed;
mod disk;
mod expiry;
mod export;
mod fencing;
mod handover;
mod large_values;
mod leases;
mod levels;
mod limits;
mod local_file;
mod moving;
mod once;
mod recovery;
mod replies;
mod serving;
mod support;
mod uploads;
mod visible;
