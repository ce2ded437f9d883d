//! Two of the store's loops: one renews leases and keeps the shares even, the other removes what
//! was delivered.
//!
//! They are separate, so that no renewal is late because something else takes long.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    pin::Pin,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{error::Elapsed, timeout},
};
use tokio_postgres::Row;

use super::{
    Shared,
    connection::{ALTOGETHER, Failure, PATIENCE, Pool, Session, Tries},
    delivery::{self, held_by},
    leases::{State, done_and_locked, rows_and_epochs},
    naming,
    schema::{self, Standing},
    shares::{self, Holder, Peer, Survey},
};
use crate::{clock, error_chain::chain, identity::SearchKey, store::Held};

/// Number of renewals within the length of a lease.
pub(super) const RENEWALS: u32 = 4;

/// Divides the time between two renewals into the pause of a keeper that is woken.
const WAKE_PAUSE_DIVISOR: u32 = 8;

/// Minimum time a server is given to answer, even with a very short lease.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(500);

/// How often, in a round, a renewal is tried for a lease whose row is locked. Most locks are held
/// for as long as a commit takes.
const LOCKED_TRIES: u32 = 4;
/// Divides a lease into the pause between two of these tries.
const LOCKED_PAUSE_DIVISOR: u32 = 64;

/// Maximum time the server is given for each of the last answers. The daemon waits for 5 s for all
/// of them.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Number of leases after which tables that are gone are made anew. Until then, somebody may be
/// about to restore them.
const LEASES_UNTIL_REMADE: u32 = 4;

/// The pause after two failed renewals in a row. After the first failure, the renewal is tried
/// again at once, on a new connection, because one that is silent takes up half of a lease. Later
/// pauses double, up to the time between two renewals, so that a server that is down is not asked
/// all the time.
const RETRY: Duration = Duration::from_secs(1);

/// Minimum time between two removals of delivered events.
const PRUNE_INTERVAL: Duration = Duration::from_millis(500);

/// Number of seconds after which a replica that died is forgotten.
const FORGET_REPLICAS_AFTER: f64 = 3600.0;

/// Number of leases after which a loop that keeps failing is reported.
const LEASES_UNTIL_REPORTED: u32 = 4;

/// Reports a loop that fails while leases are kept, which nobody would notice otherwise. A failure
/// for a moment is not reported, because the loop tries again.
#[derive(Debug)]
pub(super) struct Failing {
    what: &'static str,
    since: Option<Duration>,
}

/// For how long all tables have been gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gone {
    /// When the tables were last seen to be gone, since the machine's start.
    seen: Option<Duration>,
    pub(super) time: Duration,
}

// === impl Gone ===

impl Gone {
    /// Takes note that the tables are still gone. Of a time in which nobody looked, for instance
    /// while the process was stopped, no more than a lease counts.
    fn seen_again(self, now: Duration, lease: Duration) -> Self {
        let since = self.seen.map(|seen| now.saturating_sub(seen).min(lease));
        Self {
            seen: Some(now),
            time: self.time + since.unwrap_or_default(),
        }
    }
}

// === impl Failing ===

impl Failing {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, since: None }
    }

    /// Takes note of the outcome of a try. Warns if no try has succeeded for too long.
    pub(super) fn note<E: Error>(&mut self, shared: &Shared, done: Result<(), E>) {
        // The keeper has reported the server's trouble already.
        let error = done.err().filter(|_| shared.trouble.borrow().is_none());
        let Some(error) = error else {
            self.since = None;
            return;
        };
        let now = clock::since_boot();
        let since = *self.since.get_or_insert(now);
        let what = self.what;
        if now.saturating_sub(since) >= shared.lease * LEASES_UNTIL_REPORTED {
            tracing::warn!(error = chain(&error), "{what}");
        }
    }
}

