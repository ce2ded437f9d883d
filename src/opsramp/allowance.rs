//! The allowance: how many requests a tenant may make in a minute, shared by everyone who asks.
//!
//! Three things feed it: our own ceiling, the `X-RateLimit-*` headers, and 429 with
//! `Retry-After`. [`Window`] is the pure rule; [`Allowance`] lets callers wait for it, first come
//! first served, polls before their further pages and full reads, and evenly spread where polls alone
//! want more than there is.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

pub(super) use self::hints::Hints;
use crate::http_date::MAX_PAUSE;

mod hints;

/// The documented window.
const MINUTE: Duration = Duration::from_secs(60);
/// A limit that no answer has told again for so long counts no more.
const LIMIT_LASTS: Duration = Duration::from_secs(5 * 60);
/// By how much the reset of one window differs from answer to answer: it is told in whole seconds.
const JITTER: Duration = Duration::from_secs(2);
/// So many answers in a row, a while apart, must tell of a window that slides before it is taken for one: the reset
/// of a bucket that leaks moves on as well while it fills.
const SLID: u32 = 4;
/// So many that do not, before it is no longer.
const STOOD: u32 = 2;
/// The pause after a 429 that does not say how long.
const UNTOLD_PAUSE: Duration = Duration::from_secs(15);

/// What is known can change while somebody waits, so they look again every now and then.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How soon a request is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A poll: new alerts wait for it.
    Poll,
    /// A poll's further pages: the news of one search leave the polls of the others what they need.
    News,
    /// A full read or what follows from it: takes what polls leave.
    Background,
}

/// The rule: at most so many requests in any minute, and less where the server says so.
#[derive(Debug)]
pub(super) struct Window {
    ceiling: u32,
    /// The server's limit, and until when it counts.
    told_limit: Option<(u32, Instant)>,
    /// When the requests of the last minute were answered, and what they were for. The server
    /// counts a request when it arrives, which is before that: so a minute after the answer it is
    /// surely forgotten.
    answered: VecDeque<(Instant, Urgency)>,
    /// Requests that are not answered yet, by what they are for.
    in_flight: [u32; 3],
    /// How many of the requests in flight got a 429 in a sliding window. The server does not count those, so they
    /// are not added to `answered` when they are given back.
    refused: u32,
    last_poll: Option<Instant>,
    /// What the last request was for.
    last: Option<Urgency>,
    /// What the server said is left, and until when.
    told: Option<Balance>,
    resets: Resets,
    /// No request before this, because the server said so.
    paused_until: Option<Instant>,
}

/// The resets that were told, and what they tell of the server's window.
#[derive(Debug, Default)]
struct Resets {
    /// When an answer told a reset, and which one: whether it moves on shows with later ones.
    anchor: Option<(Instant, Instant)>,
    /// Whether the reset moves on from answer to answer, as the server counts the last minute's requests.
    slide: bool,
    /// Answers in a row that tell the contrary of that.
    contrary: u32,
}

/// How many requests must remain in the server's balance for the others.
#[derive(Clone, Copy, Debug)]
struct Keep(u32);

#[derive(Clone, Copy, Debug)]
struct Balance {
    remaining: u32,
    resets_at: Instant,
    /// How many a minute are ours, where the window slides: what is left, and what we have used.
    ours: Option<u32>,
}

/// One allowance, shared by everyone who asks for one tenant and category.
#[derive(Debug)]
pub(super) struct Allowance {
    window: Mutex<Window>,
    /// Thousandths of requests a minute that polls are expected to need; full reads leave them.
    reserved: AtomicU32,
    /// Held by whoever is next.
    polls: tokio::sync::Mutex<()>,
    news: tokio::sync::Mutex<()>,
    background: tokio::sync::Mutex<()>,
}

/// Keeps requests a minute free for polls, until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    allowance: Arc<Allowance>,
    milli: u32,
}

/// The right to make one request. Dropping it says that the request was answered, or given up.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    allowance: &'a Allowance,
    urgency: Urgency,
}

// === impl Window ===

impl Window {
    pub(super) fn new(ceiling: u32) -> Self {
        Self {
            ceiling: ceiling.max(1),
            told_limit: None,
            answered: VecDeque::new(),
            in_flight: [0; 3],
            refused: 0,
            last_poll: None,
            last: None,
            told: None,
            resets: Resets::default(),
            paused_until: None,
        }
    }

    /// From now on it is at most so many; what was used counts on.
    fn set_ceiling(&mut self, ceiling: u32) {
        self.ceiling = ceiling.max(1);
    }

