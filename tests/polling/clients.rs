//! A partner's clients: looked up, and followed as they come and go.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_partner_appear_leave_and_come_back() {
    let mut options = world(0);
    let client = |id: &str| TenantOptions {
        partner: Some("msp_1".to_owned()),
        ..tenant(id, 2)
    };
    options.tenants = vec![
        tenant("msp_1", 0),
        client("client_1"),
        client("client_2"),
        client("client_3"),
    ];
    let simulator = start(options).await;
    let activate = |id: &str, activated| {
        simulator
            .world(|world, now| world.set_activated(id, activated, now))
            .unwrap();
    };
    activate("client_3", false);
    let mut plan = plan(&simulator.url());
    plan.accounts = vec![account(&simulator.url(), &["msp_1"])];
    plan.accounts[0].discovery = Some(Duration::from_millis(200));
    let exporter = Exporter::start(plan).await;
    let polled = |exporter: &Exporter| -> Vec<String> {
        let searches = exporter.board.searches();
        let up = searches.iter().filter(|status| status.up == Some(true));
        up.map(|status| status.key.tenant.id.to_string()).collect()
    };
    eventually("both are polled", || async {
        polled(&exporter) == ["client_1", "client_2"]
    })
    .await;
    activate("client_3", true);
    activate("client_2", false);
    eventually("one comes, one goes", || async {
        polled(&exporter) == ["client_1", "client_3"]
    })
    .await;
    assert_eq!(
        exporter.sample("opsramp_up{"),
        2.0,
        "the series of the one that is gone disappear"
    );
    activate("client_2", true);
    eventually("it is back", || async { polled(&exporter).len() == 3 }).await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("opened").await, 6, "nothing is logged again");
}

/// Starts a simulator with two partners, one with two clients and one with one.
async fn partners() -> Simulator {
    let client = |id: &str, partner: &str| TenantOptions {
        partner: Some(partner.to_owned()),
        ..tenant(id, 1)
    };
    let mut options = world(0);
    options.tenants = vec![
        tenant("msp_1", 0),
        tenant("msp_2", 0),
        client("client_1", "msp_1"),
        client("client_2", "msp_1"),
        client("client_3", "msp_2"),
    ];
    start(options).await
}

/// Pollers that follow one plan after the other.
struct Reloading {
    pollers: Pollers,
    board: Board,
    health: Health,
    plan: Plan,
    _folder: tempfile::TempDir,
}

impl Reloading {
    /// The plan is not followed yet.
    async fn new(plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder, store::JOURNAL_LIMIT).await;
        let health = Health::default();
        let (pollers, board, _) = pollers(&store, &health);
        Self {
            pollers,
            board,
            health,
            plan,
            _folder: folder,
        }
    }

    async fn reload(&mut self, change: impl FnOnce(&mut Account)) {
        change(&mut self.plan.accounts[0]);
        self.pollers.apply(self.plan.clone()).await.unwrap();
    }

    /// Waits for a look-up that is due, and returns it.
    async fn look_up(&mut self) -> LookUp {
        let next = tokio::time::timeout(PATIENCE, self.pollers.next());
        match next.await.expect("a look-up is due") {
            PollerEvent::LookedUp(look_up) => *look_up,
            PollerEvent::Failed(error) => panic!("{error:#}"),
        }
    }

    /// Waits for a look-up that is due, and follows it.
    async fn adopt_look_up(&mut self) {
        let look_up = self.look_up().await;
        self.pollers.adopt(look_up).await;
    }

    /// Returns what the account's look-ups have found.
    fn discovery(&self) -> Option<DiscoveryStatus> {
        let name = &self.plan.accounts[0].options.name;
        let mut discoveries = self.board.discoveries().into_iter();
        Some(discoveries.find(|(account, _)| account == name)?.1)
    }

    /// Returns the tenants that are polled.
    fn polled(&self) -> Vec<String> {
        let searches = self.board.searches();
        let tenants = searches.iter().map(|status| &status.key.tenant.id);
        tenants.map(ToString::to_string).collect()
    }
}

fn partner(id: &str, is_known: bool, last: Option<Result<(), String>>) -> PartnerStatus {
    PartnerStatus {
        id: id.into(),
        is_known,
        last,
    }
}

/// A fault that answers each look-up of clients like this.
fn clients_answer(answer: &serde_json::Value) -> FaultRule {
    let text = answer.to_string();
    FaultRule::always(Fault::Body { text }).at(Endpoint::Clients)
}

