//! Looks up the names of all servers that the process connects to.
//!
//! The C library's resolver knows the system's configuration, but it blocks a thread, and goes on
//! when its caller has long given up. So all callers that ask for the same name wait for the same
//! look-up. Look-ups have a limit of their own: a name that hangs takes neither the threads with
//! which files are read, nor the place of another name.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{FutureExt as _, future::Shared};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

/// Maximum number of look-ups at a time, of all names together: a quarter of the threads that
/// there may be.
const PLACES: usize = 128;
/// A look-up without an answer after this time may never end, so the next caller begins another
/// one, while the earlier ones go on. The time doubles with each look-up of the name that goes on,
/// so that a name that hangs for a day takes fifteen threads.
const PATIENCE: Duration = Duration::from_secs(5);

/// The resolver of an HTTP client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolver;

/// Blocks until a name is found or the search for it has failed.
type Finder = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The names that are being looked up.
struct Names {
    look_up: Box<Finder>,
    places: Semaphore,
    asked: Mutex<HashMap<Arc<str>, Asked>>,
}

/// A name that is being looked up.
#[derive(Default)]
struct Asked {
    /// Number of look-ups that have not ended.
    under_way: u32,
    /// The callers that wait for the first look-up to end.
    waiting: Option<Waiting>,
}

struct Waiting {
    tell: oneshot::Sender<Answer>,
    told: Promise,
    /// Until then no caller begins another look-up.
    again_at: Instant,
}

/// A look-up that has not ended.
struct LookUp {
    names: &'static Names,
    name: Arc<str>,
}

pub(crate) type Answer = Result<Arc<[SocketAddr]>, Failure>;
type Promise = Shared<oneshot::Receiver<Answer>>;

/// Why a name was not found; each caller gets a copy.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Failure(Arc<io::Error>);

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let look_up = |name: &str| Ok((name, 0).to_socket_addrs()?.collect());
    Names::new(PLACES, Box::new(look_up))
});

