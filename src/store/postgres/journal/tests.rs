use super::*;

const A: i64 = 7;
const B: i64 = 9;

fn journal(sinks: &[&str]) -> Journal {
    let mut journal = Journal::new(100, 1000);
    let names: Vec<String> = sinks.iter().map(ToString::to_string).collect();
    journal.set_sinks(&names, &names, &[]);
    for row in [A, B] {
        journal.adopt(held(row, 1), 0, 0, &[]);
    }
    journal
}

fn held(row: i64, epoch: i64) -> Held {
    Held { row, epoch }
}

fn unsaved(journal: &mut Journal) -> Unsaved {
    let mut unsaved = journal.unsaved("s", |_| true);
    unsaved.positions.sort_unstable();
    unsaved
}

fn range(place: i64, row: i64, first: i64, count: i64) -> Range {
    Range {
        place,
        row,
        first,
        count,
        inherited: false,
        at: None,
    }
}

fn inherited(place: i64, row: i64, first: i64, count: i64) -> Range {
    Range {
        inherited: true,
        ..range(place, row, first, count)
    }
}

/// A backlog, with the events that the server has yet to be asked about.
fn undated(events: u64, undated: &[(i64, i64)]) -> Option<Waiting> {
    Some(Waiting {
        events,
        oldest: None,
        undated: undated.to_vec(),
    })
}

fn progress(positions: &[(&str, i64)]) -> Vec<(String, i64)> {
    let owned = |(name, position): &(&str, i64)| ((*name).to_owned(), *position);
    positions.iter().map(owned).collect()
}

#[test]
fn what_follows_is_one_range_and_a_batch_may_end_within_it() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.append(A, 4, 2);
    journal.append(B, 1, 1);
    journal.append(A, 6, 1);
    let all = [
        range(1001, A, 1, 5),
        range(1006, B, 1, 1),
        range(1007, A, 6, 1),
    ];
    assert_eq!(journal.next("s", 99), all);
    assert_eq!(journal.next("s", 2), [range(1001, A, 1, 2)]);
    assert_eq!(journal.next("s", 0), []);

    journal.lend("s", all.to_vec());
    journal.acknowledge("s", 1002, None);
    assert_eq!(journal.next("s", 4), [range(1003, A, 3, 3), all[1]]);
    assert_eq!(journal.backlog("s"), undated(5, &[(A, 3)]));
    assert_eq!(unsaved(&mut journal).positions, [(A, 2)]);
    journal.acknowledge("s", 1006, None);
    let told = unsaved(&mut journal);
    assert_eq!(told.positions, [(A, 5), (B, 1)]);
    journal.saved("s", &told);
    assert_eq!(unsaved(&mut journal), Unsaved::default());
}

#[test]
fn a_row_that_stands_for_another_search_is_delivered_from_its_beginning() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.append(B, 1, 1);
    journal.acknowledge("s", 1003, None);
    journal.drop_search(A);
    journal.forget_unless(|row| row == B);
    assert_eq!(journal.next("s", 99), [range(1004, B, 1, 1)]);
    assert!(journal.append(B, 2, 1) && !journal.append(A, 4, 1));
    assert!(journal.adopt(held(A, 2), 1, 4, &progress(&[("s", 0)])));
    assert_eq!(journal.next("s", 99)[1..], [inherited(1006, A, 1, 4)]);
}

#[test]
fn a_sink_that_others_have_named_a_while_ago_begins_where_the_server_says() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.append(B, 1, 1);
    let own = ["s", "t", "u", "v"].map(str::to_owned);
    let at = |sink: &str, row, position| Position {
        sink: sink.to_owned(),
        row,
        position,
    };
    // The first sink has all events of one search, and another search is not held. The last one
    // was named after a commit whose answer is still to come.
    let positions = [
        at("t", A, 1),
        at("t", B, 1),
        at("t", 99, 0),
        at("u", A, 2),
        at("v", A, 4),
    ];
    journal.set_sinks(&own, &own, &positions);
    assert_eq!(journal.backlog("v"), undated(0, &[]));
    journal.append(A, 4, 1);
    let next = [inherited(1005, A, 2, 2), range(1008, A, 4, 1)];
    assert_eq!(journal.next("t", 99), next);
    let next = [inherited(1007, A, 3, 1), range(1008, A, 4, 1)];
    assert_eq!(journal.next("u", 99), next);
    journal.acknowledge("t", 1008, None);
    let told = journal.unsaved("t", |_| true);
    assert_eq!(told.positions, [(A, 4)]);
}

