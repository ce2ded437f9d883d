//! The clients of an account's partners: which there are, which of them are polled, and what they
//! are called.
//!
//! Partners are looked up together and judged each for itself: one that does not answer, or not
//! plausibly, keeps the clients it had, and has no say in those of the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    task::{self, AbortHandle},
    time::Instant,
};

use crate::{
    identity::Tenant,
    metrics::AccountMetrics,
    opsramp::{self, Client, ClientInfo, ClientsPage},
    status::{DiscoveryStatus, PartnerStatus, alike, listed},
};

/// Clients that are polled, with the partner of each.
pub(super) type Tenants = BTreeMap<Tenant, Arc<str>>;

/// An account's client, and whom it has found.
#[derive(Debug)]
pub(super) struct AccountClient {
    pub(super) options: opsramp::Options,
    pub(super) client: Client,
    /// What the client tells.
    pub(super) metrics: AccountMetrics,
    /// Changes when the client does, so that searches notice.
    pub(super) generation: u64,
    /// Whose clients are looked up; none without discovery.
    partners: Vec<Partner>,
    pub(super) discovered: Tenants,
    look_up: Option<LookUpTask>,
    /// When clients are to be looked up next, unless they are being looked up.
    pub(super) look_up_at: Instant,
    failures: u32,
}

/// A partner whose clients are looked up.
#[derive(Debug)]
struct Partner {
    status: PartnerStatus,
    /// Whether its clients have been found since the partners or the client are these.
    is_looked_up: bool,
    doubts: Doubts,
}

/// What the last look-ups of a partner's clients were like, where whoever they do not show need not
/// have gone.
#[derive(Debug, Default)]
struct Doubts(Option<Doubt>);

/// The server counts more clients of a partner than it shows, or shows few of those that are known.
#[derive(Debug)]
struct Doubt {
    /// How many more it counts.
    more: u64,
    /// The ids of those that are known and that it does not show.
    missing: BTreeSet<Arc<str>>,
    /// How many look-ups in a row have said just that.
    times: u32,
    /// When it was last told that this is believed.
    told: Option<Instant>,
}

/// A look-up under way. Dropping it ends it, and makes its outcome void.
#[derive(Debug)]
struct LookUpTask(AbortHandle);

/// Clients that a look-up has found.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Names and partners of those that are activated, by their ids.
    activated: BTreeMap<String, (String, Arc<str>)>,
    /// The ids of the others.
    deactivated: BTreeSet<String>,
    /// The partners of which no activated client was shown.
    empty: BTreeSet<Arc<str>>,
    /// The partners of which the server counts more clients than it shows, and how many more.
    short: BTreeMap<Arc<str>, u64>,
    /// The partners whose clients could not be looked up, or not all of them, and why.
    failed: BTreeMap<Arc<str>, opsramp::Error>,
    /// The ids of those that are known: there is room for each of them, however many others there are.
    known: HashSet<Arc<str>>,
    /// How many of those that are activated are not known.
    new: usize,
    /// How many more of them there was no room for.
    left_out: usize,
}

/// The answer about one partner.
struct Answer {
    /// Also those that were shown before it failed.
    clients: Vec<ClientInfo>,
    /// How many more the server counts than it shows.
    more: Result<u64, opsramp::Error>,
}

/// What the pages of a partner's clients have shown so far.
#[derive(Debug, Default)]
struct Shown {
    clients: Vec<ClientInfo>,
    ids: HashSet<String>,
    activated: usize,
    /// Items, each client once, those that could not be read included.
    count: u64,
    /// What the last page told.
    total: u64,
    /// The largest that any page told: where one falls, a client may have slipped over the border to a page
    /// that had been read.
    largest_total: u64,
}

/// What follows from a look-up.
#[derive(Debug)]
struct Decision {
    /// Who is polled from now on.
    tenants: Tenants,
    /// What the look-up says of each partner, in their order.
    verdicts: Vec<Verdict>,
    /// Clients that are new and for which there is no room.
    left_out: usize,
    /// Whether they are looked up again soon: not everything is certain, or nobody of a partner was shown, for
    /// whom an hour is too long to wait.
    again: bool,
}

