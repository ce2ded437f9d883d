//! Searches that no replica polls any more, although some of their events still wait: a search
//! that left the configuration while a sink was down, for instance. A replica that has such a sink
//! holds these searches, without polling them, until the events are delivered. It leaves them to a
//! replica that wants to poll them.

use std::{collections::HashSet, time::Duration};

use super::{
    Failure, Shared, adopt, alerts,
    connection::Session,
    delivery,
    keeper::{self, Failing},
    leases::State,
    release,
};
use crate::{
    clock,
    identity::{SearchKey, Tenant},
    store::{Error, Held},
};

/// Maximum number of searches that are taken at once, so that other replicas get some as well.
const AT_ONCE: i64 = 64;

/// Delivers what is left over, until the store is closed.
pub(super) async fn deliver(shared: &Shared) {
    // By then, a replica that is started again, or that reads its configuration again, has said
    // which searches it wants.
    let patience = shared.lease * 2;
    let mut failing = Failing::new(
        "cannot look for events of searches that nobody polls; they wait until that works",
    );
    loop {
        // Other replicas may be waiting for searches that are held here.
        let holds_any = shared.look(|state| !state.left_over().is_empty());
        let pause = shared.lease / if holds_any { 4 } else { 1 };
        tokio::time::sleep(pause.mul_f64(0.8 + 0.2 * fastrand::f64())).await;
        let since = shared.look(|state| state.wanted_since);
        let known_for = since.map(|since| clock::since_boot().saturating_sub(since));
        let round = async {
            give_back(shared).await?;
            if known_for > Some(patience) {
                shared.bounded(take(shared, patience)).await?;
            }
            Ok::<(), Error>(())
        };
        let done = round.await;
        failing.note(shared, done);
    }
}

/// Takes searches that nobody has held for `patience`, and that are [left over](find).
pub(super) async fn take(shared: &Shared, patience: Duration) -> Result<(), Failure> {
    let me = shared.number()?;
    let mut session = shared.pool.session().await?;
    let mut taken_now = 0_usize;
    for (row, search) in find(shared, &mut session, patience).await? {
        let is_wanted = |state: &State| state.wanted.values().any(|wanted| *wanted == row);
        if shared.look(|state| is_wanted(state) || state.epoch(row).is_some()) {
            continue;
        }
        let asked = clock::since_boot();
        let lease = shared.lease_seconds();
        session.begin_waiting(shared.lock_wait_of_one()).await?;
        let taken = match alerts::take(&mut session, &search, me, lease).await {
            // The next round tries this search again.
            Err(failure) if failure.is_lock_timeout() => None,
            taken => taken?,
        };
        let Some(taken) = taken else {
            session.roll_back().await?;
            continue;
        };
        let progress = delivery::progress(&mut session, row).await?;
        session.commit().await?;
        let until = shared.relied_on_until(asked);
        let hold = |state: &mut State| state.hold_left_over(taken.held, until);
        adopt(shared, me, &search, &taken, &progress, hold);
        taken_now += 1;
    }
    if taken_now > 0 {
        tracing::info!(
            searches = taken_now,
            "delivering what is left of searches that no replica polls any more"
        );
    }
    Ok(())
}

/// Returns searches that no replica wants and that nobody has held for `patience`. Either one of
/// this replica's sinks lacks some of their events, or no sink lacks any and all can be removed.
async fn find(
    shared: &Shared,
    session: &mut Session,
    patience: Duration,
) -> Result<Vec<(i64, SearchKey)>, Failure> {
    let rows = waiting(session, patience).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let own = shared.look(|state| state.journal.own_sinks());
    let own: Vec<&str> = own.iter().map(|name| &**name).collect();
    let found = session
        .query(
            "SELECT id, account, tenant_id, name FROM search
             WHERE id = ANY($1)
                AND NOT EXISTS (
                    SELECT 1 FROM replica WHERE alive_until > clock_timestamp() AND wants IS NULL)
                AND id NOT IN (
                    SELECT unnest(wants) FROM replica WHERE alive_until > clock_timestamp())
                AND (SELECT bool_or(own AND behind) OR NOT bool_or(behind) FROM (
                    SELECT sink.name = ANY($2) AS own,
                        coalesce(progress.position, 0) < search.journal_end AS behind
                    FROM sink LEFT JOIN progress
                        ON progress.sink = sink.name AND progress.search_id = search.id) AS sinks)
             ORDER BY random() LIMIT $3",
            &[&rows, &own, &AT_ONCE],
        )
        .await?;
    let search = |row: &tokio_postgres::Row| {
        let id: &str = row.try_get(2)?;
        let key = SearchKey {
            account: row.try_get::<_, &str>(1)?.into(),
            tenant: Tenant {
                id: id.into(),
                name: id.into(),
            },
            search: row.try_get::<_, &str>(3)?.into(),
        };
        Ok((row.try_get(0)?, key))
    };
    found.iter().map(search).collect()
}

/// Returns the searches that nobody has held for `patience` and that have something in their
/// journals: mostly none. The journal is looked into once for each free search, and not read as a
/// whole.
async fn waiting(session: &mut Session, patience: Duration) -> Result<Vec<i64>, Failure> {
    session
        .column(
            "SELECT id FROM search
             WHERE lease_until < clock_timestamp() - $1 * interval '1 second'
                AND (SELECT TRUE FROM journal WHERE search_id = search.id LIMIT 1)",
            &[&patience.as_secs_f64()],
        )
        .await
}

/// Gives back searches whose events this replica's sinks have, and searches that others want to
/// poll.
pub(super) async fn give_back(shared: &Shared) -> Result<(), Error> {
    let held = shared.look(State::left_over);
    if held.is_empty() {
        return Ok(());
    }
    let wanted = shared.bounded(wanted_elsewhere(shared, &held)).await?;
    let over = shared.look(|state| {
        let is_over = |held: &&Held| wanted.contains(&held.row) || !state.journal.waits(held.row);
        held.iter().filter(is_over).copied().collect::<Vec<_>>()
    });
    if over.is_empty() {
        return Ok(());
    }
    // No other replica comes to remove the events that every sink has.
    let tidy = async {
        keeper::save(shared).await?;
        delivery::prune(shared).await
    };
    shared.bounded(tidy).await?;
    release(shared, &over).await
}

/// Returns which of the searches that are held here another replica would poll.
async fn wanted_elsewhere(shared: &Shared, held: &[Held]) -> Result<HashSet<i64>, Failure> {
    let me = shared.number()?;
    let rows: Vec<i64> = held.iter().map(|held| held.row).collect();
    let mut session = shared.pool.session().await?;
    session
        .column(
            "SELECT wanted FROM replica CROSS JOIN unnest(wants) AS wanted
             WHERE id <> $1 AND alive_until > clock_timestamp() AND wanted = ANY($2)",
            &[&me, &rows],
        )
        .await
}
