use std::collections::BTreeSet;

use super::{
    look_up::{Answer, Shown},
    verdict::AGREEING_LOOK_UPS,
    *,
};
use crate::opsramp::{ClientInfo, ClientsPage};

fn page(numbers: std::ops::Range<usize>) -> Vec<ClientInfo> {
    numbers
        .map(|number| ClientInfo {
            id: format!("client_{number}"),
            name: format!("Client {number}"),
            activated: true,
        })
        .collect()
}

fn answer(clients: Vec<ClientInfo>) -> Answer {
    Answer {
        clients,
        unreadable: 0,
        more: Ok(0),
        is_cut: false,
    }
}

#[test]
fn a_client_that_two_pages_show_counts_once_and_one_that_is_not_activated_does_not() {
    let mut found = Clients::default();
    let mut renamed_and_off = page(1..3);
    renamed_and_off[0].name = "Another".to_owned();
    renamed_and_off[1].activated = false;
    let partner = "msp_1".into();
    found.take_in(answer(page(0..2)), &partner);
    found.take_in(answer(renamed_and_off), &partner);
    let tenants = found.into_tenants();
    let names: Vec<_> = tenants.keys().map(|tenant| &*tenant.name).collect();
    assert_eq!(names, ["Client 0", "Client 1"]);
}

/// Partners and their known clients.
struct Known {
    partners: Vec<Partner>,
    tenants: Tenants,
    /// Whether the clients are looked up again soon.
    again: bool,
}

impl Known {
    /// Partners with these numbers of clients.
    fn of<const N: usize>(counts: [usize; N]) -> Self {
        let mut end = 0;
        let found = found_of(counts.map(|count| {
            end += count;
            (page(end - count..end), Ok(0))
        }));
        let partner = |number| Partner::new(msp(number), true);
        Self {
            partners: (1..=N).map(partner).collect(),
            tenants: found.into_tenants(),
            again: false,
        }
    }

    /// The numbers of the clients that are polled after a look-up, and how the look-up was judged.
    fn after(&mut self, found: Clients) -> (Vec<usize>, Vec<Verdict>) {
        let decision = decide(&self.tenants, found, &mut self.partners);
        self.tenants = decision.tenants;
        self.again = decision.again;
        let number = |tenant: &Tenant| tenant.id.strip_prefix("client_")?.parse().ok();
        let polled = self.tenants.keys().filter_map(number).collect();
        (polled, decision.verdicts)
    }

    /// The same for one partner, whose answer shows these clients and counts so many more.
    fn after_one(&mut self, shown: Vec<ClientInfo>, more: u64) -> (Vec<usize>, Verdict) {
        let (polled, mut verdicts) = self.after(found_of([(shown, Ok(more))]));
        (polled, verdicts.remove(0))
    }
}

fn msp(number: usize) -> Arc<str> {
    format!("msp_{number}").into()
}

/// What is found if the partners give these answers, in their order.
fn found_of<const N: usize>(
    answers: [(Vec<ClientInfo>, Result<u64, opsramp::Error>); N],
) -> Clients {
    let mut found = Clients::default();
    for (number, (clients, more)) in (1..).zip(answers) {
        let answer = Answer {
            more,
            ..answer(clients)
        };
        found.take_in(answer, &msp(number));
    }
    found
}

fn gone() -> opsramp::Error {
    opsramp::Error::Http {
        endpoint: "clients",
        status: 410,
        excerpt: String::new(),
    }
}

#[test]
fn who_is_shown_is_polled_and_who_is_not_is_polled_no_longer() {
    let (polled, verdict) = Known::of([3]).after_one(page(1..5), 0);
    assert_eq!(polled, [1, 2, 3, 4]);
    assert!(matches!(verdict.kind, Kind::Sound), "{verdict:?}");
    assert_eq!(verdict.missing, 1);
}