/// What a look-up says of a partner.
#[derive(Debug)]
struct Verdict {
    kind: Kind,
    /// How many of its clients that are known were not shown.
    missing: usize,
}

#[derive(Debug)]
enum Kind {
    /// Whoever is not shown has gone.
    Sound,
    /// So has whoever is not shown, although the server counts so many more: it always does.
    ShortAsEver(u64),
    /// The server counts so many more than it shows: any of those it does not show may be one of them.
    Short(u64),
    /// It lacks most of those that are known, for which others must agree: an empty list for a moment would
    /// stop all of them.
    LacksMost,
    /// It tells nothing about whoever is not shown.
    Failed(opsramp::Error),
}

/// The first pause after a look-up that failed.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(5);
/// Look-ups in a row that count the same number of clients too many, or lack most, and lack the same, before
/// that is believed: with the pauses between them more than a minute, as whoever goes by mistake may be missed
/// for an hour.
const PATIENCE: u32 = 5;
/// How often it is told that this is believed.
const TELL_SURPLUS_EVERY: Duration = Duration::from_secs(60 * 60);
/// Partners that are asked at the same time, so that one that does not answer delays the others little.
const PARTNERS_AT_ONCE: usize = 4;
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
            let both = format!("{name} ({id})");
            let is_taken = bearers.contains_key(&*both) || ids.contains(&*both);
            if is_taken {
                Arc::clone(id)
            } else {
                both.into()
            }
        } else {
            Arc::clone(name)
        };
        let id = Arc::clone(id);
        Tenant { id, name }
    };
    tenants.iter().map(called).collect()
}

/// The clients of some partners. `known`: the ids of those that are known.
pub(super) async fn clients_of(
    client: &Client,
    partners: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
) -> Clients {
    let ask = |partner: Arc<str>| {
        let client = client.clone();
        async move { (ask_about(&client, &partner).await, partner) }
    };
    let mut answers = stream::iter(partners).map(ask).buffered(PARTNERS_AT_ONCE);
    let mut found = Clients {
        known,
        ..Clients::default()
    };
    while let Some((answer, partner)) = answers.next().await {
        found.take_in(answer, &partner);
    }
    found
}

/// The clients of a partner.
async fn ask_about(client: &Client, partner: &str) -> Answer {
    let mut shown = Shown::default();
    let mut next = Some(1);
    while let Some(page_no) = next.filter(|page| *page <= MAX_CLIENT_PAGES) {
        let answer = client.clients(partner, page_no).await;
        next = match answer.and_then(|answer| answer.clients(page_no)) {
            Ok(page) => shown.take_in(page),
            Err(error) => {
                return Answer {
                    clients: shown.clients,
                    more: Err(error),
                };
            }
        };
    }
    shown.into_answer()
}

fn tell_of_too_many(account: &str) {
    tracing::warn!(
        account,
        "the account has more than {MAX_CLIENTS} clients; the others are not polled"
    );
}

/// Who is polled after a look-up that found these.
fn decide(known: &Tenants, found: Clients, partners: &mut [Partner]) -> Decision {
    let mut held = Tenants::new();
    let mut verdicts = Vec::new();
    for Partner { status, doubts, .. } in &mut *partners {
        let of_partner = known.iter().filter(|(_, partner)| **partner == status.id);
        let count = of_partner.clone().count();
        let unseen = of_partner.filter(|(tenant, _)| !found.shows(&tenant.id));
        let missing: BTreeSet<_> = unseen
            .clone()
            .map(|(tenant, _)| Arc::clone(&tenant.id))
            .collect();
        let verdict = Verdict {
            missing: missing.len(),
            kind: match found.failed.get(&status.id) {
                Some(error) => Kind::Failed(error.clone()),
                None => {
                    let more = found.short.get(&status.id).copied();
                    doubts.judge(more.unwrap_or(0), missing, count)
                }
            },
        };
        if verdict.is_provisional() {
            held.extend(unseen.map(|(tenant, partner)| (tenant.clone(), Arc::clone(partner))));
        }
        verdicts.push(verdict);
    }
    let is_anybody_empty = !found.empty.is_empty();
    let left_out = found.left_out;
    let mut tenants = found.into_tenants();
    let known_ids: HashSet<&Arc<str>> = known.keys().map(|tenant| &tenant.id).collect();
    // Whoever is polled already goes before those that are new.
    let mut too_many = (tenants.len() + held.len()).saturating_sub(MAX_CLIENTS);
    let left_out = left_out + too_many;
    tenants.retain(|tenant, _| {
        let stays = too_many == 0 || known_ids.contains(&tenant.id);
        too_many -= usize::from(!stays);
        stays
    });
    tenants.extend(held);
    let again = verdicts.iter().any(Verdict::is_provisional) || is_anybody_empty;
    Decision {
        tenants,
        verdicts,
        left_out,
        again,
    }
}