    /// Takes a request out of the allowance, of which polls need `polls` a minute; or says when to try
    /// again.
    pub(super) fn take(
        &mut self,
        now: Instant,
        urgency: Urgency,
        polls: u32,
    ) -> Result<(), Instant> {
        while self
            .answered
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= MINUTE)
        {
            self.answered.pop_front();
        }
        if let Some(until) = self.paused_until {
            if now < until {
                return Err(until);
            }
            self.paused_until = None;
        }
        if self.told.is_some_and(|told| told.resets_at <= now) {
            self.told = None;
        }
        if self.told_limit.is_some_and(|(_, until)| until <= now) {
            self.told_limit = None;
        }
        let limit = self.limit();
        let used = count(self.answered.len()) + self.all_in_flight();
        if used >= limit {
            let frees = self.answered.get((used - limit) as usize);
            return Err(later(frees, now));
        }
        let Keep(keep) = self.within_share(urgency, polls, now)?;
        if let Some(told) = &mut self.told
            && told.ours.is_none()
        {
            // What others used shows in the server's count; near the reset less must be kept.
            let left = told.resets_at - now;
            let keep_here = (f64::from(keep) * left.as_secs_f64() / MINUTE.as_secs_f64()) as u32;
            if told.remaining <= keep_here {
                return Err(told.resets_at);
            }
            told.remaining -= 1;
        }
        self.in_flight[urgency as usize] += 1;
        self.last = Some(urgency);
        if urgency == Urgency::Poll {
            self.last_poll = Some(now);
        }
        Ok(())
    }

    /// Refuses where this urgency has used up its share of the limit. Else: how many requests must remain in the
    /// server's balance for the others, of which polls need `polls` a minute.
    fn within_share(&self, urgency: Urgency, polls: u32, now: Instant) -> Result<Keep, Instant> {
        let limit = self.limit();
        // What is kept for others, beside what polls need. However much that is, a burst of new alerts has
        // a quarter, and full reads have a tenth: both must come to an end.
        let (other, reserved_for_other, guaranteed) = match urgency {
            Urgency::Poll => return Ok(Keep(0)),
            Urgency::News => (Urgency::Background, self.tenth(), limit.div_ceil(4)),
            Urgency::Background => (Urgency::News, limit / 5, self.tenth()),
        };
        let used = self.used_for(urgency);
        if used < guaranteed {
            let both_fit = polls + guaranteed <= limit;
            return Ok(Keep(if both_fit { polls } else { 0 }));
        }
        // What others have had is a part of what is kept for them.
        let taken_by_others =
            polls.max(self.used_for(Urgency::Poll)) + reserved_for_other.max(self.used_for(other));
        let share = limit.saturating_sub(taken_by_others).max(guaranteed);
        match used.checked_sub(share) {
            None => Ok(Keep(polls + reserved_for_other)),
            Some(over) => Err(later(self.answered_for(urgency).nth(over as usize), now)),
        }
    }

    /// Requests of the last minute that were for that, those in flight included.
    fn used_for(&self, urgency: Urgency) -> u32 {
        count(self.answered_for(urgency).count()) + self.in_flight[urgency as usize]
    }

    fn answered_for(&self, urgency: Urgency) -> impl Iterator<Item = &(Instant, Urgency)> {
        self.answered.iter().filter(move |of| of.1 == urgency)
    }

    /// Whether a poll keeps its distance from the one before; else says when it does.
    fn pace(&self, now: Instant, wanted: f64, shared: bool) -> Result<(), Instant> {
        let due = self
            .last_poll
            .map(|last| last + self.spacing(now, wanted, shared));
        due.filter(|due| *due > now).map_or(Ok(()), Err)
    }

    /// Whether a request leaves the turn to somebody who waits: of a single one a minute no part can be
    /// kept, so polls and full reads take it by turns.
    fn leaves_turn(&self, urgency: Urgency, polls_wait: bool, full_reads_wait: bool) -> bool {
        let is_background = |urgency| urgency == Urgency::Background;
        let other_waits = if is_background(urgency) {
            polls_wait
        } else {
            full_reads_wait
        };
        let had_the_last = |last| is_background(last) == is_background(urgency);
        self.limit() == 1 && other_waits && self.last.is_some_and(had_the_last)
    }

    /// How far apart polls are to be where they want more than there is, at `wanted` a minute:
    /// spread evenly, they find an alert sooner than in a burst that leaves nothing for a while.
    /// `shared`: full reads wait for their tenth.
    fn spacing(&self, now: Instant, wanted: f64, shared: bool) -> Duration {
        let limit = self.limit();
        let ours = limit - if shared { self.tenth() } else { 0 };
        let mut spacing = Duration::ZERO;
        if wanted > f64::from(ours) {
            spacing = MINUTE / ours.max(1);
        }
        if let Some(told) = self.told.filter(|told| told.ours.is_none()) {
            let left = told.resets_at.saturating_duration_since(now);
            let needed = wanted * left.as_secs_f64() / MINUTE.as_secs_f64();
            // Of a single one there is nothing to be spread.
            if needed > f64::from(told.remaining) + 1.0 {
                spacing = spacing.max(left / told.remaining.max(1));
            }
        }
        spacing
    }

    fn all_in_flight(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    fn tenth(&self) -> u32 {
        self.limit().div_ceil(10)
    }

    /// Requests a minute: our ceiling, or the server's where that is lower, or what others leave us.
    fn limit(&self) -> u32 {
        let limit = self
            .told_limit
            .map_or(self.ceiling, |(told, _)| told.min(self.ceiling));
        let ours = self.told.and_then(|told| told.ours);
        ours.map_or(limit, |ours| ours.min(limit)).max(1)
    }

    /// How many a minute are ours where so many are left: in a window that slides, what we have used comes free
    /// again a minute later, whatever its reset is. An answer is learned from while its request is in flight.
    fn ours(&self, remaining: u32, now: Instant) -> Option<u32> {
        let is_counted = |of: &&(Instant, Urgency)| now.saturating_duration_since(of.0) < MINUTE;
        let answered = count(self.answered.iter().filter(is_counted).count());
        let used = (answered + 1).saturating_sub(self.refused);
        self.resets.slide.then(|| remaining.saturating_add(used))
    }

    /// How long it takes in a window that slides until one of our requests is forgotten, and no less than they
    /// are apart.
    fn frees_in(&self, now: Instant) -> Duration {
        let mut forgotten = self.answered.iter().map(|(at, _)| *at + MINUTE);
        let next = forgotten.find(|at| *at > now);
        let wait = next.map_or(Duration::ZERO, |at| at - now);
        wait.max(MINUTE / self.limit())
    }

    /// A request was answered, or given up.
    pub(super) fn give_back(&mut self, now: Instant, urgency: Urgency) {
        let in_flight = &mut self.in_flight[urgency as usize];
        *in_flight = in_flight.saturating_sub(1);
        if self.refused > 0 {
            self.refused -= 1;
            return;
        }
        self.answered.push_back((now, urgency));
    }

    /// What an answer said.
    pub(super) fn learn(&mut self, hints: &Hints, now: Instant) {
        if let Some(limit) = hints.limit.filter(|limit| *limit > 0) {
            self.told_limit = Some((limit, now + LIMIT_LASTS));
        }
        let resets_in = hints.resets_in.map(|wait| wait.min(MAX_PAUSE));
        let balance = hints.remaining.zip(resets_in.map(|wait| now + wait));
        if let Some((_, resets_at)) = balance {
            self.resets.watch(resets_at, now);
        }
        // Also where the refusal tells nothing of a balance.
        if hints.throttled && self.resets.slide {
            self.refused += 1;
        }
        if let Some((remaining, resets_at)) = balance {
            let ours = self.ours(remaining, now);
            let remaining = remaining.saturating_sub(self.all_in_flight().saturating_sub(1));
            // Answers overtake each other: within one window only the lowest count is true. Where the
            // reset moves on, it is another window, or one that slides.
            let same_window = |told: &Balance| {
                resets_at < told.resets_at + JITTER && told.resets_at < resets_at + MINUTE / 2
            };
            self.told = Some(match self.told {
                Some(told) if same_window(&told) => Balance {
                    remaining: told.remaining.min(remaining),
                    resets_at: told.resets_at.max(resets_at),
                    ours,
                },
                _ => Balance {
                    remaining,
                    resets_at,
                    ours,
                },
            });
        }
        if hints.throttled {
            let resets_in = resets_in.map(|wait| {
                if self.resets.slide {
                    wait.min(self.frees_in(now))
                } else {
                    wait
                }
            });
            let wait = hints.retry_after.or(resets_in);
            let until = now + wait.unwrap_or(UNTOLD_PAUSE);
            self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
        }
    }
}

