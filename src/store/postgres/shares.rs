//! Decides how many searches each replica holds. Pure.
//!
//! Every replica comes to the same result from what the server shows of all replicas, without
//! talking to any of them. The searches are divided by the number of replicas that are alive, and
//! each of the first replicas gets one more while some are left over. A replica takes no more than
//! its share, and gives back what it has beyond that only as fast as others lack it. So no search
//! is without a holder for longer than a hand-over takes, and nothing moves once the shares are
//! even.

use std::{collections::HashSet, time::Duration};

/// What the server shows of the replicas and the searches.
#[derive(Debug)]
pub(super) struct Survey {
    /// The replicas that are alive, in the order of their numbers, this one among them.
    pub(super) replicas: Vec<Peer>,
    /// The searches that this replica would poll.
    pub(super) searches: Vec<Search>,
}

/// A replica that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) number: i64,
    /// How many searches the replica wants, by its own count.
    pub(super) share: usize,
    /// How many searches the replica holds.
    pub(super) held: usize,
}

/// A search that this replica would poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) row: i64,
    pub(super) holder: Holder,
}

/// Who holds a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Me,
    /// Nobody yet, but this replica is about to take it. Another transaction may have locked its
    /// row.
    Taking,
    Another,
    /// Nobody, for this long.
    Nobody(Duration),
}

/// What a replica shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// How many searches the replica wants.
    pub(super) share: usize,
    /// The searches that the replica may take now.
    pub(super) take: HashSet<i64>,
    /// How many searches the replica shall give back now.
    pub(super) give_back: usize,
}

