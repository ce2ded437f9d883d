use proptest::prelude::*;

use super::*;
use crate::track::GroupLabel;

/// A server of thirty lines: what is open, sorted as it likes, in pages of its own size.
#[derive(Debug, Default)]
struct Server {
    alerts: BTreeMap<u32, Alert>,
    clock: u64,
    by_updated: bool,
    page_size: usize,
    answers_by_id: bool,
    /// Asked by id, it looks at nothing else of the query.
    ids_override: bool,
    /// Asked by id, it shows the first alert once more in place of the last.
    shows_twice: bool,
    /// How many more it counts than it shows.
    surplus: u64,
    /// Behind its last page it shows that one again, and says of each that there is a next one.
    repeats: bool,
    /// It says of each page that its size is what it shows.
    size_as_shown: bool,
}

#[derive(Clone, Copy, Debug)]
struct Alert {
    open: bool,
    state: u8,
    created: u64,
    updated: u64,
    /// When it was last not open.
    away: u64,
}

#[derive(Clone, Debug)]
enum Act {
    Open(u8),
    Reopen(u16),
    /// It opens as another alert of the same id.
    OpenAnew(u16),
    Close(u16),
    CloseMany(u16, u8),
    Change(u16),
    Bump(u16),
}

/// An answer that has nothing to do with what there is.
#[derive(Clone, Debug)]
struct Lie {
    /// Which alerts it shows.
    shown: Vec<prop::sample::Index>,
    total: u64,
    page_size: u64,
    next: Option<u64>,
    unreadable: usize,
}

/// What happens until and at one request.
#[derive(Clone, Debug)]
struct Turn {
    acts: Vec<Act>,
    poll: bool,
    fails: bool,
    store_fails: bool,
    /// The answer takes its time: others come before it.
    is_slow: bool,
    page_size: Option<usize>,
}

