//! The fakes that the tests of several crates share, and the vocabulary of faults.
//!
//! | module | feature | content |
//! |---|---|---|
//! | `bucket` | `bucket` | a bad bucket: lost requests and answers, late effects, outages, stale listings, held calls; an observer |
//! | `disk` | `disk` | a bad disk: full, short writes, failing syncs, power loss |
//! | `recorder` | `recorder` | a bus that records requests, replies and events as a history for the checker |
//!
//! Each fake gets its randomness from a seed, so the same seed gives the same faults. [`cases`] sets the number of cases
//! of a property test. `dormouse-harness` has the real processes that tests start.
//!
//! # Faults
//!
//! All test programs use these words for faults. Each type has the faults that its part of the system can have.
//!
//! | type | faults of | in |
//! |---|---|---|
//! | `BucketFault`, `FaultPlan`, `FaultyBucket` | calls of a bucket | `bucket` |
//! | `FaultyDisk` | a disk | `disk` |
//! | `NetworkFaults`, `FaultyNetwork` | messages of the bus | `tests/sim/src/network.rs` |
//! | `ProxyMode` | TCP connections | `tests/harness/src/tcp_proxy.rs` |
//! | `FaultAction` | a simulated fleet | `tests/sim/src/run_config.rs` |
//! | `FaultAction`, `Fault` | a fleet of real processes | `tests/e2e/tests/{kill9,nemesis}` |
//! | `ServerFaultKind` | a server, as the checker and the ledger judge them | `tests/checker/src/history.rs` |
//!
//! Faults of calls and messages:
//!
//! | fault | effect | names |
//! |---|---|---|
//! | request lost | the request never takes effect, and no answer comes | `BucketFault::RequestLost`, `NetworkFaults::lost` |
//! | answer lost | the request takes effect, and no answer comes | `BucketFault::AnswerLost`, `FaultyBucket::set_answers_lost`, `ProxyMode::AnswersLost` |
//! | late | the request takes effect after its sender has given up, or after later ones | `BucketFault::Late`, `NetworkFaults::late` |
//! | again | the request takes effect, and once more later | `BucketFault::Again`, `NetworkFaults::twice` |
//! | orphaned | the request takes effect after its sender is gone | `BucketFault::Orphaned` |
//! | stalled | requests, answers or both arrive only after the fault | `ProxyMode::{Stalled, AnswersStalled}`, `FaultyBucket::{hold_requests, hold_answers}` |
//! | slow | everything arrives after a delay | `FaultPlan::latency`, `ProxyMode::Slow` |
//! | cut off | nothing arrives, and the sender gets an error if its transport reports one | `FaultyBucket::set_unreachable`, `FaultyNetwork::cut`, `ProxyMode::Cut`, `FaultAction::{CutBucket, Partition, Disconnect}`, `ServerFaultKind::{CutFromBucket, CutFromBus}` |
//! | server error | the store fails, without effect | `BucketFault::ServerError` |
//! | storm | server errors for some time | `FaultPlan::storm` |
//! | denied | the store refuses, without effect | `BucketFault::Denied`, `FaultyBucket::set_read_only` |
//! | conflict | the store reports an object that does not exist | `BucketFault::Conflict` |
//! | hang | no answer and no error ever comes | `BucketFault::Hangs` |
//! | panic | the call panics, as a defect would | `BucketFault::Panics`, `FaultyDisk::panic_in_syncs` |
//! | corrupt | read bytes have a flipped bit | `BucketFault::Corrupt`, `FaultyBucket::corrupt` |
//! | stale list | a listing lacks recent objects, against the contract of a bucket | `BucketFault::StaleList` |
//!
//! Faults of disks:
//!
//! | fault | effect | names |
//! |---|---|---|
//! | full | writes fail for lack of space | `FaultyDisk::limit_free_space`, `FaultAction::FillDisk` |
//! | short write | a write takes only some of its bytes | `FaultyDisk::short_writes` |
//! | failed write, failed sync | the call fails | `FaultyDisk::{fail_writes, fail_syncs}`, `FaultAction::FailSync` |
//! | power lost | unsynced bytes are gone or zeroed | `FaultyDisk::power_loss`, `ServerFaultKind::PowerLost` |
//! | disk wiped | the disk is empty | `ServerFaultKind::DiskWiped` |
//! | disk restored | the disk is an older copy | `ServerFaultKind::DiskRestored` |
//!
//! Faults of processes:
//!
//! | fault | effect | names |
//! |---|---|---|
//! | killed | the process ends at once, and its disk is intact | `FaultAction::{CrashServer, CrashCoordinator, CrashClient}`, `ServerFaultKind::Killed` |
//! | paused | the process does nothing for some time | `FaultAction::{PauseServer, PauseCoordinator}`, `ServerFaultKind::Paused` |
//! | stopped | the process gets a shutdown request | `FaultAction::StopServer` |
//! | taken over | another process seals the log of the server | `ServerFaultKind::TakenOver` |
//! | wrong clock | the wall clock of a machine jumps | `FaultAction::JumpClock` |

#[cfg(feature = "bucket")]
pub mod bucket;
mod cases;
#[cfg(feature = "disk")]
pub mod disk;
#[cfg(feature = "recorder")]
pub mod recorder;

pub use cases::cases;
