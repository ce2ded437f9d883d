//! Tests of the world.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::simulator::{
    Action, Allowance, ChangeKind, EventType, Fault, Oversized, Page, SearchParams, Spec,
    UnknownKey,
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn world() -> World {
    World::new(Options::default(), at(0))
}

fn change(world: &mut World, change: impl FnOnce(&mut Options)) {
    let mut options = world.options().clone();
    change(&mut options);
    world.set_options(options, at(0));
}

/// Opens alerts of the tenant.
fn open(world: &mut World, count: usize, second: i64) -> Vec<AlertId> {
    let opened = world.open_many("client_1", count, &Spec::default(), at(second));
    opened.unwrap()
}

/// Creates a world with three open alerts and a changed option.
fn three_alerts(option: impl FnOnce(&mut Options)) -> World {
    let mut world = world();
    open(&mut world, 3, 0);
    change(&mut world, option);
    world
}

fn params(text: &str) -> SearchParams {
    let pairs: Vec<(String, String)> = text
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    SearchParams::parse(&pairs, &Options::default()).unwrap()
}

fn search(world: &mut World, text: &str) -> Page {
    world.search("client_1", &params(text), at(1000)).unwrap()
}

fn json(page: &Page) -> Value {
    serde_json::from_slice(&page.to_json(at(1000))).unwrap()
}

#[test]
fn an_empty_result_has_exactly_the_documented_members() {
    let page = search(&mut world(), "queryString=actions:OPEN");
    let expected = serde_json::json!({
        "results": [], "totalResults": 0, "pageNo": 1, "pageSize": 100, "totalPages": 0,
        "nextPage": false, "descendingOrder": false,
    });
    assert_eq!(json(&page), expected);
}

#[test]
fn a_full_result_has_exactly_the_documented_members() {
    let mut world = world();
    open(&mut world, 5, 0);
    let mut page = json(&search(
        &mut world,
        "pageSize=2&pageNo=2&queryString=actions:OPEN",
    ));
    assert_eq!(page["results"].as_array().unwrap().len(), 2);
    page["results"] = Value::Null;
    let expected = serde_json::json!({
        "results": null, "totalResults": 5, "orderBy": "ts", "pageNo": 2, "pageSize": 2,
        "totalPages": 3, "nextPage": true, "nextPageNo": 3, "previousPageNo": 1,
        "descendingOrder": true,
    });
    assert_eq!(page, expected);
    let last = json(&search(
        &mut world,
        "pageSize=2&pageNo=3&queryString=actions:OPEN",
    ));
    assert_eq!(last["nextPage"], false);
    assert!(last.get("nextPageNo").is_none());
    let beyond = json(&search(
        &mut world,
        "pageSize=2&pageNo=9&queryString=actions:OPEN",
    ));
    assert_eq!(beyond["results"], serde_json::json!([]));
    assert_eq!(beyond["totalResults"], 5);
}

#[test]
fn pages_follow_one_another_newest_first() {
    let mut world = world();
    for second in 0..7 {
        // Two alerts share each second.
        world
            .open("client_1", &Spec::default(), at(second / 2))
            .unwrap();
    }
    let mut seen = Vec::new();
    for page_no in 1..=4 {
        seen.extend(
            search(
                &mut world,
                &format!("pageSize=2&pageNo={page_no}&queryString=actions:OPEN"),
            )
            .ids(),
        );
    }
    let mut oldest_first = world.open_alerts("client_1").unwrap();
    oldest_first.reverse();
    assert_eq!(seen, oldest_first);
    let up = search(
        &mut world,
        "isDescendingOrder=false&queryString=actions:OPEN",
    );
    oldest_first.reverse();
    assert_eq!(up.ids(), oldest_first);
}

#[test]
fn an_alert_that_leaves_shifts_the_later_pages() {
    let mut world = world();
    let ids = open(&mut world, 4, 0);
    let first = search(&mut world, "pageSize=2&queryString=actions:OPEN").ids();
    world.act(ids[3], Action::Close, at(1)).unwrap();
    let second = search(&mut world, "pageSize=2&pageNo=2&queryString=actions:OPEN").ids();
    assert_eq!(first, [ids[3], ids[2]]);
    assert_eq!(second, [ids[0]], "the second alert is skipped");
}

