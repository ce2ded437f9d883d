use tokio::time::Instant;

use super::*;

#[test]
fn two_sinks_cannot_write_one_file() {
    let mut world = World::with_events(2);
    world.deliver(1);
    let mut other = LogFile::new(world.path(), Format::Json);
    let progress = other.deliver(&world.events[1..]);
    assert_eq!(progress.settled, 0);
    let error = progress.error.unwrap().to_string();
    assert!(error.contains("another process or sink"), "{error}");
    world.sink = LogFile::new(world.path(), Format::Json);
    // The first delivery only tells the store which file it is.
    assert_eq!(other.deliver(&world.events[1..]).settled, 0);
    assert_eq!(other.deliver(&world.events[1..]).settled, 1);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_file_that_is_let_go_at_once_is_waited_for() {
    // On a busy machine, the moment may be too long.
    for _ in 0..20 {
        let mut world = World::with_events(1);
        let holder = File::create(world.path()).unwrap();
        holder.lock().unwrap();
        let began = Instant::now();
        let (delivered, moment) = thread::scope(|scope| {
            let holding = scope.spawn(move || {
                thread::sleep(2 * LOCK_PAUSE);
                drop(holder);
                began.elapsed()
            });
            (world.try_deliver(1).is_ok(), holding.join().unwrap())
        });
        if delivered {
            assert_eq!(world.content(), world.expected());
            return;
        }
        assert!(moment > LOCK_TRIES / 2 * LOCK_PAUSE, "{moment:?}");
    }
    panic!("it is never waited for");
}

#[test]
fn a_missing_folder_is_named_and_once_it_is_there_the_lines_are_written() {
    let mut world = World::with_events(2);
    let path = world.folder.path().join("missing").join("alerts.jsonl");
    world.sink = LogFile::new(path.clone(), Format::Json);
    let error = world.try_deliver(2).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("alerts.jsonl: its folder does not exist"),
        "{error}"
    );
    fs::create_dir(path.parent().unwrap()).unwrap();
    world.deliver(2);
    assert_eq!(fs::read_to_string(path).unwrap(), world.expected());
}

#[test]
fn what_a_link_leads_to_is_created() {
    let mut world = World::with_events(3);
    let folder = world.folder.path().to_owned();
    let target = folder.join("data/alerts.jsonl");
    symlink(&target, world.path()).unwrap();
    let error = world.try_deliver(1).unwrap_err();
    let expected = format!("{}: its folder", target.display());
    assert!(error.to_string().contains(&expected), "{error}");
    fs::create_dir(folder.join("data")).unwrap();
    fs::rename(world.path(), folder.join("link")).unwrap();
    symlink("link", world.path()).unwrap();
    world.deliver(2);
    fs::remove_file(&target).unwrap();
    world.cursor = 0;
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
    let metadata = fs::symlink_metadata(&target).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
}

#[test]
fn lines_of_a_file_that_was_moved_away_where_a_link_leads_to_are_found() {
    let mut world = World::with_events(8);
    let data = world.folder.path().join("data");
    fs::create_dir(&data).unwrap();
    symlink(data.join("alerts.jsonl"), world.path()).unwrap();
    world.deliver(3);
    world.save();
    world.deliver(3);
    let moved = data.join("alerts.jsonl.1");
    fs::rename(data.join("alerts.jsonl"), &moved).unwrap();
    world.crash();
    world.deliver(5);
    let content = fs::read_to_string(moved).unwrap() + &world.content();
    assert_eq!(content, world.expected());
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [
        Path::new("/dev/full"),
        Path::new("/dev/null"),
        folder.path(),
    ] {
        let mut world = World::with_events(1);
        world.sink = LogFile::new(path.to_owned(), Format::Json);
        let error = world.try_deliver(1).unwrap_err();
        assert!(matches!(error, Error::NotAFile(_)), "{error}");
    }
}

#[test]
fn a_mark_fits_where_the_same_stands_right_before_it() {
    let mut world = World::with_events(100);
    world.deliver(100);
    let current = world.sink.current.as_ref().unwrap();
    let mark = current.mark.unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(world.path())
        .unwrap();
    let mut before = [0; 1025];
    file.read_exact_at(&mut before, mark.offset - 1025).unwrap();
    for (index, fits) in [(0, true), (1, false), (1024, false)] {
        let mut changed = before;
        changed[index] ^= 1;
        file.write_all_at(&changed, mark.offset - 1025).unwrap();
        assert_eq!(mark.fits(&current.file), fits, "{index}");
    }
}

#[test]
fn a_mark_reads_back_and_rubbish_is_no_mark() {
    let mut world = World::with_events(3);
    world.deliver(3);
    let bytes = world.mark.unwrap();
    let (mark, doubtful) = Mark::decode(&bytes).unwrap();
    assert_eq!((mark.encode(&doubtful), doubtful), (bytes.clone(), vec![]));
    let parts = vec![1..2, 5..9];
    let with_parts = mark.encode(&parts);
    assert_eq!(Mark::decode(&with_parts), Some((mark, parts)));
    assert_eq!(mark.offset, world.sink.current.unwrap().settled);
    let (short, odd) = (&bytes[..bytes.len() - 1], &with_parts[..41]);
    for rubbish in [short, odd, &bytes[1..], b"", &[0; 33]] {
        assert_eq!(Mark::decode(rubbish), None);
    }
}
