//! Whatever happens in whatever order: nothing is lost, doubled, or declared gone.

use proptest::prelude::*;

use super::*;
use crate::poll::engine::confirmation::CONFIRM_AGAIN;

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u8..6).prop_map(Act::Open),
        3 => any::<u16>().prop_map(Act::Close),
        1 => (any::<u16>(), 1u8..20).prop_map(|(choice, count)| Act::CloseMany(choice, count)),
        2 => any::<u16>().prop_map(Act::Reopen),
        1 => any::<u16>().prop_map(Act::OpenAnew),
        1 => any::<u16>().prop_map(Act::Change),
        1 => any::<u16>().prop_map(Act::Bump),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    (
        proptest::collection::vec(act(), 0..3),
        proptest::bool::weighted(0.4),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.2),
        proptest::option::weighted(
            0.05,
            prop_oneof![Just(Hollow::Counting), Just(Hollow::CountingNothing)],
        ),
        proptest::option::weighted(0.02, 2usize..9),
    )
        .prop_map(
            |(acts, poll, fails, store_fails, is_slow, hollow, page_size)| Turn {
                acts,
                poll,
                fails,
                store_fails,
                is_slow,
                hollow,
                page_size,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2 * ProptestConfig::default().cases))]

    /// Whatever happens between two requests: no open alert is declared gone, no alert is opened
    /// twice, and after a quiet full read exactly the open alerts are known.
    #[test]
    fn nothing_is_lost_doubled_or_declared_gone(
        by_updated: bool,
        answers_by_id: bool,
        page_size in 2usize..9,
        start in 0u8..60,
        turns in proptest::collection::vec(turn(), 0..120),
        repeats in proptest::bool::weighted(0.2),
        names_next in proptest::bool::weighted(0.2),
        size_as_shown in proptest::bool::weighted(0.2),
        reloads in proptest::collection::btree_set(0usize..120, 0..4),
        ids_override in proptest::bool::weighted(0.2),
        surplus in 0i64..6,
        shows_twice in proptest::bool::weighted(0.2),
    ) {
        let mut run = Run::new(by_updated, page_size, answers_by_id);
        run.server.ids_override = ids_override;
        run.server.shows_twice = shows_twice && !ids_override;
        run.server.surplus = surplus / 5;
        run.server.repeats = repeats;
        run.server.names_next = names_next;
        run.server.size_as_shown = size_as_shown;
        run.server.act(&Act::Open(start));
        for (number, turn) in turns.into_iter().enumerate() {
            if reloads.contains(&number) {
                run.reload();
            }
            for act in &turn.acts {
                run.server.act(act);
            }
            if let Some(size) = turn.page_size {
                run.server.page_size = size;
            }
            run.server.hollow = turn.hollow;
            if turn.fails {
                run.under_way_to[0] = None;
                if let Some(page) = run.poll_page.take() {
                    run.engine.page_missed(page);
                    run.engine.poll_cut_short(run.now);
                }
                continue;
            }
            if turn.is_slow {
                run.send(turn.poll);
                continue;
            }
            run.go_on(turn.poll, turn.store_fails);
        }
        run.server.hollow = None;
        run.settle();
        if run.server.surplus > 0 {
            // No question is asked without a witness, nor for an hour after the server has proved
            // unable to answer questions by id.
            run.server.act(&Act::Open(1));
            run.now += CONFIRM_AGAIN;
            run.settle();
        }
        run.assert_agreement();
        prop_assert_eq!(run.engine.is_complete(), run.server.surplus == 0);
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..60u64, 0..10_000u64, any::<u64>(), Just(u64::MAX)]
    }
    (
        proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        number(),
        number().prop_map(|size| size.max(1)),
        proptest::option::weighted(0.7, number()),
        0..3usize,
    )
        .prop_map(|(shown, total, page_size, next, unreadable)| Lie {
            shown,
            total,
            page_size,
            next,
            unreadable,
        })
}

proptest! {
    /// Whatever a server has claimed: once it tells the truth again, the engine's alerts are right
    /// again.
    #[test]
    fn lies_do_not_last(
        start in 1u8..60,
        closed in 0u8..20,
        lies in proptest::collection::vec((any::<bool>(), lie()), 0..100),
    ) {
        let mut run = Run::new(false, 7, true);
        run.server.act(&Act::Open(start));
        run.server.act(&Act::CloseMany(0, closed));
        for (poll, lie) in lies {
            run.lie = Some(lie);
            run.go_on(poll, false);
            run.lie = None;
        }
        run.settle();
        run.settle();
        run.assert_agreement();
        prop_assert!(run.engine.is_complete());
    }
}