/// Renews the leases and keeps the shares even, until the store is closed.
pub(super) async fn keep(shared: &Shared) {
    let every = shared.lease / RENEWALS;
    // A slow server gets as much time for an answer as there is, because giving up costs the
    // connection, too.
    let patience = (shared.lease / 2).clamp(SHORTEST_PATIENCE, PATIENCE);
    let mut look = None;
    let mut missing = None;
    let mut failed = 0;
    loop {
        // The look at the leases goes on beside pauses and renewals, and delays none of them: it
        // takes long if the server is slow, if commits have all connections, or if somebody has
        // locked a table that only the look reads.
        let pause = wait(shared, pause_after(failed, every));
        let ((), early) = beside(&mut look, Duration::ZERO, pause).await;
        look.get_or_insert_with(|| Box::pin(timeout(ALTOGETHER, share_out(shared, patience))));
        let renewal = timeout(shared.lease.max(patience), renew(shared, patience));
        let (renewed, late) = beside(&mut look, every / WAKE_PAUSE_DIVISOR, renewal).await;
        let mut kept = flat(renewed);
        failed = if kept.is_err() { failed + 1 } else { 0 };
        // A look that has found no free connection says nothing of the database.
        let looked = late
            .or(early)
            .map(flat)
            .filter(|looked| !matches!(looked, Err(Failure::Busy)));
        let is_looked = looked.is_some();
        kept = kept.and(looked.unwrap_or(Ok(())));
        kept = look_after_tables(shared, &mut missing, patience, kept).await;
        tell_lost(shared);
        // While the look at the leases is still under way, its outcome is unknown, so success is
        // not reported yet.
        if is_looked || kept.is_err() {
            shared.tell(kept.err().as_ref());
        }
    }
}

fn flat(done: Result<Result<(), Failure>, Elapsed>) -> Result<(), Failure> {
    done.unwrap_or(Err(Failure::Timeout))
}

/// Forgets the leases whose time is over, and warns of those that were not renewed in time.
fn tell_lost(shared: &Shared) {
    let lost = shared.change_leases(|state| {
        state.expire();
        state.take_late()
    });
    if lost > 0 {
        tracing::warn!(
            searches = lost,
            "leases were not renewed in time; other replicas may poll these searches now"
        );
    }
}

/// Waits until leases are to be renewed: for this pause, or until there is something to look at
/// before.
async fn wait(shared: &Shared, pause: Duration) {
    // The pause varies, so that not all replicas ask at the same moment.
    let pause = pause.mul_f64(0.8 + 0.2 * fastrand::f64());
    let soon = || (shared.lease / RENEWALS / WAKE_PAUSE_DIVISOR).mul_f64(0.5 + fastrand::f64());
    let free = shared.change_journals(|state| state.look_at.take());
    let free = free.map(|at| at.saturating_sub(clock::since_boot()) + soon());
    tokio::select! {
        () = tokio::time::sleep(free.map_or(pause, |free| free.min(pause))) => {}
        () = async {
            shared.wake.notified().await;
            tokio::time::sleep(soon()).await;
        } => {}
    }
}

/// Does some work while the look, if one is under way, goes on, and then gives the look this grace
/// to end. Returns the results of both; a look that has not ended stays under way.
async fn beside<L: Future, T>(
    look: &mut Option<Pin<Box<L>>>,
    grace: Duration,
    work: impl Future<Output = T>,
) -> (T, Option<L::Output>) {
    let Some(under_way) = look else {
        return (work.await, None);
    };
    let is_done = Notify::new();
    let work = async {
        let done = work.await;
        is_done.notify_one();
        done
    };
    let looking = async {
        let over = async {
            is_done.notified().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            looked = under_way => Some(looked),
            () = over => None,
        }
    };
    let (done, looked) = tokio::join!(work, looking);
    if looked.is_some() {
        *look = None;
    }
    (done, looked)
}

/// Returns the pause before the next renewal after so many renewals in a row have failed.
fn pause_after(failed: u32, every: Duration) -> Duration {
    match failed {
        0 => every,
        1 => every / (2 * WAKE_PAUSE_DIVISOR),
        more => every.min(RETRY * (1 << (more - 2).min(16))),
    }
}

