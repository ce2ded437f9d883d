//! The open alerts, asked of whoever keeps them, with patience that ends.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::query::Query;
use crate::{
    error_chain::chain,
    record::AlertFields,
    status::Board,
    store::{self, AlertFilter},
};

/// How long a visitor waits for the alerts before the page is shown without them.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How many ask at a time: the store has other things to do.
const ASKING: usize = 2;

/// Where the open alerts come from. Cheap to clone.
#[derive(Clone)]
pub struct AlertSource {
    find: Arc<Find>,
    asking: Arc<Semaphore>,
}

/// Finds open alerts, newest first.
type Find =
    dyn Fn(AlertFilter) -> BoxFuture<'static, Result<Vec<OpenAlert>, store::Error>> + Send + Sync;

/// An open alert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpenAlert {
    /// The account's name.
    pub account: String,
    /// The tenant's name; what `find` gives here is its id.
    pub tenant: String,
    /// The search's name.
    pub search: String,
    /// OpsRamp's `uniqueId`.
    pub alert_id: String,
    /// The alert.
    #[serde(flatten)]
    pub fields: AlertFields<'static>,
}

/// The alerts cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum AlertsError {
    /// The store is busy.
    #[error("the store did not answer within {} ms", PATIENCE.as_millis())]
    Late,
    /// The store has failed.
    #[error("{0}")]
    Store(String),
}

// === impl AlertSource ===

impl AlertSource {
    /// A source that asks `find`. Alerts name their tenant by its id, as the store does.
    pub fn new<F>(find: F) -> Self
    where
        F: Fn(AlertFilter) -> BoxFuture<'static, Result<Vec<OpenAlert>, store::Error>>
            + Send
            + Sync
            + 'static,
    {
        Self {
            find: Arc::new(find),
            asking: Arc::new(Semaphore::new(ASKING)),
        }
    }

    /// The alerts that were asked for, newest first, with their tenants' names.
    pub(super) async fn find(
        &self,
        board: &Board,
        query: &Query,
    ) -> Result<Vec<OpenAlert>, AlertsError> {
        let ask = async {
            let _permit = self.asking.acquire().await;
            let mut found = Vec::new();
            for filter in filters(board, query) {
                let alerts = (self.find)(filter).await;
                found.extend(alerts.map_err(|error| AlertsError::Store(chain(&error)))?);
            }
            Ok(found)
        };
        let mut found = tokio::time::timeout(PATIENCE, ask)
            .await
            .map_err(|_| AlertsError::Late)??;
        // Each answer is in order already; those without a date come last.
        found.sort_by_key(|alert| std::cmp::Reverse(alert.fields.created_at));
        found.truncate(query.limit());
        name_tenants(board, &mut found);
        Ok(found)
    }
}

impl fmt::Debug for AlertSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertSource").finish_non_exhaustive()
    }
}

/// What to ask the store, which knows tenants by their ids only: a tenant's name may stand for
/// several, in different accounts.
fn filters(board: &Board, query: &Query) -> Vec<AlertFilter> {
    let filter = |account: Option<String>, tenant: Option<String>| AlertFilter {
        account,
        tenant,
        search: query.search.clone(),
        state: query.state.clone(),
        limit: query.limit(),
    };
    let Some(wanted) = query.tenant.as_deref() else {
        return vec![filter(query.account.clone(), None)];
    };
    let mut tenants: Vec<(String, String)> = board
        .searches()
        .iter()
        .map(|status| &status.key)
        .filter(|key| {
            query
                .account
                .as_deref()
                .is_none_or(|account| *account == *key.account)
        })
        .filter(|key| *key.tenant.id == *wanted || *key.tenant.name == *wanted)
        .map(|key| (key.account.to_string(), key.tenant.id.to_string()))
        .collect();
    tenants.sort();
    tenants.dedup();
    tenants
        .into_iter()
        .map(|(account, id)| filter(Some(account), Some(id)))
        .collect()
}

fn name_tenants(board: &Board, alerts: &mut [OpenAlert]) {
    let names: std::collections::HashMap<(String, String), Arc<str>> = board
        .searches()
        .iter()
        .map(|status| {
            let key = &status.key;
            let id = (key.account.to_string(), key.tenant.id.to_string());
            (id, Arc::clone(&key.tenant.name))
        })
        .collect();
    for alert in alerts {
        let id = (alert.account.clone(), std::mem::take(&mut alert.tenant));
        alert.tenant = match names.get(&id) {
            Some(name) => name.to_string(),
            None => id.1,
        };
    }
}
