mod answers;
mod properties;
mod requests;

use std::collections::BTreeSet;

use proptest::prelude::prop;

use super::*;
use crate::track::GroupLabel;

/// A simulated server: it shows the open alerts, sorted by either time, in pages of a size of its
/// own.
#[derive(Debug, Default)]
struct Server {
    alerts: BTreeMap<u32, Alert>,
    clock: u64,
    by_updated: bool,
    page_size: usize,
    answers_by_id: bool,
    /// When asked by id, the server ignores the rest of the query.
    ids_override: bool,
    /// When asked by id, the server ignores the whole query and shows any alerts.
    query_is_dropped: bool,
    /// When asked by id, the server shows the first alert once more in place of the last.
    shows_twice: bool,
    /// How many more alerts the server counts than it shows; less if negative.
    surplus: i64,
    /// Behind its last page the server shows that page again, and every page names a next one.
    repeats: bool,
    /// Every page that shows alerts names a next page.
    names_next: bool,
    /// The server gives the number of alerts on a page as the size of pages.
    size_as_shown: bool,
    /// How many of a page's items cannot be read.
    unreadable: usize,
    /// The next page shows no alerts. A further page may also count none.
    hollow: Option<Hollow>,
}

#[derive(Clone, Copy, Debug)]
enum Hollow {
    Counting,
    CountingNothing,
}

#[derive(Clone, Copy, Debug)]
struct Alert {
    open: bool,
    state: u8,
    created: u64,
    updated: u64,
    /// When the alert was last not open.
    away: u64,
}

#[derive(Clone, Debug)]
enum Act {
    Open(u8),
    Reopen(u16),
    /// The alert opens as another alert with the same id.
    OpenAnew(u16),
    Close(u16),
    CloseMany(u16, u8),
    Change(u16),
    Bump(u16),
}

/// An answer that has nothing to do with the alerts on the server.
#[derive(Clone, Debug)]
struct Lie {
    /// The alerts that it shows.
    shown: Vec<prop::sample::Index>,
    total: u64,
    page_size: u64,
    next: Option<u64>,
    unreadable: usize,
}

impl Lie {
    /// An answer that there are no alerts.
    fn of_nothing(page_size: u64) -> Self {
        Self {
            shown: Vec::new(),
            total: 0,
            page_size,
            next: None,
            unreadable: 0,
        }
    }
}

/// What happens before and at one request.
#[derive(Clone, Debug)]
struct Turn {
    acts: Vec<Act>,
    poll: bool,
    fails: bool,
    store_fails: bool,
    /// The answer is slow: other answers come before it.
    is_slow: bool,
    hollow: Option<Hollow>,
    page_size: Option<usize>,
}

/// An answer under way, with the state of the server when it was made.
struct Sent {
    purpose: Purpose,
    facts: Facts,
    shown: Vec<(u32, Alert)>,
    clock: u64,
}

struct Run {
    server: Server,
    engine: Engine,
    now: Instant,
    /// Alerts whose opening was logged and whose departure was not.
    logged_open: BTreeSet<u32>,
    seen_at: BTreeMap<u32, u64>,
    /// For each alert, the server's clock in the latest answer that an event was made from.
    told_at: BTreeMap<u32, u64>,
    /// Slow answers under way, to a poll and to the background.
    under_way_to: [Option<Sent>; 2],
    requests: usize,
    poll_page: Option<u64>,
    /// What the server answers to the next request, instead of the truth.
    lie: Option<Lie>,
    /// Whether it has ever lied: then alerts may be declared gone that are not.
    lied: bool,
    /// A page that was adopted ahead and is being stored.
    under_way: Option<PendingCommit>,
}

struct PendingCommit {
    ahead: Ahead,
    opened: Vec<u32>,
    fails: bool,
}

