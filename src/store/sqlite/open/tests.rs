use std::{fs, os::unix::fs::MetadataExt as _};

use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::time::Instant;

use super::*;
use crate::{logging::captured, store::sqlite::inspect::inspect};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A folder, and where in it the state file is to be.
fn state_file() -> (tempfile::TempDir, PathBuf) {
    let folder = folder();
    let path = folder.path().join("state.db");
    (folder, path)
}

fn open(path: &Path) -> std::result::Result<StateFile, Error> {
    StateFile::open(path, |_| Ok(())).map(|(file, ())| file)
}

/// What the message says is wrong, without the path.
fn problem(path: &Path) -> String {
    match open(path) {
        Err(Error::Open {
            path: named,
            problem,
        }) => {
            assert_eq!(named, path);
            problem
        }
        other => panic!("{other:?}"),
    }
}

fn with(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn schema(connection: &Connection) -> Vec<String> {
    connection
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_>>()
        .unwrap()
}

#[test]
fn a_new_file_is_for_its_owner_alone_and_so_are_the_files_beside_it() {
    let (folder, path) = state_file();
    let mut file = open(&path).unwrap();
    let connection = file.connection();
    connection
        .execute_batch("INSERT INTO sink (name, position) VALUES ('s', 0)")
        .unwrap();
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{entry:?}");
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort();
    let beside = ["state.db", "state.db-shm", "state.db-wal", "state.db.lock"];
    assert_eq!(names, beside);
    file.close();
    assert!(!folder.path().join("state.db-wal").exists());
}

#[test]
fn a_file_that_was_put_back_for_everybody_is_for_its_owner_again_and_a_group_keeps_its_right() {
    let (_folder, path) = state_file();
    let modes = || {
        ["", "-wal", "-shm"].map(|suffix| {
            let file = with_suffix(&path, suffix).metadata().unwrap();
            file.mode() & 0o777
        })
    };
    open(&path).unwrap().close();
    for (before, after) in [
        (0o644, 0o600),
        (0o640, 0o640),
        (0o666, 0o600),
        (0o664, 0o660),
        (0o604, 0o600),
        (0o744, 0o700),
        (0o774, 0o770),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
        let file = open(&path).unwrap();
        assert_eq!(modes(), [after; 3], "{before:o}");
        // The state after a crash; the log was restored as well.
        file.abandon();
        for suffix in ["-wal", "-shm"] {
            let log = with_suffix(&path, suffix);
            fs::set_permissions(log, fs::Permissions::from_mode(0o644)).unwrap();
        }
        let file = open(&path).unwrap();
        assert_eq!(modes(), [after; 3], "{before:o}");
        file.close();
    }
}

#[test]
fn rights_taken_from_others_are_told_once_for_the_files_of_one_state() {
    let (_folder, path) = state_file();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let (lines, _logging) = captured();
    open(&path).unwrap().close();
    let lines = lines.lock().clone();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("state.db, which holds alerts"),
        "{lines:?}"
    );
}

#[test]
fn a_file_that_is_not_the_exporters_keeps_its_mode() {
    let folder = folder();
    let path = folder.path().join("notes.txt");
    fs::write(
        &path,
        "not a database, but long enough to look like something else",
    )
    .unwrap();
    let other = folder.path().join("other.db");
    let connection = Connection::open(&other).unwrap();
    connection
        .execute_batch("PRAGMA application_id = 7; CREATE TABLE notes (note TEXT)")
        .unwrap();
    drop(connection);
    for path in [&path, &other] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o664)).unwrap();
        problem(path);
        let mode = path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o664, "{}", path.display());
    }
}

#[test]
fn the_file_is_durable_checked_and_small_in_memory() {
    let folder = folder();
    let mut file = open(&folder.path().join("state.db")).unwrap();
    let connection = file.connection();
    let text = |pragma| -> String {
        connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap()
    };
    let number = |pragma| -> i64 {
        connection
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap()
    };
    assert_eq!(text("journal_mode"), "wal");
    assert_eq!(number("synchronous"), 2);
    assert_eq!(number("foreign_keys"), 1);
    assert_eq!(number("trusted_schema"), 0);
    assert_eq!(number("temp_store"), 2);
    assert_eq!(number("busy_timeout"), 5000);
    assert_eq!(number("cache_size"), -2048);
    assert_eq!(number("application_id"), i64::from(APPLICATION_ID));
    assert_eq!(number("user_version"), MIGRATIONS.len() as i64);
}