// === impl AccountClient ===

impl AccountClient {
    /// In place of another one, if there was one: whose clients are polled on meanwhile.
    pub(super) fn new(
        options: opsramp::Options,
        client: Client,
        metrics: AccountMetrics,
        old: Option<Self>,
    ) -> Self {
        let generation = old.as_ref().map_or(0, |old| old.generation + 1);
        let (partners, discovered) = old
            .map(|old| (old.partners, old.discovered))
            .unwrap_or_default();
        let mut new = Self {
            options,
            client,
            metrics,
            generation,
            partners: Vec::new(),
            discovered,
            look_up: None,
            look_up_at: Instant::now(),
            failures: 0,
        };
        let ids = partners.iter().map(|it| Arc::clone(&it.status.id));
        new.begin_with(ids.collect(), &partners);
        new
    }

    /// Has the clients of these partners looked up from now on, as if for the first time.
    fn begin_with(&mut self, partners: Vec<Arc<str>>, before: &[Partner]) {
        // Where there was nobody, nothing is searched until these have been asked as well.
        let is_anybody_known = !self.discovered.is_empty();
        let was_known = |id: &Arc<str>| {
            let mut before = before.iter().map(|it| &it.status);
            before.any(|before| before.id == *id && before.is_known)
        };
        let partner = |id| {
            let is_known = is_anybody_known && was_known(&id);
            Partner::new(id, is_known)
        };
        self.partners = partners.into_iter().map(partner).collect();
        self.look_up = None;
        self.look_up_at = Instant::now();
        self.failures = 0;
    }

    /// The ids of the partners whose clients are looked up.
    pub(super) fn partners(&self) -> Vec<Arc<str>> {
        let partners = self.partners.iter();
        partners.map(|it| Arc::clone(&it.status.id)).collect()
    }

    /// How many clients the look-ups have left to be polled; `None`: not all of the partners have been
    /// looked up yet.
    fn found(&self) -> Option<usize> {
        let all = self.partners.iter().all(|it| it.is_looked_up);
        all.then_some(self.discovered.len())
    }

    /// What is known of the partners' clients; `None` without discovery.
    pub(super) fn discovery(&self) -> Option<DiscoveryStatus> {
        let status = || DiscoveryStatus {
            clients: self.found(),
            partners: self.partners.iter().map(|it| it.status.clone()).collect(),
        };
        (!self.partners.is_empty()).then(status)
    }

