//! The engine as a whole: what it promises to whoever writes and reads, whatever becomes of processes, disks, bucket and
//! coordinator. Servers run on a clock of their own that stands still while the test does something else, so a server
//! that is not spoken to is one that is suspended.

mod collect;
mod fencing;
mod large_values;
mod levels;
mod local_file;
mod replies;
mod serving;
mod support;
mod visible;