impl Server {
    fn act(&mut self, act: &Act) {
        self.clock += 1;
        // A third of the steps share a second with the previous step.
        let second = self.clock / 3;
        let pick = |alerts: &BTreeMap<u32, Alert>, open: bool, choice: u16| {
            let ids: Vec<u32> = alerts
                .iter()
                .filter(|(_, alert)| alert.open == open)
                .map(|(id, _)| *id)
                .collect();
            (!ids.is_empty()).then(|| ids[usize::from(choice) % ids.len()])
        };
        match act {
            Act::Open(count) => {
                for _ in 0..*count {
                    let id = self.alerts.len() as u32 + 1;
                    let alert = Alert {
                        open: true,
                        state: 0,
                        created: second,
                        updated: second,
                        away: self.clock,
                    };
                    self.alerts.insert(id, alert);
                }
            }
            Act::Reopen(choice) | Act::OpenAnew(choice) => {
                if let Some(id) = pick(&self.alerts, false, *choice) {
                    let alert = self.alerts.get_mut(&id).unwrap();
                    (alert.open, alert.updated) = (true, second);
                    if matches!(act, Act::OpenAnew(_)) {
                        alert.created = second;
                    }
                }
            }
            Act::Close(choice) => {
                if let Some(id) = pick(&self.alerts, true, *choice) {
                    let alert = self.alerts.get_mut(&id).unwrap();
                    (alert.open, alert.updated, alert.away) = (false, second, self.clock);
                }
            }
            Act::CloseMany(choice, count) => {
                for step in 0..u16::from(*count) {
                    self.act(&Act::Close(choice.wrapping_add(step)));
                }
            }
            Act::Change(choice) | Act::Bump(choice) => {
                if let Some(id) = pick(&self.alerts, true, *choice) {
                    let alert = self.alerts.get_mut(&id).unwrap();
                    alert.updated = second;
                    alert.state = (alert.state + u8::from(matches!(act, Act::Change(_)))) % 4;
                }
            }
        }
    }

    fn result(&self) -> Vec<(u32, Alert)> {
        self.find(|alert| alert.open)
    }

    fn find(&self, matches: impl Fn(&Alert) -> bool) -> Vec<(u32, Alert)> {
        let mut open: Vec<_> = self
            .alerts
            .iter()
            .filter(|(_, alert)| matches(alert))
            .map(|(id, alert)| (*id, *alert))
            .collect();
        // Ties are broken by the id, which need not be the order of appearance.
        open.sort_by_key(|(id, alert)| {
            let time = if self.by_updated {
                alert.updated
            } else {
                alert.created
            };
            (std::cmp::Reverse(time), id.reverse_bits())
        });
        open
    }
}

impl Run {
    fn new(by_updated: bool, page_size: usize, answers_by_id: bool) -> Self {
        let options = Options {
            full_read_interval: Duration::from_secs(600),
            interval: Duration::from_secs(30),
            max_poll_pages: 25,
            has_one_status: true,
        };
        let tracker = Tracker::new(Arc::new([GroupLabel::State]), 10);
        Self {
            server: Server {
                by_updated,
                page_size,
                answers_by_id,
                ..Server::default()
            },
            engine: Engine::new(options, tracker),
            now: Instant::now(),
            logged_open: BTreeSet::new(),
            seen_at: BTreeMap::new(),
            told_at: BTreeMap::new(),
            under_way_to: [None, None],
            requests: 0,
            poll_page: None,
            lie: None,
            lied: false,
            under_way: None,
        }
    }

    /// Replaces the engine by another one that goes on with what is stored, as after a reload.
    fn reload(&mut self) {
        self.stored();
        self.under_way_to = [None, None];
        self.poll_page = None;
        let mut tracker = Tracker::new(Arc::new([GroupLabel::State]), 10);
        for id in &self.logged_open {
            let alert = Alert {
                open: true,
                ..self.server.alerts[id]
            };
            let (id, state) = (id.to_string(), alert.state.to_string());
            tracker.load(KnownAlert {
                sighting: sighting(&id, &state, &alert),
                ordinal: 1,
                created_at: Some(alert.created as i64),
                group: vec!["".into()],
            });
        }
        let open = tracker.open_count();
        let engine = Engine::new(self.engine.options, tracker);
        let before = std::mem::replace(&mut self.engine, engine);
        self.engine.set_limits(before.limits());
        if let Some(total) = before.total()
            && before.is_complete()
            && before.tracker().open_count() == open
        {
            let read_at = due(&before) - before.options.full_read_interval;
            self.engine.resume(total, self.now - read_at, self.now);
        }
    }

