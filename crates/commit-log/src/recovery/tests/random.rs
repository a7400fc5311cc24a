//! The machine against a small bucket in which every possible event occurs: late creates of the ended process and of an
//! interrupted recovery, a foreign sealer, and a reclaim that deletes slots of the sealed log.

use std::collections::{BTreeMap, BTreeSet};

use dormouse_protocol::Slot;
use dormouse_runtime::{Entropy, SeededEntropy};

use super::super::machine::{Recovered, Recovery, RecoveryEffect, RecoveryInput, RecoverySlotRead, WalMatch};
use crate::log::seal::{self, SealEffect, SealInput, SealMachine};
use crate::wal::{Lsn, WalAppend, WalContents};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Birth,
    /// The first and the last append.
    Data(u64, u64),
    Seal,
}

/// How often optional events occurred.
#[derive(Debug, Default)]
struct Coverage {
    late: u32,
    beyond: u32,
    gaps: u32,
    stranded: u32,
    restarts: u32,
    trimmed: u32,
}

struct World {
    entropy: SeededEntropy,
    slots: BTreeMap<u64, Object>,
    /// The appends in slots that the owner trimmed.
    trimmed: BTreeSet<u64>,
    /// Creates that may succeed at any time.
    late: Vec<(u64, Object)>,
    /// The appends in the log when the first valid seal was confirmed.
    final_lsns: Option<BTreeSet<u64>>,
    other: Option<(SealMachine, SealEffect)>,
    wal: WalContents,
}

fn append(lsn: u64) -> WalAppend {
    WalAppend {
        lsn: Lsn::new(lsn),
        subject: dormouse_protocol::Subject::new("app").unwrap(),
        first_after: dormouse_protocol::Rev::new(lsn),
        last_rev: dormouse_protocol::Rev::new(lsn + 1),
        entries: 1,
        frames: bytes::Bytes::new(),
    }
}

impl World {
    fn new(seed: u64, coverage: &mut Coverage) -> Self {
        let entropy = SeededEntropy::new(seed);
        let below = |limit: u64| entropy.next_u64() % limit;
        let mut slots = BTreeMap::from([(0, Object::Birth)]);
        let (mut shipped, mut marked) = (0, (0, 0));
        for slot in 1..=below(4) {
            let last = shipped + 1 + below(3);
            slots.insert(slot, Object::Data(shipped + 1, last));
            shipped = last;
            if below(2) == 0 {
                marked = (last, slot);
            }
        }
        let next = slots.len() as u64;
        let mut late = Vec::new();
        let mut written = shipped + below(5);
        if written > shipped && below(2) == 0 {
            late.push((next, Object::Data(shipped + 1, shipped + 1 + below(written - shipped))));
        }
        // A loss of power may have removed the end of the WAL.
        if below(3) == 0 {
            written = marked.0.max(written.saturating_sub(below(6)));
        }
        let mut trimmed = BTreeSet::new();
        for slot in 0..next - 1 {
            if below(3) == 0
                && let Some(Object::Data(first, last)) = slots.remove(&slot)
            {
                trimmed.extend(first..=last);
                coverage.trimmed += 1;
            }
        }
        let wal = WalContents {
            appends: (marked.0 + 1..=written).map(append).collect(),
            shipped_through: Lsn::new(marked.0),
            last_slot: (marked.1 > 0).then_some(Slot::new(marked.1)),
            ..WalContents::default()
        };
        let other = (below(2) == 0).then(SealMachine::begin);
        Self { entropy, slots, trimmed, late, final_lsns: None, other, wal }
    }

    fn below(&self, limit: u64) -> u64 {
        self.entropy.next_u64() % limit
    }

    fn highest(&self) -> Option<Slot> {
        self.slots.keys().next_back().copied().map(Slot::new)
    }

    fn create(&mut self, slot: u64, object: Object) -> bool {
        let free = !self.slots.contains_key(&slot);
        if free {
            self.slots.insert(slot, object);
        }
        free
    }

    fn lsns(&self) -> BTreeSet<u64> {
        let mut lsns = self.trimmed.clone();
        for object in self.slots.values() {
            if let Object::Data(first, last) = object {
                for lsn in *first..=*last {
                    assert!(lsns.insert(lsn), "{lsn} is in two slots: {:?}", self.slots);
                }
            }
        }
        lsns
    }

    /// One step of a sealer.
    fn seal(&mut self, machine: &mut SealMachine, effect: SealEffect) -> Option<SealEffect> {
        let input = match effect {
            SealEffect::List => SealInput::Listed(self.highest()),
            SealEffect::ReadSlot(slot) => SealInput::SlotRead(match self.slots.get(&slot.get()) {
                None => seal::SealedSlotRead::Gone,
                Some(Object::Seal) => seal::SealedSlotRead::Seal,
                Some(_) => seal::SealedSlotRead::Other,
            }),
            SealEffect::Create(slot) => SealInput::Created { ours: self.create(slot.get(), Object::Seal) },
            SealEffect::Sealed(_) => {
                if self.final_lsns.is_none() {
                    self.final_lsns = Some(self.lsns());
                }
                return None;
            }
            SealEffect::Absent => panic!("the log exists"),
        };
        machine.apply(input)
    }