#[test]
fn an_update_moves_an_alert_to_the_front_only_where_ts_is_the_time_of_update() {
    let mut world = world();
    let ids = open(&mut world, 3, 0);
    world.act(ids[0], Action::Bump, at(5)).unwrap();
    let front = |world: &mut World| search(world, "queryString=actions:OPEN").ids()[0];
    assert_eq!(front(&mut world), ids[2]);
    change(&mut world, |options| options.ts = Ts::Updated);
    assert_eq!(front(&mut world), ids[0]);
    world.act(ids[1], Action::Bump, at(7)).unwrap();
    assert_eq!(front(&mut world), ids[1]);
}

#[test]
fn every_documented_key_filters() {
    let mut world = world();
    let spec = Spec {
        state: Some(State::Warning),
        priority: Some(Priority::P2),
        event_type: Some(EventType::Alert),
        created: Some(at(-5000)),
        app: Some("Zabbix".to_owned()),
        metric: Some("zabbix.load".to_owned()),
        alert_type: Some("Forecast".to_owned()),
        resource_type: Some("Mainframe".to_owned()),
        unique_id: Some("special".to_owned()),
        ..Spec::default()
    };
    let id = world.open("client_1", &spec, at(0)).unwrap();
    world.act(id, Action::Ticket, at(10)).unwrap();
    let other = Spec {
        state: Some(State::Critical),
        priority: Some(Priority::P0),
        event_type: Some(EventType::Alert),
        created: Some(at(-8 * 86_400)),
        ..Spec::default()
    };
    world.open("client_1", &other, at(0)).unwrap();
    let detail: Value =
        serde_json::from_slice(&world.alert("client_1", "special").unwrap().to_json(at(0)))
            .unwrap();
    let incident = detail["incidentId"].as_str().unwrap().to_owned();
    let resource = detail["resource"]["id"].as_str().unwrap().to_owned();
    let managed = if detail["managedByOpsRamp"] == true {
        "manage"
    } else {
        "unmanage"
    };
    for query in [
        "states:warning".to_owned(),
        "priority:P2,P3".to_owned(),
        "startDate:2023-11-14T20:00:00 0000".to_owned(),
        "duration:7".to_owned(),
        "actions:TICKETED".to_owned(),
        "actions:TICKETED,CLOSED".to_owned(),
        "alertTypes:forecast".to_owned(),
        "metrics:zabbix.load".to_owned(),
        "apps:Zabbix".to_owned(),
        "resourceType:mainframe".to_owned(),
        "uniqueId:special".to_owned(),
        format!("ticketId:{incident}"),
        format!("resourceIds:{resource}+uniqueId:special,x"),
        format!("deviceStatus:{managed}+apps:zabbix"),
        "clientIds:client_1+apps:zabbix".to_owned(),
        "alertTimeBase:updated+startDate:2023-11-14T22:13:30 0000".to_owned(),
    ] {
        let found = search(&mut world, &format!("queryString={query}")).ids();
        assert_eq!(found, [id], "{query}");
    }
    for query in [
        "endDate:2023-11-01T00:00:00 0000+apps:zabbix",
        "clientIds:client_2",
        "states:Info",
    ] {
        let found = search(&mut world, &format!("queryString={query}")).ids();
        assert_eq!(found, [], "{query}");
    }
    assert_eq!(
        search(&mut world, "").total_results(),
        2,
        "no query, no filter"
    );
}

#[test]
fn a_partner_sees_the_alerts_of_its_clients() {
    let mut world = world();
    for id in ["client_7", "client_8"] {
        let tenant = TenantOptions {
            id: id.to_owned(),
            partner: Some("msp_1".to_owned()),
            alerts: 3,
            ..TenantOptions::default()
        };
        world.add_tenant(&tenant, at(0));
    }
    assert_eq!(world.open_count("msp_1").unwrap(), 6);
    assert_eq!(world.open_count("client_7").unwrap(), 3);
    let page = world
        .search(
            "msp_1",
            &params("queryString=actions:OPEN+clientIds:client_8"),
            at(1),
        )
        .unwrap();
    assert_eq!(page.total_results(), 3);
    let id = world.snapshot(page.ids()[0]).unwrap().unique_id;
    assert!(world.alert("msp_1", &id).is_ok());
    assert!(world.alert("client_8", &id).is_ok());
    assert!(world.alert("client_7", &id).is_err());
    assert!(world.clients("client_7", &[]).is_err());
    world.set_activated("client_7", false, at(1)).unwrap();
    let query = |text: &str| vec![("queryString".to_owned(), text.to_owned())];
    let active = world.clients("msp_1", &query("activeStatus:true")).unwrap();
    assert_eq!(active.results.len(), 1);
    assert_eq!(active.results[0].unique_id, "client_8");
    assert!(matches!(
        world.check_active("client_7"),
        Err(Refusal::TenantDeactivated(_))
    ));
}

