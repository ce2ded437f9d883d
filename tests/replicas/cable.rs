//! A cable between a replica and the database, which is slow or cut at times.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Passes bytes on to a server, late at times, or not at all, without notice to either side.
pub(crate) struct Cable {
    port: u16,
    /// The delay; `None`: nothing is passed on.
    delay: watch::Sender<Option<Duration>>,
}

impl Cable {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let delay = watch::Sender::new(Some(Duration::ZERO));
        let watched = delay.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let watched = watched.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
                        return;
                    };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::join!(
                        pass_on(from_client, to_server, watched.clone()),
                        pass_on(from_server, to_client, watched),
                    );
                });
            }
        });
        Self { port, delay }
    }

    /// Returns the URL of the database by way of this cable.
    pub(crate) fn lead(&self, database: &str, server: u16) -> String {
        database.replace(&format!(":{server}/"), &format!(":{}/", self.port))
    }

    pub(crate) fn cut(&self) {
        self.delay.send_replace(None);
    }

    /// Passes everything on with this delay in each direction.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.delay.send_replace(Some(delay));
    }

    pub(crate) fn mend(&self) {
        self.slow_down(Duration::ZERO);
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut delay: watch::Receiver<Option<Duration>>,
) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        // The bytes arrive late rather than never, as packets that are sent again.
        let Ok(late) = delay.wait_for(Option::is_some).await.map(|it| *it) else {
            return;
        };
        tokio::time::sleep(late.unwrap_or_default()).await;
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
