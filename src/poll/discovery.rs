//! The clients of an account's partners: which clients there are, which of them are polled, and by
//! what names.
//!
//! Partners are looked up together, but each is judged for itself. A partner that does not answer,
//! or whose answer is not plausible, keeps the clients that it had, and has no influence on those
//! of the others.

mod look_up;
#[cfg(test)]
mod tests;
mod verdict;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{self, AbortHandle},
    time::Instant,
};

pub(crate) use self::look_up::look_up_partner;
pub(super) use self::look_up::{Clients, clients_of};
use self::{
    look_up::MAX_CLIENTS,
    verdict::{Decision, Doubts, Kind, Verdict, decide},
};
use crate::{
    identity::Tenant,
    metrics::AccountMetrics,
    opsramp::{self, Client},
    status::{DiscoveryStatus, PartnerStatus, group_by_value, listed},
};

/// Clients that are polled, with the partner of each.
pub(super) type Tenants = BTreeMap<Tenant, Arc<str>>;

/// What one look-up shows of partners' clients.
#[derive(Debug)]
pub(crate) struct LookedUp {
    /// The activated clients.
    pub(crate) tenants: Vec<Tenant>,
    /// The partners whose clients could not be looked up, or not completely, and the errors.
    pub(crate) failed: BTreeMap<Arc<str>, opsramp::Error>,
    /// The partners for which the server counts more clients than it shows, and how many more.
    pub(crate) short: BTreeMap<Arc<str>, u64>,
    /// Number of items that could not be read as clients.
    pub(crate) unreadable: u64,
    /// Number of activated clients for which there is no room.
    pub(crate) left_out: usize,
}

/// An account's API client, and the clients of partners that it has found.
#[derive(Debug)]
pub(super) struct AccountClient {
    pub(super) client: Client,
    /// The metrics that the API client reports to.
    pub(super) metrics: AccountMetrics,
    /// Grows when the API client is replaced, so that searches notice.
    pub(super) generation: u64,
    /// The partners whose clients are looked up; empty without discovery.
    partners: Vec<Partner>,
    pub(super) discovered: Tenants,
    look_up: Option<LookUpTask>,
    /// When clients are to be looked up next, unless a look-up is under way.
    pub(super) look_up_at: Instant,
    failures: u32,
}

/// A partner whose clients are looked up.
#[derive(Debug)]
struct Partner {
    status: PartnerStatus,
    /// Whether its clients have been found since the partners or the API client last changed.
    is_looked_up: bool,
    /// Whether the last look-up left no doubt about its clients.
    is_certain: bool,
    doubts: Doubts,
}

/// A look-up under way. Dropping it ends the look-up and makes its outcome void.
#[derive(Debug)]
struct LookUpTask(AbortHandle);

/// The first pause after a look-up that failed.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(5);

/// Returns the tenants with names that tell them apart, since two series must not share their
/// labels. If several tenants have one name, each is called by its id. No tenant is called by the
/// id of another one.
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

/// Looks up the clients of some partners, once.
pub(crate) async fn look_up(client: &Client, partners: Vec<Arc<str>>) -> LookedUp {
    let mut found = clients_of(client, partners, HashSet::new()).await;
    LookedUp {
        failed: std::mem::take(&mut found.failed),
        short: std::mem::take(&mut found.short),
        unreadable: found.unreadable,
        left_out: found.left_out,
        tenants: told_apart(&found.into_tenants().keys().collect::<Vec<_>>()),
    }
}

fn tell_of_too_many(account: &str) {
    tracing::warn!(
        account,
        "the account has more than {MAX_CLIENTS} clients; the others are not polled"
    );
}

// === impl AccountClient ===

impl AccountClient {
    /// Creates the API client of an account. If it replaces an `old` one, that one's clients of
    /// partners are polled on meanwhile.
    pub(super) fn new(client: Client, metrics: AccountMetrics, old: Option<Self>) -> Self {
        let generation = old.as_ref().map_or(0, |old| old.generation + 1);
        let (partners, discovered) = old
            .map(|old| (old.partners, old.discovered))
            .unwrap_or_default();
        let mut new = Self {
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

    /// Sets the partners whose clients are looked up from now on, as if for the first time.
    fn begin_with(&mut self, partners: Vec<Arc<str>>, before: &[Partner]) {
        // If no client is known, nothing is searched until these partners have been looked up as
        // well.
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

    /// Number of clients that are polled after the look-ups; `None` until all partners have been
    /// looked up.
    fn found(&self) -> Option<usize> {
        let all = self.partners.iter().all(|it| it.is_looked_up);
        all.then_some(self.discovered.len())
    }

    /// Whether the last look-up left no doubt about the clients of any partner.
    pub(super) fn are_all_known(&self) -> bool {
        self.partners.iter().all(|it| it.is_certain)
    }

    /// What is known of the partners' clients; `None` without discovery.
    pub(super) fn discovery(&self) -> Option<DiscoveryStatus> {
        let status = || DiscoveryStatus {
            clients: self.found(),
            partners: self.partners.iter().map(|it| it.status.clone()).collect(),
        };
        (!self.partners.is_empty()).then(status)
    }

    /// Sets the partners whose clients are looked up from now on; at once if they are others than
    /// before. Known clients of a partner that stays are polled on meanwhile.
    pub(super) fn look_up_clients_of(&mut self, partners: Vec<Arc<str>>) {
        if self.partners() == partners {
            return;
        }
        self.discovered
            .retain(|_, partner| partners.contains(partner));
        let before = std::mem::take(&mut self.partners);
        self.begin_with(partners, &before);
    }

    /// Notes that a look-up has begun, and when the next one is due.
    pub(super) fn look_up_begun(&mut self, look_up: AbortHandle, next: Instant) {
        self.look_up = Some(LookUpTask(look_up));
        self.look_up_at = next;
    }

    /// Whether clients are being looked up.
    pub(super) fn is_looking_up(&self) -> bool {
        self.look_up.is_some()
    }

    /// Whether this is the look-up whose outcome is waited for.
    pub(super) fn awaits(&self, look_up: task::Id) -> bool {
        self.look_up
            .as_ref()
            .is_some_and(|LookUpTask(task)| task.id() == look_up)
    }

    /// Takes over the outcome of the look-up under way. Returns whether other clients are polled
    /// from now on.
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
        let account = self.client.account();
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

    /// Logs what was wrong with a look-up; `tenants` are polled after it.
    fn tell(&mut self, verdicts: &[Verdict], tenants: &Tenants) {
        let account = self.client.account();
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
        for (partners, (meanwhile, (reason, error))) in group_by_value(failed) {
            tracing::error!(
                %account,
                partner = listed(&partners),
                reason,
                error,
                "cannot look up the clients of the partner; {meanwhile}"
            );
        }
    }

    /// Has the clients looked up sooner than usual. The pause doubles with each such look-up in a
    /// row.
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
            is_certain: false,
            doubts: Doubts::default(),
        }
    }

    fn take_over(&mut self, verdict: &Verdict) {
        self.is_certain = !verdict.is_provisional();
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

// === impl LookUpTask ===

impl Drop for LookUpTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