#[test]
fn the_detail_tells_why_an_alert_left() {
    let mut world = world();
    let id = world.open("client_1", &Spec::default(), at(0)).unwrap();
    let detail = |world: &World| -> Value {
        let detail = world.alert("client_1", &id.to_string()).unwrap();
        serde_json::from_slice(&detail.to_json(at(100))).unwrap()
    };
    assert_eq!(detail(&world)["status"], "New");
    world.act(id, Action::Acknowledge, at(5)).unwrap();
    world.act(id, Action::Ticket, at(9)).unwrap();
    let shown = detail(&world);
    assert_eq!(shown["status"], "Ticketed");
    assert_eq!(shown["ticketed"], true);
    assert!(shown["incidentId"].as_str().unwrap().starts_with("INC"));
    assert!(shown["description"].is_string());
    assert_eq!(
        shown["statusHistory"]["acknowledgedTime"],
        "2023-11-14T22:13:25+0000"
    );
    world.act(id, Action::Heal, at(10)).unwrap();
    assert_eq!(detail(&world)["currentState"], "Ok");
    world.act(id, Action::Remove, at(11)).unwrap();
    assert!(world.alert("client_1", &id.to_string()).is_err());
}

#[test]
fn a_search_shows_neither_description_nor_old_state() {
    let mut world = world();
    world.open("client_1", &Spec::default(), at(0)).unwrap();
    let page = json(&search(&mut world, "queryString=actions:OPEN"));
    let alert = page["results"][0].as_object().unwrap();
    assert!(!alert.contains_key("description"));
    assert!(!alert.contains_key("oldState"));
    assert!(alert.contains_key("uniqueId"));
}

#[test]
fn members_that_were_asked_for_replace_the_rendered_ones() {
    let mut world = world();
    let members = serde_json::json!({ "repeatCount": 7, "device": null, "new": [1] });
    let spec = Spec {
        members: members.as_object().unwrap().clone(),
        ..Spec::default()
    };
    world.open("client_1", &spec, at(0)).unwrap();
    let page = json(&search(&mut world, "queryString=actions:OPEN"));
    assert_eq!(page["results"][0]["repeatCount"], 7);
    assert_eq!(page["results"][0]["device"], Value::Null);
    assert_eq!(page["results"][0]["new"], serde_json::json!([1]));
}

#[test]
fn the_record_tells_openings_changes_and_departures() {
    let mut world = world();
    let from = world.record_position();
    let ids = open(&mut world, 2, 1);
    world.set_state(ids[0], State::Ok, at(2)).unwrap();
    world.act(ids[0], Action::Close, at(3)).unwrap();
    world.act(ids[0], Action::Purge, at(4)).unwrap();
    world.act(ids[0], Action::Reopen, at(5)).unwrap();
    let told: Vec<(ChangeKind, String)> = world
        .changes_since(from)
        .into_iter()
        .map(|change| (change.what, change.alert_id))
        .collect();
    let (one, two) = (ids[0].to_string(), ids[1].to_string());
    let expected = [
        (ChangeKind::Opened, one.clone()),
        (ChangeKind::Opened, two),
        (ChangeKind::Changed, one.clone()),
        (ChangeKind::Left, one.clone()),
        (ChangeKind::Changed, one.clone()),
        (ChangeKind::Opened, one),
    ];
    assert_eq!(told, expected);
}

#[test]
fn an_own_id_is_found_and_not_given_twice() {
    let mut world = world();
    let spec = Spec {
        unique_id: Some("abc/1".to_owned()),
        ..Spec::default()
    };
    let id = world.open("client_1", &spec, at(0)).unwrap();
    assert_eq!(world.find("abc/1"), Some(id));
    assert_eq!(world.find(&id.to_string()), None, "it has no other id");
    assert!(world.open("client_1", &spec, at(0)).is_err());
}

#[test]
fn a_page_beyond_the_result_window_is_refused() {
    let mut world = world();
    change(&mut world, |options| options.result_window = Some(10));
    let at_the_edge = world.search("client_1", &params("pageSize=5&pageNo=2"), at(0));
    assert!(at_the_edge.is_ok());
    let beyond = world.search("client_1", &params("pageSize=5&pageNo=3"), at(0));
    assert_eq!(beyond.unwrap_err(), Refusal::BeyondWindow);
}

