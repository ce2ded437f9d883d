//! Searches that no replica wants any more, with events left to deliver.

use super::*;

/// Makes a search that its holder left an hour ago, with two events undelivered, and that no
/// replica wants.
async fn left(store: &Store, url: &str, name: &str) -> Held {
    let key = key("acme", "client_1", name);
    let held = store.take_up(&key, second(1)).await.unwrap().held;
    let mut commit = events(1..3);
    commit.upserts.push(alert("a", 1, 10));
    store.commit(held, commit, second(2)).await.unwrap();
    shared(store).change_leases(|state| state.lose(held));
    let hour_ago = "UPDATE search SET owner = NULL, lease_until = now() - interval '1 hour'";
    sql(
        url,
        &format!("{hour_ago}; UPDATE replica SET wants = '{{}}'"),
    );
    held
}

async fn take_left_over(store: &Store) -> Vec<Held> {
    left_over::take(shared(store), LEASE * 2).await.unwrap();
    shared(store).look(State::left_over)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_search_that_nobody_wants_is_delivered_and_removed() {
    let (url, store) = stalled_with_sink().await;
    let was = left(&store, &url, "open").await;
    let held = take_left_over(&store).await;
    assert!(held.len() == 1 && held[0].row == was.row && held[0].epoch > was.epoch);
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
    // Nobody polls the search.
    assert_eq!(store.open_alerts(all_alerts(9)).await.unwrap().len(), 0);

    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    left_over::give_back(shared(&store)).await.unwrap();
    assert!(batch.claim.holds());
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    left_over::give_back(shared(&store)).await.unwrap();
    let rest = "SELECT owner IS NULL, (SELECT count(*) FROM journal) FROM search";
    assert_eq!(sql(&url, rest), "t|0");
    assert_eq!(shared(&store).look(State::leases), []);

    // The same happens if every sink has the events, but nobody has removed them.
    left(&store, &url, "open").await;
    sql(&url, "UPDATE progress SET position = 4");
    assert_eq!(take_left_over(&store).await.len(), 1);
    left_over::give_back(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, rest), "t|0");
    assert_eq!(take_left_over(&store).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_want_or_deliver_is_left_to_them() {
    let (url, store) = stalled_with_sink().await;
    let row = left(&store, &url, "open").await.row;
    let other = |wants: &str| {
        let alive = "now() + interval '1 hour'";
        format!(
            "DELETE FROM replica WHERE id = 1;
             INSERT INTO replica (id, node, alive_until, wants) VALUES (1, 'other', {alive}, {wants})"
        )
    };
    let wanted = format!("'{{{row}}}'");
    // A replica that has died wants nothing any more.
    let died = "UPDATE replica SET alive_until = now() - interval '1 s' WHERE id = 1";
    for (why, so, otherwise) in [
        ("another wants it", other(&wanted), died.to_owned()),
        ("another has not said", other("NULL"), died.to_owned()),
        (
            "this one wants it",
            format!("{}; UPDATE replica SET wants = {wanted}", other("'{}'")),
            "UPDATE replica SET wants = '{}'".to_owned(),
        ),
        (
            "it was given back just now",
            "UPDATE search SET lease_until = now() - interval '20 s'".to_owned(),
            "UPDATE search SET lease_until = now() - interval '31 s'".to_owned(),
        ),
        (
            "another's sink lacks it",
            "INSERT INTO sink (name) VALUES ('t');
             INSERT INTO progress SELECT 's', id, 2 FROM search"
                .to_owned(),
            "UPDATE progress SET position = 1".to_owned(),
        ),
    ] {
        sql(&url, &so);
        assert_eq!(take_left_over(&store).await, [], "{why}");
        sql(&url, &otherwise);
        let held = take_left_over(&store).await;
        assert_eq!(held.len(), 1, "not for that: {why}");
        let hour_ago = "UPDATE search SET owner = NULL, lease_until = now() - interval '1 hour'";
        sql(&url, hour_ago);
        shared(&store).change_leases(|state| state.lose(held[0]));
    }
    // A replica that wants the search later is given it.
    assert_eq!(take_left_over(&store).await.len(), 1);
    for (so, is_given) in [(died, "f"), ("", "t")] {
        sql(&url, &format!("{}; {so}", other(&wanted)));
        left_over::give_back(shared(&store)).await.unwrap();
        assert_eq!(sql(&url, "SELECT owner IS NULL FROM search"), is_given);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_whose_row_is_locked_keeps_no_other_from_being_delivered() {
    let (url, store) = stalled_with_sink().await;
    let free = left(&store, &url, "free").await;
    let locked = left(&store, &url, "open").await;
    let mut session = shared(&store).pool.session().await.unwrap();
    session.batch(LOCK).await.unwrap();
    let rows = |held: Vec<Held>| held.iter().map(|it| it.row).collect::<Vec<_>>();
    assert_eq!(rows(take_left_over(&store).await), [free.row]);
    session.batch("ROLLBACK").await.unwrap();
    drop(session);
    let mut both = rows(take_left_over(&store).await);
    both.sort_unstable();
    assert_eq!(both, [free.row, locked.row]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_comes_back_is_polled_at_once_by_whoever_delivers_it() {
    let (url, store) = stalled_with_sink().await;
    left(&store, &url, "open").await;
    let held = take_left_over(&store).await;
    let batch = store.pending("s", 1, usize::MAX).await.unwrap();
    store
        .acknowledge("s", batch.events[0].position, None)
        .await
        .unwrap();
    let polled = store.take_up(&a_search(), second(3)).await.unwrap().held;
    assert_eq!(shared(&store).look(State::left_over), []);
    // The task that delivered the search has begun to give it back.
    release(shared(&store), &held).await.unwrap();
    store.commit(polled, events(3..4), second(4)).await.unwrap();
    drop(batch);
    assert_eq!(waiting(&store, "s").await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_held_for_two_leases_is_taken_beyond_the_share() {
    let url = server::shared().fresh();
    let (store, other) = (stalled(&url, LEASE).await, stalled(&url, LEASE).await);
    let keys = ["a", "b"].map(|name| key("acme", "client_1", name));
    store.share_out(keys.to_vec());
    // The other replica is configured differently, and will not take what is left of these.
    other.share_out(vec![a_search()]);
    keeper::share_out(shared(&other), PATIENCE).await.unwrap();
    keeper::share_out(shared(&store), PATIENCE).await.unwrap();
    for (free_for, expected) in [("20 s", 1), ("31 s", 2)] {
        let free = format!("UPDATE search SET lease_until = now() - interval '{free_for}'");
        sql(&url, &free);
        keeper::share_out(shared(&store), PATIENCE).await.unwrap();
        let granted = shared(&store).look(|state| state.granted.len());
        assert_eq!(granted, expected, "{free_for}");
    }
    // Whoever has died has no share.
    let number = shared(&other).number().unwrap();
    let died = format!("UPDATE replica SET alive_until = now() WHERE id = {number}");
    sql(
        &url,
        &format!("UPDATE search SET lease_until = now(); {died}"),
    );
    keeper::share_out(shared(&store), PATIENCE).await.unwrap();
    assert_eq!(shared(&store).look(|state| state.granted.len()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_no_search_any_more_has_no_share() {
    let url = server::shared().fresh();
    let (store, other) = (stalled(&url, LEASE).await, stalled(&url, LEASE).await);
    let keys = ["a", "b"].map(|name| key("acme", "client_1", name));
    for store in [&store, &other] {
        store.share_out(keys.to_vec());
    }
    let shares = async || {
        let mut shares = Vec::new();
        for store in [&store, &other] {
            keeper::share_out(shared(store), PATIENCE).await.unwrap();
            shares.push(shared(store).look(|state| state.share));
        }
        shares
    };
    // In the first round, the first replica may not see the other's wish yet.
    shares().await;
    assert_eq!(shares().await, [1, 1]);
    assert!(shared(&store).look(|state| !state.granted.is_empty()));
    store.share_out(Vec::new());
    // The other one is not kept from having all searches.
    assert_eq!(shares().await, [0, 2]);
    assert!(shared(&store).look(|state| state.granted.is_empty()));
    keeper::renew(shared(&store), PATIENCE).await.unwrap();
    let told = "SELECT share FROM replica WHERE wants = '{}'";
    assert_eq!(sql(&url, told), "0");
}
