//! The clients of an account's partners: which there are, which of them are polled, and what they
//! are called.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{self, AbortHandle},
    time::Instant,
};

use crate::{
    identity::Tenant,
    opsramp::{self, Client, ClientInfo},
    status::DiscoveryStatus,
};

/// Clients that are polled, with the partner of each.
pub(super) type Tenants = BTreeMap<Tenant, Arc<str>>;

/// An account's client, and whom it has found.
#[derive(Debug)]
pub(super) struct AccountClient {
    pub(super) options: opsramp::Options,
    pub(super) client: Client,
    /// Changes when the client does, so that searches notice.
    pub(super) generation: u64,
    /// Whose clients are looked up; none without discovery.
    pub(super) partners: Vec<Arc<str>>,
    pub(super) discovered: Tenants,
    /// Whether they have been looked up since the partners or the client are these.
    is_looked_up: bool,
    /// Whether the clients of all of the partners have been found, be it by the client before.
    is_known: bool,
    look_up: Option<LookUpTask>,
    /// What became of the last look-up since the partners or the client are these.
    last: Option<Result<(), String>>,
    /// When clients are to be looked up next, unless they are being looked up.
    pub(super) look_up_at: Instant,
    failures: u32,
    /// Whether the last look-up lacked most of the clients that are known.
    is_doubted: bool,
}

/// A look-up under way. Dropping it ends it, and makes its outcome void.
#[derive(Debug)]
struct LookUpTask(AbortHandle);

/// Clients that look-ups have found.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Names and partners of those that are activated, by their ids.
    activated: BTreeMap<String, (String, Arc<str>)>,
    /// The ids of the others.
    deactivated: HashSet<String>,
    /// Whether the server showed fewer than it counts.
    is_short: bool,
}

/// What follows from a look-up.
#[derive(Debug, PartialEq, Eq)]
struct Decision {
    /// Who is polled from now on.
    tenants: Tenants,
    /// How many of those that are known it did not show.
    unseen: usize,
    is_short: bool,
    /// It lacks most of those that are known, for which another one must agree.
    is_doubted: bool,
}

/// The first pause after a look-up that failed.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(5);
/// A partner's clients are read no further than so many pages of a hundred.
const MAX_CLIENT_PAGES: u64 = 500;
/// Clients of an account that are polled at most. One takes some 40 kB of memory.
const MAX_CLIENTS: usize = 10_000;

/// Tenants as they are called: two series must not share their labels. Of those with one name, each
/// is called by its id, and none by that of another one.
pub(super) fn told_apart(tenants: &[&Tenant]) -> Vec<Tenant> {
    let ids: HashSet<&str> = tenants.iter().map(|tenant| &*tenant.id).collect();
    let mut bearers: HashMap<&str, usize> = HashMap::new();
    for tenant in tenants {
        *bearers.entry(&tenant.name).or_default() += 1;
    }
    let called = |tenant: &&Tenant| {
        let Tenant { id, name } = tenant;
        let name = if bearers.get(&**name).is_some_and(|bearers| *bearers > 1) {
            Arc::clone(id)
        } else if name != id && ids.contains(&**name) {
            format!("{name} ({id})").into()
        } else {
            Arc::clone(name)
        };
        let id = Arc::clone(id);
        Tenant { id, name }
    };
    tenants.iter().map(called).collect()
}

/// The clients of some partners.
pub(super) async fn clients_of(
    client: &Client,
    partners: &[Arc<str>],
) -> Result<Clients, opsramp::Error> {
    let mut found = Clients::default();
    for partner in partners {
        let (mut next, mut shown, mut total) = (Some(1), 0, 0);
        let mut ids = HashSet::new();
        while let Some(page_no) = next.filter(|page| *page <= MAX_CLIENT_PAGES) {
            let page = client.clients(partner, page_no).await?.clients(page_no)?;
            // Paging over a living list can show a client twice, and some servers never end.
            let of_page = page.clients.len();
            let new = page.clients.iter().filter(|it| ids.insert(it.id.clone()));
            let repeated = of_page - new.count();
            shown += (page.shown - repeated) as u64;
            total = page.total.unwrap_or(total);
            if !found.take_in(page.clients, partner) {
                tracing::warn!(
                    account = %client.account(),
                    "the account has more than {MAX_CLIENTS} clients; the others are not polled"
                );
                return Ok(found);
            }
            let is_behind = repeated == of_page && shown >= total;
            next = page.next_page.filter(|_| !is_behind);
        }
        found.is_short |= shown < total;
    }
    Ok(found)
}

/// Who is polled after a look-up that found these.
fn decide(known: &Tenants, found: Clients, was_doubted: bool) -> Decision {
    let unseen: Vec<_> = known
        .iter()
        .filter(|(tenant, _)| !found.shows(&tenant.id))
        .map(|(tenant, partner)| (tenant.clone(), Arc::clone(partner)))
        .collect();
    let mut decision = Decision {
        unseen: unseen.len(),
        is_short: found.is_short,
        // An empty list for a moment would stop all of them until the next look-up.
        is_doubted: 2 * unseen.len() > known.len() && !was_doubted,
        tenants: found.into_tenants(),
    };
    if decision.is_provisional() {
        // Whoever is not shown need not have gone.
        decision.tenants.extend(unseen);
    }
    decision
}