#[test]
fn a_sink_that_is_named_again_goes_on_where_the_server_says_by_then() {
    let mut journal = journal(&["s", "t"]);
    let (one, both) = (["s".to_owned()], ["s", "t"].map(str::to_owned));
    journal.append(A, 1, 3);
    journal.append(B, 1, 3);
    let lent = journal.next("t", 4);
    journal.lend("t", lent);
    journal.set_sinks(&one, &both, &[]);
    journal.append(A, 4, 2);
    let dropped = journal.dropped();
    // Others have given the sink up and named it again, before the last events.
    let positions = [(A, 4), (B, 0)].map(|(row, position)| Position {
        sink: "t".to_owned(),
        row,
        position,
    });
    journal.set_sinks(&both, &both, &positions);
    assert_ne!(journal.dropped(), dropped, "nobody hears of it");
    let next = [inherited(1009, A, 5, 1), inherited(1010, B, 1, 3)];
    assert_eq!(journal.next("t", 99), next);
    assert_eq!(journal.backlog("t").unwrap().events, 4);
    // A delivery from before has ended meanwhile. The server has more than it of the one search.
    journal.acknowledge("t", 1004, None);
    let next = [inherited(1009, A, 5, 1), inherited(1011, B, 2, 2)];
    assert_eq!(journal.next("t", 99), next);
    assert_eq!(journal.backlog("t").unwrap().events, 3);
    assert_eq!(journal.unsaved("t", |_| true).positions, [(B, 1)]);
    // For a sink that stays, nothing changes.
    journal.set_sinks(&both, &both, &positions);
    assert_eq!(journal.next("t", 99), next);
    let all = [
        range(1001, A, 1, 3),
        range(1004, B, 1, 3),
        range(1007, A, 4, 2),
    ];
    assert_eq!(journal.next("s", 99), all);
}

#[test]
fn a_search_is_taken_up_where_each_sink_has_come_to() {
    let mut journal = journal(&["fast", "new", "slow"]);
    journal.adopt(held(A, 2), 1, 10, &progress(&[("fast", 9), ("slow", 4)]));
    assert_eq!(journal.next("slow", 99), [inherited(1001, A, 5, 6)]);
    // The same event has the same place for both.
    assert_eq!(journal.next("fast", 99), [inherited(1006, A, 10, 1)]);
    // The server was asked before this sink was entered, and the sink begins with the next event.
    assert_eq!(journal.next("new", 99), []);
    journal.append(A, 11, 1);
    let both = [inherited(1006, A, 10, 1), range(1007, A, 11, 1)];
    assert_eq!(journal.next("fast", 99), both);
    assert_eq!(journal.next("new", 99), both[1..]);
    // Only what was there may have been delivered before.
    let is_inherited = |ranges: &[Range]| journal.past("fast", ranges).is_inherited;
    assert!(is_inherited(&both) && !is_inherited(&both[1..]));
    assert_eq!(journal.end(), 1007);
}

