//! Alerts that are no longer found: whether and why they have left, and the lines about
//! departures.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
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
            let alert = alert.filter(|alert| !is_next_life(alert, last_known.created_at));
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

/// Whether an own page tells of the next life of an alert that was created at that time: the one of
/// the page is open, and was created later. Any other date is not enough, as it is in the result
/// (`Tracker::has_opened_anew`), since own pages may date alerts otherwise.
fn is_next_life(alert: &Alert<'_>, created_at: Option<Timestamp>) -> bool {
    let created = [reading::time(&alert.created_date), created_at];
    let [Some(told), Some(known)] = created.map(|at| at.map(Timestamp::as_second)) else {
        return false;
    };
    told > known && alert.departure_reason().is_none()
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
    use serde_json::json;

    use super::*;
    use crate::{
        health::Health,
        poll::{
            engine::Task,
            search::testing::{alert, alone, learn, learn_items, running},
            testing::open_store,
        },
        record::{self, event_id},
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

    /// An own page that shows the alert with this id.
    fn found(id: &str, members: &str) -> OwnPage {
        let text = format!(r#"{{"uniqueId": "{id}"{members}}}"#);
        OwnPage::Found(Answer::of_search(text.into_bytes()))
    }

    /// A search that is about to ask for the own pages of all of these alerts but the first: two
    /// readings have missed them, and the server cannot be asked by id.
    async fn missed(ids: &[&str], is_sound: bool) -> (Running, tempfile::TempDir) {
        let (mut running, folder) = alone().await;
        let mut items: Vec<_> = ids.iter().map(|id| alert(id, "Critical")).collect();
        let total = items.len();
        learn_items(&mut running, items.clone(), total)
            .await
            .unwrap();
        items.truncate(1);
        // The server shows as much as it counts. It shows something that cannot be read, or one
        // alert in place of another.
        let other = if is_sound {
            json!({})
        } else {
            items[0].clone()
        };
        items.resize(total, other);
        for _ in 0..2 {
            learn_items(&mut running, items.clone(), total)
                .await
                .unwrap();
            if let Some(Task::Confirm(question)) = running.engine.task() {
                running
                    .engine
                    .confirmation_refused(&question, Instant::now());
            }
        }
        assert_eq!(running.engine.is_sound(), is_sound);
        assert!(matches!(running.engine.task(), Some(Task::Verify(_))));
        (running, folder)
    }

    /// Returns what is known at once of why these alerts have left; `None` if it is asked for.
    fn reasons(running: &mut Running, ids: &[&str]) -> Option<Vec<OwnPage>> {
        let ids = ids.iter().map(|id| (*id).into()).collect();
        match running.fetch_reasons(ids).now_or_never()? {
            Reply::Reasons(reasons) => Some(reasons.into_iter().map(|(_, page)| page).collect()),
            _ => panic!("another reply"),
        }
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
            let second = event_id("default", "client_1", "open", "1", EventKind::Left, 2);
            assert_eq!(left["event_id"], second.to_string());
        }
    }

    #[tokio::test]
    async fn the_own_page_of_an_alert_that_has_opened_anew_does_not_say_why_it_has_left() {
        let life = |date: &str, state: &str, status: &str| {
            json!({
                "uniqueId": "1", "currentState": state, "status": status, "subject": date,
                "createdDate": format!("2026-03-01T12:{date}+0000"),
            })
        };
        let shown = |life| vec![alert("0", "Critical"), life];
        for (date, status, reason, state, message) in [
            ("00:00", "Closed", "closed", "Ok", "00:00"),
            ("00:00", "New", "state_changed", "Ok", "00:00"),
            ("30:00", "Closed", "closed", "Ok", "30:00"),
            ("30:00", "New", "unknown", "Critical", "00:00"),
        ] {
            let (mut running, store, _folder) = departing(EventKind::ALL.to_vec()).await;
            let first = shown(life("00:00", "Critical", "New"));
            learn_items(&mut running, first, 2).await.unwrap();
            learn(&mut running, &["Critical"]).await.unwrap();
            let own_page = Answer::of_search(life(date, "Ok", status).to_string().into_bytes());
            let reasons = vec![("1".into(), OwnPage::Found(own_page))];
            running.store_departures(reasons).await.unwrap();
            let left = events(&store).await.pop().unwrap();
            assert_eq!(left["event"], "left");
            assert_eq!(left["reason"], reason, "{left}");
            assert_eq!(left["state"], state, "{left}");
            assert_eq!(left["message"], message, "{left}");
            assert_eq!(left.get("alert").is_none(), reason == "unknown", "{left}");
            // The new life has lines of its own.
            let again = shown(life("30:00", "Warning", "New"));
            learn_items(&mut running, again, 2).await.unwrap();
            let opened = events(&store).await.pop().unwrap();
            assert_eq!(opened["event"], "opened");
            assert_eq!(opened["message"], "30:00", "{opened}");
        }
    }

    #[tokio::test]
    async fn nobody_is_asked_why_an_alert_left_if_that_is_not_logged() {
        let (mut running, store, _folder) = departing(vec![EventKind::Opened]).await;
        let Some([OwnPage::Unknown]) = reasons(&mut running, &["1"]).as_deref() else {
            panic!("a page is asked for");
        };
        running
            .store_departures(vec![("1".into(), OwnPage::Unknown)])
            .await
            .unwrap();
        assert!(!running.engine.has_departures());
        assert_eq!(events(&store).await.len(), 2);
        let stored = store.stored(running.held, vec!["1".into()]).await.unwrap();
        assert!(stored.is_empty(), "it has left the store, too");
    }

    /// The page that said it is then kept, so that the alert's line need not wait for it again.
    #[tokio::test]
    async fn an_alert_that_was_missed_has_left_if_its_own_page_says_so_or_alone_is_not_found() {
        const NEW: &str = r#", "status": "new ""#;
        const CLOSED: &str = r#", "status": "Closed""#;
        let there = || found("0", NEW);
        for (is_sound, witness, page, has_left) in [
            (false, Some(OwnPage::NotFound), found("1", CLOSED), true),
            (false, Some(there()), found("1", NEW), false),
            (false, Some(there()), found("1", ""), false),
            (false, Some(there()), found("2", CLOSED), false),
            (false, Some(there()), OwnPage::Unknown, false),
            (false, Some(there()), OwnPage::Late, false),
            (false, Some(there()), OwnPage::NotFound, true),
            // The server does not find the page of any alert.
            (false, Some(OwnPage::NotFound), OwnPage::NotFound, false),
            (false, Some(found("2", NEW)), OwnPage::NotFound, false),
            (true, Some(OwnPage::NotFound), OwnPage::NotFound, false),
            // No alert can be the witness.
            (true, None, OwnPage::NotFound, true),
            (false, None, OwnPage::NotFound, false),
        ] {
            // An alert whose id cannot be asked for is no witness.
            let first = if witness.is_some() { "0" } else { "0 0" };
            let (mut running, _folder) = missed(&[first, "1"], is_sound).await;
            let verdicts = [
                Some(("1".into(), page)),
                witness.map(|page| ("0".into(), page)),
            ];
            running.judge(verdicts.into_iter().flatten().collect());
            assert_eq!(running.engine.departing("1").is_some(), has_left);
            let said = reasons(&mut running, &["1"]);
            let is_kept = matches!(
                said.as_deref(),
                Some([OwnPage::Found(_) | OwnPage::NotFound])
            );
            assert_eq!(is_kept, has_left);
        }
    }

    /// When the alert leaves after that, its page says another thing.
    #[tokio::test]
    async fn the_page_of_an_alert_that_was_there_or_is_back_is_not_kept() {
        let (mut running, _folder) = missed(&["0", "1"], false).await;
        learn(&mut running, &["Critical"]).await.unwrap();
        assert!(running.engine.departing("1").is_some());
        running.judge(vec![("1".into(), found("1", r#", "status": "New""#))]);
        assert!(reasons(&mut running, &["1"]).is_none());
        let closed = || vec![("1".into(), found("1", r#", "status": "Closed""#))];
        let (mut running, _folder) = missed(&["0", "1"], false).await;
        learn(&mut running, &["Critical", "Critical"])
            .await
            .unwrap();
        running.judge(closed());
        assert!(reasons(&mut running, &["1"]).is_none());
        // It has opened anew, as another alert, before anybody asked why the first one left.
        let (mut running, _folder) = missed(&["0", "1"], false).await;
        running.judge(closed());
        running
            .store_departures(vec![("1".into(), OwnPage::Unknown)])
            .await
            .unwrap();
        assert!(reasons(&mut running, &["1"]).is_none());
    }

    /// Else the next reading would wait for pages that do not come.
    #[tokio::test]
    async fn own_pages_are_asked_for_until_none_of_them_comes() {
        let ids: Vec<_> = (0..50).map(|id| id.to_string()).collect();
        let ids: Vec<_> = ids.iter().map(|id| &**id).collect();
        let (mut running, _folder) = missed(&ids, false).await;
        for (is_late, goes_on) in [(false, true), (true, false)] {
            let Some(Task::Verify(asked)) = running.engine.task() else {
                panic!("no page is asked for");
            };
            let mut verdicts: Vec<_> = asked.into_iter().map(|id| (id, OwnPage::Late)).collect();
            if !is_late {
                verdicts[0].1 = OwnPage::Unknown;
            }
            running.judge(verdicts);
            assert_eq!(running.engine.has_task(), goes_on);
        }
    }

    /// Alerts that leave together wait no longer than one of them.
    #[tokio::test]
    async fn what_has_left_with_others_whose_reasons_do_not_come_does_not_wait_for_its_own() {
        let (mut running, _folder) = alone().await;
        learn(&mut running, &["Critical"; 4]).await.unwrap();
        learn(&mut running, &["Critical"]).await.unwrap();
        let tell = async |running: &mut Running, told: Vec<(&str, OwnPage)>| {
            let told = told.into_iter().map(|(id, page)| (id.into(), page));
            running
                .background_answered(Reply::Reasons(told.collect()))
                .await;
        };
        let is_asked = |running: &mut Running| reasons(running, &["3"]).is_none();
        tell(&mut running, vec![("1", OwnPage::NotFound)]).await;
        assert!(is_asked(&mut running));
        tell(
            &mut running,
            vec![("1", OwnPage::Late), ("2", OwnPage::NotFound)],
        )
        .await;
        drop(running.begin_poll());
        assert!(!is_asked(&mut running));
        tell(&mut running, vec![("3", OwnPage::Unknown)]).await;
        drop(running.begin_poll());
        assert!(is_asked(&mut running), "it leaves alone");
        // There may be more of them as long as it is asked who has left.
        let (mut running, _folder) = missed(&["0", "3"], false).await;
        running.waited_in_vain = true;
        drop(running.begin_poll());
        assert!(!is_asked(&mut running));
    }
}