#[test]
fn a_look_up_that_lacks_most_of_those_known_needs_others_that_agree() {
    for (shown, is_doubted) in [(0, true), (1, true), (2, false), (3, false)] {
        let mut known = Known::of([4]);
        for nth in 1..AGREEING_LOOK_UPS {
            let (polled, verdict) = known.after_one(page(0..shown), 0);
            let is_doubt = matches!(verdict.kind, Kind::LacksMost);
            assert_eq!(is_doubt, is_doubted, "{shown} of 4, look-up {nth}");
            assert_eq!(known.again, is_doubted, "{shown} of 4, look-up {nth}");
            let expected = if is_doubted { 4 } else { shown };
            assert_eq!(polled.len(), expected, "{shown} of 4, look-up {nth}");
        }
        for _ in 0..2 {
            let (polled, verdict) = known.after_one(page(0..shown), 0);
            assert!(matches!(verdict.kind, Kind::Sound), "{verdict:?}");
            assert_eq!(polled.len(), shown);
        }
    }
    let (_, verdict) = Known::of([0]).after_one(Vec::new(), 0);
    assert!(!verdict.is_provisional());
}

#[test]
fn a_partner_that_is_left_with_nobody_is_looked_up_again_soon() {
    let mut known = Known::of([0]);
    for (shown, again) in [(0, true), (0, true), (2, false), (1, false)] {
        known.after_one(page(0..shown), 0);
        assert_eq!(known.again, again, "{shown} are shown");
    }
    let mut off = page(0..1);
    off[0].activated = false;
    known.after_one(off, 0);
    assert!(known.tenants.is_empty() && known.again);
    // The other partner has clients.
    let mut known = Known::of([2, 0]);
    known.after(found_of([(page(0..2), Ok(0)), (Vec::new(), Ok(0))]));
    assert!(known.again);
    known.after(found_of([(page(0..2), Ok(0)), (page(2..3), Ok(0))]));
    assert!(!known.again);
    // All its clients were shown for another partner, which was asked first.
    let mut known = Known::of([2, 0]);
    known.after(found_of([(page(0..2), Ok(0)), (page(0..2), Ok(0))]));
    assert!(!known.again);
}

#[test]
fn who_is_shown_as_deactivated_or_by_another_name_is_not_missing() {
    let mut shown = page(0..3);
    shown[0].activated = false;
    shown[1].name = "Another".to_owned();
    for more in [0, 1] {
        let mut known = Known::of([4]);
        let (_, verdict) = known.after_one(shown.clone(), more);
        assert_eq!(verdict.missing, 1);
        assert_eq!(verdict.is_provisional(), more > 0);
        let names: Vec<_> = known.tenants.keys().map(|it| &*it.name).collect();
        let mut expected = vec!["Another", "Client 2"];
        expected.extend((more > 0).then_some("Client 3"));
        assert_eq!(names, expected);
    }
}

#[test]
fn a_partner_that_fails_keeps_its_clients_and_has_no_say_in_those_of_others() {
    let mut known = Known::of([4, 2]);
    let (polled, verdicts) = known.after(found_of([
        (page(1..4).into_iter().chain(page(10..12)).collect(), Ok(0)),
        (Vec::new(), Err(gone())),
    ]));
    assert_eq!(polled, [1, 10, 11, 2, 3, 4, 5]);
    assert!(matches!(verdicts[0].kind, Kind::Sound), "{verdicts:?}");
    assert!(matches!(verdicts[1].kind, Kind::Failed(_)), "{verdicts:?}");
    // Clients shown before the failure count; that others were not shown does not.
    let mut off = page(4..5);
    off[0].activated = false;
    off.extend(page(12..13));
    let shown = page(1..3).into_iter().chain(page(10..11)).collect();
    let (polled, _) = known.after(found_of([(shown, Ok(0)), (off, Err(gone()))]));
    assert_eq!(polled, [1, 10, 12, 2, 5]);
}

#[test]
fn a_surplus_is_believed_once_look_ups_in_a_row_have_lacked_the_same() {
    let mut known = Known::of([4]);
    for nth in 1..AGREEING_LOOK_UPS {
        let (polled, verdict) = known.after_one(page(0..3), 1);
        assert_eq!(polled.len(), 4, "look-up {nth}");
        assert!(matches!(verdict.kind, Kind::Short(1)), "{verdict:?}");
    }
    let (polled, verdict) = known.after_one(page(0..3), 1);
    assert_eq!(polled, [0, 1, 2]);
    assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
    // The surplus stays believed, also when new clients are shown.
    let (polled, verdict) = known.after_one(page(0..4), 1);
    assert_eq!(polled, [0, 1, 2, 3]);
    assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
    // Another missing client needs as many look-ups again.
    for _ in 1..AGREEING_LOOK_UPS {
        assert_eq!(known.after_one(page(1..4), 1).0, [0, 1, 2, 3]);
    }
    assert_eq!(known.after_one(page(1..4), 1).0, [1, 2, 3]);
    // So do most of the clients.
    for _ in 1..AGREEING_LOOK_UPS {
        assert_eq!(known.after_one(Vec::new(), 1).0, [1, 2, 3]);
    }
    let (polled, verdict) = known.after_one(Vec::new(), 1);
    assert!(polled.is_empty(), "{polled:?}");
    assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
}