/// Returns the error of a look-up that is answered with this status.
fn refused(status: u16) -> Option<Result<(), String>> {
    Some(Err(format!(
        "clients answered {status}: <html> <head><title>{status}</title></head> <body> \
         <center><h1>{status}</h1></center> <hr><center>gateway</center> </body> </html>"
    )))
}

/// Returns an account whose clients are looked up once.
fn discovering(url: &str, partners: &[&str]) -> Account {
    Account {
        discovery: Some(PATIENCE * 10),
        ..account(url, partners)
    }
}

/// Returns an account whose clients are looked up again and again.
fn discovering_on(url: &str, partners: &[&str]) -> Account {
    Account {
        discovery: Some(Duration::from_millis(1)),
        ..account(url, partners)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_of_clients_that_outlives_a_reload_changes_nothing() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    exporter
        .reload(|account| *account = discovering(&url, &["msp_1"]))
        .await;
    let late = exporter.look_up().await;
    exporter.reload(|account| account.discovery = None).await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), ["msp_1"], "else alerts come twice");

    exporter
        .reload(|account| *account = discovering(&url, &["msp_1"]))
        .await;
    let late = exporter.look_up().await;
    exporter
        .reload(|account| *account = discovering(&url, &["msp_2"]))
        .await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), [""; 0], "of another partner");
    let late = exporter.look_up().await;

    let other = partners().await;
    exporter
        .reload(|account| *account = discovering(&other.url(), &["msp_2"]))
        .await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), [""; 0], "of another server");
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_3"]);
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_other_partners_are_looked_up_at_once_and_those_that_stay_are_polled_on() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let stages: [(&[&str], &[&str], &[&str]); 3] = [
        (&["msp_1"], &[], &["client_1", "client_2"]),
        (
            &["msp_1", "msp_2"],
            &["client_1", "client_2"],
            &["client_1", "client_2", "client_3"],
        ),
        (&["msp_2"], &["client_3"], &["client_3"]),
    ];
    for (partners, meanwhile, then) in stages {
        exporter
            .reload(|account| *account = discovering(&url, partners))
            .await;
        assert_eq!(exporter.polled(), meanwhile);
        exporter.adopt_look_up().await;
        assert_eq!(exporter.polled(), then);
    }
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_last_look_up_said_is_kept_until_a_reload_asks_for_others() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let broken = || Fault::status(500);
    let fault = || FaultRule::always(broken()).at(Endpoint::Clients);
    let down = simulator.inject(fault());
    exporter
        .reload(|account| *account = discovering_on(&url, &["msp_1"]))
        .await;
    let of = |clients, partners: &[PartnerStatus]| {
        let partners = partners.to_vec();
        Some(DiscoveryStatus { clients, partners })
    };
    let asked = partner("msp_1", false, None);
    assert_eq!(exporter.discovery(), of(None, std::slice::from_ref(&asked)));
    exporter.adopt_look_up().await;
    let failed = refused(500);
    let failing = partner("msp_1", false, failed.clone());
    assert_eq!(exporter.discovery(), of(None, &[failing]));

    simulator.remove_fault(down);
    exporter.adopt_look_up().await;
    let found = partner("msp_1", true, Some(Ok(())));
    assert_eq!(exporter.discovery(), of(Some(2), &[found]));
    let down = simulator.inject(fault());
    exporter.adopt_look_up().await;
    let failing = partner("msp_1", true, failed);
    assert_eq!(exporter.discovery(), of(Some(2), &[failing]));

    // The same partners with other options: their clients are still known.
    exporter
        .reload(|account| account.options.max_response_size += 1)
        .await;
    let known = partner("msp_1", true, None);
    assert_eq!(exporter.discovery(), of(None, std::slice::from_ref(&known)));
    // One more partner: the clients of that one are not known.
    exporter
        .reload(|account| account.tenants = discovering(&url, &["msp_1", "msp_2"]).tenants)
        .await;
    let asked = partner("msp_2", false, None);
    assert_eq!(exporter.discovery(), of(None, &[known, asked]));
    simulator.remove_fault(down);
    exporter.adopt_look_up().await;
    // One partner less: the clients of the other one are known.
    exporter
        .reload(|account| account.tenants = discovering(&url, &["msp_2"]).tenants)
        .await;
    let known = partner("msp_2", true, None);
    assert_eq!(exporter.discovery(), of(None, &[known]));
    exporter.reload(|account| account.discovery = None).await;
    assert_eq!(exporter.discovery(), None);
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_that_cannot_be_looked_up_keeps_nobody_from_following_the_others() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let fault = || FaultRule::always(Fault::status(410)).at(Endpoint::Clients);
    let down = simulator.inject(fault().for_tenant("msp_1"));
    exporter
        .reload(|account| *account = discovering_on(&url, &["msp_1", "msp_2"]))
        .await;
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_3"]);
    let expected = DiscoveryStatus {
        clients: None,
        partners: vec![
            partner("msp_1", false, refused(410)),
            partner("msp_2", true, Some(Ok(()))),
        ],
    };
    assert_eq!(exporter.discovery(), Some(expected));

    simulator.remove_fault(down);
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2", "client_3"]);

    // The known clients of this partner are still polled, while a client of the other partner
    // leaves.
    simulator.inject(fault().for_tenant("msp_2"));
    simulator
        .world(|world, now| world.set_activated("client_1", false, now))
        .unwrap();
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_2", "client_3"]);
    let up = exporter.discovery().map(|discovery| discovery.is_up());
    assert_eq!(up, Some(false));
    let known = exporter.discovery().map(|discovery| discovery.is_known());
    assert_eq!(known, Some(true));
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_list_that_is_short_a_client_that_is_deactivated_goes_and_one_that_is_not_shown_stays()
{
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    exporter
        .reload(|account| *account = discovering_on(&url, &["msp_1", "msp_2"]))
        .await;
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2", "client_3"]);

    simulator.inject(clients_answer(&serde_json::json!({
        "results": [{ "uniqueId": "client_1", "name": "one", "activated": false }],
        "totalResults": 2,
    })));
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_2", "client_3"]);
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_a_search_names_in_vain_are_told_once_all_clients_are_known() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut plan = plan(&url);
    let mut partner = discovering(&url, &["msp_1"]);
    partner.options.name = "partner".into();
    plan.accounts.push(partner);
    let own = plan.accounts[0].tenants[0].id.to_string();
    let mut search = plan.searches[0].clone();
    search.name = "named".into();
    search.tenants = Some(
        ["client_1", "client_3", &own]
            .map(ToOwned::to_owned)
            .to_vec(),
    );
    plan.searches.push(search);
    let mut exporter = Reloading::new(plan).await;
    exporter.reload(|_| {}).await;
    assert!(exporter.health.notices().is_empty());
    exporter.adopt_look_up().await;
    let told = "search named: neither a tenant of an account nor an activated client that the \
                server shows: client_3";
    assert_eq!(exporter.health.notices(), [told]);
    exporter.reload(|_| {}).await;
    assert_eq!(exporter.health.notices(), [told]);
    exporter.plan.tenants_are_picked = true;
    exporter.reload(|_| {}).await;
    assert!(exporter.health.notices().is_empty());
    exporter.plan.tenants_are_picked = false;
    exporter.plan.searches[1].tenants = Some(vec!["client_1".to_owned()]);
    exporter.reload(|_| {}).await;
    assert!(exporter.health.notices().is_empty());
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_that_leaves_doubts_tells_of_no_tenant_named_in_vain() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut plan = plan(&url);
    plan.accounts[0] = discovering_on(&url, &["msp_1"]);
    plan.searches[0].tenants = Some(vec!["client_1".to_owned(), "client_2".to_owned()]);
    let mut exporter = Reloading::new(plan).await;
    let short = simulator.inject(clients_answer(&serde_json::json!({
        "results": [{ "uniqueId": "client_1", "name": "one", "activated": true }],
        "totalResults": 2,
    })));
    exporter.reload(|_| {}).await;
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1"]);
    assert!(exporter.health.notices().is_empty());

    simulator.remove_fault(short);
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);
    assert!(exporter.health.notices().is_empty());
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_clients_that_is_empty_for_a_moment_or_never_ends_stops_nobody() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let clients = |shown: serde_json::Value, next_page: bool| {
        clients_answer(&serde_json::json!({ "results": shown, "nextPage": next_page }))
    };
    let two = serde_json::json!([
        { "uniqueId": "client_1", "name": "one", "activated": true },
        { "uniqueId": "client_2", "name": "two", "activated": true },
    ]);
    let endless = simulator.inject(clients(two, true));
    exporter
        .reload(|account| *account = discovering_on(&url, &["msp_1"]))
        .await;
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);

    simulator.inject(clients(serde_json::json!([]), false));
    simulator.remove_fault(endless);
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);
    // A second list seconds later that agrees stops nobody either.
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_without_clients_is_looked_up_again_soon() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let empty = simulator.inject(clients_answer(&serde_json::json!({ "results": [] })));
    // The next regular look-up would come only after the test has failed.
    exporter
        .reload(|account| *account = discovering(&url, &["msp_1"]))
        .await;
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), [""; 0]);
    simulator.remove_fault(empty);
    exporter.adopt_look_up().await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);
    exporter.pollers.stop().await;
}
