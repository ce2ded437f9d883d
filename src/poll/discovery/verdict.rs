//! What a look-up says: who is polled from now on, and who may be missing from it by mistake.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Partner, Tenants,
    look_up::{Clients, MAX_CLIENTS},
};
use crate::opsramp;

/// Look-ups in a row that count the same number of clients too many, or lack most, and lack the same, before
/// that is believed: with the pauses between them more than a minute, as whoever goes by mistake may be missed
/// for an hour.
pub(super) const PATIENCE: u32 = 5;
/// How often it is told that this is believed.
const TELL_SURPLUS_EVERY: Duration = Duration::from_secs(60 * 60);
/// What follows from a look-up.
#[derive(Debug)]
pub(super) struct Decision {
    /// Who is polled from now on.
    pub(super) tenants: Tenants,
    /// What the look-up says of each partner, in their order.
    pub(super) verdicts: Vec<Verdict>,
    /// Clients that are new and for which there is no room.
    pub(super) left_out: usize,
    /// Whether they are looked up again soon: not everything is certain, or nobody of a partner was shown, for
    /// whom an hour is too long to wait.
    pub(super) again: bool,
}

/// What a look-up says of a partner.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    /// How many of its clients that are known were not shown.
    pub(super) missing: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
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

/// What the last look-ups of a partner's clients were like, where whoever they do not show need not
/// have gone.
#[derive(Debug, Default)]
pub(super) struct Doubts(Option<Doubt>);

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

/// Who is polled after a look-up that found these.
pub(super) fn decide(known: &Tenants, found: Clients, partners: &mut [Partner]) -> Decision {
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

// === impl Doubts ===

impl Doubts {
    /// Judges a look-up that did not show these of so many known clients, and counted so many more than
    /// it showed.
    pub(super) fn judge(&mut self, more: u64, missing: BTreeSet<Arc<str>>, known: usize) -> Kind {
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
    pub(super) fn is_to_be_told(&mut self, now: Instant) -> bool {
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

// === impl Verdict ===

impl Verdict {
    /// Whether another look-up must tell who has gone.
    pub(super) fn is_provisional(&self) -> bool {
        match self.kind {
            Kind::Sound | Kind::ShortAsEver(_) => false,
            Kind::Short(_) | Kind::LacksMost | Kind::Failed(_) => true,
        }
    }
}
