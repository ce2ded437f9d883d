//! What a service manager hears (`sd_notify(3)`).

use std::path::Path;

use tokio::{net::UnixDatagram, time::timeout};

use crate::exporter::{Exporter, PATIENCE, Place, Signal, opsramp};

/// A service manager's end of the socket, and the messages that it has heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        Self {
            socket: UnixDatagram::bind(path).unwrap(),
            heard: Vec::new(),
        }
    }

    /// Waits until a message has such a line, and returns the message.
    async fn hears(&mut self, line: impl Fn(&str) -> bool) -> String {
        let mut message = vec![0; 4096];
        loop {
            let mut heard = self.heard.iter();
            if let Some(message) = heard.find(|message| message.lines().any(&line)) {
                return message.clone();
            }
            let received = timeout(PATIENCE, self.socket.recv(&mut message)).await;
            let length = received
                .unwrap_or_else(|_| panic!("heard nothing but {:#?}", self.heard))
                .unwrap();
            let text = std::str::from_utf8(&message[..length]).unwrap();
            self.heard.push(text.to_owned());
        }
    }

    /// Fills the socket, so that no further message fits, as with a manager that does not read.
    fn stop_up(&self) {
        let address = self.socket.local_addr().unwrap();
        let other = std::os::unix::net::UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while (other.send_to(b"X=1\n", address.as_pathname().unwrap())).is_ok() {}
    }

    /// Forgets the messages heard so far.
    fn forget(&mut self) {
        self.heard.clear();
    }
}

async fn start(place: &Place, watchdog: &str) -> (Manager, Exporter) {
    let manager = Manager::at(&place.path("notify"));
    let exporter = start_under(&manager, place, watchdog).await;
    (manager, exporter)
}

async fn start_under(manager: &Manager, place: &Place, watchdog: &str) -> Exporter {
    let address = manager.socket.local_addr().unwrap();
    place.write();
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", address.as_pathname().unwrap());
    command.env("WATCHDOG_USEC", watchdog);
    place.start_as(command).await
}

#[tokio::test]
async fn it_hears_of_every_step() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    // A tenth of a second. The exporter feeds the watchdog and looks for news twice as often.
    let (mut manager, exporter) = start(&place, "100000").await;
    manager.hears(|line| line == "READY=1").await;
    let first = manager.hears(|line| line.starts_with("STATUS=")).await;
    assert!(first.contains("STATUS=polling 1 search\n"), "{first}");
    // Ready means that a scrape is answered.
    exporter.metrics().await;
    for _ in 0..3 {
        manager.forget();
        manager.hears(|line| line == "WATCHDOG=1").await;
    }

    manager.forget();
    place.config["searches"] = serde_json::json!([]);
    place.write();
    exporter.signal(Signal::HUP);
    let reloading = manager.hears(|line| line == "RELOADING=1").await;
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    manager.hears(|line| line == "READY=1").await;
    let notice = "the configuration cannot be loaded again";
    manager
        .hears(|line| line.starts_with("STATUS=polling 1 search") && line.contains(notice))
        .await;
    let (status, healthy) = exporter.get("/-/healthy").await;
    assert!(status == 200 && healthy.contains(notice), "{healthy}");

    manager.forget();
    place.config["searches"] = serde_json::json!([
        {"name": "open", "interval": "100ms"},
        {"name": "wrong", "interval": "100ms", "query": "nonsense:1"},
    ]);
    place.write();
    exporter.signal(Signal::HUP);
    // By then, the wrong one may have failed already.
    manager
        .hears(|line| line.starts_with("STATUS=polling 2 searches") && !line.contains(notice))
        .await;
    drop(opsramp);
    manager
        .hears(|line| {
            line.starts_with("STATUS=polling 2 searches, ") && line.contains(" failing (default/")
        })
        .await;

    exporter.signal(Signal::TERM);
    let stopping = manager.hears(|line| line == "STOPPING=1").await;
    assert!(stopping.contains("STATUS=stopping"), "{stopping}");
    assert_eq!(exporter.end().await.status.code(), Some(0));
}

#[tokio::test]
async fn one_that_is_not_there_changes_nothing() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let (manager, exporter) = start(&place, "100000").await;
    drop(manager);
    exporter.wait_for_poll().await;
    let ended = exporter.stop().await;
    let told = ended.stderr.iter();
    assert_eq!(
        told.filter(|line| line.contains("NOTIFY_SOCKET")).count(),
        1
    );
}

#[tokio::test]
async fn one_that_does_not_read_holds_up_nothing_and_hears_later_what_it_missed() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let mut manager = Manager::at(&place.path("notify"));
    manager.stop_up();
    let exporter = start_under(&manager, &place, "100000").await;
    exporter.wait_for_poll().await;
    exporter.reload(&place).await;
    exporter.wait_for_poll().await;

    manager.hears(|line| line == "WATCHDOG=1").await;
    let heard = manager.heard.iter().flat_map(|message| message.lines());
    let states: Vec<_> = heard
        .filter(|line| matches!(*line, "READY=1" | "RELOADING=1"))
        .collect();
    assert_eq!(states, ["READY=1", "RELOADING=1", "READY=1"]);

    manager.stop_up();
    exporter.stop().await;
}