    /// Has the clients of these partners looked up from now on, at once where they are others than
    /// before. Known clients of a partner that is still among them are polled on meanwhile.
    pub(super) fn look_up_clients_of(&mut self, partners: Vec<Arc<str>>) {
        if self.partners() == partners {
            return;
        }
        self.discovered
            .retain(|_, partner| partners.contains(partner));
        let before = std::mem::take(&mut self.partners);
        self.begin_with(partners, &before);
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
    pub(super) fn take_over(&mut self, found: Clients) -> bool {
        self.look_up = None;
        let had = self.found();
        let Decision {
            tenants,
            verdicts,
            left_out,
            again,
        } = decide(&self.discovered, found, &mut self.partners);
        for (partner, verdict) in self.partners.iter_mut().zip(&verdicts) {
            partner.take_over(verdict);
        }
        if again {
            self.look_up_again();
        } else {
            self.failures = 0;
        }
        self.tell(&verdicts, &tenants);
        let account = &self.options.name;
        if left_out > 0 {
            tell_of_too_many(account);
        }
        let not_in = |one: &Tenants, other: &Tenants| {
            one.keys().filter(|it| !other.contains_key(*it)).count()
        };
        let new = not_in(&tenants, &self.discovered);
        let gone = not_in(&self.discovered, &tenants);
        let is_other = self.discovered != tenants;
        self.discovered = tenants;
        if self.found() == Some(0) && had != Some(0) {
            tracing::warn!(
                %account,
                "the server shows no activated client of the partner; nothing of the account is searched until it shows one"
            );
        }
        if is_other {
            let clients = self.discovered.len();
            tracing::info!(%account, clients, new, gone, "looked up the clients of the partner");
        }
        is_other
    }

    /// Says what was wrong with a look-up, after which these are polled.
    fn tell(&mut self, verdicts: &[Verdict], tenants: &Tenants) {
        let account = &self.options.name;
        let polled: HashSet<&Arc<str>> = tenants.values().collect();
        let mut failed = Vec::new();
        let now = Instant::now();
        for (partner, Verdict { kind, missing }) in self.partners.iter_mut().zip(verdicts) {
            let id = &partner.status.id;
            match kind {
                Kind::Sound => {}
                Kind::Failed(error) => {
                    let meanwhile = if polled.contains(id) {
                        "those known are polled on"
                    } else if tenants.is_empty() {
                        "nothing of the account is searched until that works"
                    } else {
                        "none of them is searched until that works"
                    };
                    let error = (error.reason(), error.chain().to_string());
                    failed.push((id, (meanwhile, error)));
                }
                Kind::Short(more) => {
                    tracing::warn!(%account, partner = %id, more, missing, "the server counts more clients of the partner than it shows; they are looked up again soon");
                }
                Kind::LacksMost => {
                    tracing::warn!(%account, partner = %id, missing, "the server shows few of the clients of the partner that are known; they are looked up again soon");
                }
                Kind::ShortAsEver(more) => {
                    if partner.doubts.is_to_be_told(now) {
                        tracing::warn!(%account, partner = %id, more, missing, "the server goes on counting more clients of the partner than it shows; those that it does not show are not polled");
                    }
                }
            }
        }
        for (partners, (meanwhile, (reason, error))) in alike(failed) {
            tracing::error!(
                %account,
                partner = listed(&partners),
                reason,
                error,
                "cannot look up the clients of the partner; {meanwhile}"
            );
        }
    }

    /// Has the clients looked up sooner than usual, and less soon each time in a row.
    fn look_up_again(&mut self) {
        let pause = DISCOVERY_PAUSE * (1 << self.failures.min(6));
        self.failures += 1;
        self.look_up_at = Instant::now() + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
    }
}

// === impl Partner ===

impl Partner {
    fn new(id: Arc<str>, is_known: bool) -> Self {
        Self {
            status: PartnerStatus {
                id,
                is_known,
                last: None,
            },
            is_looked_up: false,
            doubts: Doubts::default(),
        }
    }

    fn take_over(&mut self, verdict: &Verdict) {
        self.status.last = Some(match &verdict.kind {
            Kind::Failed(error) => Err(error.chain().to_string()),
            _ => {
                self.is_looked_up = true;
                self.status.is_known = true;
                Ok(())
            }
        });
    }
}

// === impl Doubts ===

impl Doubts {
    /// Judges a look-up that did not show these of so many known clients, and counted so many more than
    /// it showed.
    fn judge(&mut self, more: u64, missing: BTreeSet<Arc<str>>, known: usize) -> Kind {
        let lacks_most = 2 * missing.len() > known;
        if more == 0 && !lacks_most {
            self.0 = None;
            return Kind::Sound;
        }
        let doubt = match &mut self.0 {
            Some(same) if same.more == more && same.missing == missing => same,
            other => other.insert(Doubt {
                more,
                missing,
                times: 0,
                told: None,
            }),
        };
        doubt.times = doubt.times.saturating_add(1);
        let is_believed = doubt.times >= PATIENCE;
        if is_believed {
            // They are not known any more.
            doubt.missing.clear();
        }
        match more {
            0 if is_believed => Kind::Sound,
            0 => Kind::LacksMost,
            more if is_believed => Kind::ShortAsEver(more),
            more => Kind::Short(more),
        }
    }