    fn log_opened(&mut self, opened: Vec<u32>) {
        for id in opened {
            assert!(self.logged_open.insert(id), "opened twice: {id}");
        }
    }

    /// Ends the commit under way. Returns whether it was stored.
    fn stored(&mut self) -> bool {
        match self.under_way.take() {
            Some(PendingCommit {
                ahead, fails: true, ..
            }) => {
                self.engine.take_back(ahead);
                false
            }
            Some(PendingCommit { opened, .. }) => {
                self.log_opened(opened);
                true
            }
            None => true,
        }
    }

    fn ask(&mut self, purpose: &Purpose, page_no: u64) -> Sent {
        self.requests += 1;
        self.engine.request_sent(purpose);
        let mut result = self.server.result();
        if let Purpose::Confirm(question) = purpose
            && self.server.answers_by_id
        {
            let wanted: BTreeSet<&str> = question
                .suspects
                .iter()
                .map(|id| &**id)
                .chain([&*question.witness])
                .collect();
            if self.server.ids_override || self.server.query_is_dropped {
                result = self.server.find(|_| true);
            }
            if !self.server.query_is_dropped {
                result.retain(|(id, _)| wanted.contains(&*id.to_string()));
            }
            if self.server.shows_twice
                && let [first, .., last] = &mut result[..]
            {
                *last = *first;
            }
        }
        let size = self.server.page_size;
        let repeats = self.server.repeats;
        let last = result.len().div_ceil(size).max(1);
        let page = if repeats {
            last.min(page_no as usize)
        } else {
            page_no as usize
        };
        let from = (page - 1).saturating_mul(size).min(result.len());
        let mut shown: Vec<_> = result.iter().skip(from).take(size).copied().collect();
        let mut facts = Facts {
            page: page_no,
            shown: shown.len(),
            unreadable: 0,
            total: (result.len() as u64).saturating_add_signed(self.server.surplus),
            // The real client ignores a size of zero and takes the size that was asked for.
            page_size: if self.server.size_as_shown && !shown.is_empty() {
                shown.len() as u64
            } else {
                size as u64
            },
            next: page_no.checked_add(1).filter(|_| {
                let goes_on = from + shown.len() < result.len();
                (repeats || self.server.names_next || goes_on) && !shown.is_empty()
            }),
        };
        facts.unreadable = self.server.unreadable.min(shown.len());
        shown.truncate(shown.len() - facts.unreadable);
        if let Some(hollow) = self.server.hollow.take() {
            shown.clear();
            (facts.shown, facts.next) = (0, None);
            if matches!(hollow, Hollow::CountingNothing) && page_no > 1 {
                facts.total = 0;
            }
        }
        if let Some(lie) = self.lie.take() {
            self.lied = true;
            let all: Vec<_> = self.server.alerts.iter().collect();
            let pick = |index: &prop::sample::Index| {
                let (id, alert) = index.get(&all);
                (**id, **alert)
            };
            shown = lie.shown.iter().map(pick).collect();
            facts = Facts {
                page: page_no,
                shown: shown.len() + lie.unreadable,
                unreadable: lie.unreadable,
                total: lie.total,
                page_size: lie.page_size,
                // The real client drops a next page that does not lead onwards.
                next: lie.next.filter(|next| *next > page_no),
            };
        }
        Sent {
            purpose: purpose.clone(),
            facts,
            shown,
            clock: self.server.clock,
        }
    }