#[test]
fn look_ups_that_differ_let_nobody_go_however_many_are_short() {
    for other in [
        // Another surplus, another missing client, no surplus in between.
        |known: &mut Known| known.after_one(page(0..3), 2),
        |known: &mut Known| known.after_one(page(1..4), 1),
        |known: &mut Known| known.after_one(page(0..4), 0),
        // Most clients are missing for a moment.
        |known: &mut Known| known.after_one(Vec::new(), 0),
    ] {
        let mut known = Known::of([4]);
        for _ in 0..3 {
            for _ in 1..AGREEING_LOOK_UPS {
                assert_eq!(known.after_one(page(0..3), 1).0.len(), 4);
            }
            assert_eq!(other(&mut known).0.len(), 4);
        }
    }
}

#[test]
fn that_a_surplus_is_believed_is_told_once_an_hour() {
    let mut doubts = Doubts::default();
    let mut now = Instant::now();
    let mut told = 0;
    for _ in 0..24 * 12 {
        doubts.judge(1, BTreeSet::new(), 4);
        told += u32::from(doubts.is_to_be_told(now));
        now += Duration::from_secs(5 * 60);
    }
    assert_eq!(told, 24);
}

#[test]
fn those_that_are_polled_go_before_new_ones_where_there_is_no_room_for_all() {
    let mut known = Known::of([MAX_CLIENTS - 10, 0]);
    let found = found_of([
        (Vec::new(), Err(gone())),
        (page(MAX_CLIENTS..MAX_CLIENTS + 100), Ok(0)),
    ]);
    let decision = decide(&known.tenants, found, &mut known.partners);
    assert_eq!(decision.left_out, 90);
    assert_eq!(decision.tenants.len(), MAX_CLIENTS);
    let mut stay = known.tenants.keys();
    assert!(stay.all(|tenant| decision.tenants.contains_key(tenant)));
}

#[test]
fn tenants_are_told_apart_whatever_names_the_api_gives_them() {
    let tenant = |(id, name): (&str, &str)| Tenant {
        id: id.into(),
        name: name.into(),
    };
    let tenants = [
        ("client_1", "one"),
        ("client_2", "same"),
        ("client_3", "same"),
        ("client_4", "client_2"),
        ("client_5", "client_5"),
        ("client_6", "client_1"),
        ("client_7", "client_1 (client_6)"),
    ]
    .map(tenant);
    let called = told_apart(&tenants.iter().collect::<Vec<_>>());
    let names: Vec<_> = called.iter().map(|tenant| &*tenant.name).collect();
    assert_eq!(
        names,
        [
            "one",
            "client_2",
            "client_3",
            "client_2 (client_4)",
            "client_5",
            "client_6",
            "client_1 (client_6)"
        ]
    );
}

#[test]
fn there_is_room_for_so_many_clients_and_for_seeing_them_again() {
    let mut found = Clients::default();
    let partner = "msp_1".into();
    found.take_in(answer(page(0..MAX_CLIENTS)), &partner);
    found.take_in(answer(page(MAX_CLIENTS - 100..MAX_CLIENTS)), &partner);
    assert_eq!(found.left_out, 0);
    found.take_in(answer(page(MAX_CLIENTS - 1..MAX_CLIENTS + 1)), &partner);
    assert_eq!(found.left_out, 1);
    assert_eq!(found.into_tenants().len(), MAX_CLIENTS);
}