#[test]
fn partners_have_an_allowance_of_their_own() {
    let mut world = world();
    let partner = TenantOptions {
        id: "msp_3".to_owned(),
        ..TenantOptions::default()
    };
    world.add_tenant(&partner, at(0));
    let limit = |world: &mut World, tenant, meter| {
        world
            .count_request(tenant, meter, at(0))
            .unwrap()
            .unwrap()
            .limit
    };
    assert_eq!(limit(&mut world, "client_1", Meter::AlertPages), 50);
    assert_eq!(limit(&mut world, "client_1", Meter::Alerts), 500);
    assert_eq!(limit(&mut world, "msp_3", Meter::OtherPages), 150);
    assert_eq!(limit(&mut world, "msp_3", Meter::Others), 1500);
    change(&mut world, |options| {
        options.allowance = Allowance::unlimited()
    });
    assert_eq!(
        world.count_request("client_1", Meter::AlertPages, at(0)),
        Ok(None)
    );
}

#[test]
fn pages_of_alerts_are_counted_apart_from_everything_else() {
    let mut world = world();
    for _ in 0..50 {
        let rate_limit = world.count_request("client_1", Meter::AlertPages, at(0));
        assert!(rate_limit.unwrap().unwrap().allowed);
    }
    let mut allowed = |meter| {
        world
            .count_request("client_1", meter, at(1))
            .unwrap()
            .unwrap()
            .allowed
    };
    assert!(!allowed(Meter::AlertPages));
    assert!(allowed(Meter::Alerts));
    assert!(allowed(Meter::OtherPages));
}

#[test]
fn alerts_of_one_second_change_places_where_ties_are_unstable() {
    let mut world = world();
    let old = open(&mut world, 30, 0);
    let new = open(&mut world, 30, 1);
    let first = |world: &mut World| search(world, "pageSize=30&queryString=actions:OPEN").ids();
    assert_eq!(first(&mut world), first(&mut world));
    change(&mut world, |options| options.unstable_ties = true);
    let (one, other) = (first(&mut world), first(&mut world));
    assert_ne!(one, other);
    let sorted = |mut ids: Vec<AlertId>| {
        ids.sort();
        ids
    };
    assert_eq!(sorted(one), new, "but only within their second");
    let second = search(&mut world, "pageSize=30&pageNo=2&queryString=actions:OPEN").ids();
    assert_eq!(sorted(second), old);
}