/// [Makes](make_tables) the tables if the keeper, whose round had the outcome `kept`, or somebody
/// else has found one missing; again in each round until that succeeds. Returns the outcome of
/// both, of which a failure here comes first.
async fn look_after_tables(
    shared: &Shared,
    missing: &mut Option<Gone>,
    patience: Duration,
    kept: Result<(), Failure>,
) -> Result<(), Failure> {
    let is_table_missing = kept.as_ref().is_err_and(Failure::is_missing_table);
    if !shared.take_table_missing() && !is_table_missing && missing.is_none() {
        return kept;
    }
    // Leases that can be renewed must not wait long for this.
    let time = if is_table_missing {
        ALTOGETHER
    } else {
        patience
    };
    let made = make_tables(shared, missing.get_or_insert_default());
    let made = flat(timeout(time, made).await);
    if made.is_ok() && !is_table_missing {
        *missing = None;
    }
    made.and(kept)
}

/// Migrates the tables if they are an earlier version's. If somebody has removed all tables, for
/// instance together with the database, they are made anew once they have been `gone` for long
/// enough. If only some are gone, the error names them.
async fn make_tables(shared: &Shared, gone: &mut Gone) -> Result<(), Failure> {
    let standing = look_at_tables(&shared.pool, gone, shared.lease).await?;
    let is_due = match standing {
        Standing::There => false,
        Standing::Earlier => true,
        Standing::Gone => gone.time >= shared.lease * LEASES_UNTIL_REMADE,
    };
    if is_due && schema::migrate(&shared.pool).await? {
        if standing == Standing::Earlier {
            tracing::warn!(
                "the tables of the state database were an earlier version's, as those of a backup from \
                 before an upgrade are; they are brought to this one's"
            );
        } else {
            tracing::warn!(
                "the tables of the state database were gone and nobody has restored them; they are \
                 made anew, and every search begins as at its first start"
            );
        }
        shared.wake.notify_one();
    }
    Ok(())
}

/// Looks which tables there are. If that fails, or not all tables are gone, the time for which
/// they have been `gone` begins anew.
pub(super) async fn look_at_tables(
    pool: &Pool,
    gone: &mut Gone,
    lease: Duration,
) -> Result<Standing, Failure> {
    let before = std::mem::take(gone);
    let standing = schema::look(pool).await?;
    if standing == Standing::Gone {
        *gone = before.seen_again(clock::since_boot(), lease);
    }
    Ok(standing)
}

/// Registers the replica under a number of its own. The number is drawn. A database that was
/// restored would give a counted number again, and two replicas that take each other's leases for
/// their own would both poll and deliver.
pub(super) async fn join(shared: &Shared) -> Result<(), Failure> {
    // The holder of the turn needs a connection, so nobody keeps one while waiting for the turn.
    let _turn = shared.naming.lock().await;
    let mut session = shared.pool.session().await?;
    let sinks = shared.look(|state| state.sinks.clone());
    let number = announce(shared, &mut session, sinks.as_deref()).await?;
    let mut tries = Tries::default();
    loop {
        match try_join(shared, &mut session, number, sinks.as_deref()).await {
            Err(failure) if tries.again(&failure).await => session.roll_back().await?,
            Err(failure) if failure.is_lock_timeout() => {
                session.roll_back().await?;
                return Err(naming::why_locked(&mut session, failure).await?);
            }
            done => break done?,
        }
    }
    shared.change_leases(|state| {
        // The leases belonged to the number before.
        state.lose_all();
        state.replica = Some(number);
        // A server that has forgotten the replica may have forgotten its searches.
        state.want_again();
    });
    Ok(())
}

/// Draws the number and says which sinks the replica has, which is necessary before they are
/// [entered](naming::enter_sinks). If the replica then fails to join, others take this number
/// for a replica that died.
async fn announce(
    shared: &Shared,
    session: &mut Session,
    sinks: Option<&[String]>,
) -> Result<i64, Failure> {
    let rows = session
        .query_again(
            "INSERT INTO replica (id, node, alive_until, sinks)
             VALUES (trunc(random() * 9007199254740992)::bigint, $1, clock_timestamp(), $2)
             RETURNING id",
            &[&shared.node, &sinks.unwrap_or_default()],
        )
        .await?;
    match rows.first() {
        Some(row) => Ok(row.try_get(0)?),
        None => Err(Failure::NotJoined),
    }
}