/// An answer under way: how things stood when it was made.
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
    /// Openings that were logged and not yet followed by a departure.
    logged_open: BTreeSet<u32>,
    seen_at: BTreeMap<u32, u64>,
    /// How old the answer was that an event was last made from.
    told_at: BTreeMap<u32, u64>,
    /// Slow answers, to a poll and to the background.
    under_way_to: [Option<Sent>; 2],
    requests: usize,
    poll_page: Option<u64>,
    /// What the server says instead of the truth, next.
    lie: Option<Lie>,
    /// Whether it has ever lied: then alerts may be declared gone that are not.
    lied: bool,
    /// A page that the engine knows already, while it is being stored.
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
        // A third of the steps share a second with the one before.
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

    /// Another engine goes on with what is stored, as after a reload.
    fn reload(&mut self) {
        self.stored();
        self.under_way_to = [None, None];
        self.poll_page = None;
        let mut tracker = Tracker::new(Arc::new([GroupLabel::State]), 10);
        for id in &self.logged_open {
            let alert = self.server.alerts[id];
            let (id, state) = (id.to_string(), alert.state.to_string());
            tracker.load(Known {
                sighting: sighting(&id, &state, &alert),
                ordinal: 1,
                created_at: Some(alert.created as i64),
                group: vec!["".into()],
            });
        }
        let open = tracker.open();
        let engine = Engine::new(self.engine.options, tracker);
        let before = std::mem::replace(&mut self.engine, engine);
        if let Some(total) = before.total()
            && before.is_complete()
            && before.tracker().open() == open
        {
            self.engine.resume(total, Duration::ZERO, self.now);
        }
    }

    fn log_opened(&mut self, opened: Vec<u32>) {
        for id in opened {
            assert!(self.logged_open.insert(id), "opened twice: {id}");
        }
    }

    /// The end of what is under way. Brings whether it was stored.
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
        self.engine.asked(purpose);
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
            if self.server.ids_override {
                result = self.server.find(|_| true);
            }
            result.retain(|(id, _)| wanted.contains(&*id.to_string()));
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
            total: result.len() as u64 + self.server.surplus,
            page_size: if self.server.size_as_shown {
                shown.len() as u64
            } else {
                size as u64
            },
            next: page_no
                .checked_add(1)
                .filter(|_| (repeats || from + shown.len() < result.len()) && !shown.is_empty()),
        };
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
                // What does not lead onwards does not come this far.
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
        // Whatever is under way is stored while a full read's page is worked off.
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
            .map(|place| Known {
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
        for (id, _) in shown.iter().filter(|(_, alert)| alert.open) {
            // What others have overtaken is not seen.
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

    /// Sends a request whose answer comes later: of a poll, or of the background where it asks for a page.
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

    /// One request of the background. Brings whether there was one to make.
    fn background(&mut self, store_fails: bool) -> bool {
        if let Some(sent) = self.under_way_to[1].take() {
            self.answer(&sent, store_fails);
            return true;
        }
        let task = self.engine.task();
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

    /// One request, if there is one to make: of a poll that is asked for or under way, else of the background.
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
            self.poll(false);
            while self.poll_page.is_some() {
                self.poll(false);
            }
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

/// Alerts of which nothing but the ids matters.
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

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u8..6).prop_map(Act::Open),
        3 => any::<u16>().prop_map(Act::Close),
        1 => (any::<u16>(), 1u8..20).prop_map(|(choice, count)| Act::CloseMany(choice, count)),
        2 => any::<u16>().prop_map(Act::Reopen),
        1 => any::<u16>().prop_map(Act::OpenAnew),
        1 => any::<u16>().prop_map(Act::Change),
        1 => any::<u16>().prop_map(Act::Bump),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    (
        proptest::collection::vec(act(), 0..3),
        proptest::bool::weighted(0.4),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.02, 2usize..9),
    )
        .prop_map(
            |(acts, poll, fails, store_fails, is_slow, page_size)| Turn {
                acts,
                poll,
                fails,
                store_fails,
                is_slow,
                page_size,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2 * ProptestConfig::default().cases))]

    /// Whatever happens between two requests: nobody who is open is declared gone, nobody is
    /// opened twice, and after a quiet full read everybody who is open is known, and nobody else.
    #[test]
    fn nothing_is_lost_doubled_or_declared_gone(
        by_updated: bool,
        answers_by_id: bool,
        page_size in 2usize..9,
        start in 0u8..60,
        turns in proptest::collection::vec(turn(), 0..120),
        repeats in proptest::bool::weighted(0.2),
        size_as_shown in proptest::bool::weighted(0.2),
        reloads in proptest::collection::btree_set(0usize..120, 0..4),
        ids_override in proptest::bool::weighted(0.2),
        surplus in 0u64..6,
        shows_twice in proptest::bool::weighted(0.2),
    ) {
        let mut run = Run::new(by_updated, page_size, answers_by_id);
        run.server.ids_override = ids_override;
        // Where the total tells nothing, all depends on what is asked by id.
        let is_told = answers_by_id && !ids_override && !repeats && !shows_twice;
        run.server.shows_twice = shows_twice && !ids_override;
        run.server.surplus = if is_told { surplus / 5 } else { 0 };
        run.server.repeats = repeats;
        run.server.size_as_shown = size_as_shown;
        run.server.act(&Act::Open(start));
        for (number, turn) in turns.into_iter().enumerate() {
            if reloads.contains(&number) {
                run.reload();
            }
            for act in &turn.acts {
                run.server.act(act);
            }
            if let Some(size) = turn.page_size {
                run.server.page_size = size;
            }
            if turn.fails {
                run.poll_page = None;
                run.under_way_to[0] = None;
                continue;
            }
            if turn.is_slow {
                run.send(turn.poll);
                continue;
            }
            run.go_on(turn.poll, turn.store_fails);
        }
        run.settle();
        if run.server.surplus > 0 {
            // Nothing is asked without a witness, nor for an hour after two that were in vain.
            run.server.act(&Act::Open(1));
            run.now += CONFIRM_AGAIN;
            run.settle();
        }
        run.assert_agreement();
        prop_assert_eq!(run.engine.is_complete(), run.server.surplus == 0);
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..60u64, 0..10_000u64, any::<u64>(), Just(u64::MAX)]
    }
    (
        proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        number(),
        number().prop_map(|size| size.max(1)),
        proptest::option::weighted(0.7, number()),
        0..3usize,
    )
        .prop_map(|(shown, total, page_size, next, unreadable)| Lie {
            shown,
            total,
            page_size,
            next,
            unreadable,
        })
}