// === impl Resets ===

impl Resets {
    /// Finds out whether the window slides, now that a reset is told. Of one that stands still it comes
    /// nearer, and the next one is a whole window later; of one that slides it is a whole minute away each time.
    fn watch(&mut self, resets_at: Instant, now: Instant) {
        let before = self.anchor.filter(|(_, before)| now + JITTER < *before);
        let Some((told_at, before)) = before else {
            self.anchor = Some((now, resets_at));
            return;
        };
        let passed = now.saturating_duration_since(told_at);
        if passed < 2 * JITTER {
            return;
        }
        let left = resets_at.saturating_duration_since(now);
        let moved = resets_at.saturating_duration_since(before);
        let slid =
            left.abs_diff(MINUTE) <= 2 * JITTER && moved > JITTER && moved <= passed + JITTER;
        self.contrary = if slid == self.slide {
            0
        } else {
            self.contrary + 1
        };
        if self.contrary >= if slid { SLID } else { STOOD } {
            self.slide = slid;
            self.contrary = 0;
        }
        // A single answer that is odd is nothing to compare with.
        if slid || !self.slide {
            self.anchor = Some((now, resets_at));
        }
    }
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

/// When a request that was answered is forgotten. With requests in flight but none answered there
/// is nothing to wait for but them.
fn later(answered: Option<&(Instant, Urgency)>, now: Instant) -> Instant {
    answered.map_or(now + Duration::from_millis(100), |(at, _)| *at + MINUTE)
}

// === impl Allowance ===

impl Allowance {
    pub(super) fn new(ceiling: u32) -> Self {
        Self {
            window: Mutex::new(Window::new(ceiling)),
            reserved: AtomicU32::new(0),
            polls: tokio::sync::Mutex::default(),
            news: tokio::sync::Mutex::default(),
            background: tokio::sync::Mutex::default(),
        }
    }