async fn try_join(
    shared: &Shared,
    session: &mut Session,
    number: i64,
    sinks: Option<&[String]>,
) -> Result<(), Failure> {
    session.begin_waiting(shared.lock_wait()).await?;
    let alive = session
        .execute(
            "UPDATE replica SET alive_until = clock_timestamp() + $2 * interval '1 second'
             WHERE id = $1",
            &[&number, &shared.lease_seconds()],
        )
        .await?;
    // Without this check, the next renewal would take the replica for forgotten, and it would join
    // again for ever.
    if alive == 0 {
        return Err(Failure::Hidden("replica"));
    }
    // The sinks may have been forgotten together with the replica. They must be there before
    // anything is journalled for them.
    if let Some(sinks) = sinks {
        naming::enter_sinks(session, number, sinks).await?;
    }
    session.commit().await
}

/// Tells the server that the replica is alive, and renews its leases.
pub(super) async fn renew(shared: &Shared, patience: Duration) -> Result<(), Failure> {
    let (me, share, leases, sinks) = shared.look(|state| {
        let sinks = state.sinks.clone().unwrap_or_default();
        (state.replica, state.share, state.leases(), sinks)
    });
    let Some(me) = me else {
        return join(shared).await;
    };
    let mut session = shared.keeper_pool.session_within(patience).await?;
    let share = i64::try_from(share).unwrap_or(i64::MAX);
    let alive = session
        .query_again(
            "UPDATE replica SET alive_until = clock_timestamp() + $2 * interval '1 second',
                share = $3
             WHERE id = $1
             RETURNING sinks = $4 AND sinks <@ ARRAY(SELECT name FROM sink)",
            &[&me, &shared.lease_seconds(), &share, &sinks],
        )
        .await?;
    let Some(alive) = alive.first() else {
        return join(shared).await;
    };
    let is_named: bool = alive.try_get(0)?;
    let mut remaining = leases;
    for tries in 0..LOCKED_TRIES {
        if remaining.is_empty() {
            break;
        }
        if tries > 0 {
            tokio::time::sleep(shared.lease / LOCKED_PAUSE_DIVISOR).await;
        }
        remaining = renew_leases(shared, &mut session, me, &remaining).await?;
    }
    if !is_named {
        // The answer to a reload was lost, or others have removed a sink that only this replica
        // names, while they did not hear from it.
        naming::set_sinks_again(shared, &mut session).await?;
    }
    Ok(())
}

/// Renews leases, except those whose rows are locked, be it by a commit of our own: waiting for
/// one row would cost all leases. Returns the leases with locked rows. These end when their time
/// is over, unless a later try renews them.
pub(super) async fn renew_leases(
    shared: &Shared,
    session: &mut Session,
    me: i64,
    leases: &[Held],
) -> Result<Vec<Held>, Failure> {
    let (rows, epochs) = rows_and_epochs(leases);
    let mut tries = Tries::default();
    let (asked, told) = loop {
        let asked = clock::since_boot();
        let told = session
            .query_alone(
                &tries,
                concat!(
                    "WITH ours AS (
                        SELECT search.id FROM ",
                    held_by!(),
                    "   WHERE search.owner = $3 AND search.lease_until > clock_timestamp()),
                     unlocked AS (
                        SELECT search.id FROM ",
                    held_by!(),
                    "   WHERE search.owner = $3 AND search.lease_until > clock_timestamp()
                        FOR NO KEY UPDATE OF search SKIP LOCKED),
                     renewed AS (
                        UPDATE search SET lease_until = clock_timestamp() + $4 * interval '1 second'
                        FROM unlocked WHERE search.id = unlocked.id RETURNING search.id)
                     SELECT id, TRUE FROM renewed
                     UNION ALL
                     SELECT id, FALSE FROM ours WHERE id NOT IN (SELECT id FROM renewed)"
                ),
                &[&rows, &epochs, &me, &shared.lease_seconds()],
            )
            .await;
        match told {
            Err(failure) if tries.again(&failure).await => {}
            told => break (asked, told?),
        }
    };
    let (renewed, locked) = done_and_locked(&told)?;
    let until = shared.relied_on_until(asked);
    shared.change_leases(|state| state.renewed(leases, &renewed, &locked, until));
    let mut remaining = leases.to_vec();
    remaining.retain(|held| locked.contains(&held.row));
    Ok(remaining)
}