proptest! {
    /// Whatever nonsense a server has told: once it tells the truth again, so do we.
    #[test]
    fn lies_do_not_last(
        start in 1u8..60,
        closed in 0u8..20,
        lies in proptest::collection::vec((any::<bool>(), lie()), 0..100),
    ) {
        let mut run = Run::new(false, 7, true);
        run.server.act(&Act::Open(start));
        run.server.act(&Act::CloseMany(0, closed));
        for (poll, lie) in lies {
            run.lie = Some(lie);
            run.go_on(poll, false);
            run.lie = None;
        }
        run.settle();
        run.settle();
        run.assert_agreement();
        prop_assert!(run.engine.is_complete());
    }
}

#[test]
fn an_answer_that_was_overtaken_brings_nobody_back() {
    let mut run = run_with(1000, 100);
    run.send(true);
    run.server.act(&Act::Close(990));
    let slow = run.under_way_to[0].take();
    run.poll(false);
    while run.background(false) {
        // The background goes on while the poll's answer is waited for.
    }
    assert_eq!(run.logged_open.len(), 999);
    run.under_way_to[0] = slow;
    run.poll(false);
    while run.background(false) {}
    run.settle();
    run.assert_agreement();
}

#[test]
fn an_answer_that_lacks_most_of_what_there_was_stands_alone_until_the_next() {
    let mut run = run_with(100, 200);
    let nothing = Lie {
        shown: Vec::new(),
        total: 0,
        page_size: 200,
        next: None,
        unreadable: 0,
    };
    run.lie = Some(nothing);
    run.poll(false);
    assert_eq!((run.engine.task(), run.engine.total()), (None, Some(0)));
    assert!(!run.engine.is_complete());
    run.poll(false);
    assert_eq!(run.engine.task(), None);
    assert!(run.engine.is_complete());

    run.server.act(&Act::CloseMany(0, 90));
    run.poll(false);
    assert_eq!(run.engine.task(), None);
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn what_one_of_two_bad_answers_in_a_row_shows_has_not_left() {
    let mut run = run_with(100, 200);
    run.lied = true;
    let show = |run: &mut Run, shown: std::ops::Range<u32>| {
        for (id, alert) in &mut run.server.alerts {
            alert.open = shown.contains(id);
        }
        run.poll(false);
        while run.background(false) {}
    };
    show(&mut run, 1..11);
    assert_eq!(run.logged_open.len(), 100);
    show(&mut run, 51..61);
    assert_eq!(run.logged_open, (1..11).chain(51..61).collect());
    show(&mut run, 1..101);
    run.assert_agreement();
}

#[test]
fn items_that_cannot_be_read_make_nobody_leave() {
    let mut run = run_with(50, 100);
    for _ in 0..20 {
        run.lie = Some(Lie {
            shown: Vec::new(),
            total: 50,
            page_size: 100,
            next: None,
            unreadable: 50,
        });
        run.poll(false);
        while run.background(false) {}
    }
    run.assert_agreement();
    // Those whose pages say so have.
    run.server.act(&Act::CloseMany(7, 3));
    run.settle();
    run.assert_agreement();
}

#[test]
fn a_total_that_is_too_high_keeps_nobody_who_left() {
    for size in [100, 2_000] {
        let mut run = run_with(1_000, size);
        run.server.surplus = 1;
        run.server.act(&Act::CloseMany(7, 80));
        run.poll(false);
        while run.background(false) {}
        run.assert_agreement();
        assert!(!run.engine.is_complete());
    }
}

/// The pages of a full read that the server shows are read, and then all questions are asked.
fn read_up_to_a_refusal(run: &mut Run, refused: u64) -> BTreeSet<Box<str>> {
    run.now += Duration::from_secs(600);
    run.poll(false);
    let mut asked = BTreeSet::new();
    while let Some(task) = run.engine.task() {
        if task == Task::Page(refused) {
            run.engine.page_refused(run.now);
            continue;
        }
        if let Task::Confirm(question) = &task {
            asked.extend(question.suspects.iter().cloned());
        }
        run.background(false);
    }
    asked
}

#[test]
fn behind_what_the_server_shows_everybody_is_asked_for_in_turn() {
    let mut run = run_with(6_000, 500);
    let first = read_up_to_a_refusal(&mut run, 2);
    assert_eq!(first.len(), UNSEEN);
    let left_out = (1..=6_000).find(|id: &u32| !first.contains(&*id.to_string()));
    let alert = left_out.and_then(|id| run.server.alerts.get_mut(&id));
    alert.expect("some are left for later").open = false;
    let second = read_up_to_a_refusal(&mut run, 2);
    assert_eq!(first.union(&second).count(), 5_500);
    run.assert_agreement();
}

#[test]
fn polls_ask_for_no_page_that_full_reads_are_refused() {
    let mut run = run_with(1_000, 100);
    let poll_with_news = |run: &mut Run| {
        (0..1_000).for_each(|choice| run.server.act(&Act::Bump(choice)));
        run.requests = 0;
        while run.requests == 0 || run.poll_page.is_some() {
            run.poll(false);
        }
        run.requests
    };
    read_up_to_a_refusal(&mut run, 4);
    assert_eq!(poll_with_news(&mut run), 3);
    read_up_to_a_refusal(&mut run, u64::MAX);
    assert_eq!(poll_with_news(&mut run), 10);
}

#[test]
fn an_empty_or_doubtful_result_is_gone_through_twice() {
    let gone_through = |open: u8, surplus: u64| {
        let mut run = Run::new(false, 100, true);
        run.server.surplus = surplus;
        run.server.act(&Act::Open(open));
        let mut polls = 0;
        while !run.engine.has_gone_through() {
            run.poll(false);
            while run.background(false) {}
            run.now += Duration::from_secs(30);
            polls += 1;
        }
        polls
    };
    assert_eq!(gone_through(30, 0), 1);
    assert_eq!(gone_through(0, 0), 2);
    assert!((2..9).contains(&gone_through(30, 1)));
    let mut run = Run::new(false, 10, true);
    run.server.act(&Act::Open(30));
    read_up_to_a_refusal(&mut run, 2);
    assert!(!run.engine.has_gone_through());
    read_up_to_a_refusal(&mut run, 2);
    assert!(run.engine.has_gone_through());
}

#[test]
fn what_is_shown_by_id_though_it_has_left_is_told_by_its_page() {
    let mut run = run_with(1_000, 100);
    run.server.ids_override = true;
    let told = run.told_at.clone();
    run.server.act(&Act::CloseMany(300, 80));
    for _ in 0..DOUBT {
        run.now += Duration::from_secs(600);
        run.poll(false);
        while run.background(false) {}
    }
    run.assert_agreement();
    assert_eq!(
        run.told_at, told,
        "what has left is not told to have changed"
    );
    run.poll(false);
    assert!(!run.background(false));
}

#[test]
fn whom_an_answer_by_id_counts_and_does_not_show_has_not_left_unless_its_page_says_so() {
    // Read whole, and with a total that leaves nothing to be concluded from not being seen.
    for surplus in [0, 1] {
        let mut run = run_with(1_000, 100);
        run.server.shows_twice = true;
        run.server.surplus = surplus;
        run.server.act(&Act::CloseMany(500, 9));
        let closed: Vec<u32> = run
            .logged_open
            .difference(&run.open_on_server())
            .copied()
            .collect();
        run.poll(false);
        while !matches!(run.engine.task(), Some(Task::Confirm(_))) {
            assert!(run.background(false));
        }
        // Pages that shift have hidden all but one of them.
        for id in &closed[1..] {
            run.server.alerts.get_mut(id).unwrap().open = true;
        }
        run.requests = 0;
        let told = run.told_at.clone();
        while run.background(false) {}
        assert_eq!(run.requests, 2, "one question, and what the witness counts");
        run.assert_agreement();
        run.settle();
        assert_eq!(run.told_at, told, "nobody is told anew");
    }
}

#[test]
fn as_many_are_asked_for_at_once_however_short_the_last_page_is() {
    let mut run = Run::new(false, 100, true);
    run.server.size_as_shown = true;
    (0..101).for_each(|_| run.server.act(&Act::Open(10)));
    run.settle();
    run.now += Duration::from_secs(120);
    run.requests = 0;
    run.server.act(&Act::CloseMany(300, 120));
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
    assert_eq!(
        run.requests,
        1 + 9 + 3,
        "a poll, nine pages, three questions"
    );
}

#[test]
fn a_search_whose_answers_by_id_show_no_witness_is_not_asked_so_for_ever() {
    let mut run = run_with(300, 100);
    run.server.act(&Act::Close(5));
    let mut questions = 0;
    for _ in 0..10 {
        run.now += Duration::from_secs(600);
        run.poll(false);
        while let Some(task) = run.engine.task() {
            if matches!(task, Task::Confirm(_)) {
                questions += 1;
                run.lie = Some(Lie {
                    shown: Vec::new(),
                    total: 0,
                    page_size: 100,
                    next: None,
                    unreadable: 0,
                });
            }
            run.background(false);
        }
    }
    run.assert_agreement();
    assert!((2..9).contains(&questions), "{questions}");
}

fn run_with(open: u16, page_size: usize) -> Run {
    let mut run = Run::new(false, page_size, true);
    for _ in 0..open / 50 {
        run.server.act(&Act::Open(50));
    }
    run.settle();
    // Long enough for the rest after a full read, too short for the next.
    run.now += Duration::from_secs(120);
    run.requests = 0;
    run
}

#[test]
fn a_quiet_poll_costs_one_request() {
    let mut run = run_with(1000, 100);
    for _ in 0..10 {
        run.poll(false);
        assert!(!run.background(false));
    }
    assert_eq!(run.requests, 10);
    assert!(run.engine.is_complete());
}

#[test]
fn a_reload_costs_no_full_read_before_it_is_due() {
    let mut run = run_with(1000, 100);
    run.poll(false);
    run.reload();
    run.poll(false);
    assert!(run.engine.is_complete());
    assert!(!run.background(false));
    assert_eq!(run.requests, 2);
    run.now += Duration::from_secs(600);
    run.poll(false);
    while run.background(false) {}
    assert_eq!(run.requests, 12);
}

#[test]
fn a_reload_while_something_is_on_its_way_out_has_all_read_again() {
    let mut run = run_with(1000, 100);
    run.server.act(&Act::Close(5));
    run.poll(false);
    while !run.engine.has_departures() {
        assert!(run.background(false));
    }
    run.reload();
    assert!(!run.engine.is_complete());
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_burst_costs_a_request_a_page() {
    let mut run = run_with(1000, 100);
    for _ in 0..19 {
        run.server.act(&Act::Open(50));
    }
    loop {
        run.poll(false);
        if run.poll_page.is_none() {
            break;
        }
    }
    assert!(!run.background(false));
    assert!(run.requests <= 11, "{}", run.requests);
    run.assert_agreement();
}

#[test]
fn a_burst_into_an_empty_result_costs_a_request_a_page() {
    let mut run = run_with(0, 100);
    for _ in 0..19 {
        run.server.act(&Act::Open(50));
    }
    run.poll(false);
    while run.background(false) {}
    assert_eq!(run.requests, 10);
    run.assert_agreement();
}

#[test]
fn a_burst_that_is_too_long_for_a_poll_is_left_to_the_background() {
    let mut run = run_with(200, 4);
    for _ in 0..4 {
        run.server.act(&Act::Open(50));
    }
    while run.poll_page.is_some() || run.requests == 0 {
        run.poll(false);
    }
    assert_eq!(run.requests, 25);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_result_of_one_page_shows_departures_at_once() {
    let mut run = run_with(50, 100);
    run.server.act(&Act::CloseMany(7, 3));
    run.poll(false);
    assert_eq!(run.engine.tracker().open(), 47);
    assert!(run.engine.is_complete());
    assert!(matches!(run.engine.task(), Some(Task::Reasons(ids)) if ids.len() == 3));
    run.background(false);
    run.assert_agreement();
    assert_eq!(run.requests, 1);
}

#[test]
fn one_that_opens_anew_while_its_departure_waits_has_left_and_one_that_comes_back_has_not() {
    for act in [Act::OpenAnew(1), Act::Reopen(1)] {
        let mut run = run_with(50, 100);
        let told = run.told_at.clone();
        run.server.act(&Act::CloseMany(7, 3));
        run.poll(false);
        let Some(Task::Reasons(waiting)) = run.engine.task() else {
            panic!("three have left");
        };
        run.server.act(&act);
        run.poll(false);
        let returned = run.open_on_server();
        let returned = waiting
            .iter()
            .find(|id| returned.contains(&id.parse().unwrap()));
        let id: u32 = returned.unwrap().parse().unwrap();
        let is_told = run.told_at[&id] > told[&id];
        assert_eq!(is_told, matches!(act, Act::OpenAnew(_)));
        assert!(run.logged_open.contains(&id));
        // It may leave once more before anything is known of the others.
        run.server.alerts.get_mut(&id).unwrap().open = false;
        run.poll(false);
        let Some(Task::Reasons(mut left)) = run.engine.task() else {
            panic!("three have left");
        };
        left.sort();
        let mut all = waiting.clone();
        all.sort();
        assert_eq!(left, all, "each once");
        run.lied = true;
        while run.background(false) {}
        run.assert_agreement();
    }
}

#[test]
fn a_departure_from_a_long_result_is_noticed_by_the_count() {
    let mut run = run_with(1000, 100);
    run.server.act(&Act::Close(500));
    run.poll(false);
    assert!(!run.engine.is_complete());
    while run.background(false) {}
    run.assert_agreement();
    assert_eq!(
        run.requests,
        1 + 10 + 1,
        "a poll, ten pages, and the question whether it is gone"
    );
    assert!(run.engine.is_complete());
}

#[test]
fn a_count_that_never_adds_up_is_not_chased_without_rest() {
    let mut run = run_with(1000, 100);
    // A server that shows one alert less than it counts: read, but never seen.
    let options = run.engine.options;
    let mut reads = 0;
    for _ in 0..100 {
        let page: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let page = plain(&page);
        let delta = Delta {
            tail_unchanged: true,
            ..Delta::default()
        };
        let facts = Facts {
            page: 1,
            shown: 100,
            unreadable: 0,
            total: 2000,
            page_size: 100,
            next: Some(2),
        };
        run.engine
            .adopt(&Purpose::Poll, &facts, &page, &delta, Vec::new(), run.now);
        reads += usize::from(run.engine.task().is_some());
        while let Some(task) = run.engine.task() {
            let Task::Page(page) = task else {
                run.background(false);
                continue;
            };
            let facts = Facts {
                page,
                next: (page < 20).then_some(page + 1),
                ..facts
            };
            run.engine
                .adopt(&Purpose::FullRead, &facts, &[], &delta, Vec::new(), run.now);
        }
        run.now += options.interval;
    }
    assert!((2..12).contains(&reads), "{reads} full reads in 50 minutes");
}

#[test]
fn what_could_not_be_read_before_a_refused_page_is_not_looked_for_again() {
    let mut run = run_with(100, 100);
    let ids: Vec<String> = (1..=100).map(|id| id.to_string()).collect();
    let page = plain(&ids);
    let delta = Delta {
        tail_unchanged: true,
        ..Delta::default()
    };
    let facts = Facts {
        page: 1,
        shown: 103,
        unreadable: 3,
        total: 103,
        page_size: 103,
        next: Some(2),
    };
    run.now += run.engine.options.full_read_interval;
    let poll = |run: &mut Run| {
        run.engine
            .adopt(&Purpose::Poll, &facts, &page, &delta, Vec::new(), run.now);
        run.engine.task()
    };
    assert_eq!(poll(&mut run), Some(Task::Page(2)));
    run.engine.page_refused(run.now);
    for _ in 0..10 {
        run.now += run.engine.options.interval;
        assert_eq!(poll(&mut run), None, "all that is counted is known");
    }
}
