//! Who may hold how much of something of which there is only so much: a pure ledger.

use std::collections::BTreeMap;

/// What subjects hold of something that all of them share.
///
/// Of what the others leave, a subject may hold half. So there is always something left for whoever comes next, and yet
/// one that is alone is not kept to a part that was meant for many: nobody has to guess how many there will be. What a
/// subject holds already it keeps, also when the others' growing makes it more than it could take now.
#[derive(Debug)]
pub(super) struct Shares {
    whole: u64,
    /// A subject may hold so much where it is there, be it more than half of the rest.
    least: u64,
    of: BTreeMap<String, u64>,
    taken: u64,
}

impl Shares {
    pub(super) const fn new(whole: u64, least: u64) -> Self {
        Self { whole, least, of: BTreeMap::new(), taken: 0 }
    }

    /// Takes so much more for a subject. `false`: it may not have that, and nothing was taken.
    pub(super) fn take(&mut self, subject: &str, more: u64) -> bool {
        let may = self.may_take(subject, more);
        if may {
            self.add(subject, more);
        }
        may
    }

    /// Whether a subject could take so much at this moment.
    pub(super) fn may_take(&self, subject: &str, more: u64) -> bool {
        let held = self.held(subject);
        let left = self.whole.saturating_sub(self.taken - held);
        more == 0 || held.saturating_add(more) <= self.most_of(left)
    }

    /// Takes what a subject was found to hold before anybody could ask. Whatever it has come to hold by
    /// [`Shares::take`] finds its place again, in whatever order it is found.
    pub(super) fn take_up(&mut self, subject: &str, more: u64) -> bool {
        let of_subject = self.held(subject).saturating_add(more);
        let may = of_subject <= self.most() && self.taken.saturating_add(more) <= self.whole;
        if may {
            self.add(subject, more);
        }
        may
    }

    /// A subject holds so much less.
    pub(super) fn give_back(&mut self, subject: &str, less: u64) {
        let Some(held) = self.of.get_mut(subject) else { return };
        debug_assert!(*held >= less, "more is given back than was taken");
        let less = less.min(*held);
        *held -= less;
        self.taken -= less;
        if *held == 0 {
            self.of.remove(subject);
        }
    }

    /// The most that one subject ever holds.
    pub(super) fn most(&self) -> u64 {
        self.most_of(self.whole)
    }

    /// What all of them hold together.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    fn held(&self, subject: &str) -> u64 {
        self.of.get(subject).copied().unwrap_or_default()
    }

    fn most_of(&self, left: u64) -> u64 {
        (left / 2).max(self.least.min(left))
    }

    fn add(&mut self, subject: &str, more: u64) {
        if more == 0 {
            return;
        }
        self.taken += more;
        match self.of.get_mut(subject) {
            Some(held) => *held += more,
            None => {
                self.of.insert(subject.to_owned(), more);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A subject takes all that it may.
    fn grab(shares: &mut Shares, subject: &str) -> u64 {
        let before = shares.held(subject);
        for more in (0..64).rev().map(|bit| 1 << bit) {
            shares.take(subject, more);
        }
        shares.held(subject) - before
    }

    #[test]
    fn whoever_takes_all_that_it_may_leaves_half_of_the_rest() {
        let mut shares = Shares::new(256, 1);
        let got = ["a", "b", "c", "d", "a"].map(|subject| grab(&mut shares, subject));
        assert_eq!(got, [128, 64, 32, 16, 0]);
        shares.give_back("b", 64);
        assert_eq!((grab(&mut shares, "e"), shares.taken()), (40, 216));
    }

    #[test]
    fn the_least_may_be_had_as_long_as_it_is_there() {
        let mut shares = Shares::new(3, 1);
        assert_eq!(
            ["a", "a", "b", "c", "d"].map(|subject| shares.take(subject, 1)),
            [true, false, true, true, false]
        );
        assert_eq!((Shares::new(1, 1).most(), Shares::new(0, 1).most(), Shares::new(9, 0).most()), (1, 0, 4));
        assert!(Shares::new(0, 0).take("a", 0));
    }

    proptest! {
        /// Whatever is taken and given back: nobody takes more than half of what the others leave, what is taken is what
        /// all hold, and everything that is held can be taken up again by whoever finds it, in any order.
        #[test]
        fn a_newcomer_always_finds_half_of_what_is_left(
            whole in 0..1_000_u64,
            steps in proptest::collection::vec((0..5_u8, 0..600_u64, any::<bool>()), 0..60),
            backwards in any::<bool>(),
        ) {
            let mut shares = Shares::new(whole, 0);
            for (who, amount, take) in steps {
                let (who, before) = (who.to_string(), shares.taken());
                if take && shares.take(&who, amount) {
                    let others = shares.taken() - shares.held(&who);
                    prop_assert!(amount == 0 || shares.held(&who) <= (whole - others) / 2);
                    prop_assert_eq!(shares.taken(), before + amount);
                } else if !take {
                    let held = shares.held(&who);
                    shares.give_back(&who, amount.min(held));
                    prop_assert_eq!(shares.taken(), before - amount.min(held));
                } else {
                    prop_assert_eq!(shares.taken(), before);
                }
                prop_assert_eq!(shares.of.values().sum::<u64>(), shares.taken());
                prop_assert!(shares.of.values().all(|held| *held > 0 && *held <= shares.most()));
                let left = whole - shares.taken();
                prop_assert!(shares.may_take("somebody new", left / 2));
                prop_assert!(left < 2 || shares.taken() == 0 || left / 2 > 0);
            }
            let mut found: Vec<_> = shares.of.iter().collect();
            if backwards {
                found.reverse();
            }
            let mut later = Shares::new(whole, 0);
            for (who, held) in found {
                prop_assert!(later.take_up(who, *held));
            }
            prop_assert_eq!(later.taken(), shares.taken());
            // And no more than that.
            let too_much = whole - later.taken() + 1;
            prop_assert!(!later.take_up("somebody new", too_much));
            prop_assert!(!later.take_up("somebody new", later.most() + 1));
        }
    }
}
