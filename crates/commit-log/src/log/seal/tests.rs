//! A script, and every interleaving of an owner that writes and trims with two sealers, at small bounds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;
use crate::log::owner::{LogOwner, OwnerEffect, OwnerInput, PutOutcome};

fn slot(number: u64) -> Slot {
    Slot::new(number)
}

/// If the highest slot holds a foreign seal, the sealer reads it first and then confirms it with a second listing.
#[test]
fn sealer_reads_foreign_seal_before_confirmation() {
    let (mut seal, effect) = SealMachine::begin();
    assert_eq!(effect, SealEffect::List);
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), Some(SealEffect::ReadSlot(slot(7))));
    assert_eq!(seal.apply(SealInput::SlotRead(SealedSlotRead::Seal)), Some(SealEffect::List));
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), Some(SealEffect::Sealed(slot(7))));
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), None);
}

/// If a later listing shows a higher slot, the seal is void and the sealer continues at that slot.
#[test]
fn seal_below_highest_slot_is_void() {
    let (mut seal, _) = SealMachine::begin();
    seal.apply(SealInput::Listed(Some(slot(3))));
    assert_eq!(seal.apply(SealInput::SlotRead(SealedSlotRead::Other)), Some(SealEffect::Create(slot(4))));
    assert_eq!(seal.apply(SealInput::Created { ours: true }), Some(SealEffect::List));
    // The owner was at 6 already and had trimmed 4.
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(6)))), Some(SealEffect::ReadSlot(slot(6))));
}

/// If a log has no slot at all, the sealer reports it as absent.
#[test]
fn sealer_reports_log_without_slots_as_absent() {
    let (mut seal, _) = SealMachine::begin();
    assert_eq!(seal.apply(SealInput::Listed(None)), Some(SealEffect::Absent));
}

/// The bucket, an owner and two sealers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// Whether each existing slot is a seal.
    slots: BTreeMap<u64, bool>,
    owner: LogOwner,
    puts: u8,
    /// The owner's create: its slot, and whether it was ours once it arrived.
    create: Option<(u64, Option<bool>)>,
    /// Slots that may be deleted at any time.
    deletable: BTreeSet<u64>,
    sealers: [(SealMachine, SealEffect); 2],
    acknowledged: u64,
    sealed_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Reached {
    void_seals: bool,
    seals_of_running_log: bool,
    states: usize,
}

impl World {
    fn new() -> Self {
        Self {
            slots: BTreeMap::from([(0, false)]),
            owner: LogOwner::new(slot(1)),
            puts: 4,
            create: None,
            deletable: BTreeSet::new(),
            sealers: [SealMachine::begin(), SealMachine::begin()],
            acknowledged: 0,
            sealed_at: None,
        }
    }

    fn owner_effects(&mut self, effects: Vec<OwnerEffect>) {
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => self.create = Some((slot.get(), None)),
                OwnerEffect::Created { slot } => self.acknowledged = slot.get(),
                OwnerEffect::Delete { from, to } => self.deletable.extend(from.get()..to.get()),
                OwnerEffect::Probe { .. } | OwnerEffect::ReadsConfirmed { .. } | OwnerEffect::End => {}
            }
        }
    }

    fn next(&self) -> Vec<Self> {
        let mut worlds = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            worlds.push(world);
        };
        if self.puts > 0 && self.create.is_none() && !self.owner.has_ended() {
            step(&|world| {
                world.puts -= 1;
                let effects = world.owner.apply(OwnerInput::Ready);
                world.owner_effects(effects);
            });
        }
        match self.create {
            Some((at, None)) => step(&|world| {
                let ours = !world.slots.contains_key(&at);
                world.slots.entry(at).or_insert(false);
                world.create = Some((at, Some(ours)));
            }),
            Some((_, Some(ours))) => step(&|world| {
                world.create = None;
                let outcome = if ours { PutOutcome::Ours } else { PutOutcome::Foreign };
                let effects = world.owner.apply(OwnerInput::Put { outcome, ready: false });
                world.owner_effects(effects);
            }),
            None => {}
        }
        step(&|world| {
            let below = world.owner.next_slot();
            let effects = world.owner.apply(OwnerInput::Unneeded { below });
            world.owner_effects(effects);
        });
        for &at in &self.deletable {
            step(&|world| {
                // The owner does not know the current object in the slot, so it may delete a void seal too.
                world.slots.remove(&at);
            });
        }
        for index in 0..self.sealers.len() {
            step(&|world| world.sealer_step(index));
        }
        worlds
    }

    fn sealer_step(&mut self, index: usize) {
        let highest = self.slots.keys().next_back().copied();
        let input = match self.sealers[index].1 {
            SealEffect::List => SealInput::Listed(highest.map(Slot::new)),
            SealEffect::ReadSlot(at) => SealInput::SlotRead(match self.slots.get(&at.get()) {
                None => SealedSlotRead::Gone,
                Some(true) => SealedSlotRead::Seal,
                Some(false) => SealedSlotRead::Other,
            }),
            SealEffect::Create(at) => {
                let ours = !self.slots.contains_key(&at.get());
                self.slots.entry(at.get()).or_insert(true);
                SealInput::Created { ours }
            }
            SealEffect::Sealed(at) => {
                self.sealed_at = Some(at.get());
                return;
            }
            SealEffect::Absent => return,
        };
        self.sealers[index].1 = self.sealers[index].0.apply(input).unwrap();
    }

    /// The invariants of a sealed log.
    fn check(&self) {
        assert!(!self.slots.is_empty(), "the end of the log is unknown: {self:?}");
        for (_, effect) in &self.sealers {
            assert_ne!(*effect, SealEffect::Absent);
        }
        let Some(sealed_at) = self.sealed_at else { return };
        assert_eq!(self.slots.last_key_value(), Some((&sealed_at, &true)), "{self:?}");
        assert!(self.acknowledged < sealed_at, "acknowledged at or above a valid seal: {self:?}");
        for (_, effect) in &self.sealers {
            if let SealEffect::Sealed(at) = effect {
                assert_eq!(at.get(), sealed_at, "two seals of one log: {self:?}");
            }
        }
    }

    fn note(&self, reached: &mut Reached) {
        let highest = self.slots.keys().next_back();
        reached.void_seals |= self.slots.iter().any(|(at, seal)| *seal && Some(at) != highest);
        reached.seals_of_running_log |= self.sealed_at.is_some() && !self.owner.has_ended();
    }
}

/// In every interleaving of an owner and two sealers, a valid seal keeps its slot and no ack lies above it.
#[test]
fn seal_position_is_final_and_no_ack_follows() {
    let mut reached = Reached::default();
    let mut seen = HashSet::from([World::new()]);
    let mut open = vec![World::new()];
    while let Some(world) = open.pop() {
        world.check();
        world.note(&mut reached);
        for next in world.next() {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    reached.states = seen.len();
    assert!(reached.void_seals && reached.seals_of_running_log, "{reached:?}");
}