    /// Whether it is told again that the server counts too many, and that this is believed.
    fn is_to_be_told(&mut self, now: Instant) -> bool {
        let Some(doubt) = &mut self.0 else {
            return false;
        };
        let is_due = |told| now.duration_since(told) >= TELL_SURPLUS_EVERY;
        let is_due = doubt.told.is_none_or(is_due);
        if is_due {
            doubt.told = Some(now);
        }
        is_due
    }
}

// === impl LookUpTask ===

impl Drop for LookUpTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl Verdict ===

impl Verdict {
    /// Whether another look-up must tell who has gone.
    fn is_provisional(&self) -> bool {
        match self.kind {
            Kind::Sound | Kind::ShortAsEver(_) => false,
            Kind::Short(_) | Kind::LacksMost | Kind::Failed(_) => true,
        }
    }
}

// === impl Shown ===

impl Shown {
    /// Takes in a page. Brings the number of the next one, if it is to be read.
    fn take_in(&mut self, page: ClientsPage) -> Option<u64> {
        // Paging over a living list can show a client twice, and some servers never end.
        let of_page = page.clients.len();
        let is_new = |it: &ClientInfo| self.ids.insert(it.id.clone());
        let new: Vec<_> = page.clients.into_iter().filter(is_new).collect();
        let repeated = of_page - new.len();
        self.activated += new.iter().filter(|it| it.activated).count();
        self.clients.extend(new);
        self.count += (page.shown - repeated) as u64;
        self.total = page.total.unwrap_or(self.total);
        self.largest_total = self.largest_total.max(self.total);
        let is_behind = repeated == of_page && self.count >= self.total;
        page.next_page
            .filter(|_| !is_behind && self.activated <= MAX_CLIENTS)
    }