    fn answer(&mut self, sent: &Sent, store_fails: bool) -> Next {
        let Sent {
            purpose,
            facts,
            shown,
            clock,
        } = sent;
        let is_full_read = *purpose == Purpose::FullRead;
        if !is_full_read {
            self.stored();
        }
        let texts: Vec<_> = shown
            .iter()
            .map(|(id, alert)| (id.to_string(), alert.state.to_string()))
            .collect();
        let page: Vec<_> = shown
            .iter()
            .zip(&texts)
            .map(|((_, alert), (id, state))| sighting(id, state, alert))
            .collect();
        let mut delta = self.engine.compare(purpose, &page);
        let created_at = |place: usize| Some(shown[place].1.created as i64);
        let opened_anew = self.engine.opened_anew(&page, &delta, created_at);
        if !opened_anew.is_empty() {
            if !self.stored() || store_fails {
                return Next::Done;
            }
            self.depart(&opened_anew);
            delta = self.engine.compare(purpose, &page);
        }
        // The commit under way ends while a page of a full read is processed.
        if is_full_read && !self.stored() {
            return Next::Done;
        }
        let ahead = self.engine.ahead(purpose, facts, &page, &delta);
        if store_fails && ahead.is_none() {
            return Next::Done;
        }
        let known = delta
            .opened
            .iter()
            .copied()
            .chain(
                delta
                    .changed
                    .iter()
                    .chain(&delta.refreshed)
                    .map(|(place, _)| *place),
            )
            .map(|place| KnownAlert {
                sighting: page[place],
                ordinal: 1,
                created_at: Some(shown[place].1.created as i64),
                group: vec!["".into()],
            })
            .collect();
        let changed = delta.changed.iter().map(|(place, _)| place);
        for place in delta.opened.iter().chain(changed) {
            let (id, _) = shown[*place];
            let before = self.told_at.insert(id, *clock);
            assert!(before <= Some(*clock), "{id} is told as it stood before");
        }
        let opened: Vec<u32> = delta.opened.iter().map(|place| shown[*place].0).collect();
        match ahead {
            Some(ahead) => {
                self.under_way = Some(PendingCommit {
                    ahead,
                    opened,
                    fails: store_fails,
                });
            }
            None => self.log_opened(opened),
        }
        // If a sound reading missed an alert, an answer by id tells only whether it is gone: an
        // alert that has closed and opened again since may still be logged as left.
        let counts = !matches!(purpose, Purpose::Confirm(_)) || !self.engine.is_sound();
        for (id, _) in shown.iter().filter(|(_, alert)| alert.open && counts) {
            // An older answer does not count as a sighting of an alert that others have told
            // about.
            let overtaken = self.engine.requests.overtaken(purpose);
            if !overtaken.is_some_and(|overtaken| overtaken.has(&id.to_string())) {
                let seen_at = self.seen_at.entry(*id).or_default();
                *seen_at = (*seen_at).max(*clock);
            }
        }
        self.engine
            .adopt(purpose, facts, &page, &delta, known, self.now)
    }

    fn poll(&mut self, store_fails: bool) {
        let page = self.poll_page.take().unwrap_or(1);
        let sent = match self.under_way_to[0].take() {
            Some(sent) => sent,
            None => self.ask(&Purpose::Poll, page),
        };
        if let Next::Page(next) = self.answer(&sent, store_fails) {
            self.poll_page = Some(next);
        } else {
            self.now += Duration::from_secs(30);
        }
    }

    /// Sends a request whose answer comes later: of a poll, or of the background if it has a page
    /// or a question to ask.
    fn send(&mut self, poll: bool) {
        if poll && self.under_way_to[0].is_none() {
            let page = self.poll_page.unwrap_or(1);
            self.under_way_to[0] = Some(self.ask(&Purpose::Poll, page));
        } else if !poll && self.under_way_to[1].is_none() {
            let (purpose, page) = match self.engine.task() {
                Some(Task::Page(page)) => (Purpose::FullRead, page),
                Some(Task::Confirm(question)) => (Purpose::Confirm(question), 1),
                _ => return,
            };
            self.under_way_to[1] = Some(self.ask(&purpose, page));
        }
    }

