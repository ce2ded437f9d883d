//! Alerts that are no longer found: whether and why they have left, and the lines about
//! departures.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use super::{Failure, PAGES_AT_ONCE, Reply, Request, Running, in_time, learning::word};
use crate::{
    clock,
    identity::EventKind,
    opsramp::{Answer, Client, Error, Urgency, alert::Alert},
    poll::{bodies::Bodies, reading},
    record::{AlertFields, Happening},
    store::{Commit, StoredAlert},
    track::KnownState,
};

/// Time for which departures may wait for their reasons.
const REASONS_DEADLINE: Duration = Duration::from_secs(10);
/// The first pause before an alert's own page is asked for again; it doubles.
const REASONS_PAUSE: Duration = Duration::from_millis(500);

/// What an alert's own page said.
pub(super) enum OwnPage {
    Found(Answer),
    NotFound,
    Unknown,
    /// There was no answer in time, perhaps because the allowance did not suffice.
    Late,
}

// === impl Running ===

impl Running {
    /// Asks for the own pages of alerts that left, or may have left.
    pub(super) fn fetch_own_pages(
        &self,
        ids: Vec<Box<str>>,
    ) -> impl Future<Output = Vec<(Box<str>, OwnPage)>> + Send + use<> {
        let client = self.search.client.clone();
        let tenant = Arc::clone(&self.search.key.tenant.id);
        async move {
            let deadline = Instant::now() + REASONS_DEADLINE;
            stream::iter(ids)
                .map(|id| {
                    let (client, tenant) = (client.clone(), Arc::clone(&tenant));
                    async move {
                        let asked = fetch_own_page(&client, &tenant, &id);
                        let page = in_time(deadline, asked).await;
                        (id, page.unwrap_or(OwnPage::Late))
                    }
                })
                .buffered(PAGES_AT_ONCE)
                .collect()
                .await
        }
    }

    /// Asks why alerts have left. It does not ask if the reason is known, if departures are not
    /// logged, or if others that left with them have waited in vain.
    pub(super) fn fetch_reasons(&mut self, ids: Vec<Box<str>>) -> Request {
        let mut reasons = Vec::with_capacity(ids.len());
        let mut others = Vec::new();
        for id in ids {
            match self.judged.remove(&id) {
                Some(reason) => reasons.push((id, reason)),
                None => others.push(id),
            }
        }
        let asks = self.search.logs(EventKind::Left) && !self.waited_in_vain;
        if others.is_empty() || !asks {
            let unasked = others.into_iter().map(|id| (id, OwnPage::Unknown));
            reasons.extend(unasked);
            return Box::pin(std::future::ready(Reply::Reasons(reasons)));
        }
        let pages = self.fetch_own_pages(others);
        Box::pin(async move {
            reasons.extend(pages.await);
            Reply::Reasons(reasons)
        })
    }