    fn into_answer(self) -> Answer {
        Answer {
            clients: self.clients,
            more: Ok(self.largest_total.saturating_sub(self.count)),
        }
    }
}

// === impl Clients ===

impl Clients {
    /// Takes in what was said of a partner.
    fn take_in(&mut self, answer: Answer, partner: &Arc<str>) {
        match answer.more {
            Ok(0) => {}
            Ok(more) => {
                self.short.insert(Arc::clone(partner), more);
            }
            Err(error) => {
                self.failed.insert(Arc::clone(partner), error);
            }
        }
        if !answer.clients.iter().any(|it| it.activated) {
            self.empty.insert(Arc::clone(partner));
        }
        for found in answer.clients {
            if !found.activated {
                self.deactivated.insert(found.id);
                continue;
            }
            let is_new = !self.known.contains(found.id.as_str());
            match self.activated.entry(found.id) {
                Entry::Occupied(_) => {}
                Entry::Vacant(_) if is_new && self.new == MAX_CLIENTS => self.left_out += 1,
                Entry::Vacant(place) => {
                    place.insert((found.name, Arc::clone(partner)));
                    self.new += usize::from(is_new);
                }
            }
        }
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

    fn answer(clients: Vec<ClientInfo>) -> Answer {
        let more = Ok(0);
        Answer { clients, more }
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

    /// Partners, and their clients that are known.
    struct Known {
        partners: Vec<Partner>,
        tenants: Tenants,
        /// Whether they are looked up again soon.
        again: bool,
    }

    impl Known {
        /// So many of the first one, so many of the second one.
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

        /// The numbers of those that are polled after a look-up, and how it was judged.
        fn after(&mut self, found: Clients) -> (Vec<usize>, Vec<Verdict>) {
            let decision = decide(&self.tenants, found, &mut self.partners);
            self.tenants = decision.tenants;
            self.again = decision.again;
            let number = |tenant: &Tenant| tenant.id.strip_prefix("client_")?.parse().ok();
            let polled = self.tenants.keys().filter_map(number).collect();
            (polled, decision.verdicts)
        }

        /// The same of one partner, that shows some and counts so many more.
        fn after_one(&mut self, shown: Vec<ClientInfo>, more: u64) -> (Vec<usize>, Verdict) {
            let (polled, mut verdicts) = self.after(found_of([(shown, Ok(more))]));
            (polled, verdicts.remove(0))
        }
    }

    fn msp(number: usize) -> Arc<str> {
        format!("msp_{number}").into()
    }

    /// What is found where the first partner answers the first of these, the second one the second.
    fn found_of<const N: usize>(
        answers: [(Vec<ClientInfo>, Result<u64, opsramp::Error>); N],
    ) -> Clients {
        let mut found = Clients::default();
        for (number, (clients, more)) in (1..).zip(answers) {
            found.take_in(Answer { clients, more }, &msp(number));
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
            for nth in 1..PATIENCE {
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
        // Others have somebody.
        let mut known = Known::of([2, 0]);
        known.after(found_of([(page(0..2), Ok(0)), (Vec::new(), Ok(0))]));
        assert!(known.again);
        known.after(found_of([(page(0..2), Ok(0)), (page(2..3), Ok(0))]));
        assert!(!known.again);
        // All of them are another partner's, which was asked first.
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
        // What it showed before it failed counts, what it did not does not.
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
        for nth in 1..PATIENCE {
            let (polled, verdict) = known.after_one(page(0..3), 1);
            assert_eq!(polled.len(), 4, "look-up {nth}");
            assert!(matches!(verdict.kind, Kind::Short(1)), "{verdict:?}");
        }
        let (polled, verdict) = known.after_one(page(0..3), 1);
        assert_eq!(polled, [0, 1, 2]);
        assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
        // It stays so, also for those that are new.
        let (polled, verdict) = known.after_one(page(0..4), 1);
        assert_eq!(polled, [0, 1, 2, 3]);
        assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
        // And another one that is missing needs as many look-ups again.
        for _ in 1..PATIENCE {
            assert_eq!(known.after_one(page(1..4), 1).0, [0, 1, 2, 3]);
        }
        assert_eq!(known.after_one(page(1..4), 1).0, [1, 2, 3]);
        // Most of them, too.
        for _ in 1..PATIENCE {
            assert_eq!(known.after_one(Vec::new(), 1).0, [1, 2, 3]);
        }
        let (polled, verdict) = known.after_one(Vec::new(), 1);
        assert!(polled.is_empty(), "{polled:?}");
        assert!(matches!(verdict.kind, Kind::ShortAsEver(1)), "{verdict:?}");
    }

    #[test]
    fn look_ups_that_differ_let_nobody_go_however_many_are_short() {
        for other in [
            // Another number, another one that is missing, none too many in between.
            |known: &mut Known| known.after_one(page(0..3), 2),
            |known: &mut Known| known.after_one(page(1..4), 1),
            |known: &mut Known| known.after_one(page(0..4), 0),
            // Most of them for a moment.
            |known: &mut Known| known.after_one(Vec::new(), 0),
        ] {
            let mut known = Known::of([4]);
            for _ in 0..3 {
                for _ in 1..PATIENCE {
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
        // It is the same one.
        of_second[0].name = "Another".to_owned();
        let of_third = page(grown..2 * grown);
        let mut found = Clients {
            known: known.tenants.keys().map(|it| Arc::clone(&it.id)).collect(),
            ..Clients::default()
        };
        found.take_in(answer(of_third), &msp(3));
        found.take_in(answer(of_first.collect()), &msp(1));
        found.take_in(answer(of_second), &msp(2));
        // What is kept until it is decided is bounded.
        assert_eq!(found.activated.len(), 2 * MAX_CLIENTS);
        known.partners.push(Partner::new(msp(3), true));
        let decision = decide(&known.tenants, found, &mut known.partners);
        assert_eq!(decision.left_out, grown + MAX_CLIENTS);
        assert!(decision.verdicts.iter().all(|it| it.missing == 0));
        let ids =
            |tenants: &Tenants| -> Vec<_> { tenants.keys().map(|it| Arc::clone(&it.id)).collect() };
        assert_eq!(ids(&decision.tenants), ids(&known.tenants));
    }

    /// The pages of a list of which a client is deleted while they are read, so that the next one slips over the
    /// border.
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
        // One that is new in front has others shown twice, and is not.
        assert_eq!(
            pages([(0..100, 250), (99..199, 251), (199..250, 251)]),
            (250, 1)
        );
    }
}