    /// Waits for a request to become free. `waited` is told of the time while it goes by.
    pub(super) async fn acquire(
        &self,
        urgency: Urgency,
        mut waited: impl FnMut(Duration),
    ) -> Permit<'_> {
        let mut told = Instant::now();
        let mut tell = |now: Instant| {
            let more = now - told;
            if more > Duration::from_millis(1) {
                waited(more);
                told = now;
            }
        };
        let queue = match urgency {
            Urgency::Poll => &self.polls,
            Urgency::News => &self.news,
            Urgency::Background => &self.background,
        };
        let mut turn = pin!(queue.lock());
        // It is polled on after a look, so that the place in the queue is kept.
        let _turn = loop {
            match tokio::time::timeout(LOOK_AGAIN, &mut turn).await {
                Ok(turn) => break turn,
                Err(_) => tell(Instant::now()),
            }
        };
        loop {
            let now = Instant::now();
            tell(now);
            match self.take(now, urgency) {
                Ok(()) => {
                    return Permit {
                        allowance: self,
                        urgency,
                    };
                }
                Err(at) => tokio::time::sleep_until(at.min(now + LOOK_AGAIN)).await,
            }
        }
    }

    fn take(&self, now: Instant, urgency: Urgency) -> Result<(), Instant> {
        let reserved = self.reserved.load(Ordering::Relaxed);
        // Whoever waits holds the turn of its queue.
        let waits = |queue: &tokio::sync::Mutex<()>| queue.try_lock().is_err();
        let full_reads_wait = waits(&self.background);
        let polls_wait = waits(&self.polls) || waits(&self.news);
        let mut window = self.window.lock();
        if window.leaves_turn(urgency, polls_wait, full_reads_wait) {
            return Err(now + LOOK_AGAIN);
        }
        if urgency == Urgency::Poll {
            let wanted = f64::from(reserved) / 1000.0;
            window.pace(now, wanted, full_reads_wait)?;
        }
        window.take(now, urgency, reserved.div_ceil(1000))
    }

    pub(super) fn set_ceiling(&self, ceiling: u32) {
        self.window.lock().set_ceiling(ceiling);
    }

    pub(super) fn learn(&self, hints: &Hints) {
        self.window.lock().learn(hints, Instant::now());
    }

    /// Keeps as many requests a minute free as a poll every `interval` needs.
    pub(super) fn reserve(self: &Arc<Self>, interval: Duration) -> Reservation {
        let a_minute = MINUTE.as_secs_f64() / interval.as_secs_f64().max(0.001);
        let milli = (a_minute * 1000.0).min(1e6) as u32;
        self.reserved.fetch_add(milli, Ordering::Relaxed);
        Reservation {
            allowance: Arc::clone(self),
            milli,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.allowance
            .window
            .lock()
            .give_back(Instant::now(), self.urgency);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.allowance
            .reserved
            .fetch_sub(self.milli, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
