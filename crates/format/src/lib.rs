//! The stored formats of Dormouse: object keys, and the bytes of the objects behind them.
//!
//! This crate is pure: bytes in, values out. It performs no I/O, reads no clock, uses no random numbers and has no async
//! code. `docs/formats.md` specifies the same in prose, and the files under `tests/golden` hold the exact bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | the keys of all objects in the bucket, and the meaning of listed keys |
//! | [`manifest`] | the numbered object that names a subject's owner and the objects with its data |
//! | [`record`] | one change of a subject, with every number decided |
//! | [`entry`] | the log entry: the records and the reply of one write request |
//! | [`frame`] | the stored form of one entry |
//! | [`segment`] | one slot of a log: its birth, the entries of one segment, or its seal |
//! | [`index`] | the positions of each subject's entries in a sealed log |
//! | [`delta`] | one subject's entries since its snapshot |
//! | [`checksum`] | CRC-64/NVME of whole objects, CRC-32C of their parts |
//! | [`DecodeFault`], [`FormatError`] | why bytes cannot be decoded, without and with the name of the object |
//!
//! Decoding any bytes costs memory in proportion to their number. The bytes are either the exact output of some version,
//! or an error.
//!
//! The crate never knows where bytes come from or go to (a bucket, a disk, a test), which process reads them, or whether
//! a change is allowed. It also does not know the local write-ahead log and the subject's SQLite file: `docs/formats.md`
//! specifies them too, but the crates that read and write them define them.

pub mod checksum;
pub mod delta;
pub mod entry;
mod fault;
pub mod frame;
pub mod index;
pub mod keys;
mod line;
pub mod manifest;
mod read;
pub mod record;
pub mod segment;

pub use fault::{DecodeFault, FormatError};
