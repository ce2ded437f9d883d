//! The simulated OpsRamp instance: tenants, alerts, tokens, allowances and the record of all that
//! happened.
//!
//! A pure, synchronous state: no I/O and no clock, the time comes in as an argument. The HTTP
//! layer is one caller, a property test that changes the world between two pages is another.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::alert::{Action, Alert, AlertId, EventType, Extra, Priority, Spec, State, Status};
use super::allowance::{Bucket, Standing};
use super::options::{Options, TenantOptions, Ts};
use super::order::{Key, Ordered};
use super::query::{Query, SearchParams, Sort};
use super::record::{Entry, Happening, Record, What};
use super::refusal::Refusal;
use super::render::{ClientPage, ClientView, Detail, Envelope, Item, Page, TenantFacts, date};
use super::scenery::{self, Scene, mix};
use super::token::{Grant, Issuer, TokenRequest};

/// How far back the alerts reach that are there at the start, in seconds.
const PAST: i64 = 30 * 86_400;

/// The instance.
#[derive(Debug)]
pub struct World {
    options: Options,
    seed: u64,
    tenants: Vec<Tenant>,
    tenant_of: HashMap<String, u32>,
    /// By slot; nothing is ever taken out.
    alerts: Vec<Alert>,
    /// Alerts with an id of their own.
    slot_of: HashMap<String, u32>,
    issuer: Issuer,
    record: Record,
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
    /// Open alerts, for a partner with those of its clients, in the order of [`Options::ts`].
    open: Ordered,
    /// Goes up with every change to one of the alerts.
    generation: u64,
    selection: Option<Selection>,
    paginated: Bucket,
    other: Bucket,
}

/// The outcome of the last search that was not simply for the open alerts: its other pages are
/// likely to be asked for next.
#[derive(Debug)]
struct Selection {
    generation: u64,
    query: Query,
    sort: Sort,
    /// The second, where the query is relative to it.
    at: Option<i64>,
    /// Ascending.
    slots: Vec<u32>,
}

