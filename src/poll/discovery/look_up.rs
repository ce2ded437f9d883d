//! Looking clients up: reads the pages with each partner's clients, and combines what they show.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    sync::Arc,
};

use futures_util::{StreamExt as _, stream};

use super::Tenants;
use crate::{
    identity::Tenant,
    opsramp::{self, Client, ClientInfo, ClientsPage},
    poll::full_read::WITHOUT_NEWS,
};

/// Maximum number of partners that are asked at the same time: one that does not answer then
/// delays the others little.
const PARTNERS_AT_ONCE: usize = 4;
/// Maximum number of pages of a partner's clients that are read, at a hundred clients a page.
const MAX_CLIENT_PAGES: u64 = 500;
/// Maximum number of clients of an account that are polled. One client takes some 40 kB of memory.
pub(super) const MAX_CLIENTS: usize = 10_000;

/// Clients that a look-up has found.
#[derive(Debug, Default)]
pub(in crate::poll) struct Clients {
    /// Names and partners of the activated clients, by the clients' ids.
    pub(super) activated: BTreeMap<String, (String, Arc<str>)>,
    /// The ids of the deactivated clients.
    pub(super) deactivated: BTreeSet<String>,
    /// The partners for which no activated client was shown.
    pub(super) empty: BTreeSet<Arc<str>>,
    /// The partners for which the server counts more clients than it shows, and how many more.
    pub(super) short: BTreeMap<Arc<str>, u64>,
    /// The partners whose clients could not be looked up, or not completely, and the errors.
    pub(super) failed: BTreeMap<Arc<str>, opsramp::Error>,
    /// Number of items that could not be read as clients.
    pub(super) unreadable: u64,
    /// The ids of the known clients. There is room for each of them, however many others are
    /// found.
    pub(super) known: HashSet<Arc<str>>,
    /// Number of activated clients that were not known.
    pub(super) new: usize,
    /// Number of further such clients, for which there was no room.
    pub(super) left_out: usize,
}

/// The answer about one partner.
pub(crate) struct Answer {
    /// The clients shown, each once, including those that were shown before a failure.
    pub(crate) clients: Vec<ClientInfo>,
    /// Number of items that could not be read as clients.
    pub(crate) unreadable: u64,
    /// How many more clients the server counts than it shows.
    pub(crate) more: Result<u64, opsramp::Error>,
    /// Whether there are further pages, which are not read because there are too many clients.
    pub(crate) is_cut: bool,
}

/// What the pages of a partner's clients have shown so far.
#[derive(Debug, Default)]
pub(super) struct Shown {
    clients: Vec<ClientInfo>,
    ids: HashSet<String>,
    activated: usize,
    unreadable: u64,
    /// Number of pages in a row that showed no client for the first time.
    without_news: u32,
    /// The total on the last page.
    total: u64,
    /// The largest total on any page. If the total falls, a client may have slipped over the
    /// border to a page that had been read.
    largest_total: u64,
    is_cut: bool,
}

/// Looks up the clients of some partners. `known`: the ids of the known clients.
pub(in crate::poll) async fn clients_of(
    client: &Client,
    partners: Vec<Arc<str>>,
    known: HashSet<Arc<str>>,
) -> Clients {
    let ask = |partner: Arc<str>| {
        let client = client.clone();
        async move { (look_up_partner(&client, &partner).await, partner) }
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

/// Looks up the clients of one partner.
pub(crate) async fn look_up_partner(client: &Client, partner: &str) -> Answer {
    let mut shown = Shown::default();
    let mut next = Some(1);
    while let Some(page_no) = next {
        let answer = client.clients(partner, page_no).await;
        next = match answer.and_then(|answer| answer.clients(page_no)) {
            Ok(page) => shown.take_in(page),
            Err(error) => {
                return Answer {
                    more: Err(error),
                    ..shown.into_answer()
                };
            }
        };
    }
    shown.into_answer()
}

// === impl Shown ===

impl Shown {
    /// Takes in a page. Returns the number of the next page, if it is to be read.
    pub(super) fn take_in(&mut self, page: ClientsPage) -> Option<u64> {
        // A list that changes while it is read can show a client twice, and some servers name a
        // next page for ever.
        let of_page = page.clients.len();
        let is_new = |it: &ClientInfo| self.ids.insert(it.id.clone());
        let new: Vec<_> = page.clients.into_iter().filter(is_new).collect();
        // Items that cannot be read have no ids. Those of a page that repeats others are not new.
        if !new.is_empty() || of_page == 0 {
            self.unreadable += (page.shown - of_page) as u64;
        }
        self.without_news = if new.is_empty() {
            self.without_news + 1
        } else {
            0
        };
        self.activated += new.iter().filter(|it| it.activated).count();
        self.clients.extend(new);
        self.total = page.total.unwrap_or(self.total);
        self.largest_total = self.largest_total.max(self.total);
        // As a full read ends: a server may also count clients that it does not show.
        let has_all = self.without_news > 0 && self.count() >= self.total;
        let is_behind = has_all || self.without_news > WITHOUT_NEWS;
        let next = page.next_page.filter(|_| !is_behind);
        let read = next.filter(|page| *page <= MAX_CLIENT_PAGES && self.activated <= MAX_CLIENTS);
        self.is_cut = read != next;
        read
    }

    /// Number of items, with each client counted once, including items that could not be read.
    fn count(&self) -> u64 {
        self.clients.len() as u64 + self.unreadable
    }

    pub(super) fn into_answer(self) -> Answer {
        Answer {
            unreadable: self.unreadable,
            more: Ok(self.largest_total.saturating_sub(self.count())),
            is_cut: self.is_cut,
            clients: self.clients,
        }
    }
}

// === impl Clients ===

impl Clients {
    /// Takes in the answer about a partner.
    pub(super) fn take_in(&mut self, answer: Answer, partner: &Arc<str>) {
        match answer.more {
            Ok(0) => {}
            Ok(more) => {
                self.short.insert(Arc::clone(partner), more);
            }
            Err(error) => {
                self.failed.insert(Arc::clone(partner), error);
            }
        }
        self.unreadable += answer.unreadable;
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
    pub(super) fn shows(&self, id: &str) -> bool {
        self.activated.contains_key(id) || self.deactivated.contains(id)
    }

    pub(super) fn into_tenants(self) -> Tenants {
        let tenant = |(id, (name, partner)): (String, (String, _))| {
            let (id, name) = (id.into(), name.into());
            (Tenant { id, name }, partner)
        };
        self.activated.into_iter().map(tenant).collect()
    }
}