    /// Makes one request of the background. Returns whether there was one to make.
    fn background(&mut self, store_fails: bool) -> bool {
        if let Some(sent) = self.under_way_to[1].take() {
            self.answer(&sent, store_fails);
            return true;
        }
        let task = self.engine.task();
        assert_eq!(self.engine.has_task(), task.is_some());
        if !matches!(task, Some(Task::Page(_))) {
            self.stored();
        }
        match &task {
            None => {}
            Some(Task::Page(page)) => {
                let sent = self.ask(&Purpose::FullRead, *page);
                self.answer(&sent, store_fails);
            }
            Some(Task::Confirm(question)) => {
                let sent = self.ask(&Purpose::Confirm(Arc::clone(question)), 1);
                self.answer(&sent, store_fails);
            }
            Some(Task::Verify(_)) if store_fails => {}
            Some(Task::Verify(ids)) => {
                let is_open = |id: &str| self.server.alerts[&id.parse().unwrap()].open;
                let gone = ids.iter().filter(|id| !is_open(id)).cloned().collect();
                self.engine.adopt_verdicts(ids, &gone, false);
            }
            Some(Task::Reasons(_)) if store_fails => {}
            Some(Task::Reasons(ids)) => self.depart(ids),
        }
        task.is_some()
    }

    fn depart(&mut self, ids: &[Box<str>]) {
        for id in ids {
            let number: u32 = id.parse().unwrap();
            if self.engine.departing(id).is_some() {
                let alert = self.server.alerts[&number];
                assert!(
                    self.lied || !alert.open || alert.away > self.seen_at[&number],
                    "{id} was declared gone and has been open since it was last seen"
                );
                assert!(
                    self.logged_open.remove(&number),
                    "{id} left without being open"
                );
            }
        }
        self.engine.adopt_departures(ids);
    }

    /// Makes one request, if there is one to make: of a poll if `poll` says so or a poll wants a
    /// further page, else of the background.
    fn go_on(&mut self, poll: bool, store_fails: bool) {
        if poll || self.poll_page.is_some() && self.under_way_to[0].is_none() {
            self.poll(store_fails);
        } else {
            self.background(store_fails);
        }
    }

    fn settle(&mut self) {
        for _ in 0..4 {
            self.now += Duration::from_secs(600);
            poll_to_the_end(self);
            let mut steps = 0;
            while self.background(false) {
                steps += 1;
                assert!(steps < 10_000, "the background does not come to an end");
            }
        }
    }

    #[track_caller]
    fn assert_agreement(&self) {
        let open = self.open_on_server();
        let lost: Vec<_> = open.difference(&self.logged_open).collect();
        let stuck: Vec<_> = self.logged_open.difference(&open).collect();
        assert!(
            lost.is_empty() && stuck.is_empty(),
            "lost {lost:?}, stuck {stuck:?}"
        );
    }

    fn open_on_server(&self) -> BTreeSet<u32> {
        self.server.result().into_iter().map(|(id, _)| id).collect()
    }
}

/// When the result is due to be read again.
fn due(engine: &Engine) -> Instant {
    engine.history.next_due.unwrap()
}

/// Makes a poll up to its end.
fn poll_to_the_end(run: &mut Run) {
    run.poll(false);
    while run.poll_page.is_some() {
        run.poll(false);
    }
}

/// Sightings of which only the ids matter.
fn plain(ids: &[String]) -> Vec<Sighting<'_>> {
    let sighting = |id| Sighting {
        id,
        digest: 0,
        state: "",
        status: "",
    };
    ids.iter().map(|id| sighting(id)).collect()
}

fn sighting<'a>(id: &'a str, state: &'a str, alert: &Alert) -> Sighting<'a> {
    Sighting {
        id,
        digest: u64::from(alert.state) | u64::from(alert.open) << 4 | alert.updated << 8,
        state,
        status: if alert.open { "New" } else { "Closed" },
    }
}

fn run_with(open: u16, page_size: usize) -> Run {
    let mut run = Run::new(false, page_size, true);
    for _ in 0..open / 50 {
        run.server.act(&Act::Open(50));
    }
    run.settle();
    // Longer than the rest after a full read, and too short for the next full read to be due.
    run.now += Duration::from_secs(120);
    run.requests = 0;
    run
}