#[test]
fn what_was_delivered_while_the_search_was_lost_is_not_delivered_again() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    let loan = journal.lend("s", journal.next("s", 2));
    journal.drop_search(A);
    assert_eq!(journal.backlog("s"), undated(0, &[]));
    assert!(journal.is_lent(A) && !journal.waits(A));
    journal.acknowledge("s", 1002, None);
    journal.give_back("s", loan);
    assert!(!journal.is_lent(A));
    // The server does not hear of the delivery, as long as the search may be another's. Then the
    // search comes back.
    assert_eq!(journal.unsaved("s", |_| false), Unsaved::default());
    journal.adopt(held(A, 2), 1, 3, &progress(&[("s", 0)]));
    assert_eq!(journal.next("s", 99), [inherited(1004, A, 3, 1)]);
    assert_eq!(unsaved(&mut journal).positions, [(A, 2)]);
    // Other replicas have come further since.
    journal.adopt(held(A, 4), 3, 9, &progress(&[("s", 8)]));
    assert_eq!(journal.next("s", 99), [inherited(1005, A, 9, 1)]);
    assert_eq!(unsaved(&mut journal).positions, []);
}

#[test]
fn a_position_of_a_search_that_is_lost_is_others_to_tell_and_holds_up_no_mark() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 1);
    journal.append(B, 1, 1);
    journal.acknowledge("s", 1002, Some(b"mark".to_vec()));
    let told = journal.unsaved("s", |row| row == B);
    assert_eq!(told.positions, [(B, 1)]);
    assert_eq!(told.mark, Some(Some(b"mark".to_vec())));
    journal.saved("s", &told);
    assert_eq!(unsaved(&mut journal), Unsaved::default());
}

#[test]
fn a_search_that_is_lost_before_the_server_has_heard_of_its_deliveries_is_a_loss() {
    let mut journal = journal(&["s"]);
    let past = |journal: &Journal| {
        let past = journal.past("s", &[]);
        (past.acks_stored, past.losses)
    };
    journal.append(A, 1, 1);
    journal.append(B, 1, 1);
    journal.acknowledge("s", 1002, None);
    assert_eq!(past(&journal), (false, 0));
    let told = journal.unsaved("s", |row| row == B);
    assert_eq!(past(&journal), (false, 1));
    journal.saved("s", &told);
    assert_eq!(past(&journal), (true, 1));
    // Other replicas held the search while it was being delivered here.
    journal.append(B, 2, 1);
    journal.lend("s", journal.next("s", 9));
    journal.adopt(held(B, 9), 8, 2, &progress(&[("s", 1)]));
    assert_eq!(past(&journal), (true, 2));
}

#[test]
fn what_others_may_have_delivered_since_counts_by_their_word_alone() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.acknowledge("s", 1003, None);
    // Another replica held the search in between.
    assert!(journal.adopt(held(A, 3), 2, 5, &progress(&[("s", 2)])));
    assert_eq!(journal.next("s", 99), [inherited(1004, A, 3, 3)]);
}

#[test]
fn a_server_that_was_set_back_gives_positions_again_and_their_events_are_delivered() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 5);
    journal.acknowledge("s", 1004, None);
    // The server has forgotten three events, and the holder does not know that.
    assert!(!journal.append(A, 3, 2));
    assert!(journal.adopt(held(A, 2), 1, 4, &progress(&[("s", 2)])));
    assert_eq!(journal.next("s", 99), [inherited(1006, A, 3, 2)]);
    assert_eq!(unsaved(&mut journal).positions, []);

    // The same happens if the search was taken up anew since, in the middle of a delivery.
    let loan = journal.lend("s", journal.next("s", 99));
    assert!(!journal.adopt(held(A, 3), 2, 2, &progress(&[("s", 2)])));
    assert!(journal.append(A, 3, 1));
    journal.acknowledge("s", 1007, None);
    journal.give_back("s", loan);
    assert_eq!(journal.next("s", 99), [range(1008, A, 3, 1)]);
}

