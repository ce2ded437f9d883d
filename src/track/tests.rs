use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn tracker() -> Tracker {
    Tracker::new(Arc::new([GroupLabel::State]), 3)
}

fn sighting<'a>(id: &'a str, state: &'a str, digest: u64) -> Sighting<'a> {
    Sighting {
        id,
        digest,
        state,
        status: "New",
    }
}

fn known(sighting: Sighting<'_>, ordinal: u32) -> KnownAlert<'_> {
    KnownAlert {
        sighting,
        ordinal,
        created_at: Some(created_at(sighting.id, sighting.digest)),
        group: vec![sighting.state.into()],
    }
}

/// A date that differs from alert to alert, and between the forms of one alert.
fn created_at(id: &str, digest: u64) -> i64 {
    (id.len() as u64 * 31 + id.bytes().map(u64::from).sum::<u64>() * 7 + digest * 50) as i64 % 90
}

fn adopt_all(tracker: &mut Tracker, page: &[Sighting<'_>]) -> Delta {
    let delta = tracker.compare(page, |_| false);
    let places = delta.opened.iter().copied();
    let places = places.chain(
        delta
            .changed
            .iter()
            .chain(&delta.refreshed)
            .map(|(place, _)| *place),
    );
    tracker.adopt(places.map(|place| known(page[place], 1)).collect(), page);
    delta
}

/// The counts of the groups by their only label.
fn counts(tracker: &Tracker) -> Vec<(String, u64)> {
    let groups = tracker.groups().into_iter();
    groups
        .map(|(values, n)| (values[0].to_string(), n))
        .collect()
}

fn pairs(list: &[(&str, u64)]) -> Vec<(String, u64)> {
    list.iter()
        .map(|(value, n)| ((*value).to_owned(), *n))
        .collect()
}

#[test]
fn a_known_alert_costs_less_than_fifty_bytes_in_place() {
    assert!(size_of::<Entry>() <= 48, "{}", size_of::<Entry>());
}

#[test]
fn an_alert_opens_changes_and_is_refreshed() {
    let mut tracker = tracker();
    let delta = adopt_all(
        &mut tracker,
        &[sighting("1", "Warning", 1), sighting("2", "Ok", 2)],
    );
    assert_eq!(delta.opened, [0, 1]);
    assert!(!delta.tail_unchanged);
    // Another case of a word is no change, and only changes of state and status are events.
    let delta = adopt_all(
        &mut tracker,
        &[sighting("1", "WARNING", 9), sighting("2", "Ok", 2)],
    );
    assert_eq!(
        (
            delta.opened.len(),
            delta.changed.len(),
            delta.refreshed.len()
        ),
        (0, 0, 1)
    );
    assert!(delta.tail_unchanged);
    let delta = adopt_all(&mut tracker, &[sighting("2", "Critical", 3)]);
    assert_eq!(delta.changed.len(), 1);
    assert_eq!(&*delta.changed[0].1.state, "Ok");
    assert!(!delta.tail_unchanged);
    assert_eq!(adopt_all(&mut tracker, &[]), Delta::default());
}

#[test]
fn a_page_that_shows_an_alert_twice_opens_it_once() {
    let page = [
        sighting("1", "Ok", 1),
        sighting("2", "Ok", 1),
        sighting("1", "Critical", 2),
    ];
    assert_eq!(tracker().compare(&page, |_| false).opened, [0, 1]);
}

#[test]
fn of_two_forms_on_a_page_the_first_counts_whichever_was_known() {
    let mut tracker = tracker();
    let page = [sighting("1", "Critical", 2), sighting("1", "Ok", 1)];
    adopt_all(&mut tracker, &page[1..]);
    assert_eq!(adopt_all(&mut tracker, &page).changed.len(), 1);
    let delta = adopt_all(&mut tracker, &page);
    assert_eq!((delta.changed.len(), delta.refreshed.len()), (0, 0));
}

#[test]
fn ids_that_look_alike_are_different_alerts() {
    let mut tracker = tracker();
    let ids = [
        "7",
        "07",
        "+7",
        "7 ",
        "0",
        "00",
        "18446744073709551616",
        "",
        "ß",
    ];
    let page: Vec<_> = ids.iter().map(|id| sighting(id, "Ok", 1)).collect();
    assert_eq!(adopt_all(&mut tracker, &page).opened.len(), ids.len());
    assert_eq!(tracker.alerts.len(), ids.len());
    tracker.begin_reading();
    let missing: BTreeSet<_> = tracker.missing().into_iter().map(String::from).collect();
    assert_eq!(missing, ids.iter().map(ToString::to_string).collect());
}

#[test]
fn ids_that_differ_are_found_without_looking_at_others() {
    let seed = tracker().seed;
    let hashes: BTreeSet<u64> = (0..100)
        .flat_map(|number| [number.to_string(), format!("alert-{number}")])
        .map(|id| Id::new(&id).hash(seed))
        .collect();
    assert_eq!(hashes.len(), 200);
}

/// Ids may be chosen so that their hashes are equal in the bits that the table looks at first, but
/// only for a seed that is known.
#[test]
fn ids_whose_hashes_collide_with_one_seed_do_not_with_another() {
    let place = |id: &Id, seed| id.hash(seed) % 4096;
    let ids = (0..1 << 18).map(Id::Number);
    let colliding: Vec<_> = ids.filter(|id| place(id, 0) == 0).collect();
    assert!(colliding.len() > 32, "{}", colliding.len());
    let seed = tracker().seed;
    let places: BTreeSet<_> = colliding.iter().map(|id| place(id, seed)).collect();
    assert!(places.len() > colliding.len() / 2, "{}", places.len());
    assert_ne!(seed, tracker().seed);
}

#[test]
fn what_a_store_knew_is_known_and_yet_to_be_seen() {
    let mut tracker = tracker();
    tracker.load(known(sighting("1", "Critical", 1), 4));
    let standing = tracker.known_state("1").unwrap();
    assert_eq!(standing.ordinal, 4);
    assert_eq!((&*standing.state, &*standing.status), ("Critical", "New"));
    assert_eq!(tracker.known_state("2"), None);
    assert_eq!(
        (
            tracker.alerts.len(),
            tracker.open_count(),
            tracker.seen_count()
        ),
        (1, 1, 0)
    );
    assert_eq!(tracker.missing(), [Box::from("1")]);
    let delta = adopt_all(&mut tracker, &[sighting("1", "Critical", 1)]);
    assert!(delta.opened.is_empty() && delta.tail_unchanged);
    assert!(tracker.missing().is_empty());
}

#[test]
fn an_alert_on_its_way_out_comes_back_when_it_is_seen() {
    let mut tracker = tracker();
    let page = [sighting("1", "Ok", 1), sighting("2", "Ok", 1)];
    adopt_all(&mut tracker, &page);
    tracker.begin_reading();
    adopt_all(&mut tracker, &page[..1]);
    assert_eq!(tracker.missing(), [Box::from("2")]);
    tracker.mark_leaving("2");
    tracker.mark_leaving("2");
    assert_eq!((tracker.alerts.len(), tracker.open_count()), (2, 1));
    assert!(tracker.missing().is_empty());
    assert!(tracker.leaving("2").is_some() && tracker.leaving("1").is_none());
    adopt_all(&mut tracker, &page[1..]);
    assert_eq!(tracker.open_count(), 2);
    assert_eq!(tracker.leaving("2"), None);
}

#[test]
fn groups_beyond_the_bound_are_counted_as_other_and_make_room_again() {
    let mut tracker = tracker();
    let page: Vec<_> = [
        ("1", "a"),
        ("2", "b"),
        ("3", "c"),
        ("4", "d"),
        ("5", ""),
        ("6", "a"),
    ]
    .into_iter()
    .map(|(id, state)| sighting(id, state, 1))
    .collect();
    adopt_all(&mut tracker, &page);
    assert_eq!(
        counts(&tracker),
        pairs(&[("a", 2), ("b", 1), ("c", 1), ("other", 2)])
    );
    tracker.forget("2");
    tracker.forget("4");
    adopt_all(
        &mut tracker,
        &[sighting("7", "e", 1), sighting("8", "other", 1)],
    );
    assert_eq!(
        counts(&tracker),
        pairs(&[("a", 2), ("c", 1), ("e", 1), ("other", 2)])
    );
}

#[test]
fn an_alert_that_changes_its_group_leaves_its_place_to_the_new_group() {
    let mut tracker = tracker();
    let page = [("1", "a"), ("2", "b"), ("3", "c")].map(|(id, state)| sighting(id, state, 1));
    adopt_all(&mut tracker, &page);
    adopt_all(&mut tracker, &[sighting("1", "d", 2)]);
    assert_eq!(counts(&tracker), pairs(&[("b", 1), ("c", 1), ("d", 1)]));
    tracker.mark_leaving("2");
    adopt_all(&mut tracker, &[sighting("3", "e", 2)]);
    assert_eq!(counts(&tracker), pairs(&[("d", 1), ("e", 1)]));
}

#[test]
fn alerts_without_room_move_to_their_own_groups_when_they_are_seen_again() {
    let mut tracker = tracker();
    let states = ["a", "b", "c", "d", "d", "e", "d"];
    let ids = ["1", "2", "3", "4", "5", "6", "7"];
    let page: Vec<_> = ids
        .into_iter()
        .zip(states)
        .map(|(id, state)| sighting(id, state, 1))
        .collect();
    let regroup = |tracker: &mut Tracker, page: &[Sighting<'_>]| {
        tracker.regroup(page, |place, known| {
            assert_eq!(*known.state, *page[place].state);
            Some(vec![page[place].state.to_owned().into()])
        });
        counts(tracker)
    };
    adopt_all(&mut tracker, &page);
    let full = pairs(&[("a", 1), ("b", 1), ("c", 1), ("other", 4)]);
    assert_eq!(regroup(&mut tracker, &page), full);
    tracker.forget("1");
    tracker.mark_leaving("5");
    tracker.regroup(&page, |_, _| None);
    let shown = pairs(&[("b", 1), ("c", 1), ("other", 3)]);
    assert_eq!(counts(&tracker), shown, "the page does not tell the values");
    assert_eq!(regroup(&mut tracker, &[sighting("4", "d", 2)]), shown);
    let moved = pairs(&[("b", 1), ("c", 1), ("d", 1), ("other", 2)]);
    assert_eq!(regroup(&mut tracker, &page[..5]), moved);
    let all = pairs(&[("b", 1), ("c", 1), ("d", 2), ("other", 1)]);
    assert_eq!(regroup(&mut tracker, &page), all);
    adopt_all(&mut tracker, &page[4..5]);
    let back = pairs(&[("b", 1), ("c", 1), ("d", 3), ("other", 1)]);
    assert_eq!(counts(&tracker), back);
}

#[test]
fn a_group_that_is_called_other_is_counted_together_with_those_without_room() {
    let count = |page: &[Sighting<'_>]| {
        let mut tracker = tracker();
        adopt_all(&mut tracker, page);
        counts(&tracker)
    };
    let page = [
        sighting("1", OTHER, 1),
        sighting("2", OTHER, 1),
        sighting("3", "b", 1),
        sighting("4", "c", 1),
        sighting("5", "d", 1),
        sighting("6", "e", 1),
        sighting("7", "f", 1),
    ];
    assert_eq!(count(&page), pairs(&[("b", 1), ("c", 1), (OTHER, 5)]));
    assert_eq!(count(&page[2..4]), pairs(&[("b", 1), ("c", 1)]));
}

#[test]
fn labels_are_called_as_the_configuration_has_them() {
    let names: Vec<_> = GroupLabel::ALL.iter().map(|label| label.as_str()).collect();
    let expected = "state status priority source alert_type event_type resource_type client";
    assert_eq!(names.join(" "), expected);
}

#[test]
fn a_server_that_invents_words_is_bounded() {
    let mut tracker = tracker();
    for number in 0..2000 {
        let (id, word) = (number.to_string(), format!("word {number}"));
        adopt_all(&mut tracker, &[sighting(&id, &word, 1)]);
    }
    assert_eq!(tracker.words.0.len(), MAX_WORDS + 1);
    // For a word for which there was no room, nobody can tell whether it has changed.
    let delta = tracker.compare(&[sighting("1999", "x", 2)], |_| false);
    assert_eq!(&*delta.refreshed[0].1.state, OTHER);
    let delta = tracker.compare(&[sighting("7", "x", 2)], |_| false);
    assert_eq!(&*delta.changed[0].1.state, "word 7");
}

#[test]
fn a_status_that_the_store_did_not_know_has_not_changed() {
    let mut tracker = tracker();
    let stored = KnownAlert {
        sighting: Sighting {
            status: "",
            ..sighting("1", "Ok", 1)
        },
        ordinal: 3,
        created_at: None,
        group: vec!["Ok".into()],
    };
    tracker.load(stored);
    let delta = tracker.compare(&[sighting("1", "Ok", 2)], |_| false);
    let before = KnownState {
        ordinal: 3,
        state: "Ok".into(),
        status: "".into(),
    };
    assert_eq!(delta.refreshed, [(0, before.clone())]);
    let delta = tracker.compare(&[sighting("1", "Critical", 2)], |_| false);
    assert_eq!(delta.changed, [(0, before)]);
    // The status is known from then on.
    adopt_all(&mut tracker, &[sighting("1", "Ok", 2)]);
    let other = Sighting {
        status: "Other",
        ..sighting("1", "Ok", 3)
    };
    let delta = tracker.compare(&[other], |_| false);
    assert_eq!(delta.changed.len(), 1);
}

/// Some of a server's backends may leave members out.
#[test]
fn a_word_that_a_page_lacks_has_not_changed_and_stays_known() {
    let mut tracker = tracker();
    let lacking = Sighting {
        id: "1",
        digest: 2,
        state: "",
        status: "",
    };
    adopt_all(&mut tracker, &[sighting("1", "Ok", 1)]);
    for page in [lacking, sighting("1", "Ok", 1), lacking] {
        let delta = adopt_all(&mut tracker, &[page]);
        assert_eq!((delta.changed.len(), delta.refreshed.len()), (0, 1));
        let known = tracker.known_state("1").unwrap();
        assert_eq!((&*known.state, &*known.status), ("Ok", "New"));
    }
    let delta = adopt_all(&mut tracker, &[sighting("1", "Critical", 3)]);
    assert_eq!(delta.changed.len(), 1);
    // Of an alert that opened without a word, the first one is no change.
    adopt_all(&mut tracker, &[Sighting { id: "2", ..lacking }]);
    let delta = adopt_all(&mut tracker, &[sighting("2", "Ok", 1)]);
    assert_eq!((delta.changed.len(), delta.refreshed.len()), (0, 1));
    let delta = adopt_all(&mut tracker, &[sighting("2", "Warning", 2)]);
    assert_eq!(delta.changed.len(), 1);
}

#[test]
fn what_other_answers_have_overtaken_changes_nothing() {
    let mut tracker = tracker();
    adopt_all(&mut tracker, &[sighting("1", "Ok", 1)]);
    let page = [sighting("1", "Critical", 2), sighting("2", "Ok", 1)];
    assert_eq!(tracker.compare(&page, |_| true), Delta::default());
    assert_eq!(tracker.compare(&page, |id| id == "1").opened, [1]);
}

#[test]
fn alerts_on_their_way_out_do_not_show_in_their_groups() {
    let mut tracker = tracker();
    let page = [
        sighting("1", "Ok", 1),
        sighting("2", "Ok", 1),
        sighting("3", "Critical", 1),
    ];
    adopt_all(&mut tracker, &page);
    tracker.mark_leaving("1");
    tracker.mark_leaving("3");
    assert_eq!(counts(&tracker), pairs(&[("Ok", 1)]));
    adopt_all(&mut tracker, &[sighting("1", "Critical", 2)]);
    assert_eq!(counts(&tracker), pairs(&[("Critical", 1), ("Ok", 1)]));
    tracker.forget("3");
    tracker.forget("1");
    assert_eq!(counts(&tracker), pairs(&[("Ok", 1)]));
}

#[derive(Clone, Debug)]
enum Step {
    Page(Vec<(u8, u8)>),
    BeginReading,
    Leaving(u8),
    Forget(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec((0u8..20, 0u8..3), 0..8).prop_map(Step::Page),
        1 => Just(Step::BeginReading),
        1 => (0u8..20).prop_map(Step::Leaving),
        2 => (0u8..20).prop_map(Step::Forget),
    ]
}

proptest! {
    /// The compact tables give the same results as plain ones.
    #[test]
    fn the_tracker_agrees_with_a_plain_model(steps in proptest::collection::vec(step(), 0..60)) {
        let mut tracker = Tracker::new(Arc::new([GroupLabel::State]), 2);
        let mut model: BTreeMap<String, u8> = BTreeMap::new();
        let (mut seen, mut leaving) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            match step {
                Step::Page(page) => {
                    let names: Vec<(String, String)> =
                        page.iter().map(|(id, state)| (id.to_string(), state.to_string())).collect();
                    let page: Vec<_> = page
                        .iter()
                        .zip(&names)
                        .map(|((_, state), (id, word))| sighting(id, word, u64::from(*state)))
                        .collect();
                    let delta = adopt_all(&mut tracker, &page);
                    let mut first = BTreeSet::new();
                    let mut opened = Vec::new();
                    for (place, sighting) in page.iter().enumerate() {
                        let state: u8 = sighting.state.parse().unwrap();
                        // The first form on the page counts.
                        if first.insert(sighting.id.to_owned())
                            && model.insert(sighting.id.to_owned(), state).is_none()
                        {
                            opened.push(place);
                        }
                        seen.insert(sighting.id.to_owned());
                        leaving.remove(sighting.id);
                    }
                    prop_assert_eq!(delta.opened, opened);
                }
                Step::BeginReading => { tracker.begin_reading(); seen.clear(); }
                Step::Leaving(id) => {
                    let id = id.to_string();
                    tracker.mark_leaving(&id);
                    if model.contains_key(&id) { seen.remove(&id); leaving.insert(id); }
                }
                Step::Forget(id) => {
                    let id = id.to_string();
                    tracker.forget(&id);
                    model.remove(&id); seen.remove(&id); leaving.remove(&id);
                }
            }
            prop_assert_eq!(tracker.alerts.len(), model.len());
            prop_assert_eq!(tracker.open_count(), model.len() - leaving.len());
            prop_assert_eq!(tracker.seen_count(), seen.len());
            let missing: BTreeSet<String> = tracker.missing().into_iter().map(String::from).collect();
            let expected: BTreeSet<String> = model
                .keys()
                .filter(|id| !seen.contains(*id) && !leaving.contains(*id))
                .cloned()
                .collect();
            prop_assert_eq!(missing, expected);
            prop_assert_eq!(tracker.groups().iter().map(|(_, n)| *n).sum::<u64>(), tracker.open_count() as u64);
            let dates = model.iter().map(|(id, state)| created_at(id, u64::from(*state)));
            prop_assert_eq!(tracker.oldest_created_at(), dates.min());
        }
    }
}
