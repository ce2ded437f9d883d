//! The simulated OpsRamp instance: tenants, alerts, tokens, allowances and the record of all that
//! happened.
//!
//! A pure, synchronous state: no I/O and no clock; the time is an argument. The HTTP layer is one
//! caller, a property test that changes the world between two pages is another.

mod changes;
mod clients;
mod search;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::alert::{Alert, AlertId, Priority, State, Status};
use super::allowance::{Bucket, Meter, RateLimit};
use super::options::{Options, TenantOptions, Ts};
use super::order::{Key, Ordered};
use super::query::{Query, Sort};
use super::record::{AlertChange, Entry, Record};
use super::refusal::Refusal;
use super::render::TenantFacts;
use super::scenery::{self, mix};
use super::token::{Grant, Issuer, TokenRequest};

/// The age of the oldest alerts at the start, in seconds.
const PAST: i64 = 30 * 86_400;

/// The instance.
#[derive(Debug)]
pub struct World {
    options: Options,
    seed: u64,
    tenants: Vec<Tenant>,
    tenant_of: HashMap<String, u32>,
    /// All alerts, by slot. None is ever removed.
    alerts: Vec<Alert>,
    /// The slots of alerts whose id was chosen, by id.
    slot_of: HashMap<String, u32>,
    issuer: Issuer,
    record: Record,
    /// Counts searches, for what must differ from one search to the next.
    searches: u64,
}

#[derive(Debug)]
struct Tenant {
    facts: Arc<TenantFacts>,
    created: i64,
    updated: i64,
    activated: bool,
    partner: Option<u32>,
    is_partner: bool,
    clients: Vec<u32>,
    /// Slots of the tenant's own alerts.
    own: Vec<u32>,
    /// The open alerts in the order of [`Options::ts`]; those of a partner include its clients'.
    open: Ordered,
    /// Grows with every change to one of the alerts; 0 only while there are none.
    generation: u64,
    selection: Selection,
    /// The used allowance, by [`Meter`].
    spent: [Bucket; Meter::COUNT],
}

/// The result of the last search that was not simply for the open alerts. It is kept because its
/// other pages are likely to be requested next.
#[derive(Debug, Default)]
struct Selection {
    generation: u64,
    query: Query,
    sort: Sort,
    /// The time of the search in seconds, if the query is relative to it.
    at: Option<i64>,
    /// The slots of the result, in ascending order.
    slots: Vec<u32>,
}

/// The present state of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which alert.
    pub id: AlertId,
    /// `uniqueId`.
    pub unique_id: String,
    /// The client that the alert belongs to.
    pub tenant: String,
    /// `currentState`.
    pub state: State,
    /// `status`.
    pub status: Status,
    /// `priority`.
    pub priority: Priority,
    /// Seconds since the epoch.
    pub created: i64,
    /// Seconds since the epoch.
    pub updated: i64,
    /// `repeatCount`.
    pub repeats: u32,
}

// === impl World ===

impl World {
    /// Creates an instance as the options describe it.
    pub fn new(options: Options, now: Timestamp) -> Self {
        let mut world = Self {
            seed: mix(options.seed),
            tenants: Vec::new(),
            tenant_of: HashMap::new(),
            alerts: Vec::new(),
            slot_of: HashMap::new(),
            issuer: Issuer::default(),
            record: Record::default(),
            searches: 0,
            options: Options {
                credentials: Vec::new(),
                ..Options::default()
            },
        };
        world.set_options(options, now);
        world
    }

    /// Returns the present options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Changes the options. New tenants and keys are added; none is removed. The seed of a world
    /// stays.
    pub fn set_options(&mut self, options: Options, now: Timestamp) {
        let reorder = self.options.ts != options.ts;
        let known = std::mem::replace(&mut self.options, options).credentials;
        if reorder {
            self.reorder();
        }
        for credential in self.options.credentials.clone() {
            // If a secret was rotated since, a change of another option must not restore the old
            // secret.
            if known.contains(&credential) {
                continue;
            }
            self.issuer.set_secret(&credential.key, &credential.secret);
        }
        for tenant in self.options.tenants.clone() {
            if !self.tenant_of.contains_key(&tenant.id) {
                self.add_tenant(&tenant, now);
            }
        }
    }

    // --- tenants ---