#[test]
fn padding_makes_alerts_as_large_as_real_ones() {
    let mut world = world();
    open(&mut world, 10, 0);
    let size = |world: &mut World| {
        search(world, "queryString=actions:OPEN")
            .to_json(at(0))
            .len()
    };
    let before = size(&mut world);
    change(&mut world, |options| options.padding = 700);
    assert_eq!(
        size(&mut world),
        before + 10 * (700 + r#","padding":"""#.len())
    );
}

#[test]
fn the_number_of_the_next_page_can_be_left_out() {
    let mut world = three_alerts(|options| options.next_page_no = false);
    let page = json(&search(&mut world, "pageSize=2&queryString=actions:OPEN"));
    assert_eq!(page["nextPage"], true);
    assert!(page.get("nextPageNo").is_none());
}

#[test]
fn the_last_page_can_come_again_and_again() {
    let mut world = three_alerts(|options| options.repeats_last_page = true);
    let mut page = |number| {
        let query = format!("pageNo={number}&pageSize=2&queryString=actions:OPEN");
        json(&search(&mut world, &query))
    };
    let last = page(2);
    assert_eq!(
        (&last["nextPage"], &last["pageNo"]),
        (&true.into(), &2.into())
    );
    assert_eq!((page(3), page(1000)), (last.clone(), last));
}

#[test]
fn an_oversized_page_can_show_nothing() {
    let mut world = three_alerts(|options| {
        options.max_page_size = 2;
        options.oversized = Oversized::Blank;
    });
    let mut page = |size| {
        let query = format!("pageSize={size}&queryString=actions:OPEN");
        let page = json(&search(&mut world, &query));
        let shown = page["results"].as_array().unwrap().len();
        (shown, page["totalResults"].clone())
    };
    assert_eq!((page(2), page(3)), ((2, 3.into()), (0, 3.into())));
}

#[test]
fn the_size_of_a_page_can_be_what_it_shows() {
    let mut world = three_alerts(|options| options.page_size_as_shown = true);
    let size = |world: &mut World, number| {
        let query = format!("pageNo={number}&pageSize=2&queryString=actions:OPEN");
        json(&search(world, &query))["pageSize"].clone()
    };
    assert_eq!(
        (size(&mut world, 1), size(&mut world, 2)),
        (2.into(), 1.into())
    );
}

#[test]
fn old_alerts_at_the_start_share_seconds_but_not_ids() {
    let mut options = Options::default();
    options.tenants[0].alerts = 1000;
    let world = World::new(options, at(0));
    let ids = world.open_alerts("client_1").unwrap();
    let times: BTreeSet<i64> = ids
        .iter()
        .map(|id| world.snapshot(*id).unwrap().created)
        .collect();
    assert_eq!(ids.len(), 1000);
    assert!(times.len() < 1000, "no two alerts share a second");
    assert!(times.len() > 300);
    assert!(*times.last().unwrap() < at(0).as_second());
}

#[test]
fn options_are_read_back_as_they_were_written() {
    let options = Options {
        unknown_key: UnknownKey::Reject,
        ..Options::demo()
    };
    let text = serde_json::to_string(&options).unwrap();
    assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
    let fault = serde_json::to_string(&Fault::Deep { depth: 3 }).unwrap();
    assert_eq!(fault, r#"{"kind":"deep","depth":3}"#);
}

/// Something that is done to a world.
#[derive(Clone, Debug)]
enum Deed {
    Open(u8),
    Act(u8, usize),
    State(u8, usize),
    Ts(bool),
    Wait(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0..4_u8).prop_map(Deed::Open),
        5 => (any::<u8>(), 0..Action::ALL.len()).prop_map(|(alert, action)| Deed::Act(alert, action)),
        2 => (any::<u8>(), 0..4_usize).prop_map(|(alert, state)| Deed::State(alert, state)),
        1 => any::<bool>().prop_map(Deed::Ts),
        2 => (0..3_u8).prop_map(Deed::Wait),
    ]
}

proptest! {
    /// The index, the filter and the record must tell the same story.
    #[test]
    fn index_filter_and_record_agree(deeds in prop::collection::vec(deed(), 0..120)) {
        let mut world = world();
        let client = TenantOptions {
            id: "client_2".to_owned(),
            partner: Some("msp_1".to_owned()),
            ..TenantOptions::default()
        };
        world.add_tenant(&client, at(0));
        let mut ids = Vec::new();
        let mut second = 0;
        for deed in deeds {
            let now = at(second);
            match deed {
                Deed::Open(count) => {
                    let tenant = if count == 1 { "client_1" } else { "client_2" };
                    ids.extend(world.open_many(tenant, usize::from(count), &Spec::default(), now).unwrap());
                }
                Deed::Act(alert, action) if !ids.is_empty() => {
                    world.act(ids[usize::from(alert) % ids.len()], Action::ALL[action], now).unwrap();
                }
                Deed::State(alert, state) if !ids.is_empty() => {
                    world.set_state(ids[usize::from(alert) % ids.len()], State::ALL[state], now).unwrap();
                }
                Deed::Ts(updated) => {
                    let ts = if updated { Ts::Updated } else { Ts::Created };
                    change(&mut world, |options| options.ts = ts);
                }
                Deed::Wait(seconds) => second += i64::from(seconds),
                _ => {}
            }
        }
        for tenant in ["client_1", "client_2", "msp_1"] {
            let fast = world.search(tenant, &params("pageSize=500&queryString=actions:OPEN"), at(second)).unwrap();
            // Further keys, which every alert satisfies, make the search use the filter instead of
            // the index.
            let slow = world.search(tenant, &params("pageSize=500&queryString=actions:OPEN+deviceStatus:all+states:Ok,Info,Warning,Critical"), at(second)).unwrap();
            prop_assert_eq!(fast.ids(), slow.ids());
            prop_assert_eq!(fast.total_results(), world.open_count(tenant).unwrap());
        }
        let mut told = BTreeSet::new();
        for change in world.changes_since(0) {
            match change.what {
                ChangeKind::Opened => prop_assert!(told.insert(change.alert_id)),
                ChangeKind::Left => prop_assert!(told.remove(&change.alert_id)),
                ChangeKind::Changed => {}
            }
        }
        let mut open = BTreeSet::new();
        for tenant in ["client_1", "msp_1"] {
            open.extend(world.open_alerts(tenant).unwrap().iter().map(AlertId::to_string));
        }
        prop_assert_eq!(told, open);
    }
}