// === impl Resolver ===

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let told = NAMES.ask(name.as_str());
        Box::pin(async move {
            let addresses = answer(told).await?.to_vec();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Returns the addresses of a name, with port 0.
pub(crate) async fn look_up(name: &str) -> Answer {
    answer(NAMES.ask(name)).await
}

async fn answer(told: Promise) -> Answer {
    // The sender is dropped only when the process is about to end.
    told.await
        .unwrap_or_else(|_| Err(Failure(Arc::new(io::ErrorKind::Interrupted.into()))))
}

// === impl Names ===

impl Names {
    fn new(places: usize, look_up: Box<Finder>) -> Self {
        Self {
            look_up,
            places: Semaphore::new(places),
            asked: Mutex::default(),
        }
    }

    /// Returns the promise of a look-up that is under way, or begins one.
    fn ask(&'static self, name: &str) -> Promise {
        let now = Instant::now();
        let name: Arc<str> = name.into();
        let mut all = self.asked.lock();
        let asked = all.entry(Arc::clone(&name)).or_default();
        let again_at = now + PATIENCE * (1 << asked.under_way.min(20));
        let waiting = asked.waiting.get_or_insert_with(|| {
            let (tell, told) = oneshot::channel();
            Waiting {
                tell,
                told: told.shared(),
                again_at: now,
            }
        });
        let told = waiting.told.clone();
        if now < waiting.again_at {
            return told;
        }
        waiting.again_at = again_at;
        asked.under_way += 1;
        drop(all);
        let look_up = LookUp { names: self, name };
        tokio::spawn(look_up.run());
        told
    }
}

// === impl LookUp ===

impl LookUp {
    async fn run(self) {
        // The semaphore is never closed.
        let place = self.names.places.acquire().await;
        tokio::task::spawn_blocking(move || {
            let found = (self.names.look_up)(&self.name);
            let answer = found.map(Arc::from);
            self.tell(answer.map_err(|error| Failure(Arc::new(error))));
            drop(place);
        });
    }

    fn tell(&self, answer: Answer) {
        let mut all = self.names.asked.lock();
        let waiting = all.get_mut(&self.name).and_then(|it| it.waiting.take());
        if let Some(waiting) = waiting {
            // All callers may have gone away.
            waiting.tell.send(answer).ok();
        }
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        let mut all = self.names.asked.lock();
        if let Some(asked) = all.get_mut(&self.name) {
            asked.under_way -= 1;
            if asked.under_way == 0 {
                all.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use parking_lot::Condvar;

    use super::*;

    const PLENTY: Duration = Duration::from_secs(30);

    /// Names to look up. Those that begin with `hang` are not found before the gate is opened.
    struct World {
        names: &'static Names,
        gate: Arc<(Mutex<bool>, Condvar)>,
        begun: mpsc::Receiver<String>,
    }

    impl Drop for World {
        /// Opens the gate, because the runtime waits for its threads.
        fn drop(&mut self) {
            self.open();
        }
    }

    impl World {
        fn new(places: usize) -> Self {
            let gate = Arc::new((Mutex::new(false), Condvar::new()));
            let (begin, begun) = mpsc::channel();
            let (begin, hung) = (Mutex::new(begin), Arc::clone(&gate));
            let look_up = move |name: &str| {
                begin.lock().send(name.to_owned()).unwrap();
                if name.starts_with("hang") {
                    let mut open = hung.0.lock();
                    hung.1.wait_while(&mut open, |open| !*open);
                }
                match name {
                    "nobody" => Err(io::Error::other("nobody has this name")),
                    _ => Ok(vec![SocketAddr::from(([127, 0, 0, 1], 0))]),
                }
            };
            let names = Names::new(places, Box::new(look_up));
            Self {
                names: Box::leak(Box::new(names)),
                gate,
                begun,
            }
        }

        fn open(&self) {
            *self.gate.0.lock() = true;
            self.gate.1.notify_all();
        }

        fn begun(&self) -> String {
            self.begun.recv_timeout(PLENTY).unwrap()
        }

        async fn find(&self, name: &str) -> Answer {
            let told = answer(self.names.ask(name));
            tokio::time::timeout(PLENTY, told).await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_that_hangs_takes_one_thread_however_many_ask_and_no_other_names_place() {
        let world = World::new(2);
        let told: Vec<Promise> = (0..1000).map(|_| world.names.ask("hangs")).collect();
        assert_eq!(world.begun(), "hangs");
        for _ in 0..3 {
            assert!(world.find("other").await.is_ok());
            assert_eq!(world.begun(), "other", "not kept: it may have moved");
        }
        let failure = world.find("nobody").await.unwrap_err();
        assert_eq!(failure.to_string(), "nobody has this name");
        assert_eq!(world.begun(), "nobody");
        world.open();
        for told in told {
            assert!(answer(told).await.is_ok());
        }
        assert!(world.begun.try_recv().is_err(), "it was looked up once");
        let began = Instant::now();
        while !world.names.asked.lock().is_empty() {
            assert!(began.elapsed() < PLENTY, "something is left over");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn names_that_hang_wait_for_a_place_and_come_to_their_turn() {
        let world = World::new(1);
        let first = world.names.ask("hangs");
        assert_eq!(world.begun(), "hangs");
        let second = world.names.ask("other");
        world.open();
        for told in [first, second] {
            assert!(answer(told).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_in_vain_less_and_less_often() {
        let world = World::new(PLACES);
        let mut threads = 0;
        let told = world.names.ask("hangs");
        for second in 0..24 * 60 * 60 {
            if second % 60 == 0 {
                drop(world.names.ask("hangs"));
                tokio::task::yield_now().await;
            }
            threads = world.names.asked.lock()["hangs"].under_way.max(threads);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((10..=15).contains(&threads), "{threads}");
        world.open();
        assert!(answer(told).await.is_ok(), "whoever waits is told");
    }
}
