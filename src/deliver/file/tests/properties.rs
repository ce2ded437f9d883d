use super::*;

/// What may happen to a file and its writer.
#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    /// The store notes what was acknowledged.
    Save,
    Kill,
    /// The process is killed in the middle of a write.
    KillWriting(usize, usize),
    /// A write that fails in its middle, as on a full disk.
    Fail(usize, usize),
    Rotate,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_usize).prop_map(Step::Deliver),
        3 => Just(Step::Save),
        1 => Just(Step::Kill),
        3 => (1..6_usize, any::<usize>()).prop_map(|(n, keep)| Step::KillWriting(n, keep)),
        2 => (1..6_usize, any::<usize>()).prop_map(|(n, keep)| Step::Fail(n, keep)),
        2 => Just(Step::Rotate),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_each_line_is_there_once_and_in_order(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut world = World::with_events(60);
        for step in steps {
            match step {
                Step::Deliver(count) => world.deliver(count),
                Step::Save => world.save(),
                Step::Kill => world.crash(),
                Step::KillWriting(count, keep) => {
                    world.deliver_part(count, keep);
                    world.crash();
                }
                Step::Fail(count, keep) => {
                    world.sink.reopen();
                    if !world.sink.moved_unsettled.is_empty() {
                        // This step cannot undo what was written to another file.
                        continue;
                    }
                    let before = world.deliver_part(count, keep);
                    let (Some(current), Some(settled)) =
                        (&mut world.sink.current, before.settled)
                    else {
                        world.crash();
                        continue;
                    };
                    current.settled = settled;
                    current.end = fs::metadata(&current.path).unwrap().len();
                    current.mark = before.mark.as_deref().and_then(Mark::decode).map(|it| it.0);
                    world.cursor = before.cursor;
                    world.mark = before.mark;
                }
                Step::Rotate => world.rotate(),
                Step::Reopen => world.sink.reopen(),
            }
        }
        world.deliver(60);
        prop_assert_eq!(world.content(), world.expected());
    }
}

/// What may happen to a sink whose searches come and go.
#[derive(Clone, Debug)]
enum Turn {
    /// Delivers events: their search, and how many.
    Deliver(usize, usize),
    Save,
    /// What was delivered of the search and not saved is given again.
    Lose(usize),
    Rotate,
    Reopen,
}

const SEARCHES: usize = 3;

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => (0..SEARCHES, 1..4_usize).prop_map(|(search, n)| Turn::Deliver(search, n)),
        1 => Just(Turn::Save),
        3 => (0..SEARCHES).prop_map(Turn::Lose),
        2 => Just(Turn::Rotate),
        1 => Just(Turn::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whichever_searches_come_and_go_each_line_is_there_once(
        turns in prop::collection::vec(turn(), 1..40)
    ) {
        const EVENTS: usize = 20;
        let mut world = World::shared(SEARCHES * EVENTS);
        let (mut given, mut saved, mut written) = ([0; SEARCHES], [0; SEARCHES], [0; SEARCHES]);
        let mut losses = 0;
        let rest = (0..SEARCHES).map(|search| Turn::Deliver(search, EVENTS));
        for turn in turns.into_iter().chain(rest) {
            match turn {
                Turn::Deliver(search, count) => {
                    let from = given[search];
                    let to = (from + count).min(EVENTS);
                    let past = Past {
                        is_inherited: from < written[search],
                        acks_stored: given == saved,
                        losses,
                    };
                    let which: Vec<_> = (from..to).map(|it| it * SEARCHES + search).collect();
                    world.hand(past, &which);
                    given[search] = to;
                    written[search] = written[search].max(to);
                }
                Turn::Save => saved = given,
                Turn::Lose(search) => {
                    losses += u64::from(given[search] > saved[search]);
                    given[search] = saved[search];
                }
                Turn::Rotate => world.rotate(),
                Turn::Reopen => world.sink.reopen(),
            }
        }
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        prop_assert_eq!(sorted(world.content()), sorted(world.expected()));
    }
}
