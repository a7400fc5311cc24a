//! A script, and every interleaving of an owner that writes and trims with two sealers, at small bounds.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;
use crate::log::owner::{Owner, OwnerEffect, OwnerInput, PutOutcome};

fn slot(number: u64) -> Slot {
    Slot::new(number)
}

#[test]
fn the_seal_that_somebody_else_put_is_seen_before_the_listing_that_confirms_it() {
    let (mut seal, effect) = Seal::begin();
    assert_eq!(effect, SealEffect::List);
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), Some(SealEffect::Look(slot(7))));
    assert_eq!(seal.apply(SealInput::Looked(Looked::Seal)), Some(SealEffect::List));
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), Some(SealEffect::Sealed(slot(7))));
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(7)))), None);
}

#[test]
fn a_seal_in_a_hole_is_void() {
    let (mut seal, _) = Seal::begin();
    seal.apply(SealInput::Listed(Some(slot(3))));
    assert_eq!(seal.apply(SealInput::Looked(Looked::Other)), Some(SealEffect::Create(slot(4))));
    assert_eq!(seal.apply(SealInput::Created { ours: true }), Some(SealEffect::List));
    // The owner was at 6 already and had trimmed 4.
    assert_eq!(seal.apply(SealInput::Listed(Some(slot(6)))), Some(SealEffect::Look(slot(6))));
}

#[test]
fn a_log_without_any_slot_was_never_born() {
    let (mut seal, _) = Seal::begin();
    assert_eq!(seal.apply(SealInput::Listed(None)), Some(SealEffect::Absent));
}

/// The bucket, an owner and two sealers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// Whether each existing slot is a seal.
    slots: BTreeMap<u64, bool>,
    owner: Owner,
    puts: u8,
    /// The owner's create: its slot, and whether it was ours once it arrived.
    create: Option<(u64, Option<bool>)>,
    /// Slots that may be deleted at any time.
    deletable: BTreeSet<u64>,
    sealers: [(Seal, SealEffect); 2],
    acknowledged: u64,
    fence: Option<u64>,
}

#[derive(Debug, Default)]
struct Reached {
    void_seals: bool,
    seals_of_a_living_log: bool,
    states: usize,
}

impl World {
    fn new() -> Self {
        Self {
            slots: BTreeMap::from([(0, false)]),
            owner: Owner::new(slot(1)),
            puts: 4,
            create: None,
            deletable: BTreeSet::new(),
            sealers: [Seal::begin(), Seal::begin()],
            acknowledged: 0,
            fence: None,
        }
    }

    fn owner_effects(&mut self, effects: Vec<OwnerEffect>) {
        for effect in effects {
            match effect {
                OwnerEffect::Put { slot } => self.create = Some((slot.get(), None)),
                OwnerEffect::Landed { slot } => self.acknowledged = slot.get(),
                OwnerEffect::Delete { from, to } => self.deletable.extend(from.get()..to.get()),
                OwnerEffect::Probe { .. } | OwnerEffect::Proven { .. } | OwnerEffect::End => {}
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
                let outcome = if ours { PutOutcome::Ours } else { PutOutcome::Anothers };
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
                // Whatever lies there by now: the owner cannot tell, so a void seal may go as well.
                world.slots.remove(&at);
            });
        }
        for who in 0..self.sealers.len() {
            step(&|world| world.sealer_step(who));
        }
        worlds
    }

    fn sealer_step(&mut self, who: usize) {
        let highest = self.slots.keys().next_back().copied();
        let input = match self.sealers[who].1 {
            SealEffect::List => SealInput::Listed(highest.map(Slot::new)),
            SealEffect::Look(at) => SealInput::Looked(match self.slots.get(&at.get()) {
                None => Looked::Gone,
                Some(true) => Looked::Seal,
                Some(false) => Looked::Other,
            }),
            SealEffect::Create(at) => {
                let ours = !self.slots.contains_key(&at.get());
                self.slots.entry(at.get()).or_insert(true);
                SealInput::Created { ours }
            }
            SealEffect::Sealed(at) => {
                self.fence = Some(at.get());
                return;
            }
            SealEffect::Absent => return,
        };
        self.sealers[who].1 = self.sealers[who].0.apply(input).unwrap();
    }

    /// What a sealed log promises.
    fn check(&self) {
        assert!(!self.slots.is_empty(), "the end of the log is unknown: {self:?}");
        for (_, effect) in &self.sealers {
            assert_ne!(*effect, SealEffect::Absent);
        }
        let Some(fence) = self.fence else { return };
        assert_eq!(self.slots.last_key_value(), Some((&fence, &true)), "{self:?}");
        assert!(self.acknowledged < fence, "acknowledged at or above a valid seal: {self:?}");
        for (_, effect) in &self.sealers {
            if let SealEffect::Sealed(at) = effect {
                assert_eq!(at.get(), fence, "two ends of one log: {self:?}");
            }
        }
    }

    fn note(&self, reached: &mut Reached) {
        let highest = self.slots.keys().next_back();
        reached.void_seals |= self.slots.iter().any(|(at, seal)| *seal && Some(at) != highest);
        reached.seals_of_a_living_log |= self.fence.is_some() && !self.owner.has_ended();
    }
}

#[test]
fn nothing_is_acknowledged_above_a_valid_seal_and_its_place_is_final() {
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
    assert!(reached.void_seals && reached.seals_of_a_living_log, "{reached:?}");
}