#[test]
fn what_waits_for_others_sinks_takes_up_room() {
    let mut journal = Journal::new(4, 0);
    let name = |name: &str| name.to_owned();
    journal.set_sinks(&[name("own")], &[name("own"), name("others")], &[]);
    journal.adopt(held(A, 1), 0, 0, &[]);
    assert_eq!(journal.own_sinks(), ["own".into()]);
    assert!(journal.reserve(3));
    assert!(!journal.reserve(2));
    journal.append(A, 1, 3);
    journal.unreserve(3);
    journal.acknowledge("own", 3, None);
    assert!(!journal.reserve(2));
    // No delivery here makes room, and no other sink is in the way of what fits exactly.
    assert!(!journal.waits(A));
    assert_eq!(journal.in_the_way_of(1), [""; 0]);
    assert_eq!(journal.in_the_way_of(2), ["others"]);
    assert_eq!(journal.in_the_way_of(4), ["others"]);
    assert_eq!(journal.in_the_way_of(5), [""; 0]);
    assert!(journal.reserve(1));
    assert_eq!(journal.in_the_way_of(1), ["others"]);
    journal.unreserve(1);
    journal.set_sinks(&[name("own")], &[name("own")], &[]);
    assert!(journal.reserve(4));
    assert!(!journal.reserve(1));
    // Without any sink nothing is kept.
    journal.set_sinks(&[], &[], &[]);
    assert!(!journal.keeps_events() && journal.reserve(99));
}

#[test]
fn an_old_place_changes_nothing_and_a_mark_is_told_once() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.acknowledge("s", 1002, Some(b"new".to_vec()));
    journal.acknowledge("s", 1001, Some(b"old".to_vec()));
    // Neither a repetition nor what the server knows makes the new mark one that was told.
    journal.acknowledge("s", 1002, Some(b"new".to_vec()));
    journal.set_mark("s", Some(b"old".to_vec()));
    let told = unsaved(&mut journal);
    assert_eq!(told.mark, Some(Some(b"new".to_vec())));
    journal.acknowledge("s", 1003, None);
    // The sink has come further since that was told, and the mark has changed.
    journal.saved("s", &told);
    let told = unsaved(&mut journal);
    assert_eq!(
        (&told.positions[..], &told.mark),
        (&[(A, 3)][..], &Some(None))
    );
    journal.saved("s", &told);
    journal.acknowledge("s", 1003, None);
    assert_eq!(unsaved(&mut journal), Unsaved::default());
    // Nothing can have been delivered beyond the end.
    journal.acknowledge("s", i64::MAX, None);
    journal.append(A, 4, 1);
    assert_eq!(journal.next("s", 99), [range(1004, A, 4, 1)]);
}

#[test]
fn what_is_told_of_a_sink_that_is_gone_is_not_taken_for_the_next_one_of_its_name() {
    let mut journal = journal(&["s"]);
    let names = ["s".to_owned()];
    journal.append(A, 1, 3);
    journal.set_sinks(&[], &[], &[]);
    journal.set_sinks(&names, &names, &[]);
    assert_eq!(journal.next("s", 99), []);
    journal.acknowledge("s", 1002, Some(b"old".to_vec()));
    assert_eq!(unsaved(&mut journal), Unsaved::default());
    journal.append(A, 4, 1);
    assert_eq!(journal.next("s", 99), [range(1004, A, 4, 1)]);
}

#[test]
fn what_is_being_delivered_while_the_search_is_taken_up_again_counts() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.append(B, 1, 1);
    let loan = journal.lend("s", journal.next("s", 2));
    journal.adopt(held(A, 2), 1, 3, &progress(&[("s", 0)]));
    journal.give_back("s", loan + 1);
    assert!(journal.is_lent(A));
    let at = Timestamp::UNIX_EPOCH;
    journal.date("s", &HashMap::from([((A, 1), at)]));
    journal.acknowledge("s", 1002, None);
    let left = [range(1004, B, 1, 1), inherited(1007, A, 3, 1)];
    assert_eq!(journal.next("s", 99), left);
    assert_eq!(journal.backlog("s"), undated(2, &[(B, 1), (A, 3)]));
    journal.give_back("s", loan);
    assert!(!journal.is_lent(A));
}