    /// Adds a tenant, and its partner if that does not exist. A tenant that exists is left alone.
    pub fn add_tenant(&mut self, tenant: &TenantOptions, now: Timestamp) {
        if self.tenant_of.contains_key(&tenant.id) {
            return;
        }
        let partner = tenant.partner.as_ref().map(|id| {
            let options = TenantOptions {
                id: id.clone(),
                ..TenantOptions::default()
            };
            self.add_tenant(&options, now);
            let partner = self.tenant_of[id];
            self.tenants[partner as usize].is_partner = true;
            partner
        });
        let digits = tenant.id.rsplit('_').next().unwrap_or_default();
        let hash = tenant
            .id
            .bytes()
            .fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        let number = digits.parse().unwrap_or(hash % 1_000_000);
        let name = match &tenant.name {
            Some(name) => name.clone(),
            None => format!("Example {}", tenant.id),
        };
        let index = self.tenants.len() as u32;
        self.tenants.push(Tenant {
            facts: Arc::new(TenantFacts {
                id: tenant.id.clone(),
                name,
                number,
            }),
            created: now.as_second() - PAST,
            updated: now.as_second() - PAST,
            activated: true,
            partner,
            is_partner: tenant.id.starts_with("msp_"),
            clients: Vec::new(),
            own: Vec::new(),
            open: Ordered::default(),
            generation: 0,
            selection: Selection::default(),
            spent: Default::default(),
        });
        self.tenant_of.insert(tenant.id.clone(), index);
        if let Some(partner) = partner {
            self.tenants[partner as usize].clients.push(index);
        }
        self.populate(index, tenant.alerts, now);
    }

    /// Activates or deactivates a tenant. Requests for a deactivated one are answered with 410.
    pub fn set_activated(
        &mut self,
        tenant: &str,
        activated: bool,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let index = self.tenant(tenant)?;
        let tenant = &mut self.tenants[index as usize];
        tenant.activated = activated;
        tenant.updated = now.as_second();
        Ok(())
    }

