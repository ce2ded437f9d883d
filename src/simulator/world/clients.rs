//! The clients of a partner.

use super::{Tenant, World};
use crate::simulator::options::Options;
use crate::simulator::query::{SearchParams, last_of};
use crate::simulator::refusal::Refusal;
use crate::simulator::render::{ClientPage, ClientView, date};

/// What a search for clients asks for.
struct ClientParams {
    /// Page and order.
    search: SearchParams,
    unique_id: Option<String>,
    name: Option<String>,
    activated: Option<bool>,
}

// === impl World ===

impl World {
    /// `GET …/clients/search`. The keys `uniqueId`, `name` and `activeStatus` are understood.
    pub fn clients(
        &self,
        partner: &str,
        pairs: &[(String, String)],
    ) -> Result<ClientPage, Refusal> {
        let params = ClientParams::parse(pairs, &self.options)?;
        let search = &params.search;
        let mut clients: Vec<&Tenant> = self
            .clients_of(partner)?
            .filter(|client| params.matches(client))
            .collect();
        clients.sort_by_key(|client| client.facts.number);
        if search.descending {
            clients.reverse();
        }
        let total = clients.len();
        let rank = (search.page_no - 1).saturating_mul(search.page_size);
        let shown = clients.into_iter().skip(rank).take(search.page_size);
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
            envelope: self.envelope("client.id", search, total),
        })
    }

    /// `GET …/clients/minimal`: pairs of `uniqueId` and `name`.
    pub fn clients_minimal(&self, partner: &str) -> Result<Vec<(String, String)>, Refusal> {
        let clients = self.clients_of(partner)?;
        let facts = clients.map(|client| &client.facts);
        Ok(facts.map(|f| (f.id.clone(), f.name.clone())).collect())
    }

    fn clients_of(&self, partner: &str) -> Result<impl Iterator<Item = &Tenant>, Refusal> {
        let tenant = &self.tenants[self.tenant(partner)? as usize];
        if !tenant.is_partner {
            return Err(Refusal::NotAPartner(partner.to_owned()));
        }
        let clients = tenant.clients.iter();
        Ok(clients.map(|index| &self.tenants[*index as usize]))
    }
}

// === impl ClientParams ===

impl ClientParams {
    fn parse(pairs: &[(String, String)], options: &Options) -> Result<Self, Refusal> {
        // The grammar is that of a search for alerts, but the keys are others. So the same code
        // reads page and order.
        let without_query: Vec<_> = pairs
            .iter()
            .filter(|(name, _)| name != "queryString" && name != "sortName")
            .cloned()
            .collect();
        let mut read = Self {
            search: SearchParams::parse(&without_query, options)?,
            unique_id: None,
            name: None,
            activated: None,
        };
        let query = last_of(pairs, "queryString").unwrap_or_default();
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