// === impl AccountClient ===

impl AccountClient {
    /// In place of another one, if there was one: whose clients are polled on meanwhile.
    pub(super) fn new(options: opsramp::Options, client: Client, old: Option<Self>) -> Self {
        let generation = old.as_ref().map_or(0, |old| old.generation + 1);
        let (partners, discovered, is_known) = old
            .map(|old| (old.partners, old.discovered, old.is_known))
            .unwrap_or_default();
        Self {
            options,
            client,
            generation,
            partners,
            // Where there was nobody, nothing is searched until this one has asked as well.
            is_known: is_known && !discovered.is_empty(),
            discovered,
            is_looked_up: false,
            look_up: None,
            last: None,
            look_up_at: Instant::now(),
            failures: 0,
            is_doubted: false,
        }
    }

    /// How many clients the last look-up has left to be polled; `None`: there was none yet.
    fn found(&self) -> Option<usize> {
        self.is_looked_up.then_some(self.discovered.len())
    }

    /// What is known of the partners' clients; `None` without discovery.
    pub(super) fn discovery(&self) -> Option<DiscoveryStatus> {
        let status = || DiscoveryStatus {
            clients: self.found(),
            is_known: self.is_known,
            last: self.last.clone(),
        };
        (!self.partners.is_empty()).then(status)
    }

    /// Has the clients of these partners looked up from now on, at once where they are others than
    /// before. Known clients of a partner that is still among them are polled on meanwhile.
    pub(super) fn look_up_clients_of(&mut self, partners: Vec<Arc<str>>) {
        if self.partners == partners {
            return;
        }
        self.discovered
            .retain(|_, partner| partners.contains(partner));
        let is_one_of_before = |partner| self.partners.contains(partner);
        self.is_known &= partners.iter().all(is_one_of_before) && !self.discovered.is_empty();
        self.partners = partners;
        self.is_looked_up = false;
        self.look_up = None;
        self.last = None;
        self.look_up_at = Instant::now();
        self.failures = 0;
        self.is_doubted = false;
    }

    /// Notes that clients are being looked up, and when to do so the next time.
    pub(super) fn look_up_begun(&mut self, look_up: AbortHandle, next: Instant) {
        self.look_up = Some(LookUpTask(look_up));
        self.look_up_at = next;
    }

    /// Whether clients are being looked up.
    pub(super) fn is_looking_up(&self) -> bool {
        self.look_up.is_some()
    }

    /// Whether the outcome of this look-up is waited for.
    pub(super) fn awaits(&self, look_up: task::Id) -> bool {
        self.look_up
            .as_ref()
            .is_some_and(|LookUpTask(task)| task.id() == look_up)
    }

    /// Takes over the outcome of the look-up under way. Brings whether others are polled from now on.
    pub(super) fn take_over(&mut self, found: Result<Clients, opsramp::Error>) -> bool {
        self.look_up = None;
        let account = Arc::clone(&self.options.name);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.look_up_again();
                let reason = error.reason();
                let error = error.chain().to_string();
                let meanwhile = if self.discovered.is_empty() {
                    "nothing of the account is searched until that works"
                } else {
                    "those known are polled on"
                };
                tracing::error!(
                    %account,
                    reason,
                    error,
                    "cannot look up the clients of the partner; {meanwhile}"
                );
                self.last = Some(Err(error));
                return false;
            }
        };
        self.last = Some(Ok(()));
        let decision = decide(&self.discovered, found, self.is_doubted);
        self.is_doubted = decision.is_doubted;
        if decision.is_provisional() {
            self.look_up_again();
            let why = if decision.is_short {
                "the server counts more clients of the partner than it shows"
            } else {
                "the server shows few of the clients of the partner that are known"
            };
            tracing::warn!(%account, missing = decision.unseen, "{why}; they are looked up again soon");
        } else {
            self.failures = 0;
        }
        let tenants = decision.tenants;
        if tenants.is_empty() && self.found() != Some(0) {
            tracing::warn!(
                %account,
                "the server shows no activated client of the partner; nothing of the account is searched until it shows one"
            );
        }
        self.is_looked_up = true;
        self.is_known = true;
        if self.discovered == tenants {
            return false;
        }
        let not_in = |one: &Tenants, other: &Tenants| {
            one.keys().filter(|it| !other.contains_key(*it)).count()
        };
        let new = not_in(&tenants, &self.discovered);
        let gone = not_in(&self.discovered, &tenants);
        tracing::info!(%account, clients = tenants.len(), new, gone, "looked up the clients of the partner");
        self.discovered = tenants;
        true
    }

    /// Has the clients looked up sooner than usual, and less soon each time in a row.
    fn look_up_again(&mut self) {
        let pause = DISCOVERY_PAUSE * (1 << self.failures.min(6));
        self.failures += 1;
        self.look_up_at = Instant::now() + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
    }
}

