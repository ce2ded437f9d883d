//! What follows from a look-up: which clients are polled from now on, and which may be missing
//! from it by mistake.

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

/// Number of look-ups in a row that must lack the same clients before they are believed, if they
/// count the same number of clients too many, or lack most clients. With the pauses between them,
/// that takes more than a minute: a client that goes by mistake may not come back for an hour.
pub(super) const AGREEING_LOOK_UPS: u32 = 5;
/// How often it is logged that a surplus is believed.
const TELL_SURPLUS_EVERY: Duration = Duration::from_secs(60 * 60);

/// What follows from a look-up.
#[derive(Debug)]
pub(super) struct Decision {
    /// The clients that are polled from now on.
    pub(super) tenants: Tenants,
    /// What the look-up says about each partner, in the order of the partners.
    pub(super) verdicts: Vec<Verdict>,
    /// Number of new clients for which there is no room.
    pub(super) left_out: usize,
    /// Whether the clients are looked up again soon. This is so if something is uncertain, or if a
    /// partner has shown no activated client, because its first client should not wait for an
    /// hour.
    pub(super) again: bool,
}

/// What a look-up says about a partner.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    /// Number of the partner's known clients that were not shown.
    pub(super) missing: usize,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// Clients that are not shown have gone.
    Sound,
    /// Clients that are not shown have gone, although the server counts this many more: it always
    /// does.
    ShortAsEver(u64),
    /// The server counts this many more clients than it shows. Any client that is not shown may be
    /// one of them.
    Short(u64),
    /// The look-up lacks most of the known clients. Others must confirm it, because a list that is
    /// empty for a moment would stop all searches.
    LacksMost,
    /// The look-up tells nothing about clients that are not shown.
    Failed(opsramp::Error),
}

/// The doubt left by the last look-ups of a partner's clients, if the clients that they did not
/// show need not have gone.
#[derive(Debug, Default)]
pub(super) struct Doubts(Option<Doubt>);

/// The server counts more clients of a partner than it shows, or shows few of the known clients.
#[derive(Debug)]
struct Doubt {
    /// How many more clients it counts.
    more: u64,
    /// The ids of the known clients that it does not show.
    missing: BTreeSet<Arc<str>>,
    /// Number of look-ups in a row with these same findings.
    times: u32,
    /// When it was last logged that the surplus is believed.
    told: Option<Instant>,
}

/// Decides which clients are polled after a look-up.
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
    // Known clients, which are polled already, go before new ones.
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
    /// Judges a look-up of a partner with `known` known clients. It did not show the `missing`
    /// ones, and counted `more` clients than it showed.
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
        let is_believed = doubt.times >= AGREEING_LOOK_UPS;
        if is_believed {
            // These clients are not known any more.
            doubt.missing.clear();
        }
        match more {
            0 if is_believed => Kind::Sound,
            0 => Kind::LacksMost,
            more if is_believed => Kind::ShortAsEver(more),
            more => Kind::Short(more),
        }
    }

    /// Whether it is to be logged again that the server counts too many clients, and that this is
    /// believed.
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
    /// Whether another look-up must show which clients have gone.
    pub(super) fn is_provisional(&self) -> bool {
        match self.kind {
            Kind::Sound | Kind::ShortAsEver(_) => false,
            Kind::Short(_) | Kind::LacksMost | Kind::Failed(_) => true,
        }
    }
}
