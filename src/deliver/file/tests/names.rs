use super::*;

impl World {
    /// Returns a world with thirty waiting events, of which a sink of another name has written the
    /// last ten.
    fn with_ten_of_thirty_under_another_name() -> Self {
        let mut world = Self::with_events(30);
        world.deliver(2);
        world.save();
        let mut other = LogFile::new(world.path(), Format::Json);
        world.sink = LogFile::new(world.path(), Format::Json);
        for settled in [0, 10] {
            assert_eq!(other.deliver(&world.events[20..]).settled, settled);
        }
        drop(other);
        world.come_back();
        world
    }

    /// Starts the sink under its own name, with all of the events in the journal.
    fn come_back(&mut self) {
        self.crash();
        self.read_the_journal();
    }

    fn read_the_journal(&mut self) {
        let end = self.events.last().unwrap().position;
        let sink = LogFile::new(self.path(), Format::Json).resume_at(self.mark.as_deref());
        self.sink = sink.with_journalled(watch::channel(end).1);
    }

    /// The lines, sorted in the order of the events.
    fn sorted(&self) -> Vec<String> {
        let content = self.content();
        let mut lines: Vec<_> = content.lines().map(ToOwned::to_owned).collect();
        let expected = self.expected();
        let place = |line: &String| expected.lines().position(|it| it == line);
        lines.sort_by_key(place);
        lines
    }

    fn is_there_once(&self) {
        assert_eq!(self.sorted(), self.expected().lines().collect::<Vec<_>>());
    }
}

#[test]
fn what_a_sink_wrote_under_another_name_is_found_by_later_batches_too() {
    let mut world = World::with_ten_of_thirty_under_another_name();
    for _ in 0..6 {
        world.deliver(4);
    }
    for _ in 0..4 {
        world.deliver(1);
    }
    world.is_there_once();
}

#[test]
fn so_it_is_after_a_crash_between_the_batches_and_where_the_file_was_moved_away() {
    for at in 0..7 {
        let mut world = World::with_ten_of_thirty_under_another_name();
        for batch in 0..7 {
            world.deliver(4);
            if batch == at {
                world.save();
                world.come_back();
            }
        }
        world.is_there_once();

        let mut world = World::with_ten_of_thirty_under_another_name();
        for batch in 0..7 {
            if batch == at {
                world.rotate();
            }
            world.deliver(4);
        }
        world.is_there_once();
    }
}

#[test]
fn a_piece_of_a_line_that_stands_whole_in_the_file_behind_it_is_not_completed() {
    let length = World::with_events(4).events[3].event.body.len();
    for (keep, rotates) in (1..length).flat_map(|keep| [(keep, false), (keep, true)]) {
        let mut world = World::with_events(6);
        world.deliver(3);
        world.save();
        let torn = world.torn(1, keep);
        world.append(&torn);
        world.rotate();
        let mut other = LogFile::new(world.path(), Format::Json);
        for settled in [0, 1] {
            assert_eq!(other.deliver(&world.events[3..4]).settled, settled);
        }
        drop(other);
        world.come_back();
        if rotates {
            world.open();
            world.rotate();
        }
        world.deliver(3);
        let mut content = String::new();
        for entry in fs::read_dir(world.folder.path()).unwrap() {
            content += &fs::read_to_string(entry.unwrap().path()).unwrap();
            content.push('\n');
        }
        for line in world.expected().lines() {
            let found = content.lines().filter(|found| *found == line).count();
            assert_eq!(found, 1, "{line} with a piece of {keep} bytes: {content}");
        }
    }
}

#[test]
fn so_it_is_for_a_sink_that_had_no_file_yet() {
    let mut world = World::with_events(30);
    let mut other = LogFile::new(world.path(), Format::Json);
    for settled in [0, 10] {
        assert_eq!(other.deliver(&world.events[20..]).settled, settled);
    }
    drop(other);
    world.read_the_journal();
    for _ in 0..8 {
        world.deliver(4);
    }
    world.is_there_once();
}

#[test]
fn nothing_is_looked_for_there_once_all_is_delivered_that_was_journalled_before() {
    for rotates in [false, true] {
        let mut world = World::with_ten_of_thirty_under_another_name();
        let more = World::with_events(40).events.split_off(30);
        world.deliver(4);
        let current = world.sink.current.as_ref().unwrap();
        assert_eq!(current.doubtful.len(), 1);
        if rotates {
            world.rotate();
        }
        world.deliver(24);
        assert_eq!(world.sink.moved_settled.len(), usize::from(rotates));
        world.events.extend(more);
        world.deliver(10);
        assert!(world.sink.moved_settled.is_empty());
        let (_, doubtful) = Mark::decode(world.mark.as_deref().unwrap()).unwrap();
        assert_eq!(doubtful, []);
        world.is_there_once();
    }
}