/// Looks which replica holds which search, and decides which searches to take up and to give back.
pub(super) async fn share_out(shared: &Shared, patience: Duration) -> Result<(), Failure> {
    let mut session = shared.pool.session_within(patience).await?;
    let mut tries = Tries::default();
    loop {
        match try_share_out(shared, &mut session).await {
            Err(failure) if tries.again(&failure).await => {}
            done => return done,
        }
    }
}

async fn try_share_out(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    look_up_wanted(shared, session).await?;
    let (me, mut rows, unclear) = shared.look(|state| {
        let rows: Vec<i64> = state.wanted.values().copied().collect();
        (state.replica, rows, state.journal.unclear())
    });
    let me = me.ok_or(Failure::NotJoined)?;
    let searches = rows.len();
    rows.extend(&unclear);
    if rows.is_empty() {
        // If this replica still told a share, others would wait for it to take that share.
        shared.change_leases(State::want_none);
        return Ok(());
    }
    let replicas = peers(session).await?;
    let told = session
        .query(
            "SELECT id, owner, lease_until > clock_timestamp(),
                extract(epoch FROM clock_timestamp() - lease_until)::float8,
                account, tenant_id, name
             FROM search WHERE id = ANY($1)",
            &[&rows],
        )
        .await?;
    let holdings = Holdings::read(&told, me)?;
    let free = shared.change_leases(|state| {
        // A database that was restored has fewer rows, and gives their numbers to other searches.
        let wanted = state.wanted.iter();
        let others = wanted.filter(|(key, row)| holdings.names.get(row) != Some(&key.stored_as()));
        let others: Vec<i64> = others.map(|(_, row)| *row).collect();
        if !others.is_empty() {
            state.forget_rows(&others);
            shared.wake.notify_one();
        }
        state.look_at = holdings.look_at;
        let owners = &holdings.owners;
        let free = state.resolve_unclear(&unclear, owners);
        let elsewhere = state.keys_of(|row| owners.get(&row) == Some(&Holder::Another));
        state.see_elsewhere(elsewhere);
        let survey = Survey {
            replicas,
            searches: state.survey(owners),
        };
        let decision = shares::decide(&survey, me, shared.lease * 2);
        state.granted = state.keys_of(|row| decision.take.contains(&row));
        let others = survey.replicas.iter().filter(|peer| peer.number != me);
        let others = others.map(|peer| (peer.number, peer.share)).collect();
        state.mark_to_give_back(decision.give_back, others, owners);
        // The first look may come before the server shows this replica as alive.
        let replicas = survey.replicas.len();
        let is_seen = survey.replicas.iter().any(|peer| peer.number == me);
        if is_seen && (state.replicas, state.share) != (replicas, decision.share) {
            state.replicas = replicas;
            tracing::info!(
                replicas,
                share = decision.share,
                searches,
                "this replica's share of the searches has changed"
            );
        }
        state.share = decision.share;
        free
    });
    if !free.is_empty() {
        // This comes last, because it has to wait if somebody has locked the journal.
        let lacking = lacking(session, &free).await?;
        shared.change_leases(|state| state.resolve_free(&free, &lacking));
    }
    Ok(())
}

/// Returns the replicas that are alive and want any search, in the order of their numbers.
async fn peers(session: &mut Session) -> Result<Vec<Peer>, Failure> {
    let rows = session
        .query(
            "SELECT replica.id, replica.share,
                (SELECT count(*) FROM search
                 WHERE owner = replica.id AND lease_until > clock_timestamp())
             FROM replica
             WHERE alive_until > clock_timestamp() AND wants IS DISTINCT FROM '{}'
             ORDER BY replica.id",
            &[],
        )
        .await?;
    let mut peers = Vec::with_capacity(rows.len());
    for row in &rows {
        peers.push(Peer {
            number: row.try_get(0)?,
            share: usize::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0),
            held: usize::try_from(row.try_get::<_, i64>(2)?).unwrap_or(0),
        });
    }
    Ok(peers)
}

