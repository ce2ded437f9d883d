//! Names that do not exist or move, and a resolver that never answers.
//!
//! The exporter runs with a hosts file of its own, in a mount namespace, so that no name server is
//! asked and nothing leaves this machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::{process::Command, time::Instant};

use crate::{
    ALERTS, check_recovery,
    exporter::{Place, command, needed, opsramp, opsramp_at},
    wait_until_it_fails,
};

/// A name that never exists (RFC 6761).
const NAME: &str = "opsramp.invalid";

/// Puts two files in place of the system's, and runs the rest of the arguments as the same
/// process.
const IN_THEIR_PLACE: &str = r#"mount --bind "$1" /etc/hosts &&
mount --bind "$2" /etc/nsswitch.conf && shift 2 && exec "$@""#;

/// How long an exporter may take to stop while a resolver hangs: the time covers its last
/// deliveries, a second for threads that are still busy, and a busy machine.
const END: Duration = Duration::from_secs(15);

fn place(port: u16, timeout: &str) -> Place {
    let mut place = Place::new(&format!("http://{NAME}:{port}")).with_file_sink();
    place.config["accounts"][0]["timeout"] = timeout.into();
    std::fs::write(place.path("nsswitch.conf"), "hosts: files\n").unwrap();
    place.write();
    place
}

/// Returns the command for the daemon with the files of the place.
fn daemon(place: &Place) -> Command {
    needed("unshare", "util-linux");
    let mut command = command("unshare");
    command
        .args([
            "--mount",
            "--map-root-user",
            "sh",
            "-c",
            IN_THEIR_PLACE,
            "sh",
        ])
        .args([place.path("hosts"), place.path("nsswitch.conf")]);
    let daemon = place.command();
    let daemon = daemon.as_std();
    command.arg(daemon.get_program()).args(daemon.get_args());
    place.settle(command)
}

/// Gives the name to an address; `None`: to nobody. The file stays the same inode, because it is
/// mounted.
fn assign(place: &Place, address: Option<Ipv4Addr>) {
    let line = address.map(|address| format!("{address} {NAME}\n"));
    std::fs::write(place.path("hosts"), line.unwrap_or_default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_vanishes_is_told_and_where_it_appears_again_it_is_followed() {
    let first = opsramp(ALERTS).await;
    let port = first.addr().port();
    let place = place(port, "5s");
    assign(&place, None);
    let exporter = place.start_as(daemon(&place)).await;
    let before = exporter.metrics().await;
    wait_until_it_fails(&exporter, "connect", &before).await;
    let line = exporter
        .stderr
        .line(|line| line.contains("poll failed"))
        .await;
    assert!(line.contains("dns error"), "{line}");
    assign(&place, Some(Ipv4Addr::LOCALHOST));
    check_recovery(&exporter, &place, &first).await;

    // The name moves to another address. The server there has the same alerts, and there is nobody
    // at the old address.
    assign(&place, None);
    let before = exporter.metrics().await;
    first.stop().await;
    wait_until_it_fails(&exporter, "connect", &before).await;
    let there = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
    let second = opsramp_at(there, ALERTS + 1, |_| {}).await;
    assign(&place, Some(Ipv4Addr::new(127, 0, 0, 2)));
    exporter
        .wait_for("it follows the name", |metrics| {
            metrics.one("opsramp_up{") == Some(1.0)
        })
        .await;
    second.stop().await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_never_answers_delays_neither_scrapes_nor_the_end() {
    let opsramp = opsramp(ALERTS).await;
    let place = place(opsramp.addr().port(), "500ms");
    // A process that opens the pipe to read waits until another one opens it to write.
    mknodat(
        CWD,
        place.path("hosts"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let exporter = place.start_as(daemon(&place)).await;
    let before = exporter.metrics().await;
    let metrics = wait_until_it_fails(&exporter, "timeout", &before).await;
    assert!(metrics.one("process_threads").unwrap() < 40.0);
    for path in ["/", "/-/healthy", "/metrics"] {
        assert_eq!(exporter.get(path).await.0, 200, "{path}");
    }
    let began = Instant::now();
    exporter.stop().await;
    assert!(began.elapsed() < END, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_hangs_takes_a_thread_and_not_those_of_its_neighbours() {
    const TENANTS: usize = 100;
    let opsramp = opsramp(ALERTS).await;
    let mut place = place(opsramp.addr().port(), "500ms");
    let neighbour = {
        let mut account = place.config["accounts"][0].clone();
        account["name"] = "neighbour".into();
        account["timeout"] = "30s".into();
        account["url"] = opsramp.url().into();
        account
    };
    let account = &mut place.config["accounts"][0];
    // An account that has a token looks its server up for each tenant.
    account["token_url"] = format!("{}/auth/oauth/token", opsramp.url()).into();
    let tenants = (0..TENANTS).map(|number| format!("client_{number}"));
    account["tenants"] = tenants.collect::<Vec<_>>().into();
    let accounts = place.config["accounts"].as_array_mut().unwrap();
    accounts.push(neighbour);
    place.write();
    let hosts = place.path("hosts");
    mknodat(CWD, hosts, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let exporter = place.start_as(daemon(&place)).await;
    let metrics = exporter
        .wait_for("every tenant of the name has failed twice", |metrics| {
            metrics.sum("opsramp_poll_failures_total{account=\"default\"") >= 2.0 * TENANTS as f64
        })
        .await;
    assert!(metrics.one("process_threads").unwrap() < 40.0);
    let before = metrics.sum("opsramp_polls_total{account=\"neighbour\"");
    exporter
        .wait_for("the neighbour is polled", |metrics| {
            metrics.sum("opsramp_polls_total{account=\"neighbour\"") >= before + 2.0
                && metrics.one("opsramp_up{account=\"neighbour\"") == Some(1.0)
        })
        .await;
    exporter.stop().await;
}
