//! Greedy neighbours: a polite tenant beside each aggressor of a second tenant.
//!
//! The end-to-end tests run small attacks and judge them without a timing; `make bench` runs the same attacks at full
//! size and reports durations. Both use the example configuration `deploy/nats/one-account.conf`: the polite tenant is
//! the user `bob`, and the aggressor is `alice` or `auditor`, who may only read.
//!
//! | module | content |
//! |---|---|
//! | `aggressor` | the list of the aggressors, each with its user, its size and the refusal that it must get |
//! | `attack` | the requests of each aggressor |
//! | `flood` | sends requests at a fixed rate within a fixed window, and counts the replies |
//! | `polite` | the polite tenant, and its figures |
//! | `trial` | one aggressor beside the polite tenant: a quiet phase, then the attack |

mod aggressor;
mod attack;
mod flood;
mod polite;
mod trial;

pub use aggressor::{Aggressor, Refusal, Scale};
pub use flood::{AttackFigures, Flood};
pub use polite::{PoliteExtra, PoliteFigures, PoliteTenant};
pub use trial::{Trial, TrialOutcome};