/// Returns the sinks that lack events, for each of these searches. A journal that holds events is
/// no sign of that: they may wait for other sinks.
async fn lacking(
    session: &mut Session,
    searches: &HashSet<i64>,
) -> Result<HashMap<i64, Vec<String>>, Failure> {
    let searches: Vec<i64> = searches.iter().copied().collect();
    let rows = session
        .query(
            "SELECT search.id, sink.name
             FROM search CROSS JOIN sink LEFT JOIN progress
                ON progress.sink = sink.name AND progress.search_id = search.id
             WHERE search.id = ANY($1) AND EXISTS (
                SELECT FROM journal WHERE journal.search_id = search.id
                    AND journal.position > coalesce(progress.position, 0))",
            &[&searches],
        )
        .await?;
    let mut lacking: HashMap<i64, Vec<String>> = HashMap::new();
    for row in &rows {
        let sinks = lacking.entry(row.try_get(0)?).or_default();
        sinks.push(row.try_get(1)?);
    }
    Ok(lacking)
}

/// Who holds the searches that were asked about, by their rows.
struct Holdings<'a> {
    owners: HashMap<i64, Holder>,
    /// The names by which the server knows the searches.
    names: HashMap<i64, Name<'a>>,
    /// When the first lease of another replica ends, on the clock since boot.
    look_at: Option<Duration>,
}

// === impl Holdings ===

impl<'a> Holdings<'a> {
    fn read(told: &'a [Row], me: i64) -> Result<Self, Failure> {
        let now = clock::since_boot();
        let mut holdings = Self {
            owners: HashMap::with_capacity(told.len()),
            names: HashMap::with_capacity(told.len()),
            look_at: None,
        };
        for row in told {
            let id = row.try_get(0)?;
            let name = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
            holdings.names.insert(id, name);
            let (owner, leased): (Option<i64>, bool) = (row.try_get(1)?, row.try_get(2)?);
            let free_for: f64 = row.try_get(3)?;
            let holder = match owner {
                Some(owner) if owner == me && leased => Holder::Me,
                Some(_) if leased => {
                    let end = now + Duration::try_from_secs_f64(-free_for).unwrap_or_default();
                    holdings.look_at = Some(holdings.look_at.map_or(end, |it| it.min(end)));
                    Holder::Another
                }
                _ => Holder::Nobody(Duration::try_from_secs_f64(free_for).unwrap_or_default()),
            };
            holdings.owners.insert(id, holder);
        }
        Ok(holdings)
    }
}

/// Looks up the rows of the searches that this replica would poll, if there is a wish for that.
async fn look_up_wanted(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    let Some((wish, keys)) = shared.look(State::wish) else {
        return Ok(());
    };
    let me = shared.number()?;
    super::alerts::create(session, &keys, clock::now()).await?;
    let rows = session
        .query("SELECT id, account, tenant_id, name FROM search", &[])
        .await?;
    let mut known = HashMap::with_capacity(rows.len());
    for row in &rows {
        let id: i64 = row.try_get(0)?;
        let name: Name<'_> = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        known.insert(name, id);
    }
    let row = |key: &SearchKey| Some((key.clone(), *known.get(&key.stored_as())?));
    let wanted: HashMap<SearchKey, i64> = keys.iter().filter_map(row).collect();
    // Other replicas leave these searches alone, whatever is left to deliver of them.
    let mut wants: Vec<i64> = wanted.values().copied().collect();
    wants.sort_unstable();
    session
        .execute(
            "UPDATE replica SET wants = $2 WHERE id = $1",
            &[&me, &wants],
        )
        .await?;
    // A server that lags behind the one that wrote the rows knows fewer of them.
    let is_complete = keys.iter().all(|key| wanted.contains_key(key));
    shared.change_leases(|state| {
        state.fulfil(wish, wanted);
        if !is_complete {
            state.want_again();
        }
    });
    Ok(())
}

/// The name by which the server knows a search, in the form of [`SearchKey::stored_as`].
type Name<'a> = (&'a str, &'a str, &'a str);

