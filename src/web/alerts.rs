//! The open alerts: the store is asked for them, within a time limit.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{query::Query, view::tenant_names};
use crate::{
    error_chain::chain,
    record::AlertFields,
    status::Board,
    store::{self, AlertFilter},
};

/// How long a visitor waits for the alerts before the page is shown without them.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How many requests ask the store at a time, because the store has other things to do.
const ASKING: usize = 2;

/// Where the open alerts come from. Cheap to clone.
#[derive(Clone)]
pub struct AlertSource {
    find: Arc<Find>,
    asking: Arc<Semaphore>,
}

/// Finds open alerts, newest first; returns `None` while there is no store yet.
type Find =
    dyn Fn(AlertFilter) -> BoxFuture<'static, Option<Result<Found, store::Error>>> + Send + Sync;

type Found = Vec<store::OpenAlert>;

/// The alerts that were asked for, as the store keeps them.
#[derive(Debug)]
pub(super) struct Answer {
    found: Found,
    /// Held until the alerts are shown, because reading and writing ten thousand alerts is work as
    /// well.
    _turn: Option<OwnedSemaphorePermit>,
}

/// An open alert.
#[derive(Debug, Serialize)]
pub(super) struct OpenAlert<'a> {
    /// The account's name.
    pub(super) account: &'a str,
    /// The tenant's name.
    pub(super) tenant: Arc<str>,
    /// The search's name.
    pub(super) search: &'a str,
    /// OpsRamp's `uniqueId`.
    pub(super) alert_id: &'a str,
    /// The alert.
    #[serde(flatten)]
    pub(super) fields: AlertFields<'static>,
}

/// The alerts cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum AlertsError {
    /// There is no store yet, because the exporter is still starting.
    #[error("the store is not open yet")]
    NotYet,
    /// The store did not answer in time.
    #[error("the store did not answer within {} ms", PATIENCE.as_millis())]
    Late,
    /// The store has failed.
    #[error("{0}")]
    Store(String),
}

// === impl AlertSource ===

impl AlertSource {
    /// Returns a source that asks `find`, which returns `None` while there is no store yet.
    pub fn new<F>(find: F) -> Self
    where
        F: Fn(AlertFilter) -> BoxFuture<'static, Option<Result<Found, store::Error>>>
            + Send
            + Sync
            + 'static,
    {
        Self {
            find: Arc::new(find),
            asking: Arc::new(Semaphore::new(ASKING)),
        }
    }

    /// Asks the store for the alerts.
    pub(super) async fn find(&self, board: &Board, query: &Query) -> Result<Answer, AlertsError> {
        let ask = async {
            let turn = Arc::clone(&self.asking).acquire_owned().await.ok();
            let mut found = Vec::new();
            for filter in filters(board, query) {
                let alerts = (self.find)(filter).await.ok_or(AlertsError::NotYet)?;
                found.extend(alerts.map_err(|error| AlertsError::Store(chain(&error)))?);
            }
            // Each answer is sorted already; alerts without a date come last.
            found.sort_by_key(|found| std::cmp::Reverse(found.alert.created_at));
            found.truncate(query.limit());
            Ok(Answer { found, _turn: turn })
        };
        tokio::time::timeout(PATIENCE, ask)
            .await
            .map_err(|_| AlertsError::Late)?
    }
}

// === impl Answer ===

impl Answer {
    /// Returns the alerts, newest first, with the names of their tenants.
    pub(super) fn read(&self, board: &Board) -> Vec<OpenAlert<'_>> {
        let searches = board.searches();
        let name_of = tenant_names(&searches);
        self.found
            .iter()
            .map(|found| OpenAlert {
                account: &found.account,
                tenant: name_of(&found.account, &found.tenant_id),
                search: &found.search,
                alert_id: &found.alert.id,
                // An alert that cannot be read is shown by its id alone.
                fields: AlertFields::from_stored(&found.alert.body).unwrap_or_default(),
            })
            .collect()
    }
}

impl fmt::Debug for AlertSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertSource").finish_non_exhaustive()
    }
}

/// Returns the filters to ask the store with. The store knows tenants only by their ids, and a
/// tenant's name may stand for several tenants in different accounts.
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