    /// Returns the ids of all tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.tenants.iter().map(|tenant| tenant.facts.id.as_str())
    }

    // --- looking at the world from outside ---

    /// Returns the alert with a `uniqueId`.
    pub fn find(&self, unique_id: &str) -> Option<AlertId> {
        if let Some(slot) = self.slot_of.get(unique_id) {
            return Some(AlertId(*slot));
        }
        let id = AlertId::from_number(unique_id.parse().ok()?)?;
        let alert = self.alerts.get(id.0 as usize)?;
        // An alert whose id was chosen is not found by its number.
        (alert.unique_id() == unique_id).then_some(id)
    }

    /// Returns the present state of an alert.
    pub fn snapshot(&self, id: AlertId) -> Option<Snapshot> {
        let alert = self.alerts.get(id.0 as usize)?;
        Some(Snapshot {
            id,
            unique_id: alert.unique_id(),
            tenant: self.tenants[alert.tenant as usize].facts.id.clone(),
            state: alert.state,
            status: alert.status,
            priority: alert.priority,
            created: alert.created,
            updated: alert.updated,
            repeats: alert.repeats,
        })
    }

    /// Returns the open alerts of a tenant, oldest first. Those of a partner include its clients'.
    pub fn open_alerts(&self, tenant: &str) -> Result<Vec<AlertId>, Refusal> {
        let tenant = &self.tenants[self.tenant(tenant)? as usize];
        let keys = tenant.open.page(0, usize::MAX, false);
        Ok(keys.into_iter().map(|(_, slot)| AlertId(slot)).collect())
    }

    /// Returns how many alerts of a tenant are open.
    pub fn open_count(&self, tenant: &str) -> Result<usize, Refusal> {
        Ok(self.tenants[self.tenant(tenant)? as usize].open.len())
    }

    /// Returns the open alert at a rank, counted from the oldest.
    pub(super) fn nth_open(&self, tenant: &str, rank: usize) -> Option<AlertId> {
        let tenant = self.tenant(tenant).ok()?;
        let keys = self.tenants[tenant as usize].open.page(rank, 1, false);
        keys.first().map(|(_, slot)| AlertId(*slot))
    }

    /// Returns the tenants that have alerts of their own: all but partners with clients.
    pub(super) fn tenants_with_own_alerts(&self) -> impl Iterator<Item = &str> {
        let tenants = self
            .tenants
            .iter()
            .filter(|tenant| tenant.clients.is_empty());
        tenants.map(|tenant| tenant.facts.id.as_str())
    }

    /// Returns what happened, from a position on. Positions count entries; a storm is one entry.
    pub fn changes_since(&self, since: usize) -> Vec<AlertChange> {
        let entries = self.record.since(since).iter();
        entries.flat_map(|entry| self.expand(*entry)).collect()
    }

    /// Returns the end of the record: the position from which [`Self::changes_since`] shows what
    /// happens from now on.
    pub fn record_position(&self) -> usize {
        self.record.len()
    }

    // --- the API ---

    /// `POST /auth/oauth/token`.
    pub fn grant(&mut self, request: TokenRequest<'_>, now: Timestamp) -> Result<Grant, Refusal> {
        self.issuer.grant(request, &self.options, now)
    }

    /// Checks the token that a request carries.
    pub fn authorise(&self, token: Option<&str>, now: Timestamp) -> Result<(), Refusal> {
        self.issuer.check(token, &self.options, now)
    }

    /// Revokes the tokens of a key, or of all keys. Returns how many.
    pub fn revoke_tokens(&mut self, key: Option<&str>) -> usize {
        self.issuer.revoke(key)
    }

    /// Gives a key another secret, or adds a key. Tokens stay valid.
    pub fn set_secret(&mut self, key: &str, secret: &str) {
        self.issuer.set_secret(key, secret);
    }

    /// Checks that the tenant exists and is active.
    pub fn check_active(&self, tenant: &str) -> Result<(), Refusal> {
        let index = self.tenant(tenant)?;
        match self.tenants[index as usize].activated {
            true => Ok(()),
            false => Err(Refusal::TenantDeactivated(tenant.to_owned())),
        }
    }

    /// Counts a request against the tenant's allowance. `None` if the allowance is not enforced.
    pub fn count_request(
        &mut self,
        tenant: &str,
        meter: Meter,
        now: Timestamp,
    ) -> Result<Option<RateLimit>, Refusal> {
        let index = self.tenant(tenant)?;
        let allowance = self.options.allowance;
        if !allowance.enforced {
            return Ok(None);
        }
        let tenant = &mut self.tenants[index as usize];
        let limit = match (meter.is_paginated(), tenant.is_partner) {
            (true, false) => allowance.client_paginated,
            (true, true) => allowance.partner_paginated,
            (false, false) => allowance.client_other,
            (false, true) => allowance.partner_other,
        };
        let bucket = &mut tenant.spent[meter as usize];
        Ok(Some(bucket.take(limit, allowance.window, now)))
    }

    // --- within ---

    fn tenant(&self, id: &str) -> Result<u32, Refusal> {
        let index = self.tenant_of.get(id).copied();
        index.ok_or_else(|| Refusal::NoSuchTenant(id.to_owned()))
    }

    fn seed_of(&self, slot: u32) -> u64 {
        mix(self.seed ^ u64::from(slot))
    }

    fn key_of(&self, alert: &Alert) -> Key {
        let at = match self.options.ts {
            Ts::Created => alert.created,
            Ts::Updated => alert.updated,
        };
        (at, alert.slot)
    }

    /// Returns the tenants that see the alerts of `tenant`: itself, and its partner.
    fn audience(&self, tenant: u32) -> impl Iterator<Item = u32> + use<> {
        let partner = self.tenants[tenant as usize].partner;
        std::iter::once(tenant).chain(partner)
    }

    fn expand(&self, entry: Entry) -> impl Iterator<Item = AlertChange> {
        (entry.first..entry.first + entry.count).map(move |slot| {
            let alert = &self.alerts[slot as usize];
            let born_with = || scenery::first_state(self.seed_of(slot));
            AlertChange {
                at: entry.at,
                tenant: self.tenants[alert.tenant as usize].facts.id.clone(),
                alert_id: alert.unique_id(),
                what: entry.what,
                state: entry.state.unwrap_or_else(born_with),
                status: entry.status,
            }
        })
    }

    fn reorder(&mut self) {
        for tenant in &mut self.tenants {
            tenant.open = Ordered::default();
            tenant.generation += 1;
        }
        for slot in 0..self.alerts.len() {
            let alert = &self.alerts[slot];
            if !alert.is_open() {
                continue;
            }
            let key = self.key_of(alert);
            for index in self.audience(alert.tenant) {
                self.tenants[index as usize].open.insert(key);
            }
        }
    }
}
