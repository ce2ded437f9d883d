use std::{
    collections::BTreeMap,
    io::{IoSliceMut, Read as _, Seek as _},
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::*;
use crate::{
    deliver::{SinkError, sink::Sink, tests::pending},
    record::tests::{bare, full},
    store::Claim,
};

/// journald's side of the socket.
struct Receiver {
    _folder: tempfile::TempDir,
    path: PathBuf,
    socket: UnixDatagram,
}

impl Receiver {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self {
            _folder: folder,
            path,
            socket,
        }
    }

    fn sink(&self) -> Journald {
        let mut sink = Journald::at(&self.path);
        sink.pace.allowed = BURST;
        sink
    }

    /// Receives one message, and tells whether it came as a file.
    fn receive(&self) -> (Vec<u8>, bool) {
        let mut message = vec![0; 1 << 20];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            RecvFlags::empty(),
        )
        .unwrap();
        message.truncate(received.bytes);
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                let mut file = File::from(descriptors.into_iter().next().unwrap());
                let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
                assert!(seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW));
                assert!(message.is_empty());
                file.rewind().unwrap();
                file.read_to_end(&mut message).unwrap();
                return (message, true);
            }
        }
        (message, false)
    }
}

/// Reads a message as journald does.
fn parse(mut message: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !message.is_empty() {
        let end = message.iter().position(|&byte| byte == b'\n').unwrap();
        let (line, rest) = (&message[..end], &message[end + 1..]);
        let (name, value, rest) = match line.iter().position(|&byte| byte == b'=') {
            Some(equals) => (&line[..equals], &line[equals + 1..], rest),
            None => {
                let (length, rest) = rest.split_first_chunk::<8>().unwrap();
                let length = u64::from_le_bytes(*length) as usize;
                assert_eq!(rest[length], b'\n');
                (line, &rest[..length], &rest[length + 1..])
            }
        };
        let [name, value] = [name, value].map(|part| str::from_utf8(part).unwrap().to_owned());
        assert!(fields.insert(name, value).is_none(), "a field came twice");
        message = rest;
    }
    fields
}

#[test]
fn every_key_is_a_field() {
    let receiver = Receiver::new();
    let progress = receiver
        .sink()
        .deliver(&[pending(&full()), pending(&bare())]);
    assert_eq!(progress.settled, 2);
    assert!(progress.error.is_none());

    let (message, as_file) = receiver.receive();
    assert!(!as_file);
    let fields = parse(&message);
    assert_eq!(fields["MESSAGE"], "CPU \"load\" = 99%\nnext line");
    assert_eq!(fields["PRIORITY"], "2");
    assert_eq!(fields["SYSLOG_IDENTIFIER"], "opsramp-alert");
    assert_eq!(fields["OPSRAMP_EVENT"], "changed");
    assert_eq!(fields["OPSRAMP_REPEAT_COUNT"], "3");
    assert_eq!(fields["OPSRAMP_ALERT"], r#"{"uniqueId":"8005","n":1.10}"#);
    let mut keys = 0;
    full().visit(|key, _| {
        keys += 1;
        let name = format!("OPSRAMP_{}", key.to_uppercase());
        assert!(key == "message" || fields.contains_key(&name), "{name}");
    });
    assert_eq!(fields.len(), keys + 2);

    let fields = parse(&receiver.receive().0);
    assert_eq!(fields["MESSAGE"], "");
    assert_eq!(fields["PRIORITY"], "5");
}

#[test]
fn priorities_follow_the_state() {
    for (state, priority) in [
        ("Critical", "2"),
        ("Warning", "4"),
        ("Info", "6"),
        ("Ok", "6"),
    ] {
        let mut record = bare();
        record.fields.state = Some(state.into());
        let mut message = Vec::new();
        push_message(&mut message, &record);
        assert_eq!(parse(&message)["PRIORITY"], priority);
    }
}

#[test]
fn no_text_can_pass_for_another_field() {
    let mut record = bare();
    record.fields.message = Some("x\nPRIORITY=0\nOPSRAMP_FORGED=yes\n".into());
    let mut message = Vec::new();
    push_message(&mut message, &record);
    let fields = parse(&message);
    assert_eq!(fields["PRIORITY"], "5");
    assert!(!fields.contains_key("OPSRAMP_FORGED"));
    assert_eq!(fields["MESSAGE"], "x\nPRIORITY=0\nOPSRAMP_FORGED=yes\n");
}

#[test]
fn what_is_too_large_for_a_datagram_comes_as_a_sealed_file() {
    let receiver = Receiver::new();
    let mut sink = receiver.sink();
    let socket = UnixDatagram::unbound().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, 4096).unwrap();
    sink.socket = Some(socket);
    let mut record = full();
    record.fields.description = Some("ä\n".repeat(300_000).into());
    let progress = sink.deliver(&[pending(&record), pending(&bare())]);
    assert_eq!(progress.settled, 2, "{progress:?}");
    let (message, as_file) = receiver.receive();
    assert!(as_file);
    assert_eq!(
        Some(&*parse(&message)["OPSRAMP_DESCRIPTION"]),
        record.fields.description.as_deref()
    );
    assert!(!receiver.receive().1);
}

