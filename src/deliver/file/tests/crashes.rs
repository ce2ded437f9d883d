use super::*;

/// The heart of the sink: it is killed after any byte of a batch, with or without an earlier
/// batch.
#[test]
fn a_batch_torn_at_any_byte_is_completed_and_nothing_is_written_twice() {
    for before in [0, 3] {
        let length = World::with_events(before + 5).expected().len();
        for keep in 0..=length {
            let mut world = World::with_events(before + 5);
            world.deliver(before);
            world.save();
            let torn = world.torn(5, keep);
            world.append(&torn);
            world.crash();
            world.deliver(5);
            assert_eq!(world.content(), world.expected(), "{before} {keep}");
        }
    }
}

/// Tears a batch after `keep` bytes. The next process writes the second format, perhaps after a
/// rotation, and perhaps crashes, too. Returns whether the batch is that long.
fn is_completed(formats: [Format; 2], rotates: bool, crashes: bool, keep: usize) -> bool {
    let mut world = World::new((0..7).map(|i| bare_about(&"8".repeat(i + 1))));
    let lines = formats.map(|format| Lines::render(format, &world.events));
    world.sink.format = formats[0];
    world.deliver(2);
    world.save();
    let torn_at = world.size() as usize + keep;
    let torn = world.torn(4, keep);
    if torn.len() < keep {
        return false;
    }
    world.append(&torn);
    if rotates {
        world.rotate();
    }
    world.crash_into(formats[1]);
    // Smaller batches than before.
    world.deliver(3);
    if crashes {
        world.save();
        world.crash_into(formats[1]);
    }
    world.deliver(2);
    let is_begun = |it: usize| lines[0].start(it) < torn_at;
    let expected = (0..7).flat_map(|it| lines[usize::from(!is_begun(it))].line(it));
    let expected: Vec<u8> = expected.copied().collect();
    let case = format!("{formats:?}, {rotates}, {crashes}, {keep}");
    assert_eq!(world.content().as_bytes(), expected, "{case}");
    true
}

/// The configuration of the next process names another format.
#[test]
fn a_batch_torn_at_any_byte_is_completed_in_its_format_and_nothing_is_written_twice() {
    for formats in [
        [Format::Json, Format::Logfmt],
        [Format::Logfmt, Format::Json],
    ] {
        for [rotates, crashes] in [[false, false], [false, true], [true, false], [true, true]] {
            let lengths = (0..).take_while(|&keep| is_completed(formats, rotates, crashes, keep));
            assert!(lengths.count() > 500);
        }
    }
}

/// Two processes crash, each with its own format. What the second has begun could be any line.
#[test]
fn a_piece_in_a_file_that_was_moved_away_does_not_become_a_line_that_stands_there_in_another_format()
 {
    let mut world = World::new((0..5).map(|i| bare_about(&i.to_string())));
    let [json, logfmt] = [Format::Json, Format::Logfmt].map(|it| Lines::render(it, &world.events));
    world.deliver(1);
    world.save();
    world.append(json.line(1));
    world.append(logfmt.line(2));
    world.append(&logfmt.line(3)[..20]);
    world.rotate();
    world.crash_into(Format::Logfmt);
    world.deliver(4);
    let expected = [
        json.line(0),
        json.line(1),
        logfmt.line(2),
        logfmt.line(3),
        logfmt.line(4),
    ];
    assert_eq!(world.content().as_bytes(), expected.concat());
}

#[test]
fn a_batch_that_was_written_but_not_acknowledged_is_found_though_batches_are_smaller_now() {
    let mut world = World::with_events(60);
    world.deliver(5);
    world.save();
    world.deliver(20);
    world.deliver(30);
    world.crash();
    while world.cursor < 60 {
        world.deliver(7);
    }
    assert_eq!(world.content(), world.expected());
}

#[test]
fn after_a_sync_that_failed_lines_are_not_appended_again() {
    let mut world = World::with_two_of_six_not_synced();
    world.deliver(4);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_torn_batch_is_completed_in_a_file_that_may_only_be_appended_to() {
    let length = World::with_events(5).expected().len();
    for keep in (0..=length).step_by(11) {
        let mut world = World::with_events(9);
        world.deliver(3);
        world.save();
        let torn = world.torn(5, keep);
        world.append(&torn);
        world.crash();
        let file = File::open(world.path()).unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        if let Err(error) = ioctl_setflags(&file, flags | IFlags::APPEND) {
            eprintln!("only root may do that, and not on every file system: {error}");
            return;
        }
        let delivered = world.try_deliver(6);
        ioctl_setflags(&file, flags).unwrap();
        delivered.unwrap();
        assert_eq!(world.content(), world.expected(), "{keep}");
    }
}

#[test]
fn lines_whose_bytes_a_power_cut_took_are_written_again_and_the_others_are_not() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    let from = fs::metadata(world.path()).unwrap().len();
    world.deliver(4);
    // The file got its length, but one block never reached the disk.
    let file = OpenOptions::new().write(true).open(world.path()).unwrap();
    file.write_all_at(&[0; 10], from + 5).unwrap();
    world.crash();
    world.deliver(4);
    let content = fs::read_to_string(world.path()).unwrap();
    for event in &world.events {
        let line = str::from_utf8(&event.event.body).unwrap();
        assert_eq!(content.lines().filter(|found| *found == line).count(), 1);
    }
    assert_eq!(content.lines().count(), 7);
}

#[test]
fn a_torn_line_behind_one_that_lost_bytes_is_completed() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    let from = fs::metadata(world.path()).unwrap().len();
    world.deliver(3);
    let torn = world.torn(5, 300);
    world.append(&torn);
    let file = OpenOptions::new().write(true).open(world.path()).unwrap();
    file.write_all_at(&[0; 10], from + 5).unwrap();
    world.crash();
    world.deliver(4);
    let content = fs::read_to_string(world.path()).unwrap();
    let (garbled, whole): (Vec<_>, _) = content.lines().partition(|line| line.contains('\0'));
    let order = [0, 1, 3, 4, 5, 2].map(|index: usize| &world.events[index]);
    let expected = order.map(|event| str::from_utf8(&event.event.body).unwrap());
    assert_eq!((garbled.len(), whole), (1, expected.to_vec()));
}

#[test]
fn a_foreign_line_in_between_neither_hides_nor_repeats_ours() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    world.append(b"a note by hand\n");
    world.deliver(2);
    world.append(b"another one, without its end");
    world.crash();
    world.deliver(4);
    assert_eq!(world.ours(), world.expected());
}
