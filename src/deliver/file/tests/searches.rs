use super::*;

/// What a sink hears before it is given events that only this process had.
const OWN: Past = Past {
    is_inherited: false,
    acks_stored: true,
    losses: 0,
};

/// What a sink hears before it is given events that other holders may have delivered.
const INHERITED: Past = Past {
    is_inherited: true,
    ..OWN
};

#[test]
fn what_a_former_holder_may_have_written_is_looked_for_before_what_is_settled() {
    let mut world = World::with_events(4);
    world.deliver(3);
    world.hand(INHERITED, &[1, 3]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn lines_of_searches_that_come_one_by_one_are_found_where_the_file_was_moved_to() {
    let mut world = World::with_events(9);
    world.deliver(2);
    world.save();
    world.deliver(5);
    world.crash();
    world.rotate();
    world.hand(OWN, &[7]);
    for came in [&[5, 6][..], &[2], &[3, 4]] {
        world.hand(INHERITED, came);
    }
    world.rotate();
    world.hand(OWN, &[8]);
    // Another replica has held the search of this event until now.
    world.hand(INHERITED, &[4]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn what_was_never_acknowledged_is_found_however_much_was_written_since() {
    let long = (4..22).map(|number| format!("{number}{}", "x".repeat(1 << 20)));
    let short = (0..4).map(|number| format!("{number}"));
    let mut world = World::new(short.chain(long));
    world.deliver(1);
    world.save();
    world.deliver(3);
    world.crash();
    world.hand(INHERITED, &[2]);
    for number in 4..21 {
        world.hand(OWN, &[number]);
    }
    world.hand(INHERITED, &[1]);
    // The next process knows the doubtful part as well.
    world.save();
    world.crash();
    world.hand(INHERITED, &[3]);
    world.hand(OWN, &[21]);
    assert!(world.content() == world.expected(), "each once");
}

#[test]
fn what_the_store_had_not_heard_of_when_a_search_was_lost_is_found_when_it_comes_back() {
    let mut world = World::with_events(5);
    world.hand(OWN, &[0]);
    world.hand(OWN, &[1]);
    let unheard = Past {
        acks_stored: false,
        ..OWN
    };
    world.hand(unheard, &[2]);
    let losses = 1;
    world.hand(Past { losses, ..OWN }, &[3]);
    world.rotate();
    world.hand(Past { losses, ..OWN }, &[4]);
    world.hand(Past { losses, ..OWN }, &[]);
    assert_eq!(world.sink.moved_settled.len(), 1);
    world.hand(
        Past {
            losses,
            ..INHERITED
        },
        &[1],
    );
    assert_eq!(world.content(), world.expected());
    fs::remove_file(world.folder.path().join("alerts.jsonl.1")).unwrap();
    world.sink.reopen();
    assert!(
        world.sink.moved_settled.is_empty(),
        "it frees the room on the disk"
    );
}

#[test]
fn a_file_that_was_moved_away_is_closed_once_the_store_has_heard_of_all_in_it() {
    let mut world = World::with_events(3);
    for number in 0..2 {
        world.hand(OWN, &[number]);
    }
    world.rotate();
    // Whether the server has heard of the last line is not known at this moment.
    world.sink.reopen();
    assert_eq!(world.sink.moved_settled.len(), 1);
    world.hand(OWN, &[2]);
    assert!(world.sink.moved_settled.is_empty());
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_doubtful_file_that_is_moved_back_is_gone_on_with() {
    let mut world = World::with_events(3);
    for number in 0..2 {
        world.hand(OWN, &[number]);
    }
    world.rotate();
    world.sink.reopen();
    fs::rename(world.folder.path().join("alerts.jsonl.1"), world.path()).unwrap();
    world.hand(OWN, &[2]);
    assert_eq!(world.content(), world.expected());
}