#[test]
fn what_journald_would_drop_in_silence_is_refused_and_the_others_are_sent() {
    let receiver = Receiver::new();
    let mut sink = receiver.sink();
    let mut record = bare();
    record.fields.description = Some("".into());
    let mut message = Vec::new();
    push_message(&mut message, &record);
    let room = MAX_MESSAGE - message.len();
    record.fields.description = Some("x".repeat(room).into());
    let largest = pending(&record);
    record.fields.description = Some("x".repeat(room + 1).into());
    let events = [pending(&record), largest, pending(&bare())];
    let progress = sink.deliver(&events);
    assert_eq!(progress.settled, 3);
    assert!(progress.error.is_none());
    assert_eq!(progress.refused.len(), 1);
    assert_eq!(progress.refused[0].events, 1);
    assert_eq!(progress.refused[0].event_id, Some(record.event_id));
    let reason = &progress.refused[0].reason;
    assert!(reason.starts_with("it has 33554433 bytes"), "{reason}");
    assert_eq!(receiver.receive().0.len(), MAX_MESSAGE);
    let next = parse(&receiver.receive().0);
    assert!(!next.contains_key("OPSRAMP_DESCRIPTION"));
}

#[test]
fn without_journald_the_error_says_so_and_once_it_is_back_messages_arrive() {
    let receiver = Receiver::new();
    let moved = receiver.path.with_file_name("moved");
    std::fs::rename(&receiver.path, &moved).unwrap();
    let mut sink = receiver.sink();
    let progress = sink.deliver(&[pending(&full())]);
    assert_eq!(progress.settled, 0);
    let error = progress.error.unwrap();
    assert!(matches!(error, SinkError::Journald(Error::Absent { .. })));
    assert!(!error.is_fatal());

    std::fs::rename(&moved, &receiver.path).unwrap();
    assert_eq!(sink.deliver(&[pending(&full())]).settled, 1);
    receiver.receive();

    // Where it has ended, its socket may still be there.
    drop(receiver.socket);
    assert!(receiver.path.exists());
    let error = sink.deliver(&[pending(&full())]).error.unwrap();
    assert!(matches!(error, SinkError::Journald(Error::Absent { .. })));
}

#[test]
fn what_was_sent_before_an_error_is_not_sent_again() {
    let receiver = Receiver::new();
    let mut sink = receiver.sink();
    let socket = open_socket().unwrap();
    assert_eq!(socket.write_timeout().unwrap(), Some(SEND_TIMEOUT));
    socket
        .set_write_timeout(Some(Duration::from_millis(10)))
        .unwrap();
    sink.socket = Some(socket);
    // Nobody receives, so the queue fills up.
    let events: Vec<_> = (0..2000).map(|_| pending(&bare())).collect();
    let progress = sink.deliver(&events);
    assert!(progress.error.is_some());
    assert!(progress.settled > 0 && progress.settled < 2000);
    receiver.socket.set_nonblocking(true).unwrap();
    let mut received = 0;
    while receiver.socket.recv(&mut [0; 1]).is_ok() {
        received += 1;
    }
    assert_eq!(received, progress.settled);
}

#[tokio::test]
async fn a_stop_ends_a_delivery_to_a_slow_journald_and_the_rest_waits() {
    let receiver = Receiver::new();
    let (orders, seen) = watch::channel(Order::Work);
    let sink = Sink::Journald(receiver.sink());
    let started = sink.start("journal", None, 0, watch::channel(0).1, seen);
    let mut running = started.unwrap();
    let events: Vec<_> = (0..2000).map(|_| pending(&bare())).collect();
    let receiving = std::thread::spawn(move || {
        // The queue holds less than that.
        receiver.receive();
        orders.send_replace(Order::Stop);
        let timeout = Some(Duration::from_secs(3));
        receiver.socket.set_read_timeout(timeout).unwrap();
        let rest = std::iter::from_fn(|| receiver.socket.recv(&mut [0; 1]).ok());
        1 + rest.count()
    });
    let delivery = running.deliver(events.into(), Claim::default(), || false);
    let progress = delivery.await;
    assert!(progress.error.is_none(), "{progress:?}");
    assert!(progress.settled < 2000);
    assert_eq!(receiving.join().unwrap(), progress.settled);
}

#[test]
fn a_backlog_goes_out_in_few_batches_and_a_lone_event_at_once() {
    let receiver = Receiver::new();
    let mut sink = Journald::at(&receiver.path);
    let listening = receiver.socket.try_clone().unwrap();
    std::thread::spawn(move || while listening.recv(&mut [0; 1]).is_ok() {});
    let events: Vec<_> = (0..300).map(|_| pending(&bare())).collect();
    let mut waiting = &events[..];
    let mut batches = Vec::new();
    let began = Instant::now();
    while !waiting.is_empty() {
        sink.wait(waiting.len());
        let progress = sink.deliver(waiting);
        assert!(progress.error.is_none(), "{progress:?}");
        batches.push(progress.settled);
        waiting = &waiting[progress.settled..];
    }
    // All of them at once, if a busy machine slept for too long.
    assert!(batches.len() <= 3, "{batches:?}");
    // The sink begins with nothing allowed.
    assert!(began.elapsed().as_secs_f64() > 0.99 * 300.0 / PER_SECOND);
    let began = Instant::now();
    sink.wait(1);
    assert_eq!(sink.deliver(&events[..1]).settled, 1);
    assert!(began.elapsed() < Duration::from_millis(500));
}

#[test]
fn the_pace_stays_below_journalds_limit_in_every_30_seconds() {
    let start = Instant::now();
    let mut pace = Pace::new(start);
    assert_eq!(
        pace.allowed(start),
        0,
        "it does not know what was sent before"
    );
    let mut sent = Vec::new();
    for tick in 0..1200_u64 {
        let now = start + Duration::from_millis(100 * tick);
        // Nothing is to be sent in the first minute, then more than may be sent.
        if tick >= 600 {
            let allowed = pace.allowed(now);
            pace.allowed -= allowed as f64;
            sent.push(allowed);
        }
    }
    let most = sent
        .windows(300)
        .map(|window| window.iter().sum::<usize>())
        .max();
    assert!(matches!(most, Some(8_000..=9_000)), "{most:?}");
    let all: usize = sent.iter().sum();
    assert!(all > 13_000, "{all}");
}
