//! A simulated OpsRamp server: tokens, allowance, paging, a life of alerts, faults on demand.
//!
//! For `demo`, tests and benchmarks. It simulates the *API*, from its documentation, and shares no
//! type with the client in `opsramp`, so that neither can hide the other's mistake.
//!
//! [`World`] is the pure state: the time is an argument, and there is no I/O. [`Simulator`] puts
//! HTTP around it, with the API where OpsRamp has it and a control API under `/simulator`.

mod alert;
mod allowance;
mod api;
mod control;
mod fault;
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
pub use allowance::{Meter, RateLimit};
pub use api::{Hook, RequestInfo};
pub use fault::{Fault, FaultRule};
pub use life::Life;
pub use options::{
    Allowance, Credential, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Options, Oversized, Pace,
    RetryAfter, TenantOptions, Ts, UnknownKey,
};
pub use query::{Query, SearchParams, Sort};
pub use record::{AlertChange, ChangeKind};
pub use refusal::Refusal;
pub use render::{ClientPage, Detail, Page};
pub use requests::{Endpoint, Request, Requests};
pub use token::{Grant, TokenRequest};
pub use world::{Snapshot, World};

use api::Shared;

/// The longest time between two looks at the options, because a life that is slow or stands still
/// may have been given another pace.
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
    /// Starts a server that uses the real time. Port 0 takes any free port.
    pub async fn start(options: Options, address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Self::start_on(options, listener, crate::clock::now)
    }

    /// Starts a server on a listener, with the given clock.
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
        let living = run_life(Arc::clone(&shared), life);
        tasks.spawn(stop.clone().run_until_cancelled_owned(living));
        Ok(Self {
            addr,
            shared,
            tasks,
            stop,
        })
    }

    /// Returns the address on which the server listens.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Closes the listener and all connections, and waits until they are closed.
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

    /// Sets a hook that changes the world before each request to the API is answered, for instance
    /// between two pages of a search. Replaces the previous hook.
    pub fn before_request(&self, hook: impl FnMut(&mut World, &RequestInfo) + Send + 'static) {
        *self.shared.hook.lock() = Some(Box::new(hook));
    }

    /// Removes the hook.
    pub fn clear_hook(&self) {
        *self.shared.hook.lock() = None;
    }

    /// Adds a fault. Returns its number, for [`Self::remove_fault`].
    pub fn inject(&self, rule: FaultRule) -> u64 {
        self.shared.faults.lock().add(rule)
    }

    /// Removes one fault. Returns false if it was gone already.
    pub fn remove_fault(&self, number: u64) -> bool {
        self.shared.faults.lock().remove(number)
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.faults.lock().clear();
    }

    /// Returns how many requests there were until now.
    pub fn requests(&self) -> Requests {
        self.shared.requests.lock().clone()
    }

    /// Starts to count requests from zero again.
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

/// Lets alerts live for as long as the server runs, at the pace that the options have at the
/// moment.
async fn run_life(shared: Arc<Shared>, mut life: Life) {
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
