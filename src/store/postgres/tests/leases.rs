//! Leases: taken, renewed, lost, given back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn whoever_slept_past_its_lease_commits_and_delivers_nothing() {
    let url = server::shared().fresh();
    // What comes before the sleep must be done within this time.
    let lease = Duration::from_secs(4);
    let first = stalled(&url, lease).await;
    let slept = hold(&first, &["s"]).await;
    first.commit(slept, events(1..3), second(2)).await.unwrap();
    let batch = first.pending("s", 9, usize::MAX).await.unwrap();
    assert!(batch.claim.holds());

    let other = open(&url, "other", LEASE).await;
    other.set_sinks(names(&["s"])).await.unwrap();
    let loaded = take_over(&other).await;
    assert!(loaded.held.epoch > slept.epoch);
    other
        .commit(loaded.held, events(3..4), second(3))
        .await
        .unwrap();

    assert!(!batch.claim.holds());
    let refused = first.commit(slept, events(4..5), second(3)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    let changed = shared(&first).changed.subscribe();
    let nothing = first.pending("s", 9, usize::MAX).await;
    assert!(matches!(nothing, Err(Error::Unclear)), "{nothing:?}");
    assert!(changed.has_changed().unwrap(), "all hear of a lease's end");
    // An acknowledgement of this delivery comes too late now.
    let last = batch.events.last().unwrap().position;
    first.acknowledge("s", last, None).await.unwrap();
    assert_eq!(waiting(&other, "s").await, [1, 2, 3]);
    first.release(slept).await.unwrap();
    other
        .commit(loaded.held, events(5..6), second(3))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_under_an_earlier_epoch_changes_nothing_of_the_same_replicas_lease() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let earlier = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let held = store.take_up(&a_search(), second(2)).await.unwrap().held;
    assert!(held.epoch > earlier.epoch);
    let before = sql(&url, "SELECT * FROM search");
    let shared = shared(&store);
    let me = shared.number().unwrap();
    let mut session = shared.pool.session().await.unwrap();
    let advanced = alerts::advance(&mut session, earlier, me, 1, true).await;
    assert_eq!(advanced.unwrap(), None);
    keeper::renew_leases(shared, &mut session, me, &[earlier])
        .await
        .unwrap();
    drop(session);
    keeper::give_back(shared, &[earlier]).await.unwrap();
    assert_eq!(sql(&url, "SELECT * FROM search"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_holder_goes_on_where_the_last_one_was() {
    let url = server::shared().fresh();
    let first = open(&url, "first", LEASE).await;
    let second_replica = open(&url, "second", LEASE).await;
    for store in [&first, &second_replica] {
        store.set_sinks(names(&["s"])).await.unwrap();
    }
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    let elsewhere = second_replica.take_up(&a_search(), second(1)).await;
    assert!(
        matches!(elsewhere, Err(Error::HeldElsewhere)),
        "{elsewhere:?}"
    );
    let mut commit = events(1..4);
    commit.upserts.push(alert("a", 1, 10));
    first.commit(held, commit, second(2)).await.unwrap();
    deliver(&first, "s", 2).await;
    let others = key("acme", "client_1", "others");
    let others = second_replica.take_up(&others, second(1)).await.unwrap();
    // The replica leaves without delivering: the rest is left to the other one.
    first.close().await;
    // It gives back nothing but its own.
    let kept = sql(&url, "SELECT id FROM search WHERE owner IS NOT NULL");
    assert_eq!(kept, others.held.row.to_string());
    let loaded = take_over(&second_replica).await;
    assert_eq!(loaded.alerts, [alert("a", 1, 10)]);
    let rest = second_replica.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&rest), [3]);
    assert!(rest.claim.past().unwrap().is_inherited);
    assert_eq!(rest.events[0].event, event(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_given_back_is_delivered_first() {
    let store = open(&server::shared().fresh(), "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let giving = tokio::spawn({
        let store = store.clone();
        async move { store.release(held).await }
    });
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    assert!(!giving.is_finished());
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    assert!(shared(&store).look(|state| state.journal.is_lent(held.row)));
    drop(batch);
    assert!(!shared(&store).look(|state| state.journal.is_lent(held.row)));
    giving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_not_told_as_nothing_where_a_search_could_not_be_given_back() {
    let is_unclear = async |store: &Store| {
        let backlog = store.backlog("s").await;
        assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
        let pending = store.pending("s", 9, usize::MAX).await;
        assert!(matches!(pending, Err(Error::Unclear)), "{pending:?}");
        assert_eq!(store.backlog("t").await.unwrap(), Backlog::default());
    };
    let holding = async |url: &str| {
        let store = stalled(url, LEASE * 2).await;
        let held = hold(&store, &["s", "t"]).await;
        store.commit(held, events(1..3), second(2)).await.unwrap();
        deliver(&store, "t", 2).await;
        (store, held)
    };
    // Giving back fails; or it is impossible, since the row is locked; or the lease is over before
    // that.
    let (fails, locked, late) = (
        server::shared().fresh(),
        server::shared().fresh(),
        server::shared().fresh(),
    );
    let failing = async {
        let (store, held) = holding(&fails).await;
        get_in_the_way(&fails, "search", 100);
        let failed = store.release(held).await;
        assert!(matches!(failed, Err(Error::Backend(_))), "{failed:?}");
        is_unclear(&store).await;
    };
    let is_locked = async {
        let (store, held) = holding(&locked).await;
        let mut lock = shared(&store).pool.session().await.unwrap();
        lock.batch(LOCK).await.unwrap();
        store.release(held).await.unwrap();
        is_unclear(&store).await;
        lock.batch("ROLLBACK").await.unwrap();
    };
    let comes_late = async {
        let (store, held) = holding(&late).await;
        let lent = store.pending("s", 9, usize::MAX).await.unwrap();
        let soon = clock::since_boot() + Duration::from_secs(1);
        shared(&store).change_leases(|state| state.hold(held, soon));
        let releasing = store.release(held);
        let ending = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            shared(&store).change_journals(|_| {});
        };
        let (released, ()) = tokio::join!(releasing, ending);
        released.unwrap();
        drop(lent);
        is_unclear(&store).await;
    };
    tokio::join!(failing, is_locked, comes_late);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_not_told_as_nothing_while_a_search_is_being_given_back() {
    let url = server::shared().fresh();
    let store = stalled(&url, Duration::from_secs(2)).await;
    store.set_sinks(names(&["s", "t"])).await.unwrap();
    let mut held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let mut lock = shared(&store).pool.session().await.unwrap();
    for is_locked in [false, true] {
        let later = clock::since_boot() + PATIENCE;
        shared(&store).change_leases(|state| state.hold(held, later));
        sql(
            &url,
            "UPDATE search SET lease_until = clock_timestamp() + interval '1 hour'",
        );
        store.commit(held, events(1..3), second(2)).await.unwrap();
        let batch = store.pending("s", 9, usize::MAX).await.unwrap();
        let last = batch.events[1].position;
        if is_locked {
            lock.batch(LOCK).await.unwrap();
        }
        let delivering = async {
            let mut worked = shared(&store).worked.subscribe();
            while shared(&store).look(|state| state.journal.waits(held.row)) {
                timeout(PATIENCE, worked.changed()).await.unwrap().unwrap();
            }
            for sink in ["s", "t"] {
                let backlog = store.backlog(sink).await;
                assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
            }
            store.acknowledge("s", last, None).await.unwrap();
            // The sink has all events, whoever holds the search next.
            assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
            drop(batch);
        };
        let (released, ()) = tokio::join!(store.release(held), delivering);
        released.unwrap();
        assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
        // Whether or not the search was given back, nobody has been found yet that has it now.
        let backlog = store.backlog("t").await;
        assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
        if !is_locked {
            held = store.take_up(&a_search(), second(3)).await.unwrap().held;
            assert_eq!(store.backlog("t").await.unwrap().events, 2);
        }
    }
    lock.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_another_sink_leaves_nothing_unclear_for_one_that_has_all() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let held = hold(&store, &["s", "t"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&store, "s", 2).await;
    shared(&store).change_leases(|state| state.lose_in_doubt(held, i64::MAX));
    sql(
        &url,
        "UPDATE search SET owner = NULL, lease_until = clock_timestamp()",
    );
    keeper::share_out(shared(&store), PATIENCE).await.unwrap();
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    let backlog = store.backlog("t").await;
    assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_before_it_is_sent_has_done_nothing_and_costs_no_lease() {
    let url = server::shared().fresh();
    let (proxy, by_proxy) = behind_proxy(&url).await;
    let store = stalled(&by_proxy, LEASE * 2).await;
    let held = hold(&store, &["s"]).await;
    let fails = async |why: &str| {
        let failed = store.commit(held, events(1..3), second(2)).await;
        let said = text(&failed.unwrap_err());
        assert!(said.contains(why), "{said}");
        assert!(shared(&store).look(|state| state.is_held(held)));
        assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    };
    // The connection ends amid the transaction.
    proxy.set(proxy::Weather::Unanswered {
        question: "INSERT INTO journal",
    });
    fails("connection closed").await;
    proxy.set(proxy::Weather::Fair);
    // Others have all connections.
    let mut others = Vec::new();
    for _ in 0..connection::CONNECTIONS - 1 {
        others.push(shared(&store).pool.session().await.unwrap());
    }
    fails("no connection to the database has become free in time").await;
    drop(others);
    store.commit(held, events(1..3), second(2)).await.unwrap();
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_committed_is_not_told_as_nothing() {
    let url = server::shared().fresh();
    let (proxy, by_proxy) = behind_proxy(&url).await;
    let store = stalled(&by_proxy, LEASE).await;
    let held = hold(&store, &["s"]).await;
    // Without events nothing can wait.
    let commit = async |held, commit| {
        proxy.set(proxy::Weather::Unanswered {
            question: "COMMIT\0",
        });
        let unknown = store.commit(held, commit, second(2)).await;
        assert!(matches!(unknown, Err(Error::Backend(_))), "{unknown:?}");
    };
    commit(held, Commit::default()).await;
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    proxy.set(proxy::Weather::Fair);
    let held = take_over(&store).await.held;
    commit(held, events(1..3)).await;
    let backlog = store.backlog("s").await;
    assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
    proxy.set(proxy::Weather::Fair);
    take_over(&store).await;
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_others_get_in_the_way_of_is_done_in_time() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let mut trouble = store.trouble();
    get_in_the_way(&url, "search", 2);
    // The third write has succeeded, and so has the round that it belongs to.
    let last = || sql(&url, "SELECT last_value FROM writes_to_search");
    let is_renewed = || last().parse::<u32>().unwrap() >= 4;
    wait_until("the lease is not renewed", is_renewed).await;
    assert_eq!(*trouble.borrow_and_update(), None);
    assert!(!trouble.has_changed().unwrap());
    store.commit(held, events(1..3), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_has_locked_costs_its_own_lease_alone() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(5);
    let store = open(&url, "node", lease).await;
    let (other, locked, mut session) = one_of_two_locked(&store).await;
    timeout(PATIENCE, store.relieved(locked)).await.unwrap();
    // If it were not renewed, the other lease would end at the same time.
    timeout(lease / 2, store.relieved(other)).await.unwrap_err();
    assert_eq!(*store.trouble().borrow(), None);
    session.batch("ROLLBACK").await.unwrap();
    store.commit(other, events(1..3), second(2)).await.unwrap();
    store.take_up(&a_search(), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_though_all_other_connections_are_in_use() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(5);
    let store = open(&url, "node", lease).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let pool = &shared(&store).pool;
    let mut in_use = Vec::new();
    while let Ok(session) = timeout(lease / 2, pool.session()).await {
        in_use.push(session.unwrap());
    }
    timeout(lease, store.relieved(held)).await.unwrap_err();
    assert_eq!(*store.trouble().borrow(), None);
    drop(in_use);
    store.commit(held, events(1..3), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_others_to_be_taken_up_does_not_blame_the_server() {
    let store = open(&server::shared().fresh(), "node", LEASE).await;
    let others = shared(&store).takes.acquire_many(4).await.unwrap();
    let search = a_search();
    let taking = store.take_up(&search, second(1));
    tokio::pin!(taking);
    let waits = Duration::from_millis(500);
    timeout(connection::PATIENCE + waits, &mut taking)
        .await
        .unwrap_err();
    drop(others);
    taking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_is_over_once_it_was_used_whether_or_not_the_search_could_be_had() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.share_out(vec![a_search()]);
    for is_free in [false, true] {
        keeper::share_out(shared(&store), PATIENCE).await.unwrap();
        timeout(PATIENCE, store.turn(&a_search())).await.unwrap();
        if !is_free {
            let taken = "UPDATE search SET owner = 1, lease_until = now() + interval '1 hour'";
            sql(&url, taken);
        }
        let taken = store.take_up(&a_search(), second(1)).await;
        assert_eq!(taken.is_ok(), is_free, "{taken:?}");
        let is_over = |state: &State| state.granted.is_empty() && state.taking.is_empty();
        assert!(shared(&store).look(is_over));
        sql(&url, "UPDATE search SET owner = NULL, lease_until = now()");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_taking_was_given_up_is_given_back_at_the_end() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let me = shared(&store).number().unwrap();
    let mut session = shared(&store).pool.session().await.unwrap();
    alerts::create(&mut session, &[a_search()], second(1))
        .await
        .unwrap();
    // A task that stops in the midst of taking a search up leaves this behind. The server may get
    // to the last of it while the replica takes leave.
    session.begin().await.unwrap();
    let taken = alerts::take(&mut session, &a_search(), me, 60.0).await;
    assert!(taken.unwrap().is_some());
    let rest = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        session.commit().await.unwrap();
    };
    tokio::join!(store.close(), rest);
    let held = sql(&url, "SELECT count(*) FROM search WHERE owner IS NOT NULL");
    assert_eq!(held, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_not_told_as_nothing_while_the_database_is_out_of_reach() {
    let url = server::shared().fresh();
    let (proxy, by_proxy) = behind_proxy(&url).await;
    let lease = Duration::from_secs(4);
    let store = open(&by_proxy, "node", lease).await;
    store.share_out(vec![a_search()]);
    store.set_sinks(names(&["s", "t"])).await.unwrap();
    let held = take_over(&store).await.held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&store, "t", 2).await;

    let outage = async || {
        proxy.set(proxy::Weather::Reset);
        let mut changed = store.journalled();
        let is_unclear = async || matches!(store.backlog("s").await, Err(Error::Unclear));
        while !is_unclear().await {
            let heard = timeout(PATIENCE, changed.changed()).await;
            assert!(heard.is_ok(), "{:?}", store.backlog("s").await);
        }
        let pending = store.pending("s", 9, usize::MAX).await;
        assert!(matches!(pending, Err(Error::Unclear)), "{pending:?}");
        // A sink that has all events lacks nothing now either.
        assert_eq!(store.backlog("t").await.unwrap(), Backlog::default());
        assert_eq!(waiting(&store, "t").await, [0; 0]);
    };
    outage().await;
    proxy.set(proxy::Weather::Fair);
    take_over(&store).await;
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
    assert_eq!(waiting(&store, "s").await, [1, 2]);

    outage().await;
    let other = open(&url, "other", LEASE).await;
    other.set_sinks(names(&["s", "t"])).await.unwrap();
    take_over(&other).await;
    let mut changed = store.journalled();
    proxy.set(proxy::Weather::Fair);
    loop {
        match store.backlog("s").await {
            Ok(backlog) => break assert_eq!(backlog, Backlog::default(), "it is another's"),
            Err(Error::Unclear) => {}
            Err(error) => panic!("{error:?}"),
        }
        timeout(PATIENCE, changed.changed()).await.unwrap().unwrap();
    }
    assert_eq!(other.backlog("s").await.unwrap().events, 2);
    store.close().await;
    other.close().await;
}

/// Returns which searches are held, as the server has it.
fn owned(url: &str) -> String {
    sql(
        url,
        "SELECT string_agg(name, ',' ORDER BY name) FROM search WHERE owner IS NOT NULL",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_a_row_is_locked_gives_back_all_others_and_leaves_nothing_waiting() {
    let url = server::shared().fresh();
    let name = schema_of(&url);
    let store = open(
        &format!("{url}&application_name={name}"),
        "node",
        Duration::from_secs(4),
    )
    .await;
    let (_, _, mut session) = one_of_two_locked(&store).await;
    let began = Instant::now();
    store.close().await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(owned(&url), "open");
    assert_eq!(sql(&url, "SELECT count(*) FROM replica"), "0");
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE application_name = '{name}' AND wait_event_type = 'Lock'"
    );
    assert_eq!(server::shared().sql(&waiting), "0");
    session.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_holds_up_no_other_that_is_given_back() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let (other, locked, mut lock) = one_of_two_locked(&store).await;
    let both = [other, locked];
    let given = keeper::give_back(shared(&store), &both);
    timeout(Duration::from_secs(3), given)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(owned(&url), "open");
    // A row that is locked for a moment, as by a renewal, is given back all the same.
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lock.batch("ROLLBACK").await.unwrap();
    };
    let shared = shared(&store);
    let given = keeper::give_back(shared, std::slice::from_ref(&locked));
    let ((), given) = tokio::join!(unlock, given);
    given.unwrap();
    assert_eq!(owned(&url), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_holds_up_no_word_of_what_was_delivered_of_others() {
    let (url, store) = stalled_with_sink().await;
    let (other, locked, mut lock) = one_of_two_locked(&store).await;
    lock.batch("ROLLBACK").await.unwrap();
    store.commit(locked, events(1..3), second(2)).await.unwrap();
    store.commit(other, events(3..5), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[3].position;
    lock.batch(LOCK).await.unwrap();
    let mark = Some(b"four".to_vec());
    let acknowledged = store.acknowledge("s", last, mark);
    timeout(Duration::from_secs(3), acknowledged)
        .await
        .unwrap()
        .unwrap();
    let places = "SELECT name, position FROM progress JOIN search ON id = search_id ORDER BY name";
    assert_eq!(sql(&url, places), "other|2");
    drop(batch);
    // A mark stands for all positions, so it is not stored yet.
    assert_eq!(sql(&url, "SELECT count(mark) FROM mark"), "0");
    // Nor does it hold up the others' further events.
    store.commit(other, events(5..6), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [5]);
    assert!(shared(&store).look(|state| state.is_held(locked)));
    // The search is not given back before its position is stored.
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        lock.batch("ROLLBACK").await.unwrap();
    };
    let given = keeper::give_back(shared(&store), std::slice::from_ref(&locked));
    let ((), given) = tokio::join!(unlock, given);
    given.unwrap();
    assert_eq!(owned(&url), "other");
    assert_eq!(sql(&url, places), "open|2\nother|2");
    assert_eq!(sql(&url, "SELECT count(mark) FROM mark"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_free_once_its_place_could_not_be_told_is_not_given_back_without_it() {
    let (url, store) = stalled_with_sink().await;
    let (_, locked, mut lock) = one_of_two_locked(&store).await;
    lock.batch("ROLLBACK").await.unwrap();
    store.commit(locked, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[1].position;
    lock.batch(LOCK).await.unwrap();
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    // The row is let go right after the positions were told, while the first statement of the
    // leave is done.
    let rows = lock.query("SELECT pg_backend_pid()", &[]).await.unwrap();
    let locker: i32 = rows[0].get(0);
    sql(
        &url,
        &format!(
            "CREATE FUNCTION let_go() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
                 PERFORM pg_terminate_backend({locker});
                 WHILE EXISTS (SELECT FROM pg_stat_activity WHERE pid = {locker}) LOOP
                     PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01);
                 END LOOP;
                 RETURN OLD;
             END $$;
             CREATE TRIGGER let_go BEFORE DELETE ON replica FOR EACH ROW EXECUTE FUNCTION let_go()"
        ),
    );
    store.close().await;
    assert_eq!(owned(&url), "");
    assert_eq!(sql(&url, "SELECT count(*) FROM replica"), "0");
    let places = "SELECT position FROM progress JOIN search ON id = search_id WHERE name = 'open'";
    assert_eq!(sql(&url, places), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_whose_row_is_locked_takes_up_no_turn_and_is_not_taken_for_anothers() {
    let url = server::shared().fresh();
    let name = schema_of(&url);
    let store = stalled(
        &format!("{url}&application_name={name}"),
        Duration::from_secs(2),
    )
    .await;
    let (_, locked, mut lock) = one_of_two_locked(&store).await;
    let search = a_search();
    let begun = format!(
        "SELECT max(backend_start) FROM pg_stat_activity WHERE application_name = '{name}'"
    );
    let mut newest = Vec::new();
    for tries in 0..3 {
        let taken = timeout(Duration::from_secs(5), store.take_up(&search, second(2)));
        let refused = taken.await.unwrap();
        // The first time, another replica may be taking the search up.
        let is_told = match &refused {
            Err(Error::Contested) => tries == 0,
            Err(Error::Locked(_)) => tries > 0,
            _ => false,
        };
        assert!(is_told, "{refused:?}");
        newest.push(server::shared().sql(&begun));
    }
    assert!(!newest[0].is_empty(), "it is seen");
    assert_eq!(newest[0], newest[2], "each try costs a connection");
    assert_eq!(
        shared(&store).look(|state| state.epoch(locked.row)),
        Some(locked.epoch)
    );
    lock.batch("ROLLBACK").await.unwrap();
    let again = store.take_up(&a_search(), second(3)).await.unwrap().held;
    assert_eq!(again.row, locked.row);
    assert_eq!(sql(&url, "SELECT count(*) FROM search"), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_a_locked_row_for_a_moment_and_says_who_has_it() {
    let (_, store) = stalled_with_sink().await;
    let (_, locked, mut lock) = one_of_two_locked(&store).await;
    let rows = lock.query("SELECT pg_backend_pid()", &[]).await.unwrap();
    let process: i32 = rows[0].get(0);
    let commit = || store.commit(locked, events(1..3), second(2));
    let refused = timeout(connection::PATIENCE / 2, commit()).await.unwrap();
    let said = text(&refused.unwrap_err());
    let row = locked.row;
    let whose = format!(
        "keeps the search's row (row {row} of the table search, by its process {process} of the user "
    );
    assert!(said.contains(&whose), "{said}");
    // A row that is locked for the time of some answers is waited for.
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        lock.batch("ROLLBACK").await.unwrap();
    };
    let (committed, ()) = tokio::join!(commit(), unlock);
    committed.unwrap();
    // The refused commit has stored nothing, and nothing was stored twice.
    assert_eq!(waiting(&store, "s").await, [1, 2]);
}

/// Takes up so many searches, whose names begin with `name` and a blank.
async fn take_up_many(store: &Store, name: &str, count: usize) -> Vec<Held> {
    let mut held = Vec::new();
    for number in 0..count {
        let search = key("acme", "client_1", &format!("{name} {number}"));
        held.push(store.take_up(&search, second(1)).await.unwrap().held);
    }
    held
}

/// Returns a search that is held, and a connection that keeps a table locked.
async fn held_and_table_locked(store: &Store, table: &str) -> (Held, Session) {
    let held = hold(store, &["s"]).await;
    let mut lock = shared(store).pool.session().await.unwrap();
    let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
    lock.batch(&sql).await.unwrap();
    (held, lock)
}

/// A table is locked, for instance, while it or an index of it is built anew. The search's row is
/// free then.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_a_table_that_is_locked_for_longer_than_for_a_row() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let (held, mut lock) = held_and_table_locked(&store, "journal").await;
    let unlock = async {
        tokio::time::sleep(shared(&store).commit_wait() + Duration::from_millis(300)).await;
        lock.batch("ROLLBACK").await.unwrap();
    };
    let commit = store.commit(held, events(1..3), second(2));
    let (committed, ()) = tokio::join!(commit, unlock);
    committed.unwrap();
}

/// Renewals pass over the row while the commit has it locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_for_long_costs_a_commit_and_no_lease() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(5);
    let store = open(&url, "node", lease).await;
    let (held, mut lock) = held_and_table_locked(&store, "journal").await;
    store.share_out(vec![a_search()]);
    let began = Instant::now();
    // One commit follows the other, as with polls whose interval is short.
    while began.elapsed() < lease * 2 {
        let refused = store.commit(held, events(1..3), second(2)).await;
        let said = text(&refused.unwrap_err());
        let why = "has not finished a statement of a commit within 2s 500ms; somebody may have locked a table";
        assert!(said.contains(why), "{said}");
    }
    assert!(shared(&store).look(|state| state.is_held(held)));
    // The look at the leases does not wait for the table either.
    assert_eq!(*shared(&store).trouble.borrow(), None);
    lock.batch("ROLLBACK").await.unwrap();
    store.commit(held, events(1..3), second(3)).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_the_leases_that_waits_for_a_locked_table_delays_no_renewal() {
    let url = server::shared().fresh();
    // A renewal may be late by an eighth of it.
    let lease = Duration::from_secs(10);
    let store = open(&url, "node", lease).await;
    let free = key("acme", "client_1", "free");
    let free = store.take_up(&free, second(1)).await.unwrap().held;
    store.release(free).await.unwrap();
    let (held, mut lock) = held_and_table_locked(&store, "journal").await;
    let lost = Held {
        epoch: free.epoch + 1,
        ..free
    };
    shared(&store).change_leases(|state| {
        state.committed(lost, 1, 1);
        // The look has to ask the table that is locked what waits in this search.
        assert!(state.journal.is_unclear("s"));
    });
    let began = Instant::now();
    let mut least = lease;
    while began.elapsed() < lease * 2 {
        let until = shared(&store).look(|state| state.until(held)).unwrap();
        least = least.min(until.saturating_sub(clock::since_boot()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nine tenths of a lease are relied on, and about a quarter passes between two renewals: a
    // commit may keep its row for half a lease.
    assert!(least > lease / 2, "{least:?}");
    assert!(shared(&store).look(|state| state.journal.is_unclear("s")));
    lock.batch("ROLLBACK").await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_somebody_has_cancelled_is_not_told_as_one_that_took_too_long() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let (held, mut lock) = held_and_table_locked(&store, "journal").await;
    let cancel = async {
        let waiting = "SELECT count(pg_cancel_backend(pid)) FROM pg_locks
            WHERE relation = 'journal'::regclass AND NOT granted";
        while sql(&url, waiting).trim() == "0" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let commit = store.commit(held, events(1..3), second(2));
    let (refused, ()) = tokio::join!(commit, cancel);
    let said = text(&refused.unwrap_err());
    assert!(
        said.contains("user request") && !said.contains("has not finished"),
        "{said}"
    );
    lock.batch("ROLLBACK").await.unwrap();
    store.commit(held, events(1..3), second(3)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_table_of_the_searches_is_locked_it_is_not_their_rows_that_are_told() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let (held, mut lock) = held_and_table_locked(&store, "search").await;
    let refused = store.commit(held, events(1..3), second(2)).await;
    let said = text(&refused.unwrap_err());
    let whose = format!(
        "(row {} of the table search), or a table, in the state",
        held.row
    );
    assert!(said.contains(&whose), "{said}");
    lock.batch("ROLLBACK").await.unwrap();
    store.commit(held, events(1..3), second(3)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_locked_rows_leave_connections_to_others() {
    const LOCKED: usize = 20;
    let (_, store) = stalled_with_sink().await;
    let other = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let locked = take_up_many(&store, "locked", LOCKED).await;
    let mut lock = shared(&store).pool.session().await.unwrap();
    let those = "BEGIN; SELECT FROM search WHERE name LIKE 'locked %' FOR UPDATE";
    lock.batch(those).await.unwrap();
    let began = Instant::now();
    let commits = futures_util::future::join_all(
        locked
            .iter()
            .map(|held| store.commit(*held, events(1..3), second(2))),
    );
    let others = async {
        // By then, the commits are waiting.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        store.commit(other, events(3..5), second(2)).await.unwrap();
        let batch = store.pending("s", 9, usize::MAX).await.unwrap();
        (asked.elapsed(), batch)
    };
    let (refused, (took, batch)) = tokio::join!(commits, others);
    assert_eq!(told(&batch), [3, 4]);
    assert!(took < Duration::from_millis(1500), "{took:?}");
    let is_of_the_lock = |done: &Result<(), Error>| matches!(done, Err(Error::Locked(_)));
    assert!(refused.iter().all(is_of_the_lock), "{refused:?}");
    assert!(began.elapsed() < connection::PATIENCE / 2);
    let are_held = |state: &State| locked.iter().all(|held| state.is_held(*held));
    assert!(shared(&store).look(are_held));
    lock.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_locked_table_leave_connections_to_the_look_at_the_leases() {
    const SEARCHES: usize = 20;
    let url = server::shared().fresh();
    let lease = Duration::from_secs(4);
    let store = open(&url, "node", lease).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = take_up_many(&store, "search", SEARCHES).await;
    let mut lock = shared(&store).pool.session().await.unwrap();
    // As while an index is built: the table can be read.
    let locks = "BEGIN; LOCK TABLE journal IN SHARE MODE";
    lock.batch(locks).await.unwrap();
    let commits = held
        .iter()
        .map(|held| store.commit(*held, events(1..3), second(2)));
    let looks = async {
        for _ in 0..10 {
            tokio::time::sleep(lease / 10).await;
            keeper::share_out(shared(&store), lease / 2).await.unwrap();
        }
    };
    let (done, ()) = tokio::join!(futures_util::future::join_all(commits), looks);
    assert!(done.iter().all(Result::is_err), "{done:?}");
    assert_eq!(*shared(&store).trouble.borrow(), None);
    let are_held = |state: &State| held.iter().all(|held| state.is_held(*held));
    assert!(shared(&store).look(are_held));
    lock.batch("ROLLBACK").await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn a_loop_that_keeps_failing_is_told_unless_it_is_the_servers_trouble() {
    let (lines, _logging) = crate::logging::captured();
    let lease = Duration::from_millis(50);
    let store = stalled(&server::shared().fresh(), lease).await;
    let shared = shared(&store);
    let mut failing = keeper::Failing::new("a loop fails");
    let mut told = |done| {
        failing.note(shared, done);
        let mut lines = lines.lock();
        let of = |line: &String| line.contains("a loop fails");
        lines.drain(..).filter(of).count()
    };
    let failure = || Err(Failure::Timeout);
    let long = || tokio::time::sleep(lease * 5);
    assert_eq!(told(failure()), 0);
    long().await;
    // Whatever ends for a moment begins anew.
    assert_eq!((told(Ok(())), told(failure())), (0, 0));
    long().await;
    shared.tell(Some(&Failure::Timeout));
    assert_eq!(told(failure()), 0);
    shared.tell(None);
    assert_eq!(told(failure()), 0);
    long().await;
    assert_eq!(told(failure()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_panics_is_told_and_the_end_of_all_is_not() {
    let url = server::shared().fresh();
    let store = open(&url, "closed", LEASE).await;
    store.close().await;
    let lost = timeout(Duration::from_millis(200), store.lost()).await;
    assert!(lost.is_err(), "{lost:?}");

    let store = open(&url, "panics", LEASE).await;
    shared(&store).begin("a loop", async { panic!("as a bug would") });
    let lost = timeout(PATIENCE, store.lost()).await;
    let lost = lost.unwrap().to_string();
    assert!(lost.starts_with("a loop has ended"), "{lost}");
    // Other replicas need not wait until the leases end.
    store.close().await;
    let left = sql(&url, "SELECT count(*) FROM replica WHERE node = 'panics'");
    assert_eq!(left, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_waits_for_any_more_keeps_no_room_in_the_journal() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let (_, held, mut session) = one_of_two_locked(&store).await;
    // As many events as there is room for.
    let all = || events(1..1001);
    let moment = Duration::from_millis(100);
    let given_up = timeout(moment, store.commit(held, all(), second(2))).await;
    assert!(given_up.is_err(), "{given_up:?}");
    session.roll_back().await.unwrap();
    // It was given up before it was sent.
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    let late = store.commit(held, Commit::default(), second(2)).await;
    assert!(matches!(late, Err(Error::LeaseLost)), "{late:?}");
    let held = take_over(&store).await.held;
    // Of a commit that was sent, it is unknown whether it was done.
    assert!(shared(&store).change_journals(|state| state.journal.reserve(2)));
    drop(Committing {
        shared: shared(&store),
        held,
        events: 2,
        is_sent: true.into(),
        is_finished: false,
    });
    let backlog = store.backlog("s").await;
    assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
    let held = take_over(&store).await.held;
    store.commit(held, all(), second(3)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events.len(), 9);
}
