//! The requests of each aggressor.

use anyhow::ensure;
use bytes::Bytes;
use dormouse_bus::Bus;
use dormouse_protocol::data::{
    DeleteAllRequest, GetAllRequest, GetRequest, SetItem, SetOutcome, SetReply, SetRequest,
};
use dormouse_protocol::fleet::LocateRequest;
use dormouse_protocol::transfer::UploadBeginRequest;
use dormouse_protocol::{
    Level, Op, Prefix, RequestId, Route, ServerName, SessionId, Subject, UploadId, encode,
};
use dormouse_runtime::Env;
use serde::Serialize;

use super::{Aggressor, AttackFigures, Flood, Scale};
use crate::{RawNats, TIMEOUT, until};

/// The size of a garbage get: below the largest payload of nats-server.
const GARBAGE_BYTES: usize = 900_000;

/// The size of a value that waits for the bucket.
const WAITING_BYTES: usize = 16 * 1_024;

/// The number of subjects over which an attack is spread: with few of them, the queue of each subject alone would limit it.
const SPREAD: u64 = 32;

/// The number of messages in one request of the preparation.
const FILL_ITEMS: u64 = 5_000;

/// One aggressor at one size.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    pub(super) aggressor: Aggressor,
    pub(super) scale: Scale,
    pub(super) server: ServerName,
}

impl Attack {
    /// Returns rate, window and total.
    fn flood(&self) -> Flood {
        let sized = |test: [u64; 3], full: [u64; 3]| {
            let [per_second, window, total] = match self.scale {
                Scale::Test => test,
                Scale::Full => full,
            };
            Flood { per_second, window, total }
        };
        match self.aggressor {
            Aggressor::GetAllFlood => sized([1_000_000, 16_384, 16_384], [32_768, 32_768, 100_000]),
            Aggressor::AtomicBatches => sized([1_000, 16, 32], [1_000, 16, 160]),
            Aggressor::ShortTtl => sized([1_000, 8, 30], [1_000, 8, 30]),
            Aggressor::SmallGets | Aggressor::SmallSets => {
                sized([1_000_000, 16_384, 32_768], [50_000, 32_768, 500_000])
            }
            Aggressor::GarbageGets => sized([100, 64, 200], [200, 64, 2_000]),
            Aggressor::DeleteAll => sized([1_000, 2, 2], [1_000, 2, 2]),
            Aggressor::UnknownLookups => sized([1_000_000, 16_384, 32_768], [50_000, 32_768, 500_000]),
            Aggressor::Uploads => sized([2_000, 2_000, 2_000], [2_000, 2_000, 2_000]),
            Aggressor::DormantReads => sized([1_000_000, 1_024, 1_000], [1_000, 4_096, 10_000]),
            Aggressor::HangingBucket => sized([2_000, 4_096, 4_096], [2_000, 8_192, 8_192]),
            Aggressor::Sessions => sized([1_000_000, 33_000, 33_000], [1_000_000, 33_000, 33_000]),
        }
    }

    /// Returns the number of messages in each subject that is filled beforehand, and the subjects.
    fn filled(&self) -> (u64, Vec<Subject>) {
        let sized = |test, full| if self.scale == Scale::Test { test } else { full };
        match self.aggressor {
            Aggressor::GetAllFlood => (sized(5_000, 20_000), spread("pages")),
            Aggressor::SmallGets | Aggressor::GarbageGets => (1, spread("small")),
            Aggressor::DeleteAll => {
                (sized(100_000, 1_500_000), (0..2).map(|number| numbered("deleted", number)).collect())
            }
            Aggressor::DormantReads => {
                (1, (0..self.flood().total).map(|number| numbered("dormant", number)).collect())
            }
            // Their subjects are open when the bucket hangs.
            Aggressor::HangingBucket => (1, spread("waiting")),
            _ => (0, Vec::new()),
        }
    }

    /// Fills the subjects that the attack needs.
    ///
    /// # Errors
    /// If a write fails.
    pub(super) async fn prepare(&self, bus: &dyn Bus) -> anyhow::Result<()> {
        let (messages, subjects) = self.filled();
        let fill = async |subject: &Subject| {
            let mut number = 0;
            while number < messages {
                let items = FILL_ITEMS.min(messages - number);
                let sets = (number..number + items).map(|number| item(Some(format!("k{number:08}")), 100));
                let request = SetRequest { sets: sets.collect(), ..SetRequest::default() };
                let route = Prefix::default().server(&self.server, Op::Set, subject);
                let reply: SetReply = until("the subject can be filled", async || {
                    match dormouse_bus::ask(bus, route.clone(), &request, TIMEOUT).await {
                        Ok(reply) => Ok(Some(reply)),
                        Err(dormouse_bus::AskError::Service(error)) if error.retry_after_ms.is_some() => {
                            Ok(None)
                        }
                        Err(error) => Err(error.into()),
                    }
                })
                .await?;
                let failed = reply.results.iter().find(|result| !matches!(result, SetOutcome::Ok(_)));
                ensure!(failed.is_none(), "{subject}: {failed:?}");
                number += items;
            }
            anyhow::Ok(())
        };
        for some in subjects.chunks(16) {
            futures::future::try_join_all(some.iter().map(fill)).await?;
        }
        Ok(())
    }

