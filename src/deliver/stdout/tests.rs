use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _},
    thread,
    time::Duration,
};

use rustix::fs::OFlags;

use super::*;
use crate::{
    deliver::{SinkError, fuzzing::pending, sink::Sink},
    record::tests::bare,
    store::Claim,
};

/// More than a pipe holds.
const MANY: i64 = 3000;

fn events(from: i64, count: i64) -> Vec<Pending> {
    (from..from + count)
        .map(|position| pending(position, body(position).into()))
        .collect()
}

fn body(position: i64) -> String {
    format!("{{\"event\":{position},\"x\":\"{}\"}}", "y".repeat(60))
}

fn expected(from: i64, count: i64) -> String {
    (from..from + count).map(|i| body(i) + "\n").collect()
}

fn sink(fd: impl Into<OwnedFd>) -> Stdout {
    marked(Arc::new(Mutex::new(Output::new(fd.into()))))
}

/// Returns a sink whose mark the store knows already.
fn marked(output: Arc<Mutex<Output>>) -> Stdout {
    let mark = output.lock().mark.clone();
    Stdout::new(output, Format::Json).resume_at(Some(&mark), 0)
}

/// Reads slowly, and little at a time.
fn read_slowly(mut reader: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut all = Vec::new();
        let mut some = vec![0; 7001];
        loop {
            thread::sleep(Duration::from_millis(1));
            match reader.read(&mut some).unwrap() {
                0 => return String::from_utf8(all).unwrap(),
                count => all.extend_from_slice(&some[..count]),
            }
        }
    })
}

fn make_non_blocking(writer: &PipeWriter) {
    let flags = rustix::fs::fcntl_getfl(writer).unwrap();
    rustix::fs::fcntl_setfl(writer, flags | OFlags::NONBLOCK).unwrap();
}

#[test]
fn every_line_gets_through_a_pipe_that_is_often_full() {
    for non_blocking in [false, true] {
        let (reader, writer) = io::pipe().unwrap();
        if non_blocking {
            make_non_blocking(&writer);
        }
        let reading = read_slowly(reader);
        let mut sink = sink(writer);
        let progress = sink.deliver(&events(1, MANY));
        assert!(progress.error.is_none(), "{progress:?}");
        assert_eq!(progress.settled, MANY as usize);
        drop(sink);
        assert_eq!(reading.join().unwrap(), expected(1, MANY));
    }
}