    /// Tells the engine which alerts are gone: those whose page is not found, or shows another
    /// status.
    pub(super) fn judge(&mut self, verdicts: Vec<(Box<str>, OwnPage)>) {
        // The server may not find the page of any alert, not even that of the witness. Where no
        // alert can be the witness, two sound readings that missed an alert have to do.
        let read: Vec<_> = verdicts
            .iter()
            .map(|(id, page)| (id, page, page.alert(id)))
            .collect();
        let lacks_witness = self.engine.is_sound() && !self.engine.has_witness();
        let finds_pages = lacks_witness || read.iter().any(|(_, _, alert)| alert.is_some());
        let has_left = |id: &str, page: &OwnPage, alert: Option<Alert<'_>>| match (page, alert) {
            (_, Some(now)) => {
                now.status.is_some() && self.engine.has_left(id, reading::compared(&now.status))
            }
            (OwnPage::NotFound, None) => finds_pages,
            (_, None) => false,
        };
        let gone: HashSet<Box<str>> = read
            .into_iter()
            .filter_map(|(id, page, alert)| has_left(id, page, alert).then(|| id.clone()))
            .collect();
        let in_vain = verdicts
            .iter()
            .all(|(_, page)| matches!(page, OwnPage::Late));
        let asked: Vec<Box<str>> = verdicts.iter().map(|(id, _)| id.clone()).collect();
        self.engine.adopt_verdicts(&asked, &gone, in_vain);
        self.judged = verdicts
            .into_iter()
            .filter(|(id, _)| gone.contains(id) && self.engine.departing(id).is_some())
            .collect();
    }

    /// Stores and logs departures.
    pub(super) async fn store_departures(
        &mut self,
        reasons: Vec<(Box<str>, OwnPage)>,
    ) -> Result<(), Failure> {
        let now = clock::now();
        let ids: Vec<Box<str>> = reasons.iter().map(|(id, _)| id.clone()).collect();
        let search = &self.search;
        let stored = search.shared.store.stored(self.held, ids.clone());
        let stored = search.heartbeat.beat_after(stored).await?;
        let mut stored: HashMap<Box<str>, StoredAlert> = stored
            .into_iter()
            .map(|alert| (alert.id.clone(), alert))
            .collect();
        let mut bodies = Bodies::default();
        let mut commit = Commit::default();
        for (id, page) in &reasons {
            let Some(before) = self.engine.departing(id) else {
                continue;
            };
            let ordinal = before.ordinal + 1;
            commit.departures.push((id.clone(), ordinal));
            if !self.search.logs(EventKind::Left) {
                continue;
            }
            let last_known = stored
                .remove(id)
                .and_then(|alert| AlertFields::from_stored(&alert.body).ok())
                .unwrap_or_default();
            let alert = page.alert(id);
            let (fields, raw, reason) = match (&alert, page) {
                (Some(alert), OwnPage::Found(answer)) => (
                    reading::fields(alert),
                    Some(answer.text()),
                    reason(alert, &before),
                ),
                (_, OwnPage::NotFound) => (last_known, None, "not_found".to_owned()),
                _ => (last_known, None, "unknown".to_owned()),
            };
            let happening = Happening {
                kind: EventKind::Left,
                ordinal,
                alert_id: id,
                previous_state: word(&before.state),
                previous_status: word(&before.status),
                reason: Some(reason.into()),
                fields,
                raw: raw.and_then(|raw| serde_json::from_str(raw).ok()),
            };
            commit
                .events
                .push(self.journal_event(&mut bodies, now, happening));
        }
        let left = commit.departures.len();
        if left > 0 {
            self.commit(commit, now).await?;
            self.search.metrics.events(EventKind::Left, left as u64);
            self.has_departed = true;
        }
        for id in &ids {
            // The own page was that of the alert that has left. A later alert with the same id has
            // another page.
            self.judged.remove(id);
        }
        self.engine.adopt_departures(&ids);
        Ok(())
    }
}

// === impl OwnPage ===

impl OwnPage {
    /// The alert with this id, if the page was found and shows it.
    fn alert(&self, id: &str) -> Option<Alert<'_>> {
        match self {
            Self::Found(answer) => answer.alert_with(id),
            Self::NotFound | Self::Unknown | Self::Late => None,
        }
    }
}

/// Why an alert has left, as its own page tells.
fn reason(alert: &Alert<'_>, before: &KnownState) -> String {
    let has_moved = alert.state.is_some()
        && !reading::compared(&alert.state).eq_ignore_ascii_case(&before.state);
    let unnamed = if has_moved {
        "state_changed"
    } else {
        "unknown"
    };
    let named = alert.departure_reason();
    named.unwrap_or_else(|| unnamed.to_owned())
}

