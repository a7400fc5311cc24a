//! Without the feature `simulation` no environment is simulated: these types have no values.

use std::future::Pending;

/// See the feature `simulation`.
#[derive(Debug, Clone)]
pub(crate) enum Simulation {}

impl Simulation {
    pub(crate) fn process(&self) -> Option<Process> {
        match *self {}
    }
}

/// See the feature `simulation`.
#[derive(Debug, Clone)]
pub(crate) enum Process {}

impl Process {
    pub(crate) fn wrap_task(&self, _work: impl Future<Output = ()> + Send + 'static) -> Pending<()> {
        match *self {}
    }
}