    /// A random event that the recovery does not wait for.
    fn random_background_event(&mut self, coverage: &mut Coverage) {
        match self.below(3) {
            0 if !self.late.is_empty() => {
                let (slot, object) = self.late.remove(0);
                coverage.late += u32::from(self.create(slot, object));
            }
            1 => {
                if let Some((mut machine, effect)) = self.other.take() {
                    self.other = self.seal(&mut machine, effect).map(|effect| (machine, effect));
                }
            }
            // Slots taken over are deleted; the seal stays.
            2 if self.final_lsns.is_some() => {
                let slots: Vec<u64> = self.slots.keys().copied().filter(|_| self.below(2) == 0).collect();
                for slot in slots {
                    if self.slots[&slot] != Object::Seal {
                        self.slots.remove(&slot);
                    }
                }
            }
            _ => {}
        }
    }

    fn look(&self, slot: Slot, coverage: &mut Coverage) -> RecoverySlotRead {
        match self.slots.get(&slot.get()) {
            None => RecoverySlotRead::Gone,
            Some(Object::Birth) => RecoverySlotRead::Birth,
            Some(Object::Seal) => RecoverySlotRead::Seal,
            Some(Object::Data(_, last)) => {
                let known = self.wal.appends.iter().any(|append| append.lsn.get() == *last);
                coverage.beyond += u32::from(!known);
                RecoverySlotRead::Data(if known {
                    WalMatch::Through(Lsn::new(*last))
                } else {
                    WalMatch::Beyond
                })
            }
        }
    }

    fn put(&mut self, slot: Slot, after: Lsn, coverage: &mut Coverage) -> RecoveryInput {
        let first = after.next().get();
        let last = self.wal.appends.last().unwrap().lsn.get();
        let through = (first + self.below(3)).min(last);
        let below_seal = self.highest() > Some(slot);
        let ours = self.create(slot.get(), Object::Data(first, through));
        coverage.gaps += u32::from(ours && below_seal);
        RecoveryInput::Put { ours, through: Lsn::new(through) }
    }

    fn run(&mut self, coverage: &mut Coverage) -> Recovered {
        let (mut machine, mut effect) = Recovery::begin(&self.wal);
        let mut sealing: Option<(SealMachine, SealEffect)> = None;
        for _ in 0..10_000 {
            let pause = if self.below(6) == 0 { self.below(60) } else { self.below(3) };
            for _ in 0..pause {
                self.random_background_event(coverage);
            }
            if self.below(30) == 0 {
                // The process ends; its create in flight may succeed later.
                coverage.restarts += 1;
                if let RecoveryEffect::Put { slot, after } = effect {
                    let first = after.next().get();
                    self.late.push((slot.get(), Object::Data(first, first)));
                }
                (machine, effect) = Recovery::begin(&self.wal);
                sealing = None;
                continue;
            }
            let input = match &effect {
                RecoveryEffect::List => RecoveryInput::Listed(self.highest()),
                RecoveryEffect::ReadSlot(slot) => RecoveryInput::SlotRead(self.look(*slot, coverage)),
                RecoveryEffect::Put { slot, after } => self.put(*slot, *after, coverage),
                RecoveryEffect::Seal => {
                    let (mut seal, step) = sealing.take().unwrap_or_else(SealMachine::begin);
                    match self.seal(&mut seal, step) {
                        Some(next) => {
                            sealing = Some((seal, next));
                            continue;
                        }
                        None => RecoveryInput::Sealed,
                    }
                }
                RecoveryEffect::Done(recovered) => {
                    let stranded = matches!(recovered, Recovered::Stranded { .. });
                    coverage.stranded += u32::from(stranded);
                    return *recovered;
                }
            };
            effect = machine.apply(input).unwrap();
        }
        panic!("recovery did not end");
    }
}

/// Under random faults, recovery puts every WAL append into the log or reports it as stranded.
#[test]
fn recovery_leaves_each_append_shipped_or_stranded() {
    let mut coverage = Coverage::default();
    for seed in 0..40_000 {
        let mut world = World::new(seed, &mut coverage);
        let wal: Vec<u64> = world.wal.appends.iter().map(|append| append.lsn.get()).collect();
        let recovered = world.run(&mut coverage);
        let after = match recovered {
            Recovered::Complete => u64::MAX,
            Recovered::Stranded { after } => after.get(),
            other => panic!("seed {seed}: {other:?}"),
        };
        // A foreign sealer may not have confirmed its seal yet.
        let logged = world.final_lsns.clone().unwrap_or_else(|| world.lsns());
        for lsn in wal {
            assert!(
                logged.contains(&lsn) || lsn > after,
                "seed {seed}: {recovered:?}, but {lsn} is not in {logged:?}"
            );
        }
    }
    let Coverage { late, beyond, gaps, stranded, restarts, trimmed } = coverage;
    for (event, count) in [
        ("late", late),
        ("beyond", beyond),
        ("gaps", gaps),
        ("stranded", stranded),
        ("restarts", restarts),
        ("trimmed", trimmed),
    ] {
        assert!(count > 20, "{event}: {count}");
    }
}