/// Asks for an alert's own page until there is an answer, or a failure that will not pass. A
/// refusal of the request or of its token may be a passing fault, so the page is asked for a
/// second time.
async fn fetch_own_page(client: &Client, tenant: &str, id: &str) -> OwnPage {
    let mut pause = REASONS_PAUSE;
    let mut refused = false;
    loop {
        let error = match client.alert(tenant, id, Urgency::Background).await {
            Ok(Some(answer)) => return OwnPage::Found(answer),
            Ok(None) => return OwnPage::NotFound,
            Err(error) => error,
        };
        tracing::debug!(tenant, alert = id, error = %error.chain(), "cannot ask why an alert left");
        let is_final = match &error {
            Error::TooLarge { .. } => true,
            // A request that is forbidden once is forbidden again.
            Error::Auth { forbidden, .. } if *forbidden => true,
            error => !error.is_transient() && std::mem::replace(&mut refused, true),
        };
        if is_final {
            return OwnPage::Unknown;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        health::Health,
        poll::{
            search::testing::{learn, running},
            testing::open_store,
        },
        record,
        store::{self, Store},
    };

    const SINK: &str = "test";

    /// A search of two alerts, "0" and "1", of which the second has left.
    async fn departing(events: Vec<EventKind>) -> (Running, Store, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), store::JOURNAL_LIMIT).await;
        store.set_sinks(vec![SINK.to_owned()]).await.unwrap();
        let mut running = running(&store, &Health::default()).await;
        running.search.shared.record = Arc::new(record::Options {
            events,
            include_raw: true,
            max_description_length: 4096,
        });
        learn(&mut running, &["Critical", "Critical"])
            .await
            .unwrap();
        learn(&mut running, &["Critical"]).await.unwrap();
        assert!(running.engine.departing("1").is_some());
        (running, store, folder)
    }

    /// Returns the events that are stored.
    async fn events(store: &Store) -> Vec<serde_json::Value> {
        let batch = store.pending(SINK, 100, usize::MAX).await.unwrap();
        let events = batch.events.iter();
        events
            .map(|pending| serde_json::from_slice(&pending.event.body).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn the_own_page_of_an_alert_says_why_it_has_left_and_what_it_was() {
        let found = |id: &str, members: &str| {
            let text = format!(r#"{{"uniqueId": "{id}"{members}}}"#);
            OwnPage::Found(Answer::of_search(text.into_bytes()))
        };
        for (page, reason, state) in [
            (
                found("1", r#", "currentState": "Ok", "status": "Closed""#),
                "closed",
                "Ok",
            ),
            (
                found("1", r#", "currentState": "Ok""#),
                "state_changed",
                "Ok",
            ),
            (
                found("1", r#", "currentState": "critical ""#),
                "unknown",
                "critical ",
            ),
            (found("1", ""), "unknown", ""),
            (found("2", r#", "status": "Closed""#), "unknown", "Critical"),
            (OwnPage::NotFound, "not_found", "Critical"),
            (OwnPage::Unknown, "unknown", "Critical"),
            (OwnPage::Late, "unknown", "Critical"),
        ] {
            let (mut running, store, _folder) = departing(EventKind::ALL.to_vec()).await;
            let is_shown =
                matches!(&page, OwnPage::Found(answer) if answer.alert_with("1").is_some());
            running
                .store_departures(vec![("1".into(), page)])
                .await
                .unwrap();
            let left = events(&store).await.pop().unwrap();
            assert_eq!(left["event"], "left");
            assert_eq!(left["reason"], reason, "{left}");
            assert_eq!(left["state"], state, "{left}");
            assert_eq!(left["previous_state"], "Critical");
            assert_eq!(left.get("alert").is_some(), is_shown, "{left}");
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_why_an_alert_left_if_that_is_not_logged() {
        let (mut running, store, _folder) = departing(vec![EventKind::Opened]).await;
        let asked = running.fetch_reasons(vec!["1".into()]);
        let Some(Reply::Reasons(reasons)) = asked.now_or_never() else {
            panic!("a page is asked for");
        };
        running.store_departures(reasons).await.unwrap();
        assert!(!running.engine.has_departures());
        assert_eq!(events(&store).await.len(), 2);
    }
}
