//! What is done to alerts: every way in which an alert comes into being or changes.
//!
//! All ways go through `insert_alert` and `change`, which keep the index true. The record is
//! written by `change`, and by the callers of `insert_alert`.

use jiff::Timestamp;

use super::{PAST, World};
use crate::simulator::alert::{Action, Alert, AlertId, Extra, Priority, Spec, State, Status};
use crate::simulator::record::{ChangeKind, Entry};
use crate::simulator::refusal::Refusal;
use crate::simulator::scenery::{self, mix};

impl World {
    /// Opens one alert.
    pub fn open(&mut self, tenant: &str, spec: &Spec, now: Timestamp) -> Result<AlertId, Refusal> {
        let ids = self.open_many(tenant, 1, spec, now)?;
        Ok(ids[0])
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
        if let Some(text) = &spec.unique_id {
            if count > 1 {
                let why = "only one alert can have a certain uniqueId".to_owned();
                return Err(Refusal::BadRequest(why));
            }
            if self.find(text).is_some() {
                return Err(Refusal::BadRequest(format!("alert {text:?} exists")));
            }
        }
        let created = spec.created.unwrap_or(now).as_second();
        let first = self.alerts.len() as u32;
        for _ in 0..count {
            self.insert_alert(index, spec, created, now.as_second());
        }
        self.record_openings(first, spec.state, now);
        Ok((first..first + count as u32).map(AlertId).collect())
    }

    /// Does something to an alert. An action that changes nothing still counts as an update.
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

    pub(super) fn populate(&mut self, tenant: u32, count: usize, now: Timestamp) {
        let now_second = now.as_second();
        let first = self.alerts.len() as u32;
        // Ages fall towards zero. If there are many alerts, several share each second; if there
        // are few, pairs share a second.
        for n in 0..count {
            let left = (count - n) as i64 / 2 * 2;
            let least = (PAST / count as i64).clamp(1, 60);
            let age = (left * PAST / count as i64).clamp(least, PAST);
            let created = now_second - age;
            let slot = self.alerts.len() as u32;
            let quiet = !mix(self.seed_of(slot) ^ 4).is_multiple_of(4);
            let updated = match quiet {
                true => created,
                false => created + (mix(self.seed_of(slot) ^ 5) % age.unsigned_abs()) as i64,
            };
            self.insert_alert(tenant, &Spec::default(), created, updated);
        }
        self.record_openings(first, None, now);
    }

    /// Creates an alert. Times are in seconds since the epoch.
    fn insert_alert(&mut self, tenant: u32, spec: &Spec, created: i64, updated: i64) -> u32 {
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
            (false, true) => ChangeKind::Opened,
            (true, false) => ChangeKind::Left,
            _ => ChangeKind::Changed,
        };
        self.record.push(Entry {
            at: now,
            first: id.0,
            count: 1,
            what,
            state: Some(alert.state),
            status: alert.status,
        });
        Ok(())
    }

    /// Records that all alerts from `first` on have opened, with this state or the one that each
    /// was born with.
    fn record_openings(&mut self, first: u32, state: Option<State>, at: Timestamp) {
        let count = self.alerts.len() as u32 - first;
        if count > 0 {
            self.record.push(Entry {
                at,
                first,
                count,
                what: ChangeKind::Opened,
                state,
                status: Status::New,
            });
        }
    }
}