/// Decides for the replica `me`. A search that nobody has held for longer than `patience` is taken
/// beyond the share, because no other replica seems to want it: replicas may be configured
/// differently while they are being changed.
pub(super) fn decide(survey: &Survey, me: i64, patience: Duration) -> Decision {
    let alive = survey.replicas.len().max(1);
    let rank = survey.replicas.iter().filter(|it| it.number < me).count();
    let searches = survey.searches.len();
    let share = searches / alive + usize::from(rank < searches % alive);

    let count = |holder| {
        let those = survey.searches.iter().filter(|it| it.holder == holder);
        those.count()
    };
    let held = count(Holder::Me);
    let mut free: Vec<(i64, Duration)> = survey
        .searches
        .iter()
        .filter_map(|search| match search.holder {
            Holder::Nobody(time) => Some((search.row, time)),
            _ => None,
        })
        .collect();
    // The order is random, so that not all replicas go for the same searches.
    fastrand::shuffle(&mut free);
    let room = share.saturating_sub(held + count(Holder::Taking));
    let take = free
        .iter()
        .enumerate()
        .filter(|(index, (_, time))| *index < room || *time > patience)
        .map(|(_, (row, _))| *row)
        .collect();

    let lacking: usize = survey
        .replicas
        .iter()
        .filter(|peer| peer.number != me)
        .map(|peer| peer.share.saturating_sub(peer.held))
        .sum();
    // Searches that are free already go to these replicas first.
    let lacking = lacking.saturating_sub(free.len());
    Decision {
        share,
        take,
        give_back: held.saturating_sub(share).min(lacking),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Replicas that decide in turns. What they decide happens at once.
    #[derive(Debug, Default)]
    struct World {
        owners: Vec<Option<i64>>,
        alive: Vec<Peer>,
        moves: usize,
    }

    impl World {
        fn held(&self, number: i64) -> usize {
            let mine = self.owners.iter().filter(|owner| **owner == Some(number));
            mine.count()
        }

        fn join(&mut self, number: i64) {
            self.alive.push(Peer {
                number,
                share: 0,
                held: 0,
            });
        }

        fn die(&mut self, number: i64) {
            self.alive.retain(|peer| peer.number != number);
            for owner in &mut self.owners {
                *owner = owner.filter(|owner| *owner != number);
            }
        }

        fn round(&mut self) {
            for index in 0..self.alive.len() {
                let me = self.alive[index].number;
                for at in 0..self.alive.len() {
                    self.alive[at].held = self.held(self.alive[at].number);
                }
                let holder = |owner: &Option<i64>| match owner {
                    Some(owner) if *owner == me => Holder::Me,
                    Some(_) => Holder::Another,
                    None => Holder::Nobody(Duration::ZERO),
                };
                let searches = self.owners.iter().zip(0_i64..);
                let survey = Survey {
                    replicas: self.alive.clone(),
                    searches: searches
                        .map(|(owner, row)| Search {
                            row,
                            holder: holder(owner),
                        })
                        .collect(),
                };
                let decision = decide(&survey, me, PATIENCE);
                self.alive[index].share = decision.share;
                for row in decision.take {
                    self.owners[usize::try_from(row).unwrap()] = Some(me);
                    self.moves += 1;
                }
                let mine = self.owners.iter_mut().filter(|owner| **owner == Some(me));
                for owner in mine.take(decision.give_back) {
                    *owner = None;
                    self.moves += 1;
                }
            }
        }

        fn settle(&mut self) {
            for _ in 0..4 {
                self.round();
            }
            self.moves = 0;
            self.round();
            assert_eq!(self.moves, 0, "it flaps: {self:?}");
            let searches = self.owners.len();
            for peer in &self.alive {
                let held = self.held(peer.number);
                let (floor, over) = (searches / self.alive.len(), searches % self.alive.len());
                assert!(held == floor || (over > 0 && held == floor + 1), "{self:?}");
            }
            if !self.alive.is_empty() {
                assert!(self.owners.iter().all(Option::is_some), "{self:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn shares_become_even_and_stay_so_whoever_comes_and_goes(
            searches in 0..120_usize,
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..8),
        ) {
            let mut world = World { owners: vec![None; searches], ..World::default() };
            world.join(1);
            world.settle();
            for ((joins, which), number) in steps.into_iter().zip(2..) {
                if joins || world.alive.len() < 2 {
                    world.join(number);
                } else {
                    let gone = which.get(&world.alive).number;
                    world.die(gone);
                }
                world.settle();
            }
        }
    }

    fn survey(replicas: &[(i64, usize, usize)], holders: Vec<Holder>) -> Survey {
        let peer = |&(number, share, held): &(i64, usize, usize)| Peer {
            number,
            share,
            held,
        };
        Survey {
            replicas: replicas.iter().map(peer).collect(),
            searches: (0..)
                .zip(holders)
                .map(|(row, holder)| Search { row, holder })
                .collect(),
        }
    }

    #[test]
    fn what_nobody_else_wants_is_taken_beyond_the_share_and_kept() {
        let long = Holder::Nobody(PATIENCE * 2);
        let free = Holder::Nobody(Duration::ZERO);
        let told = survey(
            &[(1, 1, 1), (2, 2, 2)],
            vec![Holder::Me, Holder::Me, long, free],
        );
        assert_eq!(decide(&told, 2, PATIENCE).take, HashSet::from([2]));
        let more = survey(&[(1, 1, 1), (2, 2, 3)], vec![Holder::Me; 3]);
        assert_eq!(decide(&more, 2, PATIENCE).give_back, 0);
    }

    #[test]
    fn what_is_being_taken_up_takes_room_and_is_not_made_good_by_giving_back() {
        let free = Holder::Nobody(Duration::ZERO);
        let told = survey(
            &[(1, 2, 1), (2, 2, 2)],
            vec![Holder::Me, Holder::Me, Holder::Taking, Holder::Another],
        );
        assert_eq!(decide(&told, 2, PATIENCE).give_back, 0);
        let told = survey(
            &[(1, 2, 1), (2, 2, 0)],
            vec![Holder::Me, Holder::Taking, free, free],
        );
        assert_eq!(decide(&told, 1, PATIENCE).take, HashSet::new());
    }

    #[test]
    fn no_more_is_given_back_than_others_lack() {
        let told = survey(&[(1, 4, 8), (2, 3, 1), (3, 0, 0)], vec![Holder::Me; 8]);
        assert_eq!(decide(&told, 1, PATIENCE).give_back, 2);
        let mut holders = vec![Holder::Me; 8];
        holders.push(Holder::Nobody(Duration::ZERO));
        let told = survey(&[(1, 4, 8), (2, 3, 1), (3, 0, 0)], holders);
        assert_eq!(decide(&told, 1, PATIENCE).give_back, 1);
    }
}
