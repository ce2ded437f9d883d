use super::*;

#[test]
fn a_file_that_was_moved_away_is_left_and_a_new_one_is_begun() {
    let mut world = World::with_events(9);
    world.sink.reopen();
    assert!(!world.path().exists(), "the first line opens it");
    world.deliver(3);
    world.rotate();
    world.deliver(3);
    world.rotate();
    world.sink.reopen();
    assert!(world.path().exists(), "a reopened file is there at once");
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
    assert_eq!(fs::read_dir(world.folder.path()).unwrap().count(), 3);
    assert!(world.sink.moved_settled.is_empty(), "none is kept open");
}

#[test]
fn a_file_that_is_moved_back_is_gone_on_with() {
    let mut world = World::with_events(9);
    world.deliver(3);
    let torn = world.torn(2, 60);
    world.append(&torn);
    world.rotate();
    world.sink.reopen();
    fs::rename(world.folder.path().join("alerts.jsonl.1"), world.path()).unwrap();
    world.deliver(6);
    assert_eq!(world.content(), world.expected());
    assert!(world.sink.moved_unsettled.is_empty());
}

#[test]
fn what_follows_in_a_file_that_was_moved_away_and_was_settled_inside_a_line_is_found() {
    let mut world = World::with_events(5);
    world.deliver(2);
    // As after a look back from the end of a large file, `settled` is somewhere in the second
    // line.
    let current = world.sink.current.as_mut().unwrap();
    current.settled -= 3;
    current.mark = Some(current.mark_at(current.settled).unwrap());
    let rest: String = world.expected().split_inclusive('\n').skip(2).collect();
    world.append(rest.as_bytes());
    world.rotate();
    for _ in 0..3 {
        world.deliver(1);
    }
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_line_torn_in_a_file_that_was_moved_away_is_completed_there() {
    for moved_while_running in [true, false] {
        let length = World::with_events(8).expected().len();
        for keep in 0..length {
            let mut world = World::with_events(9);
            world.deliver(3);
            world.save();
            let torn = world.torn(5, keep);
            world.append(&torn);
            if moved_while_running {
                world.rotate();
            } else {
                world.crash();
                world.rotate();
            }
            world.deliver(5);
            world.deliver(1);
            assert_eq!(world.content(), world.expected(), "{keep}");
            assert!(
                world.sink.moved_unsettled.is_empty(),
                "it is closed once it is settled"
            );
        }
    }
}

#[test]
fn lines_of_a_file_that_was_deleted_before_they_were_safe_are_written_again() {
    let mut world = World::with_events(6);
    world.deliver(2);
    let torn = world.torn(4, 60);
    world.append(&torn);
    fs::remove_file(world.path()).unwrap();
    world.deliver(4);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(2).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn other_files_are_read_only_for_a_torn_line_that_could_be_completed() {
    for (behind, is_read) in [("", false), ("somebody else's", false), ("{", true)] {
        let mut world = World::with_events(6);
        world.deliver(2);
        let lines = Lines::render(Format::Json, &world.events[2..]);
        world.append(&[lines.line(0), lines.line(1), behind.as_bytes()].concat());
        let moved = world.sink.current.as_ref().unwrap();
        let mut read = false;
        let look = |_: &mut Missing<'_>| {
            read = true;
            Ok(())
        };
        moved
            .settle_moved(&mut Missing::new(&lines, None), look)
            .unwrap();
        assert_eq!(read, is_read, "{behind}");
    }
}

#[test]
fn a_line_torn_in_a_file_that_was_compressed_before_the_next_try_is_written_as_a_whole() {
    for keep in [30, 60] {
        let mut world = World::with_events(9);
        world.deliver(3);
        // A full disk has left this: nothing but a piece of a line behind the settled part.
        let torn = world.torn(1, keep);
        world.append(&torn);
        world.rotate();
        let moved = world.folder.path().join("alerts.jsonl.1");
        // No file can be created yet when the sink is told that its file was moved away.
        fs::create_dir(world.path()).unwrap();
        world.sink.reopen();
        world.try_deliver(1).unwrap_err();
        let compressed = fs::read_to_string(&moved).unwrap();
        fs::remove_file(moved).unwrap();
        fs::remove_dir(world.path()).unwrap();
        world.deliver(6);
        let content = world.content();
        let lines = compressed.lines().take(3).chain(content.lines());
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        assert_eq!(lines, world.expected(), "{keep}");
        assert!(world.sink.moved_unsettled.is_empty());
    }
}

#[test]
fn what_moved_files_hold_is_not_written_again_though_the_next_file_fails_first() {
    let mut world = World::with_events(6);
    world.deliver(2);
    // A power cut has taken the first of two lines.
    world.append(format!("#\n{}", world.line(3)).as_bytes());
    world.rotate();
    world.open();
    let read_only = File::open(world.path()).unwrap();
    let current = world.sink.current.as_mut().unwrap();
    let writable = std::mem::replace(&mut current.file, read_only);
    world.try_deliver(4).unwrap_err();
    world.sink.current.as_mut().unwrap().file = writable;
    // The next try writes one line before it fails.
    world.append(world.line(2).as_bytes());
    world.rotate();
    world.deliver(4);
    let in_order = [0, 1, 3, 2, 4, 5].map(|index| world.line(index));
    assert_eq!(world.ours(), in_order.concat());
}

#[test]
fn a_torn_line_that_cannot_be_completed_where_it_is_stands_whole_in_the_next_file() {
    let mut world = World::with_events(6);
    world.deliver(3);
    let torn = world.torn(1, 20);
    world.append(&torn);
    world.rotate();
    world.open();
    let path = world.folder.path().join("alerts.jsonl.1");
    let before = fs::read_to_string(&path).unwrap();
    let moved = &mut world.sink.moved_unsettled[0];
    let lines = Lines::render(Format::Json, &world.events[3..]);
    let mut missing = Missing::new(&lines, None);
    let fails = |_: &mut Missing<'_>| Err(Error::NotAFile(PathBuf::new()));
    moved.settle_moved(&mut missing, fails).unwrap();
    // As on a full disk.
    moved.file = File::open(&path).unwrap();
    world.deliver(3);
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert_eq!(fs::read(world.path()).unwrap(), lines.bytes());
}

#[test]
fn a_file_that_cannot_be_read_after_it_was_moved_holds_lines_up_but_not_for_ever() {
    let mut world = World::with_events(5);
    world.deliver(3);
    world.append(world.line(3).as_bytes());
    world.rotate();
    world.open();
    let moved = &mut world.sink.moved_unsettled[0];
    let path = world.folder.path().join("alerts.jsonl.1");
    moved.file = OpenOptions::new().append(true).open(path).unwrap();
    for _ in 1..MAX_FAILURES {
        world.try_deliver(2).unwrap_err();
    }
    assert_eq!(world.size(), 0);
    world.deliver(2);
    assert_eq!(
        world.content(),
        world
            .expected()
            .replace(&world.line(3), &world.line(3).repeat(2))
    );
    assert!(world.sink.moved_unsettled.is_empty());
}

/// Returns a world whose file with four lines is gone, and the file beside it to which another
/// sink has written the same lines and five more.
fn twin(name: &str) -> (World, PathBuf) {
    let mut world = World::with_events(9);
    world.deliver(4);
    world.save();
    let other = world.folder.path().join(name);
    fs::write(&other, world.expected()).unwrap();
    fs::remove_file(world.path()).unwrap();
    world.crash();
    (world, other)
}

fn expect_waiting_lines_in_a_new_file(world: &mut World, other: &Path) {
    world.deliver(5);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
    assert_eq!(fs::read_to_string(other).unwrap(), all);
}

#[test]
fn the_file_of_a_sink_that_writes_the_same_lines_is_not_taken_for_ones_own() {
    let (mut world, other) = twin("others.jsonl");
    expect_waiting_lines_in_a_new_file(&mut world, &other);
    let (mut world, other) = twin("alerts-2.jsonl");
    world.sink = world.sink.with_other_files(vec![other.clone()]);
    expect_waiting_lines_in_a_new_file(&mut world, &other);
}

#[test]
fn a_file_that_somebody_writes_to_is_not_taken_for_one_that_was_moved_away() {
    let (mut world, other) = twin("alerts.jsonl.1");
    let writer = File::open(&other).unwrap();
    writer.lock().unwrap();
    expect_waiting_lines_in_a_new_file(&mut world, &other);
}

#[test]
fn a_copy_is_told_by_its_number_or_date() {
    let [yes, no] = [
        [
            "a.jsonl.1",
            "a.jsonl-20260101",
            "a.1.jsonl",
            "a-20260101-1767225600.jsonl",
        ]
        .as_slice(),
        &["b.jsonl", "ab.jsonl", "a.jsonl21", "a.jsonl.gz", "a.json.1"],
    ];
    for path in ["a.jsonl", "/var/log/a.jsonl"] {
        for (names, is_copy) in [(yes, true), (no, false)] {
            for name in names {
                let found = mark::is_numbered(name.as_ref(), path.as_ref());
                assert_eq!(found, is_copy, "{name} of {path}");
            }
        }
    }
}

#[test]
fn another_file_in_the_place_of_the_old_one_is_not_taken_for_it() {
    let mut world = World::with_events(4);
    world.deliver(2);
    world.save();
    // The inode is the same, and the file is longer than the mark's offset: only the content
    // differs.
    fs::write(world.path(), "other\n".repeat(100)).unwrap();
    world.crash();
    world.deliver(2);
    let all = world.expected();
    let expected: String = all
        .lines()
        .skip(2)
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(world.content(), "other\n".repeat(100) + &expected);
}
