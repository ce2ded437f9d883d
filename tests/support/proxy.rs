//! A network between the exporter and the server that it asks. Depending on its weather it delays,
//! cuts, throttles, resets, or swallows what passes.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::{
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// What happens to connections, also to those that are open already.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    /// Everything passes.
    Fair,
    /// Each piece of data is delayed, and the rate is limited, both ways.
    Slow {
        delay: Duration,
        bytes_per_second: f64,
    },
    /// Each connection ends somewhere in the first `within` bytes of its answers.
    Cut { within: usize, end: End },
    /// Each connection ends as soon as it is used after an answer.
    UsedOnce { end: End },
    /// A connection on which `question` is asked ends instead of the answer.
    Unanswered { question: &'static str },
    /// All connections are reset at once.
    Reset,
    /// Nothing passes, and neither side is told. The data wait for other weather.
    Silent,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    /// Closed in an orderly way, as if the peer had sent everything.
    Closed,
    Reset,
}

/// What has passed on a connection so far.
#[derive(Debug, Default)]
struct Seen {
    question: AtomicBool,
    answer: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    There,
    Back,
}

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
    forgets: watch::Sender<()>,
    task: AbortHandle,
}

// === impl Proxy ===

impl Proxy {
    /// Starts a proxy in front of a server, on a free port of the loopback.
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, receiver) = watch::channel(Weather::Fair);
        let (forgets, forgotten) = watch::channel(());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let forgotten = forgotten.clone();
                connections.spawn(relay(client, server, receiver.clone(), forgotten));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            weather,
            forgets,
            task: task.abort_handle(),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// From now on nothing passes on the connections that are open, and neither side is told.
    pub(crate) fn forget(&self) {
        self.forgets.send_replace(());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes data on both ways, until one side or the weather ends the connection.
async fn relay(
    mut client: TcpStream,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut forgotten: watch::Receiver<()>,
) {
    forgotten.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let seen = Seen::default();
        let there = pass(from_client, to_server, weather.clone(), Way::There, &seen);
        let back = pass(from_server, to_client, weather.clone(), Way::Back, &seen);
        tokio::select! {
            passed = async { tokio::try_join!(there, back) } => passed.err().unwrap_or(End::Closed),
            end = storm(weather) => end,
            _ = forgotten.changed() => pending().await,
        }
    };
    if end == End::Reset {
        client.set_zero_linger().unwrap();
        server.set_zero_linger().unwrap();
    }
}

/// Waits for weather that ends every connection.
async fn storm(mut weather: watch::Receiver<Weather>) -> End {
    let storm = weather.wait_for(|weather| *weather == Weather::Reset);
    if storm.await.is_ok() {
        return End::Reset;
    }
    // The proxy was dropped, so no such weather can come.
    pending().await
}

/// Passes data on one way. Returns how the connection is to end, as an error if it is cut.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    way: Way,
    seen: &Seen,
) -> Result<(), End> {
    let mut buffer = vec![0; 16 << 10];
    let mut left = None;
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| End::Reset)?;
        if length == 0 {
            return to.shutdown().await.map_err(|_| End::Reset);
        }
        let now = weather
            .wait_for(|weather| *weather != Weather::Silent)
            .await;
        // The proxy was dropped, so the test has ended.
        let now = *now.map_err(|_| End::Reset)?;
        let mut piece = &buffer[..length];
        if way == Way::Back {
            seen.answer.store(true, Ordering::Relaxed);
        }
        match now {
            Weather::UsedOnce { end }
                if way == Way::There && seen.answer.load(Ordering::Relaxed) =>
            {
                return Err(end);
            }
            Weather::Unanswered { question } if way == Way::There => {
                let mut windows = piece.windows(question.len());
                if windows.any(|window| window == question.as_bytes()) {
                    seen.question.store(true, Ordering::Relaxed);
                }
            }
            Weather::Unanswered { .. } if seen.question.load(Ordering::Relaxed) => {
                return Err(End::Closed);
            }
            Weather::Slow {
                delay,
                bytes_per_second,
            } => {
                let time = Duration::from_secs_f64(length as f64 / bytes_per_second);
                tokio::time::sleep(delay + time).await;
            }
            Weather::Cut { within, end } if way == Way::Back => {
                let budget = left.get_or_insert_with(|| fastrand::usize(..within));
                if length > *budget {
                    piece = &piece[..*budget];
                    to.write_all(piece).await.map_err(|_| End::Reset)?;
                    return Err(end);
                }
                *budget -= length;
            }
            _ => {}
        }
        to.write_all(piece).await.map_err(|_| End::Reset)?;
    }
}