#[test]
fn a_second_exporter_is_told_who_uses_the_file() {
    let (folder, path) = state_file();
    let link = folder.path().join("link.db");
    let first = open(&path).unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        let problem = problem(path);
        let process = format!("another exporter (process {}) uses it", std::process::id());
        assert!(problem.starts_with(&process), "{problem}");
    }
    first.close();
    open(&link).unwrap();
}

#[test]
fn a_link_may_lead_to_a_file_that_is_yet_to_be_created_but_not_in_a_circle() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("data")).unwrap();
    symlink("second.db", at("first.db")).unwrap();
    symlink("data/state.db", at("second.db")).unwrap();
    let file = open(&at("first.db")).unwrap();
    assert!(at("data/state.db-wal").exists());
    let used = problem(&at("data/state.db"));
    assert!(used.starts_with("another exporter"), "{used}");
    file.close();

    symlink("this.db", at("that.db")).unwrap();
    symlink("that.db", at("this.db")).unwrap();
    let circle = problem(&at("this.db"));
    assert!(
        circle.starts_with("its links lead in a circle; "),
        "{circle}"
    );
}

#[test]
fn a_file_of_which_a_power_cut_left_only_zeros_is_begun_anew_but_no_longer_one() {
    let (_folder, path) = state_file();
    let (lines, _logging) = captured();
    for size in [1, 512, 4096] {
        fs::write(&path, vec![0; size]).unwrap();
        inspect(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; size]);
        open(&path).unwrap().close();
        fs::remove_file(&path).unwrap();
    }
    let lines = lines.lock().clone();
    assert!(lines[0].contains("held nothing but zeros"), "{lines:?}");
    let mut page = vec![0; 4096];
    page[4095] = 1;
    for content in [page, vec![0; 4097]] {
        fs::write(&path, &content).unwrap();
        assert!(problem(&path).starts_with("it is not an SQLite database"));
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_log_holds_the_state_though_the_file_holds_only_zeros() {
    let (_folder, path) = state_file();
    let file = open(&path).unwrap();
    let crashed = with_suffix(&path, ".crashed");
    fs::write(&crashed, vec![0; FIRST_PAGE]).unwrap();
    fs::copy(file.sidecar("-wal"), with_suffix(&crashed, "-wal")).unwrap();
    inspect(&crashed).unwrap();
    let (lines, _logging) = captured();
    let restored = open(&crashed).unwrap();
    assert_eq!(schema(restored.reader()), schema(file.reader()));
    assert!(!lines.lock().iter().any(|line| line.contains("zeros")));
}

#[test]
fn a_log_without_its_file_is_kept_and_not_taken_for_a_new_state() {
    let (_folder, path) = state_file();
    let log = with_suffix(&path, "-wal");
    let mut file = open(&path).unwrap();
    file.connection()
        .execute_batch("INSERT INTO sink (name, position) VALUES ('s', 0)")
        .unwrap();
    let held = fs::read(&log).unwrap();
    file.close();
    fs::write(&log, &held).unwrap();
    for lose in [
        |path: &Path| fs::write(path, ""),
        |path: &Path| fs::remove_file(path),
    ] {
        lose(&path).unwrap();
        let inspected = inspect(&path).unwrap_err().to_string();
        let problem = problem(&path);
        assert!(
            problem.starts_with("it is empty or missing, and "),
            "{problem}"
        );
        assert!(inspected.contains(&problem), "{inspected}");
        assert_eq!(fs::read(&log).unwrap(), held);
    }
    assert!(!path.exists());
}

#[test]
fn a_file_beside_it_that_cannot_be_written_is_refused_before_sqlite_reads_it() {
    let (_folder, path) = state_file();
    open(&path).unwrap().close();
    for suffix in ["-wal", "-shm"] {
        let beside = with_suffix(&path, suffix);
        fs::create_dir(&beside).unwrap();
        let told = format!("{} cannot be opened for writing", beside.display());
        assert!(problem(&path).starts_with(&told));
        let inspected = inspect(&path).unwrap_err().to_string();
        assert!(inspected.contains(&told), "{inspected}");
        fs::remove_dir(&beside).unwrap();
    }
    open(&path).unwrap().close();
}

#[test]
fn a_file_of_one_byte_beside_a_log_is_refused_as_an_empty_one() {
    let (_folder, path) = state_file();
    for content in ["", "\n"] {
        fs::write(&path, content).unwrap();
        fs::write(with_suffix(&path, "-wal"), "a log").unwrap();
        assert!(problem(&path).starts_with("it is empty or missing"));
    }
}

#[test]
fn an_operator_can_read_while_it_is_open() {
    let (_folder, path) = state_file();
    let mut file = open(&path).unwrap();
    let operator = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let sinks = || -> i64 {
        operator
            .query_row("SELECT count(*) FROM sink", [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(sinks(), 0);
    file.connection()
        .execute_batch("INSERT INTO sink (name, position) VALUES ('s', 0)")
        .unwrap();
    assert_eq!(sinks(), 1);
}

#[test]
fn a_place_that_cannot_be_is_explained() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("file"), "").unwrap();
    let missing = problem(&folder.join("missing/state.db"));
    let start = format!(
        "its folder {} does not exist; create it",
        folder.join("missing").display()
    );
    assert!(missing.starts_with(&start), "{missing}");
    let file = problem(&folder.join("file/state.db"));
    assert!(file.ends_with("is not a folder"), "{file}");
    let below = problem(&folder.join("file/x/state.db"));
    assert!(
        below.contains(" cannot be used: Not a directory"),
        "{below}"
    );
    assert_eq!(problem(folder), "it is a folder; name a file in it");
    let nothing = problem(&folder.join("missing/.."));
    assert_eq!(nothing, "the path does not end in a file's name");
}

#[test]
fn what_is_no_regular_file_is_refused_before_a_lock_is_left_beside_it() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    mkfifoat(CWD, at("pipe"), Mode::RWXU).unwrap();
    std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let told = |what: &str| format!("it is {what}, not a regular file; name a file");
    assert_eq!(problem(&at("pipe")), told("a named pipe"));
    assert_eq!(problem(&at("socket")), told("a socket"));
    assert_eq!(problem(Path::new("/dev/null")), told("a device"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_place_that_cannot_be_written_is_explained() {
    let said = |errno: rustix::io::Errno| not_writable(Path::new("/x/state.db"), &errno.into());
    let user = rustix::process::geteuid().as_raw();
    assert_eq!(
        said(rustix::io::Errno::ACCESS),
        format!(
            "/x/state.db cannot be written by user {user}; let it and its folder belong to that \
             user"
        )
    );
    assert!(said(rustix::io::Errno::ROFS).contains("mounted read-only"));
    assert!(said(rustix::io::Errno::NOSPC).ends_with("; make room"));
    assert!(said(rustix::io::Errno::IO).contains("cannot be opened for writing: "));
}

#[test]
fn a_file_of_something_else_is_left_as_it_is() {
    let (_folder, path) = state_file();
    type Make = fn(&Path);
    let cases: [(&str, Make); 4] = [
        ("it is not an SQLite database", |path| {
            fs::write(path, "accounts:\n  - name: acme\n".repeat(200)).unwrap();
        }),
        ("it is the database of another program", |path| {
            with(path, "CREATE TABLE bookmarks (url TEXT)");
        }),
        ("it is the database of another program", |path| {
            with(path, "PRAGMA application_id = 252006675");
        }),
        ("it is the database of another program", |path| {
            with(path, "PRAGMA user_version = 1");
        }),
    ];
    for (expected, make) in cases {
        fs::remove_file(&path).ok();
        make(&path);
        let before = fs::read(&path).unwrap();
        let problem = problem(&path);
        assert!(problem.starts_with(expected), "{problem}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn a_file_of_a_newer_version_names_both_versions() {
    let (_folder, path) = state_file();
    open(&path).unwrap().close();
    with(&path, "PRAGMA user_version = 7");
    let problem = problem(&path);
    let expected = format!(
        "it was written by a newer version (its schema is 7, this version knows schemas up to {})",
        MIGRATIONS.len()
    );
    assert!(problem.starts_with(&expected), "{problem}");
}

#[test]
fn a_damaged_file_is_told_from_a_new_one() {
    let (_folder, path) = state_file();
    open(&path).unwrap().close();
    let whole = fs::read(&path).unwrap();
    let cut = &whole[..whole.len() / 2];
    let mut scribbled = whole.clone();
    scribbled[100..4096].fill(0x5a);
    for damaged in [cut, &scribbled] {
        fs::write(&path, damaged).unwrap();
        let problem = problem(&path);
        assert!(
            problem.starts_with("it is damaged; restore it"),
            "{problem}"
        );
    }
    // If a crash came before the first byte was written, beginning anew loses nothing.
    fs::write(&path, "").unwrap();
    open(&path).unwrap();
}

#[test]
fn what_sqlite_says_is_told_with_advice() {
    use rusqlite::ffi;
    for (code, advice) in [
        (
            ffi::SQLITE_BUSY,
            "another program, such as an sqlite3 shell, has locked it",
        ),
        (
            ffi::SQLITE_LOCKED,
            "another program, such as an sqlite3 shell, has locked it",
        ),
        (
            ffi::SQLITE_READONLY_DIRECTORY,
            "it, its folder or the files beside it",
        ),
        (
            ffi::SQLITE_CANTOPEN,
            "it, its folder or the files beside it",
        ),
        (ffi::SQLITE_PERM, "it, its folder or the files beside it"),
        (ffi::SQLITE_FULL, "the disk is full"),
        // What SQLite reports for a used-up quota, and for a disk that is too full for shared
        // memory.
        (ffi::SQLITE_IOERR_WRITE, "writing it failed; make room"),
        (ffi::SQLITE_IOERR_SHMSIZE, "writing it failed; make room"),
        (ffi::SQLITE_IOERR_FSYNC, "reading or writing it failed"),
        (ffi::SQLITE_MISMATCH, "Error code 20"),
    ] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let said = describe(&error);
        assert!(said.starts_with(advice), "{said}");
    }
}

#[test]
fn migrations_lead_from_every_version_to_the_same_tables() {
    let mut new = Connection::open_in_memory().unwrap();
    migrate(&mut new, 0, &MIGRATIONS).unwrap();
    for version in 1..=MIGRATIONS.len() {
        let mut old = Connection::open_in_memory().unwrap();
        migrate(&mut old, 0, &MIGRATIONS[..version]).unwrap();
        migrate(&mut old, version, &MIGRATIONS).unwrap();
        assert_eq!(schema(&old), schema(&new));
    }
    let strict: i64 = new
        .query_row(
            "SELECT count(*) FROM pragma_table_list
             WHERE schema = 'main' AND NOT strict AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(strict, 0);
}

#[test]
fn a_file_that_is_yet_to_be_migrated_is_sound_and_an_inspection_leaves_it_as_it_is() {
    let (_folder, path) = state_file();
    let mut old = Connection::open(&path).unwrap();
    migrate(&mut old, 0, &MIGRATIONS[..1]).unwrap();
    drop(old);
    let before = fs::read(&path).unwrap();
    inspect(&path).unwrap();
    assert!(fs::read(&path).unwrap() == before, "it was written to");
    open(&path).unwrap();
}

#[test]
fn migrations_are_done_all_or_none() {
    let (_folder, path) = state_file();
    let mut connection = Connection::open(&path).unwrap();
    let scripts = ["CREATE TABLE one (x INTEGER) STRICT", "CREATE TABLE"];
    migrate(&mut connection, 0, &scripts).unwrap_err();
    assert_eq!(schema(&connection), Vec::<String>::new());
    assert!(matches!(version(&connection), Ok(Version::Ours(0))));
    drop(connection);
    open(&path).unwrap();
}

#[test]
fn a_file_of_the_state_that_is_gone_is_noticed_and_one_that_came_back_too() {
    let (folder, path) = state_file();
    let file = open(&path).unwrap();
    assert_eq!(file.files().gone_suffix().unwrap(), None);
    for suffix in ["-shm", "-wal", ""] {
        let (name, aside) = (with_suffix(&path, suffix), folder.path().join("aside"));
        fs::rename(&name, &aside).unwrap();
        assert_eq!(file.files().gone_suffix().unwrap(), Some(suffix));
        fs::copy(&aside, &name).unwrap();
        assert_eq!(file.files().gone_suffix().unwrap(), Some(suffix));
        fs::rename(&aside, &name).unwrap();
        assert_eq!(file.files().gone_suffix().unwrap(), None);
    }
}

#[test]
fn a_file_that_cannot_be_looked_at_is_not_in_place_and_hides_no_other_that_is_gone() {
    let (_folder, path) = state_file();
    let file = open(&path).unwrap();
    let log = with_suffix(&path, "-wal");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&log, &log).unwrap();
    file.files().gone_suffix().unwrap_err();
    assert!(!file.files().are_in_place());
    fs::remove_file(with_suffix(&path, "-shm")).unwrap();
    assert_eq!(file.files().gone_suffix().unwrap(), Some("-shm"));
}

#[test]
fn after_a_failed_write_the_log_is_copied_and_kept_short() {
    let folder = folder();
    let mut file = open(&folder.path().join("state.db")).unwrap();
    file.connection()
        .execute_batch("INSERT INTO sink (name, position) VALUES ('s', 0)")
        .unwrap();
    file.save_room();
    let log = checkpoint(file.reader(), "NOOP").unwrap();
    assert_eq!(log.copied, log.pages);
    let copied_at = file
        .reader()
        .pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0));
    assert_eq!(copied_at, Ok(LOG_PAGES_IN_NEED));
}

/// Looks after the lock, which somebody has moved aside or replaced by something else.
fn assert_cannot_take_lock_again(file: &mut StateFile) {
    let (lines, _logging) = captured();
    file.keep_lock().unwrap();
    let lines = lines.lock().clone();
    assert!(
        lines.len() == 1 && lines[0].contains("cannot be taken again"),
        "{lines:?}"
    );
}

#[test]
fn a_lock_that_cannot_be_taken_ends_no_exporter_that_runs_and_lets_none_begin() {
    let (_folder, path) = state_file();
    let mut file = open(&path).unwrap();
    let lock = with_suffix(&path, ".lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert_cannot_take_lock_again(&mut file);
    let problem = problem(&path);
    assert!(problem.contains(".lock cannot be opened"), "{problem}");
}

#[test]
fn a_lock_whose_file_was_removed_is_taken_again() {
    let (_folder, path) = state_file();
    let mut file = open(&path).unwrap();
    fs::remove_file(with_suffix(&path, ".lock")).unwrap();
    file.keep_lock().unwrap();
    let problem = problem(&path);
    assert!(problem.starts_with("another exporter"), "{problem}");
    file.close();
    open(&path).unwrap();
}

#[test]
fn a_lock_that_cannot_be_looked_at_is_kept_and_that_is_told_once_if_it_lasts() {
    let folder = folder();
    let (place, aside) = (folder.path().join("place"), folder.path().join("aside"));
    fs::create_dir(&place).unwrap();
    let mut file = open(&place.join("state.db")).unwrap();
    for (looks, told) in [(1, 0), (3, 1), (1, 0), (2, 1)] {
        let (lines, _logging) = captured();
        fs::rename(&place, &aside).unwrap();
        // A file in a folder's place tells nothing of what is in the folder.
        fs::write(&place, "").unwrap();
        for _ in 0..looks {
            file.keep_lock().unwrap();
            file.report_if_gone();
        }
        fs::remove_file(&place).unwrap();
        fs::rename(&aside, &place).unwrap();
        file.keep_lock().unwrap();
        file.report_if_gone();
        let lines = lines.lock().clone();
        assert_eq!(lines.len(), told, "{lines:?}");
        let of_this = |line: &String| {
            line.contains("cannot be looked at") && line.contains("Not a directory")
        };
        assert!(lines.iter().all(of_this), "{lines:?}");
    }
    file.close();
}

#[test]
fn a_lock_that_was_moved_away_and_back_still_is_the_states_lock() {
    let folder = folder();
    let [place, aside, emptied] =
        ["place", "aside", "emptied"].map(|name| folder.path().join(name));
    fs::create_dir(&place).unwrap();
    let path = place.join("state.db");
    let mut file = open(&path).unwrap();
    let is_locked = |path: &Path| {
        let problem = problem(path);
        assert!(problem.starts_with("another exporter"), "{problem}");
    };
    for _ in 0..2 {
        fs::rename(&place, &aside).unwrap();
        if emptied.exists() {
            fs::rename(&emptied, &place).unwrap();
        } else {
            fs::create_dir(&place).unwrap();
        }
        file.keep_lock().unwrap();
        for path in [&path, &aside.join("state.db")] {
            is_locked(path);
        }
        fs::rename(&place, &emptied).unwrap();
        fs::rename(&aside, &place).unwrap();
        file.keep_lock().unwrap();
        is_locked(&path);
    }
    // The same for the lock alone; its place was taken in the meantime.
    let (lock, aside) = (with_suffix(&path, ".lock"), place.join("aside"));
    fs::rename(&lock, &aside).unwrap();
    for _ in 0..2 {
        file.keep_lock().unwrap();
    }
    fs::rename(&aside, &lock).unwrap();
    file.keep_lock().unwrap();
    is_locked(&path);
    // A lock whose file is gone for good is not kept.
    fs::remove_file(&lock).unwrap();
    file.keep_lock().unwrap();
    assert_eq!(file.locks.len(), 2);
    // A second exporter is noticed as ever.
    fs::remove_file(&lock).unwrap();
    let second = open(&path).unwrap();
    let lost = file.keep_lock();
    assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
    file.abandon();
    drop(second);
}

#[test]
fn a_state_that_another_exporter_has_had_since_its_lock_was_removed_is_lost() {
    let (_folder, path) = state_file();
    let number = std::process::id();
    for has_ended in [false, true] {
        let mut file = open(&path).unwrap();
        fs::remove_file(with_suffix(&path, ".lock")).unwrap();
        let second = open(&path).unwrap();
        let second = if has_ended {
            second.close();
            None
        } else {
            Some(second)
        };
        let error = file.keep_lock().unwrap_err();
        let Error::Lost {
            path: lost,
            problem,
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(*lost, path);
        // A process that another test is just starting may hold the lock a little longer.
        let known = [" uses it", " has used it since"]
            .map(|what| format!("another exporter (process {number}){what}"));
        let expected = if has_ended { &known[..] } else { &known[..1] };
        assert!(expected.contains(problem), "{problem}");
        file.abandon();
        drop(second);
    }
}

#[test]
fn a_state_that_was_moved_aside_is_not_lost_to_whoever_uses_what_is_in_its_place() {
    let (_folder, path) = state_file();
    let mut file = open(&path).unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let name = with_suffix(&path, suffix);
        fs::rename(&name, with_suffix(&name, ".aside")).unwrap();
    }
    let _second = open(&path).unwrap();
    assert_cannot_take_lock_again(&mut file);
}

#[test]
fn a_lock_that_is_let_go_in_a_moment_is_waited_for() {
    // On a busy machine, the moment may be too long.
    for _ in 0..20 {
        let (_folder, path) = state_file();
        let Ok(held) = lock(&path) else {
            panic!("it is locked");
        };
        let began = Instant::now();
        let ending = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            drop(held);
            began.elapsed()
        });
        let opened = open(&path);
        let moment = ending.join().unwrap();
        if opened.is_ok() {
            return;
        }
        assert!(moment > LOCK_TRIES / 2 * LOCK_PAUSE, "{opened:?}");
    }
    panic!("it is never waited for");
}
