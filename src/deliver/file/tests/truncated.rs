use std::time::SystemTime;

use super::*;

#[test]
fn a_file_that_was_truncated_goes_on_at_its_beginning() {
    let mut world = World::with_events(6);
    world.deliver(4);
    File::options()
        .write(true)
        .open(world.path())
        .unwrap()
        .set_len(0)
        .unwrap();
    world.deliver(2);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn lines_that_copytruncate_carried_away_while_nobody_ran_are_found_in_the_copy() {
    let mut world = World::with_events(8);
    world.deliver(3);
    world.save();
    world.deliver(3);
    world.copy_and_truncate();
    world.crash();
    world.deliver(5);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn lines_that_copytruncate_carried_away_during_their_sync_are_found_in_the_copy() {
    let length = World::with_events(8).expected().len();
    for keep in 0..length {
        let mut world = World::with_events(9);
        world.deliver(3);
        // As if logrotate had come while these lines were being written.
        let torn = world.torn(5, keep);
        world.append(&torn);
        world.copy_and_truncate();
        world.deliver(5);
        world.deliver(1);
        assert_eq!(world.content(), world.expected(), "{keep}");
        assert!(world.sink.moved_unsettled.is_empty());
    }
}

#[test]
fn lines_that_copytruncate_carries_away_between_two_looks_at_them_leave_no_hole() {
    let mut world = World::with_two_of_six_not_synced();
    let lines = Lines::render(Format::Json, &world.events[2..]);
    let missing = Missing::new(&lines, None);
    let current = world.sink.current.as_ref().unwrap();
    let scan = current.find_unsettled(&missing).unwrap();
    assert_eq!(scan.found.len(), 2);
    world.copy_and_truncate();
    let current = world.sink.current.as_ref().unwrap();
    let error = current.rewrite(&scan).unwrap_err();
    assert_eq!(error.to_string(), "it has just been truncated");
    assert_eq!(world.size(), 0);
    world.deliver(4);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn lines_that_copytruncate_carried_away_are_found_in_the_copy_though_the_file_is_moved_away_too() {
    let mut world = World::with_events(8);
    world.deliver(3);
    let torn = world.torn(5, 100);
    world.append(&torn);
    world.copy_and_truncate();
    world.rotate();
    world.deliver(5);
    assert_eq!(world.content(), world.expected());
}

/// Another sink has written the same lines, and more, to a file that has the name of a copy.
#[test]
fn the_file_of_another_sink_is_not_taken_for_the_copy_of_a_truncated_one() {
    for rotates in [false, true] {
        let mut world = World::with_events(9);
        let other = world.folder.path().join("alerts-2.jsonl");
        fs::write(&other, world.expected()).unwrap();
        world.sink = world.sink.with_other_files(vec![other]);
        world.deliver(4);
        File::create(world.path()).unwrap();
        if rotates {
            world.rotate();
        }
        world.deliver(5);
        let expected: Vec<_> = (4..9).map(|index| world.line(index)).collect();
        assert_eq!(world.content(), expected.concat(), "{rotates}");
    }
}

#[test]
fn a_file_with_the_name_of_a_copy_and_with_other_content_is_none() {
    let mut world = World::with_events(6);
    world.deliver(4);
    let other = world.folder.path().join("alerts.jsonl.2");
    let content = "#".repeat(1000) + "\n{";
    fs::write(&other, &content).unwrap();
    File::create(world.path()).unwrap();
    world.deliver(2);
    assert_eq!(fs::read_to_string(other).unwrap(), content);
    assert_eq!(world.content(), world.line(4) + &world.line(5));
}

/// Each time the file begins with the batch that is being synced.
#[test]
fn batch_after_batch_that_copytruncate_carries_away_during_its_sync_is_found() {
    let mut world = World::with_events(30);
    for _ in 0..5 {
        let events = &world.events[world.cursor..world.cursor + 5];
        // The first delivery only tells the store which file it is.
        assert_eq!(world.sink.deliver(events).settled, 0);
        let batch = Lines::render(Format::Json, events);
        world.append(batch.bytes());
        world.sink.current.as_mut().unwrap().end = batch.bytes().len() as u64;
        for number in (1..=world.rotations).rev() {
            let name = |number| world.folder.path().join(format!("alerts.jsonl.{number}"));
            fs::rename(name(number), name(number + 1)).unwrap();
        }
        world.rotations += 1;
        fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
        File::create(world.path()).unwrap();
        // Of several copies, the newest is the one.
        let older = File::create(world.folder.path().join("alerts.jsonl-20260101")).unwrap();
        older.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        world.deliver(5);
    }
    world.deliver(30);
    let mut content = String::new();
    for number in (1..=world.rotations).rev() {
        let name = format!("alerts.jsonl.{number}");
        content += &fs::read_to_string(world.folder.path().join(name)).unwrap();
    }
    content += &fs::read_to_string(world.path()).unwrap();
    assert_eq!(content, world.expected());
}

#[test]
fn a_file_that_was_truncated_and_then_moved_away_holds_nothing_up() {
    let mut world = World::with_events(6);
    world.deliver(4);
    File::create(world.path()).unwrap();
    world.rotate();
    world.deliver(2);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn lines_that_were_written_while_copytruncate_was_at_work_are_not_written_again() {
    let mut world = World::with_events(9);
    world.deliver(1);
    world.rotations = 1;
    fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
    // The file grows past its former length, and its new end was not acknowledged.
    let former = world.size();
    let written = world.torn(8, 250);
    fs::write(world.path(), written).unwrap();
    assert!(world.size() > former);
    world.deliver(8);
    assert_eq!(world.content(), world.expected());
}