/// How an alert stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Which.
    pub id: AlertId,
    /// `uniqueId`.
    pub unique_id: String,
    /// The client that it belongs to.
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
    /// An instance as the options describe it.
    pub fn new(options: Options, now: Timestamp) -> Self {
        let mut world = Self {
            seed: mix(options.seed),
            tenants: Vec::new(),
            tenant_of: HashMap::new(),
            alerts: Vec::new(),
            slot_of: HashMap::new(),
            issuer: Issuer::default(),
            record: Record::default(),
            options: Options::default(),
        };
        world.set_options(options, now);
        world
    }

    /// The present options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Changes the options. Tenants and keys that are new come into being; none goes away. The
    /// seed of a world stays.
    pub fn set_options(&mut self, options: Options, now: Timestamp) {
        let reorder = self.options.ts != options.ts;
        self.options = options;
        if reorder {
            self.reorder();
        }
        for credential in self.options.credentials.clone() {
            self.issuer.set_secret(&credential.key, &credential.secret);
        }
        for tenant in self.options.tenants.clone() {
            if !self.tenant_of.contains_key(&tenant.id) {
                self.add_tenant(&tenant, now);
            }
        }
    }

    // --- tenants ---

    /// Adds a tenant, and its partner if that is not there; one that exists is left alone.
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
            selection: None,
            paginated: Bucket::default(),
            other: Bucket::default(),
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

    /// The ids of all tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.tenants.iter().map(|tenant| tenant.facts.id.as_str())
    }

    // --- the life of alerts ---

    /// Opens one alert.
    pub fn open(&mut self, tenant: &str, spec: &Spec, now: Timestamp) -> Result<AlertId, Refusal> {
        let index = self.tenant(tenant)?;
        if let Some(text) = &spec.unique_id
            && self.find(text).is_some()
        {
            return Err(Refusal::BadRequest(format!("alert {text:?} exists")));
        }
        let created = spec.created.unwrap_or(now).as_second();
        let slot = self.born(index, spec, created, now.as_second());
        self.note(slot, 1, What::Opened, now);
        Ok(AlertId(slot))
    }

    /// Opens many alerts at once.
    pub fn open_many(
        &mut self,
        tenant: &str,
        count: usize,
        spec: &Spec,
        now: Timestamp,
    ) -> Result<Vec<AlertId>, Refusal> {
        let index = self.tenant(tenant)?;
        if spec.unique_id.is_some() && count > 1 {
            let why = "only one alert can have a certain uniqueId".to_owned();
            return Err(Refusal::BadRequest(why));
        }
        if count == 1 {
            return Ok(vec![self.open(tenant, spec, now)?]);
        }
        let created = spec.created.unwrap_or(now).as_second();
        let first = self.alerts.len() as u32;
        for _ in 0..count {
            self.born(index, spec, created, now.as_second());
        }
        if count > 0 {
            let entry = Entry {
                at: now,
                first,
                count: count as u32,
                what: What::Opened,
                state: spec.state,
                status: Status::New,
            };
            self.record.push(entry);
        }
        Ok((first..first + count as u32).map(AlertId).collect())
    }

    /// Does something to an alert. What changes nothing happens all the same: it is an update.
    pub fn act(&mut self, id: AlertId, action: Action, now: Timestamp) -> Result<(), Refusal> {
        let seed = self.seed;
        self.change(id, now, |alert| {
            let status = match action {
                Action::Acknowledge => Status::Acknowledged,
                Action::Unacknowledge | Action::Unsuppress | Action::Reopen => Status::New,
                Action::Ticket => Status::Ticketed,
                Action::Suppress => Status::Suppressed,
                Action::Close => Status::Closed,
                Action::Ignore => Status::Ignored,
                Action::Correlate => Status::Correlated,
                Action::Purge => Status::Purged,
                Action::Heal => {
                    alert.old_state = alert.state;
                    alert.state = State::Ok;
                    return;
                }
                Action::Bump => {
                    alert.repeats += 1;
                    return;
                }
                Action::Remove => {
                    alert.removed = true;
                    return;
                }
            };
            alert.status = status;
            alert.removed = false;
            let extra = alert.extra.get_or_insert_default();
            extra.history.push((status, now.as_second()));
            if status == Status::Ticketed {
                let number = mix(seed ^ u64::from(alert.slot)) % 10_000_000_000;
                extra.incident = Some(format!("INC{number:010}"));
            }
        })
    }

    /// Gives an alert another state.
    pub fn set_state(&mut self, id: AlertId, state: State, now: Timestamp) -> Result<(), Refusal> {
        self.change(id, now, |alert| {
            alert.old_state = alert.state;
            alert.state = state;
        })
    }

    /// Gives an alert another priority.
    pub fn set_priority(
        &mut self,
        id: AlertId,
        priority: Priority,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.change(id, now, |alert| alert.priority = priority)
    }

    /// Changes members of the rendered alert, see [`Spec::members`].
    pub fn set_members(
        &mut self,
        id: AlertId,
        members: serde_json::Map<String, serde_json::Value>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.change(id, now, |alert| {
            let extra = alert.extra.get_or_insert_default();
            extra.spec.members.extend(members);
        })
    }

    // --- looking at the world from outside ---

    /// The alert with a `uniqueId`.
    pub fn find(&self, unique_id: &str) -> Option<AlertId> {
        if let Some(slot) = self.slot_of.get(unique_id) {
            return Some(AlertId(*slot));
        }
        let id = AlertId::from_number(unique_id.parse().ok()?)?;
        let alert = self.alerts.get(id.0 as usize)?;
        // Who has an id of its own has no other.
        (alert.unique_id() == unique_id).then_some(id)
    }

    /// How an alert stands.
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

    /// The open alerts of a tenant (of a partner: with those of its clients), oldest first.
    pub fn open_alerts(&self, tenant: &str) -> Result<Vec<AlertId>, Refusal> {
        let tenant = &self.tenants[self.tenant(tenant)? as usize];
        let keys = tenant.open.page(0, usize::MAX, false);
        Ok(keys.into_iter().map(|(_, slot)| AlertId(slot)).collect())
    }

    /// How many alerts of a tenant are open.
    pub fn open_count(&self, tenant: &str) -> Result<usize, Refusal> {
        Ok(self.tenants[self.tenant(tenant)? as usize].open.len())
    }

    /// The open alert at a rank, counted from the oldest.
    pub(super) fn nth_open(&self, tenant: &str, rank: usize) -> Option<AlertId> {
        let tenant = self.tenant(tenant).ok()?;
        let keys = self.tenants[tenant as usize].open.page(rank, 1, false);
        keys.first().map(|(_, slot)| AlertId(*slot))
    }

    /// The tenants that have alerts of their own: all but partners with clients.
    pub(super) fn clients_and_singles(&self) -> impl Iterator<Item = &str> {
        let tenants = self
            .tenants
            .iter()
            .filter(|tenant| tenant.clients.is_empty());
        tenants.map(|tenant| tenant.facts.id.as_str())
    }

    /// What happened, from a position on. Positions count entries; a storm is one of them.
    pub fn happenings(&self, since: usize) -> Vec<Happening> {
        let entries = self.record.since(since).iter();
        entries.flat_map(|entry| self.expand(*entry)).collect()
    }

    /// Where the record ends: what [`Self::happenings`] takes to show what is yet to come.
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

    /// Revokes the tokens of a key, or of all keys; says how many.
    pub fn revoke_tokens(&mut self, key: Option<&str>) -> usize {
        self.issuer.revoke(key)
    }

    /// Gives a key another secret, or adds a key. Tokens live on.
    pub fn set_secret(&mut self, key: &str, secret: &str) {
        self.issuer.set_secret(key, secret);
    }

    /// Whether there is such a tenant, and it is active.
    pub fn admit(&self, tenant: &str) -> Result<(), Refusal> {
        let index = self.tenant(tenant)?;
        match self.tenants[index as usize].activated {
            true => Ok(()),
            false => Err(Refusal::TenantDeactivated(tenant.to_owned())),
        }
    }

    /// Counts a request against the tenant's allowance; none where it is not enforced.
    pub fn spend(
        &mut self,
        tenant: &str,
        paginated: bool,
        now: Timestamp,
    ) -> Result<Option<Standing>, Refusal> {
        let index = self.tenant(tenant)?;
        let allowance = self.options.allowance;
        if !allowance.enforced {
            return Ok(None);
        }
        let tenant = &mut self.tenants[index as usize];
        let (bucket, limit) = match (paginated, tenant.is_partner) {
            (true, false) => (&mut tenant.paginated, allowance.client_paginated),
            (true, true) => (&mut tenant.paginated, allowance.partner_paginated),
            (false, false) => (&mut tenant.other, allowance.client_other),
            (false, true) => (&mut tenant.other, allowance.partner_other),
        };
        Ok(Some(bucket.take(limit, allowance.window, now)))
    }

    /// `GET …/alerts/search`.
    pub fn search(
        &mut self,
        tenant: &str,
        params: &SearchParams,
        now: Timestamp,
    ) -> Result<Page, Refusal> {
        let index = self.tenant(tenant)?;
        let end = params.page_no.saturating_mul(params.page_size);
        if self
            .options
            .result_window
            .is_some_and(|window| end > window)
        {
            return Err(Refusal::BeyondWindow);
        }
        let rank = end - params.page_size.min(end);
        let (slots, total) = if params.sort == Sort::Ts && params.query == Query::open() {
            let open = &self.tenants[index as usize].open;
            let keys = open.page(rank, params.page_size, params.descending);
            let slots: Vec<u32> = keys.into_iter().map(|(_, slot)| slot).collect();
            (slots, open.len())
        } else {
            self.select(index, params, now);
            let tenant = &self.tenants[index as usize];
            let all: &[u32] = match &tenant.selection {
                Some(selection) => &selection.slots,
                None => &[],
            };
            let slots = match params.descending {
                true => all
                    .iter()
                    .rev()
                    .skip(rank)
                    .take(params.page_size)
                    .copied()
                    .collect(),
                false => all
                    .iter()
                    .skip(rank)
                    .take(params.page_size)
                    .copied()
                    .collect(),
            };
            (slots, all.len())
        };
        let order_by = match params.sort {
            Sort::Ts => "ts",
            Sort::Id => "id",
        };
        Ok(Page {
            items: slots.into_iter().map(|slot| self.item(slot)).collect(),
            envelope: self.envelope(
                order_by,
                params.page_no,
                params.page_size,
                params.descending,
                total,
            ),
            offset_minutes: self.options.offset_minutes,
        })
    }

    /// `GET …/alerts/{id}`.
    pub fn alert(&self, tenant: &str, unique_id: &str) -> Result<Detail, Refusal> {
        let id = self.visible(tenant, unique_id)?;
        Ok(Detail {
            item: self.item(id.0),
            offset_minutes: self.options.offset_minutes,
        })
    }

    /// The alert with a `uniqueId`, if the tenant may see it.
    pub fn visible(&self, tenant: &str, unique_id: &str) -> Result<AlertId, Refusal> {
        let index = self.tenant(tenant)?;
        self.find(unique_id)
            .filter(|id| {
                let alert = &self.alerts[id.0 as usize];
                let owner = &self.tenants[alert.tenant as usize];
                !alert.removed && (alert.tenant == index || owner.partner == Some(index))
            })
            .ok_or_else(|| Refusal::NoSuchAlert {
                id: unique_id.to_owned(),
                status: self.options.not_found_status,
            })
    }

    /// `GET …/clients/search`. The keys `uniqueId`, `name` and `activeStatus` are understood.
    pub fn clients(
        &self,
        partner: &str,
        pairs: &[(String, String)],
    ) -> Result<ClientPage, Refusal> {
        let params = ClientParams::parse(pairs, &self.options)?;
        let mut clients: Vec<&Tenant> = self
            .clients_of(partner)?
            .filter(|client| params.matches(client))
            .collect();
        clients.sort_by_key(|client| client.facts.number);
        if params.descending {
            clients.reverse();
        }
        let total = clients.len();
        let rank = params
            .page_no
            .saturating_sub(1)
            .saturating_mul(params.page_size);
        let shown = clients.into_iter().skip(rank).take(params.page_size);
        Ok(ClientPage {
            results: shown
                .map(|client| ClientView {
                    id: client.facts.number,
                    unique_id: client.facts.id.clone(),
                    name: client.facts.name.clone(),
                    activated: client.activated,
                    created_time: date(client.created, self.options.offset_minutes),
                    updated_time: date(client.updated, self.options.offset_minutes),
                })
                .collect(),
            envelope: self.envelope(
                "client.id",
                params.page_no,
                params.page_size,
                params.descending,
                total,
            ),
        })
    }

    /// `GET …/clients/minimal`: pairs of `uniqueId` and `name`.
    pub fn clients_minimal(&self, partner: &str) -> Result<Vec<(String, String)>, Refusal> {
        let clients = self.clients_of(partner)?;
        let facts = clients.map(|client| &client.facts);
        Ok(facts.map(|f| (f.id.clone(), f.name.clone())).collect())
    }

    // --- within ---

    fn tenant(&self, id: &str) -> Result<u32, Refusal> {
        let index = self.tenant_of.get(id).copied();
        index.ok_or_else(|| Refusal::NoSuchTenant(id.to_owned()))
    }

    fn clients_of(&self, partner: &str) -> Result<impl Iterator<Item = &Tenant>, Refusal> {
        let tenant = &self.tenants[self.tenant(partner)? as usize];
        if !tenant.is_partner {
            return Err(Refusal::NotAPartner(partner.to_owned()));
        }
        let clients = tenant.clients.iter();
        Ok(clients.map(|index| &self.tenants[*index as usize]))
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

    /// The tenants that see an alert of this one.
    fn audience(&self, tenant: u32) -> impl Iterator<Item = u32> + use<> {
        let partner = self.tenants[tenant as usize].partner;
        std::iter::once(tenant).chain(partner)
    }

    fn populate(&mut self, tenant: u32, count: usize, now: Timestamp) {
        if count == 0 {
            return;
        }
        let now_second = now.as_second();
        let first = self.alerts.len() as u32;
        // Ages fall towards zero; each second is used several times where there are many alerts,
        // and pairs share one where there are few.
        let step = (PAST / count as i64).max(1);
        for n in 0..count {
            let left = (count - n) as i64 / 2 * 2;
            let age = (left * PAST / count as i64).clamp(step.min(60), PAST);
            let created = now_second - age;
            let slot = self.alerts.len() as u32;
            let quiet = !mix(self.seed_of(slot) ^ 4).is_multiple_of(4);
            let updated = match quiet {
                true => created,
                false => created + (mix(self.seed_of(slot) ^ 5) % age.unsigned_abs()) as i64,
            };
            self.born(tenant, &Spec::default(), created, updated);
        }
        self.record.push(Entry {
            at: now,
            first,
            count: count as u32,
            what: What::Opened,
            state: None,
            status: Status::New,
        });
    }

    /// Brings an alert into the world; times in seconds since the epoch.
    fn born(&mut self, tenant: u32, spec: &Spec, created: i64, updated: i64) -> u32 {
        let slot = self.alerts.len() as u32;
        let seed = self.seed_of(slot);
        let state = spec.state.unwrap_or_else(|| scenery::first_state(seed));
        let alert = Alert {
            slot,
            tenant,
            created,
            updated: updated.max(created),
            repeats: 1 + u32::from(mix(seed ^ 6).is_multiple_of(8)),
            state,
            old_state: state,
            status: Status::New,
            priority: spec
                .priority
                .unwrap_or_else(|| scenery::first_priority(seed)),
            event_type: spec
                .event_type
                .unwrap_or_else(|| scenery::first_event_type(seed)),
            removed: false,
            extra: spec.is_special().then(|| {
                Box::new(Extra {
                    spec: spec.clone(),
                    ..Extra::default()
                })
            }),
        };
        if let Some(text) = &spec.unique_id {
            self.slot_of.insert(text.clone(), slot);
        }
        let key = self.key_of(&alert);
        self.alerts.push(alert);
        self.tenants[tenant as usize].own.push(slot);
        for index in self.audience(tenant) {
            let tenant = &mut self.tenants[index as usize];
            tenant.generation += 1;
            tenant.open.insert(key);
        }
        slot
    }

    fn change(
        &mut self,
        id: AlertId,
        now: Timestamp,
        change: impl FnOnce(&mut Alert),
    ) -> Result<(), Refusal> {
        let alert = self.alerts.get(id.0 as usize);
        let alert = alert.ok_or_else(|| Refusal::NoSuchAlert {
            id: id.to_string(),
            status: self.options.not_found_status,
        })?;
        let (key, was_open) = (self.key_of(alert), alert.is_open());
        let alert = &mut self.alerts[id.0 as usize];
        change(alert);
        alert.updated = now.as_second().max(alert.created);
        let alert = &self.alerts[id.0 as usize];
        let (new_key, is_open) = (self.key_of(alert), alert.is_open());
        for index in self.audience(alert.tenant) {
            let tenant = &mut self.tenants[index as usize];
            tenant.generation += 1;
            if was_open {
                tenant.open.remove(key);
            }
            if is_open {
                tenant.open.insert(new_key);
            }
        }
        let what = match (was_open, is_open) {
            (false, true) => What::Opened,
            (true, false) => What::Left,
            _ => What::Changed,
        };
        self.note(id.0, 1, what, now);
        Ok(())
    }

    fn note(&mut self, first: u32, count: u32, what: What, at: Timestamp) {
        let alert = &self.alerts[first as usize];
        self.record.push(Entry {
            at,
            first,
            count,
            what,
            state: Some(alert.state),
            status: alert.status,
        });
    }

    fn expand(&self, entry: Entry) -> impl Iterator<Item = Happening> {
        (entry.first..entry.first + entry.count).map(move |slot| {
            let alert = &self.alerts[slot as usize];
            let born_with = || scenery::first_state(self.seed_of(slot));
            Happening {
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

    fn item(&self, slot: u32) -> Item {
        let alert = self.alerts[slot as usize].clone();
        Item {
            tenant: Arc::clone(&self.tenants[alert.tenant as usize].facts),
            seed: self.seed_of(slot),
            alert,
        }
    }

    fn envelope(
        &self,
        order_by: &'static str,
        page_no: usize,
        page_size: usize,
        descending: bool,
        total: usize,
    ) -> Envelope {
        let next_page = page_no.saturating_mul(page_size) < total;
        Envelope {
            total_results: total,
            order_by: (total > 0).then_some(order_by),
            page_no,
            page_size,
            total_pages: total.div_ceil(page_size),
            next_page,
            next_page_no: (next_page && self.options.next_page_no).then_some(page_no + 1),
            previous_page_no: (total > 0).then(|| page_no - 1),
            // As documented: an empty result says false, whatever was asked for.
            descending_order: descending && total > 0,
        }
    }

    /// Brings the tenant's selection up to date.
    fn select(&mut self, index: u32, params: &SearchParams, now: Timestamp) {
        let tenant = &self.tenants[index as usize];
        let at = params.query.is_relative().then(|| now.as_second());
        let current = tenant.selection.as_ref().is_some_and(|selection| {
            selection.generation == tenant.generation
                && selection.query == params.query
                && selection.sort == params.sort
                && selection.at == at
        });
        if current {
            return;
        }
        let own = std::iter::once(index).chain(tenant.clients.iter().copied());
        let mut keys: Vec<Key> = own
            .flat_map(|index| &self.tenants[index as usize].own)
            .map(|slot| &self.alerts[*slot as usize])
            .filter(|alert| self.matches(alert, &params.query, now))
            .map(|alert| match params.sort {
                Sort::Ts => self.key_of(alert),
                Sort::Id => (0, alert.slot),
            })
            .collect();
        keys.sort_unstable();
        let selection = Selection {
            generation: tenant.generation,
            query: params.query.clone(),
            sort: params.sort,
            at,
            slots: keys.into_iter().map(|(_, slot)| slot).collect(),
        };
        self.tenants[index as usize].selection = Some(selection);
    }

    fn matches(&self, alert: &Alert, query: &Query, now: Timestamp) -> bool {
        fn among<T: PartialEq>(list: &Option<Vec<T>>, value: &T) -> bool {
            list.as_ref().is_none_or(|list| list.contains(value))
        }
        fn named(list: &Option<Vec<String>>, value: impl FnOnce() -> Option<String>) -> bool {
            list.as_ref().is_none_or(|list| {
                value().is_some_and(|value| list.iter().any(|x| x.eq_ignore_ascii_case(&value)))
            })
        }
        let time = match query.by_update {
            true => alert.updated,
            false => alert.created,
        };
        let scene = || Scene::of(self.seed_of(alert.slot));
        let given = |text: fn(&Spec) -> &Option<String>| alert.spec().and_then(|s| text(s).clone());
        let group = alert.event_type == EventType::Inference;
        !alert.removed
            && among(&query.statuses, &alert.status)
            && among(&query.states, &alert.state)
            && among(&query.priorities, &alert.priority)
            && query.start.is_none_or(|start| time >= start)
            && query.end.is_none_or(|end| time <= end)
            && query
                .duration
                .is_none_or(|age| time >= now.as_second() - age)
            && named(&query.client_ids, || {
                Some(self.tenants[alert.tenant as usize].facts.id.clone())
            })
            && named(&query.unique_ids, || Some(alert.unique_id()))
            && named(&query.ticket_ids, || alert.incident().map(str::to_owned))
            && named(&query.apps, || {
                given(|s| &s.app).or_else(|| Some(scene().app().to_owned()))
            })
            && named(&query.alert_types, || {
                given(|s| &s.alert_type).or_else(|| Some(scene().alert_type().to_owned()))
            })
            && named(&query.metrics, || match group {
                true => None,
                false => given(|s| &s.metric).or_else(|| Some(scene().metric().to_owned())),
            })
            && named(&query.resource_types, || match group {
                true => Some("CLIENT".to_owned()),
                false => {
                    given(|s| &s.resource_type).or_else(|| Some(scene().resource_type().to_owned()))
                }
            })
            && named(&query.resource_ids, || {
                (!group).then(|| scene().resource_id())
            })
            && query
                .managed
                .is_none_or(|managed| scene().managed() == managed)
    }
}

/// What a search for clients asks for.
struct ClientParams {
    page_no: usize,
    page_size: usize,
    descending: bool,
    unique_id: Option<String>,
    name: Option<String>,
    activated: Option<bool>,
}

// === impl ClientParams ===

impl ClientParams {
    fn parse(pairs: &[(String, String)], options: &Options) -> Result<Self, Refusal> {
        // The same grammar, other keys: page and order are read by the same code.
        let without_query: Vec<_> = pairs
            .iter()
            .filter(|(name, _)| name != "queryString" && name != "sortName")
            .cloned()
            .collect();
        let params = SearchParams::parse(&without_query, options)?;
        let mut read = Self {
            page_no: params.page_no,
            page_size: params.page_size,
            descending: params.descending,
            unique_id: None,
            name: None,
            activated: None,
        };
        let query = super::query::last_of(pairs, "queryString").unwrap_or_default();
        for pair in query.split('+').filter(|pair| !pair.trim().is_empty()) {
            let (key, value) = pair
                .split_once(':')
                .ok_or_else(|| Refusal::bad("queryString", query))?;
            let value = value.trim();
            match key.trim() {
                "uniqueId" => read.unique_id = Some(value.to_owned()),
                "name" => read.name = Some(value.to_owned()),
                "activeStatus" => {
                    read.activated = match value.to_ascii_lowercase().as_str() {
                        "true" | "active" | "activated" => Some(true),
                        "false" | "inactive" | "deactivated" => Some(false),
                        _ => return Err(Refusal::bad(key, value)),
                    }
                }
                _ => {}
            }
        }
        Ok(read)
    }

    fn matches(&self, client: &Tenant) -> bool {
        let id = self.unique_id.as_ref();
        let name = self.name.as_ref();
        id.is_none_or(|id| *id == client.facts.id)
            && name.is_none_or(|name| client.facts.name.eq_ignore_ascii_case(name))
            && self
                .activated
                .is_none_or(|active| active == client.activated)
    }
}

#[cfg(test)]
mod tests;
