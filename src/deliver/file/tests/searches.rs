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

/// What a sink hears before the server has stored what it acknowledged.
const UNHEARD: Past = Past {
    acks_stored: false,
    ..OWN
};

/// What a sink hears after a search was lost, …
const LOST: Past = Past { losses: 1, ..OWN };

/// … and when it has come back.
const CAME_BACK: Past = Past {
    losses: 1,
    ..INHERITED
};

impl World {
    /// Returns a world whose store is shared. Events of a search that was taken up get positions
    /// behind the others, so these do not tell what may have been written before.
    pub(super) fn shared(count: usize) -> Self {
        Self::with_events(count).in_shared_store()
    }

    fn in_shared_store(mut self) -> Self {
        self.journal_end = 0;
        self.crash();
        self
    }

    /// Appends so much of somebody else that what is there is no longer at the file's end.
    fn bury(&self) {
        self.append(&[&b"#".repeat(LOOK_BACK as usize)[..], b"\n"].concat());
    }
}

#[test]
fn what_a_former_holder_may_have_written_is_looked_for_before_what_is_settled() {
    let mut world = World::shared(4);
    world.deliver(3);
    world.hand(INHERITED, &[1, 3]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn lines_of_searches_that_come_one_by_one_are_found_where_the_file_was_moved_to() {
    let mut world = World::shared(9);
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
    for rotates in [false, true] {
        let mut world = World::shared(7);
        world.deliver(1);
        world.save();
        world.deliver(3);
        world.crash();
        world.hand(INHERITED, &[2]);
        world.bury();
        world.hand(OWN, &[4]);
        world.hand(INHERITED, &[1]);
        if rotates {
            // The last try was not acknowledged before the file was moved away.
            world.append(world.line(5).as_bytes());
            world.rotate();
        }
        world.hand(OWN, &[5]);
        // The next process knows the doubtful part as well.
        world.save();
        world.crash();
        world.hand(INHERITED, &[3]);
        world.hand(OWN, &[6]);
        assert!(world.ours() == world.expected(), "each once, {rotates}");
    }
}

#[test]
fn what_a_try_left_is_found_though_its_search_was_lost_and_much_was_written_since() {
    for rotates in [false, true] {
        let mut world = World::shared(4);
        world.hand(OWN, &[0]);
        world.append(world.line(1).as_bytes());
        if rotates {
            world.rotate();
        }
        world.hand(LOST, &[2]);
        world.bury();
        world.hand(LOST, &[3]);
        world.hand(CAME_BACK, &[1]);
        assert!(world.ours() == world.expected(), "each once, {rotates}");
    }
}

#[test]
fn what_a_former_holder_has_settled_is_found_in_a_file_that_was_moved_away_since() {
    let mut world = World::shared(4);
    for number in 0..3 {
        world.hand(OWN, &[number]);
    }
    world.save();
    world.crash();
    world.rotate();
    world.hand(INHERITED, &[1]);
    world.hand(OWN, &[3]);
    assert_eq!(world.content(), world.expected());
}

/// The replica was restarted with another configuration meanwhile.
#[test]
fn what_a_former_process_has_settled_in_another_format_is_found() {
    let bodies = (0..3).map(|it| bare_about(&it.to_string()));
    let mut world = World::new(bodies).in_shared_store();
    for number in 0..3 {
        world.hand(OWN, &[number]);
    }
    world.save();
    world.crash_into(Format::Logfmt);
    world.hand(INHERITED, &[1]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_piece_of_a_line_that_stands_whole_far_from_the_end_of_the_next_file_is_not_completed() {
    let mut world = World::shared(2);
    world.hand(OWN, &[0]);
    world.save();
    world.append(&world.line(1).as_bytes()[..10]);
    world.rotate();
    world.append(world.line(1).as_bytes());
    world.bury();
    world.crash();
    world.hand(INHERITED, &[1]);
    let moved = fs::read_to_string(world.folder.path().join("alerts.jsonl.1")).unwrap();
    assert!(!moved.contains(&world.line(1)));
    let current = fs::read_to_string(world.path()).unwrap();
    assert_eq!(current.matches(&world.line(1)).count(), 1);
}

#[test]
fn what_is_in_doubt_is_found_in_the_copy_of_a_file_that_was_truncated() {
    let mut world = World::shared(8);
    world.deliver(1);
    world.save();
    world.deliver(2);
    world.crash();
    for number in 3..5 {
        world.hand(OWN, &[number]);
    }
    world.copy_and_truncate();
    world.hand(UNHEARD, &[5]);
    let inherited = Past {
        is_inherited: true,
        ..UNHEARD
    };
    world.hand(inherited, &[2]);
    world.hand(LOST, &[6]);
    world.hand(CAME_BACK, &[4]);
    // What was written since the file was truncated is found as well.
    world.rotate();
    world.hand(LOST, &[7]);
    world.hand(CAME_BACK, &[5]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn only_so_many_files_that_were_moved_away_are_kept_open_and_the_newest_are() {
    let mut world = World::shared(MAX_MOVED_SETTLED + 4);
    let last = world.events.len() - 1;
    for number in 0..last {
        world.hand(UNHEARD, &[number]);
        world.rotate();
    }
    world.hand(UNHEARD, &[last]);
    assert_eq!(world.sink.moved_settled.len(), MAX_MOVED_SETTLED);
    world.hand(CAME_BACK, &[last - MAX_MOVED_SETTLED, last - 1]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_file_in_doubt_that_cannot_be_read_holds_lines_up_but_not_for_ever() {
    let mut world = World::shared(3);
    world.hand(UNHEARD, &[0]);
    world.hand(UNHEARD, &[1]);
    world.rotate();
    world.hand(LOST, &[2]);
    let moved = &mut world.sink.moved_settled[0];
    let path = world.folder.path().join("alerts.jsonl.1");
    moved.file = OpenOptions::new().append(true).open(path).unwrap();
    world.sink.note_past(CAME_BACK);
    for _ in 1..MAX_FAILURES {
        assert!(world.sink.deliver(&world.events[1..2]).error.is_some());
    }
    world.hand(CAME_BACK, &[1]);
    assert_eq!(world.content(), world.expected() + &world.line(1));
    world.hand(CAME_BACK, &[]);
    assert!(world.sink.moved_settled.is_empty());
}

#[test]
fn what_the_store_had_not_heard_of_when_a_search_was_lost_is_found_when_it_comes_back() {
    let mut world = World::shared(5);
    world.hand(OWN, &[0]);
    world.hand(OWN, &[1]);
    world.hand(UNHEARD, &[2]);
    world.hand(LOST, &[3]);
    world.rotate();
    world.hand(LOST, &[4]);
    world.hand(LOST, &[]);
    assert_eq!(world.sink.moved_settled.len(), 1);
    world.hand(CAME_BACK, &[1]);
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
    let mut world = World::shared(3);
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
    let mut world = World::shared(3);
    for number in 0..2 {
        world.hand(UNHEARD, &[number]);
    }
    world.rotate();
    world.sink.reopen();
    fs::rename(world.folder.path().join("alerts.jsonl.1"), world.path()).unwrap();
    world.hand(UNHEARD, &[2]);
    assert_eq!(world.content(), world.expected());
    assert!(world.sink.moved_settled.is_empty());
}