#[tokio::test]
async fn a_stop_ends_a_delivery_to_a_slow_reader_behind_a_whole_line_and_the_rest_waits() {
    let mut events = events(1, MANY);
    let first = format!("{{\"x\":\"{}\"}}", "y".repeat(20 * PIECE));
    events[0].event.body = first.clone().into();
    let (mut reader, writer) = io::pipe().unwrap();
    let sink = sink(writer);
    let (output, mark) = (Arc::clone(&sink.output), sink.mark.clone());
    let (orders, seen) = watch::channel(Order::Work);
    let journalled = watch::channel(0).1;
    let started = Sink::Stdout(sink).start("out", mark.as_deref(), 0, journalled, seen);
    let mut running = started.unwrap();
    let waiting = thread::spawn(move || {
        // The first line is more than the pipe holds.
        while rustix::io::ioctl_fionread(&reader).unwrap() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        orders.send_replace(Order::Stop);
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    let delivery = running.deliver(events.into(), Claim::default(), || false);
    let progress = delivery.await;
    assert!(progress.error.is_none(), "{progress:?}");
    assert_eq!(progress.settled, 1);
    assert!(matches!(output.lock().end, End::Whole));
    drop(output);
    running.close().await;
    assert_eq!(waiting.join().unwrap().unwrap(), first + "\n");
}

#[test]
fn a_pipe_that_nobody_reads_any_more_is_closed_for_good() {
    let (reader, writer) = io::pipe().unwrap();
    let mut sink = sink(writer);
    drop(reader);
    let progress = sink.deliver(&events(1, 3));
    assert_eq!(progress.settled, 0);
    let error = progress.error.unwrap();
    assert!(error.is_fatal(), "{error:?}");
    assert_eq!(error.to_string(), "standard output is closed");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_that_may_pass() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let progress = sink(full).deliver(&events(1, 3));
    assert_eq!(progress.settled, 0);
    let error = progress.error.unwrap();
    assert!(!error.is_fatal(), "{error:?}");
    assert!(matches!(error, SinkError::Stdout(Error::Write(_))));
}

#[test]
fn after_an_error_in_the_middle_of_a_line_the_same_sink_writes_the_rest_of_it() {
    let (reader, writer) = io::pipe().unwrap();
    let mut sink = sink(writer);
    let first = expected(1, 1);
    {
        let mut output = sink.output.lock();
        let half = &first.as_bytes()[..20];
        write_all(&output.fd, half, &mut 0).unwrap();
        output.end = End::Torn {
            sink_id: sink.sink_id,
            position: 1,
            written: half.len(),
        };
    }
    let reading = read_slowly(reader);
    assert_eq!(sink.deliver(&events(1, 2)).settled, 2);
    drop(sink);
    assert_eq!(reading.join().unwrap(), expected(1, 2));
}

#[test]
fn where_an_error_broke_a_line_off_is_known() {
    let (reader, writer) = io::pipe().unwrap();
    let mut sink = sink(writer);
    let mut events = events(1, 3);
    events[1].event.body = "y".repeat(20 * PIECE).into();
    let writing = thread::spawn(move || (sink.deliver(&events), sink));
    let whole = expected(1, 1).len() as u64;
    // The second line is more than the pipe holds.
    while rustix::io::ioctl_fionread(&reader).unwrap() <= whole {
        thread::sleep(Duration::from_millis(1));
    }
    drop(reader);
    let (progress, sink) = writing.join().unwrap();
    assert!(progress.error.is_some());
    assert_eq!(progress.settled, 1);
    let output = sink.output.lock();
    let End::Torn {
        position, written, ..
    } = output.end
    else {
        panic!("{:?}", output.end);
    };
    let out = rustix::io::ioctl_fionread(&output.fd).unwrap();
    assert_eq!((position, whole + written as u64), (2, out));
}

/// Leaves the output as if only a part of the first event's line had been written.
fn tear_first_line(sink: &Stdout) {
    let mut output = sink.output.lock();
    write_all(&output.fd, b"{\"ev", &mut 0).unwrap();
    output.end = End::Torn {
        sink_id: sink.sink_id,
        position: 1,
        written: 4,
    };
}

#[test]
fn a_line_that_another_sink_left_torn_is_ended_first() {
    let (reader, writer) = io::pipe().unwrap();
    let sink = sink(writer);
    let mut other = marked(Arc::clone(&sink.output));
    tear_first_line(&sink);
    let reading = read_slowly(reader);
    assert_eq!(other.deliver(&events(1, 1)).settled, 1);
    drop((sink, other));
    assert_eq!(
        reading.join().unwrap(),
        format!("{{\"ev\n{}", expected(1, 1))
    );
}

/// As where replicas share the searches, and the event's search was lost.
#[test]
fn a_torn_line_whose_event_is_not_the_next_one_is_ended_first() {
    let (reader, writer) = io::pipe().unwrap();
    let mut sink = sink(writer);
    tear_first_line(&sink);
    let reading = read_slowly(reader);
    assert_eq!(sink.deliver(&events(2, 1)).settled, 1);
    drop(sink);
    assert_eq!(
        reading.join().unwrap(),
        format!("{{\"ev\n{}", expected(2, 1))
    );
}

#[test]
fn an_event_that_cannot_be_read_is_refused_once_it_is_settled() {
    let mut events = events(1, 2);
    events[0].event.body = bare().to_json().into();
    for is_read in [false, true] {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = sink(writer);
        sink.format = Format::Logfmt;
        let reader = is_read.then_some(reader);
        let progress = sink.deliver(&events);
        let expected = if is_read { (2, 1) } else { (0, 0) };
        assert_eq!((progress.settled, progress.refused.len()), expected);
        drop(reader);
    }
}

#[test]
fn a_file_that_a_former_process_left_in_the_middle_of_a_line_gets_a_line_break() {
    for (before, between) in [("", ""), ("whole\n", ""), ("torn", "\n")] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(before.as_bytes()).unwrap();
        let output = File::options().append(true).open(file.path()).unwrap();
        assert_eq!(sink(output).deliver(&events(1, 2)).settled, 2);
        let content = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(content, format!("{before}{between}{}", expected(1, 2)));
    }
}

#[test]
fn a_pipe_gets_a_line_break_where_it_may_have_been_left_in_the_middle_of_a_line() {
    let here = || None;
    let elsewhere = || Some(Some(&b"stdout 1:2"[..]));
    let of_a_file = || Some(Some(&b"that of a file"[..]));
    let unknown = || Some(None);
    for (mark, journal_end, is_shared, between) in [
        (here(), 0, false, ""),
        (here(), 1, false, "\n"),
        (here(), 0, true, "\n"),
        (of_a_file(), 0, false, "\n"),
        (unknown(), 1, false, "\n"),
        // Nothing was ever journalled: there was no process before.
        (unknown(), 0, false, ""),
        // Nothing was ever journalled by this replica either.
        (unknown(), 1, true, ""),
        (elsewhere(), 1, false, ""),
        (elsewhere(), 0, true, ""),
    ] {
        for is_read in [true, false] {
            let (mut reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b"{\"ev").unwrap();
            if is_read {
                reader.read_exact(&mut [0; 4]).unwrap();
            }
            let sink = sink(writer);
            let known = sink.mark.clone();
            let mut sink = sink.resume_at(mark.unwrap_or(known.as_deref()), journal_end);
            let reading = read_slowly(reader);
            if is_shared {
                sink.note_past(Past::default());
            }
            if mark.is_some() {
                let progress = sink.deliver(&events(1, 2));
                assert_eq!((progress.settled, progress.mark), (0, known));
            }
            assert_eq!(sink.deliver(&events(1, 2)).settled, 2);
            // The line break comes once: from then on, the sink knows how the last line ended.
            sink.note_past(Past::default());
            assert_eq!(sink.deliver(&events(3, 1)).settled, 1);
            drop(sink);
            // A pipe that holds something is not new, whatever the mark says.
            let expected = if is_read {
                format!("{between}{}", expected(1, 3))
            } else {
                format!("{{\"ev\n{}", expected(1, 3))
            };
            let read = reading.join().unwrap();
            assert_eq!(read, expected, "{mark:?} {journal_end} {is_shared}");
        }
    }
}

#[test]
fn a_file_that_ends_whole_gets_no_line_break_whatever_waits() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"whole\n").unwrap();
    let output = File::options().append(true).open(file.path()).unwrap();
    let sink = sink(output);
    let mark = sink.mark.clone();
    let mut sink = sink.resume_at(mark.as_deref(), 2);
    assert_eq!(sink.deliver(&events(1, 2)).settled, 2);
    let content = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(content, format!("whole\n{}", expected(1, 2)));
}

#[test]
fn sinks_that_share_standard_output_do_not_mix_their_lines() {
    let (reader, writer) = io::pipe().unwrap();
    let one = sink(writer);
    let two = marked(Arc::clone(&one.output));
    let reading = read_slowly(reader);
    let writing: Vec<_> = [(one, 1), (two, 1 + MANY)]
        .into_iter()
        .map(|(mut sink, from)| {
            thread::spawn(move || {
                for batch in events(from, MANY).chunks(500) {
                    assert_eq!(sink.deliver(batch).settled, batch.len());
                }
            })
        })
        .collect();
    for writer in writing {
        writer.join().unwrap();
    }
    let text = reading.join().unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let all = expected(1, 2 * MANY);
    let mut all: Vec<_> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(lines, all);
}

#[test]
fn of_all_devices_only_the_null_device_swallows_what_is_written() {
    let is_null = |path: &str| is_null_device(&File::open(path).unwrap().into());
    assert!(is_null("/dev/null"));
    for other in ["/dev/zero", "/dev/full", "/dev", "/proc/self/status"] {
        assert!(!is_null(other), "{other}");
    }
}