/// Tells the server of deliveries that it has not heard of, removes what is delivered, and forgets
/// sinks and replicas that are gone, until the store is closed.
pub(super) async fn tidy(shared: &Shared) {
    let mut forgotten = clock::since_boot();
    let mut failing = Failing::new(
        "cannot tidy up in the state database; what is delivered stays there until that works",
    );
    loop {
        tokio::select! {
            () = shared.delivered.notified() => {}
            () = tokio::time::sleep(shared.lease) => {}
        }
        tokio::time::sleep(PRUNE_INTERVAL).await;
        let work = async {
            save(shared).await?;
            if clock::since_boot().saturating_sub(forgotten) >= shared.lease {
                forget(shared).await?;
                forgotten = clock::since_boot();
            }
            delivery::prune(shared).await
        };
        let done = shared.bounded(work).await;
        failing.note(shared, done);
    }
}

/// Forgets sinks that nobody names and replicas that are gone, as long as the server takes this
/// replica for alive. A replica that has slept would take its own sinks, and those of others, for
/// gone.
pub(super) async fn forget(shared: &Shared) -> Result<(), Failure> {
    let me = shared.number()?;
    let mut session = shared.pool.session().await?;
    // The next start needs the schema's number, and no other question touches its table. If the
    // table is missing, the keeper reports it before that start.
    if schema::number(&mut session).await? <= 0 {
        shared.note_missing_table();
    }
    naming::note_unnamed(&mut session, me).await?;
    naming::give_up_over(shared, &mut session).await?;
    // A replica that died has not said so, and its sinks may be in the way.
    naming::tell_unnamed(shared, &mut session).await?;
    session
        .execute(
            "DELETE FROM replica WHERE alive_until < clock_timestamp() - $1 * interval '1 second'
                AND id <> $2",
            &[&FORGET_REPLICAS_AFTER, &me],
        )
        .await?;
    naming::hear_of_sinks(shared, &mut session).await?;
    naming::tell_of_others(shared);
    Ok(())
}

/// Takes leave, and gives all leases back, including those that the replica was about to take and
/// had no answer about yet: no other replica has its number. A lease whose row is locked ends by
/// itself. Waiting for one row would cost all: the process may be gone while the server waits on,
/// with the rows of the others locked.
pub(super) async fn leave(shared: &Shared) -> Result<(), Failure> {
    let Some(me) = shared.look(|state| state.replica) else {
        return Ok(());
    };
    let limit = (shared.lease / 2).min(LAST_ANSWER);
    let mut tries = Tries::default();
    let mut locked = 0;
    for _ in 0..LOCKED_TRIES {
        let untold = save(shared).await?;
        let mut session = shared.pool.session().await?;
        locked = loop {
            match try_leave(&mut session, me, &untold, limit).await {
                Err(failure) if tries.again(&failure).await => session.roll_back().await?,
                done => break done?,
            }
        };
        drop(session);
        if locked == 0 {
            return Ok(());
        }
        tokio::time::sleep(shared.lease / LOCKED_PAUSE_DIVISOR).await;
    }
    tracing::warn!(
        searches = locked,
        "searches whose rows another transaction has locked cannot be given back; others take them up when \
         the leases have ended"
    );
    Ok(())
}

/// Tells the server how far each sink has come. If a search is given back before the server knows
/// that, the next holder delivers the events again. Returns the searches that could not be told
/// of, because their rows are locked: they must not be given back before the next try, even if
/// their rows are free by then.
pub(super) async fn save(shared: &Shared) -> Result<Vec<i64>, Failure> {
    let mut untold = HashSet::new();
    for sink in shared.look(|state| state.journal.own_sinks()) {
        untold.extend(delivery::save(shared, &sink).await?);
    }
    Ok(untold.into_iter().collect())
}

