//! Placement of unassigned subjects on servers: weighted rendezvous hashing.
//!
//! Each server has a score for each subject, computed from the two names and the weight. The highest score wins. A new
//! server gets only the subjects for which its score is the highest. If a server leaves, only its own subjects move.
//! Each server gets a share in proportion to its weight. Placement needs no data about other subjects.

use dormouse_protocol::{ServerName, Subject};
use sha2::{Digest, Sha256};

/// The server with the highest score for `subject` among `candidates` (name and weight). A server of weight 0 is never
/// chosen; `None` if there is no candidate.
#[must_use]
pub fn place<'a, I>(subject: &Subject, candidates: I) -> Option<&'a ServerName>
where
    I: IntoIterator<Item = (&'a ServerName, u64)>,
{
    let subject = digest(subject.as_str());
    candidates
        .into_iter()
        .filter(|(_, weight)| *weight > 0)
        .map(|(server, weight)| (score(subject, server, weight), server))
        // Equal scores do not occur in practice; the name decides so that the result never depends on the order.
        .max_by(|(score, server), (other_score, other)| {
            score.total_cmp(other_score).then_with(|| server.cmp(other))
        })
        .map(|(_, server)| server)
}

/// The reciprocal of a sample of the exponential distribution with rate `weight`. The probability of the highest score is
/// in proportion to the weight.
fn score(subject: u64, server: &ServerName, weight: u64) -> f64 {
    let hash = mix(subject ^ mix(digest(server.as_str())));
    // 53 bits, shifted by one half so that the result is neither 0 nor 1.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight as f64 / -uniform.ln()
}

fn digest(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A bijection in which every input bit flips each output bit half of the time (the finalizer of `SplitMix64`).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn servers(number: usize) -> Vec<ServerName> {
        (1..=number).map(|n| ServerName::new(&format!("persist-{n}")).unwrap()).collect()
    }

    fn subject(number: usize) -> Subject {
        Subject::new(&format!("app.orders.{number}")).unwrap()
    }

    fn shares(weighted: &[(ServerName, u64)], subjects: usize) -> BTreeMap<ServerName, usize> {
        let mut shares = BTreeMap::new();
        for number in 0..subjects {
            let chosen =
                place(&subject(number), weighted.iter().map(|(name, weight)| (name, *weight))).unwrap();
            *shares.entry(chosen.clone()).or_default() += 1;
        }
        shares
    }

    /// Each of eight servers of equal weight gets an eighth of 100,000 subjects, within 10 %.
    #[test]
    fn placement_on_eight_servers_is_even() {
        let weighted: Vec<_> = servers(8).into_iter().map(|name| (name, 100)).collect();
        let shares = shares(&weighted, 100_000);
        assert_eq!(shares.len(), 8);
        for (server, share) in shares {
            assert!((11_250..=13_750).contains(&share), "{server} has {share} of 100,000");
        }
    }

    /// The share of each server is proportional to its weight, within 5 %.
    #[test]
    fn placement_shares_follow_weights() {
        let weighted: Vec<_> = servers(4).into_iter().zip([100, 200, 300, 0]).collect();
        let shares = shares(&weighted, 60_000);
        for (server, weight) in weighted {
            let share = shares.get(&server).copied().unwrap_or(0) as f64;
            let expected = weight as f64 * 100.0;
            assert!(
                (share - expected).abs() <= expected * 0.05,
                "{server} of weight {weight} has {share}, expected {expected}"
            );
        }
    }

    /// Placement returns no server if there is no candidate or if each weight is zero.
    #[test]
    fn placement_without_candidates_returns_none() {
        let name = ServerName::new("idle").unwrap();
        assert_eq!(place(&subject(1), []), None);
        assert_eq!(place(&subject(1), [(&name, 0)]), None);
    }

    proptest! {
        /// If a server joins or leaves, placement changes only for the subjects of that server.
        #[test]
        fn placement_moves_only_subjects_of_changed_server(
            names in proptest::collection::btree_set("[a-z0-9][a-z0-9-]{0,12}", 2..12),
            weights in proptest::collection::vec(1_u64..1_000, 12),
            leaver in any::<prop::sample::Index>(),
        ) {
            let all: Vec<_> = names
                .iter()
                .filter_map(|name| ServerName::new(name).ok())
                .zip(weights)
                .collect();
            prop_assume!(all.len() >= 2);
            let gone = leaver.get(&all).0.clone();
            let place_without = |subject: &Subject, without: Option<&ServerName>| {
                let candidates = all.iter().filter(|(name, _)| Some(name) != without);
                place(subject, candidates.map(|(name, weight)| (name, *weight))).unwrap().clone()
            };
            for number in 0..300 {
                let subject = subject(number);
                let (with, without) = (place_without(&subject, None), place_without(&subject, Some(&gone)));
                if with == gone {
                    prop_assert_ne!(&without, &gone);
                } else {
                    prop_assert_eq!(with, without);
                }
            }
        }
    }
}
