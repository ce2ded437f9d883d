mod connections;
mod leases;
#[path = "../../../tests/support/proxy.rs"]
mod proxy;
#[path = "../../../tests/support/postgres.rs"]
mod server;
mod sinks;
mod tables;
mod unwanted;

use std::time::Duration;

use super::{connection::Pool, *};
use crate::{
    error_chain::chain,
    ports,
    secret::Secret,
    store::{
        Options, Store,
        conformance::{self, alert, all_alerts, event, events, key, second},
    },
};

const LEASE: Duration = Duration::from_secs(15);

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn fresh() -> (Options, ()) {
    (options(&server::shared().fresh(), "node", LEASE), ())
}

fn options(url: &str, node: &str, lease: Duration) -> Options {
    Options::Postgres {
        url: SecretSource::Value(Secret::new(url)),
        lease,
        node: node.to_owned(),
        journal_limit: 1000,
    }
}

conformance::suite!(fresh);

async fn open(url: &str, node: &str, lease: Duration) -> Store {
    Store::open(&options(url, node, lease)).await.unwrap()
}

fn shared(store: &Store) -> &Shared {
    match store {
        Store::Postgres(postgres) => &postgres.shared,
        Store::Sqlite(_) => panic!("{store:?}"),
    }
}

fn pool_of(url: &str) -> Pool {
    Pool::new(SecretSource::Value(Secret::new(url)), LEASE)
}

/// Starts a proxy before the server. Returns the proxy, and this URL of the server by way of it.
async fn behind_proxy(url: &str) -> (proxy::Proxy, String) {
    let server = format!("127.0.0.1:{}", server::shared().port());
    let proxy = proxy::Proxy::start(server.parse().unwrap()).await;
    let by_proxy = url.replace(&server, &proxy.address.to_string());
    (proxy, by_proxy)
}

/// A store that behaves like one whose process is stopped: it renews nothing.
async fn stalled(url: &str, lease: Duration) -> Store {
    let store = open(url, "stalled", lease).await;
    for it in shared(&store).loops.lock().iter().flatten() {
        it.abort();
    }
    store
}

/// A new database, and such a store with the sink `s`.
async fn stalled_with_sink() -> (String, Store) {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    (url, store)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn a_search() -> SearchKey {
    key("acme", "client_1", "open")
}

/// Names a store's sinks, and takes up [`a_search`].
async fn hold(store: &Store, sinks: &[&str]) -> Held {
    store.set_sinks(names(sinks)).await.unwrap();
    store.take_up(&a_search(), second(1)).await.unwrap().held
}

/// Locks the row of [`a_search`], as somebody would who works at the tables by hand.
const LOCK: &str = "BEGIN; SELECT FROM search WHERE name = 'open' FOR UPDATE";

/// Returns two searches that a store holds, and a connection on which another transaction has
/// locked the row of the second one.
async fn one_of_two_locked(store: &Store) -> (Held, Held, Session) {
    let other = key("acme", "client_1", "other");
    let other = store.take_up(&other, second(1)).await.unwrap().held;
    let locked = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let mut session = shared(store).pool.session().await.unwrap();
    session.batch(LOCK).await.unwrap();
    (other, locked, session)
}

/// Takes a search up as soon as no other replica has it.
async fn take_over(store: &Store) -> Loaded {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.take_up(&a_search(), second(9)).await {
            Ok(loaded) => return loaded,
            Err(Error::HeldElsewhere) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(Instant::now() < deadline, "it is never free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Acknowledges the first events that wait for a sink.
async fn deliver(store: &Store, sink: &str, count: usize) {
    let batch = store.pending(sink, count, usize::MAX).await.unwrap();
    assert_eq!(batch.events.len(), count);
    let last = batch.events[count - 1].position;
    store.acknowledge(sink, last, None).await.unwrap();
}

/// Returns the events that a sink is given next.
async fn waiting(store: &Store, sink: &str) -> Vec<u128> {
    told(&store.pending(sink, 9, usize::MAX).await.unwrap())
}

fn told(batch: &Batch) -> Vec<u128> {
    let events = batch.events.iter();
    events.map(|it| it.event.event_id.as_u128()).collect()
}

/// Waits until something is so.
async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns what went wrong, with its causes.
fn text(error: &Error) -> String {
    match error {
        Error::Backend(error) => chain(error.downcast_ref::<Failure>().unwrap()),
        error => error.to_string(),
    }
}

/// Opens two replicas that have a sink of the same name each.
async fn two_replicas(url: &str) -> (Store, Store) {
    let first = open(url, "first", LEASE).await;
    let other = open(url, "other", LEASE).await;
    for store in [&first, &other] {
        store.set_sinks(names(&["s"])).await.unwrap();
    }
    (first, other)
}

fn schema_of(url: &str) -> &str {
    url.rsplit_once("%3D").unwrap().1
}

/// Runs statements on the tables behind a URL. Returns what they print.
fn sql(url: &str, statements: &str) -> String {
    let schema = schema_of(url);
    server::shared().sql(&format!("SET search_path = {schema}; {statements}"))
}

/// Makes the next `writes` writes to a table fail, as if another transaction got in the way.
fn get_in_the_way(url: &str, table: &str, writes: u32) {
    let statements = format!(
        "CREATE SEQUENCE IF NOT EXISTS writes_to_{table};
         CREATE OR REPLACE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('writes_to_{table}') <= {writes} THEN
                 RAISE EXCEPTION USING ERRCODE = '40001';
             END IF;
             RETURN NULL;
         END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table}
             FOR EACH STATEMENT EXECUTE FUNCTION refuse_{table}();
         ALTER SEQUENCE writes_to_{table} RESTART"
    );
    sql(url, &statements);
}