// === impl LookUpTask ===

impl Drop for LookUpTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Decision ===

impl Decision {
    /// Whether another look-up must tell who has gone.
    fn is_provisional(&self) -> bool {
        self.is_short || self.is_doubted
    }
}

// === impl Clients ===

impl Clients {
    /// Takes in a page's clients. Returns whether there was room for all that are activated.
    fn take_in(&mut self, page: Vec<ClientInfo>, partner: &Arc<str>) -> bool {
        for found in page {
            if !found.activated {
                self.deactivated.insert(found.id);
                continue;
            }
            let full = self.activated.len() == MAX_CLIENTS;
            match self.activated.entry(found.id) {
                Entry::Occupied(_) => {}
                Entry::Vacant(_) if full => return false,
                Entry::Vacant(place) => {
                    place.insert((found.name, Arc::clone(partner)));
                }
            }
        }
        true
    }

    /// Whether a look-up has shown the client, activated or not.
    fn shows(&self, id: &str) -> bool {
        self.activated.contains_key(id) || self.deactivated.contains(id)
    }

    fn into_tenants(self) -> Tenants {
        let tenant = |(id, (name, partner)): (String, (String, _))| {
            let (id, name) = (id.into(), name.into());
            (Tenant { id, name }, partner)
        };
        self.activated.into_iter().map(tenant).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(numbers: std::ops::Range<usize>) -> Vec<ClientInfo> {
        numbers
            .map(|number| ClientInfo {
                id: format!("client_{number}"),
                name: format!("Client {number}"),
                activated: true,
            })
            .collect()
    }

    #[test]
    fn a_client_that_two_pages_show_counts_once_and_one_that_is_not_activated_does_not() {
        let mut found = Clients::default();
        let mut renamed_and_off = page(1..3);
        renamed_and_off[0].name = "Another".to_owned();
        renamed_and_off[1].activated = false;
        let partner = "msp_1".into();
        assert!(found.take_in(page(0..2), &partner));
        assert!(found.take_in(renamed_and_off, &partner));
        let tenants = found.into_tenants();
        let names: Vec<_> = tenants.keys().map(|tenant| &*tenant.name).collect();
        assert_eq!(names, ["Client 0", "Client 1"]);
    }

    /// The first so many clients, all of one partner.
    fn known(count: usize) -> Tenants {
        found(page(0..count)).into_tenants()
    }

    fn found(page: Vec<ClientInfo>) -> Clients {
        let mut found = Clients::default();
        assert!(found.take_in(page, &"msp_1".into()));
        found
    }

    #[test]
    fn who_is_shown_is_polled_and_who_is_not_is_polled_no_longer() {
        let decision = decide(&known(3), found(page(1..5)), false);
        let expected = Decision {
            tenants: found(page(1..5)).into_tenants(),
            unseen: 1,
            is_short: false,
            is_doubted: false,
        };
        assert_eq!(decision, expected);
    }

    #[test]
    fn a_look_up_that_lacks_most_of_those_known_needs_a_second_one_that_agrees() {
        for (shown, is_doubted) in [(0, true), (1, true), (2, false), (3, false)] {
            let decision = decide(&known(4), found(page(0..shown)), false);
            assert_eq!(decision.is_doubted, is_doubted, "{shown} of 4");
            let polled = if is_doubted { 4 } else { shown };
            assert_eq!(decision.tenants.len(), polled, "{shown} of 4");
            let agreed = decide(&known(4), found(page(0..shown)), true);
            assert_eq!((agreed.tenants.len(), agreed.is_doubted), (shown, false));
        }
        assert!(!decide(&known(0), found(Vec::new()), false).is_doubted);
    }

    #[test]
    fn who_is_shown_as_deactivated_or_by_another_name_is_not_missing() {
        let mut shown = page(0..3);
        shown[0].activated = false;
        shown[1].name = "Another".to_owned();
        for is_short in [false, true] {
            let mut found = found(shown.clone());
            found.is_short = is_short;
            let decision = decide(&known(4), found, false);
            assert_eq!((decision.unseen, decision.is_doubted), (1, false));
            let names: Vec<_> = decision.tenants.keys().map(|it| &*it.name).collect();
            let mut expected = vec!["Another", "Client 2"];
            expected.extend(is_short.then_some("Client 3"));
            assert_eq!(names, expected);
        }
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
                "client_5"
            ]
        );
    }

    #[test]
    fn there_is_room_for_so_many_clients_and_for_seeing_them_again() {
        let mut found = Clients::default();
        let partner = "msp_1".into();
        assert!(found.take_in(page(0..MAX_CLIENTS), &partner));
        assert!(found.take_in(page(MAX_CLIENTS - 100..MAX_CLIENTS), &partner));
        assert!(!found.take_in(page(MAX_CLIENTS - 1..MAX_CLIENTS + 1), &partner));
        assert_eq!(found.into_tenants().len(), MAX_CLIENTS);
    }
}
