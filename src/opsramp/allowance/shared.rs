//! Who shares allowances: all accounts of a server that ask for the same tenant, because the server
//! counts by tenant, whoever asks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Allowance;

/// The documented ceilings of paginated requests a minute: of a client and of a partner.
const PAGINATED_CEILINGS: (u32, u32) = (50, 150);
/// The same for all other requests.
const NON_PAGINATED_CEILINGS: (u32, u32) = (500, 1500);
/// How often the allowances are dropped that nobody needs any more.
const TIDIED_EVERY: Duration = Duration::from_secs(60);

/// The allowances of all tenants. Clients that are made with the same ones share them. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct Allowances(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// By the server's URL, as all its spellings are written, and by the tenant's id.
    servers: HashMap<Arc<str>, HashMap<Arc<str>, Arc<OfTenant>>>,
    tidied_at: Option<Instant>,
}

/// A tenant's allowances, one for each category of requests.
#[derive(Debug)]
struct OfTenant {
    search: Allowance,
    alert: Allowance,
    clients: Allowance,
    /// The ceilings of all who share the allowances now.
    ceilings: Mutex<Vec<u32>>,
}

/// An account's share in the allowances of a tenant. The lowest ceiling of those who have a share
/// holds for all of them.
#[derive(Debug)]
pub(in crate::opsramp) struct Share {
    tenant: Arc<OfTenant>,
    ceiling: u32,
}

/// A search's share in the allowances of a tenant. Keeps requests a minute free for its polls,
/// until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    share: Share,
    milli: u32,
}

// === impl Allowances ===

impl Allowances {
    /// Returns a share in the allowances of a server's tenant, for an account with its `own`
    /// ceiling of paginated requests.
    pub(in crate::opsramp) fn share(
        &self,
        server: &Arc<str>,
        tenant: &str,
        own: Option<u32>,
    ) -> Share {
        let ceiling = paginated_ceiling(own, tenant);
        let mut known = self.0.lock();
        known.tidy(Instant::now());
        let tenants = known.servers.entry(Arc::clone(server)).or_default();
        let of_tenant = if let Some(of_tenant) = tenants.get(tenant) {
            Arc::clone(of_tenant)
        } else {
            let made = Arc::new(OfTenant::new(tenant, ceiling));
            tenants.insert(Arc::from(tenant), Arc::clone(&made));
            made
        };
        Share::new(of_tenant, ceiling)
    }
}

impl Known {
    /// Drops the allowances in which nobody has a share, unless what they know still counts: an
    /// account may come back, or another may ask for its tenants.
    fn tidy(&mut self, now: Instant) {
        if self.tidied_at.is_some_and(|at| now < at + TIDIED_EVERY) {
            return;
        }
        self.tidied_at = Some(now);
        self.servers.retain(|_, tenants| {
            tenants.retain(|_, it| Arc::strong_count(it) > 1 || it.is_needed(now));
            !tenants.is_empty()
        });
    }
}

// === impl OfTenant ===

impl OfTenant {
    fn new(tenant: &str, paginated: u32) -> Self {
        Self {
            search: Allowance::new(paginated),
            alert: Allowance::new(documented(NON_PAGINATED_CEILINGS, tenant)),
            clients: Allowance::new(paginated),
            ceilings: Mutex::default(),
        }
    }

    fn is_needed(&self, now: Instant) -> bool {
        [&self.search, &self.alert, &self.clients]
            .iter()
            .any(|allowance| !allowance.is_as_new(now))
    }

    /// Changes who shares the allowances. The ceiling of requests that are not paginated is always
    /// the documented one.
    fn change_ceilings(&self, change: impl FnOnce(&mut Vec<u32>)) {
        let mut ceilings = self.ceilings.lock();
        change(&mut ceilings);
        // When the last one leaves, nobody is left for whom there could be a ceiling.
        if let Some(&lowest) = ceilings.iter().min() {
            self.search.set_ceiling(lowest);
            self.clients.set_ceiling(lowest);
        }
    }
}

// === impl Share ===

impl Share {
    fn new(tenant: Arc<OfTenant>, ceiling: u32) -> Self {
        tenant.change_ceilings(|ceilings| ceilings.push(ceiling));
        Self { tenant, ceiling }
    }

    pub(in crate::opsramp) fn search(&self) -> &Allowance {
        &self.tenant.search
    }

    pub(in crate::opsramp) fn alert(&self) -> &Allowance {
        &self.tenant.alert
    }

    pub(in crate::opsramp) fn clients(&self) -> &Allowance {
        &self.tenant.clients
    }

    /// Keeps the share, and as many requests a minute as a poll every `interval` needs.
    pub(in crate::opsramp) fn reserve(self, interval: Duration) -> Reservation {
        Reservation {
            milli: self.search().reserve(interval),
            share: self,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.tenant.change_ceilings(|ceilings| {
            if let Some(own) = ceilings.iter().position(|it| *it == self.ceiling) {
                ceilings.swap_remove(own);
            }
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.share.search().release(self.milli);
    }
}

/// Returns how many paginated requests a tenant may make in a minute: our own ceiling, or the
/// documented one.
pub(in crate::opsramp) fn paginated_ceiling(own: Option<u32>, tenant: &str) -> u32 {
    own.unwrap_or(documented(PAGINATED_CEILINGS, tenant))
}

fn documented((client, partner): (u32, u32), tenant: &str) -> u32 {
    if tenant.starts_with("msp_") {
        partner
    } else {
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opsramp::allowance::{Hints, Urgency};

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_tenant_is_kept_while_it_is_shared_or_counts() {
        let allowances = Allowances::default();
        let server = Arc::from("https://a.example/");
        let share = |tenant: &str| allowances.share(&server, tenant, None);
        let is_known = |tenant: &str| {
            let known = allowances.0.lock();
            let tenants = known.servers.get(&server);
            tenants.is_some_and(|it| it.contains_key(tenant))
        };
        let pass = async |seconds| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            // Any request of any tenant brings about that the others are looked through.
            drop(allowances.share(&Arc::from("https://b.example/"), "client_1", None));
        };
        let polled = share("polled").reserve(Duration::from_secs(3600));
        let (asked, refused) = (share("asked"), share("refused"));
        drop(asked.alert().acquire(Urgency::Background, |_| {}).await);
        refused.clients().learn(&Hints {
            throttled: true,
            retry_after: Some(Duration::from_secs(200)),
            ..Hints::default()
        });
        drop((share("idle"), asked, refused));
        pass(59).await;
        assert!(is_known("idle"));
        pass(1).await;
        assert!(!is_known("idle") && !is_known("asked"));
        assert!(is_known("refused") && is_known("polled"));
        pass(140).await;
        assert!(!is_known("refused") && is_known("polled"));
        drop(polled);
        pass(60).await;
        assert!(!allowances.0.lock().servers.contains_key(&server));
    }
}