#[test]
fn the_oldest_event_may_be_in_any_search_that_was_taken_over() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let dated = |events, oldest, undated: &[_]| {
        let waiting = Waiting {
            events,
            oldest: Some(at(oldest)),
            undated: undated.to_vec(),
        };
        Some(waiting)
    };
    let mut journal = journal(&["s"]);
    journal.adopt(held(A, 2), 1, 2, &progress(&[("s", 0)]));
    journal.adopt(held(B, 2), 1, 3, &progress(&[("s", 1)]));
    journal.append(A, 3, 1);
    journal.append(B, 4, 1);
    // Of the events that this process has journalled itself, the first is the oldest.
    assert_eq!(journal.backlog("s"), undated(6, &[(A, 1), (B, 2), (A, 3)]));
    let times =
        [((A, 1), 50), ((B, 2), 10), ((A, 3), 90)].map(|(event, second)| (event, at(second)));
    journal.date("s", &HashMap::from(times));
    assert_eq!(journal.backlog("s"), dated(6, 10, &[]));
    // The server is asked about no event twice, but about one that has become the first of its
    // search.
    journal.acknowledge("s", 1001, None);
    assert_eq!(journal.backlog("s"), dated(5, 10, &[(A, 2)]));
    journal.date("s", &HashMap::from([((A, 2), at(51))]));
    assert_eq!(journal.backlog("s"), dated(5, 10, &[]));
    journal.drop_search(B);
    assert_eq!(journal.backlog("s"), dated(2, 51, &[]));
}

#[test]
fn how_much_waits_is_not_clear_while_nobody_is_known_to_hold_what_was_lost() {
    let mut journal = journal(&["s", "t"]);
    journal.append(A, 1, 1);
    journal.acknowledge("t", 1001, None);
    journal.append(B, 1, 1);
    journal.acknowledge("s", 1002, None);
    // The sink `s` has all events, so nothing is lost for it. For `t` something waits.
    let dropped = journal.dropped();
    journal.lose_search(A);
    journal.lose_search(B);
    assert!(!journal.is_unclear("s") && journal.is_unclear("t"));
    assert_eq!(journal.unclear(), HashSet::from([B]));
    assert_ne!(journal.dropped(), dropped);
    journal.resolve_unclear(|_, row| row == A);
    assert!(journal.is_unclear("t"));
    let dropped = journal.dropped();
    journal.adopt(held(B, 2), 1, 1, &progress(&[("t", 1)]));
    assert!(!journal.is_unclear("t"));
    assert_ne!(journal.dropped(), dropped, "nobody hears of it");
    // Events of a search that was given to another replica in order are that replica's.
    journal.append(B, 2, 1);
    journal.drop_search(B);
    assert!(!journal.is_unclear("t"));
}

#[test]
fn what_was_being_delivered_of_a_lost_search_is_clear_once_it_is_delivered() {
    let mut journal = journal(&["s"]);
    let lose_lent = |journal: &mut Journal, max| {
        let lent = journal.next("s", max);
        journal.lend("s", lent);
        journal.lose_search(A);
        assert!(journal.is_unclear("s"));
    };
    journal.append(A, 1, 2);
    lose_lent(&mut journal, 2);
    let dropped = journal.dropped();
    journal.acknowledge("s", 1001, None);
    assert!(journal.is_unclear("s"));
    assert_eq!(journal.dropped(), dropped);
    journal.acknowledge("s", 1002, None);
    assert!(!journal.is_unclear("s"));
    assert_ne!(journal.dropped(), dropped, "nobody hears of it");
    // More events than were lent may wait.
    journal.append(A, 3, 2);
    lose_lent(&mut journal, 1);
    journal.acknowledge("s", 1003, None);
    assert!(journal.is_unclear("s"));
    // A commit may have been done of which nobody knows. Losing what is known clears nothing up.
    journal.resolve_unclear(|_, row| row == A);
    journal.append(B, 1, 1);
    let lent = journal.next("s", 1);
    journal.lend("s", lent);
    journal.doubt(B, i64::MAX);
    journal.lose_search(B);
    journal.acknowledge("s", 1005, None);
    assert!(journal.is_unclear("s"));
}
