//! Which alerts a tenant sees, in which order, a page at a time.
//!
//! Most searches are for the open alerts by time, which come straight from the index. Any other
//! search goes through all alerts once. Its result is kept, because its other pages will be
//! requested next.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Selection, World};
use crate::simulator::alert::{Alert, AlertId, EventType, Spec};
use crate::simulator::options::Oversized;
use crate::simulator::order::Key;
use crate::simulator::query::{Query, SearchParams, Sort};
use crate::simulator::refusal::Refusal;
use crate::simulator::render::{Detail, Envelope, Item, Page};
use crate::simulator::scenery::{Scene, mix};

fn cut<'a>(slots: impl Iterator<Item = &'a u32>, rank: usize, count: usize) -> Vec<u32> {
    slots.skip(rank).take(count).copied().collect()
}

impl World {
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
        let only_open = params.query == Query::open();
        let (slots, total) = if params.sort == Sort::Ts && self.options.unstable_ties {
            let keys = self.shuffled(index, params, now);
            let slots = keys.iter().skip(rank).take(params.page_size);
            (slots.map(|(_, slot)| *slot).collect(), keys.len())
        } else if params.sort == Sort::Ts && only_open {
            let open = &self.tenants[index as usize].open;
            let keys = open.page(rank, params.page_size, params.descending);
            let slots: Vec<u32> = keys.into_iter().map(|(_, slot)| slot).collect();
            (slots, open.len())
        } else {
            self.select(index, params, now);
            let all = &self.tenants[index as usize].selection.slots;
            let slots: Vec<u32> = match params.descending {
                true => cut(all.iter().rev(), rank, params.page_size),
                false => cut(all.iter(), rank, params.page_size),
            };
            (slots, all.len())
        };
        let is_oversized = params.page_size > self.options.max_page_size;
        let (slots, total) = match self.options.oversized {
            Oversized::Blank if is_oversized => (Vec::new(), total),
            Oversized::Empty if is_oversized => (Vec::new(), 0),
            _ => (slots, total),
        };
        let last_page = total.div_ceil(params.page_size).max(1);
        if self.options.repeats_last_page && params.page_no > last_page {
            let last = SearchParams {
                page_no: last_page,
                ..params.clone()
            };
            return self.search(tenant, &last, now);
        }
        let order_by = match params.sort {
            Sort::Ts => "ts",
            Sort::Id => "id",
        };
        let mut envelope = self.envelope(order_by, params, total);
        if self.options.page_size_as_shown {
            envelope.page_size = slots.len();
        }
        Ok(Page {
            items: slots.into_iter().map(|slot| self.item(slot)).collect(),
            envelope,
            offset_minutes: self.options.offset_minutes,
            padding: self.options.padding,
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

    /// Returns the alert with a `uniqueId`, if the tenant may see it.
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

    /// Returns the whole result. Alerts of the same second have another order each time.
    fn shuffled(&mut self, index: u32, params: &SearchParams, now: Timestamp) -> Vec<Key> {
        self.searches += 1;
        self.select(index, params, now);
        let slots = &self.tenants[index as usize].selection.slots;
        let alerts = slots.iter().map(|slot| &self.alerts[*slot as usize]);
        let mut keys: Vec<Key> = alerts.map(|alert| self.key_of(alert)).collect();
        keys.sort_by_key(|(at, slot)| (*at, mix(self.searches ^ mix(u64::from(*slot)))));
        if params.descending {
            keys.reverse();
        }
        keys
    }

    /// Brings the tenant's selection up to date.
    fn select(&mut self, index: u32, params: &SearchParams, now: Timestamp) {
        let tenant = &self.tenants[index as usize];
        let at = params.query.is_relative().then(|| now.as_second());
        let selection = &tenant.selection;
        if selection.generation == tenant.generation
            && selection.query == params.query
            && selection.sort == params.sort
            && selection.at == at
        {
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
        self.tenants[index as usize].selection = Selection {
            generation: tenant.generation,
            query: params.query.clone(),
            sort: params.sort,
            at,
            slots: keys.into_iter().map(|(_, slot)| slot).collect(),
        };
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
            && (!self.options.search_by_id || named(&query.unique_ids, || Some(alert.unique_id())))
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

    pub(super) fn envelope(
        &self,
        order_by: &'static str,
        params: &SearchParams,
        total: usize,
    ) -> Envelope {
        let &SearchParams {
            page_no,
            page_size,
            descending,
            ..
        } = params;
        let next_page = self.options.repeats_last_page || page_no.saturating_mul(page_size) < total;
        Envelope {
            total_results: total,
            order_by: (total > 0).then_some(order_by),
            page_no,
            page_size,
            total_pages: total.div_ceil(page_size),
            next_page,
            next_page_no: (next_page && self.options.next_page_no).then_some(page_no + 1),
            previous_page_no: (total > 0).then(|| page_no - 1),
            // As documented, an empty result says false, whatever order was requested.
            descending_order: descending && total > 0,
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
}