    /// Sends the requests of the attack, and waits for the replies.
    ///
    /// If the call is cancelled, requests may have been executed.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) async fn run(&self, raw: RawNats, inbox: &str, env: &Env) -> anyhow::Result<AttackFigures> {
        let garbage = garbage();
        let batch = encoded(&SetRequest {
            atomic: true,
            sets: (0..9_000).map(|_| item(None, 16)).collect(),
            ..SetRequest::default()
        });
        let expiring = encoded(&SetRequest {
            sets: (0..1_000).map(|_| SetItem { ttl_ms: Some(1), ..item(None, 16) }).collect(),
            ..SetRequest::default()
        });
        let request = |number: u64| match self.aggressor {
            Aggressor::GetAllFlood => self.page(number),
            Aggressor::AtomicBatches => self.data(Op::Set, &numbered("batches", number % 4), batch.clone()),
            Aggressor::ShortTtl => self.data(Op::Set, &subject("expiring"), expiring.clone()),
            Aggressor::SmallGets => self.get(&numbered("small", number % SPREAD)),
            Aggressor::SmallSets => {
                let sets = vec![item(Some(format!("k{}", number % 1_000)), 100)];
                let request = encoded(&SetRequest { sets, ..SetRequest::default() });
                self.data(Op::Set, &numbered("sets", number % SPREAD), request)
            }
            Aggressor::GarbageGets => {
                self.data(Op::Get, &numbered("small", number % SPREAD), garbage.clone())
            }
            Aggressor::DeleteAll => {
                let request = encoded(&DeleteAllRequest::default());
                self.data(Op::DeleteAll, &numbered("deleted", number), request)
            }
            Aggressor::UnknownLookups => {
                let route = Prefix::default().locate(&numbered("never", number));
                (route, encoded(&LocateRequest::default()))
            }
            Aggressor::Uploads => {
                let upload = UploadId::new(env.ulid());
                let begin =
                    UploadBeginRequest { v: Default::default(), upload, size: Some(1 << 20), place: None };
                self.data(Op::UploadBegin, &numbered("uploads", number % 100), encoded(&begin))
            }
            Aggressor::DormantReads => self.get(&numbered("dormant", number)),
            Aggressor::HangingBucket => {
                let sets = vec![item(None, WAITING_BYTES)];
                let request = SetRequest { level: Some(Level::Bucket), sets, ..SetRequest::default() };
                self.data(Op::Set, &numbered("waiting", number % SPREAD), encoded(&request))
            }
            Aggressor::Sessions => {
                let id = RequestId { session: SessionId::new(env.ulid()), counter: 1 };
                let sets = vec![item(Some("k".to_owned()), 16)];
                let request = SetRequest { request: Some(id), sets, ..SetRequest::default() };
                self.data(Op::Set, &subject("sessions"), encoded(&request))
            }
        };
        self.flood().run(raw, inbox, env, request).await
    }

    fn data(&self, op: Op, subject: &Subject, request: Bytes) -> (Route, Bytes) {
        (Prefix::default().server(&self.server, op, subject), request)
    }

    fn get(&self, subject: &Subject) -> (Route, Bytes) {
        let request = GetRequest { key: Some("k00000000".to_owned()), ..GetRequest::default() };
        self.data(Op::Get, subject, encoded(&request))
    }

    /// Every second page is large. The others search the whole subject for keys that do not exist: the reply is small, so
    /// the server is what such a request costs.
    fn page(&self, number: u64) -> (Route, Bytes) {
        let large = number.is_multiple_of(2);
        let request = GetAllRequest {
            key_prefix: (!large).then(|| "x".to_owned()),
            limit: large.then_some(1_000),
            ..GetAllRequest::default()
        };
        self.data(Op::GetAll, &numbered("pages", number / 2 % SPREAD), encoded(&request))
    }
}

fn subject(name: &str) -> Subject {
    Subject::new(&format!("user.alice.{name}")).expect("a valid subject name")
}

fn numbered(name: &str, number: u64) -> Subject {
    subject(&format!("{name}.{number}"))
}

fn spread(name: &str) -> Vec<Subject> {
    (0..SPREAD).map(|number| numbered(name, number)).collect()
}

/// Returns a get with an unknown field that holds hundreds of thousands of values: no byte is wrong, and a decoder reads
/// all of them.
fn garbage() -> Bytes {
    let mut bytes = b"\x81\xa1x\xdd".to_vec();
    bytes.extend_from_slice(&u32::try_from(GARBAGE_BYTES).unwrap_or(u32::MAX).to_be_bytes());
    bytes.resize(bytes.len() + GARBAGE_BYTES, 0xc0);
    bytes.into()
}

fn item(key: Option<String>, bytes: usize) -> SetItem {
    SetItem { key, value: Some(vec![b'x'; bytes].into()), ..SetItem::default() }
}

fn encoded(request: &impl Serialize) -> Bytes {
    encode(request).expect("the protocol can encode its own requests")
}