/// Returns the number of leases that could not be given back, because their rows are locked or
/// `untold`.
async fn try_leave(
    session: &mut Session,
    me: i64,
    untold: &[i64],
    limit: Duration,
) -> Result<usize, Failure> {
    session.begin_last(limit).await?;
    // After this, the replica can take no search. If it has announced a sink that is not entered
    // yet, it looks like a replica that died, so events that the sink may lack are kept.
    session
        .execute(
            "WITH gone AS (
                DELETE FROM replica WHERE id = $1 AND sinks <@ ARRAY(SELECT name FROM sink))
             UPDATE replica SET alive_until = clock_timestamp(), wants = '{}'
             WHERE id = $1 AND NOT sinks <@ ARRAY(SELECT name FROM sink)",
            &[&me],
        )
        .await?;
    let locked = session
        .query(
            "WITH mine AS (
                SELECT id FROM search WHERE owner = $1 AND id <> ALL($2) FOR UPDATE SKIP LOCKED),
             given AS (
                UPDATE search SET owner = NULL, lease_until = clock_timestamp()
                FROM mine WHERE search.id = mine.id)
             SELECT id FROM search WHERE owner = $1 AND id NOT IN (SELECT id FROM mine)",
            &[&me, &untold],
        )
        .await?;
    session.commit().await?;
    Ok(locked.len())
}

/// Gives leases back, except those whose rows are locked for longer than a renewal takes: these
/// end by themselves.
pub(super) async fn give_back(shared: &Shared, leases: &[Held]) -> Result<(), Failure> {
    let me = shared.number()?;
    let (rows, epochs) = rows_and_epochs(leases);
    for tries in 0..LOCKED_TRIES {
        if tries > 0 {
            tokio::time::sleep(shared.lease / LOCKED_PAUSE_DIVISOR).await;
        }
        let untold = save(shared).await?;
        let mut session = shared.pool.session().await?;
        let locked = session
            .query_again(
                concat!(
                    "WITH ours AS (
                        SELECT search.id FROM ",
                    held_by!(),
                    "   WHERE search.owner = $3),
                     mine AS (
                        SELECT search.id FROM ",
                    held_by!(),
                    "   WHERE search.owner = $3 AND search.id <> ALL($4)
                        FOR UPDATE OF search SKIP LOCKED),
                     given AS (
                        UPDATE search SET owner = NULL, lease_until = clock_timestamp()
                        FROM mine WHERE search.id = mine.id)
                     SELECT id FROM ours WHERE id NOT IN (SELECT id FROM mine)"
                ),
                &[&rows, &epochs, &me, &untold],
            )
            .await?;
        if locked.is_empty() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_that_failed_is_tried_again_at_once_and_then_ever_more_seldom() {
        let every = Duration::from_secs(4);
        let pauses = (0..6).map(|failed| pause_after(failed, every).as_secs_f64());
        assert_eq!(pauses.collect::<Vec<_>>(), [4.0, 0.25, 1.0, 2.0, 4.0, 4.0]);
        let short = Duration::from_millis(250);
        assert_eq!(pause_after(2, short), short);
        assert_eq!(pause_after(u32::MAX, every), every);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_goes_on_beside_what_follows_and_delays_it_by_no_more_than_the_grace() {
        let second = Duration::from_secs(1);
        let began = tokio::time::Instant::now();
        let work = || tokio::time::sleep(second * 3);
        let mut look = None;
        assert_eq!(beside(&mut look, second, work()).await.1, None);
        assert_eq!(began.elapsed(), second * 3);
        look = Some(Box::pin(async {
            tokio::time::sleep(second * 6).await;
            "looked"
        }));
        // The look ends after the grace, and then beside other work.
        assert_eq!(beside(&mut look, second, work()).await.1, None);
        assert_eq!(began.elapsed(), second * 7);
        assert_eq!(beside(&mut look, second, work()).await.1, Some("looked"));
        assert_eq!(began.elapsed(), second * 10);
        assert!(look.is_none());
    }

    #[test]
    fn only_time_in_which_all_tables_were_seen_to_be_gone_counts() {
        let lease = Duration::from_secs(4);
        let at = Duration::from_secs;
        let gone = Gone::default().seen_again(at(10), lease);
        assert_eq!(gone.time, Duration::ZERO);
        let gone = gone.seen_again(at(11), lease).seen_again(at(13), lease);
        assert_eq!(gone.time, at(3));
        // The process was stopped in between.
        assert_eq!(gone.seen_again(at(999), lease).time, at(7));
    }
}
