//! An OpsRamp server in a box: tokens, allowance, paging, a life of alerts, faults on demand.
//!
//! For `demo`, tests and benchmarks. It simulates the *API*, from its documentation, and shares no
//! type with the client in `opsramp`, so that neither can hide the other's mistake.
//!
//! [`World`] is the pure state: time comes in as an argument, nothing goes out. [`Simulator`] puts
//! HTTP around it, with the API where OpsRamp has it and a control API under `/simulator`.

mod alert;
mod allowance;
mod api;
mod control;
mod fault;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod life;
mod options;
mod order;
mod query;
mod record;
mod refusal;
mod render;
mod requests;
mod scenery;
mod server;
mod token;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::net::{TcpListener, ToSocketAddrs};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use alert::{Action, AlertId, EventType, Priority, Spec, State, Status, UnknownName};
pub use allowance::{Meter, Standing};
pub use api::{Hook, RequestInfo};
pub use fault::{Fault, FaultRule};
pub use life::Life;
pub use options::{
    Allowance, Credential, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Options, Oversized, Pace,
    RetryAfter, TenantOptions, Ts, UnknownKey,
};
pub use query::{Query, SearchParams, Sort};
pub use record::{Happening, What};
pub use refusal::Refusal;
pub use render::{ClientPage, Detail, Page};
pub use requests::{Endpoint, Request, Requests};
pub use token::{Grant, TokenRequest};
pub use world::{Snapshot, World};

use api::Shared;

/// How often the options are looked at, at least: a life that goes on slowly or not at all may have been
/// given another pace.
const IDLE: Duration = Duration::from_millis(500);

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

// === impl Simulator ===

impl Simulator {
    /// Starts a server with the real time; port 0 takes any free one.
    pub async fn start(options: Options, address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Self::start_on(options, listener, crate::clock::now)
    }

    /// Starts a server on a listener, with a clock.
    pub fn start_on(
        options: Options,
        listener: TcpListener,
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let life = Life::new(options.seed);
        let shared = Arc::new(Shared {
            world: Mutex::new(World::new(options, clock())),
            faults: Mutex::default(),
            requests: Mutex::default(),
            hook: Mutex::default(),
            clock: Box::new(clock),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let router = api::router(Arc::clone(&shared));
        tasks.spawn(server::serve(
            listener,
            router,
            Arc::clone(&shared),
            tasks.clone(),
            stop.clone(),
        ));
        let living = live(Arc::clone(&shared), life);
        tasks.spawn(stop.clone().run_until_cancelled_owned(living));
        Ok(Self {
            addr,
            shared,
            tasks,
            stop,
        })
    }

    /// Where it listens.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Closes the listener and all connections, and waits until that is done.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Does something with the world, at the present time. Requests wait meanwhile.
    pub fn world<R>(&self, act: impl FnOnce(&mut World, Timestamp) -> R) -> R {
        let now = (self.shared.clock)();
        act(&mut self.shared.world.lock(), now)
    }

    /// Changes options.
    pub fn set_options(&self, change: impl FnOnce(&mut Options)) {
        self.world(|world, now| {
            let mut options = world.options().clone();
            change(&mut options);
            world.set_options(options, now);
        });
    }

    /// Has something done to the world before each request to the API is answered, for instance
    /// between two pages of a search. Replaces the hook that was there.
    pub fn before_request(&self, hook: impl FnMut(&mut World, &RequestInfo) + Send + 'static) {
        *self.shared.hook.lock() = Some(Box::new(hook));
    }

    /// Takes the hook away.
    pub fn clear_hook(&self) {
        *self.shared.hook.lock() = None;
    }

    /// Lets something go wrong; the number is for [`Self::remove_fault`].
    pub fn inject(&self, rule: FaultRule) -> u64 {
        self.shared.faults.lock().add(rule)
    }

    /// Takes one fault away; false if it was gone already.
    pub fn remove_fault(&self, number: u64) -> bool {
        self.shared.faults.lock().remove(number)
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.shared.faults.lock().clear();
    }

    /// How often it was asked until now.
    pub fn requests(&self) -> Requests {
        self.shared.requests.lock().clone()
    }

    /// Starts to count from zero.
    pub fn reset_requests(&self) {
        self.shared.requests.lock().reset();
    }

    /// Opens an alert now.
    pub fn open(&self, tenant: &str, spec: Spec) -> Result<AlertId, Refusal> {
        self.world(|world, now| world.open(tenant, &spec, now))
    }

    /// Opens many alerts now.
    pub fn open_many(&self, tenant: &str, count: usize) -> Result<Vec<AlertId>, Refusal> {
        self.world(|world, now| world.open_many(tenant, count, &Spec::default(), now))
    }

    /// Does something to an alert now.
    pub fn act(&self, id: AlertId, action: Action) -> Result<(), Refusal> {
        self.world(|world, now| world.act(id, action, now))
    }

    /// Gives an alert another state now.
    pub fn set_state(&self, id: AlertId, state: State) -> Result<(), Refusal> {
        self.world(|world, now| world.set_state(id, state, now))
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Goes on for as long as the server runs, at whatever pace the options have at the moment.
async fn live(shared: Arc<Shared>, mut life: Life) {
    let mut last = Instant::now();
    loop {
        let pace = shared.world.lock().options().life;
        let rest = pace.map_or(IDLE, |pace| pace.every.saturating_sub(last.elapsed()));
        tokio::time::sleep(rest.min(IDLE)).await;
        let mut world = shared.world.lock();
        match world.options().life {
            Some(pace) if last.elapsed() < pace.every => {}
            Some(pace) => {
                last = Instant::now();
                life.step_all(&mut world, pace.open_alerts, (shared.clock)());
            }
            None => last = Instant::now(),
        }
    }
}