#[test]
fn a_partner_of_too_many_clients_takes_no_place_of_anothers_that_are_known() {
    let mut known = Known::of([MAX_CLIENTS - 10, 10]);
    let grown = 2 * MAX_CLIENTS;
    let of_first = page(0..MAX_CLIENTS - 10)
        .into_iter()
        .chain(page(MAX_CLIENTS..grown));
    let mut of_second = page(MAX_CLIENTS - 10..MAX_CLIENTS);
    // The same client by another name.
    of_second[0].name = "Another".to_owned();
    let of_third = page(grown..2 * grown);
    let mut found = Clients {
        known: known.tenants.keys().map(|it| Arc::clone(&it.id)).collect(),
        ..Clients::default()
    };
    found.take_in(answer(of_third), &msp(3));
    found.take_in(answer(of_first.collect()), &msp(1));
    found.take_in(answer(of_second), &msp(2));
    // The number of clients kept until the decision is bounded.
    assert_eq!(found.activated.len(), 2 * MAX_CLIENTS);
    known.partners.push(Partner::new(msp(3), true));
    let decision = decide(&known.tenants, found, &mut known.partners);
    assert_eq!(decision.left_out, grown + MAX_CLIENTS);
    assert!(decision.verdicts.iter().all(|it| it.missing == 0));
    let ids =
        |tenants: &Tenants| -> Vec<_> { tenants.keys().map(|it| Arc::clone(&it.id)).collect() };
    assert_eq!(ids(&decision.tenants), ids(&known.tenants));
}

/// The pages of a list that shrinks while it is read, because a client is deleted. The next client
/// then slips over the border between two pages.
#[test]
fn a_client_that_slips_to_a_page_that_was_read_counts_as_not_shown() {
    let pages = |pages: [(std::ops::Range<usize>, u64); 3]| {
        let mut shown = Shown::default();
        for (number, (clients, total)) in (1..).zip(pages) {
            let clients = page(clients);
            let next = shown.take_in(ClientsPage {
                shown: clients.len(),
                clients,
                total: Some(total),
                next_page: (number < 3).then_some(number + 1),
            });
            assert_eq!(next, (number < 3).then_some(number + 1));
        }
        let answer = shown.into_answer();
        (answer.clients.len(), answer.more.unwrap())
    };
    assert_eq!(
        pages([(0..100, 250), (100..200, 250), (200..250, 250)]),
        (250, 0)
    );
    assert_eq!(
        pages([(0..100, 250), (101..201, 249), (201..250, 249)]),
        (249, 1)
    );
    assert_eq!(
        pages([(0..100, 250), (100..200, 250), (201..250, 249)]),
        (249, 1)
    );
    // A new client in front moves others to the next page, where they are shown twice. The new one
    // is not shown.
    assert_eq!(
        pages([(0..100, 250), (99..199, 251), (199..250, 251)]),
        (250, 1)
    );
}

/// A page that comes again shows nothing new, whatever of it cannot be read.
#[test]
fn what_cannot_be_read_counts_once_if_its_page_comes_again() {
    let mut shown = Shown::default();
    let mut take_in = |number: u64, clients: Vec<ClientInfo>| {
        shown.take_in(ClientsPage {
            shown: clients.len() + 1,
            clients,
            total: Some(5),
            next_page: Some(number + 1),
        })
    };
    assert_eq!(take_in(1, page(0..2)), Some(2));
    assert_eq!(take_in(2, Vec::new()), Some(3));
    assert_eq!(take_in(3, page(0..2)), Some(4));
    // Some of the page is new.
    assert_eq!(take_in(4, page(1..3)), Some(5));
    assert_eq!(take_in(5, page(1..3)), None);
    let answer = shown.into_answer();
    assert_eq!((answer.clients.len(), answer.unreadable), (3, 3));
    assert!(!answer.is_cut);
}

#[test]
fn a_list_that_repeats_its_last_page_and_counts_too_many_ends() {
    let mut shown = Shown::default();
    let mut next = Some(1);
    let mut pages = 0;
    while let Some(number) = next {
        next = shown.take_in(ClientsPage {
            shown: 2,
            clients: page(0..2),
            total: Some(3),
            next_page: Some(number + 1),
        });
        pages += 1;
    }
    assert_eq!(pages, 52);
    let answer = shown.into_answer();
    assert!(!answer.is_cut);
    assert_eq!(answer.more.unwrap(), 1);
}
