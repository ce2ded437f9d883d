use super::*;

const A: i64 = 7;
const B: i64 = 9;

fn journal(sinks: &[&str]) -> Journal {
    let mut journal = Journal::new(100, 1000);
    let names: Vec<String> = sinks.iter().map(ToString::to_string).collect();
    journal.set_sinks(&names, &names);
    journal
}

fn range(place: i64, row: i64, first: i64, count: i64) -> Range {
    Range {
        place,
        row,
        first,
        count,
        inherited: false,
    }
}

fn inherited(place: i64, row: i64, first: i64, count: i64) -> Range {
    Range {
        inherited: true,
        ..range(place, row, first, count)
    }
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

    journal.acknowledge("s", 1002, None);
    assert_eq!(journal.next("s", 4), [range(1003, A, 3, 3), all[1]]);
    assert_eq!(journal.backlog("s"), Some((5, Some((A, 3)))));
    journal.acknowledge("s", 1006, None);
    let mut unsaved = journal.unsaved("s");
    unsaved.positions.sort_unstable();
    assert_eq!(unsaved.positions, [(A, 5), (B, 1)]);
    journal.saved("s", &unsaved);
    assert_eq!(journal.unsaved("s"), Unsaved::default());
}

#[test]
fn a_search_is_taken_up_where_each_sink_has_come_to() {
    let mut journal = journal(&["fast", "slow"]);
    journal.adopt(A, 10, &progress(&[("fast", 9), ("slow", 4)]));
    assert_eq!(journal.next("slow", 99), [inherited(1001, A, 5, 6)]);
    // The same event has the same place for both.
    assert_eq!(journal.next("fast", 99), [inherited(1006, A, 10, 1)]);
    journal.append(A, 11, 1);
    let both = [inherited(1006, A, 10, 1), range(1007, A, 11, 1)];
    assert_eq!(journal.next("fast", 99), both);
    assert_eq!(journal.end(), 1007);
}

#[test]
fn what_was_delivered_while_the_search_was_lost_is_not_delivered_again() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    let loan = journal.lend("s", journal.next("s", 2));
    journal.drop_search(A);
    assert_eq!(journal.backlog("s"), Some((0, None)));
    assert!(journal.is_lent(A) && !journal.waits(A));
    journal.acknowledge("s", 1002, None);
    journal.give_back("s", loan);
    assert!(!journal.is_lent(A));
    // The server has not heard of it, and the search comes back.
    journal.adopt(A, 3, &progress(&[("s", 0)]));
    assert_eq!(journal.next("s", 99), [inherited(1004, A, 3, 1)]);
    assert_eq!(journal.unsaved("s").positions, [(A, 2)]);
    // Others have come further since.
    journal.adopt(A, 9, &progress(&[("s", 8)]));
    assert_eq!(journal.next("s", 99), [inherited(1005, A, 9, 1)]);
    assert_eq!(journal.unsaved("s").positions, []);
}

#[test]
fn what_waits_for_others_sinks_takes_up_room() {
    let mut journal = Journal::new(4, 0);
    let name = |name: &str| name.to_owned();
    journal.set_sinks(&[name("own")], &[name("own"), name("others")]);
    assert_eq!(journal.own_sinks(), ["own".into()]);
    assert!(journal.reserve(3));
    assert!(!journal.reserve(2));
    journal.append(A, 1, 3);
    journal.unreserve(3);
    journal.acknowledge("own", 3, None);
    assert!(!journal.reserve(2));
    journal.set_sinks(&[name("own")], &[name("own")]);
    assert!(journal.reserve(4));
    assert!(!journal.reserve(1));
    // Without any sink nothing is kept.
    journal.set_sinks(&[], &[]);
    assert!(!journal.keeps_events() && journal.reserve(99));
}

#[test]
fn an_old_place_changes_nothing_and_a_mark_is_told_once() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.acknowledge("s", 1002, Some(b"new".to_vec()));
    journal.acknowledge("s", 1001, Some(b"old".to_vec()));
    let unsaved = journal.unsaved("s");
    assert_eq!(unsaved.mark, Some(Some(b"new".to_vec())));
    journal.acknowledge("s", 1002, None);
    // What was told is not what is to be told now.
    journal.saved("s", &unsaved);
    assert_eq!(journal.unsaved("s").mark, Some(None));
    // Nothing can have been delivered beyond the end.
    journal.acknowledge("s", i64::MAX, None);
    journal.append(A, 4, 1);
    assert_eq!(journal.next("s", 99), [range(1004, A, 4, 1)]);
}

#[test]
fn what_is_being_delivered_while_the_search_is_taken_up_again_counts() {
    let mut journal = journal(&["s"]);
    journal.append(A, 1, 3);
    journal.append(B, 1, 1);
    let loan = journal.lend("s", journal.next("s", 2));
    journal.adopt(A, 3, &progress(&[("s", 0)]));
    journal.give_back("s", loan + 1);
    assert!(journal.is_lent(A));
    journal.acknowledge("s", 1002, None);
    let left = [range(1004, B, 1, 1), inherited(1007, A, 3, 1)];
    assert_eq!(journal.next("s", 99), left);
    assert_eq!(journal.backlog("s"), Some((2, Some((B, 1)))));
    journal.give_back("s", loan);
    assert!(!journal.is_lent(A));
}
