//! Fair shares of a limited capacity. Pure accounting.

use std::collections::BTreeMap;

/// The shares of subjects in a capacity that all of them use.
///
/// A subject may hold half of the capacity that the other subjects leave free. So a new subject always finds free
/// capacity, and a single subject is not limited to a fixed part; the number of subjects need not be known. A subject
/// keeps its share, even if the growth of other shares makes it larger than it could take now.
#[derive(Debug)]
pub(super) struct FairShare {
    whole: u64,
    /// A subject may hold so much if it is free, even if that is more than half of the rest.
    least: u64,
    of: BTreeMap<String, u64>,
    taken: u64,
}

impl FairShare {
    pub(super) const fn new(whole: u64, least: u64) -> Self {
        Self { whole, least, of: BTreeMap::new(), taken: 0 }
    }

    /// Adds to a subject's share. `false`: the subject may not hold that much, and nothing was added.
    pub(super) fn take(&mut self, subject: &str, more: u64) -> bool {
        let may = self.may_take(subject, more);
        if may {
            self.add(subject, more);
        }
        may
    }

    /// Whether a subject could take so much now.
    pub(super) fn may_take(&self, subject: &str, more: u64) -> bool {
        let held = self.held(subject);
        let left = self.whole.saturating_sub(self.taken - held);
        more == 0 || held.saturating_add(more) <= self.most_of(left)
    }

    /// Adds a share that a subject held before a restart. All shares that [`FairShare::take`] has granted fit again, in
    /// any order.
    pub(super) fn resume(&mut self, subject: &str, more: u64) -> bool {
        let of_subject = self.held(subject).saturating_add(more);
        let may = of_subject <= self.most() && self.taken.saturating_add(more) <= self.whole;
        if may {
            self.add(subject, more);
        }
        may
    }

    /// Reduces a subject's share.
    pub(super) fn give_back(&mut self, subject: &str, less: u64) {
        let Some(held) = self.of.get_mut(subject) else { return };
        debug_assert!(*held >= less, "a subject gives back at most its share");
        let less = less.min(*held);
        *held -= less;
        self.taken -= less;
        if *held == 0 {
            self.of.remove(subject);
        }
    }

    /// The largest share that one subject can hold.
    pub(super) fn most(&self) -> u64 {
        self.most_of(self.whole)
    }

    /// The sum of all shares.
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

    /// Takes the largest possible share for a subject.
    fn take_all(shares: &mut FairShare, subject: &str) -> u64 {
        let before = shares.held(subject);
        for more in (0..64).rev().map(|bit| 1 << bit) {
            shares.take(subject, more);
        }
        shares.held(subject) - before
    }

    /// A subject that takes its whole share leaves half of the remainder to others.
    #[test]
    fn fair_share_of_one_subject_leaves_half_of_the_rest() {
        let mut shares = FairShare::new(256, 1);
        let got = ["a", "b", "c", "d", "a"].map(|subject| take_all(&mut shares, subject));
        assert_eq!(got, [128, 64, 32, 16, 0]);
        shares.give_back("b", 64);
        assert_eq!((take_all(&mut shares, "e"), shares.taken()), (40, 216));
    }

    /// A subject without a share gets the minimum as long as it is available.
    #[test]
    fn fair_share_minimum_is_granted_while_available() {
        let mut shares = FairShare::new(3, 1);
        assert_eq!(
            ["a", "a", "b", "c", "d"].map(|subject| shares.take(subject, 1)),
            [true, false, true, true, false]
        );
        assert_eq!(
            (FairShare::new(1, 1).most(), FairShare::new(0, 1).most(), FairShare::new(9, 0).most()),
            (1, 0, 4)
        );
        assert!(FairShare::new(0, 0).take("a", 0));
    }

    proptest! {
        /// After any sequence of takes and returns, no take exceeds half of the capacity that others leave free. The
        /// sum matches the shares, and all shares can be resumed in any order.
        #[test]
        fn fair_share_newcomer_gets_half_of_the_rest(
            whole in 0..1_000_u64,
            steps in proptest::collection::vec((0..5_u8, 0..600_u64, any::<bool>()), 0..60),
            backwards in any::<bool>(),
        ) {
            let mut shares = FairShare::new(whole, 0);
            for (subject, amount, take) in steps {
                let (subject, before) = (subject.to_string(), shares.taken());
                if take && shares.take(&subject, amount) {
                    let others = shares.taken() - shares.held(&subject);
                    prop_assert!(amount == 0 || shares.held(&subject) <= (whole - others) / 2);
                    prop_assert_eq!(shares.taken(), before + amount);
                } else if !take {
                    let held = shares.held(&subject);
                    shares.give_back(&subject, amount.min(held));
                    prop_assert_eq!(shares.taken(), before - amount.min(held));
                } else {
                    prop_assert_eq!(shares.taken(), before);
                }
                prop_assert_eq!(shares.of.values().sum::<u64>(), shares.taken());
                prop_assert!(shares.of.values().all(|held| *held > 0 && *held <= shares.most()));
                let left = whole - shares.taken();
                prop_assert!(shares.may_take("a new subject", left / 2));
                prop_assert!(left < 2 || shares.taken() == 0 || left / 2 > 0);
            }
            let mut found: Vec<_> = shares.of.iter().collect();
            if backwards {
                found.reverse();
            }
            let mut later = FairShare::new(whole, 0);
            for (subject, held) in found {
                prop_assert!(later.resume(subject, *held));
            }
            prop_assert_eq!(later.taken(), shares.taken());
            // A larger share does not fit.
            let too_much = whole - later.taken() + 1;
            prop_assert!(!later.resume("a new subject", too_much));
            prop_assert!(!later.resume("a new subject", later.most() + 1));
        }
    }
}
